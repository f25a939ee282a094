from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage

from eqconv_cli.backends.block_sparse import masks
from eqconv_cli.backends.pictures import picture
from eqconv_cli.errors import UsageError


@pytest.mark.parametrize("kind", ["topleft", "blobs", "noise", "rings"])
@pytest.mark.parametrize("sparsity", [0.6, 0.9, 0.99])
def test_masks_have_about_the_sparsity_asked_for(kind: str, sparsity: float) -> None:
    mask = masks.make(kind, np.random.default_rng(0), 2, 200, 350, sparsity)
    assert mask.shape == (2, 200, 350) and set(np.unique(mask)) == {0.0, 1.0}
    assert 1 - mask.mean() == pytest.approx(sparsity, abs=0.02)


def test_topleft_is_the_papers_rectangle() -> None:
    mask = masks.make("topleft", np.random.default_rng(0), 1, 400, 700, 0.9)[0]
    rows, columns = np.ceil(0.1**0.5 * 400), np.ceil(0.1**0.5 * 700)
    assert mask.sum() == rows * columns == mask[: int(rows), : int(columns)].sum()


def test_blobs_hang_together_and_noise_does_not() -> None:
    pieces = {
        kind: scipy.ndimage.label(masks.make(kind, np.random.default_rng(0), 1, 200, 350, 0.9)[0])[1]
        for kind in ("blobs", "noise")
    }
    assert pieces["blobs"] < 60 < pieces["noise"]


def test_images_are_drawn_one_by_one() -> None:
    first, second = masks.make("noise", np.random.default_rng(0), 2, 20, 30, 0.5)
    assert not np.array_equal(first, second)


def test_single_corner_empty_and_full() -> None:
    rng = np.random.default_rng(0)
    assert [masks.make(kind, rng, 1, 7, 9).sum() for kind in ("single", "corner", "empty", "full")] == [1, 1, 0, 63]
    assert masks.make("corner", rng, 1, 7, 9)[0, -1, -1] == 1


def test_what_is_not_allowed() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="mask='stars' is unknown: allowed: topleft"):
        masks.make("stars", rng, 1, 2, 3)
    with pytest.raises(ValueError, match=r"sparsity=1\.5"):
        masks.make("noise", rng, 1, 2, 3, 1.5)


def test_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    colours = np.array([[[255, 0, 0], [255, 255, 255]]], np.uint8)
    image.fromarray(colours).save(tmp_path / "two.png")
    read = picture(tmp_path / "two.png")
    np.testing.assert_allclose(read, colours / 255)
    np.testing.assert_allclose(masks.gray(read), [[0.299, 1.0]])
    with pytest.raises(UsageError, match="is not a file"):
        picture(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UsageError, match="cannot be read"):
        picture(tmp_path / "text.png")
