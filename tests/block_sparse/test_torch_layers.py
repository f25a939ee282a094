"""The block-sparse layers: what they compute, that they train, and their dictionaries."""

from __future__ import annotations

import pytest
import torch

from eqconv_cli.backends.block_sparse.torch_residual import KSIZES
from eqconv_cli.torch import (
    Sites,
    SparseBlockConv2d,
    SparseConv,
    SparseInverseConv,
    SparseResidualUnit,
    SubmanifoldConv,
    block_params,
    block_params_chain,
    pixel_index,
    reduce_mask,
    residual_unit,
    sparse_residual_unit,
    to_dense,
)


def some_sites(axes=2):
    mask = torch.rand(2, *(6, 5, 4)[:axes], generator=torch.Generator().manual_seed(0)) < 0.4
    coords = mask.nonzero()
    return Sites.make(coords, torch.randn(len(coords), 3), mask.shape[1:], 2)


def step(layers, compute):
    """Losses before and after a step of steepest descent; every parameter must have moved it."""
    parameters = [p for layer in layers for p in layer.parameters()]
    before = compute()
    before.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in parameters)
    with torch.no_grad():
        for p in parameters:
            p -= 1e-3 * p.grad / p.grad.norm().clamp(min=1e-6)
    return float(before.detach()), float(compute().detach())


def test_a_block_convolution_loads_from_pytorchs_and_is_equal_where_active():
    torch.manual_seed(0)
    plain, layer = torch.nn.Conv2d(3, 5, 3, padding="same"), SparseBlockConv2d(3, 5, 3, bsize=(6, 5), activation="relu")
    layer.load_state_dict(plain.state_dict())
    x, mask = torch.randn(2, 9, 11, 3), torch.rand(2, 9, 11) < 0.1
    dense = plain(x.permute(0, 3, 1, 2)).relu().permute(0, 2, 3, 1)
    pixels = pixel_index(mask, tol=0.0, ksize=(3, 3))
    where = torch.zeros(pixels.grid, dtype=torch.bool)
    where.view(-1)[pixels.pixels.long()] = True
    torch.testing.assert_close(layer(x, mask)[where], dense[where], rtol=1e-5, atol=1e-5)
    at_pixels = layer(x, pixels)
    torch.testing.assert_close(at_pixels[where], dense[where], rtol=1e-5, atol=1e-5)
    assert (at_pixels[~where] == 0).all()
    plain.load_state_dict(layer.state_dict())


def test_a_block_convolution_trains():
    torch.manual_seed(0)
    layer = SparseBlockConv2d(3, 3, (3, 1), bsize=(7, 5), stride=2, padding="VALID", dtype=torch.float64)
    x, mask = torch.randn(1, 9, 11, 3, dtype=torch.float64), torch.rand(1, 9, 11) < 0.2
    before, after = step([layer], lambda: (layer(x, mask) - 1).square().sum())
    assert after < before


def test_initial_values():
    torch.manual_seed(0)
    layer = SparseBlockConv2d(64, 64, 3)
    deviation = (2 / (9 * 64)) ** 0.5
    assert layer.weight.abs().max() <= 2 * deviation and abs(layer.weight.std() / deviation - 0.88) < 0.02
    assert (layer.bias == 0).all()
    conv = SubmanifoldConv(3, 32, 64, 3, groups=2)
    assert conv.weight.shape == (3, 3, 3, 16, 64)
    assert abs(conv.weight.std() / (4 / (32 * 27)) ** 0.5 - 1) < 0.02
    unit = SparseResidualUnit(64)
    assert unit.w2.shape == (3, 3, 16, 16) and abs(unit.w2.std() / (2 / (9 * 16)) ** 0.5 - 0.88) < 0.05


@pytest.mark.parametrize("bn", ["inference", "stack", "active"])
@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"out_channels": 6}, {"no_activation": True}])
def test_a_residual_unit_trains(bn, options):
    torch.manual_seed(0)
    unit = SparseResidualUnit(4, 2, bsize=(7, 7), bn=bn, dtype=torch.float64, **options)
    x, mask = torch.randn(1, 8, 9, 4, dtype=torch.float64), torch.rand(1, 8, 9) < 0.3
    before, after = step([unit], lambda: (unit(x, mask) - 1).square().sum())
    assert after < before
    moved = unit.bn2.variance.ne(1).any()
    assert bool(moved) == (bn != "inference")


def test_a_residual_unit_is_the_dense_one_where_active():
    torch.manual_seed(0)
    unit = SparseResidualUnit(4, bsize=(6, 6), bn="stack", dtype=torch.float64).eval()
    for norm in (unit.bn1, unit.bn2, unit.bn3):
        torch.nn.init.normal_(norm.offset)
        norm.mean.normal_()
    x, mask = torch.randn(2, 8, 9, 4, dtype=torch.float64), torch.rand(2, 8, 9) < 0.2
    dense = unit(x)
    assert torch.equal(dense, residual_unit(x, unit.weights()))
    pixels = pixel_index(mask, tol=0.0)
    torch.testing.assert_close(unit(x, mask)[mask], dense[mask], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(unit(x, pixels)[mask], dense[mask], rtol=1e-10, atol=1e-10)
    assert torch.equal(unit(x, pixels)[~mask], x[~mask])
    other = SparseResidualUnit(4, dtype=torch.float64)
    other.load_state_dict(unit.state_dict())
    assert torch.equal(other(x), dense)


@pytest.mark.parametrize("bn", ["stack", "active"])
def test_running_statistics(bn):
    """A step of training moves them to the batch's, as the decay says; evaluation takes them and leaves them."""
    torch.manual_seed(0)
    unit = SparseResidualUnit(4, bsize=(6, 6), bn=bn, decay=0.75, dtype=torch.float64)
    x, mask = torch.randn(2, 8, 9, 4, dtype=torch.float64), torch.rand(2, 8, 9) < 0.2
    params = block_params_chain(x.shape, (6, 6), KSIZES)
    index = reduce_mask(
        mask, params.bcount, bsize=params.bsize, bstride=params.bstrides, boffset=params.boffset, tol=0.0
    )
    found = []
    expected = sparse_residual_unit(x, index, params, unit.weights(), bn=bn, statistics=found)
    torch.testing.assert_close(unit(x, mask), expected)
    for norm, (mean, variance) in zip((unit.bn1, unit.bn2, unit.bn3), found, strict=True):
        torch.testing.assert_close(norm.mean, 0.25 * mean)
        torch.testing.assert_close(norm.variance, 0.75 + 0.25 * variance)
    before = {name: value.clone() for name, value in unit.state_dict().items()}
    evaluated = unit.eval()(x, mask)
    torch.testing.assert_close(evaluated, sparse_residual_unit(x, index, params, unit.weights()))
    assert (evaluated - expected).abs().max() > 1e-3
    unit.train()(x, torch.zeros_like(mask))
    assert all(torch.equal(value, before[name]) for name, value in unit.state_dict().items())


def test_lists_of_blocks():
    torch.manual_seed(0)
    x, mask = torch.randn(2, 8, 9, 4), torch.rand(2, 8, 9) < 0.2
    for layer, params in (
        (SparseBlockConv2d(4, 5, 3, bsize=(6, 6)), block_params(x.shape, (6, 6), (3, 3))),
        (SparseResidualUnit(4, bsize=(6, 6)), block_params_chain(x.shape, (6, 6), KSIZES)),
    ):
        geometry = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
        index = reduce_mask(mask, params.bcount, **geometry, tol=0.0)
        assert torch.equal(layer(x, index), layer(x, mask))
        layer.bsize = None
        with pytest.raises(ValueError, match="bsize=None"):
            layer(x, index)


@pytest.mark.parametrize("axes", [2, 3])
def test_site_layers_go_down_and_up_and_train(axes):
    torch.manual_seed(0)
    sites = some_sites(axes)
    same, down = SubmanifoldConv(axes, 3, 4, 3), SparseConv(axes, 4, 6, 2, stride=2)
    up = SparseInverseConv(axes, 6, 2, 2)

    def compute():
        middle = same(sites)
        back = up(down(middle), middle)
        assert back.pattern is sites.pattern
        return (to_dense(back) - 1).square().sum()

    before, after = step([same, down, up], compute)
    assert after < before


def test_layers_show_their_arguments():
    assert "4, 6, kernel_size=(2, 2), bias=True, stride=(2, 2)" in repr(SparseConv(2, 4, 6, 2, stride=2))
    assert "groups=2" in repr(SubmanifoldConv(2, 4, 6, 3, groups=2))
    assert "bsize=(6, 6)" in repr(SparseBlockConv2d(3, 5, 3, bsize=(6, 6)))
    assert "border='dense'" in repr(SparseResidualUnit(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SparseBlockConv2d(0, 5, 3), "in_channels=0"),
        (lambda: SparseBlockConv2d(3, 5, 3, bsize=(2, 6)), "bsize=2"),
        (lambda: SparseBlockConv2d(3, 5, 3, padding="same"), "padding='same'"),
        (lambda: SparseBlockConv2d(3, 5, 3, base="ones"), "base='ones'"),
        (lambda: SparseBlockConv2d(3, 5, 3)(torch.zeros(1, 4, 4, 3), torch.ones(1, 4, 4)), "bsize=None"),
        (lambda: SparseResidualUnit(4, bn="batch"), "bn='batch'"),
        (lambda: SparseResidualUnit(4, bottleneck=0), "bottleneck=0"),
        (lambda: SparseResidualUnit(4, decay=-0.1), "decay=-0.1"),
        (lambda: SparseResidualUnit(4, out_channels=6, project=False), "project=False"),
        (lambda: SparseResidualUnit(4)(torch.zeros(1, 4, 4, 4), torch.ones(1, 4, 4)), "bsize=None"),
        (lambda: SubmanifoldConv(5, 3, 4, 3), "axes=5"),
        (lambda: SubmanifoldConv(2, 3, 4, (3, 3, 3)), "kernel_size"),
        (lambda: SubmanifoldConv(2, 3, 4, 3, groups=2), "groups=2"),
        (lambda: SparseConv(2, 3, 4, 3, stride=0), "stride"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
