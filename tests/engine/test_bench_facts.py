"""What ``bench`` says about an operation beyond its times: ideal speed-ups, stages, facts, published numbers, peers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eqconv_cli.catalog import Family, Problem, Variant
from eqconv_cli.engine import heap
from eqconv_cli.engine.bench import PASSES, BenchPlan, bench
from eqconv_cli.engine.selection import Selection
from eqconv_cli.events import Event, Note, Row, RowFinished, RunFinished
from tests.engine import fake

A = fake.TWO.problems[1]
DENSE_ENOUGH, SPARSE_ENOUGH = A.with_parameters(sparsity=0.2), A.with_parameters(sparsity=0.9)


def run(
    *variants: Variant, problems: tuple[Problem, ...] = (A,), family: Family = fake.TWO, **options: Any
) -> tuple[list[Row], list[Event]]:
    plan = BenchPlan((Selection(family, problems, variants),), passes=("forward",), rounds=5, memory=False)
    events = list(bench(replace(plan, **options)))
    return [event.row for event in events if isinstance(event, RowFinished)], events


def test_speed_ups_and_their_share_of_the_ideal() -> None:
    (dense, sparse), _ = run(fake.DENSE, fake.SPARSE)
    assert dense.ideal == sparse.ideal == pytest.approx(4.0)
    assert dense.speed_up is None and dense.percent_of_ideal is None
    assert sparse.ratio is not None and sparse.speed_up == pytest.approx(1 / sparse.ratio)
    assert sparse.percent_of_ideal == pytest.approx(100 / sparse.ratio / 4.0)
    assert sparse.tolerance == 0.0


def test_numbers_of_numpy_become_plain_and_an_infinite_ideal_none() -> None:
    operation = replace(
        fake.PICK, ideal=lambda inputs: np.float32(np.inf), facts=lambda inputs: {"H": np.float32(2), "W": np.int64(3)}
    )
    family = replace(fake.TWO, operations=(fake.DOUBLE, operation))
    (row,), _ = run(fake.DENSE, family=family)
    assert row.ideal is None and row.percent_of_ideal is None
    assert [(name, type(value)) for name, value in row.facts.items()] == [
        ("H", float),
        ("W", float),
        ("sparsity", float),
    ]


def test_an_operation_without_gradients_has_one_pass() -> None:
    rows, _ = run(replace(fake.DENSE, gradient=True), passes=PASSES)
    assert [(row.check, row.status) for row in rows] == [("forward", "pass")]


def test_without_the_operations_baseline_there_is_no_share() -> None:
    rows, _ = run(fake.SPARSE, fake.picker("other"))
    assert [row.baseline for row in rows] == ["sparse@numpy"] * 2
    assert [row.speed_up for row in rows] == [None, None]


def test_facts_and_published_numbers_are_those_of_the_problem() -> None:
    (row, other), _ = run(fake.DENSE, problems=(A, SPARSE_ENOUGH))
    assert row.facts["density"] == 0.25 and row.facts["sparsity"] == 0.75 and row.facts["W"] == 1000
    assert (row.published, other.published) == ({"somebody, somewhere": 3.39}, {})
    assert (row.series, other.series, other.problem) == ("a", "a", "a[sparsity=0.9]")


def test_stages_are_medians_of_seven_runs() -> None:
    (row,), _ = run(fake.DENSE)
    assert row.stages == {"reduce": pytest.approx(4e-3), "gather": 2e-3}


def test_stages_that_raise_leave_the_row_and_a_note() -> None:
    (row,), events = run(fake.picker("tired", fault="stages"))
    assert row.status == "pass" and row.stages == {}
    assert any(
        isinstance(e, Note) and "its stages are not timed: RuntimeError: no stages today" in e.text for e in events
    )
    with pytest.raises(RuntimeError, match="no stages today"):
        run(fake.picker("tired", fault="stages"), debug=True)


def test_a_sweep_has_its_break_even_in_the_summary() -> None:
    _, events = run(fake.DENSE, fake.SPARSE, problems=(DENSE_ENOUGH, SPARSE_ENOUGH))
    finished = events[-1]
    assert isinstance(finished, RunFinished)
    (found,) = finished.facts["break_even"]
    assert (found["series"], found["variant"], found["baseline"]) == ("a", "sparse@numpy", "dense@numpy")
    # It takes 1.6 times what the dense one takes, and 0.2 times at the other end.
    assert 0.2 < found["sparsity"] < 0.9
    _, once = run(fake.DENSE, fake.SPARSE)
    assert isinstance(once[-1], RunFinished) and "break_even" not in once[-1].facts


def test_a_peer_that_is_not_installed_has_one_row() -> None:
    rows, _ = run(fake.PEER, fake.DENSE, problems=(A, SPARSE_ENOUGH))
    assert [(row.variant, row.status) for row in rows] == [
        ("peer@numpy", "skip"),
        ("dense@numpy", "pass"),
        ("dense@numpy", "pass"),
    ]


@pytest.mark.skipif(heap._glibc() is None, reason="not glibc")
def test_a_note_says_that_freed_memory_stays() -> None:
    _, events = run(fake.DENSE)
    assert any(isinstance(event, Note) and event.text.startswith("memory that was freed stays") for event in events)
