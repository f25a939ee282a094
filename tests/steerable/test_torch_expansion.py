"""Every algorithm of PyTorch gives the filter of the formula, with derivatives of any order."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from eqconv_cli.backends.steerable import torch_expansion
from eqconv_cli.backends.steerable.arguments import COMPILED, COMPOSITIONS
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.errors import Unavailable
from eqconv_cli.torch import expand, expand_backward
from tests.steerable.support import plan_for
from tests.steerable.support_expansion import NAMES, SMALL, assert_close, example, plan
from tests.support import needs

pytestmark = pytest.mark.torch
built = needs("torch", "cpu")
EVERY = (*COMPOSITIONS, *(pytest.param(name, marks=built) for name in COMPILED), "auto")
DTYPES = ("float32", "float64")


def weights_of(name: str, dtype: str = "float64") -> torch.Tensor:
    return torch.tensor(example(name, dtype)[0])


@pytest.mark.parametrize("algorithm", EVERY)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_filter_and_gradient_are_those_of_the_formula(name: str, algorithm: str, dtype: str) -> None:
    _, filter, cotangent, gradient = example(name, dtype)
    weights, given = weights_of(name, dtype).requires_grad_(), torch.tensor(cotangent)
    made = expand(plan(name), weights, algorithm=algorithm)
    assert made.is_contiguous()
    assert_close(made.detach().numpy(), filter, dtype)
    made.backward(given)
    assert_close(weights.grad.numpy(), gradient, dtype)
    assert_close(expand_backward(plan(name), given, algorithm=algorithm).numpy(), gradient, dtype)
    with torch.no_grad():
        assert torch.equal(expand(plan(name), weights, algorithm=algorithm), made)


@pytest.mark.parametrize("algorithm", EVERY)
@pytest.mark.parametrize("name", SMALL)
def test_derivatives(name: str, algorithm: str) -> None:
    weights, cotangent = weights_of(name).requires_grad_(), torch.tensor(example(name, "float64")[2])
    torch.autograd.gradcheck(
        lambda w: expand(plan(name), w, algorithm=algorithm), weights, check_forward_ad=True, fast_mode=True
    )
    torch.autograd.gradgradcheck(lambda w: expand(plan(name), w**2, algorithm=algorithm), weights, fast_mode=True)
    torch.autograd.gradcheck(
        lambda g: expand_backward(plan(name), g, algorithm=algorithm), cotangent.requires_grad_(), fast_mode=True
    )


@pytest.mark.parametrize("algorithm", EVERY)
def test_tensors_that_are_not_contiguous(algorithm: str) -> None:
    weights, filter, cotangent, gradient = example("mixed", "float64")
    apart = torch.tensor(np.repeat(weights, 2))[::2].requires_grad_()
    made = expand(plan("mixed"), apart, algorithm=algorithm)
    assert_close(made.detach().numpy(), filter, "float64")
    turned = torch.tensor(cotangent.transpose(1, 0, 3, 2).copy()).permute(1, 0, 3, 2)
    assert_close(torch.autograd.grad(made, apart, turned)[0].numpy(), gradient, "float64")


@pytest.mark.parametrize("algorithm", EVERY)
def test_autocast_leaves_the_filter_in_float32(algorithm: str) -> None:
    _, filter, cotangent, gradient = example("mixed", "float32")
    weights = weights_of("mixed", "float32").requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = expand(plan("mixed"), weights, algorithm=algorithm)
    assert_close(made.detach().numpy(), filter, "float32")
    assert_close(torch.autograd.grad(made, weights, torch.tensor(cotangent))[0].numpy(), gradient, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [name for name in (*COMPOSITIONS, "auto") if name != "csr"])
@pytest.mark.parametrize("name", ["mixed", "one-type"])
def test_compiled_without_graph_breaks(name: str, algorithm: str) -> None:
    _, filter, cotangent, gradient = example(name, "float32")
    torch._dynamo.reset()
    fresh = plan_for("C4", "2*regular", "3*regular", 3, 0.0) if name == "one-type" else plan(name)
    compiled = torch.compile(
        lambda w: expand(fresh, w, algorithm=algorithm), fullgraph=True, backend="aot_eager", dynamic=False
    )
    weights = weights_of(name, "float32").requires_grad_()
    made = compiled(weights)
    assert_close(made.detach().numpy(), filter, "float32")
    assert_close(torch.autograd.grad(made, weights, torch.tensor(cotangent))[0].numpy(), gradient, "float32")


def test_constants_are_made_once_and_live_as_long_as_the_plan() -> None:
    layer = plan_for("C3", "regular", "regular", 3)
    weights = torch.zeros(layer.weights_size)
    for algorithm in COMPOSITIONS:
        expand(layer, weights, algorithm=algorithm)
    first = torch_expansion._layer(layer, "dense", torch.float32, weights.device).data[0].basis
    assert torch_expansion._layer(layer, "dense", torch.float32, weights.device).data[0].basis is first
    known, basis = weakref.ref(layer), weakref.ref(first)
    del layer, first
    gc.collect()
    assert known() is None and basis() is None


def test_constants_made_in_inference_mode_serve_training() -> None:
    layer = plan_for("C3", "regular", "regular", 3)
    with torch.inference_mode():
        expand(layer, torch.zeros(layer.weights_size), algorithm="dense")
    weights = torch.zeros(layer.weights_size, requires_grad=True)
    expand(layer, weights, algorithm="dense").sum().backward()


def test_arguments_are_checked() -> None:
    layer = plan("mixed")
    weights, cotangent = torch.zeros(layer.weights_size), torch.zeros(layer.filter_shape)
    for algorithm in ("dense", "auto"):
        with pytest.raises(ValueError, match=r"weights has shape \(3,\): expected .*irrep_1 -> regular: 2 x 2 x"):
            expand(layer, weights[:3], algorithm=algorithm)
        with pytest.raises(ValueError, match="weights has shape"):
            expand(layer, weights[None], algorithm=algorithm)
        with pytest.raises(TypeError, match=r"weights has dtype torch\.float16: allowed: float32, float64"):
            expand(layer, weights.half(), algorithm=algorithm)
    with pytest.raises(ValueError, match="algorithm='fast' is unknown: allowed: auto, dense"):
        expand(layer, weights, algorithm="fast")
    with pytest.raises(ValueError, match=r"settings=.* with algorithm='dense'"):
        expand(layer, weights, algorithm="dense", settings=Fused())
    with pytest.raises(ValueError, match="grad_filter has shape"):
        expand_backward(layer, cotangent[:1])
    with pytest.raises(TypeError, match="grad_filter has dtype"):
        expand_backward(layer, cotangent.int())


def test_what_is_not_built_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_expansion, "missing_operators", lambda settings, device: ["it is not built"])
    torch_expansion._known_choice.cache_clear()
    layer = plan("one-type")
    weights = torch.zeros(layer.weights_size)
    try:
        with pytest.raises(Unavailable, match="it is not built"):
            expand(layer, weights, algorithm="fused")
        assert torch_expansion._chosen("auto", None, "cpu") == ("harmonic", None)
    finally:
        torch_expansion._known_choice.cache_clear()


@built
def test_auto_takes_the_compiled_kernel() -> None:
    assert torch_expansion._chosen("auto", None, "cpu") == ("fused_orbit", Fused())
