"""Masks, blocks and pixels in NumPy against the oracle, and what is not allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eqconv_cli.backends.block_sparse import reference
from eqconv_cli.backends.block_sparse.geometry import block_params
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.errors import Unavailable
from eqconv_cli.numpy import (
    block_pixels,
    pixel_index,
    reduce_mask,
    resize_mask,
    sparse_gather,
    sparse_gather_gradient,
    sparse_scatter,
    sparse_scatter_gradients,
    sparse_scatter_var,
)
from tests.block_sparse.support import FUSED, GEOMETRIES, TWO_PIXELS, Geometry, words

VERSIONS = ["indexed", "sliced", FUSED]
WINDOW: dict[str, Any] = {"bsize": (2, 2), "bstride": (2, 2)}


def indexed(rows: Any) -> BlockIndex:
    return BlockIndex(np.array(rows, np.int32).reshape(-1, 3), np.array([len(rows)], np.int32))


ONE = indexed([[0, 0, 0]])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("avgpool", [False, True])
@pytest.mark.parametrize("tol", [0.0, 0.5, -0.25])
def test_reduced_masks(version: Any, geometry: Geometry, avgpool: bool, tol: float) -> None:
    mask = np.random.default_rng(0).normal(size=geometry.shape[:3]).astype(np.float32)
    mask[:, 0, 0] = np.nan
    words_ = words(avgpool=avgpool, on_empty="first", tol=tol, bcount=geometry.bcount, **geometry.window)
    expected = reference.reduce_mask({"mask": mask, **words_})
    options: dict[str, Any] = {"avgpool": avgpool, "on_empty": "first", "tol": tol, "version": version}
    found = reduce_mask(mask[..., None], geometry.bcount, **geometry.window, **options)
    assert found.active_block_indices.dtype == np.int32
    assert np.array_equal(found.active_block_indices, expected["active_block_indices"])
    assert np.array_equal(found.bin_counts, expected["bin_counts"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_blocks_and_their_gradients(version: Any, geometry: Geometry, transpose: bool, add: bool) -> None:
    """With rows in no order, some of them twice."""
    rng = np.random.default_rng(1)
    images, (down, right) = geometry.shape[0], geometry.bcount
    index = indexed(np.stack([rng.integers(0, n, 9) for n in (images, down, right)], 1))
    x, base = rng.normal(size=geometry.shape), rng.normal(size=geometry.shape)
    options: dict[str, Any] = {**geometry.window, "transpose": transpose, "version": version}
    flags = words(transpose=transpose, add=add, index=index.active_block_indices, **geometry.window)
    blocks = sparse_gather(x, index, **options)
    assert np.array_equal(blocks, reference.gather({"x": x, **flags})["blocks"])
    given = {"blocks": rng.normal(size=blocks.shape), "ybase": base, **flags}
    y = sparse_scatter(given["blocks"], index, base, add=add, atomic=True, **options)
    np.testing.assert_allclose(y, reference.scatter(given)["y"], atol=1e-13)
    dy = rng.normal(size=y.shape)
    expected = reference.scatter_gradients(given, {"y": dy})
    dblocks, dbase = sparse_scatter_gradients(dy, index, add=add, **options)
    assert np.array_equal(dblocks, expected["blocks"]) and np.array_equal(dbase, expected["ybase"])
    dx = sparse_gather_gradient(given["blocks"], index, x.shape, **options)
    expected = reference.gather_gradients({"x": x, **flags}, {"blocks": given["blocks"]})
    np.testing.assert_allclose(dx, expected["x"], atol=1e-13)
    var = base.copy()
    assert sparse_scatter_var(given["blocks"], index, var, add=add, atomic=True, **options) is var
    assert np.array_equal(var, y)


@pytest.mark.parametrize("version", VERSIONS)
def test_rows_behind_the_count_are_not_read(version: Any) -> None:
    index = ONE._replace(active_block_indices=np.array([[0, 1, 1], [9, -5, 0]], np.int64))
    assert sparse_gather(np.ones((1, 4, 4, 1)), index, **WINDOW, version=version).shape == (1, 2, 2, 1)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_blocks(version: Any) -> None:
    none, x = indexed([]), np.ones((1, 4, 4, 3))
    blocks = sparse_gather(x, none, **WINDOW, version=version)
    assert blocks.shape == (0, 2, 2, 3)
    assert np.array_equal(sparse_scatter(blocks, none, x, **WINDOW, add=False, version=version), x)


@pytest.mark.parametrize("version", VERSIONS)
def test_in_place_on_an_array_that_is_not_contiguous(version: Any) -> None:
    var = np.zeros((1, 3, 4, 4)).transpose(0, 2, 3, 1)
    assert not var.flags.c_contiguous
    sparse_scatter_var(np.ones((1, 2, 2, 3)), ONE, var, **WINDOW, add=False, version=version)
    assert var.sum() == 12 and var[0, :2, :2].min() == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_pixels_of_boolean_masks_and_layouts(version: Any) -> None:
    found = pixel_index(TWO_PIXELS > 0, tol=0.5, version=version)
    assert found.pixels.tolist() == [7, 10] and found.count.tolist() == [2] and found.grid == (1, 5, 5)
    dilated = pixel_index(TWO_PIXELS, tol=0.5, ksize=(3, 3), version=version).pixels
    around = np.pad(TWO_PIXELS[0], 1)
    windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3)).max((2, 3))
    assert np.array_equal(dilated, np.flatnonzero(windows))
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 3))
    first = sparse_gather(x.transpose(0, 3, 1, 2), ONE, **WINDOW, layout="NCHW", version=version)
    assert np.array_equal(first, x[:, :2, :2])


@pytest.mark.parametrize("version", ["indexed", FUSED])
def test_block_pixels_stop_at_the_edge(version: Any) -> None:
    params = block_params((5, 5), (4, 4), (3, 3))
    pixels = block_pixels(indexed([[0, 2, 2], [0, 2, 2], [0, 0, 1]]), params, 1, version)
    assert pixels.pixels.tolist() == [2, 3, 7, 8, 24]


def test_resized_masks() -> None:
    mask = np.zeros((1, 4, 6), bool)
    mask[0, 3, 5] = True
    assert resize_mask(mask, 2, 3)[0].tolist() == [[False] * 3, [False, False, True]]
    assert resize_mask(resize_mask(mask, 8, 12), 4, 6).tolist() == mask.tolist()
    assert resize_mask(mask[..., None], 3, 4).shape == (1, 3, 4, 1)


MASK = np.ones((1, 4, 4))
REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "bsize": (lambda: reduce_mask(MASK, (2, 2), bsize=(0, 2), bstride=(2, 2), tol=0), ValueError, "bsize=.0, 2."),
    "length": (lambda: reduce_mask(MASK, (2, 2, 2), **WINDOW, tol=0), ValueError, "bcount"),
    "channels": (lambda: reduce_mask(np.ones((1, 4, 4, 2)), (2, 2), **WINDOW, tol=0), ValueError, "2 channels"),
    "integers": (lambda: reduce_mask(np.ones((1, 4, 4), int), (2, 2), **WINDOW, tol=0), TypeError, "int64"),
    "nan": (lambda: reduce_mask(MASK, (2, 2), **WINDOW, tol=np.nan), ValueError, "tol=nan"),
    "empty": (lambda: reduce_mask(MASK, (2, 2), **WINDOW, tol=0, on_empty="last"), ValueError, "on_empty='last'"),
    "version": (lambda: reduce_mask(MASK, (2, 2), **WINDOW, tol=0, version="v9"), ValueError, "version='v9'"),
    "rank": (lambda: sparse_gather(MASK, ONE, **WINDOW), ValueError, "expected rank 4"),
    "half": (lambda: sparse_gather(np.ones((1, 4, 4, 1), np.float16), ONE, **WINDOW), TypeError, "float16"),
    "list": (lambda: sparse_gather([1.0], ONE, **WINDOW), TypeError, "NumPy array"),
    "image": (lambda: sparse_gather(MASK[..., None], indexed([[1, 0, 0]]), **WINDOW), IndexError, "image 1"),
    "row": (lambda: sparse_gather(MASK[..., None], indexed([[0, -1, 0]]), **WINDOW), IndexError, "block row -1"),
    "blocks": (
        lambda: sparse_scatter(np.ones((1, 2, 2, 5)), ONE, MASK[..., None], **WINDOW, add=False),
        ValueError,
        r"expected \[1, 2, 2, 1\]",
    ),
    "atomic": (
        lambda: sparse_scatter(np.ones((1, 3, 3, 1)), ONE, MASK[..., None], bsize=(3, 3), bstride=(2, 2), add=True),
        ValueError,
        "atomic=True",
    ),
    "size": (lambda: resize_mask(MASK, 0, 2), ValueError, "at least 1"),
    "pixels": (
        lambda: block_pixels(indexed([[2, 0, 0]]), block_params((4, 4), (4, 4), (3, 3)), 1),
        IndexError,
        "image 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_allowed(name: str) -> None:
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_missing_kernels_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eqconv_cli.backends.block_sparse.numpy_fused.missing_kernels", lambda target: ("not built",))
    for version in ("fused", Fused(threads=1)):
        with pytest.raises(Unavailable, match="not built"):
            pixel_index(MASK, tol=0.5, version=version)
    assert isinstance(pixel_index(MASK, tol=0.5), PixelIndex)
