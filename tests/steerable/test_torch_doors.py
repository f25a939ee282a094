"""The compiled expansion as PyTorch operators: values, derivatives, compilers, transforms, arguments."""

from __future__ import annotations

import pytest
import torch

from eqconv_cli import kernels
from eqconv_cli.backends.steerable import torch_fused
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels import doors, torch_doors
from tests.steerable.support_doors import assert_close, example
from tests.support import needs

pytestmark = pytest.mark.torch
built = needs("torch", "cpu")
DTYPES = ["float32", "float64"]
DIRECT = pytest.mark.parametrize("direct", [False, True], ids=["harmonics", "direct"])
OPERATORS = pytest.mark.parametrize("name", ["expand_forward", "expand_backward"])


def uploaded(direct, dtype="float64"):
    packed, *others = example(direct, dtype)
    return torch_fused.upload(packed, "cpu", getattr(torch, dtype)), *map(torch.from_numpy, others)


def arguments_of(name, direct=False, gradient=True):
    """An operator's arguments, in float64."""
    tables, weights, _, cotangent, _ = uploaded(direct)
    real = weights if name == "expand_forward" else cotangent
    return real.requires_grad_(gradient), tables.words, tables.reals, list(tables.sizes), int(direct), 0, ""


def overload_of(name):
    torch_fused._operators("cpu")
    return getattr(torch.ops.eqconv, name).default


# Values and derivatives.


@built
@DIRECT
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(direct, dtype):
    tables, weights, filter, cotangent, gradient = uploaded(direct, dtype)
    assert_close(torch_fused.expand(tables, weights, Fused()).numpy(), filter.numpy(), dtype)
    y = torch_fused.expand(tables, weights.requires_grad_(), Fused())
    assert_close(y.detach().numpy(), filter.numpy(), dtype)
    (found,) = torch.autograd.grad(y, weights, cotangent)
    assert_close(found.numpy(), gradient.numpy(), dtype)


@built
@DIRECT
def test_derivatives_of_any_order(direct):
    tables, weights, _, cotangent, _ = uploaded(direct)
    weights.requires_grad_()

    def expand(weights):
        return torch_fused.expand(tables, weights, Fused())

    assert torch.autograd.gradcheck(expand, weights, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda w: expand(w).square(), weights)

    # f = Σ c y³: its third derivative along v is Σ 6 c (A v)³, for y = A w.
    v = torch.randn(weights.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slope = (cotangent * expand(weights) ** 3).sum()
    for _ in range(3):
        (gradient,) = torch.autograd.grad(slope, weights, create_graph=True)
        slope = (gradient * v).sum()
    expected = (6 * cotangent * expand(v) ** 3).sum()
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-10)


@built
@DIRECT
@OPERATORS
def test_opcheck_and_registered_derivatives(name, direct):
    overload, arguments = overload_of(name), arguments_of(name, direct)
    assert set(torch.library.opcheck(overload, arguments).values()) == {"SUCCESS"}
    real, *tables = arguments

    def function(real):
        return overload(real, *tables)

    assert torch.autograd.gradcheck(function, real)
    assert torch.autograd.gradgradcheck(lambda real: function(real).square(), real)


@built
def test_tensors_that_are_not_contiguous():
    tables, weights, filter, cotangent, gradient = uploaded(False)
    both = torch.stack([weights, weights], 1).requires_grad_()
    y = torch_fused.expand(tables, both[:, 0], Fused())
    assert_close(y.detach().numpy(), filter.numpy(), "float64")
    (found,) = torch.autograd.grad(y, both, cotangent.permute(2, 0, 1).contiguous().permute(1, 2, 0))
    assert_close(found[:, 0].numpy(), gradient.numpy(), "float64")
    assert not found[:, 1].any()


@built
def test_the_number_of_threads_changes_no_bit():
    results = []
    for threads in (1, 2, 3):
        tables, weights, _, cotangent, _ = uploaded(False, "float32")
        y = torch_fused.expand(tables, weights.requires_grad_(), Fused(threads=threads))
        results.append((y, *torch.autograd.grad(y, weights, cotangent)))
    for other in results[1:]:
        assert all(torch.equal(mine, its) for mine, its in zip(other, results[0], strict=True))


@built
def test_tables_that_were_made_in_inference_mode():
    packed, weights, *_ = example(False, "float64")
    with torch.inference_mode():
        tables = torch_fused.upload(packed, "cpu", torch.float64)
        expected = torch_fused.expand(tables, torch.from_numpy(weights), Fused()).clone()
    leaf = torch.from_numpy(weights).requires_grad_()
    y = torch_fused.expand(tables, leaf, Fused())
    y.sum().backward()
    torch.testing.assert_close(y.detach(), expected)


# Compilers, transforms, autocast.


@built
@pytest.mark.slow
@DIRECT
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compiled_without_a_break(direct, backend):
    tables, weights, _, cotangent, _ = uploaded(direct)

    def function(weights):
        return (torch_fused.expand(tables, weights * 2, Fused()) ** 2 * cotangent).sum()

    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend=backend)):
        leaf = weights.clone().requires_grad_()
        y = call(leaf)
        results.append((y, *torch.autograd.grad(y, leaf)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


@built
def test_exported():
    tables, weights, filter, *_ = uploaded(False)

    class Layer(torch.nn.Module):
        def forward(self, weights):
            return torch_fused.expand(tables, weights, Fused())

    program = torch.export.export(Layer(), (weights,))
    assert_close(program.module()(weights).numpy(), filter.numpy(), "float64")


@built
@DIRECT
def test_functional_transforms(direct):
    tables, weights, _, cotangent, gradient = uploaded(direct)

    def slope(weights):
        return (torch_fused.expand(tables, weights, Fused()) * cotangent).sum()

    torch.testing.assert_close(torch.func.grad(slope)(weights), gradient, rtol=1e-12, atol=1e-12)
    y, tangent = torch.func.jvp(lambda w: torch_fused.expand(tables, w, Fused()), (weights,), (2 * weights,))
    torch.testing.assert_close(tangent, 2 * y, rtol=1e-12, atol=1e-12)

    def square(weights):
        return torch_fused.expand(tables, weights, Fused()).square().sum() / 2

    def curvature(weights):
        return (torch.func.grad(square)(weights) * weights).sum()

    expected = 2 * torch.func.grad(square)(weights)
    torch.testing.assert_close(torch.func.grad(curvature)(weights), expected, rtol=1e-12, atol=1e-12)
    _, tangent = torch.func.jvp(torch.func.grad(square), (weights,), (2 * weights,))
    torch.testing.assert_close(tangent, expected, rtol=1e-12, atol=1e-12)


@built
@OPERATORS
def test_vmap_is_refused(name):
    real, *tables = arguments_of(name, gradient=False)
    with pytest.raises(NotImplementedError, match=r"not vectorised by .*: a layer has one"):
        torch.vmap(lambda real: overload_of(name)(real, *tables))(torch.stack([real, real]))


@built
def test_vmap_of_a_layer_is_refused():
    tables, weights, *_ = uploaded(False)
    with pytest.raises(NotImplementedError, match=r"not vectorised by .*: a layer has one"):
        torch.vmap(lambda weights: torch_fused.expand(tables, weights, Fused()))(torch.stack([weights, weights]))


@built
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_computes_in_float32(dtype):
    tables, weights, *_ = uploaded(False, "float32")
    leaf = weights.to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = torch_fused.expand(tables, leaf, Fused())
    assert y.dtype == torch.float32
    expected = torch_fused.expand(tables, leaf.detach().float(), Fused())
    torch.testing.assert_close(y.detach(), expected, rtol=0, atol=0)
    y.sum().backward()
    assert leaf.grad.dtype == dtype


# Arguments.


@built
@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("expand_forward", 0, torch.zeros(3, dtype=torch.float16), "weights has dtype Half: allowed: Float, Double"),
        ("expand_forward", 0, torch.zeros(3, dtype=torch.float64), r"weights has shape \[3\]: expected \["),
        ("expand_forward", 0, torch.zeros(3), "reals has dtype Double, which does not go with that of weights"),
        ("expand_backward", 0, torch.zeros(6, 7, 8, dtype=torch.float64), r"filter has shape \[6, 7, 8\]: expected"),
        ("expand_backward", 0, torch.zeros(6, 7, 9), "reals has dtype Double, which does not go with that of filter"),
        ("expand_forward", 1, torch.zeros(3, dtype=torch.int64), "words has dtype Long, which does not go with"),
        ("expand_forward", 1, torch.zeros(3, 4, dtype=torch.int32), r"words has shape \[3, 4\]: expected \[12\]"),
        ("expand_forward", 1, torch.zeros(3, dtype=torch.int32), "words has 3 numbers: expected "),
        ("expand_backward", 2, torch.zeros(3, dtype=torch.float64), "reals has 3 numbers: expected "),
        ("expand_forward", 3, [4, 3], "sizes has 2 numbers: expected 11"),
        ("expand_forward", 6, "gpu", "core is 'gpu': allowed: '', 'emulated'"),
    ],
)
def test_the_operators_check_their_arguments(name, place, value, message):
    arguments = arguments_of(name, gradient=False)
    with pytest.raises(RuntimeError, match=message):
        overload_of(name)(*arguments[:place], value, *arguments[place + 1 :])


@built
@OPERATORS
@pytest.mark.parametrize(
    ("place", "size", "message"),
    [
        (0, 5, "words has .* numbers: expected "),
        (1, -1, "sizes: in_fields is -1: 0 to 2\\^31 - 1 is allowed"),
        (2, 1 << 31, "sizes: out_channels is 2147483648"),
        (4, 10, "numbers: expected"),
        (4, (1 << 31) - 1, "numbers: expected"),
        (5, 6, "reals has .* numbers: expected "),
        (6, 1000, "1000 types have more numbers"),
        (7, 4, "words has .* numbers: expected "),
        (9, 8, "types have more numbers"),
        (10, 0, "reals has .* numbers: expected "),
    ],
)
def test_sizes_that_do_not_fit_the_tensors(name, place, size, message):
    real, words, reals, sizes, *tail = arguments_of(name, gradient=False)
    sizes[place] = size
    with pytest.raises(RuntimeError, match=message):
        overload_of(name)(real, words, reals, sizes, *tail)


@built
def test_a_filter_that_is_too_large():
    real, words, reals, sizes, *tail = arguments_of("expand_forward", gradient=False)
    sizes[2:4] = [1 << 30, 1 << 30]
    with pytest.raises(RuntimeError, match="sizes: the filter has more than 2\\^40 entries"):
        overload_of("expand_forward")(real, words, reals, sizes, *tail)


def test_missing_kernels_are_named(monkeypatch):
    monkeypatch.setattr(kernels, "missing", lambda target: [f"{target} is not built"])
    doors.missing_kernels.cache_clear()
    for cached in (torch_doors.library, torch_doors.operator, torch_fused._operators):
        cached.cache_clear()
    tables, weights, *_ = uploaded(True)
    try:
        assert torch_doors.missing_operators(Fused(), "cpu") == ["torch is not built", "cpu is not built"]
        with pytest.raises(Unavailable, match="version='fused' in PyTorch: torch is not built"):
            torch_fused.expand(tables, weights, Fused())
    finally:
        doors.missing_kernels.cache_clear()
