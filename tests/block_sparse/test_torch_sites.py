"""Submanifold and strided sparse convolution in PyTorch, against the oracle and dense convolutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eqconv_cli.backends.block_sparse import site_patterns
from eqconv_cli.backends.block_sparse.torch_sites import COMPOSITIONS
from eqconv_cli.torch import (
    Sites,
    sites_from_mask,
    sites_from_points,
    sparse_conv,
    sparse_inverse_conv,
    subm_conv,
    to_dense,
)
from tests.block_sparse.support_torch import (
    check,
    sites_instance,
    strided_geometries,
    strided_instance,
    submanifold_instance,
)
from tests.support import needs

FUSED = pytest.param("fused", marks=needs("torch", "cpu"))
in_versions = pytest.mark.parametrize("version", [*COMPOSITIONS, "auto", FUSED])


@in_versions
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("axes", "k", "dilation"), [(1, 3, 1), (2, 3, 1), (2, 2, 1), (2, 3, 2), (3, 3, 1), (4, 2, 1)])
def test_submanifold(axes, k, dilation, groups, version):
    check("submanifold", submanifold_instance(axes, k, dilation, groups), version)


@in_versions
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("geometry", list(strided_geometries()), ids=str)
def test_strided(geometry, inverse, version):
    check("strided", strided_instance(*geometry, inverse), version)


def some_sites(axes=2, channels=4):
    inputs = sites_instance(axes, channels)
    return Sites.make(inputs["coords"], torch.from_numpy(inputs["feats"]), inputs["shape"].tolist(), 2)


@in_versions
def test_submanifold_is_the_dense_convolution_of_the_image_of_zeros(version):
    sites, w = some_sites(), torch.randn(3, 3, 4, 6, dtype=torch.float64)
    image = to_dense(sites).permute(0, 3, 1, 2)
    dense = torch.nn.functional.conv2d(image, w.permute(3, 2, 0, 1), padding=1).permute(0, 2, 3, 1)
    made = subm_conv(sites, w, version=version)
    torch.testing.assert_close(made.feats, dense[tuple(made.coords.long().unbind(1))], rtol=1e-12, atol=1e-12)


@in_versions
def test_strided_sites_are_those_that_a_kernel_of_ones_reaches(version):
    sites, w = some_sites(3), torch.randn(3, 3, 3, 4, 6, dtype=torch.float64)
    made = sparse_conv(sites, w, stride=2, padding=1, version=version)
    image = to_dense(sites).permute(0, 4, 1, 2, 3)
    occupied = to_dense(sites.with_feats(sites.feats.new_ones(len(sites.feats), 1))).permute(0, 4, 1, 2, 3)
    conv3d = torch.nn.functional.conv3d
    reached = conv3d(occupied, occupied.new_ones(1, 1, 3, 3, 3), stride=2, padding=1)[:, 0]
    assert made.coords.tolist() == (reached > 0.5).nonzero().tolist()
    dense = conv3d(image, w.permute(4, 3, 0, 1, 2), stride=2, padding=1).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(to_dense(made), dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("version", ["table", "rulebook", FUSED])
@pytest.mark.parametrize("axes", [2, 3])
def test_gradcheck(axes, version):
    sites = some_sites(axes, 2)
    w = torch.randn(*[2] * axes, 2, 2, dtype=torch.float64, requires_grad=True)
    back = torch.randn(*[2] * axes, 2, 1, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    feats = sites.feats.clone().requires_grad_()

    def function(feats, w, back, bias):
        given = sites.with_feats(feats)
        fewer = sparse_conv(subm_conv(given, w, bias=bias, version=version), w, stride=2, version=version)
        return sparse_inverse_conv(fewer, back, given, version=version).feats

    assert torch.autograd.gradcheck(function, (feats, w, back, bias))


def test_tables_are_made_once_for_all_sites_of_a_pattern(monkeypatch):
    made = []
    table = site_patterns.neighbour_table
    monkeypatch.setattr(site_patterns, "neighbour_table", lambda *given: made.append(1) or table(*given))
    sites, w = some_sites(), torch.randn(3, 3, 4, 4, dtype=torch.float64)
    first = subm_conv(subm_conv(sites, w, version="table"), w, version="table")
    fewer = sparse_conv(first, w, stride=2, version="table")
    again = sparse_conv(sites, w, stride=2, version="table")
    assert first.pattern is sites.pattern and fewer.pattern is again.pattern
    assert len(made) == 2


def test_coordinates_of_any_memory_order_and_dtype():
    mask = torch.rand(2, 5, 6) < 0.5
    x = torch.randn(2, 5, 6, 3)
    plain = sites_from_mask(x, mask)
    strange = mask.nonzero().T.contiguous().T
    assert not strange.is_contiguous()
    other = Sites.make(strange, x[mask], (5, 6), 2)
    w = torch.randn(3, 3, 3, 2)
    assert torch.equal(subm_conv(other, w).feats, subm_conv(plain, w).feats)
    assert torch.equal(to_dense(plain), torch.where(mask[..., None], x, 0))


@pytest.mark.parametrize(
    ("duplicates", "expected"),
    [("first", [1.0, 2.0]), ("last", [4.0, 2.0]), ("sum", [5.0, 2.0]), ("mean", [2.5, 2.0])],
)
def test_duplicates(duplicates, expected):
    coords = torch.tensor([[0, 3], [0, 1], [0, 3]])
    feats = torch.tensor([[1.0], [2.0], [4.0]], requires_grad=True)
    sites = Sites.make(coords, feats, (4,), duplicates=duplicates)
    assert sites.coords.tolist() == [[0, 3], [0, 1]] and sites.feats[:, 0].tolist() == expected
    sites.feats.sum().backward()
    assert feats.grad.sum() == (3 if duplicates == "sum" else 2)


def test_points():
    points = torch.tensor([[0.1, 0.2], [0.4, 0.3], [-0.6, 2.0]])
    sites = sites_from_points(points, 0.5, torch.tensor([[1.0], [3.0], [5.0]]))
    assert sites.shape == (3, 4) and sites.batch == 1
    assert sites.coords.tolist() == [[0, 1, 0], [0, 2, 0], [0, 0, 3]] and sites.feats[:, 0].tolist() == [1, 3, 5]


@in_versions
def test_no_sites(version):
    sites = Sites.make(np.zeros((0, 3), np.int64), torch.zeros(0, 4), (5, 6), 1)
    w = torch.randn(3, 3, 4, 2)
    assert subm_conv(sites, w, bias=torch.ones(2), version=version).feats.shape == (0, 2)
    assert sparse_conv(sites, w, stride=2, version=version).feats.shape == (0, 2)


# Arguments.

SITES = some_sites()
W = torch.zeros(3, 3, 4, 6, dtype=torch.float64)
ONE = torch.zeros(1, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Sites.make([[0, 7]], ONE, (4,)), ValueError, "outside batch and shape"),
        (lambda: Sites.make([[0, 0.5]], ONE, (4,)), ValueError, "whole numbers"),
        (lambda: Sites.make([[0, 1], [0, 1]], torch.zeros(2, 1), (4,)), ValueError, "more than once"),
        (lambda: Sites.make([[0, 1]], torch.zeros(2, 1), (4,)), ValueError, "feats has shape"),
        (lambda: Sites.make([[0, 1]], ONE.int(), (4,)), TypeError, "feats has dtype int32"),
        (lambda: SITES.with_feats(ONE), ValueError, "feats has shape"),
        (lambda: subm_conv(SITES, W[0]), ValueError, "w has shape"),
        (lambda: subm_conv(SITES, W.float()), TypeError, "w has dtype float32"),
        (lambda: subm_conv(SITES, W, groups=2), ValueError, "groups=2"),
        (lambda: subm_conv(SITES, W, groups=0), ValueError, "groups=0"),
        (lambda: subm_conv(SITES, W, dilation=0), ValueError, "dilation"),
        (lambda: subm_conv(SITES, W, bias=W[0, 0]), ValueError, "bias has shape"),
        (lambda: subm_conv(SITES, W, version="hash"), ValueError, "version='hash'"),
        (lambda: sparse_conv(SITES, W, stride=(2, 2, 2)), ValueError, "stride"),
        (lambda: sparse_conv(SITES, W, dilation=9), ValueError, "spans"),
        (lambda: sparse_inverse_conv(SITES, W, SITES), ValueError, "were not made by a sparse_conv of paired"),
        (
            lambda: sparse_inverse_conv(sparse_conv(SITES, W[..., :4], stride=2), W[:2], SITES),
            ValueError,
            "kernel size",
        ),
        (lambda: sites_from_mask(torch.zeros(1, 4, 4, 1), torch.zeros(1, 4, 3)), ValueError, "mask has shape"),
        (lambda: sites_from_points(torch.zeros(3, 2), 0.0), ValueError, "voxel=0.0"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
