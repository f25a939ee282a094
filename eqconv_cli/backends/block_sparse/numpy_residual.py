"""The sparse residual unit in NumPy: on a stack of blocks, on lists of pixels, and dense for comparison.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018, section 3.3; uber-research/sbnet ``benchmark/sparse_conv_lib.py``.
The gradients are written out by hand, through the statistics of a batch normalisation where those are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.block_sparse import arguments, numpy_fused
from eqconv_cli.backends.block_sparse.geometry import BlockParams, Pair, block_params_chain, strides_pair
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.numpy_convolution import valid_conv2d, valid_conv2d_gradients
from eqconv_cli.backends.block_sparse.numpy_ops import (
    block_pixels,
    listed_pixels,
    listed_rows,
    plain_image,
    sparse_gather,
    sparse_gather_gradient,
    sparse_scatter_var,
)
from eqconv_cli.backends.block_sparse.options import Fused, kernels_or
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

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int32]
Gradients = dict[str, Any]
#: Mean and variance of each normalisation.
Statistics = list[tuple[Array, Array]]


def residual_unit(
    x: Array, weights: ResidualWeights, *, strides: Sequence[int] = (1, 1), epsilon: float = EPSILON
) -> Array:
    """The dense pre-activation bottleneck with fixed statistics.

    Args:
        x: [N, H, W, C] float32 or float64.
        weights: see :class:`ResidualWeights`; all of the dtype of ``x``.
        strides: of the first convolution and of the shortcut's.
        epsilon: of the normalisations.

    Returns:
        [N, Hout, Wout, Cout].

    Raises:
        TypeError, ValueError: a dtype or a shape is not allowed.
    """
    image, step = _checked(x, weights, strides)
    pixels = image[:, :: step[0], :: step[1]]
    a2 = _first_half(pixels, weights, epsilon)
    a3 = np.maximum(_affine(valid_conv2d(_ringed(a2), weights.w2, (1, 1), a2.shape[1:3]), weights.bn3, epsilon), 0)
    return _shortcut(image, weights, step) + a3 @ weights.w3


def sparse_residual_unit(
    x: Array,
    index: BlockIndex,
    params: BlockParams,
    weights: ResidualWeights,
    *,
    border: str = "dense",
    bn: str = "inference",
    strides: Sequence[int] = (1, 1),
    epsilon: float = EPSILON,
    in_place: bool = False,
    statistics: Statistics | None = None,
    version: str | Fused = "auto",
) -> Array:
    """The residual unit in the tiles of the active blocks; the shortcut alone elsewhere.

    Args:
        x: [N, H, W, C] float32 or float64.
        index: active blocks, in any order; one that is there twice counts twice with bn="stack", else once.
        params: from ``block_params_chain`` with the kernels (1, 1), (3, 3), (1, 1).
        weights: see :class:`ResidualWeights`; all of the dtype of ``x``.
        border: "dense" sets what is outside the image to 0 after each ReLU, so tiles equal the dense unit; "original"
            does not, as in SBNet: the ring along the image's edge differs from the dense unit then.
        bn: "inference" takes the given statistics; "stack" those of the gathered blocks (halo pixels count several
            times, the outside as 0), as SBNet's training does; "active" those of the tiles' pixels, each once.
        strides: of the first convolution and of the shortcut's.
        epsilon: of the normalisations.
        in_place: write the result to ``x`` and return it; needs stride 1 and no projection.
        statistics: a list that takes the mean and the variance of each normalisation, where ``bn`` computes them; where
            nothing is counted, the given ones.
        version: "blocks" (gather, nine layers, scatter), "pixels" (compact rows, nothing twice), "dense" (on the whole
            image, then chosen; for border="dense"), "fused" (``eqconv build-kernels``: all in one pass over the
            pixels), or "auto". All but "blocks" and "auto" need bn="inference", stride 1 and no projection.

    Returns:
        [N, Hout, Wout, Cout].

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: a row names an image that there is not, or a negative number.
        Unavailable: version is "fused" and the kernels are not built.
    """
    unit = _block_unit(x, index, params, weights, border, bn, strides, epsilon)
    if in_place and (weights.w_project is not None or unit.strides != (1, 1)):
        raise ValueError(f"in_place=True needs strides (1, 1) and no w_project: strides={unit.strides}")
    how = _block_route(version, unit)
    if how == "blocks":
        y = _on_blocks(unit, index, params, statistics)[0]
    else:
        y = _at_pixels(unit, _pixels_of(index, params, unit, how), unit.x.copy(), how)
    if in_place:
        x[...] = y
        return x
    return y


def sparse_residual_unit_gradients(
    dy: Array,
    x: Array,
    index: BlockIndex,
    params: BlockParams,
    weights: ResidualWeights,
    *,
    border: str = "dense",
    bn: str = "inference",
    strides: Sequence[int] = (1, 1),
    epsilon: float = EPSILON,
    version: str | Fused = "auto",
) -> Gradients:
    """The gradients of ``x``, ``w1``, ``w2``, ``w3``, ``bn2``, ``bn3`` and, if given, ``bn1`` and ``w_project``.

    Those of a normalisation are a :class:`BatchNorm`; of computed statistics, which the given ones do not enter, 0.
    Args and errors as for :func:`sparse_residual_unit`; ``dy`` is that of the result. "dense" and "pixels" have the
    same gradient, which is computed on compact rows.
    """
    unit = _block_unit(x, index, params, weights, border, bn, strides, epsilon)
    how = _block_route(version, unit)
    if how == "blocks":
        return _given(_on_blocks(unit, index, params)[1](plain_image("dy", dy)))
    settings = how if isinstance(how, Fused) else None
    return _given(_on_pixels(unit, _pixels_of(index, params, unit, how), settings)[1](plain_image("dy", dy)))


def masked_residual_unit(
    x: Array,
    pixels: PixelIndex,
    weights: ResidualWeights,
    *,
    border: str = "dense",
    epsilon: float = EPSILON,
    out: Array | None = None,
    version: str | Fused = "auto",
) -> Array:
    """The residual unit exactly at the listed pixels, with fixed statistics and stride 1; x elsewhere.

    Args:
        x: [N, H, W, C] float32 or float64.
        pixels: of the image, each once, see :func:`pixel_index`.
        weights, border, epsilon: as for :func:`sparse_residual_unit`, without projection.
        out: an array like x to write the listed pixels to; the others stay as they are there.
        version: "pixels" (compact rows: the first convolution on the pixels and their neighbours), "dense" (on the
            whole image, then chosen; for border="dense"), "fused" (``eqconv build-kernels``), or "auto".

    Returns:
        [N, H, W, C]; ``out`` if it was given.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: a position outside the image.
        Unavailable: version is "fused" and the kernels are not built.
    """
    unit, listed = _pixel_unit(x, pixels, weights, border, epsilon)
    check_route(version, "", border)
    how = kernels_or(version, PIXEL_COMPOSITIONS, numpy_fused.missing)
    y = unit.x.copy() if out is None else out
    if y.shape != x.shape or y.dtype != x.dtype or not y.flags.c_contiguous or np.may_share_memory(y, unit.x):
        raise ValueError("out must be like x, contiguous, and not share memory with it")
    return _at_pixels(unit, listed, y, how)


def masked_residual_unit_gradients(
    dy: Array,
    x: Array,
    pixels: PixelIndex,
    weights: ResidualWeights,
    *,
    border: str = "dense",
    epsilon: float = EPSILON,
    version: str | Fused = "auto",
) -> Gradients:
    """The gradients as for :func:`sparse_residual_unit_gradients`; args and errors as for the unit."""
    unit, listed = _pixel_unit(x, pixels, weights, border, epsilon)
    check_route(version, "", border)
    how = kernels_or(version, PIXEL_COMPOSITIONS, numpy_fused.missing)
    settings = how if isinstance(how, Fused) else None
    return _given(_on_pixels(unit, listed, settings)[1](plain_image("dy", dy)))


def folded(bn: BatchNorm, epsilon: float = EPSILON) -> tuple[Array, Array]:
    """A normalisation with fixed statistics as scale and shift."""
    scale = bn.scale / np.sqrt(bn.variance + np.asarray(epsilon, bn.variance.dtype))
    return scale, bn.offset - bn.mean * scale


# Arguments.


class Unit(NamedTuple):
    """A residual unit, checked."""

    x: Array
    weights: ResidualWeights
    strides: Pair
    border: str
    bn: str
    epsilon: float


def _checked(x: Array, weights: ResidualWeights, strides: Sequence[int]) -> tuple[Array, Pair]:
    image, step = plain_image("x", x), strides_pair("strides", strides)
    check_weights(weights, x.shape)
    for name in ("w1", "w2", "w3", "w_project"):
        if getattr(weights, name) is not None:
            arguments.check_same_dtype(name, str(getattr(weights, name).dtype), "x", str(x.dtype))
    for name in ("bn1", "bn2", "bn3"):
        for part, array in zip(BatchNorm._fields, getattr(weights, name) or (), strict=False):
            arguments.check_same_dtype(f"{name}.{part}", str(array.dtype), "x", str(x.dtype))
    return image, step


def _block_unit(
    x: Array,
    index: BlockIndex,
    params: BlockParams,
    weights: ResidualWeights,
    border: str,
    bn: str,
    strides: Sequence[int],
    epsilon: float,
) -> Unit:
    image, step = _checked(x, weights, strides)
    arguments.check_choice("border", border, BORDERS)
    arguments.check_choice("bn", bn, STATISTICS)
    made = block_params_chain(image.shape, params.bsize, [(1, 1), (3, 3), (1, 1)], step)
    if made._replace(bcount=params.bcount) != params:
        raise ValueError(
            f"params={params} does not belong to an image {arguments.text(x.shape)} and strides {step}: make it by "
            "block_params_chain with these and the kernels (1, 1), (3, 3), (1, 1)"
        )
    return Unit(image, weights, step, border, bn, epsilon)


def _pixel_unit(
    x: Array, pixels: PixelIndex, weights: ResidualWeights, border: str, epsilon: float
) -> tuple[Unit, Ints]:
    image, step = _checked(x, weights, (1, 1))
    arguments.check_choice("border", border, BORDERS)
    if weights.w_project is not None:
        raise ValueError("w_project must be None: outside the listed pixels the result is x itself")
    if tuple(pixels.grid) != image.shape[:3]:
        raise ValueError(f"pixels has the grid {tuple(pixels.grid)} but x has {image.shape[:3]} (N, H, W)")
    return Unit(image, weights, step, border, "inference", epsilon), listed_pixels(pixels)


def _block_route(version: str | Fused, unit: Unit) -> str | Fused:
    why = only_blocks(unit.bn, unit.strides, unit.weights)
    check_route(version, why, unit.border)
    return kernels_or("blocks" if why and version == "auto" else version, BLOCK_COMPOSITIONS, numpy_fused.missing)


def _pixels_of(index: BlockIndex, params: BlockParams, unit: Unit, how: str | Fused) -> Ints:
    return listed_pixels(block_pixels(index, params, unit.x.shape[0], how if isinstance(how, Fused) else "indexed"))


def _given(gradients: Gradients) -> Gradients:
    """Without those of parameters that there are not."""
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


# Routes to the listed pixels.


def _at_pixels(unit: Unit, pixels: Ints, y: Array, how: str | Fused) -> Array:
    """``y`` with the unit's values at the pixels."""
    if isinstance(how, Fused):
        return _fused(unit, pixels, y, how)
    rows = y.reshape(-1, y.shape[3])
    if how == "dense":
        rows[pixels] = residual_unit(unit.x, unit.weights, epsilon=unit.epsilon).reshape(rows.shape)[pixels]
    else:
        rows[pixels] = _on_pixels(unit, pixels, None)[0]
    return y


def _fused(unit: Unit, pixels: Ints, y: Array, settings: Fused) -> Array:
    weights = unit.weights
    fields = {name: np.ascontiguousarray(getattr(weights, name)) for name in ("w1", "w2", "w3")}
    for number, bn in enumerate((weights.bn1, weights.bn2, weights.bn3), 1):
        if bn is not None:
            fields[f"scale{number}"], fields[f"shift{number}"] = folded(bn, unit.epsilon)
    bottleneck = weights.w1.shape[1]
    return numpy_fused.residual_forward(
        unit.x, np.sort(pixels), fields, bottleneck, unit.border == "original", y, settings
    )


# Compact rows: each pixel that a window sees once.


def _on_pixels(unit: Unit, pixels: Ints, settings: Fused | None) -> tuple[Array, Callable[[Array], Gradients]]:
    """Values of the listed pixels [P, C], and the function from dy [N, H, W, C] to the gradients.

    The 3x3 convolution goes by a table of neighbours, multiplied by the compiled kernels if there are settings.
    """
    weights, epsilon = unit.weights, unit.epsilon
    flat = unit.x.reshape(-1, unit.x.shape[3])
    seen, table = _neighbours(unit.x.shape, pixels)
    # The last row is what the layers make of the outside, where x is 0.
    a0 = np.concatenate([flat[seen], np.zeros((1, flat.shape[1]), flat.dtype)])
    a1, back1 = _activated(a0, weights.bn1, epsilon)
    a2, back2 = _activated(a1 @ weights.w1, weights.bn2, epsilon)
    h3, back_conv = _table_conv(a2[:-1], weights.w2, table, settings)
    outside = (table < 0).astype(h3.dtype) if unit.border == "original" else np.zeros(table.shape, h3.dtype)
    taps = weights.w2.reshape(-1, *weights.w2.shape[2:])
    a3, back3 = _activated(h3 + outside @ (a2[-1] @ taps), weights.bn3, epsilon)

    def back(dy: Array) -> Gradients:
        d4 = dy.reshape(-1, dy.shape[3])[pixels]
        dh3, dbn3 = back3(d4 @ weights.w3.T)
        da2, dw2 = back_conv(dh3)
        beyond = outside.T @ dh3
        da2 = np.concatenate([da2, np.einsum("tmk,tk->m", taps, beyond)[None]])
        dw2 = dw2 + np.einsum("m,tk->tmk", a2[-1], beyond).reshape(dw2.shape)
        dh1, dbn2 = back2(da2)
        da0, dbn1 = back1(dh1 @ weights.w1.T)
        dx = dy.copy()
        dx.reshape(flat.shape)[seen] += da0[:-1]
        return {"x": dx, "w1": a1.T @ dh1, "w2": dw2, "w3": a3.T @ d4, "bn1": dbn1, "bn2": dbn2, "bn3": dbn3}

    return flat[pixels] + a3 @ weights.w3, back


def _neighbours(shape: Sequence[int], pixels: Ints) -> tuple[Array, Ints]:
    """The pixels in the 3x3 windows, and for each listed pixel and tap its row among them, -1 outside the image."""
    coords = np.stack(np.unravel_index(pixels, shape[:3]), 1)
    places = np.arange(9)
    at = coords[:, None, 1:] + np.stack([places // 3 - 1, places % 3 - 1], 1)
    inside = np.all((at >= 0) & (at < shape[1:3]), axis=2)
    flat = (coords[:, :1] * shape[1] + at[..., 0]) * shape[2] + at[..., 1]
    seen, rows = np.unique(flat[inside], return_inverse=True)
    table = np.full(flat.shape, -1, np.int32)
    table[inside] = rows.reshape(-1)
    return seen, table


def _table_conv(
    x: Array, w: Array, table: Ints, settings: Fused | None
) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """Σ_taps x[table] w, and the function from its cotangent to those of x and w; no row twice within a tap."""
    y = np.zeros((len(table), w.shape[3]), x.dtype)
    if settings is not None:
        sites, kernel, rows = numpy_fused.TableSites(len(x), table), np.ascontiguousarray(w), np.ascontiguousarray(x)
        numpy_fused.site_forward(rows, kernel, None, sites, False, y, settings)
        return y, lambda g: numpy_fused.site_backward(np.ascontiguousarray(g), rows, kernel, None, sites, settings)[:2]
    taps, found = w.reshape(-1, *w.shape[2:]), [np.flatnonzero(column >= 0) for column in table.T]
    for tap, here in enumerate(found):
        y[here] += x[table[here, tap]] @ taps[tap]

    def back(g: Array) -> tuple[Array, Array]:
        dx, dw = np.zeros_like(x), np.zeros_like(taps)
        for tap, here in enumerate(found):
            dx[table[here, tap]] += g[here] @ taps[tap].T
            dw[tap] = x[table[here, tap]].T @ g[here]
        return dx, dw.reshape(w.shape)

    return y, back


# The stack of blocks.


def _on_blocks(
    unit: Unit, index: BlockIndex, params: BlockParams, statistics: Statistics | None = None
) -> tuple[Array, Callable[[Array], Gradients]]:
    """The result [N, Hout, Wout, Cout], and the function from its cotangent to the gradients."""
    weights, epsilon, step = unit.weights, unit.epsilon, unit.strides
    reads = _reads(params)
    index = _once(index, unit)
    x0 = sparse_gather(unit.x, index, **reads, version="indexed")
    inside, tiles = _in_image(unit.x.shape, index, params, step)
    kept = inside[:, :: step[0], :: step[1]]
    counted1, counted2, counted3 = _counted(unit.bn, inside, tiles, step)
    keep1 = inside if unit.border == "dense" else np.ones_like(inside)
    keep2 = kept if unit.border == "dense" else np.ones_like(kept)
    a1, back1 = _activated(x0, weights.bn1, epsilon, counted1, keep1, statistics)
    strided = a1[:, :: step[0], :: step[1]]
    a2, back2 = _activated(strided @ weights.w1, weights.bn2, epsilon, counted2, keep2, statistics)
    h3 = valid_conv2d(a2, weights.w2, (1, 1), params.bsize_out)
    a3, back3 = _activated(h3, weights.bn3, epsilon, counted3, None, statistics)
    writes = _writes(params)
    y = _shortcut(unit.x, weights, step)
    sparse_scatter_var(a3 @ weights.w3, index, y, **writes, add=True, version="indexed")

    def back(dy: Array) -> Gradients:
        d4 = sparse_gather(dy, index, **writes, version="indexed")
        dh3, dbn3 = back3(d4 @ weights.w3.T)
        da2, dw2 = valid_conv2d_gradients(dh3, a2, weights.w2, (1, 1))
        dh1, dbn2 = back2(da2)
        da1 = np.zeros_like(a1)
        da1[:, :: step[0], :: step[1]] = dh1 @ weights.w1.T
        dx0, dbn1 = back1(da1)
        dx = sparse_gather_gradient(dx0, index, unit.x.shape, **reads, version="indexed")
        gradients = {"w1": _outer(strided, dh1), "w2": dw2, "w3": _outer(a3, d4), "bn1": dbn1, "bn2": dbn2, "bn3": dbn3}
        shortcut = dx[:, :: step[0], :: step[1]]
        if weights.w_project is None:
            shortcut += dy
            return {"x": dx, **gradients}
        shortcut += dy @ weights.w_project.T
        return {"x": dx, **gradients, "w_project": _outer(unit.x[:, :: step[0], :: step[1]], dy)}

    return y, back


def _once(index: BlockIndex, unit: Unit) -> BlockIndex:
    """Without repeated rows, which would add twice; in the statistics of a stack they count as often as they occur."""
    rows = listed_rows(index, unit.x.shape[0])
    if unit.bn != "stack":
        rows = np.unique(rows, axis=0)
    return BlockIndex(rows, np.array([len(rows)], np.int32))


def _in_image(shape: Sequence[int], index: BlockIndex, params: BlockParams, step: Pair) -> tuple[Array, Array]:
    """Which gathered positions [B, h, w, 1] are inside the image, and which output positions inside the output."""
    ones = np.ones((*shape[:3], 1))
    inside = sparse_gather(ones, index, **_reads(params), version="indexed")
    tiles = sparse_gather(ones[:, :: step[0], :: step[1]], index, **_writes(params), version="indexed")
    return inside > 0, tiles > 0


class _Geometry(TypedDict):
    """Where blocks lie, as the operators take it."""

    bsize: Pair
    bstride: Pair
    boffset: Pair


def _reads(params: BlockParams) -> _Geometry:
    return {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}


def _writes(params: BlockParams) -> _Geometry:
    return {"bsize": params.bsize_out, "bstride": params.bsize_out, "boffset": (0, 0)}


def _counted(statistics: str, inside: Array, tiles: Array, step: Pair) -> tuple[Array | None, ...]:
    """What counts in the statistics of the three normalisations: None for given ones."""
    if statistics == "inference":
        return None, None, None
    if statistics == "stack":
        return np.ones_like(inside), np.ones_like(inside[:, :: step[0], :: step[1]]), np.ones_like(tiles)
    # The tile is the stack without its halo of one position.
    halo = np.zeros_like(inside)
    strided = halo[:, :: step[0], :: step[1]]
    strided[:, 1:-1, 1:-1] = tiles
    return halo, strided, tiles


# Layers.


def _first_half(x: Array, weights: ResidualWeights, epsilon: float) -> Array:
    a1 = x if weights.bn1 is None else np.maximum(_affine(x, weights.bn1, epsilon), 0)
    return np.maximum(_affine(a1 @ weights.w1, weights.bn2, epsilon), 0)


def _affine(x: Array, bn: BatchNorm, epsilon: float) -> Array:
    scale, shift = folded(bn, epsilon)
    return x * scale + shift


def _shortcut(x: Array, weights: ResidualWeights, step: Pair) -> Array:
    strided = x[:, :: step[0], :: step[1]]
    return strided.copy() if weights.w_project is None else strided @ weights.w_project


def _ringed(x: Array) -> Array:
    return np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _outer(x: Array, g: Array) -> Array:
    """Σ over all positions of x gᵀ."""
    axes = tuple(range(x.ndim - 1))
    return np.tensordot(x, g, (axes, axes))


def _activated(
    x: Array,
    bn: BatchNorm | None,
    epsilon: float,
    counted: Array | None = None,
    keep: Array | None = None,
    statistics: Statistics | None = None,
) -> tuple[Array, Callable[[Array], tuple[Array, BatchNorm | None]]]:
    """ReLU of the normalised x [..., C] where ``keep`` says so, else 0; without normalisation x itself.

    Args:
        x: values.
        bn: the normalisation; its statistics count unless ``counted`` is given.
        epsilon: of the normalisation.
        counted: bool [..., 1], the positions whose mean and variance are taken, unless there are none.
        keep: bool [..., 1].
        statistics: takes the mean and the variance that were computed.

    Returns:
        The values, and the function from their cotangent to those of x and of the normalisation.
    """
    if bn is None:
        return x, lambda g: (g, None)
    everywhere = tuple(range(x.ndim - 1))
    if counted is None:
        weight = np.ones((), x.dtype)
    else:
        weight = counted.astype(x.dtype) / x.dtype.type(max(counted.sum(), 1))
    given = counted is None or not counted.any()
    mean = bn.mean if given else (x * weight).sum(everywhere)
    variance = bn.variance if given else ((x - mean) ** 2 * weight).sum(everywhere)
    if counted is not None and statistics is not None:
        statistics.append((mean, variance))
    inverse = 1 / np.sqrt(variance + np.asarray(epsilon, x.dtype))
    normal = (x - mean) * inverse
    y = normal * bn.scale + bn.offset
    passes = y > 0 if keep is None else (y > 0) & keep

    def back(g: Array) -> tuple[Array, BatchNorm]:
        g = np.where(passes, g, 0)
        dscale, doffset = (g * normal).sum(everywhere), g.sum(everywhere)
        dnormal = g * bn.scale
        dmean = -bn.scale * inverse * doffset
        dvariance = -0.5 * bn.scale * inverse**2 * dscale
        if counted is None:
            return dnormal * inverse, BatchNorm(dscale, doffset, dmean, dvariance)
        dx = dnormal * inverse + weight * (dmean + 2 * dvariance * (x - mean))
        return dx, BatchNorm(dscale, doffset, np.zeros_like(dmean), np.zeros_like(dvariance))

    return np.where(passes, y, 0), back
