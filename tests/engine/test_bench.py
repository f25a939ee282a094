from __future__ import annotations

import os
from dataclasses import replace

import pytest

from eqconv_cli.catalog import Variant
from eqconv_cli.engine.bench import BenchPlan, bench, explain
from eqconv_cli.engine.selection import Filters, Selection, Sweep, for_bench
from eqconv_cli.engine.verify import VerifyPlan, verify
from eqconv_cli.errors import UsageError
from eqconv_cli.events import Event, Note, Row, RowFinished, RunFinished, RunStarted, UnitFinished
from tests.engine import fake


def run(*variants: Variant, **options: object) -> tuple[list[Row], list[Event]]:
    plan = BenchPlan((Selection(fake.FAMILY, (fake.PROBLEM,), variants),), rounds=5, memory=False)
    events = list(bench(replace(plan, **options)))  # type: ignore[arg-type]
    return [event.row for event in events if isinstance(event, RowFinished)], events


def test_rows_carry_samples_ratios_and_ceilings() -> None:
    rows, events = run(fake.GOOD, fake.SLOW)
    assert [(row.variant, row.check) for row in rows] == [
        ("good@numpy", "forward"),
        ("slow@numpy", "forward"),
        ("good@numpy", "forward+backward"),
        ("slow@numpy", "forward+backward"),
    ]
    for row in rows:
        assert row.status == "pass" and row.runs == len(row.samples_s) == 5
        assert row.baseline == "good@numpy"
        assert row.ratio_low is not None and row.ratio is not None and row.ratio_high is not None
        assert row.ratio_low <= row.ratio <= row.ratio_high
    assert rows[0].ratio == 1.0 and rows[0].verdict is None
    assert rows[1].verdict == "SLOWER"
    assert rows[0].ceiling in ("numpy copy", "stream copy") and rows[0].percent_of_ceiling is not None
    assert [floor.unit for floor in rows[0].floors] == ["byte", "flop"]
    assert rows[0].percent_of_ceiling == pytest.approx(100 * rows[0].floors[0].seconds / rows[0].median_s)
    assert rows[2].ceiling is None and rows[2].floors == ()
    assert any(isinstance(event, Note) and "ceilings measured in this run" in event.text for event in events)
    finished = events[-1]
    assert isinstance(finished, RunFinished)
    assert {"numpy copy", "numpy GEMM"} <= {ceiling["name"] for ceiling in finished.facts["ceilings"]}


def test_threads_pin_the_run_and_no_longer() -> None:
    before = os.sched_getaffinity(0)
    plan = BenchPlan((Selection(fake.FAMILY, (fake.PROBLEM,), (fake.GOOD,)),), rounds=5, memory=False, threads=1)
    during = set()
    for event in bench(plan):
        if isinstance(event, RowFinished):
            during.add(tuple(os.sched_getaffinity(0)))
        finished = event
    assert during == {(max(before),)} and os.sched_getaffinity(0) == before
    assert isinstance(finished, RunFinished) and finished.facts["cores"] == (max(before),)
    many, _ = run(fake.GOOD, threads=len(before) + 1)
    assert many[0].status == "pass"


def test_the_announced_units_are_the_finished_ones() -> None:
    _, events = run(fake.GOOD, fake.SLOW)
    started = next(event for event in events if isinstance(event, RunStarted))
    assert sum(isinstance(event, UnitFinished) for event in events) == started.total


def test_a_wrong_variant_is_reported_and_never_timed() -> None:
    rows, _ = run(fake.WRONG, fake.GOOD, passes=("forward",))
    wrong, good = rows
    assert wrong.status == "fail" and wrong.median_s is None and wrong.samples_s == ()
    assert wrong.reason.startswith("not timed: y is")
    assert good.baseline == "good@numpy"


def test_a_variant_without_gradient_is_skipped_backward() -> None:
    rows, _ = run(fake.FORWARD_ONLY)
    assert [(row.check, row.status) for row in rows] == [("forward+backward", "skip"), ("forward", "pass")][::-1]
    assert rows[1].reason == "values only"


def test_without_the_baseline_the_first_that_ran_is_one_and_a_note_says_so() -> None:
    rows, events = run(fake.SLOW, fake.TWIN, passes=("forward",))
    assert {row.baseline for row in rows} == {"slow@numpy"}
    assert any(isinstance(event, Note) and "ratios to slow@numpy" in event.text for event in events)


def test_an_interrupt_keeps_what_is_done() -> None:
    _, events = run(fake.GOOD, fake.variant("stop", interrupt=True))
    assert isinstance(events[-1], RunFinished) and events[-1].interrupted


def test_the_time_budget_ends_the_rounds_and_says_so() -> None:
    rows, events = run(fake.SLOW, passes=("forward",), rounds=50, time_budget=0.01)
    assert rows[0].runs == 5
    assert any(isinstance(event, Note) and "5 of 50 rounds" in event.text for event in events)


def test_an_exception_is_a_row_unless_debugging() -> None:
    broken = replace(fake.GOOD, algorithm="broken", prepare="tests.engine.fake:nothing")
    rows, _ = run(broken)
    assert {row.status for row in rows} == {"error"}
    assert rows[0].reason.startswith("AttributeError")
    with pytest.raises(AttributeError):
        run(broken, debug=True)


def test_a_result_that_is_the_input_itself_fails() -> None:
    """y = x returned without a copy is numerically right for the factor 1, and still wrong."""
    operation = replace(fake.DOUBLE, reference="tests.engine.test_bench:identity_reference")
    family = replace(fake.FAMILY, operations=(operation,))
    plan = VerifyPlan((Selection(family, (fake.PROBLEM,), (fake.variant("same", identity=True),)),), gradients=False)
    rows = [event.row for event in verify(plan) if isinstance(event, RowFinished)]
    assert {row.status for row in rows} == {"fail"}
    assert rows[0].reason == "y shares memory with x"


def identity_reference(inputs: dict) -> dict:
    return {"y": inputs["x"].astype("float64")}


def sparsity(*values: float) -> Sweep:
    return Sweep("--sparsity", "sparsity", values)


def test_selection_of_cases_sparsities_and_settings() -> None:
    (chosen,) = for_bench([fake.FAMILY], Filters(settings={"n": 10}, sweeps=(sparsity(0.5, 0.9),)), "published")
    assert [problem.name for problem in chosen.problems] == ["small[sparsity=0.5,n=10]", "small[sparsity=0.9,n=10]"]
    assert chosen.operation.baseline == "slow@numpy" and len(chosen.variants) == 2
    with pytest.raises(UsageError, match="--case 'publshed' is unknown: did you mean published"):
        for_bench([fake.FAMILY], Filters(), "publshed")
    without = replace(fake.FAMILY, problems=(replace(fake.PROBLEM, parameters={"n": 3}),))
    with pytest.raises(UsageError, match="none of the chosen problems of fake has a sparsity"):
        for_bench([without], Filters(sweeps=(sparsity(0.5),)), None)


def test_explain() -> None:
    plan = BenchPlan((Selection(fake.FAMILY, (fake.PROBLEM,), (fake.GOOD,)),))
    assert list(explain(plan)) == ["small: auto: good, because n=1000"]


def test_a_glob_needs_a_match_in_one_family_only() -> None:
    other = replace(fake.FAMILY, name="other", variants=(fake.variant("other"),), cases=())
    first, second = for_bench([fake.FAMILY, other], Filters(only=("other*",)), None)
    assert (first.variants, [v.name for v in second.variants]) == ((), ["other@numpy"])
    with pytest.raises(UsageError, match="--only 'third\\*' is unknown"):
        for_bench([fake.FAMILY, other], Filters(only=("third*",)), None)
