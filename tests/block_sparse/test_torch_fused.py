"""The compiled kernels as PyTorch operators: everything that PyTorch expects of an operator, and its arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eqconv_cli import kernels
from eqconv_cli.backends.block_sparse import torch_fused
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels import doors, torch_doors
from eqconv_cli.torch import (
    BatchNorm,
    BlockIndex,
    PixelIndex,
    ResidualWeights,
    Sites,
    block_params,
    masked_conv2d,
    masked_residual_unit,
    pixel_index,
    reduce_mask,
    sparse_conv,
    sparse_conv2d,
    sparse_gather,
    sparse_inverse_conv,
    sparse_scatter,
    sparse_scatter_var,
    subm_conv,
)
from tests.support import needs

built = needs("torch", "cpu")
WINDOW = [3, 3, 2, 2, -1, -1]
NAMES = ["block_gather", "block_scatter", "block_scatter_owned", "site_forward", "table", "residual_forward"]


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def real(*shape, gradient=True):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_(gradient)


def operator(name):
    torch_fused._operator("block_gather", "cpu")
    return getattr(torch.ops.eqconv, name).default


def arguments_of(name, gradient=True):
    """Arguments of an operator with a gradient."""

    def r(*shape):
        return real(*shape, gradient=gradient)

    index, tail = torch.stack([int32(0, 1, 1), int32(1, 0, 0), int32(0, 0, 1)]), (0, "")
    site, table = int32(0, 3, 7), torch.stack([int32(0, -1), int32(2, 1), int32(-1, 3)])
    unit = (r(2), r(2), r(2, 3), r(3), r(3), r(3, 3, 3, 3), r(3), r(3), r(3, 2))
    return {
        "block_gather": (r(2, 4, 5, 2), index, int32(3), WINDOW, 1, *tail),
        "block_scatter": (r(3, 2, 3, 3), index, None, r(2, 4, 5, 2), [2, 4, 5, 2], WINDOW, 1, *tail),
        "block_scatter_owned": (r(3, 3, 3, 2), index, int32(2), r(2, 4, 5, 2), [2, 4, 5, 2], WINDOW, 0, *tail),
        "site_forward": (
            *(r(1, 3, 4, 2), r(2, 2, 2, 3), r(3), r(1, 3, 4, 3), site, int32(2), None),
            *([3, 4, 2, 2, 1, 1, 0, 0, 1, 1], 1, *tail),
        ),
        "table": (r(4, 2), r(2, 2, 3), r(3), None, None, None, table, [], 0, *tail),
        "residual_forward": (r(1, 3, 4, 2), site, int32(2), *unit, 2, *tail),
    }[name]


def overload_of(name):
    return operator({"table": "site_forward", "block_scatter_owned": "block_scatter"}.get(name, name))


@built
@pytest.mark.parametrize("name", NAMES)
def test_opcheck_and_gradcheck(name):
    overload, arguments = overload_of(name), arguments_of(name)
    assert set(torch.library.opcheck(overload, arguments).values()) == {"SUCCESS"}
    reals = [k for k, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.is_floating_point()]

    def function(*given):
        values = dict(zip(reals, given, strict=True))
        return overload(*(values.get(k, a) for k, a in enumerate(arguments)))

    assert torch.autograd.gradcheck(function, [arguments[k] for k in reals])


@built
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mask_blocks", lambda: (real(2, 4, 5, gradient=False), 2, 3, WINDOW, 0.0, 0, 0, "")),
        ("mask_pixels", lambda: (real(2, 4, 5, gradient=False) > 0, 4, 5, [1, 1, 1, 1, 0, 0], 0.0, 0, 0, "")),
        ("block_pixels", lambda: (torch.stack([int32(0, 1, 1)]), None, [1, 4, 5], [2, 2, 2, 2, 0, 0], 0, "")),
        ("site_outputs", lambda: (torch.stack([int32(0, 1), int32(0, 3)]), None, 1, [5, 3, 3, 2, 1, 1], 0, 0, "")),
        (
            "site_table",
            lambda: (
                *(torch.stack([int32(0, 1), int32(0, 3)]), None, torch.stack([int32(0, 2)]), None),
                *(1, [5, 5, 3, 1, 1, 1], 0, 0, ""),
            ),
        ),
        (
            "block_scatter_",
            lambda: (real(2, 4, 5, 2, gradient=False), *arguments_of("block_scatter", False)[:3], WINDOW, 1, 0, ""),
        ),
    ],
)
def test_opcheck_of_operators_without_a_gradient(name, arguments):
    # Lists are longer than what counts, and behind that undefined: only shapes, schemas and mutations are compared.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    assert set(torch.library.opcheck(operator(name), arguments(), test_utils=checks).values()) == {"SUCCESS"}


# Compiled.


def blocks():
    params = block_params((8, 9), (5, 5), (3, 3))
    return params, {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}


def whole_list(x, w, mask):
    """Mask to result, which is where lists of unknown length would break a graph."""
    params, geometry = blocks()
    index = reduce_mask(mask, params.bcount, **geometry, tol=0.0, version="fused")
    return sparse_conv2d(x, w, index, params, base="input", version="fused")


def gather_and_scatter(x, w, mask):
    params, geometry = blocks()
    index = reduce_mask(mask, params.bcount, **geometry, tol=0.0, version="fused")
    stack = sparse_gather(x, index, **geometry, version="fused") * w[0, 0, 0, 0]
    y = sparse_scatter(stack, index, x, **geometry, add=False, version="fused")
    return sparse_scatter_var(stack, index, y * 1, **geometry, add=True, atomic=True, version="fused")


def at_pixels(x, w, mask):
    pixels = pixel_index(mask, tol=0.0, version="fused")
    return masked_conv2d(x, w, pixels, activation="relu", out=x * 2, version="fused")


def unit(x, w, mask):
    pixels = pixel_index(mask, tol=0.0, version="fused")
    norm = BatchNorm(*(w[0, 0, 0] * k + 1 for k in range(3)), w[0, 0, 0] ** 2)
    weights = ResidualWeights(w[0, 0], w, w[1, 1], norm, norm, norm)
    return masked_residual_unit(x, pixels, weights, version="fused")


@built
@pytest.mark.slow
@pytest.mark.parametrize("function", [whole_list, gather_and_scatter, at_pixels, unit])
def test_compiled_without_a_break(function):
    x, w = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 8, 9, 3), (3, 3, 3, 3)))
    mask = torch.rand(2, 8, 9, generator=torch.Generator().manual_seed(0)) < 0.2
    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        leaves = (x.clone().requires_grad_(), w.clone().requires_grad_())
        y = call(*leaves, mask)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


@built
@pytest.mark.slow
def test_compiled_site_convolutions():
    coords = (torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(1)) < 0.3).nonzero()
    feats, w = torch.randn(len(coords), 3, dtype=torch.float64), torch.randn(3, 3, 3, 4, dtype=torch.float64)
    sites = Sites.make(coords, feats, (6, 7), 2)

    def function(feats, w):
        same = subm_conv(sites.with_feats(feats), w, version="fused")
        fewer = sparse_conv(same, w.transpose(2, 3), stride=2, version="fused")
        fewer = subm_conv(subm_conv(fewer, w[:, :, :, :3], version="fused"), w[:, :, :, :3], version="fused")
        return sparse_inverse_conv(fewer, w, same, version="fused").feats

    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        leaves = (feats.clone().requires_grad_(), w.clone().requires_grad_())
        results.append(torch.autograd.grad(call(*leaves).square().sum(), leaves))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-10)


# Transforms and autocast.


@built
def test_second_derivatives_vmap_and_forward_mode_are_refused():
    x, w = real(1, 4, 5, 2), real(3, 3, 2, 2)
    pixels = PixelIndex(int32(0, 7), int32(2), (1, 4, 5))

    def function(x):
        return masked_conv2d(x, w, pixels, version="fused")

    (gradient,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="has first derivatives only"):
        gradient.sum().backward()
    with pytest.raises(NotImplementedError, match="not vectorised"):
        torch.vmap(function)(torch.stack([x, x]))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        function(torch.autograd.forward_ad.make_dual(x, x))


@built
def test_autocast_computes_in_float32():
    x, w = real(1, 4, 5, 2).detach().bfloat16().requires_grad_(), real(3, 3, 2, 2).detach().float().requires_grad_()
    pixels = PixelIndex(int32(0, 7), int32(2), (1, 4, 5))
    with torch.autocast("cpu", torch.bfloat16):
        y = masked_conv2d(x, w, pixels, version="fused")
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, masked_conv2d(x.float(), w, pixels, version="matmul"), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16 and w.grad.dtype == torch.float32


@built
def test_threads_and_a_second_run_change_no_bit():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2, 40, 41, 16)).astype(np.float32))
    w = torch.from_numpy(rng.normal(size=(3, 3, 16, 24)).astype(np.float32))
    found = torch.from_numpy(np.flatnonzero(rng.random(2 * 40 * 41) < 0.5).astype(np.int32))
    pixels = PixelIndex(found, int32(len(found)), (2, 40, 41))
    results = []
    for threads in (1, 2, 1):
        leaves = (x.clone().requires_grad_(), w.clone().requires_grad_())
        y = masked_conv2d(*leaves, pixels, version=Fused(threads=threads))
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    for other in results[1:]:
        assert all(torch.equal(mine, its) for mine, its in zip(other, results[0], strict=True))


# Arguments.


def replaced(arguments, place, value):
    return (*arguments[:place], value, *arguments[place + 1 :])


@built
@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("block_gather", 0, torch.zeros(2, 4, 5, 2, dtype=torch.float16), "x has dtype Half: allowed: Float, Double"),
        ("block_gather", 0, torch.zeros(4, 5, 2), r"x has shape \[4, 5, 2\]"),
        ("block_gather", 1, torch.zeros(2, 2, dtype=torch.int32), r"index has shape \[2, 2\]"),
        ("block_gather", 1, torch.zeros(2, 3, dtype=torch.int64), "index has dtype Long"),
        ("block_gather", 2, int32(1, 2), r"count has shape \[2\]"),
        ("block_gather", 3, [3, 3, 2, 2], "window has 4 numbers"),
        ("block_gather", 3, [0, 3, 2, 2, 0, 0], "sizes and strides must be at least 1"),
        ("block_gather", 6, "gpu", "core is 'gpu': allowed: '', 'emulated'"),
        ("block_scatter", 0, torch.zeros(3, 3, 3, 2, dtype=torch.float64), "blocks has shape"),
        ("block_scatter", 4, [2, 4, 5, 3], "has shape"),
        ("block_scatter", 4, [2, -4, 5, 2], "no extent may be below 0"),
        ("block_scatter", 4, [1 << 20, 1 << 20, 1, 2], "no more than"),
        ("site_forward", 0, torch.zeros(3, 4, 2, dtype=torch.float64), "x and site have shapes"),
        ("site_forward", 1, torch.zeros(2, 2, 3, 3, dtype=torch.float64), "x has shape"),
        ("site_forward", 1, torch.zeros(2, 2, dtype=torch.float64), "w has shape"),
        ("site_forward", 2, torch.zeros(2, dtype=torch.float64), "bias has shape"),
        ("site_forward", 3, torch.zeros(1, 3, 4, 2, dtype=torch.float64), "base has shape"),
        ("site_forward", 4, None, "exactly one of site and table"),
        ("site_forward", 7, [3, 4, 3, 3, 1, 1, 0, 0, 1, 1], "which is impossible"),
        ("site_forward", 7, [3, 4, 2, 2, 0, 1, 0, 0, 1, 1], "which is impossible"),
        ("table", 6, torch.zeros(3, 3, dtype=torch.int32), "table has shape"),
        ("residual_forward", 3, None, "scale1 and shift1 go together"),
        ("residual_forward", 8, torch.zeros(9, 3, 3, dtype=torch.float64), "w2 has shape"),
    ],
)
def test_the_operators_check_their_arguments(name, place, value, message):
    with pytest.raises(RuntimeError, match=message):
        overload_of(name)(*replaced(arguments_of(name, gradient=False), place, value))


@built
def test_what_is_written_may_not_be_read():
    x, w = real(1, 4, 5, 2, gradient=False), real(3, 3, 2, 2, gradient=False)
    pixels = PixelIndex(int32(0, 7), int32(2), (1, 4, 5))
    with pytest.raises(RuntimeError, match="y shares memory with x"):
        masked_conv2d(x, w, pixels, out=x, version="fused")
    both = real(3, 4, 5, 2, gradient=False)
    with pytest.raises(RuntimeError, match="y shares memory with blocks"):
        index = BlockIndex(torch.zeros(1, 3, dtype=torch.int32), int32(1))
        sparse_scatter_var(both[1:2], index, both[:2], bsize=(4, 5), bstride=(4, 5), add=False, version="fused")


def test_a_device_without_kernels_is_named():
    assert "of type meta" in torch_doors.missing_operators(Fused(), "meta")[0]
    assert "computes on tensors of the cpu" in torch_doors.missing_operators(Fused(core="emulated"), "cuda")[0]


def test_without_kernels_auto_takes_another_version(monkeypatch):
    monkeypatch.setattr(kernels, "missing", lambda target: [f"{target} is not built"])
    doors.missing_kernels.cache_clear()
    x, w = real(1, 4, 5, 2, gradient=False), real(3, 3, 2, 2, gradient=False)
    pixels = PixelIndex(int32(0, 7), int32(2), (1, 4, 5))
    try:
        expected = masked_conv2d(x, w, pixels, version="matmul")
        torch.testing.assert_close(masked_conv2d(x, w, pixels), expected, rtol=1e-12, atol=1e-12)
        with pytest.raises(Unavailable, match="version='fused': torch is not built; cpu is not built"):
            masked_conv2d(x, w, pixels, version="fused")
    finally:
        doors.missing_kernels.cache_clear()
