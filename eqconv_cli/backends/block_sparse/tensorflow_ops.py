"""Masks, blocks and lists of pixels in TensorFlow: which blocks are active, blocks out of an image and back into it.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018; the operators of uber-research/sbnet ``sbnet_ops``, in raster order
and with a defined result where blocks overlap. Everything works eagerly and in ``tf.function``, where every extent may
be unknown; sizes, strides, offsets and counts may be tensors. Gradients by the tape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from eqconv_cli.backends.block_sparse import arguments, tensorflow_fused
from eqconv_cli.backends.block_sparse.arguments import Window
from eqconv_cli.backends.block_sparse.geometry import BlockParams, pair
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.options import Fused, kernels_or
from eqconv_cli.backends.block_sparse.tensorflow_inputs import (
    Listed,
    block_rows,
    check_scatter,
    frame,
    image,
    plain_mask,
    real,
    static,
    variable,
    window,
)
from eqconv_cli.backends.block_sparse.tensorflow_inputs import pair as extents
from eqconv_cli.backends.block_sparse.tensorflow_neighbours import (
    of_blocks,
    owners,
    reach,
    replaced,
    rows_of,
    take_or_zero,
)
from eqconv_cli.frameworks.tensorflow_tensors import Extent, extent, is_symbolic
from eqconv_cli.kernels.tensorflow_doors import missing_operators

#: "indexed" moves all blocks by gathering and scattering rows of pixels.
COMPOSITIONS = ("indexed",)


def how_of(version: Any, like: Any, compositions: Sequence[str] = COMPOSITIONS) -> Fused | str:
    """What a version stands for with tensors like this one, see :func:`kernels_or`."""
    return kernels_or(version, compositions, lambda settings: missing_operators(settings, like.device))


def reduce_mask(
    mask: Any,
    bcount: Any,
    *,
    bsize: Any,
    bstride: Any,
    boffset: Any = (0, 0),
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
        Rows int32 [B, 3] and their count. The kernels on a GPU leave room for every block behind those that count.

    Raises:
        TypeError: a mask of another dtype.
        ValueError: a shape or an option is not allowed; ``tol`` is NaN.
        Unavailable: version is "fused" and the kernels are not built.
    """
    at, grid = window(bsize, bstride, boffset), extents("bcount", bcount, 1)
    arguments.check_tolerance(tol)
    arguments.check_choice("on_empty", on_empty, arguments.ON_EMPTY)
    plain = plain_mask(mask)
    how = how_of(version, plain)
    first = on_empty == "first"
    if isinstance(how, Fused):
        return BlockIndex(*tensorflow_fused.mask_blocks(plain, grid, at, tol, avgpool, first, how))
    rows = tf.cast(tf.where(_pooled(plain, grid, at, tol, avgpool)), tf.int32)
    if first:
        rows = tf.cond(tf.shape(rows)[0] > 0, lambda: rows, lambda: tf.zeros([1, 3], tf.int32))
    return BlockIndex(rows, tf.shape(rows)[:1])


def sparse_gather(
    x: Any,
    index: BlockIndex,
    *,
    bsize: Any,
    bstride: Any,
    boffset: Any = (0, 0),
    transpose: bool = False,
    layout: str = "NHWC",
    version: str | Fused = "auto",
) -> tf.Tensor:
    """The windows of the listed blocks as one stack, 0 outside the image and in rows that do not count.

    Args:
        x: [N, H, W, C] float32 or float64, or [N, C, H, W] with ``layout="NCHW"``.
        index: rows in any order, also repeated.
        bsize, bstride, boffset: as for :func:`reduce_mask`.
        transpose: return blocks with the channels first.
        layout: of ``x``.
        version: as for :func:`reduce_mask`.

    Returns:
        [B, h, w, C], or with ``transpose`` [B, C, h, w]. Its gradient adds up where windows overlap.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: a row names an image that there is not, or a negative number
            (``tf.errors.InvalidArgumentError`` where only the run of a traced function shows it).
        Unavailable: version is "fused" and the kernels are not built.
    """
    at, plain = window(bsize, bstride, boffset), image("x", x, layout)
    blocks = block_rows(index, extent(plain, 0))
    how = how_of(version, plain)
    if isinstance(how, Fused):
        return tensorflow_fused.block_gather(plain, blocks, at, transpose, how)
    flat, inside = of_blocks(checked(blocks, plain), at, (extent(plain, 1), extent(plain, 2)))
    made = take_or_zero(rows_of(plain), flat, inside)
    return tf.transpose(made, [0, 3, 1, 2]) if transpose else made


def sparse_scatter(
    blocks: Any,
    index: BlockIndex,
    ybase: Any,
    *,
    bsize: Any,
    bstride: Any,
    boffset: Any = (0, 0),
    add: bool,
    atomic: bool = False,
    transpose: bool = False,
    version: str | Fused = "auto",
) -> tf.Tensor:
    """``ybase`` with the blocks written to their windows, or added there.

    Where windows overlap or rows repeat, the later row wins, and its block alone has a gradient there; with ``add``
    they add up in the order of the rows.

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
    at, base = window(bsize, bstride, boffset), image("ybase", ybase)
    check_scatter(at, add, atomic)
    stack, rows = _scattered(blocks, index, base, "ybase", at, transpose)
    how = how_of(version, base)
    if isinstance(how, Fused):
        return tensorflow_fused.block_scatter(stack, rows, base, at, transpose, add, how)
    if transpose:
        stack = tf.transpose(stack, [0, 2, 3, 1])
    flat, inside = of_blocks(checked(rows, base), at, (extent(base, 1), extent(base, 2)))
    if add:
        summed = tf.tensor_scatter_nd_add(
            rows_of(base), tf.boolean_mask(flat, inside)[:, None], tf.boolean_mask(stack, inside)
        )
        return tf.ensure_shape(tf.reshape(summed, tf.shape(base)), base.shape)
    owner = owners(flat, inside, tf.size(base[..., 0], tf.int64))
    pixels = tf.where(owner >= 0)[:, 0]
    return replaced(base, pixels, tf.gather(rows_of(stack), tf.gather(owner, pixels)))


def sparse_scatter_var(
    blocks: Any,
    index: BlockIndex,
    var: Any,
    *,
    bsize: Any,
    bstride: Any,
    boffset: Any = (0, 0),
    add: bool,
    atomic: bool = False,
    transpose: bool = False,
    version: str | Fused = "auto",
) -> Any:
    """As :func:`sparse_scatter`, written into the variable ``var`` [N, H, W, C], which is returned.

    The compiled kernel touches nothing but the windows. Where somebody else holds the variable's memory (a tensor that
    was read from it, the array that it was made of), the variable takes new memory and the other keeps its values.
    There is no gradient: ``sbnet_module().sparse_scatter_var`` has one.

    Args:
        blocks, index: as for :func:`sparse_scatter`.
        var: a ``tf.Variable`` or Keras variable.
        bsize, bstride, boffset, add, atomic, transpose: as for :func:`sparse_scatter`.
        version: "indexed" assigns the whole image; "fused" writes into the variable's memory; "auto".

    Raises:
        TypeError: ``var`` is not a variable; a dtype is not allowed.
        ValueError, IndexError, Unavailable: as for :func:`sparse_scatter`.
    """
    at, plain = window(bsize, bstride, boffset), variable("var", var)
    check_scatter(at, add, atomic)
    stack, rows = _scattered(blocks, index, plain, "var", at, transpose)
    how = how_of(version, plain)
    if isinstance(how, Fused):
        tensorflow_fused.block_scatter_var(stack, rows, plain, at, transpose, add, how)
    else:
        flags: dict[str, Any] = {"add": add, "atomic": atomic, "transpose": transpose, "version": how}
        plain.assign(sparse_scatter(stack, index, plain, bsize=bsize, bstride=bstride, boffset=boffset, **flags))
    return var


def _scattered(
    blocks: Any, index: BlockIndex, base: Any, name: str, at: Window, transpose: bool
) -> tuple[tf.Tensor, Listed]:
    """The stack and its rows, checked; ``base`` is the image that it goes to, or a variable."""
    stack = real("blocks", blocks, base, name)
    rows = block_rows(index, extent(base, 0))
    known: Any = tuple(None if is_symbolic(length) else length for length in at.size)
    shapes = static("blocks", stack), static("active_block_indices", rows.entries)
    arguments.check_blocks(*shapes, known, base.shape[3], transpose)
    return stack, rows


def resize_mask(mask: Any, height: int, width: int, how: str = "max") -> tf.Tensor:
    """A mask of another size: each pixel takes the largest value of the area that it stands for.

    Args:
        mask: [N, H, W] or [N, H, W, 1], float32, float64 or bool, of known height and width.
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
    tensor = tf.convert_to_tensor(mask)
    made = plain_mask(tensor)
    if None in made.shape[1:] or 0 in made.shape[1:]:
        raise ValueError(
            f"mask has shape {arguments.text(static('mask', tensor))}: a known height and width of at least 1 is needed"
        )
    largest = tf.reduce_any if made.dtype == tf.bool else tf.reduce_max
    for axis, length in ((1, height), (2, width)):
        n = made.shape[axis]
        areas = [tf.range(i * n // length, -(-(i + 1) * n // length)) for i in range(length)]
        made = tf.stack([largest(tf.gather(made, area, axis=axis), axis) for area in areas], axis)
    return made[..., None] if tensor.shape.rank == 4 else made


def pixel_index(
    mask: Any,
    *,
    tol: float,
    ksize: Sequence[Any] = (1, 1),
    strides: Sequence[Any] = (1, 1),
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
        version: as for :func:`reduce_mask`.

    Raises:
        TypeError, ValueError, Unavailable: as for :func:`reduce_mask`; also an output of 2^31 pixels or more.
    """
    arguments.check_tolerance(tol)
    plain = plain_mask(mask)
    at = frame(plain, ksize, strides, padding)
    if not is_symbolic(*at.grid):
        arguments.check_positions(at.grid[0] * at.grid[1] * at.grid[2])
    windows = Window(at.ksize, at.strides, (-at.front[0], -at.front[1]))
    how = how_of(version, plain)
    if isinstance(how, Fused):
        return PixelIndex(*tensorflow_fused.mask_pixels(plain, at.grid[1:], windows, tol, how), at.grid)
    active = _pooled(plain, at.grid[1:], windows, tol, False)
    pixels = tf.cast(tf.where(tf.reshape(active, [-1]))[:, 0], tf.int32)
    return PixelIndex(pixels, tf.shape(pixels), at.grid)


def block_pixels(index: BlockIndex, params: BlockParams, images: Extent, version: str | Fused = "auto") -> PixelIndex:
    """The output pixels in the tiles of the active blocks.

    Args:
        index: rows in any order, also repeated.
        params: geometry of the convolution.
        images: N.
        version: as for :func:`reduce_mask`.

    Raises:
        ValueError, IndexError, Unavailable: as for :func:`sparse_gather`.
    """
    grid = (images, *params.out_size)
    if not is_symbolic(*grid):
        arguments.check_positions(grid[0] * grid[1] * grid[2])
    rows = block_rows(index, images)
    at = tiles(params)
    how = how_of(version, rows.entries)
    if isinstance(how, Fused):
        return PixelIndex(*tensorflow_fused.block_pixels(rows, grid, at, how), grid)
    flat, inside = of_blocks(rows, at, params.out_size)
    pixels = tf.cast(tf.sort(tf.unique(tf.boolean_mask(flat, inside))[0]), tf.int32)
    return PixelIndex(pixels, tf.shape(pixels), grid)


def tiles(params: BlockParams) -> Window:
    """Where the blocks lie over the output."""
    return Window(params.bsize_out, params.bsize_out, (0, 0))


def checked(blocks: Listed, like: tf.Tensor) -> Listed:
    """The list, with what a traced function cannot know yet checked as it runs: that the rows are in range."""
    if not is_symbolic(blocks.entries, blocks.count, like):
        return blocks
    rows = blocks.entries[: blocks.count[0]]
    sound = [
        tf.debugging.assert_non_negative(rows, "active_block_indices has a number below 0"),
        tf.debugging.assert_less(
            rows[:, 0], tf.shape(like)[0], "active_block_indices names an image that there is not"
        ),
    ]
    with tf.control_dependencies(sound):
        return blocks._replace(entries=tf.identity(blocks.entries))


def _pooled(mask: tf.Tensor, grid: Sequence[Extent], at: Window, tol: float, avgpool: bool) -> tf.Tensor:
    """Which windows are active [N, grid]: along one axis after the other."""
    limit = tf.constant(tol, tf.float32)
    values = tf.cast(mask, tf.float32)
    values = tf.cast(values, tf.float64) if avgpool else values > limit
    # What is outside reads the row and the column of zeros that are added here.
    values = tf.pad(values, [[0, 0], [0, 1], [0, 1]])
    for axis in (0, 1):
        length = tf.cast(extent(mask, 1 + axis), tf.int64)
        first, step = (tf.cast(numbers[axis], tf.int64) for numbers in (at.offset, at.stride))
        starts = first + step * tf.range(tf.cast(grid[axis], tf.int64))
        positions, inside = reach(starts, at.size[axis], length)
        values = tf.gather(values, tf.where(inside, positions, length), axis=1 + axis)
        values = tf.reduce_sum(values, 2 + axis) if avgpool else tf.reduce_any(values, 2 + axis)
    if not avgpool:
        return values
    area = tf.cast(at.size[0] * at.size[1], tf.float64)
    return values / area > tf.cast(limit, tf.float64)
