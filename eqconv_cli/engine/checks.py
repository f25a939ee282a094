"""One comparison of one prepared variant with the oracle: what is looked at, and the row that comes of it.

A variant runs twice on the same arrays. Its results must have the right names, dtypes and shapes, may not share memory
with the inputs or the oracle, must be right both times, and the inputs must be unchanged afterwards.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eqconv_cli.catalog import Arrays, Prepared
from eqconv_cli.engine.comparison import compare, is_discrete, same_arrays, same_kind
from eqconv_cli.engine.oracle import Instance
from eqconv_cli.events import Part, Row


def check_value(row: Row, prepared: Prepared, given: Arrays, instance: Instance, remark: str = "") -> Row:
    """Compare the outputs of two runs with the oracle's.

    Args:
        row: the row to finish; its tolerance is used.
        prepared: the variant, bound to ``given``.
        given: the arrays that the variant got; its results may not share memory with them.
        instance: the problem and its oracle.
        remark: what a row that passes says.
    """
    parts: list[Part] = []
    faults: list[str] = []
    for suffix in ("", ", second run"):
        results = downloaded(prepared, prepared.run())
        faults += _structure_faults(results, instance.outputs, instance.dtype)
        faults += _sharing_faults(results, given, instance.inputs, instance.outputs)
        new = _compare_all(results, instance.outputs, tolerance_of(row), instance.operation.value_floor, suffix)
        # The second run is named only where it is wrong: it normally repeats the first to the last digit or nearly so.
        parts += [p for p in new if not suffix or not p.passed]
    faults += _input_faults(prepared.inputs(), instance.inputs)
    return judge(row, parts, faults, remark)


def check_gradient(row: Row, prepared: Prepared, instance: Instance) -> Row:
    """Compare the gradients of two backward passes with the oracle's; arguments as for :func:`check_value`."""
    cotangents = {name: prepared.upload(g.copy()) for name, g in instance.cotangents.items()}
    parts: list[Part] = []
    faults: list[str] = []
    for suffix in ("", ", second run"):
        results = downloaded(prepared, prepared.run_backward(cotangents))
        faults += _structure_faults(results, instance.gradients, instance.dtype)
        faults += _sharing_faults(results, prepared.inputs(), instance.inputs, instance.gradients)
        new = _compare_all(results, instance.gradients, tolerance_of(row), instance.operation.gradient_floor, suffix)
        parts += [p for p in new if not suffix or not p.passed]
    faults += _input_faults(prepared.inputs(), instance.inputs)
    for name, g in instance.cotangents.items():
        if not same_arrays(g, prepared.download(cotangents[name])):
            faults.append(f"the cotangent {name} was changed by the run")
    return judge(row, parts, faults)


def tolerance_of(row: Row) -> float:
    """The row's tolerance; without one only exact results pass."""
    return 0.0 if row.tolerance is None else row.tolerance


def judge(row: Row, parts: Sequence[Part], faults: Sequence[str], remark: str = "") -> Row:
    """The finished row: pass only if something was compared and nothing is wrong."""
    wrong = list(dict.fromkeys(faults)) + [f"{part.name} {part.detail}" for part in parts if not part.passed]
    if not parts:
        wrong.append("nothing was compared")
    worst = max(parts, key=_severity, default=None)
    return replace(
        row,
        status="fail" if wrong else "pass",
        reason="; ".join(wrong) if wrong else remark,
        max_abs=worst.max_abs if worst else None,
        max_rel=worst.max_rel if worst else None,
        parts=tuple(parts),
        repeat=row.repeat if wrong else None,
    )


def _severity(part: Part) -> tuple[bool, float]:
    """Orders parts by how bad they are; a NaN error is worse than any number."""
    return not part.passed, part.max_rel if part.max_rel == part.max_rel else float("inf")


def describe(error: Exception) -> str:
    """An exception in one line: type, message, place."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]} ({where}; --debug shows the traceback)"


def downloaded(prepared: Prepared, results: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Results as NumPy arrays, when all work is done."""
    prepared.synchronize()
    return {name: prepared.download(result) for name, result in results.items()}


def _compare_all(results: Arrays, expected: Arrays, tolerance: float, floor: float, suffix: str) -> list[Part]:
    return [
        compare(name + suffix, results[name], expected[name], tolerance, floor) for name in expected if name in results
    ]


def _structure_faults(results: Arrays, expected: Arrays, dtype: str) -> list[str]:
    faults = [f"{name} is missing" for name in expected if name not in results]
    faults += [f"{name} was not asked for" for name in results if name not in expected]
    faults += [
        f"{name} has dtype {array.dtype}, expected {dtype}"
        for name, array in results.items()
        if not _dtype_is_right(array, expected.get(name), dtype)
    ]
    return faults


def _dtype_is_right(array: np.ndarray, expected: np.ndarray | None, dtype: str) -> bool:
    """The dtype of the run, or where the oracle's array holds integers or booleans, its kind in any width."""
    if expected is not None and is_discrete(expected):
        return same_kind(array, expected)
    return bool(array.dtype == dtype)


def _sharing_faults(results: Arrays, *others: Arrays) -> list[str]:
    return [
        f"{name} shares memory with {other}"
        for name, array in results.items()
        for arrays in others
        for other, against in arrays.items()
        if np.may_share_memory(array, against)
    ]


def _input_faults(now: Arrays, before: Arrays) -> list[str]:
    return [
        f"the input {name} was changed by the run"
        for name, array in now.items()
        if name in before and not same_arrays(before[name], np.asarray(array))
    ]
