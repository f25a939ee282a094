"""The published model and layer-stack benchmarks: their oracle, and every variant against it on small sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eqconv_cli.backends.feature_steered import FAMILY, stacks
from eqconv_cli.catalog import Case, Variant, load
from eqconv_cli.engine.bench import BenchPlan, bench
from eqconv_cli.engine.selection import Selection
from eqconv_cli.engine.verify import VerifyPlan, verify
from eqconv_cli.events import RowFinished

pytestmark = pytest.mark.slow

CASES = {case.name: case for case in FAMILY.cases}
SMALL = {"pr101-model": {"batch": 1}, "pr155": {"vertices": 150}}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_gradients_of_the_oracle_by_finite_differences(name: str) -> None:
    inputs = dict(CASES[name].problems[0].with_parameters(**SMALL[name]).arrays(0))
    (output,) = stacks.reference(inputs)
    rng = np.random.default_rng(1)
    cotangent = rng.normal(size=stacks.reference(inputs)[output].shape)
    gradients = stacks.reference_gradients(inputs, {output: cotangent})
    assert list(gradients) == list(stacks.parameter_names(stacks.layers_of(inputs)))
    direction = {n: rng.normal(size=g.shape) for n, g in gradients.items()}
    step = 1e-8
    moved = [
        stacks.reference({**inputs, **{n: inputs[n] + sign * step * d for n, d in direction.items()}})[output]
        for sign in (1, -1)
    ]
    difference = float((cotangent * (moved[0] - moved[1])).sum() / (2 * step))
    exact = float(sum((gradients[n] * d).sum() for n, d in direction.items()))
    # Where a ReLU switches within the step the difference quotient is off by a little.
    assert difference == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_variant_equals_the_oracle(name: str) -> None:
    case: Case = CASES[name]
    problem = case.problems[0].with_parameters(**SMALL[name])
    plan = VerifyPlan((Selection(FAMILY, (problem,), case.variants, case),), dtypes=("float64",), debug=True)
    rows = [event.row for event in verify(plan) if isinstance(event, RowFinished)]
    assert len(rows) == 2 * len(case.variants)
    assert {row.status for row in rows} == {"pass"}, [row.reason for row in rows if row.status != "pass"]


def test_the_model_has_the_published_layers() -> None:
    widths = [(layer.kind, layer.inputs, layer.outputs, layer.relu) for layer in stacks.MODEL]
    assert widths == [
        ("linear", 3, 16, False),
        ("convolution", 16, 32, True),
        ("convolution", 32, 64, True),
        ("convolution", 64, 128, True),
        ("linear", 128, 256, True),
        ("linear", 256, 16, False),
    ]
    assert len(CASES["pr101-model"].variants) == 9
    assert len(stacks.layer_stack(10, 32)) == 10


def test_a_training_step_moves_every_parameter_by_adam() -> None:
    case = CASES["pr101-model"]
    inputs = case.problems[0].with_parameters(batch=1).arrays(0)
    variant = case.variants[0]
    run = load(variant.prepare)(inputs, "float64", "cpu", **variant.arguments)
    before = {name: variable.numpy() for name, variable in run._updated.items()}
    run.run_backward({"loss": run.upload(np.asarray(1.0))})
    for name, variable in run._updated.items():
        moved = np.abs(variable.numpy() - before[name])
        # The first step of Adam has the length of the learning rate wherever the gradient is not tiny.
        assert moved.max() == pytest.approx(1e-3, rel=1e-3), name


def test_part_labels_are_sixteen_even_parts() -> None:
    labels = stacks.part_labels(np.random.default_rng(0).normal(size=(1600, 3)) * [4, 2, 1])
    assert set(labels) == set(range(16))
    assert np.bincount(labels).min() > 50


def test_a_float32_run_is_timed_when_its_outputs_and_its_float64_gradients_are_right() -> None:
    case = CASES["pr101-model"]
    problem = case.problems[0].with_parameters(batch=1)
    for variant, status in ((case.variants[1], "pass"), (_doubling(case.variants[1]), "fail")):
        plan = BenchPlan((Selection(FAMILY, (problem,), (variant,), case),), rounds=5, memory=False)
        (row,) = (event.row for event in bench(plan) if isinstance(event, RowFinished))
        assert row.status == status
        assert "gradients in float64 on pr101-model[batch=1]: " in row.reason
        assert (row.median_s is not None) == (status == "pass")


def _doubling(variant: Variant) -> Variant:
    return replace(variant, prepare="tests.feature_steered.test_stacks:prepare_doubled")


def prepare_doubled(*arguments: Any, **options: Any) -> Any:
    """The right run with one gradient doubled."""
    run = load(CASES["pr101-model"].variants[1].prepare)(*arguments, **options)
    right = run.run_backward
    run.run_backward = lambda cotangents: {**(g := right(cotangents)), "steer1_c": 2 * g["steer1_c"]}
    return run
