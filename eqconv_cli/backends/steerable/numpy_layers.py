"""The steerable convolution in NumPy: the filter of the weights, then a correlation by one matrix product a group."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable import arguments
from eqconv_cli.backends.steerable.bias import bias_map
from eqconv_cli.backends.steerable.convolution import Pair, both, check_padding_mode, output_side
from eqconv_cli.backends.steerable.numpy_expansion import expand, expand_backward
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.backends.steerable.plan import Plan

Array = npt.NDArray[Any]

#: NumPy's names of the padding modes.
_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def steerable_conv2d(
    plan: Plan,
    x: Array,
    weights: Array,
    bias: Array | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    padding_mode: str = "zeros",
    groups: int = 1,
    algorithm: str = "auto",
    settings: Fused | None = None,
) -> Array:
    """The layer: a correlation with the filter of the weights; its dilation is that of the plan.

    Args:
        plan: of the layer.
        x: [B, groups · in channels of the plan, H, W], float32 or float64.
        weights: [plan.weights_size] in the dtype of ``x``.
        bias: one number for each trivial irrep of an out field, in the order of the fields; None for 0.
        stride, padding: of both axes, or (height, width).
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        groups: the plan is of one of them.
        algorithm, settings: of the expansion, see :func:`~eqconv_cli.backends.steerable.numpy_expansion.expand`.

    Returns:
        [B, out channels, H', W'], H' = floor((H + 2 padding - dilation (k - 1) - 1) / stride) + 1.

    Raises:
        TypeError, ValueError: an argument is not allowed.
        Unavailable: a compiled algorithm is asked for and the kernels are not built.
    """
    at = _geometry(plan, x, weights, stride, padding, padding_mode, groups)
    matrix = None if bias is None else _bias_matrix(plan, bias, x.dtype)
    filter = expand(plan, weights, algorithm=algorithm, settings=settings)
    y = _by_groups(filter, groups) @ _windows(plan, _padded(x, at), at)
    y = np.ascontiguousarray(np.moveaxis(y.reshape(-1, len(x), *at.side), 0, 1))
    if matrix is not None:
        y += (matrix @ bias)[:, None, None]
    return y


def steerable_conv2d_gradients(
    dy: Array,
    plan: Plan,
    x: Array,
    weights: Array,
    bias: Array | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    padding_mode: str = "zeros",
    groups: int = 1,
    algorithm: str = "auto",
    settings: Fused | None = None,
) -> dict[str, Array]:
    """Gradients of ``x``, ``weights`` and, where it is given, ``bias``, for ``dy`` [B, out channels, H', W'].

    The other arguments and the errors are those of :func:`steerable_conv2d`.
    """
    at = _geometry(plan, x, weights, stride, padding, padding_mode, groups)
    wanted = (len(x), plan.out_type.size, *at.side)
    if dy.shape != wanted or dy.dtype != x.dtype:
        raise ValueError(f"dy has shape {dy.shape} and dtype {dy.dtype}: expected {wanted}, {x.dtype}")
    matrix = None if bias is None else _bias_matrix(plan, bias, x.dtype)
    filter = expand(plan, weights, algorithm=algorithm, settings=settings)
    padded = _padded(x, at)
    rows = np.moveaxis(dy, 1, 0).reshape(groups, plan.out_type.size // groups, -1)
    dfilter = (rows @ _windows(plan, padded, at).swapaxes(1, 2)).reshape(filter.shape)
    dwindows = _by_groups(filter, groups).swapaxes(1, 2) @ rows
    taps = dwindows.reshape(-1, plan.sampling.pixels, len(x), *at.side).transpose(1, 2, 0, 3, 4)
    dpadded = np.zeros_like(padded)
    for view, tap in zip(_tap_views(plan, dpadded, at), taps, strict=True):
        view += tap
    found = {
        "x": _unpadded(dpadded, x.shape[2:], at),
        "weights": expand_backward(plan, dfilter, algorithm=algorithm, settings=settings),
    }
    return found if matrix is None else {**found, "bias": matrix.T @ dy.sum((0, 2, 3))}


class _Geometry(NamedTuple):
    """A convolution of images of one size."""

    stride: Pair
    padding: Pair
    mode: str
    groups: int
    #: (H', W').
    side: Pair


def _geometry(
    plan: Plan, x: Array, weights: Array, stride: Any, padding: Any, padding_mode: str, groups: int
) -> _Geometry:
    """Raises TypeError or ValueError for what is not allowed."""
    arguments.check_float("x", x.dtype.name)
    if weights.dtype != x.dtype:
        raise TypeError(f"x has dtype {x.dtype} but weights has dtype {weights.dtype}: they must be equal")
    plan.out_type.split(groups)
    channels = groups * plan.in_type.size
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x has shape {x.shape}: expected [B, {channels}, H, W], {groups} times {plan.in_type}")
    check_padding_mode(padding_mode)
    steps, widths, sampling = both("stride", stride, 1), both("padding", padding, 0), plan.sampling
    down, right = (
        output_side(extent, sampling.size, width, step, sampling.dilation)
        for extent, width, step in zip(x.shape[2:], widths, steps, strict=True)
    )
    return _Geometry(steps, widths, padding_mode, groups, (down, right))


def _bias_matrix(plan: Plan, bias: Array, dtype: np.dtype[Any]) -> Array:
    """[out channels, biases]; raises TypeError or ValueError for a bias that does not fit."""
    found = bias_map(plan.out_type)
    if bias.dtype != dtype:
        raise TypeError(f"bias has dtype {bias.dtype} but x has dtype {dtype}: they must be equal")
    if bias.shape != (found.count,):
        raise ValueError(f"bias has shape {bias.shape}: expected ({found.count},), one for each trivial irrep")
    return found.matrix().astype(dtype)


def _widths(at: _Geometry) -> list[tuple[int, int]]:
    return [(0, 0), (0, 0), *((width, width) for width in at.padding)]


def _padded(x: Array, at: _Geometry) -> Array:
    made: Array = np.pad(x, _widths(at), mode=_MODES[at.mode])  # type: ignore[call-overload]
    return made


def _unpadded(dpadded: Array, size: tuple[int, ...], at: _Geometry) -> Array:
    """The gradient of :func:`_padded`: a pixel has those of all its copies."""
    (down, right), (height, width) = at.padding, size
    if at.mode == "zeros":
        return np.ascontiguousarray(dpadded[:, :, down : down + height, right : right + width])
    made = dpadded
    for axis, extent, padding in ((2, height, down), (3, width, right)):
        source = np.pad(np.arange(extent), padding, mode=_MODES[at.mode])  # type: ignore[call-overload]
        lines = np.moveaxis(made, axis, 0)
        summed = np.zeros((extent, *lines.shape[1:]), made.dtype)
        np.add.at(summed, source, lines)
        made = np.moveaxis(summed, 0, axis)
    return np.ascontiguousarray(made)


def _tap_views(plan: Plan, padded: Array, at: _Geometry) -> list[Array]:
    """For each tap the padded pixels that it meets, [B, C, H', W']."""
    k, step = plan.sampling.size, plan.sampling.dilation
    down, right = ((n - 1) * stride + 1 for n, stride in zip(at.side, at.stride, strict=True))
    return [
        padded[:, :, i * step : i * step + down : at.stride[0], j * step : j * step + right : at.stride[1]]
        for i in range(k)
        for j in range(k)
    ]


def _windows(plan: Plan, padded: Array, at: _Geometry) -> Array:
    """What each output pixel reads, [groups, in channels · S, B · H' · W']."""
    taps = np.stack(_tap_views(plan, padded, at))
    return taps.transpose(2, 0, 1, 3, 4).reshape(at.groups, plan.in_type.size * plan.sampling.pixels, -1)


def _by_groups(filter: Array, groups: int) -> Array:
    """[groups, out channels of a group, in channels · S]."""
    return filter.reshape(groups, len(filter) // groups, -1)
