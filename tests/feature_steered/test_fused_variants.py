"""The compiled kernels in the catalog: which variants there are, where they run, what they say where they cannot."""

from __future__ import annotations

import pytest

from eqconv_cli import catalog, kernels
from eqconv_cli.backends.feature_steered.options import Fused
from eqconv_cli.engine import verify as engine
from eqconv_cli.engine.selection import Filters, for_verify, selected_on
from eqconv_cli.kernels.doors import settings_on

FAMILY = catalog.family("feature_steered")
FUSED = [variant for variant in FAMILY.variants if variant.algorithm == "fused"]


def of(name):
    return next(variant for variant in FAMILY.variants if variant.name == name)


@pytest.fixture
def nothing_built(monkeypatch):
    monkeypatch.setattr(kernels, "missing", lambda target: [f"{target} is not built"])
    engine._missing_kernels.cache_clear()
    yield
    engine._missing_kernels.cache_clear()


def test_every_door_has_the_kernels_in_both_orders_and_with_both_softmaxes():
    names = {variant.name for variant in FUSED}
    for framework in ("numpy", "torch", "tensorflow"):
        assert {f"fused@{framework}", *(f"fused+{o}@{framework}" for o in ("last", "first", "stable"))} <= names
        assert of(f"fused@{framework}").headline
    assert {"fused+avx2@numpy", "fused+portable@numpy", "fused+compile@torch", "fused+function@tensorflow"} <= names


@pytest.mark.parametrize("variant", FUSED, ids=lambda variant: variant.name)
def test_settings_are_known_for_every_device_of_a_variant(variant):
    for device in variant.devices:
        assert isinstance(settings_on(Fused, device, variant.arguments["fused"]), Fused)


@pytest.mark.parametrize(
    ("name", "device", "targets"),
    [
        ("fused@numpy", "cpu", ["cpu"]),
        ("fused@numpy", "emulated", ["emulated"]),
        ("fused@torch", "cpu", ["torch", "cpu"]),
        ("fused@torch", "emulated", ["torch", "emulated"]),
        ("fused@tensorflow", "cpu", ["tensorflow", "cpu"]),
    ],
)
def test_what_is_not_built_is_the_reason_to_skip(nothing_built, name, device, targets):
    assert engine.why_not(of(name), FAMILY.problems[0], device) == [f"{target} is not built" for target in targets]


def test_other_variants_need_nothing_compiled(nothing_built):
    assert engine.why_not(of("v3+last@numpy"), FAMILY.problems[0], "cpu") == []


def test_the_emulated_device_means_the_variants_that_name_it():
    assert {v.name for v in FAMILY.variants if selected_on(v, "emulated")} == {
        v.name for v in FUSED if "emulated" in v.devices
    }
    assert selected_on(of("v3+last@numpy"), "cuda")
    assert selected_on(of("fused+deterministic@torch"), "cuda")
    assert not selected_on(of("fused+deterministic@torch"), "cpu")


def test_rows_of_a_run_on_both_devices():
    filters = Filters(only=("v3+last@numpy", "fused@numpy"), problems=("ragged",))
    plan = engine.VerifyPlan(for_verify([FAMILY], filters, "quick"), dtypes=("float32",), devices=("cpu", "emulated"))
    rows = [event.row for event in engine.verify(plan) if hasattr(event, "row")]
    assert {(row.variant, row.device) for row in rows} == {
        ("v3+last@numpy", "cpu"),
        ("fused@numpy", "cpu"),
        ("fused@numpy", "emulated"),
    }
    assert not [row for row in rows if row.status in ("fail", "error")]


def test_the_oracle_is_not_what_it_judges(monkeypatch):
    """Stacks are judged by NumPy's operator, which would take the kernels by itself."""
    from eqconv_cli.backends.feature_steered import fused, stacks

    def refuse(*arguments, **options):
        raise AssertionError("the oracle called the kernels")

    monkeypatch.setattr(fused, "forward", refuse)
    monkeypatch.setattr(fused, "backward", refuse)
    case = next(case for case in FAMILY.cases if case.name == "pr155")
    problem = case.problems[0].with_parameters(**case.problems[0].tiny)
    inputs = problem.arrays(0)
    outputs = stacks.reference(inputs)
    stacks.reference_gradients(inputs, {name: array * 0 + 1 for name, array in outputs.items()})
