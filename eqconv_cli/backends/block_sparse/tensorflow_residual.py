"""The pre-activation bottleneck unit in TensorFlow: dense, in blocks, and at a list of pixels.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018, section 3.3; uber-research/sbnet ``benchmark/sparse_conv_lib.py``.

    y = x + w3 * relu(bn3(w2 * relu(bn2(w1 * relu(bn1(x))))))

with 1x1, 3x3 and 1x1 convolutions without bias. Gradients by the tape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from eqconv_cli.backends.block_sparse import arguments, tensorflow_fused
from eqconv_cli.backends.block_sparse.arguments import Window
from eqconv_cli.backends.block_sparse.geometry import BlockParams, strides_pair
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.tensorflow_convolution import check_out, convolved
from eqconv_cli.backends.block_sparse.tensorflow_inputs import (
    Listed,
    block_rows,
    counting,
    image,
    pixel_rows,
    real,
    static,
    variable,
)
from eqconv_cli.backends.block_sparse.tensorflow_neighbours import of_blocks, owners, replaced, rows_of, split
from eqconv_cli.backends.block_sparse.tensorflow_ops import (
    block_pixels,
    checked,
    how_of,
    sparse_gather,
    sparse_scatter,
    tiles,
)
from eqconv_cli.backends.block_sparse.tensorflow_residual_backward import branch
from eqconv_cli.backends.block_sparse.units import (
    BLOCK_COMPOSITIONS,
    BORDERS,
    EPSILON,
    PIXEL_COMPOSITIONS,
    STATISTICS,
    BatchNorm,
    ResidualWeights,
    check_route,
    check_weights,
    only_blocks,
)
from eqconv_cli.frameworks.tensorflow_tensors import extent

#: Of the convolutions, as ``block_params_chain`` takes them.
KSIZES = ((1, 1), (3, 3), (1, 1))


def residual_unit(
    x: Any, weights: ResidualWeights, *, strides: Sequence[Any] = (1, 1), epsilon: float = EPSILON
) -> tf.Tensor:
    """The unit at every pixel, with the fixed statistics of the weights.

    Args:
        x: [N, H, W, C] float32 or float64.
        weights: in the dtype of x.
        strides: of the first convolution and the shortcut, two numbers or TensorFlow's four.
        epsilon: added to the variances.

    Returns:
        [N, ceil(H / s), ceil(W / s), C_out].

    Raises:
        TypeError, ValueError: a dtype or a shape does not fit.
    """
    plain, unit, step = _operands(x, weights, strides)
    h = _affine(plain, unit.bn1, epsilon)
    h = tf.nn.conv2d(h, _pointwise(unit.w1), list(step), "SAME")
    h = tf.nn.conv2d(_affine(h, unit.bn2, epsilon), unit.w2, 1, "SAME")
    return _shortcut(plain, unit, step) + tf.nn.conv2d(_affine(h, unit.bn3, epsilon), _pointwise(unit.w3), 1, "SAME")


def sparse_residual_unit(
    x: Any,
    index: BlockIndex,
    params: BlockParams,
    weights: ResidualWeights,
    *,
    border: str = "dense",
    bn: str = "inference",
    strides: Sequence[Any] = (1, 1),
    epsilon: float = EPSILON,
    in_place: bool = False,
    statistics: list[tuple[tf.Tensor, tf.Tensor]] | None = None,
    version: str | Fused = "auto",
) -> Any:
    """The unit in the tiles of the active blocks; elsewhere the shortcut alone.

    Args:
        x: [N, H, W, C] float32 or float64; with ``in_place`` a variable.
        index: the active blocks.
        params: their geometry, from ``block_params_chain`` for kernels (1, 1), (3, 3), (1, 1) and these strides.
        weights: in the dtype of x.
        border: "dense": outside the image the input of the 3x3 convolution is 0, as in the dense unit; "original": it
            is what x = 0 gives, as in SBNet.
        bn: "inference": the fixed statistics of the weights; "stack": those of all gathered positions, as SBNet trains;
            "active": those of the output pixels of the tiles, each once.
        strides: of the first convolution and the shortcut.
        epsilon: added to the variances.
        in_place: write the result into the variable ``x`` and return it, without a gradient; the compiled kernel
            changes the tiles in its memory.
        statistics: a list that takes the mean and the variance of each normalisation, where ``bn`` computes them; where
            nothing is counted, the given ones.
        version: "blocks" gathers, computes on the stack and scatters; "pixels" computes on compact rows, nothing twice;
            "dense" on the whole image, of which the tiles are kept (border="dense"); "fused" is the compiled kernel;
            "auto". All but "blocks" and "auto" need bn="inference", strides (1, 1) and no ``w_project``.

    Returns:
        [N, Hout, Wout, C_out], or ``x``.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: the index names an image that there is not, or a negative number.
        Unavailable: version is "fused" and the kernels are not built.
    """
    arguments.check_choice("border", border, BORDERS)
    arguments.check_choice("bn", bn, STATISTICS)
    plain, unit, step = _operands(x, weights, strides)
    if in_place and not hasattr(x, "assign"):
        raise TypeError(f"x is a {type(x).__name__}: in_place=True writes into a tf.Variable")
    if in_place and (step != (1, 1) or unit.w_project is not None):
        raise ValueError("in_place=True needs an output like x: strides (1, 1) and no w_project")
    why = only_blocks(bn, step, unit)
    check_route(version, why, border)
    how = how_of("blocks" if why else version, plain, BLOCK_COMPOSITIONS)
    if isinstance(how, Fused):
        pixels = block_pixels(index, params, extent(plain, 0), how)
        listed = Listed(pixels.pixels, pixels.count, False)
        folded, original = _folded(unit, epsilon), border == "original"
        if not in_place:
            return tensorflow_fused.residual(plain, plain, listed, folded, original, how)
        made = tensorflow_fused.residual(plain, None, listed, folded, original, how)
        # As long as its value is held here the variable cannot be written without a copy.
        del plain
        return _written(x, listed, made, how)
    if how == "blocks":
        y = _by_blocks(plain, index, params, unit, border, bn, step, epsilon, statistics)
    else:
        grid = tuple(extent(plain, axis) for axis in range(3))
        positions = counting(pixel_rows(block_pixels(index, params, grid[0], "indexed"), grid))
        y = replaced(plain, positions, _at_pixels(plain, positions, unit, border, epsilon, how))
    if in_place:
        x.assign(y)
    return x if in_place else y


def masked_residual_unit(
    x: Any,
    pixels: PixelIndex,
    weights: ResidualWeights,
    *,
    border: str = "dense",
    epsilon: float = EPSILON,
    out: tf.Variable | None = None,
    version: str | Fused = "auto",
) -> Any:
    """The unit at exactly the listed pixels, stride 1, fixed statistics; elsewhere x.

    Args:
        x: [N, H, W, C] float32 or float64.
        pixels: the pixels, ascending.
        weights: in the dtype of x, without ``w_project``.
        border: as for :func:`sparse_residual_unit`.
        epsilon: added to the variances.
        out: a variable [N, H, W, C] that is written at the listed pixels alone and returned.
        version: "pixels" computes on compact rows; "dense" on the whole image, of which the pixels are kept
            (border="dense"); "fused" is the compiled kernel; "auto".

    Returns:
        [N, H, W, C], or ``out``.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: a position is out of range.
        Unavailable: version is "fused" and the kernels are not built.
    """
    arguments.check_choice("border", border, BORDERS)
    check_route(version, "", border)
    plain, unit, _ = _operands(x, weights, (1, 1))
    if unit.w_project is not None:
        raise ValueError("weights has w_project: the unit at pixels has the shortcut x")
    shape = tuple(extent(plain, axis) for axis in range(4))
    listed = pixel_rows(pixels, shape[:3])
    if out is not None:
        check_out(out, "zeros", shape, plain)
    original, folded = border == "original", _folded(unit, epsilon)
    how = how_of(version, plain, PIXEL_COMPOSITIONS)
    if isinstance(how, Fused):
        made = tensorflow_fused.residual(plain, plain if out is None else None, listed, folded, original, how)
        # The variable may be x: as long as its value is held here it cannot be written without a copy.
        del plain
        return made if out is None else _written(out, listed, made, how)
    positions = counting(listed)
    rows = _at_pixels(plain, positions, unit, border, epsilon, how)
    if out is None:
        return replaced(plain, positions, rows)
    out.scatter_nd_update(tf.stack(split(positions, shape[1:3]), axis=1), rows)
    return out


def _at_pixels(
    x: tf.Tensor, positions: tf.Tensor, unit: ResidualWeights, border: str, epsilon: float, how: str
) -> tf.Tensor:
    """The unit at positions int64 [P], as rows [P, C]."""
    if how == "dense":
        return tf.gather(rows_of(residual_unit(x, unit, epsilon=epsilon)), positions)
    folded = _folded(unit, epsilon)
    return tf.gather(rows_of(x), positions) + branch(x, positions, folded, border == "original")


def _written(out: Any, pixels: Listed, made: tf.Tensor, settings: Fused) -> Any:
    """The variable ``out`` with the listed pixels of the image ``made``."""
    positions = tf.cast(pixels.entries, tf.int64)
    index = tf.cast(tf.stack(split(positions, (extent(made, 1), extent(made, 2))), axis=1), tf.int32)
    rows = tf.gather(rows_of(made), positions)[:, None, None, :]
    one, blocks = Window((1, 1), (1, 1), (0, 0)), Listed(index, pixels.count, pixels.whole)
    tensorflow_fused.block_scatter_var(rows, blocks, variable("out", out), one, False, False, settings)
    return out


# Parameters.


def _operands(
    x: Any, weights: ResidualWeights, strides: Sequence[Any]
) -> tuple[tf.Tensor, ResidualWeights, tuple[int, int]]:
    """The image and the parameters as tensors, checked."""
    plain = image("x", x if isinstance(x, tf.Tensor) else tf.convert_to_tensor(x))
    tensors: dict[str, Any] = {
        name: None if value is None else real(name, value, plain)
        for name, value in weights._asdict().items()
        if not name.startswith("bn")
    }
    norms: dict[str, Any] = {name: _norm(name, getattr(weights, name), plain) for name in ("bn1", "bn2", "bn3")}
    unit, step = ResidualWeights(**tensors, **norms), strides_pair("strides", strides)
    check_weights(unit, static("x", plain))
    return plain, unit, step


def _norm(name: str, norm: BatchNorm | None, like: tf.Tensor) -> BatchNorm | None:
    if norm is None:
        if name != "bn1":
            raise ValueError(f"{name}=None: only bn1 may be left out")
        return None
    return BatchNorm(*(real(f"{name}.{part}", value, like) for part, value in BatchNorm(*norm)._asdict().items()))


def _pointwise(matrix: tf.Tensor) -> tf.Tensor:
    return matrix[None, None]


def _fold(norm: BatchNorm, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    """A normalisation as scale and shift."""
    scale = norm.scale * tf.math.rsqrt(norm.variance + epsilon)
    return scale, norm.offset - norm.mean * scale


def _folded(unit: ResidualWeights, epsilon: float) -> list[tf.Tensor | None]:
    """The parameters as the pixel routes take them."""
    first = (None, None) if unit.bn1 is None else _fold(unit.bn1, epsilon)
    return [*first, unit.w1, *_fold(unit.bn2, epsilon), unit.w2, *_fold(unit.bn3, epsilon), unit.w3]


def _affine(h: tf.Tensor, norm: BatchNorm | None, epsilon: float) -> tf.Tensor:
    """Normalisation and ReLU."""
    if norm is None:
        return h
    scale, shift = _fold(norm, epsilon)
    return tf.nn.relu(h * scale + shift)


def _shortcut(x: tf.Tensor, unit: ResidualWeights, step: tuple[int, int]) -> tf.Tensor:
    if unit.w_project is not None:
        return tf.nn.conv2d(x, _pointwise(unit.w_project), list(step), "SAME")
    return x if step == (1, 1) else x[:, :: step[0], :: step[1]]


# On the stack of blocks.


def _by_blocks(
    x: tf.Tensor,
    index: BlockIndex,
    params: BlockParams,
    unit: ResidualWeights,
    border: str,
    bn: str,
    step: tuple[int, int],
    epsilon: float,
    statistics: list[tuple[tf.Tensor, tf.Tensor]] | None,
) -> tf.Tensor:
    if bn != "inference":
        # Statistics take no row that does not count.
        listed = block_rows(index, extent(x, 0))
        entries = tf.cast(counting(listed), tf.int32)
        index = BlockIndex(entries, tf.shape(entries)[:1])
    window: dict[str, Any] = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
    stack = sparse_gather(x, index, **window, version="indexed")
    rows = checked(block_rows(index, extent(x, 0)), x)
    at = Window(params.bsize, params.bstrides, params.boffset)
    inside = of_blocks(rows, at, (extent(x, 1), extent(x, 2)))[1][..., None]
    kept = tf.cast(inside, x.dtype) if border == "dense" else None
    shortcut = _shortcut(x, unit, step)
    counted = _counted(rows, params, shortcut, step, bn)

    def activated(h: tf.Tensor, norm: BatchNorm | None, crop: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        if norm is None:
            return h
        if bn != "inference":
            mean, variance = _moments(crop(h), counted, norm)
            norm = norm._replace(mean=mean, variance=variance)
            if statistics is not None:
                statistics.append((tf.stop_gradient(mean), tf.stop_gradient(variance)))
        return _affine(h, norm, epsilon)

    def masked(h: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        return h if mask is None else h * mask

    active = bn == "active"
    h = masked(activated(stack, unit.bn1, lambda h: _inner(h, step) if active else h), kept)
    h = convolved(h, _pointwise(unit.w1), step)
    h = activated(h, unit.bn2, lambda h: _inner(h, (1, 1)) if active else h)
    h = masked(h, None if kept is None else kept[:, :: step[0], :: step[1]])
    h = activated(convolved(h, unit.w2, (1, 1)), unit.bn3, lambda h: h)
    made = convolved(h, _pointwise(unit.w3), (1, 1))
    tile = tiles(params)
    tile_window: dict[str, Any] = {
        "bsize": tile.size,
        "bstride": tile.stride,
        "boffset": tile.offset,
        "version": "indexed",
    }
    if bn == "stack":
        return sparse_scatter(made, index, shortcut, **tile_window, add=True)
    # Written, not added: a block that is listed twice changes its tile once, as a list of pixels would.
    made += sparse_gather(shortcut, index, **tile_window)
    return sparse_scatter(made, index, shortcut, **tile_window, add=False)


def _inner(h: tf.Tensor, step: tuple[int, int]) -> tf.Tensor:
    """The positions of a stack that the centre of the 3x3 convolution falls on."""
    return h[:, :: step[0], :: step[1]][:, 1:-1, 1:-1]


def _counted(
    rows: Listed, params: BlockParams, shortcut: tf.Tensor, step: tuple[int, int], bn: str
) -> tf.Tensor | None:
    """Which positions of the tiles are in the statistics [B, h, w, 1]; None: all of the stack."""
    if bn != "active":
        return None
    flat, inside = of_blocks(rows, tiles(params), (extent(shortcut, 1), extent(shortcut, 2)))
    owner = owners(flat, inside, tf.size(shortcut[..., 0], tf.int64))
    own = tf.gather(owner, flat) == tf.reshape(tf.range(tf.size(flat, tf.int64)), tf.shape(flat))
    return tf.cast(inside & own, shortcut.dtype)[..., None]


def _moments(h: tf.Tensor, counted: tf.Tensor | None, norm: BatchNorm) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance over all positions, or those that are counted; the given ones where there are none."""
    rows = rows_of(h)
    share = tf.ones_like(rows[:, :1]) if counted is None else rows_of(counted)
    total = tf.reduce_sum(share)
    mean = tf.math.divide_no_nan(tf.reduce_sum(rows * share, 0), total)
    spread = tf.reduce_sum(tf.square(rows - mean) * share, 0)
    variance = tf.math.divide_no_nan(spread, total)
    return tf.where(total > 0, mean, norm.mean), tf.where(total > 0, variance, norm.variance)
