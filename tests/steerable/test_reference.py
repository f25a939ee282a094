"""The oracle: against numbers worked out by hand, against the constraint itself, and its own derivatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.signal import correlate2d

from eqconv_cli.backends.steerable import reference
from eqconv_cli.backends.steerable.fields import Space
from eqconv_cli.backends.steerable.plan import Plan
from eqconv_cli.backends.steerable.problem_arrays import Described, plan_of
from eqconv_cli.backends.steerable.problems import convolution, on_images
from tests.steerable.support import operation_of, plan_for, problem, with_arrays


def elements_of(plan: Plan) -> np.ndarray:
    (pair,) = plan.pairs
    return reference.sampled_elements(pair, plan)


def test_numbers_worked_out_by_hand() -> None:
    """C4, trivial to frequency 1, 3 x 3: (cos, sin)(phi + gamma) on the ring of radius 1; the centre is 0."""
    plan = plan_for("C4", "irrep:0", "irrep:1", 3)
    frequencies = [element.frequency for element in plan.pairs[0].basis.elements]
    assert frequencies == [1, 1]
    first, second = elements_of(plan)[:, :, 0]
    corner = math.exp(-((math.sqrt(2) - 1) ** 2) / (2 * 0.4**2))
    norm = math.sqrt((4 + 4 * corner**2) / 2)
    half = corner / math.sqrt(2)
    cos = np.array([[-half, 0, half], [-1, 0, 1], [-half, 0, half]]) / norm
    sin = np.array([[half, 1, half], [0, 0, 0], [-half, -1, -half]]) / norm
    np.testing.assert_allclose(first, [cos, sin], atol=1e-15)
    np.testing.assert_allclose(second, [-sin, cos], atol=1e-15)


def test_kernels_of_one_pixel_are_circulant() -> None:
    plan = plan_for("C8", "regular", "regular", 1)
    made = elements_of(plan)[..., 0, 0]
    assert made.shape == (8, 8, 8)
    for matrix in made:
        np.testing.assert_allclose(matrix, np.roll(np.roll(matrix, 1, 0), 1, 1), atol=1e-15)
    assert np.linalg.matrix_rank(made.reshape(8, -1)) == 8


def test_a_group_convolution_repeats_one_kernel() -> None:
    """kappa[o, i](x) = psi[o^-1 i](o^-1 x) for C4: out channel o is out channel 0, turned and its inputs shifted."""
    plan = plan_for("C4", "regular", "regular", 5)
    for element in elements_of(plan):
        for o in range(4):
            turned = np.roll(np.rot90(element[0], o, axes=(1, 2)), o, axis=0)
            np.testing.assert_allclose(element[o], turned, atol=1e-15)


@pytest.mark.parametrize(
    "group, axis", [("C4", 0.0), ("C8", 0.0), ("C5", 0.0), ("D4", 0.7), ("D6", 0.0), ("O(2)", 1.1), ("flip", 0.3)]
)
def test_elements_solve_the_constraint_off_the_grid(group: str, axis: float) -> None:
    """The point that the reference evaluates may be anywhere: kappa(g x) = rho_out(g) kappa(x) rho_in(g)^-1."""
    space, rng = Space.of(group, axis), np.random.default_rng(0)
    for out in space.group.irreps(2):
        for given in space.group.irreps(2):
            try:
                plan = plan_for(group, given.name.replace("_", ":"), out.name.replace("_", ":"), 5, axis)
            except ValueError as error:
                assert "no kernel" in str(error)
                continue
            for element in plan.pairs[0].basis.elements:
                point = rng.normal(size=2)
                for g in space.group.test_elements[1::7]:
                    moved = reference.element_at(element, *(space.action(g) @ point), space)
                    kept = out(g) @ reference.element_at(element, *point, space) @ given(g).T
                    np.testing.assert_allclose(moved, kept, atol=1e-13)


@pytest.mark.parametrize("name", ["c8-regular", "d4-mixed", "so2-irreps", "o2-irreps", "c8-k2", "c4-groups"])
def test_two_ways_to_the_same_elements(name: str) -> None:
    plan = plan_of(problem(name).arrays(0))
    for pair in plan.pairs:
        found = reference.sampled_elements(pair, plan)
        np.testing.assert_allclose(found.reshape(pair.basis.dense.shape), pair.basis.dense, atol=1e-14)


def differences(function: Any, inputs: dict[str, Any], name: str, cotangents: dict[str, Any]) -> np.ndarray:
    """The gradient of the product of outputs and cotangents; both operations are linear in each input alone."""
    found = np.zeros(inputs[name].shape)
    for at in np.ndindex(found.shape):
        moved = inputs[name].copy()
        moved[at] += 1
        change = function(with_arrays(inputs, **{name: moved}))
        still = function(inputs)
        found[at] = sum(((change[key] - still[key]) * g).sum() for key, g in cotangents.items())
    return found


def test_gradients_are_differences() -> None:
    layer = Described("C4", "irrep:0+irrep:1", "regular", 3, groups=1, dilation=1)
    for mode in ("zeros", "reflect", "replicate", "circular"):
        inputs = convolution(0, layer, 1, 4, 5, stride=2, padding=2, padding_mode=mode)
        y = reference.layer(inputs)["y"]
        cotangents = {"y": np.random.default_rng(1).normal(size=y.shape)}
        gradients = reference.layer_gradients(inputs, cotangents)
        assert gradients.keys() == {"x", "weights", "bias"}
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, differences(reference.layer, inputs, name, cotangents), atol=1e-10)
    given = problem("c8-k1").arrays(0)
    _, expansion, gradients_of = operation_of(problem("c8-k1"))
    cotangents = {"filter": np.random.default_rng(1).normal(size=expansion(given)["filter"].shape)}
    found = gradients_of(given, cotangents)["weights"]
    np.testing.assert_allclose(found, differences(expansion, given, "weights", cotangents), atol=1e-12)


@pytest.mark.parametrize("mode, numpy_mode", [("zeros", "constant"), ("reflect", "reflect"), ("replicate", "edge"),
                                              ("circular", "wrap")])  # fmt: skip
def test_the_layer_is_a_correlation(mode: str, numpy_mode: Any) -> None:
    layer = Described("D2", "2*regular", "2*regular", 3, dilation=2, groups=2)
    inputs = convolution(0, layer, 2, 7, 9, stride=2, padding=3, padding_mode=mode)
    kernel = reference.expansion(inputs)["filter"]
    spread = np.zeros((8, 4, 5, 5))
    spread[:, :, ::2, ::2] = kernel
    padded = np.pad(inputs["x"], [(0, 0), (0, 0), (3, 3), (3, 3)], mode=numpy_mode)
    y = reference.layer({name: a for name, a in inputs.items() if name != "bias"})["y"]
    for image in range(2):
        for o in range(8):
            i = 4 * (o // 4)
            wanted = sum(correlate2d(padded[image, i + c], spread[o, c], "valid") for c in range(4))
            np.testing.assert_allclose(y[image, o], wanted[::2, ::2], atol=1e-12)


def test_the_bias_is_one_number_for_each_trivial_irrep() -> None:
    layer = Described("D4", "trivial", "irrep:1,1+regular+trivial", 3)
    inputs = on_images(0, layer, np.zeros((1, 1, 3, 3)))
    assert inputs["bias"].shape == (2,)
    y = reference.layer(with_arrays(inputs, bias=[8.0, 3.0]))["y"][0, :, 0, 0]
    np.testing.assert_allclose(y, [0, 0, *[math.sqrt(8)] * 8, 3], atol=1e-14)
