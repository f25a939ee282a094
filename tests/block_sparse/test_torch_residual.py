"""The bottleneck on blocks and at pixels in PyTorch, against the oracle and the dense unit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eqconv_cli.backends.block_sparse.torch_residual import KSIZES
from eqconv_cli.torch import (
    BatchNorm,
    PixelIndex,
    ResidualWeights,
    block_params_chain,
    masked_residual_unit,
    reduce_mask,
    residual_unit,
    sparse_residual_unit,
)
from tests.block_sparse.support_torch import check, some_pixels, unit_instance, unit_on_blocks
from tests.support import needs

FUSED = pytest.param("fused", marks=needs("torch", "cpu"))
in_borders = pytest.mark.parametrize("border", ["dense", "original"])


@in_borders
@pytest.mark.parametrize("no_activation", [False, True])
@pytest.mark.parametrize("version", ["pixels", "auto", FUSED])
def test_at_pixels(version, no_activation, border):
    inputs = unit_instance(border, no_activation)
    for share in (0.0, 0.3, 1.0):
        check("masked_residual", {**inputs, "pixels": some_pixels(inputs["x"].shape[:3], share)}, version, 1e-11)


@in_borders
@pytest.mark.parametrize("bn", ["inference", "stack", "active"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize("project", [False, True])
def test_on_blocks(project, strides, bn, border):
    check("residual", unit_on_blocks(unit_instance(border, project=project), bn, strides), "blocks", 1e-11)


@in_borders
@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("version", ["blocks", "pixels", "auto", FUSED])
def test_versions_on_blocks(version, repeats, border):
    check("residual", unit_on_blocks(unit_instance(border), "inference", (1, 1), repeats), version, 1e-11)


def test_the_dense_version():
    for share in (0.0, 0.3, 1.0):
        inputs = unit_instance("dense")
        check("masked_residual", {**inputs, "pixels": some_pixels(inputs["x"].shape[:3], share)}, "dense", 1e-11)
        check("residual", unit_on_blocks(inputs, "inference", (1, 1), repeats=True), "dense", 1e-11)


def weights_of(inputs, gradient=False):
    norms = [BatchNorm(*torch.from_numpy(inputs[name])) if name in inputs else None for name in ("bn1", "bn2", "bn3")]
    matrices = [torch.from_numpy(inputs[name]).requires_grad_(gradient) for name in ("w1", "w2", "w3")]
    return ResidualWeights(*matrices, *norms)


def everywhere(x, bsize=(5, 7)):
    params = block_params_chain(x.shape, bsize, KSIZES)
    geometry = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
    index = reduce_mask(torch.ones(x.shape[:3]), params.bcount, **geometry, tol=0.0)
    return index, params


@pytest.mark.parametrize("version", ["blocks", "pixels", FUSED])
def test_with_everything_active_the_border_tells_the_modes_apart(version):
    """As issue #24 of the original was told to look first: no sparsity must give the dense unit."""
    inputs = unit_instance("dense")
    x, weights = torch.from_numpy(inputs["x"]), weights_of(inputs)
    dense = residual_unit(x, weights)
    index, params = everywhere(x)
    same = sparse_residual_unit(x, index, params, weights, version=version)
    torch.testing.assert_close(same, dense, rtol=1e-12, atol=1e-12)
    ring = sparse_residual_unit(x, index, params, weights, border="original", version=version)
    inside = (slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(ring[inside], dense[inside], rtol=1e-12, atol=1e-12)
    assert (ring - dense).abs().max() > 0.1


def test_active_statistics_do_not_depend_on_the_block_size():
    inputs = unit_instance("dense")
    x, weights = torch.from_numpy(inputs["x"]), weights_of(inputs)
    made = [sparse_residual_unit(x, *everywhere(x, b), weights, bn="active") for b in ((3, 3), (5, 7), (9, 13))]
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], rtol=1e-11, atol=1e-11)
    stacks = [sparse_residual_unit(x, *everywhere(x, b), weights, bn="stack") for b in ((3, 3), (9, 13))]
    assert (stacks[0] - stacks[1]).abs().max() > 1e-3


@pytest.mark.parametrize("version", ["blocks", "pixels", FUSED])
def test_in_place(version):
    inputs = unit_instance("dense")
    x, weights = torch.from_numpy(inputs["x"]), weights_of(inputs)
    index, params = everywhere(x)
    expected = sparse_residual_unit(x, index, params, weights)
    var = x.clone()
    assert sparse_residual_unit(var, index, params, weights, in_place=True, version=version) is var
    torch.testing.assert_close(var, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("version", ["pixels", FUSED])
def test_out(version, contiguous):
    inputs = unit_instance("dense")
    x, weights = torch.from_numpy(inputs["x"]).requires_grad_(), weights_of(inputs, gradient=True)
    found = some_pixels(x.shape[:3])
    pixels = PixelIndex(torch.from_numpy(found), torch.tensor([len(found)]), tuple(x.shape[:3]))
    expected = masked_residual_unit(x, pixels, weights, version="pixels")
    listed = torch.zeros(x.shape[:3], dtype=torch.bool)
    listed.view(-1)[pixels.pixels.long()] = True
    base = torch.randn(x.shape, dtype=torch.float64, requires_grad=True)
    out = base * 1 if contiguous else base.transpose(1, 2).contiguous().transpose(1, 2)
    returned = masked_residual_unit(x, pixels, weights, out=out, version=version)
    torch.testing.assert_close(returned, torch.where(listed[..., None], expected, base), rtol=1e-12, atol=1e-12)
    dy = torch.randn(x.shape, dtype=torch.float64)
    operands = (x, base, weights.w1, weights.w2, weights.w3)
    wanted = torch.autograd.grad(torch.where(listed[..., None], expected, base), operands, dy)
    torch.testing.assert_close(torch.autograd.grad(out, operands, dy), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("version", ["pixels", FUSED])
def test_gradcheck(version):
    inputs = unit_instance("original", channels=2)
    x = torch.from_numpy(inputs["x"][:1, :3, :4].copy()).requires_grad_()
    reals = [torch.from_numpy(inputs[name]).requires_grad_() for name in ("w1", "w2", "w3", "bn1", "bn2", "bn3")]
    pixels = PixelIndex(torch.tensor([0, 5, 6, 11]), torch.tensor([4]), (1, 3, 4))

    def function(x, w1, w2, w3, *norms):
        weights = ResidualWeights(w1, w2, w3, *(BatchNorm(*norm.unbind()) for norm in norms))
        return masked_residual_unit(x, pixels, weights, border="original", version=version)

    assert torch.autograd.gradcheck(function, (x, *reals))


def test_the_originals_gradient_problem():
    """x = noise * 0.1 + 1, a mask of coin flips, blocks of 5, one channel inside: in the original only printed."""
    rng = np.random.default_rng(0)
    inputs = unit_instance("original", channels=4)
    x = torch.from_numpy(rng.normal(size=(1, 5, 4, 4)) * 0.1 + 1).requires_grad_()
    params = block_params_chain(x.shape, (5, 5), KSIZES)
    geometry = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
    index = reduce_mask(torch.from_numpy(rng.random((1, 5, 4)) < 0.1), params.bcount, **geometry, tol=0.0)
    matrices = [torch.from_numpy(inputs[name]).requires_grad_() for name in ("w1", "w2", "w3")]

    def function(x, *matrices):
        weights = ResidualWeights(*matrices, *weights_of(inputs)[3:])
        return sparse_residual_unit(x, index, params, weights, border="original", bn="stack")

    assert torch.autograd.gradcheck(function, (x, *matrices))


# Arguments.

INPUTS = unit_instance("dense")
X, UNIT = torch.from_numpy(INPUTS["x"]), weights_of(INPUTS)
INDEX, PARAMS = everywhere(X)
PIXELS = PixelIndex(torch.tensor([0]), torch.tensor([1]), tuple(X.shape[:3]))
PROJECT = torch.zeros(3, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: residual_unit(X, UNIT._replace(w1=UNIT.w1.T)), ValueError, "w1 has shape"),
        (lambda: residual_unit(X, UNIT._replace(w2=UNIT.w2.float())), TypeError, "w2 has dtype float32"),
        (lambda: residual_unit(X, UNIT._replace(w3=UNIT.w3[:, :2])), ValueError, "without w_project"),
        (lambda: residual_unit(X, UNIT._replace(bn2=UNIT.bn1)), ValueError, "bn2.scale has shape"),
        (lambda: residual_unit(X[0], UNIT), ValueError, "x has shape"),
        (lambda: sparse_residual_unit(X, INDEX, PARAMS, UNIT, border="zero"), ValueError, "border='zero'"),
        (lambda: sparse_residual_unit(X, INDEX, PARAMS, UNIT, bn="batch"), ValueError, "bn='batch'"),
        (lambda: sparse_residual_unit(X, INDEX, PARAMS, UNIT, strides=(2, 2)), ValueError, "params has out_size"),
        (lambda: sparse_residual_unit(X, INDEX, PARAMS, UNIT, bn="stack", version="pixels"), ValueError, "bn='stack'"),
        (
            lambda: sparse_residual_unit(X, INDEX, PARAMS, UNIT._replace(w_project=PROJECT), in_place=True),
            ValueError,
            "in_place=True",
        ),
        (lambda: masked_residual_unit(X, PIXELS, UNIT._replace(w_project=PROJECT)), ValueError, "w_project"),
        (lambda: masked_residual_unit(X, PIXELS, UNIT, out=X[:1]), ValueError, "out has shape"),
        (lambda: masked_residual_unit(X, PIXELS, UNIT, version="blocks"), ValueError, "version='blocks'"),
        (
            lambda: masked_residual_unit(X, PIXELS, UNIT, border="original", version="dense"),
            ValueError,
            "border='original'",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
