"""Masks, blocks and lists of pixels in PyTorch: which blocks are active, blocks out of an image and back into it.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018; the operators of uber-research/sbnet ``sbnet_ops``, in raster order
and with a defined result where blocks overlap. Everything real is differentiable.

On a GPU the compiled kernels return lists with room for everything that could be active, of which only the counted
entries mean something; nothing waits for the count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from eqconv_cli.backends.block_sparse import arguments, torch_fused, torch_neighbours
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
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.torch_arguments import (
    Rows,
    block_rows,
    channels_last,
    check_like,
    check_real,
    dtype_name,
    widened,
)

#: "indexed" computes with index tensors, on every device that PyTorch has.
COMPOSITIONS = ("indexed",)
HALVES = arguments.HALVES


def reduce_mask(
    mask: Tensor,
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
        version: "indexed", "fused" (``eqconv build-kernels``), or "auto".

    Returns:
        Rows int32 [B, 3] and their count, on the mask's device. With the compiled kernels on a GPU, and inside
        ``torch.compile``, there is a row for every block, of which the first ``bin_counts[0]`` count.

    Raises:
        TypeError: a mask of another dtype.
        ValueError: a shape or an option is not allowed; ``tol`` is NaN.
        Unavailable: version is "fused" and the kernels are not built.
    """
    at, grid = arguments.window(bsize, bstride, boffset), pair("bcount", bcount, 1)
    arguments.check_tolerance(tol)
    arguments.check_choice("on_empty", on_empty, arguments.ON_EMPTY)
    plain = _plain_mask(mask)
    how = torch_fused.version_on(version, COMPOSITIONS, plain)
    if isinstance(how, Fused):
        rows, count = torch_fused.mask_blocks(plain, grid, at, tol, avgpool, on_empty == "first", how)
        return BlockIndex(_exact(rows, count), count)
    rows = _pooled(plain, grid, at, tol, avgpool).nonzero().int()
    if on_empty == "first" and not len(rows):
        rows = rows.new_zeros(1, 3)
    return BlockIndex(rows, _number(rows))


def sparse_gather(
    x: Tensor,
    index: BlockIndex,
    *,
    bsize: Sequence[int],
    bstride: Sequence[int],
    boffset: Sequence[int] = (0, 0),
    transpose: bool = False,
    layout: str = "NHWC",
    version: str | Fused = "auto",
) -> Tensor:
    """The windows of the listed blocks as one stack, 0 outside the image.

    Args:
        x: [N, H, W, C] float32 or float64, or [N, C, H, W] with ``layout="NCHW"``; on a GPU also float16 and bfloat16.
        index: rows in any order, also repeated.
        bsize, bstride, boffset: as for :func:`reduce_mask`.
        transpose: return blocks with the channels first.
        layout: of ``x``.
        version: as for :func:`reduce_mask`.

    Returns:
        [B, h, w, C], or with ``transpose`` [B, C, h, w]. The gradient of ``x`` adds up where windows overlap.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: a row in host memory names an image that there is not, or a negative number.
        Unavailable: version is "fused" and the kernels are not built.
    """
    at = arguments.window(bsize, bstride, boffset)
    image = channels_last("x", x, layout)
    half = x.device.type == "cuda" and version in ("auto", "indexed")
    check_real("x", x, HALVES if half else ())
    blocks = block_rows(index, image.shape[0], image.device)
    wide = dtype_name(x) in arguments.FLOATS
    how = torch_fused.version_on(version if wide else "indexed", COMPOSITIONS, image)
    if isinstance(how, Fused):
        return torch_fused.block_gather(image, blocks.rows, blocks.number, at, transpose, how)
    stack = gathered(image, blocks, at)
    return stack.permute(0, 3, 1, 2).contiguous() if transpose else stack


def sparse_scatter(
    blocks: Tensor,
    index: BlockIndex,
    ybase: Tensor,
    *,
    bsize: Sequence[int],
    bstride: Sequence[int],
    boffset: Sequence[int] = (0, 0),
    add: bool,
    atomic: bool = False,
    transpose: bool = False,
    version: str | Fused = "auto",
) -> Tensor:
    """A copy of ``ybase`` with the blocks written to their windows, or added there.

    Where windows overlap or rows repeat, the later row wins, and it alone has the gradient there; with ``add`` they add
    up in the order of the rows.

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
    blocks, ybase = widened(blocks, ybase)
    at, rows = _scatter_arguments(blocks, index, ybase, bsize, bstride, boffset, add, atomic, transpose)
    how = torch_fused.version_on(version, COMPOSITIONS, ybase)
    if isinstance(how, Fused):
        return torch_fused.block_scatter(blocks, rows.rows, rows.number, ybase, at, transpose, add, how)
    return scattered(blocks.permute(0, 2, 3, 1) if transpose else blocks, rows, ybase, at, add)


def sparse_scatter_var(
    blocks: Tensor,
    index: BlockIndex,
    var: Tensor,
    *,
    bsize: Sequence[int],
    bstride: Sequence[int],
    boffset: Sequence[int] = (0, 0),
    add: bool,
    atomic: bool = False,
    transpose: bool = False,
    version: str | Fused = "auto",
) -> Tensor:
    """As :func:`sparse_scatter`, written into ``var`` itself, which is returned: an in-place operation for autograd.

    Raises:
        RuntimeError: ``var`` is a leaf that needs a gradient, as for every in-place operation.
    """
    at, rows = _scatter_arguments(blocks, index, var, bsize, bstride, boffset, add, atomic, transpose)
    how = torch_fused.version_on(version, COMPOSITIONS, var)
    if isinstance(how, Fused) and var.is_contiguous() and not torch.compiler.is_compiling():
        return torch_fused.block_scatter_(var, blocks, rows.rows, rows.number, at, transpose, add, how)
    geometry: dict[str, Any] = {"bsize": at.size, "bstride": at.stride, "boffset": at.offset}
    flags: dict[str, Any] = {"add": add, "atomic": atomic, "transpose": transpose}
    return var.copy_(sparse_scatter(blocks, index, var, **geometry, **flags, version=version))


def resize_mask(mask: Tensor, height: int, width: int, how: str = "max") -> Tensor:
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
    plain = _plain_mask(mask)
    if 0 in plain.shape[1:]:
        raise ValueError(f"mask has shape {arguments.text(mask.shape)}: an image without pixels cannot be resized")
    real = plain.float() if plain.dtype == torch.bool else plain
    made = functional.adaptive_max_pool2d(real, (height, width)) if len(plain) else real.new_zeros(0, height, width)
    return made.to(mask.dtype).reshape(*made.shape, *mask.shape[3:])


def pixel_index(
    mask: Tensor,
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
        version: as for :func:`reduce_mask`; so is the length of the list.

    Raises:
        TypeError, ValueError, Unavailable: as for :func:`reduce_mask`; also an output of 2^31 pixels or more.
    """
    arguments.check_tolerance(tol)
    check_padding(padding)
    plain = _plain_mask(mask)
    size, step = kernel_pair(ksize), strides_pair("strides", strides)
    grid, front = out_grid(plain.shape, size, step, padding)
    at = Window(size, step, (-front[0], -front[1]))
    how = torch_fused.version_on(version, COMPOSITIONS, plain)
    if isinstance(how, Fused):
        pixels, count = torch_fused.mask_pixels(plain, grid[1:], at, tol, how)
        return PixelIndex(_exact(pixels, count), count, grid)
    pixels = _pooled(plain, grid[1:], at, tol, False).flatten().nonzero().squeeze(1).int()
    return PixelIndex(pixels, _number(pixels), grid)


def block_pixels(index: BlockIndex, params: BlockParams, images: int, version: str | Fused = "auto") -> PixelIndex:
    """The output pixels in the tiles of the active blocks.

    Args:
        index: rows in any order, also repeated.
        params: geometry of the convolution.
        images: N.
        version: as for :func:`reduce_mask`; so is the length of the list.

    Raises:
        ValueError, IndexError, Unavailable: as for :func:`sparse_gather`.
    """
    grid = (images, *params.out_size)
    arguments.check_positions(images * params.out_size[0] * params.out_size[1])
    device = torch.as_tensor(index.active_block_indices).device
    rows = block_rows(index, images, device)
    at = Window(params.bsize_out, params.bsize_out, (0, 0))
    how = torch_fused.version_on(version, COMPOSITIONS, rows.rows)
    if isinstance(how, Fused):
        pixels, count = torch_fused.block_pixels(rows.rows, rows.number, grid, at, how)
        return PixelIndex(_exact(pixels, count), count, grid)
    flat, inside = torch_neighbours.of_blocks(rows, at, params.out_size)
    covered = torch.zeros(images * params.out_size[0] * params.out_size[1], dtype=torch.bool, device=device)
    covered[flat[inside]] = True
    pixels = covered.nonzero().squeeze(1).int()
    return PixelIndex(pixels, _number(pixels), grid)


def out_grid(shape: Sequence[int], ksize: Pair, strides: Pair, padding: str) -> tuple[tuple[int, int, int], Pair]:
    """(N, Hout, Wout) of a convolution of an image [N, H, W, ...], and its padding in front.

    Raises:
        ValueError: the output has 2^31 pixels or more.
    """
    grid = output_grid(shape, ksize, strides, padding)
    top, left = (paddings(n, k, s, padding)[0] for n, k, s in zip(shape[1:3], ksize, strides, strict=True))
    arguments.check_positions(grid[0] * grid[1] * grid[2])
    return grid, (top, left)


# Compositions on checked arguments.


def gathered(image: Tensor, blocks: Rows, at: Window) -> Tensor:
    """[B, h, w, C] of an image [N, H, W, C]."""
    flat, inside = torch_neighbours.of_blocks(blocks, at, (image.shape[1], image.shape[2]))
    return rows_at(image.reshape(-1, image.shape[3]), flat, inside)


def rows_at(rows: Tensor, numbers: Tensor, present: Tensor) -> Tensor:
    """``rows[numbers]``, 0 where there is none: [*numbers, C]."""
    if not len(rows):
        return rows.new_zeros(*numbers.shape, rows.shape[1])
    found = rows.index_select(0, numbers.flatten()).view(*numbers.shape, rows.shape[1])
    if numbers.device.type == "cpu" and not torch.compiler.is_compiling() and bool(present.all()):
        return found
    return torch.where(present[..., None], found, 0)


def scattered(blocks: Tensor, rows: Rows, base: Tensor, at: Window, add: bool) -> Tensor:
    """``base`` [N, H, W, C] with blocks [B, h, w, C]."""
    flat, inside = torch_neighbours.of_blocks(rows, at, (base.shape[1], base.shape[2]))
    numbers = flat[inside]
    values = blocks[inside]
    plain = base.reshape(-1, base.shape[3])
    disjoint = not at.overlaps and _ascending(rows)
    if add:
        # Without repeats nothing needs the ordered, and so serial, sum.
        if disjoint:
            made = plain.index_copy(0, numbers, plain.index_select(0, numbers) + values)
        else:
            made = plain.index_put((numbers,), values, accumulate=True)
    else:
        if not disjoint:
            row = torch.arange(len(flat), device=flat.device)[:, None, None].expand(flat.shape)[inside]
            owner = row.new_full((len(plain),), -1).scatter_reduce(0, numbers, row, "amax")
            mine = owner[numbers] == row
            numbers, values = numbers[mine], values[mine]
        made = plain.index_copy(0, numbers, values)
    return made.view(base.shape)


def _ascending(rows: Rows) -> bool:
    """Whether each row comes behind the one before, so that none repeats."""
    image, row, column = rows.rows.long().unbind(1)
    if not len(image):
        return True
    key = (image * (row.amax() + 1) + row) * (column.amax() + 1) + column
    return rows.whole and bool((key[1:] > key[:-1]).all())


def _pooled(mask: Tensor, grid: Sequence[int], at: Window, tol: float, average: bool) -> Tensor:
    """Which windows are active [N, grid]: one axis after the other, so an axis's windows read a pixel once."""
    limit = torch.tensor(tol, dtype=torch.float32)
    pooled = mask.float().double() if average else mask.float() > limit.to(mask.device)
    # What is outside reads the row and the column of zeros that are added here.
    pooled = functional.pad(pooled, (0, 1, 0, 1))
    for axis in (0, 1):
        extent = mask.shape[1 + axis]
        first = torch.arange(grid[axis], device=mask.device) * at.stride[axis] + at.offset[axis]
        reach = first[:, None] + torch.arange(at.size[axis], device=mask.device)
        reach = torch.where((reach >= 0) & (reach < extent), reach, extent)
        windows = pooled.index_select(1 + axis, reach.flatten()).unflatten(1 + axis, reach.shape)
        pooled = windows.sum(2 + axis) if average else windows.any(2 + axis)
    return pooled / (at.size[0] * at.size[1]) > float(limit) if average else pooled


# Arguments.


def _plain_mask(mask: Tensor) -> Tensor:
    """[N, H, W]; raises TypeError or ValueError for what is no mask."""
    check_real("mask", mask, ("bool",))
    arguments.check_mask(mask.shape)
    return mask.detach().reshape(mask.shape[:3])


def _scatter_arguments(
    blocks: Tensor,
    index: BlockIndex,
    ybase: Tensor,
    bsize: Sequence[int],
    bstride: Sequence[int],
    boffset: Sequence[int],
    add: bool,
    atomic: bool,
    transpose: bool,
) -> tuple[Window, Rows]:
    at = arguments.window(bsize, bstride, boffset)
    arguments.check_scatter(at, add, atomic)
    check_real("ybase", ybase)
    arguments.check_image("ybase", ybase.shape)
    check_like("blocks", blocks, "ybase", ybase)
    rows = block_rows(index, ybase.shape[0], ybase.device)
    arguments.check_blocks(blocks.shape, rows.rows.shape, at.size, ybase.shape[3], transpose)
    return at, rows


def _exact(entries: Tensor, count: Tensor) -> Tensor:
    """The entries that count, where the count can be read without waiting."""
    if entries.device.type == "cpu" and not torch.compiler.is_compiling():
        return entries[: int(count)]
    return entries


def _number(entries: Tensor) -> Tensor:
    return torch.tensor([len(entries)], dtype=torch.int32, device=entries.device)
