"""The inputs of the family: complete, reproducible, of the sizes that were published; a picture of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqconv_cli.backends.steerable import FAMILY
from eqconv_cli.backends.steerable.problem_arrays import Described, described, plan_of, planned, reals
from eqconv_cli.backends.steerable.problems import image_file
from eqconv_cli.catalog import load
from eqconv_cli.engine.oracle import Instance
from eqconv_cli.frameworks.numpy import BoundRun
from tests.steerable.support import operation_of, problem

SMALL = [p.with_parameters(**p.tiny) if p.tiny else p for p in FAMILY.problems]


@pytest.mark.parametrize("given", SMALL, ids=lambda given: given.name)
def test_inputs_are_reproducible_and_computable(given: Any) -> None:
    assert given.missing() == []
    first, again = given.arrays(3), given.arrays(3)
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    operation = FAMILY.operation_of(given)
    assert reals(first, "float32", operation.name).keys() == set(operation.differentiable) & first.keys()
    assert all(cost.bytes > 0 and cost.flops > 0 for cost in operation.cost(first).values())
    assert operation.facts(first)["weights"] == len(first["weights"])


def test_both_operations_are_verified_by_default_and_by_one_quick_problem() -> None:
    for operation in FAMILY.operations:
        mine = [p for p in FAMILY.problems if FAMILY.operation_of(p) is operation]
        assert sum("verify" in p.traits for p in mine) >= 6 and sum("quick" in p.traits for p in mine) == 1
        assert {p.name for p in mine if "bench" in p.traits}


def test_there_is_every_kind_of_layer() -> None:
    found = [described(p.arrays(0)) for p in FAMILY.problems if {"verify", "full"} & p.traits]
    assert {1, 2, 3, 4, 5, 6, 7, 9} == {layer.kernel_size for layer in found}
    assert {"C1", "flip", "C8", "D4", "SO(2)", "O(2)"} <= {layer.group for layer in found}
    assert any(layer.groups == 2 and layer.dilation == 2 for layer in found)
    assert any("quotient" in layer.in_fields for layer in found)


def test_the_axis_is_not_rounded_to_the_dtype_of_the_run() -> None:
    given = problem("d4-mixed")
    for dtype in ("float32", "float64"):
        inputs = Instance(FAMILY.operation_of(given), given, dtype, 0).inputs
        assert plan_of(inputs).out_type.space.axis == np.pi / 4


@pytest.mark.parametrize(
    "name, channels, weights",
    [("wrn-d8", 640, 40 * 40 * 16 * 21), ("wrn-d4", 904, 113 * 113 * 8 * 8), ("wrn-c8", 448, 56 * 56 * 8 * 21)],
)
def test_the_layers_are_the_published_ones(name: str, channels: int, weights: int) -> None:
    plan = plan_of(problem(name).arrays(0))
    assert (plan.out_type.size, plan.weights_size) == (channels, weights)


def test_the_photograph_is_a_picture_and_outputs_are_of_order_1() -> None:
    given = problem("photograph")
    inputs = given.arrays(0)
    x = inputs["x"]
    assert x.shape == (1, 3, 33, 33) and 0 <= x.min() < 0.1 and 0.8 < x.max() <= 1
    assert np.abs(np.diff(x, axis=3)).mean() < 0.1
    for name in ("photograph", "layer-c4", "layer-so2"):
        _, layer, _ = operation_of(problem(name))
        y = layer({key: a for key, a in problem(name).arrays(0).items() if key != "bias"})["y"]
        assert 0.1 < y.std() < 10


def test_a_picture_of_the_user(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "flag.png"
    rng = np.random.default_rng(0)
    image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    given = image_file(path).with_parameters(group="D4", side=9)
    inputs = given.arrays(0)
    assert inputs["x"].shape == (1, 3, 9, 9) and described(inputs).group == "D4"
    assert operation_of(given)[1](inputs)["y"].shape == (1, 32, 9, 9)


def test_a_layer_is_planned_once() -> None:
    layer = Described("C4", "regular", "regular", 3)
    assert planned(layer) is planned(described(layer.arrays()))


def test_auto_is_explained() -> None:
    assert FAMILY.explain is not None
    lines = FAMILY.explain(problem("c8-regular").arrays(0))
    assert [line.split(":")[0] for line in lines] == ["auto@numpy", "auto@torch", "auto@tensorflow"]


@pytest.mark.parametrize("operation", ["expansion", "layer"])
def test_the_door_to_numpy(operation: str) -> None:
    prepare = load("eqconv_cli.backends.steerable.numpy_runs:prepare")
    (given,) = (p for p in FAMILY.problems if "quick" in p.traits and FAMILY.operation_of(p).name == operation)
    _, forward, backward = operation_of(given)
    inputs = given.arrays(0)
    run = prepare(inputs, "float64", "cpu", operation=operation, algorithm="dense")
    assert isinstance(run, BoundRun)
    ((name, wanted),) = forward(inputs).items()
    np.testing.assert_allclose(run.run()[name], wanted, atol=1e-12)
    cotangents = {name: np.ones_like(wanted)}
    for key, gradient in backward(inputs, cotangents).items():
        np.testing.assert_allclose(run.run_backward(cotangents)[key], gradient, atol=1e-11)
