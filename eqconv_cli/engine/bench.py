"""Times variants side by side: verified in the same run, in interleaved rounds, as ratios with intervals.

Every variant that is timed has first been compared with the oracle on the very arrays that are timed; one that fails is
reported and not timed. In each round every variant takes its turn, in random order, so a machine that changes its speed
changes all of them, and ratios are taken round by round.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eqconv_cli import frameworks
from eqconv_cli.catalog import Cost, Prepared, Problem, Staged, Variant
from eqconv_cli.engine import ceilings, heap, memory, statistics
from eqconv_cli.engine.break_even import break_evens
from eqconv_cli.engine.checks import check_gradient, check_value, describe
from eqconv_cli.engine.oracle import Instance
from eqconv_cli.engine.selection import Selection
from eqconv_cli.engine.verify import AbsentPeers, why_not
from eqconv_cli.events import Event, Note, Row, RowFinished, RunFinished, RunStarted, UnitFinished, UnitStarted

PASSES = ("forward", "forward+backward")
#: A sample shorter than this is repeated inside until it is longer: the clock's own cost stays below a thousandth.
_SHORTEST_SAMPLE_S = 2e-3
#: Fewest rounds for an interval to mean anything, kept even when the time budget is spent.
MIN_ROUNDS = 5
#: Runs of which the time of a stage is the median.
STAGE_RUNS = 7


@dataclass(frozen=True)
class BenchPlan:
    """Everything that ``bench`` needs to know."""

    selections: tuple[Selection, ...]
    passes: tuple[str, ...] = PASSES
    dtype: str = "float32"
    device: str = "cpu"
    seed: int = 0
    tolerance: float = 1e-5
    rounds: int = 11
    #: Seconds for all the rounds together; None for as long as they take.
    time_budget: float | None = None
    memory: bool = True
    threshold: float = 0.05
    threads: int | None = None
    plugin: str | None = None
    files: tuple[tuple[str, Path], ...] = ()
    debug: bool = False


@dataclass
class _Contender:
    """A variant that passed its comparison and takes part in the rounds."""

    variant: Variant
    row: Row
    prepared: Prepared
    work: Callable[[], Any]
    repeats: int = 1


@dataclass(frozen=True)
class _Group:
    """Variants that are timed against each other: one problem, one pass."""

    selection: Selection
    problem: Problem
    check: str


def bench(plan: BenchPlan) -> Iterator[Event]:
    """Verify and time every selected variant and yield the events; Ctrl-C ends the run after the rows that are done."""
    started = time.perf_counter()
    groups = [
        _Group(selection, problem, check)
        for selection in plan.selections
        for problem in selection.problems
        for check in (selection.case.passes if selection.case else PASSES)
        if check in plan.passes
        if check == "forward" or selection.operation.reference_gradients is not None
    ]
    counts: Counter[str] = Counter()
    interrupted = False
    limits: ceilings.Ceilings | None = None
    per_group = sum(len(group.selection.variants) * (2 if plan.memory else 1) + plan.rounds for group in groups)
    yield RunStarted(per_group)
    for selection in plan.selections:
        if selection.left_out:
            yield Note(
                f"{selection.label}: {len(selection.variants)} headline variants; --only chooses among "
                f"{len(selection.left_out)} more"
            )
    facts: dict[str, Any] = {"seed": plan.seed}
    rows: list[Row] = []
    absent = AbsentPeers()
    try:
        with frameworks.pinned(plan.threads) as cores, heap.retained() as retained:
            if cores:
                facts["cores"] = cores
                yield Note(f"pinned to {'core' if len(cores) == 1 else 'cores'} {', '.join(map(str, cores))}")
            if retained:
                yield Note("memory that was freed stays in the process: no time has page faults for it in it")
            # They are those of the CPU, and say nothing about what a GPU could do.
            if plan.device == "cpu":
                limits = ceilings.measure(plan.dtype, plan.threads)
                shown = ", ".join(str(ceiling) for ceiling in limits.measured)
                yield Note(f"ceilings measured in this run, {plan.dtype}: {shown}")
            for group in groups:
                budget = None if plan.time_budget is None else plan.time_budget / len(groups)
                for event in _bench_group(group, plan, limits, budget, absent):
                    if isinstance(event, RowFinished):
                        counts[event.row.status] += 1
                        rows.append(event.row)
                    yield event
    except KeyboardInterrupt:
        interrupted = True
    if limits is not None:
        facts["ceilings"] = [asdict(ceiling) for ceiling in limits.measured]
    crossings = break_evens(rows)
    if crossings:
        facts["break_even"] = [asdict(crossing) for crossing in crossings]
    yield RunFinished(dict(counts), time.perf_counter() - started, interrupted, facts)


def explain(plan: BenchPlan) -> Iterator[str]:
    """What "auto" takes for each problem, and why."""
    for selection in plan.selections:
        for problem in selection.problems:
            if selection.family.explain is None or (selection.case and selection.case.reference) or problem.missing():
                continue
            for line in selection.family.explain(Instance(selection.operation, problem, plan.dtype, plan.seed).inputs):
                yield f"{problem.name}: {line}"


def _bench_group(
    group: _Group, plan: BenchPlan, limits: ceilings.Ceilings | None, budget: float | None, absent: AbsentPeers
) -> Iterator[Event]:
    contenders: list[_Contender] = []
    instance: Instance | None = None
    exact: Instance | None = None
    for variant in group.selection.variants:
        yield UnitStarted(f"verify {variant.name} · {group.problem.name} · {group.check}")
        row = _row_template(group, variant, plan)
        reasons = why_not(variant, group.problem, plan.device)
        if not reasons and group.check != "forward" and not variant.gradient:
            reasons = [variant.why_no_gradient or "no backward pass"]
        if reasons and absent.known(group.selection.family, variant):
            pass
        elif reasons:
            yield RowFinished(replace(row, status="skip", reason="; ".join(reasons)))
        else:
            instance = instance or _instance(group, plan.dtype, plan)
            if group.check != "forward" and group.selection.operation.gradient_jumps:
                exact = exact or _instance(replace(group, problem=_small(group.problem)), "float64", plan)
            limit = _float64_tolerance(group, plan) * variant.tolerance_factor
            entered = _enter(row, variant, instance, exact, limit, plan)
            if isinstance(entered, Row):
                yield RowFinished(entered)
            else:
                contenders.append(entered)
        yield UnitFinished()
    if not contenders or instance is None:
        return
    usual = group.selection.operation.baseline
    baseline = next((c for c in contenders if c.variant.name == usual), contenders[0])
    if baseline.variant.name != usual:
        yield Note(f"{group.problem.name}, {group.check}: ratios to {baseline.variant.name}, the first that ran")
    samples: dict[str, list[float]] = {c.variant.name: [] for c in contenders}
    yield from _rounds(contenders, samples, plan, budget, group)
    peaks: Mapping[str, memory.Measured] = {}
    if plan.memory:
        yield UnitStarted(f"peak memory · {group.problem.name} · {group.check}")
        peaks = _peaks(group, contenders, plan)
        for _ in contenders:
            yield UnitFinished()
    costs = group.selection.operation.cost
    cost = costs(instance.inputs).get(group.check) if costs else None
    described = _described(group, instance)
    for contender in contenders:
        row = replace(_timed(contender, samples, baseline.variant.name, plan), **described)
        row = _with_peak(_with_ceiling(row, cost, limits), peaks.get(contender.variant.name))
        row = _with_speed_up(row, usual)
        if group.check == "forward" and isinstance(contender.prepared, Staged):
            try:
                row = replace(row, stages=_stages(contender.prepared))
            except Exception as error:
                if plan.debug:
                    raise
                yield Note(f"{row.variant} on {row.problem}: its stages are not timed: {describe(error)}")
        yield RowFinished(row)


def _instance(group: _Group, dtype: str, plan: BenchPlan) -> Instance:
    return Instance(group.selection.operation, group.problem, dtype, plan.seed)


def _small(problem: Problem) -> Problem:
    return problem.with_parameters(**problem.tiny) if problem.tiny else problem


def _enter(
    row: Row, variant: Variant, instance: Instance, exact: Instance | None, exact_tolerance: float, plan: BenchPlan
) -> _Contender | Row:
    """Prepare a variant, compare its results with the oracle, warm it up; the finished row if that fails.

    With ``exact``, the small problem in float64, gradients are compared there and the timed run by its outputs.
    """
    try:
        given = instance.fresh_inputs()
        prepared = variant.bind(given, plan.dtype, plan.device)
        if row.check == "forward":
            verified = check_value(row, prepared, given, instance)
            work: Callable[[], Any] = prepared.run
        else:
            if exact is None:
                verified = check_gradient(row, prepared, instance)
            else:
                verified = check_value(row, prepared, given, instance)
                verified = _check_in_float64(verified, variant, exact, exact_tolerance, plan.device)
            cotangents = {name: prepared.upload(g.copy()) for name, g in instance.cotangents.items()}

            def work() -> Any:
                return prepared.run_backward(cotangents)

        if verified.status != "pass":
            return replace(verified, reason=f"not timed: {verified.reason}")
        contender = _Contender(variant, replace(verified, parts=()), prepared, work)
        _warm_up(contender)
        return contender
    except Exception as error:
        if plan.debug:
            raise
        return replace(row, status="error", reason=describe(error))


def _check_in_float64(verified: Row, variant: Variant, exact: Instance, tolerance: float, device: str) -> Row:
    """Add the comparison of the gradients in float64 to a row that has passed by its outputs."""
    if verified.status != "pass":
        return verified
    prepared = variant.bind(exact.fresh_inputs(), "float64", device)
    gradient = check_gradient(replace(verified, tolerance=tolerance), prepared, exact)
    where = f"gradients in float64 on {exact.problem.name}"
    if gradient.status != "pass":
        return replace(verified, status=gradient.status, reason=f"{where}: {gradient.reason}")
    return replace(verified, reason=f"{where}: {gradient.max_rel:.0e} of {tolerance:.0e}")


def _warm_up(contender: _Contender) -> None:
    """Run until two runs in a row take about as long, at most ten; then choose how often a sample repeats."""
    last = _sample(contender)
    for _ in range(9):
        now = _sample(contender)
        steady = abs(now - last) <= 0.1 * last
        last = now
        if steady:
            break
    contender.repeats = max(1, int(np.ceil(_SHORTEST_SAMPLE_S / max(last, 1e-7))))


def _sample(contender: _Contender) -> float:
    """Seconds of one run, averaged over the repeats of a sample."""
    contender.prepared.synchronize()
    start = time.perf_counter()
    for _ in range(contender.repeats):
        result = contender.work()
    contender.prepared.synchronize()
    elapsed = time.perf_counter() - start
    del result
    return elapsed / contender.repeats


def _rounds(
    contenders: Sequence[_Contender],
    samples: Mapping[str, list[float]],
    plan: BenchPlan,
    budget: float | None,
    group: _Group,
) -> Iterator[Event]:
    rng = np.random.default_rng(plan.seed)
    started = time.perf_counter()
    for number in range(plan.rounds):
        spent = time.perf_counter() - started
        if budget is not None and spent > budget and number >= MIN_ROUNDS:
            yield Note(
                f"{group.problem.name}, {group.check}: {number} of {plan.rounds} rounds, the time budget is spent"
            )
            return
        yield UnitStarted(f"round {number + 1}/{plan.rounds} · {group.problem.name} · {group.check}")
        for index in rng.permutation(len(contenders)):
            samples[contenders[index].variant.name].append(_sample(contenders[index]))
        yield UnitFinished()


def _timed(contender: _Contender, samples: Mapping[str, list[float]], baseline: str, plan: BenchPlan) -> Row:
    mine = samples[contender.variant.name]
    ratio = statistics.paired_ratio(mine, samples[baseline], plan.seed)
    is_baseline = contender.variant.name == baseline
    return replace(
        contender.row,
        median_s=statistics.median(mine),
        iqr_s=statistics.interquartile_range(mine),
        runs=len(mine),
        samples_s=tuple(mine),
        baseline=baseline,
        ratio=ratio.value,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        verdict=None if is_baseline else statistics.verdict(ratio, plan.threshold),
    )


def _described(group: _Group, instance: Instance) -> dict[str, Any]:
    """What the rows of a group say about the problem."""
    operation, problem = group.selection.operation, group.problem
    stated = operation.facts(instance.inputs) if operation.facts else {}
    facts = {name: float(value) for name, value in stated.items()}
    series = None
    if "sparsity" in problem.parameters:
        facts["sparsity"] = float(problem.parameters["sparsity"])
        series = problem.name_without("sparsity", "block_size")
    ideal = float(operation.ideal(instance.inputs)) if operation.ideal else math.inf
    published = problem.published if group.check == "forward" else {}
    return {
        "facts": facts,
        "series": series,
        "ideal": ideal if math.isfinite(ideal) else None,
        "published": published,
    }


def _with_speed_up(row: Row, usual_baseline: str) -> Row:
    """Add the speed-up and its share of the ideal one, where the ratio is to the operation's own baseline."""
    if row.ideal is None or row.ratio is None or row.baseline != usual_baseline or row.variant == row.baseline:
        return row
    return replace(row, speed_up=1 / row.ratio, percent_of_ideal=100 / row.ratio / row.ideal)


def _stages(prepared: Staged) -> dict[str, float]:
    """Median seconds of each stage."""
    runs = [prepared.stages() for _ in range(STAGE_RUNS)]
    return {name: statistics.median([run[name] for run in runs]) for name in runs[0]}


def _with_ceiling(row: Row, cost: Cost | None, limits: ceilings.Ceilings | None) -> Row:
    if cost is None or limits is None or not row.median_s:
        return row
    floors = limits.floors(cost)
    return replace(
        row,
        flops=cost.flops,
        bytes_moved=cost.bytes,
        ceiling=floors[0].ceiling,
        percent_of_ceiling=100 * floors[0].seconds / row.median_s,
        floors=floors,
    )


def _with_peak(row: Row, measured: memory.Measured | None) -> Row:
    if measured is None:
        return row
    return replace(row, peak_bytes=measured.peak_bytes, peak_source=measured.source)


def _peaks(group: _Group, contenders: Sequence[_Contender], plan: BenchPlan) -> dict[str, memory.Measured]:
    """Measured two at a time: each in its own process, and nothing is being timed."""
    selection = group.selection
    requests = [
        memory.Request(
            family=selection.family.name,
            operation=selection.operation.name,
            case=selection.case.name if selection.case else None,
            problem=group.problem.name.split("[")[0],
            parameters=group.problem.changes,
            variant=contender.variant.name,
            dtype=plan.dtype,
            device=plan.device,
            seed=plan.seed,
            backward=group.check != "forward",
            threads=plan.threads,
            plugin=plan.plugin,
            files=tuple((name, str(path)) for name, path in plan.files),
        )
        for contender in contenders
    ]
    with ThreadPoolExecutor(2) as pool:
        measured = list(pool.map(memory.measure, requests))
    return {contender.variant.name: m for contender, m in zip(contenders, measured, strict=True)}


def _float64_tolerance(group: _Group, plan: BenchPlan) -> float:
    return min(plan.tolerance, group.selection.family.float64_tolerance)


def _row_template(group: _Group, variant: Variant, plan: BenchPlan) -> Row:
    operation = group.selection.operation
    limit = _float64_tolerance(group, plan) if plan.dtype == "float64" else plan.tolerance
    if operation.exact and group.check == "forward":
        limit = 0.0
    return Row(
        family=group.selection.family.name,
        operation=operation.name,
        problem=group.problem.name,
        variant=variant.name,
        algorithm=variant.algorithm,
        framework=variant.framework,
        device=plan.device,
        dtype=plan.dtype,
        check=group.check,
        status="error",
        tolerance=limit * variant.tolerance_factor,
    )
