"""Proves variants equal to the float64 reference: values, gradients, invariants.

What a variant might do wrong decides how it is run. It first computes a decoy, another problem of the same shapes, so a
result kept from an earlier call shows. It then runs twice on fresh inputs that are compared with a copy afterwards. Its
results may not share memory with the inputs or the oracle. An exception becomes a row with the status "error".
"""

from __future__ import annotations

import importlib.util
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from eqconv_cli import frameworks, kernels
from eqconv_cli.catalog import Arrays, Check, Family, Prepared, Problem, Variant
from eqconv_cli.engine.checks import check_gradient, check_value, describe, downloaded, judge, tolerance_of
from eqconv_cli.engine.comparison import compare, is_discrete
from eqconv_cli.engine.oracle import Instance
from eqconv_cli.engine.overview import INVARIANT, overview, wanted
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
    #: Globs of check names; only these are run. Empty: all.
    checks: tuple[str, ...] = ()
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
        unit
        for selection in plan.selections
        for problem in selection.problems
        for device in plan.devices
        for variant in selection.variants
        if selected_on(variant, device)
        for dtype in plan.dtypes
        for unit in [_Unit(selection, variant, problem, dtype, device)]
        if _planned(unit, plan)
    ]
    counts: Counter[str] = Counter()
    rows: list[Row] = []
    interrupted = False
    yield RunStarted(len(units))
    for selection in plan.selections:
        if selection.left_out:
            names = ", ".join(selection.left_out)
            yield Note(f"{selection.label}: left to --full, for they compile for long: {names}")
    instances = _Instances(plan.seed)
    absent = AbsentPeers()
    try:
        for unit in units:
            yield UnitStarted(unit.label)
            reasons = why_not(unit.variant, unit.problem, unit.device)
            if not (reasons and absent.known(unit.selection.family, unit.variant)):
                for row in _verify_unit(unit, plan, instances, reasons):
                    counts[row.status] += 1
                    rows.append(row)
                    yield RowFinished(row)
            yield UnitFinished()
    except KeyboardInterrupt:
        interrupted = True
    facts: dict[str, Any] = {"seed": plan.seed}
    checked = overview(plan.selections, rows, plan.checks)
    if checked:
        facts["checks"] = [asdict(check) for check in checked]
    yield RunFinished(dict(counts), time.perf_counter() - started, interrupted, facts)


class _Instances:
    """The instances of the problem at hand; those of the last one are dropped when the next begins."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._problem: tuple[str, ...] = ()
        self._made: dict[tuple[str, int], Instance] = {}

    def of(self, unit: _Unit, decoy: bool = False) -> Instance:
        problem = (unit.selection.family.name, unit.selection.operation.name, unit.problem.name)
        if problem != self._problem:
            self._problem, self._made = problem, {}
        seed = self._seed + 1 if decoy else self._seed
        key = (unit.dtype, seed)
        if key not in self._made:
            self._made[key] = Instance(unit.selection.operation, unit.problem, unit.dtype, seed)
        return self._made[key]


Work = Callable[[Row, _Unit, _Instances], Row | None]


def _planned(unit: _Unit, plan: VerifyPlan) -> list[tuple[str, Work]]:
    """The checks of a unit by name, those that were asked for."""
    operation = unit.selection.operation
    planned: list[tuple[str, Work]] = [(operation.value_check, _check_value_after_decoy)]
    if plan.gradients and operation.reference_gradients is not None and unit.variant.gradient:
        planned.append((operation.gradient_check, _check_gradient))
    if plan.invariants and "invariants" in unit.problem.traits:
        if any(not check.own_row for check in operation.checks):
            planned.append((INVARIANT, _check_invariants))
        planned += [(check.name, partial(_check_own_row, check)) for check in operation.checks if check.own_row]
    return [(name, work) for name, work in planned if wanted(name, plan.checks)]


def _verify_unit(unit: _Unit, plan: VerifyPlan, instances: _Instances, reasons: Sequence[str]) -> Iterator[Row]:
    planned = _planned(unit, plan)
    row = _row_template(unit, plan)
    if reasons:
        yield replace(row, check=planned[0][0], status="skip", reason="; ".join(reasons))
        return
    for name, work in planned:
        mine = replace(row, check=name)
        try:
            done = work(mine, unit, instances)
        except Exception as error:
            if plan.debug:
                raise
            done = replace(mine, status="error", reason=describe(error))
        if done is not None:
            yield done
            if done.status == "error" and work is _check_value_after_decoy:
                return


def _bound(unit: _Unit, instance: Instance) -> Prepared:
    return unit.variant.bind(instance.fresh_inputs(), unit.dtype, unit.device)


def why_not(variant: Variant, problem: Problem, device: str) -> list[str]:
    """Every reason why a variant cannot run a problem on a device here; empty when it can."""
    reasons = list(problem.missing())
    here = [*frameworks.missing(variant.framework), *missing_modules(variant)]
    if device not in variant.devices:
        reasons.append(f"{variant.algorithm} runs on {', '.join(variant.devices)}, not on {device}")
    elif not here:
        here = _missing_device(variant.framework, device)
        if not here:
            here = [why for target in variant.needs for why in _missing_kernels(target.format(device=device))]
    return [*reasons, *here, *variant.unavailable(problem)]


def missing_modules(variant: Variant) -> list[str]:
    """The packages that a variant needs besides its framework and that are not installed, each with its remedy."""
    return [
        f"{module} is not installed (pip install {module.partition('.')[0].replace('_', '-')})"
        for module in variant.requires
        if not _importable(module)
    ]


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that a dotted name starts with
        return False


class AbsentPeers:
    """Peers that are not installed: one row of a run says so, and no other."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, tuple[str, ...]]] = set()

    def known(self, family: Family, variant: Variant) -> bool:
        """Whether this is a peer that is not installed and has had its row."""
        if not variant.peer or not missing_modules(variant):
            return False
        key = (family.name, variant.requires)
        seen = key in self._seen
        self._seen.add(key)
        return seen


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


def _check_value_after_decoy(row: Row, unit: _Unit, instances: _Instances) -> Row:
    other = unit.variant.bind(instances.of(unit, decoy=True).fresh_inputs(), unit.dtype, unit.device)
    other.run()
    other.synchronize()
    instance = instances.of(unit)
    given = instance.fresh_inputs()
    prepared = unit.variant.bind(given, unit.dtype, unit.device)
    why = "" if unit.variant.gradient else unit.variant.why_no_gradient
    if unit.selection.operation.exact:
        row = replace(row, tolerance=0.0)
    return check_value(row, prepared, given, instance, why)


def _check_gradient(row: Row, unit: _Unit, instances: _Instances) -> Row:
    instance = instances.of(unit)
    return check_gradient(row, _bound(unit, instance), instance)


def _check_invariants(row: Row, unit: _Unit, instances: _Instances) -> Row:
    """The checks that share a row; they also share the result of the unchanged inputs."""
    instance = instances.of(unit)
    unchanged: list[Arrays] = []

    def compute(inputs: Arrays) -> Arrays:
        if inputs is instance.inputs:
            unchanged[:] = unchanged or [_compute(unit, inputs)]
            return unchanged[0]
        return _compute(unit, inputs)

    parts = [
        part
        for check in unit.selection.operation.checks
        if not check.own_row
        for part in _invariant_parts(check, f"{check.name} ", compute, instance, tolerance_of(row))
    ]
    return judge(row, parts, [])


def _check_own_row(check: Check, row: Row, unit: _Unit, instances: _Instances) -> Row | None:
    """One check with a row of its own; None when it means nothing for these inputs."""
    row = row if check.tolerance is None else replace(row, tolerance=check.tolerance)
    parts = _invariant_parts(check, "", partial(_compute, unit), instances.of(unit), tolerance_of(row))
    return judge(row, parts, []) if parts else None


def _compute(unit: _Unit, inputs: Arrays) -> Arrays:
    prepared = unit.variant.bind({n: a.copy() for n, a in inputs.items()}, unit.dtype, unit.device)
    return downloaded(prepared, prepared.run())


def _invariant_parts(
    check: Check, prefix: str, compute: Callable[[Arrays], Arrays], instance: Instance, tolerance: float
) -> list[Part]:
    limit = tolerance if check.tolerance is None else check.tolerance
    return [
        compare(
            f"{prefix}{pair.name}".strip() or check.name,
            pair.actual,
            pair.expected if is_discrete(pair.expected) else pair.expected.astype(np.float64),
            limit,
            pair.floor,
        )
        for pair in check.run(compute, instance.inputs, instance.seed)
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
        operation=unit.selection.operation.name,
        device=unit.device,
        dtype=unit.dtype,
        check=unit.selection.operation.value_check,
        status="error",
        tolerance=_tolerance(unit, plan),
        repeat=shlex.join([*words, *plan.repeat_options]),
    )
