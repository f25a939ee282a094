"""Convolutions of an image at some of its output pixels in TensorFlow, whole blocks of them or a list.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018, section 3; uber-research/sbnet ``benchmark/sparse_conv_lib.py``.
Everything works eagerly and in ``tf.function``; gradients by the tape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from eqconv_cli.backends.block_sparse import arguments, cost_model, tensorflow_fused
from eqconv_cli.backends.block_sparse.geometry import BlockParams, block_params_chain, kernel_pair, pair, strides_pair
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.tensorflow_inputs import (
    Frame,
    Listed,
    block_params,
    counting,
    frame,
    image,
    pixel_rows,
    plain_mask,
    real,
    static,
    variable,
)
from eqconv_cli.backends.block_sparse.tensorflow_neighbours import of_pixels, replaced, rows_of, split, take_or_zero
from eqconv_cli.backends.block_sparse.tensorflow_ops import (
    block_pixels,
    how_of,
    reduce_mask,
    sparse_gather,
    sparse_scatter,
    sparse_scatter_var,
)
from eqconv_cli.frameworks.tensorflow_tensors import extent, is_symbolic

_TILE = cost_model.TILE


def sparse_conv2d(
    x: Any,
    w: Any,
    index: BlockIndex,
    params: BlockParams,
    *,
    base: Any = "zeros",
    strides: Sequence[Any] = (1, 1),
    bias: Any = None,
    activation: str | None = None,
    out: tf.Variable | None = None,
    version: str | Fused = "auto",
) -> Any:
    """The convolution in the tiles of the active blocks.

    Args:
        x: [N, H, W, C] float32 or float64.
        w: [kh, kw, C, K].
        index: the active blocks.
        params: their geometry, from ``block_params`` for this convolution.
        base: what the other output pixels are: "zeros", "input" (x itself: same size and K = C), or [N, Hout, Wout, K].
        strides: two numbers or TensorFlow's four, as given to ``block_params``.
        bias: [K] or None.
        activation: None or "relu".
        out: a variable [N, Hout, Wout, K] that is changed in the tiles alone and returned, instead of a base; the
            compiled kernel writes into its memory. It has no gradient.
        version: "blocks" gathers, convolves and scatters; "fused" is the compiled kernel at the tiles' pixels; "auto".

    Returns:
        [N, Hout, Wout, K], or ``out``.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: the index names an image that there is not, or a negative number.
        Unavailable: version is "fused" and the kernels are not built.
    """
    image_x, kernel, step, add_bias = _operands(x, w, strides, bias, activation)
    how = how_of(version, image_x, ("blocks",))
    if isinstance(how, Fused):
        pixels = block_pixels(index, params, extent(image_x, 0), how)
        grid = (extent(image_x, 0), *params.out_size)
        at = Frame(grid, (extent(image_x, 1), extent(image_x, 2)), kernel_pair(kernel.shape), step, _negative(params))
        listed = pixel_rows(pixels, grid)
        return _fused(image_x, kernel, bias, listed, at, base, out, activation == "relu", how)
    stack = sparse_gather(
        image_x, index, bsize=params.bsize, bstride=params.bstrides, boffset=params.boffset, version="indexed"
    )
    made = add_bias(convolved(stack, kernel, step))
    grid = (extent(image_x, 0), *params.out_size)
    tile: dict[str, Any] = {"bsize": params.bsize_out, "bstride": params.bsize_out, "version": "indexed", "add": False}
    if out is not None:
        check_out(out, base, (*grid, extent(kernel, 3)), image_x)
        return sparse_scatter_var(made, index, out, **tile)
    return sparse_scatter(made, index, _start(image_x, kernel, grid, step, base), **tile)


def sparse_conv2d_matmul(
    x: Any,
    w: Any,
    mask: Any,
    *,
    tol: float,
    strides: Sequence[Any] = (1, 1),
    padding: str = "SAME",
    base: Any = "zeros",
    bias: Any = None,
    activation: str | None = None,
) -> tf.Tensor:
    """The convolution at the pixels whose window the mask touches, by blocks of the size of the kernel.

    Each block gives one output pixel: the stack as a matrix [B, kh * kw * C] times the kernel.

    Args:
        x, w, base, strides, bias, activation: as for :func:`sparse_conv2d`.
        mask: [N, H, W] or [N, H, W, 1].
        tol: as for ``reduce_mask``.
        padding: "SAME" or "VALID".

    Raises:
        TypeError, ValueError: as for :func:`sparse_conv2d`.
    """
    image_x, kernel, step, add_bias = _operands(x, w, strides, bias, activation)
    at = frame(image_x, kernel.shape, step, padding)
    windows: dict[str, Any] = {"bsize": at.ksize, "bstride": at.strides, "boffset": (-at.front[0], -at.front[1])}
    index = reduce_mask(plain_mask(mask, image_x), at.grid[1:], **windows, tol=tol, version="indexed")
    stack = sparse_gather(image_x, index, **windows, version="indexed")
    matrix = tf.reshape(kernel, [-1, extent(kernel, 3)])
    rows = add_bias(tf.reshape(stack, [-1, extent(matrix, 0)]) @ matrix)
    start = _start(image_x, kernel, at.grid, step, base)
    one: dict[str, Any] = {"bsize": (1, 1), "bstride": (1, 1)}
    return sparse_scatter(rows[:, None, None, :], index, start, **one, add=False, version="indexed")


def mask_conv2d(x: Any, w: Any, mask: Any, *, strides: Sequence[Any] = (1, 1), padding: str = "SAME") -> tf.Tensor:
    """The dense convolution times the mask, which is widened by max pooling with the convolution's window.

    Args:
        x, w, strides: as for :func:`sparse_conv2d`.
        mask: [N, H, W] or [N, H, W, 1], of the size of x.
        padding: "SAME" or "VALID".

    Raises:
        TypeError, ValueError: as for :func:`sparse_conv2d`.
    """
    image_x, kernel, step, _ = _operands(x, w, strides, None, None)
    at = frame(image_x, kernel.shape, step, padding)
    plain = tf.cast(plain_mask(mask, image_x), image_x.dtype)[..., None]
    wide = tf.nn.max_pool2d(plain, list(at.ksize), list(step), padding)
    return tf.nn.conv2d(image_x, kernel, list(step), padding) * wide


def convert_mask_to_indices(
    mask: Any,
    bsize: Sequence[int],
    ksize: Sequence[int],
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    tol: float = 0.0,
) -> tf.Tensor:
    """The active blocks of a convolution by pooling the padded mask: SBNet's route without operators of its own.

    Args:
        mask: [N, H, W] or [N, H, W, 1].
        bsize: size of a block.
        ksize: (kh, kw) or the kernel's shape.
        strides: of the convolution, two numbers or four.
        padding: "SAME" or "VALID".
        tol: a value equal to it is inactive.

    Returns:
        int32 [B, 3], (image, block row, block column), in raster order; as ``reduce_mask`` with the same geometry.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
    """
    arguments.check_tolerance(tol)
    plain = tf.cast(plain_mask(mask), tf.float32)[..., None]
    params = block_params(plain, bsize, [ksize], strides, padding)
    # Lower than any value that counts: what is outside is never above the tolerance.
    padded = _padded(plain, params, -float("inf"))
    pooled = tf.nn.max_pool2d(padded, list(params.bsize), list(params.bstrides), "VALID")
    return tf.cast(tf.where(pooled[..., 0] > tol), tf.int32)


def upsample_indices(indices: Any, bsize: Sequence[int], bstride: Sequence[int]) -> tf.Tensor:
    """All pixels of the blocks that :func:`convert_mask_to_indices` names.

    Args:
        indices: int32 [B, 3], (image, block row, block column).
        bsize, bstride: of the windows; the padded image starts at the first window.

    Returns:
        int32 [B, h, w, 3], (image, row, column) in the padded image.

    Raises:
        ValueError: a shape or a number is not allowed.
    """
    rows = tf.cast(tf.convert_to_tensor(indices), tf.int32)
    arguments.check_index(static("indices", rows), (1,), rows.dtype.name)
    size, step = pair("bsize", bsize, 1), pair("bstride", bstride, 1)
    centre = rows * [1, *step] + [0, (size[0] - 1) // 2, (size[1] - 1) // 2]
    down, right = (tf.range(n) - (n - 1) // 2 for n in size)
    nothing = tf.zeros(size, tf.int32)
    offsets = tf.stack([nothing, nothing + down[:, None], nothing + right[None, :]], axis=-1)
    return centre[:, None, None, :] + offsets


def masked_conv2d(
    x: Any,
    w: Any,
    pixels: PixelIndex,
    *,
    strides: Sequence[Any] = (1, 1),
    padding: str = "SAME",
    base: Any = "zeros",
    bias: Any = None,
    activation: str | None = None,
    out: tf.Variable | None = None,
    version: str | Fused = "auto",
) -> Any:
    """The convolution at exactly the listed output pixels.

    Args:
        x, w, strides, base, bias, activation, out: as for :func:`sparse_conv2d`.
        pixels: the output pixels, from ``pixel_index`` or ``block_pixels``.
        padding: "SAME" or "VALID".
        version: "dense" convolves everywhere; "matmul" multiplies the listed windows, as rows of a matrix, by the
            kernel; "blocks" convolves the blocks that hold a listed pixel, "upsample" does so by lists of their pixels;
            "rulebook" gathers, multiplies and adds up tap by tap; "fused" is the compiled kernel; "auto" takes that
            where it is built, else what :func:`cost_model.choose` finds cheapest, or "matmul" where the pixels are
            known only when a traced function runs.

    Returns:
        [N, Hout, Wout, K], or ``out``.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: a position is out of range.
        Unavailable: version is "fused" and the kernels are not built.
    """
    image_x, kernel, step, add_bias = _operands(x, w, strides, bias, activation)
    at = frame(image_x, kernel.shape, step, padding)
    listed = pixel_rows(pixels, at.grid)
    how = how_of(version, image_x, ("matmul", "dense", "blocks", "upsample", "rulebook"))
    if isinstance(how, Fused):
        return _fused(image_x, kernel, bias, listed, at, base, out, activation == "relu", how)
    positions = counting(listed)
    if version == "auto" and not is_symbolic(positions, *at.grid):
        how = cost_model.choose(_sizes(kernel, positions, at), "tensorflow", fused=False).version
    if how == "dense":
        rows = add_bias(tf.gather(rows_of(tf.nn.conv2d(image_x, kernel, list(step), padding)), positions))
    else:
        rows = add_bias(_ROUTES[how](image_x, kernel, positions, at))
    if out is not None:
        check_out(out, base, (*at.grid, extent(kernel, 3)), image_x)
        out.scatter_nd_update(tf.stack(split(positions, at.grid[1:]), axis=1), rows)
        return out
    return replaced(_start(image_x, kernel, at.grid, step, base), positions, rows)


def check_out(out: Any, base: Any, shape: Sequence[Any], like: tf.Tensor) -> None:
    """Raises TypeError or ValueError unless ``out`` is a variable of this shape, given without a base."""
    if not hasattr(out, "assign"):
        raise TypeError(f"out is a {type(out).__name__}: a tf.Variable is needed, it is written in place")
    if not (isinstance(base, str) and base == "zeros"):
        raise ValueError("base and out are both given: out keeps what it has at the other pixels")
    arguments.check_same_dtype("out", tf.as_dtype(out.dtype).name, "x", like.dtype.name)
    known = [None if is_symbolic(length) else length for length in shape]
    if len(out.shape) != 4 or any(arguments.differ(a, b) for a, b in zip(out.shape, known, strict=True)):
        raise ValueError(f"out has shape {arguments.text(list(out.shape))}: expected {arguments.text(known)}")


# What they share.

AddBias = Callable[[tf.Tensor], tf.Tensor]


def _operands(
    x: Any, w: Any, strides: Sequence[Any], bias: Any, activation: str | None
) -> tuple[tf.Tensor, tf.Tensor, tuple[int, int], AddBias]:
    """Image, kernel and strides, checked, and what follows the products."""
    arguments.check_choice("activation", activation, arguments.ACTIVATIONS)
    image_x = image("x", x)
    kernel = real("w", w, image_x)
    arguments.check_kernel(static("w", kernel), image_x.shape[3])
    if bias is not None:
        bias = real("bias", bias, image_x)
        arguments.check_vector("bias", static("bias", bias), kernel.shape[3])

    def add_bias(y: tf.Tensor) -> tf.Tensor:
        y = y if bias is None else y + bias
        return y if activation is None else tf.nn.relu(y)

    return image_x, kernel, strides_pair("strides", strides), add_bias


def _start(x: tf.Tensor, kernel: tf.Tensor, grid: Sequence[Any], strides: Sequence[int], base: Any) -> tf.Tensor:
    """The output before the convolution is written into it; raises TypeError or ValueError."""
    shape = (*grid, extent(kernel, 3))
    known = [None if is_symbolic(length) else length for length in shape]
    if isinstance(base, str):
        arguments.check_choice("base", base, ("zeros", "input"))
        if base == "zeros":
            return tf.zeros(shape, x.dtype)
        differs = any(arguments.differ(a, b) for a, b in zip(known, static("x", x), strict=True))
        if differs or tuple(strides) != (1, 1):
            raise ValueError(
                f"base='input' needs an output like x, strides (1, 1), padding 'SAME' and K = C: the output is "
                f"{arguments.text(known)}, x is {arguments.text(static('x', x))}, strides are {tuple(strides)}"
            )
        return x
    tensor = real("base", base, x)
    given = static("base", tensor)
    if len(given) != 4 or any(arguments.differ(a, b) for a, b in zip(given, known, strict=True)):
        raise ValueError(f"base has shape {arguments.text(given)}: expected {arguments.text(known)}")
    return tensor


def _fused(
    x: tf.Tensor,
    kernel: tf.Tensor,
    bias: Any,
    pixels: Listed,
    at: Frame,
    base: Any,
    out: Any,
    relu: bool,
    settings: Fused,
) -> Any:
    tensor = None if bias is None else tf.convert_to_tensor(bias)
    if out is not None:
        check_out(out, base, (*at.grid, extent(kernel, 3)), x)
        tensorflow_fused.image_convolution_var(x, kernel, tensor, variable("out", out), pixels, at, relu, settings)
        return out
    zeros = isinstance(base, str) and base == "zeros"
    start = None if zeros else _start(x, kernel, at.grid, at.strides, base)
    return tensorflow_fused.image_convolution(x, kernel, tensor, start, pixels, at, relu, settings)


def convolved(stack: tf.Tensor, kernel: tf.Tensor, step: Sequence[int]) -> tf.Tensor:
    """The convolution of a stack of windows without padding, also of an empty one.

    To the convolution of nothing TensorFlow's oneDNN kernels give the shape of the input; a reshape of it would be
    optimised away where a function is traced.
    """
    count = extent(stack, 0)
    size = [(extent(stack, 1 + axis) - extent(kernel, axis)) // step[axis] + 1 for axis in (0, 1)]
    shape = [count, *size, extent(kernel, 3)]
    made = tf.cond(
        tf.equal(count, 0),
        # Nothing, but made of both: their gradients are zeros.
        lambda: tf.zeros(shape, stack.dtype) + tf.reduce_sum(stack) + tf.reduce_sum(kernel),
        lambda: tf.nn.conv2d(stack, kernel, list(step), "VALID"),
    )
    return tf.ensure_shape(made, [None if is_symbolic(length) else length for length in shape])


def _negative(params: BlockParams) -> tuple[Any, Any]:
    return -params.boffset[0], -params.boffset[1]


def _padded(x: tf.Tensor, params: BlockParams, value: float = 0.0) -> tf.Tensor:
    """The image with a border, so that the windows of all blocks are in it and no more than those."""
    padding = [[0, 0], [0, 0], [0, 0], [0, 0]]
    for axis in (0, 1):
        front, n = -params.boffset[axis], extent(x, 1 + axis)
        reached = params.bstrides[axis] * (params.bcount[axis] - 1) + params.bsize[axis]
        padding[1 + axis] = [front, tf.maximum(reached - front - n, 0)]
    return tf.pad(x, padding, constant_values=value)


# The routes to the rows [P, K] of listed output pixels.


def _by_matmul(x: tf.Tensor, kernel: tf.Tensor, positions: tf.Tensor, at: Frame) -> tf.Tensor:
    patches = take_or_zero(rows_of(x), *of_pixels(positions, at))
    matrix = tf.reshape(kernel, [-1, extent(kernel, 3)])
    return tf.reshape(patches, [-1, extent(matrix, 0)]) @ matrix


def _by_rulebook(x: tf.Tensor, kernel: tf.Tensor, positions: tf.Tensor, at: Frame) -> tf.Tensor:
    flat, inside = of_pixels(positions, at)
    rows = rows_of(x)
    made = tf.zeros([tf.size(positions), extent(kernel, 3)], x.dtype)
    for tap, matrix in enumerate(tf.unstack(tf.reshape(kernel, [-1, *kernel.shape[2:]]), at.ksize[0] * at.ksize[1])):
        entries = tf.where(inside[:, tap])
        read = tf.gather(rows, tf.gather(flat[:, tap], entries[:, 0]))
        made = tf.tensor_scatter_nd_add(made, entries, read @ matrix)
    return made


def _by_blocks(x: tf.Tensor, kernel: tf.Tensor, positions: tf.Tensor, at: Frame) -> tf.Tensor:
    def gathered(index: tf.Tensor, params: BlockParams) -> tf.Tensor:
        listed = BlockIndex(index, tf.shape(index)[:1])
        windows: dict[str, Any] = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
        return sparse_gather(x, listed, **windows, version="indexed")

    return _in_tiles(kernel, positions, at, gathered)


def _by_upsample(x: tf.Tensor, kernel: tf.Tensor, positions: tf.Tensor, at: Frame) -> tf.Tensor:
    def gathered(index: tf.Tensor, params: BlockParams) -> tf.Tensor:
        return tf.gather_nd(_padded(x, params), upsample_indices(index, params.bsize, params.bstrides))

    return _in_tiles(kernel, positions, at, gathered)


def _in_tiles(
    kernel: tf.Tensor,
    positions: tf.Tensor,
    at: Frame,
    gathered: Callable[[tf.Tensor, BlockParams], tf.Tensor],
) -> tf.Tensor:
    """Convolve the blocks that hold a listed pixel and take the listed pixels out of them."""
    step, k = at.strides, at.ksize
    block = [size + step[axis] * (_TILE - 1) for axis, size in enumerate(k)]
    some = block_params_chain(block, block, [k], step, "VALID")
    count = tuple(-(-n // _TILE) for n in at.grid[1:])
    params = some._replace(boffset=(-at.front[0], -at.front[1]), bcount=count, out_size=at.grid[1:])
    _, row, column = split(positions, at.grid[1:])
    named, entry = tf.unique(_tiles_of(positions, at), tf.int64)
    index = tf.cast(tf.stack(split(named, count), axis=1), tf.int32)
    made = convolved(gathered(index, params), kernel, step)
    return tf.gather(rows_of(made), (entry * _TILE + row % _TILE) * _TILE + column % _TILE)


def _tiles_of(positions: tf.Tensor, at: Frame) -> tf.Tensor:
    """The number, in raster order, of the tile of each position."""
    rows, columns = (tf.cast(-(-n // _TILE), tf.int64) for n in at.grid[1:])
    number, row, column = split(positions, at.grid[1:])
    return (number * rows + row // _TILE) * columns + column // _TILE


def _sizes(kernel: tf.Tensor, positions: tf.Tensor, at: Frame) -> cost_model.Sizes:
    """What there is to compute, for the cost model."""
    tiles = tf.unique(_tiles_of(positions, at)).y.shape[0]
    outputs = at.grid[0] * at.grid[1] * at.grid[2]
    return cost_model.sizes(positions.shape[0], tiles, outputs, [n or 1 for n in kernel.shape])


_ROUTES: dict[str, Callable[[tf.Tensor, tf.Tensor, tf.Tensor, Frame], tf.Tensor]] = {
    "matmul": _by_matmul,
    "rulebook": _by_rulebook,
    "blocks": _by_blocks,
    "upsample": _by_upsample,
}
