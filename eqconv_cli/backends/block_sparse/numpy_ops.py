"""Masks, blocks and lists of pixels in NumPy: which blocks are active, blocks out of an image and back into it.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018; the operators of uber-research/sbnet ``sbnet_ops``, in raster order
and with a defined result where blocks overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.block_sparse import arguments, numpy_fused
from eqconv_cli.backends.block_sparse.arguments import Window
from eqconv_cli.backends.block_sparse.geometry import (
    BlockParams,
    Pair,
    check_padding,
    kernel_pair,
    output_grid,
    paddings,
    pair,
    strides_pair,
)
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.options import Fused, kernels_or

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int32]

#: "indexed" moves all blocks by one indexing expression, "sliced" one block after the other by slices.
COMPOSITIONS = ("indexed", "sliced")


def reduce_mask(
    mask: Array,
    bcount: Sequence[int],
    *,
    bsize: Sequence[int],
    bstride: Sequence[int],
    boffset: Sequence[int] = (0, 0),
    tol: float,
    avgpool: bool = False,
    on_empty: str = "none",
    version: str | Fused = "auto",
) -> BlockIndex:
    """The blocks in whose window the mask is above ``tol``, in raster order.

    Args:
        mask: [N, H, W] or [N, H, W, 1], float32, float64 or bool (0 and 1). Compared in float32; NaN is above nothing.
        bcount: number of blocks (rows, columns).
        bsize, bstride, boffset: window (i, j) starts at boffset + bstride * (i, j) and has bsize; what is outside the
            image is never above.
        tol: a value equal to it is inactive.
        avgpool: compare the mean over the whole window (0 outside the image) instead of each value.
        on_empty: "none", or "first" to return block (0, 0, 0) when nothing is active, as SBNet does.
        version: "indexed", "sliced", "fused" (``eqconv build-kernels``), or "auto".

    Returns:
        Rows int32 [B, 3] and their count.

    Raises:
        TypeError: a mask of another dtype.
        ValueError: a shape or an option is not allowed; ``tol`` is NaN.
        Unavailable: version is "fused" and the kernels are not built.
    """
    at, grid = arguments.window(bsize, bstride, boffset), pair("bcount", bcount, 1)
    arguments.check_tolerance(tol)
    arguments.check_choice("on_empty", on_empty, arguments.ON_EMPTY)
    plain = plain_mask(mask)
    how = kernels_or(version, COMPOSITIONS, numpy_fused.missing)
    if isinstance(how, Fused):
        return _counted(numpy_fused.mask_blocks(plain, grid, at, tol, avgpool, on_empty, how))
    active = (_pooled if how == "indexed" else _pooled_by_slices)(plain, grid, at, tol, avgpool)
    rows = np.argwhere(active).astype(np.int32)
    return _counted(np.zeros((1, 3), np.int32) if not len(rows) and on_empty == "first" else rows)


def sparse_gather(
    x: Array,
    index: BlockIndex,
    *,
    bsize: Sequence[int],
    bstride: Sequence[int],
    boffset: Sequence[int] = (0, 0),
    transpose: bool = False,
    layout: str = "NHWC",
    version: str | Fused = "auto",
) -> Array:
    """The windows of the listed blocks as one stack, 0 outside the image.

    Args:
        x: [N, H, W, C] float32 or float64, or [N, C, H, W] with ``layout="NCHW"``.
        index: rows in any order, also repeated.
        bsize, bstride, boffset: as for :func:`reduce_mask`.
        transpose: return blocks with the channels first.
        layout: of ``x``.
        version: as for :func:`reduce_mask`.

    Returns:
        [B, h, w, C], or with ``transpose`` [B, C, h, w].

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: a row names an image that there is not, or a negative number.
        Unavailable: version is "fused" and the kernels are not built.
    """
    at = arguments.window(bsize, bstride, boffset)
    image = plain_image("x", x, layout)
    rows = listed_rows(index, image.shape[0])
    how = kernels_or(version, COMPOSITIONS, numpy_fused.missing)
    if isinstance(how, Fused):
        return numpy_fused.block_gather(image, rows, at, transpose, how)
    blocks = (_gathered if how == "indexed" else _gathered_by_slices)(image, rows, at)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 2)) if transpose else blocks


def sparse_gather_gradient(
    dblocks: Array,
    index: BlockIndex,
    shape: Sequence[int],
    *,
    bsize: Sequence[int],
    bstride: Sequence[int],
    boffset: Sequence[int] = (0, 0),
    transpose: bool = False,
    version: str | Fused = "auto",
) -> Array:
    """The gradient of ``x`` [N, H, W, C] = ``shape`` from that of the blocks: where windows overlap, it adds up.

    Other arguments and errors as for :func:`sparse_gather`.
    """
    return sparse_scatter_var(
        dblocks,
        index,
        np.zeros(tuple(shape), dblocks.dtype),
        bsize=bsize,
        bstride=bstride,
        boffset=boffset,
        add=True,
        atomic=True,
        transpose=transpose,
        version=version,
    )


def sparse_scatter(
    blocks: Array,
    index: BlockIndex,
    ybase: Array,
    *,
    bsize: Sequence[int],
    bstride: Sequence[int],
    boffset: Sequence[int] = (0, 0),
    add: bool,
    atomic: bool = False,
    transpose: bool = False,
    version: str | Fused = "auto",
) -> Array:
    """A copy of ``ybase`` with the blocks written to their windows, or added there.

    Where windows overlap or rows repeat, the later row wins; with ``add`` they add up in the order of the rows.

    Args:
        blocks: [B, h, w, C], or with ``transpose`` [B, C, h, w]; what is outside the image is dropped.
        index: as for :func:`sparse_gather`.
        ybase: [N, H, W, C], the dtype of the blocks.
        bsize, bstride, boffset: as for :func:`reduce_mask`.
        add: add instead of write.
        atomic: allow ``add`` where windows overlap.
        transpose: the blocks have their channels first.
        version: as for :func:`reduce_mask`.

    Returns:
        [N, H, W, C].

    Raises:
        TypeError, ValueError, IndexError, Unavailable: as for :func:`sparse_gather`; also add without atomic where
            windows overlap.
    """
    return sparse_scatter_var(
        blocks,
        index,
        plain_image("ybase", ybase).copy(),
        bsize=bsize,
        bstride=bstride,
        boffset=boffset,
        add=add,
        atomic=atomic,
        transpose=transpose,
        version=version,
    )


def sparse_scatter_var(
    blocks: Array,
    index: BlockIndex,
    var: Array,
    *,
    bsize: Sequence[int],
    bstride: Sequence[int],
    boffset: Sequence[int] = (0, 0),
    add: bool,
    atomic: bool = False,
    transpose: bool = False,
    version: str | Fused = "auto",
) -> Array:
    """As :func:`sparse_scatter`, written into ``var`` itself, which is returned.

    Raises:
        ValueError: also a ``var`` that is read-only.
    """
    at = arguments.window(bsize, bstride, boffset)
    arguments.check_scatter(at, add, atomic)
    y = plain_image("var", var)
    if not var.flags.writeable:
        raise ValueError("var is read-only: it is written in place")
    rows = listed_rows(index, y.shape[0])
    arguments.check_same_dtype("blocks", str(blocks.dtype), "ybase", str(y.dtype))
    arguments.check_blocks(blocks.shape, rows.shape, at.size, y.shape[3], transpose)
    how = kernels_or(version, COMPOSITIONS, numpy_fused.missing)
    if isinstance(how, Fused):
        numpy_fused.block_scatter(np.ascontiguousarray(blocks), rows, y, y, at, add, transpose, how)
    else:
        channels_last = blocks.transpose(0, 2, 3, 1) if transpose else blocks
        (_scattered if how == "indexed" else _scattered_by_slices)(channels_last, rows, y, at, add)
    if y is not var:
        var[...] = y
    return var


def sparse_scatter_gradients(
    dy: Array,
    index: BlockIndex,
    *,
    bsize: Sequence[int],
    bstride: Sequence[int],
    boffset: Sequence[int] = (0, 0),
    add: bool,
    transpose: bool = False,
    version: str | Fused = "auto",
) -> tuple[Array, Array]:
    """The gradients of the blocks and of ``ybase`` from that of the result [N, H, W, C].

    Without ``add`` a block gets the cotangent of the pixels that it owns (no later row covers them), and the base that
    of the pixels that no row covers. Other arguments and errors as for :func:`sparse_scatter`.
    """
    at = arguments.window(bsize, bstride, boffset)
    cotangent = plain_image("dy", dy)
    rows = listed_rows(index, cotangent.shape[0])
    geometry: dict[str, Any] = {"bsize": bsize, "bstride": bstride, "boffset": boffset}
    if add:
        blocks = sparse_gather(cotangent, index, **geometry, transpose=transpose, version=version)
        return blocks, cotangent.copy()
    how = kernels_or(version, COMPOSITIONS, numpy_fused.missing)
    if isinstance(how, Fused):
        dblocks = numpy_fused.block_gather(cotangent, rows, at, transpose, how, owned=True)
        dbase = numpy_fused.block_scatter(None, rows, cotangent, np.empty_like(cotangent), at, False, transpose, how)
        return dblocks, dbase
    number = np.broadcast_to(np.arange(len(rows))[:, None, None, None], (len(rows), *at.size, 1))
    owner = np.full((*cotangent.shape[:3], 1), -1)
    _scattered(number, rows, owner, at, False)
    mine = _gathered(owner, rows, at) == number
    dblocks = np.where(mine, _gathered(cotangent, rows, at), 0)
    dbase = np.where(owner < 0, cotangent, 0)
    return np.ascontiguousarray(dblocks.transpose(0, 3, 1, 2)) if transpose else dblocks, dbase


def resize_mask(mask: Array, height: int, width: int, how: str = "max") -> Array:
    """A mask of another size: each pixel takes the largest value of the area that it stands for.

    Args:
        mask: [N, H, W] or [N, H, W, 1], float32, float64 or bool.
        height, width: of the result. Pixel i stands for rows floor(i H / height) to ceil((i + 1) H / height) - 1, so a
            larger mask repeats values.
        how: "max".

    Returns:
        [N, height, width], or with one channel as the mask has it.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
    """
    arguments.check_choice("how", how, ("max",))
    pair("(height, width)", (height, width), 1)
    plain = plain_mask(mask)
    if 0 in plain.shape[1:]:
        raise ValueError(f"mask has shape {arguments.text(mask.shape)}: an image without pixels cannot be resized")
    made = plain
    for axis, extent in ((1, height), (2, width)):
        n = made.shape[axis]
        areas = (made.take(range(i * n // extent, -(-(i + 1) * n // extent)), axis).max(axis) for i in range(extent))
        made = np.stack(list(areas), axis)
    return made.reshape(*made.shape, *mask.shape[3:])


def pixel_index(
    mask: Array,
    *,
    tol: float,
    ksize: Sequence[int] = (1, 1),
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    version: str | Fused = "auto",
) -> PixelIndex:
    """The output pixels of a convolution in whose window the mask is above ``tol``: the dilated mask.

    Args:
        mask: as for :func:`reduce_mask`, of the size of the convolution's input.
        tol: a value equal to it does not count.
        ksize: of the convolution; (1, 1) gives the mask's own pixels.
        strides: two numbers or TensorFlow's four.
        padding: "SAME" or "VALID".
        version: "indexed", "sliced", "fused" or "auto", as for :func:`reduce_mask`.

    Raises:
        TypeError, ValueError, Unavailable: as for :func:`reduce_mask`; also an output of 2^31 pixels or more.
    """
    arguments.check_tolerance(tol)
    check_padding(padding)
    plain = plain_mask(mask)
    size, step = kernel_pair(ksize), strides_pair("strides", strides)
    grid = out_grid(plain.shape, size, step, padding)
    front = [paddings(n, k, s, padding)[0] for n, k, s in zip(plain.shape[1:], size, step, strict=True)]
    at = Window(size, step, (-front[0], -front[1]))
    how = kernels_or(version, COMPOSITIONS, numpy_fused.missing)
    if isinstance(how, Fused):
        return counted_pixels(numpy_fused.mask_pixels(plain, grid[1:], at, tol, how), grid)
    active = (_pooled if how == "indexed" else _pooled_by_slices)(plain, grid[1:], at, tol, False)
    return counted_pixels(np.flatnonzero(active).astype(np.int32), grid)


def block_pixels(index: BlockIndex, params: BlockParams, images: int, version: str | Fused = "auto") -> PixelIndex:
    """The output pixels in the tiles of the active blocks.

    Args:
        index: rows in any order, also repeated.
        params: geometry of the convolution.
        images: N.
        version: "indexed", "fused" or "auto".

    Raises:
        ValueError, IndexError, Unavailable: as for :func:`sparse_gather`.
    """
    rows = listed_rows(index, images)
    grid = (images, *params.out_size)
    arguments.check_positions(int(np.prod(grid)))
    at = Window(params.bsize_out, params.bsize_out, (0, 0))
    how = kernels_or(version, COMPOSITIONS[:1], numpy_fused.missing)
    if isinstance(how, Fused):
        return counted_pixels(numpy_fused.block_pixels(grid, rows, at, how), grid)
    inside = np.zeros((*grid, 1), bool)
    _scattered(np.ones((len(rows), *at.size, 1), bool), rows, inside, at, False)
    return counted_pixels(np.flatnonzero(inside).astype(np.int32), grid)


# Arguments as plain arrays.


def plain_mask(mask: Array) -> Array:
    """[N, H, W], contiguous; raises TypeError or ValueError for what is no mask."""
    _check_array("mask", mask)
    if mask.dtype != bool:
        arguments.check_float("mask", str(mask.dtype), ("bool",))
    arguments.check_mask(mask.shape)
    return np.ascontiguousarray(mask.reshape(mask.shape[:3]))


def check_plain_image(name: str, x: Array) -> None:
    """Raises TypeError or ValueError for what is no image."""
    _check_array(name, x)
    arguments.check_float(name, str(x.dtype))
    arguments.check_image(name, x.shape)


def plain_image(name: str, x: Array, layout: str = "NHWC") -> Array:
    """[N, H, W, C], contiguous; raises TypeError or ValueError for what is no image."""
    check_plain_image(name, x)
    arguments.check_choice("layout", layout, arguments.LAYOUTS)
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1) if layout == "NCHW" else x)


def listed_rows(index: BlockIndex, images: int) -> Ints:
    """The rows that count, int32 [B, 3]; raises TypeError, ValueError or IndexError."""
    rows, counts = np.asarray(index.active_block_indices), np.asarray(index.bin_counts)
    arguments.check_index(rows.shape, counts.shape, str(rows.dtype))
    listed = rows[: int(counts[0])]
    if len(listed):
        arguments.check_range(listed.min(axis=0).tolist(), int(listed[:, 0].max()), images)
    return np.ascontiguousarray(listed, np.int32)


def listed_pixels(index: PixelIndex) -> Ints:
    """The positions that count, int32 [P]; raises IndexError for one outside the grid."""
    pixels = np.asarray(index.pixels)[: int(np.asarray(index.count)[0])]
    positions = int(np.prod(index.grid))
    if len(pixels) and not 0 <= int(pixels.min()) <= int(pixels.max()) < positions:
        raise IndexError(
            f"pixels reach from {pixels.min()} to {pixels.max()}: the grid has positions 0 to {positions - 1}"
        )
    return np.ascontiguousarray(pixels, np.int32)


def counted_pixels(pixels: Ints, grid: tuple[int, int, int]) -> PixelIndex:
    """The list with its count."""
    return PixelIndex(pixels, np.array([len(pixels)], np.int32), grid)


def out_grid(shape: Sequence[int], ksize: Pair, strides: Pair, padding: str) -> tuple[int, int, int]:
    """(N, Hout, Wout) of a convolution of an image [N, H, W, ...]; raises ValueError for 2^31 pixels or more."""
    grid = output_grid(shape, ksize, strides, padding)
    arguments.check_positions(grid[0] * grid[1] * grid[2])
    return grid


def _check_array(name: str, array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} is a {type(array).__name__}: expected a NumPy array")


def _counted(rows: Ints) -> BlockIndex:
    return BlockIndex(rows, np.array([len(rows)], np.int32))


# All blocks by one expression.


def _pooled(mask: Array, grid: Pair, at: Window, tol: float, avgpool: bool) -> npt.NDArray[np.bool_]:
    """Which windows are active [N, grid]: along one axis after the other."""
    limit = np.float32(tol)
    values: Array = mask.astype(np.float32).astype(np.float64) if avgpool else mask > limit
    # What is outside reads the row and the column of zeros that are added here.
    pooled: Array = np.pad(values, ((0, 0), (0, 1), (0, 1)))
    for axis in (0, 1):
        pixels, inside = _pixels(np.arange(grid[axis]), at, axis, mask.shape[1 + axis])
        reach = np.where(inside, pixels, mask.shape[1 + axis])
        pooled = pooled.take(reach, 1 + axis)
        pooled = np.asarray(pooled.sum(2 + axis) if avgpool else pooled.any(2 + axis))
    return pooled / (at.size[0] * at.size[1]) > limit if avgpool else pooled


def _gathered(x: Array, rows: Ints, at: Window) -> Array:
    (down, right), inside = _reach(rows, at, x.shape)
    if not inside.any():
        return np.zeros((*inside.shape, x.shape[3]), x.dtype)
    blocks: Array = x[rows[:, 0, None, None], down, right]
    blocks[~inside] = 0
    return blocks


def _scattered(blocks: Array, rows: Ints, y: Array, at: Window, add: bool) -> None:
    (down, right), inside = _reach(rows, at, y.shape)
    images = np.broadcast_to(rows[:, 0, None, None], inside.shape)
    target = images[inside], np.broadcast_to(down, inside.shape)[inside], np.broadcast_to(right, inside.shape)[inside]
    if add:
        np.add.at(y, target, blocks[inside])
    else:
        # Of values for one place NumPy leaves the last.
        y[target] = blocks[inside]


def _reach(rows: Ints, at: Window, shape: Sequence[int]) -> tuple[tuple[Array, Array], Array]:
    """Image rows [B, h, 1] and columns [B, 1, w] of the windows, 0 if outside, and which are inside [B, h, w]."""
    down, is_down = _pixels(rows[:, 1].astype(np.int64), at, 0, shape[1])
    right, is_right = _pixels(rows[:, 2].astype(np.int64), at, 1, shape[2])
    down, right = np.where(is_down, down, 0), np.where(is_right, right, 0)
    return (down[:, :, None], right[:, None, :]), is_down[:, :, None] & is_right[:, None, :]


def _pixels(number: Array, at: Window, axis: int, extent: int) -> tuple[Array, Array]:
    """The positions of the windows of these numbers along an axis [.., size], and which are inside the image."""
    pixels = at.offset[axis] + at.stride[axis] * number[:, None] + np.arange(at.size[axis])
    return pixels, (pixels >= 0) & (pixels < extent)


# One block after the other.


def _pooled_by_slices(mask: Array, grid: Pair, at: Window, tol: float, avgpool: bool) -> npt.NDArray[np.bool_]:
    active = np.zeros((mask.shape[0], *grid), bool)
    area, limit = at.size[0] * at.size[1], np.float32(tol)
    numbers = np.argwhere(np.ones_like(active))
    for number, here, _ in _slices(numbers, at, mask.shape):
        values = mask[here].astype(np.float32)
        mean = values.sum(dtype=np.float64) / area
        active[tuple(numbers[number])] = mean > limit if avgpool else (values > limit).any()
    return active


def _gathered_by_slices(x: Array, rows: Ints, at: Window) -> Array:
    blocks = np.zeros((len(rows), *at.size, x.shape[3]), x.dtype)
    for row, here, there in _slices(rows, at, x.shape):
        blocks[row][there] = x[here]
    return blocks


def _scattered_by_slices(blocks: Array, rows: Ints, y: Array, at: Window, add: bool) -> None:
    for row, here, there in _slices(rows, at, y.shape):
        y[here] = blocks[row][there] + y[here] if add else blocks[row][there]


def _slices(rows: Array, at: Window, shape: Sequence[int]) -> Iterator[tuple[int, tuple[Any, ...], tuple[Any, ...]]]:
    """For each row its number, the part of its window in the image, and the same part of its block."""
    for row, (image, *number) in enumerate(rows.tolist()):
        here, there = [], []
        for axis in (0, 1):
            first = at.offset[axis] + at.stride[axis] * number[axis]
            low = min(max(first, 0), shape[1 + axis])
            high = max(low, min(first + at.size[axis], shape[1 + axis]))
            here.append(slice(low, high))
            there.append(slice(low - first, high - first) if high > low else slice(0, 0))
        yield row, (image, *here), tuple(there)
