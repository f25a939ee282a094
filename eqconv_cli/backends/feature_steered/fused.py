"""The compiled kernels for NumPy arrays, called through ctypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli import kernels
from eqconv_cli.backends.feature_steered import schedule
from eqconv_cli.backends.feature_steered.options import Fused
from eqconv_cli.backends.feature_steered.plan import Pattern
from eqconv_cli.kernels.doors import missing_kernels

Array = npt.NDArray[np.floating[Any]]

FORWARD = "feature_steered_forward"
BACKWARD = "feature_steered_backward"
#: The gradients in the order of the compiled operators' outputs; their bits tell which are wanted.
GRADIENTS = ("dx", "dcentre", "dvalues", "du", "dv", "dc", "dw", "db")

SECOND_ORDER = (
    "version='fused' has first derivatives only: take another version of feature_steered_convolution, for example "
    "'v2', to differentiate twice"
)


def missing(settings: Fused, rows: int, cols: int, edges: int) -> list[str]:
    """Why NumPy cannot have this computed by the compiled kernels; empty when it can."""
    return [*missing_kernels(settings.core or "cpu"), *schedule.too_large(rows, cols, edges)]


def pack(pattern: Pattern, settings: Fused, backward: bool = True) -> schedule.Packed:
    """The pattern as the kernels take it, made once."""
    parts = schedule.parts_for(settings.core or "cpu", backward, settings.deterministic)
    return schedule.packed(pattern, "numpy", parts, lambda made: made)


def forward(
    x: Array,
    centre: Array,
    values: Array,
    parameters: tuple[Array, Array, Array, Array, Array],
    pattern: Pattern,
    settings: Fused,
    flags: int,
) -> Array:
    """The result [rows, D].

    Args:
        x: features of the sources [cols, C].
        centre: features of the centres [rows, C]; ``x`` itself when centre i is column i.
        values: weights of the edges in the caller's order.
        parameters: u, v, c, W, b.
        pattern: the plan's.
        settings: where and how to compute.
        flags: what to compute.
    """
    fields = fields_of(x, centre, values, parameters, pattern, settings, flags, backward=False)
    y = np.empty((pattern.rows, parameters[-1].shape[0]), x.dtype)
    kernels.core(settings.core or "cpu").call(FORWARD, str(x.dtype), {**fields, "y": y})
    return y


def backward(
    dy: Array,
    y: Array | None,
    x: Array,
    centre: Array,
    values: Array,
    parameters: tuple[Array, Array, Array, Array, Array],
    pattern: Pattern,
    settings: Fused,
    flags: int,
) -> dict[str, Array]:
    """The gradients, named as in :data:`GRADIENTS`; ``dcentre`` only for centres with features of their own.

    Args:
        dy: the cotangent [rows, D].
        y: the result, when it went through ReLU.
        x, centre, values, parameters, pattern, settings, flags: as for :func:`forward`.
    """
    fields = fields_of(x, centre, values, parameters, pattern, settings, flags, backward=True)
    u, v, c, w, b = parameters
    like = {"dx": x, "dcentre": centre, "dvalues": values, "du": u, "dv": v, "dc": c, "dw": w, "db": b}
    if centre is x:
        del like["dcentre"]
    gradients = {name: np.empty(array.shape, x.dtype) for name, array in like.items()}
    results = {"dy": np.ascontiguousarray(dy, x.dtype), "y": y, **gradients}
    kernels.core(settings.core or "cpu").call(BACKWARD, str(x.dtype), {**fields, **results})
    return gradients


def fields_of(
    x: Array,
    centre: Array,
    values: Array,
    parameters: tuple[Array, Array, Array, Array, Array],
    pattern: Pattern,
    settings: Fused,
    flags: int,
    backward: bool,
) -> dict[str, Any]:
    """What forward and backward have in common of the struct ``eqc_feature_steered``."""
    packed = pack(pattern, settings, backward)
    contiguous = np.ascontiguousarray(x)
    centres = contiguous if centre is x else np.ascontiguousarray(centre)
    if centre is not x and centres.ctypes.data == contiguous.ctypes.data:
        # The same memory would tell the operation that both are one.
        centres = centres.copy()
    floats = {"values": values, **dict(zip("uvcwb", parameters, strict=True))}
    matrices, channels, outputs = parameters[3].shape
    return {
        "rows": packed.rows,
        "cols": packed.cols,
        "edges": packed.edges,
        "given_edges": pattern.given_edges,
        "channels": channels,
        "outputs": outputs,
        "matrices": matrices,
        "flags": flags,
        "threads": settings.threads,
        "chunks": packed.chunks,
        **packed.arrays,
        "x": contiguous,
        "centre": centres,
        **{name: np.ascontiguousarray(array) for name, array in floats.items()},
    }
