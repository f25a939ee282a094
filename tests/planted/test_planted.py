"""The verifier is verified: it must catch every planted fault, and only those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from eqconv_cli import catalog
from eqconv_cli.catalog import Variant
from eqconv_cli.engine.selection import Selection
from eqconv_cli.engine.verify import VerifyPlan, verify
from eqconv_cli.events import Row, RowFinished
from tests.planted import faults

FAMILY = catalog.family("feature_steered")
#: C = D = M, so that no transposition shows as a wrong shape.
RAGGED = next(p for p in FAMILY.problems if p.name == "ragged").with_parameters(channels=5, outputs=5, matrices=5)
BASES = ("closed_form@numpy", "v1+sorted+last@torch")


def run(variants: Sequence[Variant], **options: object) -> list[Row]:
    faults.forget()
    plan = VerifyPlan((Selection(FAMILY, (RAGGED,), tuple(variants)),), **options)  # type: ignore[arg-type]
    return [event.row for event in verify(plan) if isinstance(event, RowFinished)]


@pytest.mark.parametrize("base", BASES)
def test_the_right_implementation_passes(base: str) -> None:
    rows = run([faults.variant("none", base)])
    assert {row.status for row in rows} == {"pass"}
    assert {row.check for row in rows} == {"value", "gradient", "invariant"}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("fault", faults.ALL_VALUE)
def test_value_faults_are_caught(fault: str, base: str) -> None:
    for row in run([faults.variant(fault, base)], invariants=False):
        if row.check == "value":
            assert row.status in ("fail", "error"), f"{fault} passed in {row.dtype}"
            assert row.reason
            assert row.repeat


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("fault", faults.ALL_GRADIENT)
def test_gradient_faults_are_caught(fault: str, base: str) -> None:
    rows = run([faults.variant(fault, base)], invariants=False)
    assert {row.status for row in rows if row.check == "gradient"} == {"fail"}
    assert {row.status for row in rows if row.check == "value"} == {"pass"}


def test_a_fault_that_respects_no_identity_fails_the_invariants() -> None:
    rows = run([faults.variant("noise", BASES[0])])
    assert {row.status for row in rows if row.check == "invariant"} == {"fail"}


def test_a_broken_variant_turns_exactly_its_rows_red() -> None:
    names = ["v1+sorted+last@torch", "v2+last@torch", "v3+last@torch"]
    variants = [faults.broken(name) if name.startswith("v2") else faults.BY_NAME[name] for name in names]
    rows = run(variants)
    assert {row.variant for row in rows if row.status == "fail"} == {"v2+last@torch"}
    assert {row.variant for row in rows if row.status == "pass" and row.check == "value"} == {names[0], names[2]}


def test_the_failure_names_the_place_the_numbers_and_the_command() -> None:
    row = run([faults.variant("one_element_slightly_off", BASES[0])], dtypes=("float32",))[0]
    assert "[0, 0, 0], expected" in row.reason
    assert "above tolerance" in row.reason and "bias" in row.reason
    assert row.repeat is not None
    assert row.repeat.startswith("eqconv verify feature_steered --only planted+one_element_slightly_off@numpy")
    assert "--seed 0" in row.repeat and "--set channels=5" in row.repeat


def test_a_declared_factor_is_the_only_thing_that_loosens() -> None:
    strict = faults.variant("one_element_slightly_off", BASES[0])
    loose = replace(strict, tolerance_factor=100.0, tolerance_why="planted")
    value = [run([v], dtypes=("float32",))[0] for v in (strict, loose)]
    assert [row.status for row in value] == ["fail", "pass"]
    assert [row.tolerance for row in value] == [1e-5, pytest.approx(1e-3)]
