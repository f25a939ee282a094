"""The NumPy layer against the oracle, in every padding mode, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from eqconv_cli.backends.steerable import reference
from eqconv_cli.backends.steerable.numpy_layers import steerable_conv2d, steerable_conv2d_gradients
from eqconv_cli.backends.steerable.problem_arrays import Described, plan_of
from eqconv_cli.backends.steerable.problems import convolution
from tests.steerable.support import plan_for


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("stride, padding", [(1, 0), (2, 1), (3, 4)])
@pytest.mark.parametrize("groups, dilation", [(1, 1), (2, 2)])
def test_values_and_gradients(mode: str, stride: int, padding: int, groups: int, dilation: int) -> None:
    layer = Described("C4", "2*regular", "irrep:0+irrep:1+irrep:0+irrep:1", 3, groups=groups, dilation=dilation)
    inputs = convolution(0, layer, 2, 6, 7, stride=stride, padding=padding, padding_mode=mode)
    plan, x, weights, bias = plan_of(inputs), inputs["x"], inputs["weights"], inputs["bias"]
    options = {"stride": stride, "padding": padding, "padding_mode": mode, "groups": groups, "algorithm": "dense"}
    y = reference.layer(inputs)["y"]
    np.testing.assert_allclose(steerable_conv2d(plan, x, weights, bias, **options), y, atol=1e-12)
    dy = np.random.default_rng(1).normal(size=y.shape)
    found = steerable_conv2d_gradients(dy, plan, x, weights, bias, **options)
    for name, gradient in reference.layer_gradients(inputs, {"y": dy}).items():
        np.testing.assert_allclose(found[name], gradient, atol=1e-11)


def test_stride_and_padding_of_each_axis() -> None:
    plan = plan_for("C2", "trivial", "regular", 3)
    x, weights = np.random.default_rng(0).normal(size=(1, 1, 7, 9)), np.ones(plan.weights_size)
    dense = steerable_conv2d(plan, x, weights, padding=2)
    made = steerable_conv2d(plan, x, weights, stride=(2, 3), padding=(1, 0))
    np.testing.assert_allclose(made, dense[:, :, 1:-1:2, 2:-2:3], atol=1e-14)
    assert "bias" not in steerable_conv2d_gradients(dense, plan, x, weights, padding=2)


def test_arguments_are_checked() -> None:
    plan = plan_for("C4", "regular", "2*regular", 3)
    x, weights, bias = np.zeros((1, 4, 5, 5)), np.zeros(plan.weights_size), np.zeros(2)
    for arguments, message in (
        ({"x": x.astype("f")}, "x has dtype float32 but weights has dtype float64"),
        ({"x": x.astype(int)}, "x has dtype int64"),
        ({"bias": bias.astype("f")}, "bias has dtype float32"),
    ):
        with pytest.raises(TypeError, match=message):
            steerable_conv2d(**{"plan": plan, "x": x, "weights": weights, "bias": bias, **arguments})
    for arguments, message in (
        ({"x": x[:, :3]}, r"x has shape \(1, 3, 5, 5\): expected \[B, 4, H, W\]"),
        ({"x": x[..., :2]}, "smaller than the kernel"),
        ({"bias": bias[:1]}, r"bias has shape \(1,\): expected \(2,\)"),
        ({"groups": 3}, "groups=3"),
        ({"stride": 0}, "stride=0"),
        ({"padding": -1}, "padding=-1"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror'"),
    ):
        with pytest.raises(ValueError, match=message):
            steerable_conv2d(**{"plan": plan, "x": x, "weights": weights, "bias": bias, **arguments})
    with pytest.raises(ValueError, match=r"dy has shape \(1, 8, 5, 5\)"):
        steerable_conv2d_gradients(np.zeros((1, 8, 5, 5)), plan, x, weights)
