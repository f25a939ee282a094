"""Proves variants equal to the float64 reference: values, gradients, invariants.

What a variant might do wrong decides how it is run. It first computes a decoy, another problem of the same shapes, so a
result kept from an earlier call shows. It then runs twice on fresh inputs that are compared with a copy afterwards. Its
results may not share memory with the inputs or the oracle. An exception becomes a row with the status "error".
"""

from __future__ import annotations

import shlex
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from eqconv_cli import frameworks
from eqconv_cli.catalog import Arrays, Check, Prepared, Problem, Variant
from eqconv_cli.engine.comparison import compare, same_arrays
from eqconv_cli.engine.oracle import Instance
from eqconv_cli.engine.selection import Selection
from eqconv_cli.events import Event, Note, Part, Row, RowFinished, RunFinished, RunStarted, UnitFinished, UnitStarted


@dataclass(frozen=True)
class VerifyPlan:
    """Everything that ``verify`` needs to know."""

    selections: tuple[Selection, ...]
    dtypes: tuple[str, ...] = ("float32", "float64")
    devices: tuple[str, ...] = ("cpu",)
    tolerance: float = 1e-5
    seed: int = 0
    gradients: bool = True
    invariants: bool = True
    #: Let exceptions of variants through instead of making rows of them.
    debug: bool = False
    #: Options to add to the line that repeats a failure, for example ``("--mesh", "bunny.obj")``.
    repeat_options: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Unit:
    """One variant on one problem, dtype and device."""

    selection: Selection
    variant: Variant
    problem: Problem
    dtype: str
    device: str

    @property
    def label(self) -> str:
        return f"{self.variant.name} · {self.problem.name} · {self.dtype} · {self.device}"


def verify(plan: VerifyPlan) -> Iterator[Event]:
    """Run every check of every selected variant and yield the events.

    An interrupt (Ctrl-C) ends the run after the rows that are done; the closing event says so.
    """
    started = time.perf_counter()
    units = [
        _Unit(selection, variant, problem, dtype, device)
        for selection in plan.selections
        for problem in selection.problems
        for device in plan.devices
        for variant in selection.variants
        for dtype in plan.dtypes
    ]
    counts: Counter[str] = Counter()
    interrupted = False
    yield RunStarted(len(units))
    for selection in plan.selections:
        if selection.left_out:
            names = ", ".join(selection.left_out)
            yield Note(f"{selection.family.name}: left to --full, for they compile for long: {names}")
    instances = _Instances(plan.seed)
    try:
        for unit in units:
            yield UnitStarted(unit.label)
            for row in _verify_unit(unit, plan, instances):
                counts[row.status] += 1
                yield RowFinished(row)
            yield UnitFinished()
    except KeyboardInterrupt:
        interrupted = True
    yield RunFinished(dict(counts), time.perf_counter() - started, interrupted, {"seed": plan.seed})


class _Instances:
    """The instances of the problem at hand; those of the last one are dropped when the next begins."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._problem = ""
        self._made: dict[tuple[str, int], Instance] = {}

    def of(self, unit: _Unit, decoy: bool = False) -> Instance:
        if unit.problem.name != self._problem:
            self._problem, self._made = unit.problem.name, {}
        seed = self._seed + 1 if decoy else self._seed
        key = (unit.dtype, seed)
        if key not in self._made:
            self._made[key] = Instance(unit.selection.family, unit.problem, unit.dtype, seed, unit.selection.case)
        return self._made[key]


def _verify_unit(unit: _Unit, plan: VerifyPlan, instances: _Instances) -> Iterator[Row]:
    row = _row_template(unit, plan)
    reasons = why_not(unit.variant, unit.problem, unit.device)
    if reasons:
        yield replace(row, check="value", status="skip", reason="; ".join(reasons))
        return
    tolerance = unit_tolerance(unit, plan)
    instance, decoy = instances.of(unit), instances.of(unit, decoy=True)

    def guarded(check: str, work: Callable[[], Row]) -> Row:
        try:
            return work()
        except Exception as error:
            if plan.debug:
                raise
            return replace(row, check=check, status="error", reason=_describe(error))

    value = guarded("value", lambda: _check_value(row, unit, instance, decoy, tolerance))
    yield value
    if value.status == "error":
        return
    if plan.gradients and unit.variant.gradient:
        yield guarded("gradient", lambda: _check_gradient(row, unit, instance, tolerance))
    if plan.invariants and "invariants" in unit.problem.traits and unit.selection.family.checks:
        yield guarded("invariant", lambda: _check_invariants(row, unit, instance, tolerance))


def why_not(variant: Variant, problem: Problem, device: str) -> list[str]:
    """Every reason why a variant cannot run a problem on a device here; empty when it can."""
    reasons = list(problem.missing())
    here = frameworks.missing(variant.framework)
    if device not in variant.devices:
        reasons.append(f"{variant.algorithm} runs on {', '.join(variant.devices)}, not on {device}")
    elif not here:
        here = _missing_device(variant.framework, device)
    return [*reasons, *here, *variant.unavailable(problem)]


@cache
def _missing_device(framework: str, device: str) -> list[str]:
    return frameworks.missing_device(framework, device)


def unit_tolerance(unit: _Unit, plan: VerifyPlan) -> float:
    """The tolerance of the run times the variant's declared factor."""
    limit = plan.tolerance
    if unit.dtype == "float64":
        limit = min(limit, unit.selection.family.float64_tolerance)
    return limit * unit.variant.tolerance_factor


def _check_value(row: Row, unit: _Unit, instance: Instance, decoy: Instance, tolerance: float) -> Row:
    other = unit.variant.bind(decoy.fresh_inputs(), unit.dtype, unit.device)
    other.run()
    other.synchronize()
    given = instance.fresh_inputs()
    prepared = unit.variant.bind(given, unit.dtype, unit.device)
    parts: list[Part] = []
    faults: list[str] = []
    floor = unit.selection.family.value_floor
    for suffix in ("", ", second run"):
        results = _downloaded(prepared, prepared.run())
        faults += _structure_faults(results, instance.outputs, unit.dtype)
        faults += _sharing_faults(results, {**given, **instance.inputs, **instance.outputs})
        new = _compare_all(results, instance.outputs, tolerance, floor, suffix)
        # The second run is named only where it differs: it normally repeats the first to the last digit or nearly so.
        parts += [p for p in new if not suffix or not p.passed]
    faults += _input_faults(prepared.inputs(), instance.inputs)
    why = "" if unit.variant.gradient else unit.variant.why_no_gradient
    return _judge(replace(row, check="value"), parts, faults, why)


def _check_gradient(row: Row, unit: _Unit, instance: Instance, tolerance: float) -> Row:
    prepared = unit.variant.bind(instance.fresh_inputs(), unit.dtype, unit.device)
    cotangents = {name: prepared.upload(g.copy()) for name, g in instance.cotangents.items()}
    parts: list[Part] = []
    faults: list[str] = []
    floor = unit.selection.family.gradient_floor
    for suffix in ("", ", second run"):
        results = _downloaded(prepared, prepared.run_backward(cotangents))
        faults += _structure_faults(results, instance.gradients, unit.dtype)
        faults += _sharing_faults(results, {**instance.inputs, **instance.gradients})
        new = _compare_all(results, instance.gradients, tolerance, floor, suffix)
        parts += [p for p in new if not suffix or not p.passed]
    faults += _input_faults(prepared.inputs(), instance.inputs)
    for name, g in instance.cotangents.items():
        if not same_arrays(g, prepared.download(cotangents[name])):
            faults.append(f"the cotangent {name} was changed by the run")
    return _judge(replace(row, check="gradient"), parts, faults)


def _check_invariants(row: Row, unit: _Unit, instance: Instance, tolerance: float) -> Row:
    unchanged: list[Arrays] = []

    def compute(inputs: Arrays) -> Arrays:
        if inputs is instance.inputs:
            unchanged[:] = unchanged or [_compute(inputs)]
            return unchanged[0]
        return _compute(inputs)

    def _compute(inputs: Arrays) -> Arrays:
        prepared = unit.variant.bind({n: a.copy() for n, a in inputs.items()}, unit.dtype, unit.device)
        return _downloaded(prepared, prepared.run())

    parts = [
        part for check in unit.selection.family.checks for part in _invariant_parts(check, compute, instance, tolerance)
    ]
    return _judge(replace(row, check="invariant"), parts, [])


def _invariant_parts(
    check: Check, compute: Callable[[Arrays], Arrays], instance: Instance, tolerance: float
) -> list[Part]:
    pairs = check.run(compute, instance.inputs, instance.seed)
    return [
        compare(
            f"{check.name} {pair.name}".strip(), pair.actual, pair.expected.astype(np.float64), tolerance, pair.floor
        )
        for pair in pairs
    ]


def _downloaded(prepared: Prepared, results: Mapping[str, Any]) -> dict[str, np.ndarray]:
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
        f"{name} has dtype {array.dtype}, expected {dtype}" for name, array in results.items() if array.dtype != dtype
    ]
    return faults


def _sharing_faults(results: Arrays, others: Arrays) -> list[str]:
    return [
        f"{name} shares memory with {other}"
        for name, array in results.items()
        for other, against in others.items()
        if np.may_share_memory(array, against)
    ]


def _input_faults(now: Arrays, before: Arrays) -> list[str]:
    return [
        f"the input {name} was changed by the run"
        for name, array in now.items()
        if name in before and not same_arrays(before[name], np.asarray(array))
    ]


def _judge(row: Row, parts: Sequence[Part], faults: Sequence[str], remark: str = "") -> Row:
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


def _row_template(unit: _Unit, plan: VerifyPlan) -> Row:
    family = unit.selection.family
    words = ["eqconv", "verify", family.name, "--only", unit.variant.name]
    if not plan.repeat_options or unit.problem in family.problems:
        words += ["--problem", unit.problem.name.split("[")[0]]
    words += ["--dtype", unit.dtype, "--device", unit.device, "--seed", str(plan.seed), "--tol", f"{plan.tolerance:g}"]
    for name, value in unit.problem.changes.items():
        words += ["--set", f"{name}={value}"]
    return Row(
        family=family.name,
        problem=unit.problem.name,
        variant=unit.variant.name,
        algorithm=unit.variant.algorithm,
        framework=unit.variant.framework,
        device=unit.device,
        dtype=unit.dtype,
        check="value",
        status="error",
        tolerance=unit_tolerance(unit, plan),
        repeat=shlex.join([*words, *plan.repeat_options]),
    )


def _describe(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]} ({where}; --debug shows the traceback)"
