"""Checks of the operator's arguments on shapes and dtypes alone, the same for every framework.

Unknown extents are None (TensorFlow graphs); what is unknown is not checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from eqconv_cli.backends.feature_steered.options import Fused

FLOATS = ("float32", "float64")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
VERSIONS = ("auto", "v1", "v2", "v3", "gather_sum", "sparse_matmul", "pyg", "fused")
SEGMENT_SUMS = ("partition2d", "sorted", "unsorted")
SOFTMAXES = ("stable", "guarded", "raw")
ACTIVATIONS = (None, "relu")
VALIDATIONS = ("none", "cheap", "full")


class Operand(NamedTuple):
    """What is checked of an array: its extents (None = unknown) and the name of its dtype."""

    shape: tuple[int | None, ...]
    dtype: str


def _differ(first: int | None, second: int | None) -> bool:
    return first is not None and second is not None and first != second


def _text(shape: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if extent is None else str(extent) for extent in shape) + "]"


def check_choices(
    version: Any,
    transform_data_first: Any,
    segment_sum_impl: str,
    softmax: str,
    validate: str,
    activation: str | None = None,
) -> None:
    """Check the options of the operator; raises ValueError naming the option, the value and what is allowed."""
    if isinstance(version, Fused):
        version = "fused"
    for name, value, allowed in (
        ("version", version, VERSIONS),
        ("segment_sum_impl", segment_sum_impl, SEGMENT_SUMS),
        ("softmax", softmax, SOFTMAXES),
        ("validate", validate, VALIDATIONS),
        ("activation", activation, ACTIVATIONS),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is unknown: allowed: {', '.join(map(str, allowed))}")
    if transform_data_first not in (None, True, False, "edges"):
        raise ValueError(
            f"transform_data_first={transform_data_first!r} is unknown: allowed: None, True, False, 'edges'"
        )
    if transform_data_first == "edges" and version != "v1":
        raise ValueError(
            f"transform_data_first='edges' is the published order of version='v1' only, not of version={version!r}"
        )
    if version == "fused" and softmax == "raw":
        raise ValueError(
            "softmax='raw' is a published form that version='fused' does not compute: allowed: stable, guarded"
        )


def check_data(name: str, data: Operand) -> None:
    """``data`` is floating-point [A1, ..., An, V, C]; raises TypeError or ValueError."""
    if data.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {data.dtype}: allowed: {', '.join(FLOATS)}")
    if len(data.shape) < 2:
        raise ValueError(f"{name} has shape {_text(data.shape)}: it needs rank 2 or more, [A1, ..., An, V, C]")


def check_sizes(sizes: Operand, data: Operand) -> None:
    """``sizes`` is integer [A1, ..., An]; raises TypeError or ValueError."""
    if sizes.dtype not in INTEGERS:
        raise TypeError(f"sizes has dtype {sizes.dtype}: an integer dtype is needed")
    batch = data.shape[:-2]
    if len(sizes.shape) != len(batch) or any(_differ(a, b) for a, b in zip(sizes.shape, batch, strict=True)):
        raise ValueError(
            f"sizes has shape {_text(sizes.shape)} but data has batch dimensions {_text(batch)} "
            f"(expected sizes of shape {_text(batch)})"
        )


def check_neighbors(neighbors: Operand, data: Operand, data_out: Operand | None = None) -> None:
    """``neighbors`` is [A1, ..., An, Vo, Vi] and fits ``data`` [A1, ..., An, Vi, C]; raises ValueError or TypeError.

    Without ``data_out`` centre i uses row i of ``data``, so Vo <= Vi.
    """
    if neighbors.dtype != data.dtype:
        raise TypeError(
            f"neighbors has values of dtype {neighbors.dtype} but data has dtype {data.dtype}: they must be equal"
        )
    if len(neighbors.shape) != len(data.shape):
        raise ValueError(
            f"neighbors has rank {len(neighbors.shape)} but data has rank {len(data.shape)}: they must be equal"
        )
    batch = data.shape[:-2]
    if any(_differ(a, b) for a, b in zip(neighbors.shape, batch, strict=False)):
        raise ValueError(f"neighbors has batch dimensions {_text(neighbors.shape[:-2])} but data has {_text(batch)}")
    centres, sources = neighbors.shape[-2:]
    if _differ(sources, data.shape[-2]):
        raise ValueError(
            f"neighbors has {sources} columns but data has {data.shape[-2]} vertices "
            f"(expected neighbors of shape [A1, ..., An, Vo, {data.shape[-2]}])"
        )
    if data_out is None:
        if centres is not None and sources is not None and centres > sources:
            raise ValueError(
                f"neighbors has {centres} rows but data has {sources} vertices: centre i uses row i of data, so at "
                f"most {sources} rows are allowed; give data as a pair (data, centre data) for more"
            )
        return
    if len(data_out.shape) != len(data.shape) or any(
        _differ(a, b) for a, b in zip(data_out.shape[:-2], batch, strict=True)
    ):
        raise ValueError(
            f"data's centre part has shape {_text(data_out.shape)} but data has {_text(data.shape)}: "
            "rank and batch dimensions must be equal"
        )
    if _differ(data_out.shape[-2], centres):
        raise ValueError(f"data's centre part has {data_out.shape[-2]} vertices but neighbors has {centres} rows")
    if _differ(data_out.shape[-1], data.shape[-1]) or data_out.dtype != data.dtype:
        raise ValueError(
            f"data's centre part has {data_out.shape[-1]} channels of {data_out.dtype} but data has "
            f"{data.shape[-1]} of {data.dtype}: they must be equal"
        )


def check_parameters(
    data: Operand, var_u: Operand, var_v: Operand, var_c: Operand, var_w: Operand, var_b: Operand
) -> None:
    """u, v [C, M], c [M], w [M, C, D], b [D] fit each other and ``data``; raises TypeError or ValueError."""
    named = {"var_u": var_u, "var_v": var_v, "var_c": var_c, "var_w": var_w, "var_b": var_b}
    ranks = {"var_u": "[C, M]", "var_v": "[C, M]", "var_c": "[M]", "var_w": "[M, C, D]", "var_b": "[D]"}
    for name, operand in named.items():
        if operand.dtype != data.dtype:
            raise TypeError(f"{name} has dtype {operand.dtype} but data has dtype {data.dtype}: they must be equal")
        if len(operand.shape) != ranks[name].count(",") + 1:
            raise ValueError(
                f"{name} has shape {_text(operand.shape)}: expected {ranks[name]} "
                "(C channels, M weight matrices, D output channels)"
            )
    channels, matrices = data.shape[-1], var_u.shape[1]
    for name, axis, operand, wanted in (
        ("var_u", 0, var_u, f"[{channels}, M]"),
        ("var_v", 0, var_v, f"[{channels}, M]"),
        ("var_w", 1, var_w, f"[M, {channels}, D]"),
    ):
        if _differ(operand.shape[axis], channels):
            what = "rows" if axis == 0 else "input channels"
            raise ValueError(
                f"{name} has {operand.shape[axis]} {what} but data has {channels} channels "
                f"(expected {name} of shape {wanted})"
            )
    for name, extent, wanted in (
        ("var_v", var_v.shape[1], f"[C, {matrices}]"),
        ("var_c", var_c.shape[0], f"[{matrices}]"),
        ("var_w", var_w.shape[0], f"[{matrices}, C, D]"),
    ):
        if _differ(extent, matrices):
            raise ValueError(
                f"{name} is made for {extent} weight matrices but var_u for {matrices} "
                f"(expected {name} of shape {wanted})"
            )
    if matrices == 0:
        raise ValueError("var_u has 0 columns: at least one weight matrix is needed")
    if _differ(var_b.shape[0], var_w.shape[2]):
        raise ValueError(
            f"var_b has {var_b.shape[0]} entries but var_w has {var_w.shape[2]} output channels "
            f"(expected var_b of shape [{var_w.shape[2]}])"
        )
