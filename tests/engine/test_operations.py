"""Families of several operations under ``verify``: what meets what, exact outputs, checks with rows of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eqconv_cli.catalog import Arrays, Case, Operation, Variant
from eqconv_cli.engine.oracle import Instance
from eqconv_cli.engine.overview import check_globs, check_names, overview
from eqconv_cli.engine.selection import Filters, Selection, for_verify
from eqconv_cli.engine.verify import VerifyPlan, verify
from eqconv_cli.errors import UsageError
from eqconv_cli.events import Row, RowFinished, RunFinished
from tests.engine import fake

A = fake.TWO.problems[1]


def run(*variants: Variant, operation: Operation = fake.PICK, **options: object) -> list[Row]:
    family = replace(fake.TWO, operations=(fake.DOUBLE, operation))
    plan = VerifyPlan((Selection(family, (A,), variants),), **options)  # type: ignore[arg-type]
    return [event.row for event in verify(plan) if isinstance(event, RowFinished)]


def by_check(rows: list[Row], dtype: str = "float32") -> dict[str, Row]:
    return {row.check: row for row in rows if row.dtype == dtype}


def test_a_variant_meets_the_problems_of_its_operation_only() -> None:
    double, pick = for_verify([fake.TWO], Filters(), "default")
    assert (double.operation.name, double.label) == ("double", "two, double")
    assert ([p.name for p in double.problems], [v.name for v in double.variants]) == (
        ["small"],
        ["good@numpy", "twin@numpy"],
    )
    assert ([p.name for p in pick.problems], [v.name for v in pick.variants]) == (
        ["a"],
        ["dense@numpy", "sparse@numpy"],
    )
    asked = for_verify([fake.TWO], Filters(only=("peer@numpy",)), "default")
    assert [v.name for selection in asked for v in selection.variants] == ["peer@numpy"]
    with pytest.raises(ValueError, match="a selection of several operations: double, pick"):
        Selection(fake.TWO, (A,), (fake.GOOD,))


def test_strings_booleans_and_integers_pass_through_an_instance() -> None:
    instance = Instance(fake.PICK, A, "float32", 0)
    given = instance.fresh_inputs()
    assert given["padding"] == "SAME" and given["padding"].shape == ()
    assert (given["mask"].dtype, given["block"].dtype, given["x"].dtype) == (bool, int, np.float32)
    assert all(array.flags.writeable and not instance.inputs[name].flags.writeable for name, array in given.items())
    assert list(instance.cotangents) == ["values"]
    with pytest.raises(ValueError, match="pick has no gradient"):
        _ = instance.gradients


def test_exact_operations_and_rows_of_their_own() -> None:
    rows = by_check(run(fake.DENSE))
    assert list(rows) == ["E1", "invariant", "E14", "E2"]
    assert {row.status for row in rows.values()} == {"pass"}
    assert [rows[name].tolerance for name in rows] == [0.0, 1e-5, 0.0, 1e-5]
    assert {row.operation for row in rows.values()} == {"pick"}
    assert [part.name for part in rows["invariant"].parts] == ["scaled"]
    assert [part.name for part in rows["E2"].parts] == ["E2"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("off by one", "indices is 1 at [0], expected 0"),
        ("float indices", "indices has dtype float64, expected"),
        ("unsorted", "indices is 249 at [0], expected 0"),
        ("rounded", "values is"),
    ],
)
def test_what_is_exact_is_met_exactly(fault: str, reason: str) -> None:
    """All of these are within a tolerance of 1e-5 of something: only exactness tells."""
    for row in run(fake.picker("wrong", fault=fault), tolerance=1e3, checks=("E1",)):
        assert row.status == "fail"
        assert reason in row.reason


def test_the_width_of_an_integer_may_differ() -> None:
    assert {row.status for row in run(fake.picker("narrow", fault="narrow"))} == {"pass"}


def test_an_operation_that_rounds_has_the_tolerance_of_the_run() -> None:
    rounding = replace(fake.PICK, exact=False)
    rows = by_check(run(fake.picker("rounded", fault="rounded"), operation=rounding))
    assert (rows["E1"].status, rows["E1"].tolerance) == ("pass", 1e-5)


def test_a_check_of_its_own_runs_the_variant_at_every_call() -> None:
    """Noise of 1e-9 is inside every tolerance but that of "two runs give the same bits"."""
    noisy = fake.picker("noisy", fault="noise")
    rows = by_check(run(noisy, operation=replace(fake.PICK, exact=False)), "float64")
    assert rows["E14"].status == "fail"
    assert rows["E14"].reason.startswith("values is")


def test_a_check_with_a_tolerance_of_its_own() -> None:
    checks = (replace(fake.PICK.checks[0], tolerance=1e-6), replace(fake.PICK.checks[3], tolerance=1e-30))
    noisy = fake.picker("noisy", fault="noise")
    rows = by_check(run(noisy, operation=replace(fake.PICK, exact=False, checks=checks)), "float64")
    assert (rows["E14"].status, rows["E14"].tolerance) == ("pass", 1e-6)
    assert rows["invariant"].status == "fail"
    assert rows["invariant"].parts[0].tolerance == 1e-30


def test_globs_of_checks_skip_the_work_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run(fake.DENSE, checks=("E1", "E2"))
    assert {row.check for row in rows} == {"E1", "E2"}
    assert {row.check for row in run(fake.DENSE, checks=("E1*",))} == {"E1", "E14"}

    def unwanted(*arguments: object) -> Arrays:
        raise AssertionError("the reference is not asked for E14")

    monkeypatch.setattr(fake, "pick_reference", unwanted)
    lazy = replace(fake.PICK, reference="tests.engine.fake:pick_reference")
    assert {row.status for row in run(fake.DENSE, operation=lazy, checks=("E14",), debug=True)} == {"pass"}
    assert {row.status for row in run(fake.DENSE, operation=lazy, checks=("E1",))} == {"error"}


def test_unknown_checks_are_refused() -> None:
    selections = for_verify([fake.TWO], Filters(), "default")
    assert check_names(fake.PICK) == ("E1", "E14", "E2", "E3", "invariant")
    check_globs(selections, ("gradient", "E1*"))
    with pytest.raises(UsageError, match=r"--check 'E99' is unknown: .*allowed: value, gradient, E1, E14, E2, E3"):
        check_globs(selections, ("E99",))


def test_a_peer_that_is_not_installed_has_one_row() -> None:
    rows = run(fake.PEER, fake.DENSE)
    (skipped,) = (row for row in rows if row.status == "skip")
    assert skipped.check == "E1"
    assert skipped.reason == "no_such_package is not installed (pip install no-such-package)"
    ours = replace(fake.PEER, peer=False, requires=("no_such_package.part",))
    assert [row.reason.split(" (")[1] for row in run(ours)] == ["pip install no-such-package)"] * 2


def test_the_overview_says_how_every_statement_held() -> None:
    selections = for_verify([fake.TWO], Filters(), "default")
    events = list(verify(VerifyPlan(selections)))
    rows = [event.row for event in events if isinstance(event, RowFinished)]
    found = {check.check: check for check in overview(selections, rows)}
    assert list(found) == ["E1", "E2", "E3", "E14", "gradient", "value"]
    assert (found["E1"].statement, found["E1"].comparisons, found["E1"].verdict) == (
        "the list is the reference's",
        8,
        "pass",
    )
    assert (found["E3"].comparisons, found["E3"].verdict) == (0, "not compared")
    assert found["value"].statement == "Twice the input: the values are the reference's"
    finished = events[-1]
    assert isinstance(finished, RunFinished)
    assert [check["check"] for check in finished.facts["checks"]] == list(found)
    assert [check.check for check in overview(selections, rows, ("E1*",))] == ["E1", "E14"]
    wrong = [replace(row, status="fail", max_rel=float("nan")) if row.check == "E14" else row for row in rows]
    assert {c.check: c.verdict for c in overview(selections, wrong)}["E14"] == "fail"


def test_a_family_without_rows_of_their_own_has_no_overview() -> None:
    (event,) = (
        e for e in verify(VerifyPlan(for_verify([fake.FAMILY], Filters(), "quick"))) if isinstance(e, RunFinished)
    )
    assert "checks" not in event.facts


def test_a_file_makes_one_problem_or_several(tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    np.save(path, np.arange(10) % 3 == 0)
    assert [problem.name for problem in fake.TWO.opened("mask", path)] == ["mask:mask.npy"]
    assert fake.TWO.opened("mesh", path) == ()
    one = replace(fake.TWO, file_problems={"mask": lambda path: fake.mask_file(path)[0]})
    assert len(one.opened("mask", path)) == 1
    (selection,) = for_verify([fake.TWO], Filters(files={"mask": path}), "default")
    rows = [event.row for event in verify(VerifyPlan((selection,))) if isinstance(event, RowFinished)]
    assert {row.status for row in rows} == {"pass"}


def test_a_case_changes_what_it_says_and_nothing_else() -> None:
    case = Case("c", "", "", (), (), "twin@numpy", reference="a:b", costed=False)
    timed = case.timed(fake.DOUBLE)
    assert (timed.baseline, timed.reference, timed.cost) == ("twin@numpy", "a:b", None)
    assert timed == replace(fake.DOUBLE, baseline="twin@numpy", reference="a:b", cost=None)
    assert replace(case, baseline="", reference=None, costed=True).timed(fake.DOUBLE) == fake.DOUBLE
