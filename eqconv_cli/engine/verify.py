"""Proves variants equal to the float64 reference: values, gradients, invariants.

What a variant might do wrong decides how it is run. It first computes a decoy, another problem of the same shapes, so a
result kept from an earlier call shows. It then runs twice on fresh inputs that are compared with a copy afterwards. Its
results may not share memory with the inputs or the oracle. An exception becomes a row with the status "error".
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from eqconv_cli import frameworks, kernels
from eqconv_cli.catalog import Arrays, Check, Prepared, Problem, Variant
from eqconv_cli.engine.checks import check_gradient, check_value, describe, downloaded, judge, tolerance_of
from eqconv_cli.engine.comparison import compare
from eqconv_cli.engine.oracle import Instance
from eqconv_cli.engine.selection import Selection, selected_on
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
        if selected_on(variant, device)
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
    instance, decoy = instances.of(unit), instances.of(unit, decoy=True)

    def guarded(check: str, work: Callable[[Row], Row]) -> Row:
        mine = replace(row, check=check)
        try:
            return work(mine)
        except Exception as error:
            if plan.debug:
                raise
            return replace(mine, status="error", reason=describe(error))

    value = guarded("value", lambda mine: _check_value_after_decoy(mine, unit, instance, decoy))
    yield value
    if value.status == "error":
        return
    if plan.gradients and unit.variant.gradient:
        yield guarded("gradient", lambda mine: check_gradient(mine, _bound(unit, instance), instance))
    if plan.invariants and "invariants" in unit.problem.traits and unit.selection.family.checks:
        yield guarded("invariant", lambda mine: _check_invariants(mine, unit, instance))


def _bound(unit: _Unit, instance: Instance) -> Prepared:
    return unit.variant.bind(instance.fresh_inputs(), unit.dtype, unit.device)


def why_not(variant: Variant, problem: Problem, device: str) -> list[str]:
    """Every reason why a variant cannot run a problem on a device here; empty when it can."""
    reasons = list(problem.missing())
    here = frameworks.missing(variant.framework)
    if device not in variant.devices:
        reasons.append(f"{variant.algorithm} runs on {', '.join(variant.devices)}, not on {device}")
    elif not here:
        here = _missing_device(variant.framework, device)
        if not here:
            here = [why for target in variant.needs for why in _missing_kernels(target.format(device=device))]
    return [*reasons, *here, *variant.unavailable(problem)]


@cache
def _missing_device(framework: str, device: str) -> list[str]:
    return frameworks.missing_device(framework, device)


@cache
def _missing_kernels(target: str) -> list[str]:
    return kernels.missing(target)


def _tolerance(unit: _Unit, plan: VerifyPlan) -> float:
    """The tolerance of the run times the variant's declared factor."""
    limit = plan.tolerance
    if unit.dtype == "float64":
        limit = min(limit, unit.selection.family.float64_tolerance)
    return limit * unit.variant.tolerance_factor


def _check_value_after_decoy(row: Row, unit: _Unit, instance: Instance, decoy: Instance) -> Row:
    other = unit.variant.bind(decoy.fresh_inputs(), unit.dtype, unit.device)
    other.run()
    other.synchronize()
    given = instance.fresh_inputs()
    prepared = unit.variant.bind(given, unit.dtype, unit.device)
    why = "" if unit.variant.gradient else unit.variant.why_no_gradient
    return check_value(row, prepared, given, instance, why)


def _check_invariants(row: Row, unit: _Unit, instance: Instance) -> Row:
    unchanged: list[Arrays] = []

    def compute(inputs: Arrays) -> Arrays:
        if inputs is instance.inputs:
            unchanged[:] = unchanged or [_compute(inputs)]
            return unchanged[0]
        return _compute(inputs)

    def _compute(inputs: Arrays) -> Arrays:
        prepared = unit.variant.bind({n: a.copy() for n, a in inputs.items()}, unit.dtype, unit.device)
        return downloaded(prepared, prepared.run())

    parts = [
        part
        for check in unit.selection.family.checks
        for part in _invariant_parts(check, compute, instance, tolerance_of(row))
    ]
    return judge(row, parts, [])


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
        tolerance=_tolerance(unit, plan),
        repeat=shlex.join([*words, *plan.repeat_options]),
    )
