"""``eqconv verify block_sparse --mask FILE``: arrays, archives and pictures of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from eqconv_cli.app import app
from eqconv_cli.backends.block_sparse import masks
from eqconv_cli.backends.block_sparse.problems import mask_file

ACTIVE = np.arange(7 * 9).reshape(7, 9) % 4 == 0


def verify(path: Path) -> Result:
    return CliRunner().invoke(app, ["verify", "block_sparse", "--mask", str(path), "--only", "closed_form@numpy"])


def written(path: Path, values: Any) -> Path:
    """The values as a file of the kind that its name says."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, **(values if isinstance(values, dict) else {"road": values}))
    else:
        pytest.importorskip("PIL.Image").fromarray((255 * values).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    ("name", "values", "images"),
    [
        ("bool.npy", ACTIVE, 1),
        ("real.npy", np.where(ACTIVE, 0.7, 0.5).astype(np.float32), 1),
        ("whole.npy", ACTIVE.astype(np.uint8), 1),
        ("two.npy", np.stack([ACTIVE, ACTIVE]), 2),
        ("archive.npz", ACTIVE, 1),
        ("picture.png", ACTIVE, 1),
    ],
)
def test_masks_are_read(tmp_path: Path, name: str, values: Any, images: int) -> None:
    path = written(tmp_path / name, values)
    assert np.array_equal(masks.stored(path), np.stack([ACTIVE] * images))
    result = verify(path)
    assert result.exit_code == 0, result.stderr
    assert f"mask:{name}" in result.stdout
    sites = next(p for p in mask_file(path) if p.operation == "submanifold").arrays(0)
    assert sites["batch"] == images and len(sites["coords"]) == images * ACTIVE.sum()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("word.npy", np.array([["road"]]), "has dtype <U4: bool or real"),
        ("complex.npy", ACTIVE + 1j, "has dtype complex128"),
        ("flat.npy", ACTIVE.ravel(), "has shape [63]: [H, W] or [N, H, W]"),
        ("channels.npy", ACTIVE[None, ..., None], "has shape [1, 7, 9, 1]"),
        ("empty.npy", ACTIVE[:0], "not empty"),
        ("nan.npy", np.full((2, 2), np.nan), "has NaN"),
        ("several.npz", {"a": ACTIVE, "b": ACTIVE}, "holds 2 arrays (a, b): one is needed"),
        ("none.npz", {}, "holds 0 arrays (nothing)"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, name: str, values: Any, message: str) -> None:
    result = verify(written(tmp_path / name, values))
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())


@pytest.mark.parametrize("name", ["broken.npy", "broken.npz", "broken.png", "pickled.npy", "missing.npy"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("broken"):
        path.write_bytes(b"no mask")
    elif name.startswith("pickled"):
        np.save(path, np.array([None]), allow_pickle=True)
    result = verify(path)
    wanted = "is not a file" if name.startswith("missing") else "cannot be read"
    assert result.exit_code == 2 and wanted in " ".join(result.stderr.split())
