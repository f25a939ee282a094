"""Convolutions, residual units and sites in NumPy: what a call may look like, and what is not allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eqconv_cli.backends.block_sparse import cost_model
from eqconv_cli.backends.block_sparse.numpy_convolution import PIXEL_COMPOSITIONS
from eqconv_cli.backends.block_sparse.site_patterns import make_pattern
from eqconv_cli.numpy import (
    BatchNorm,
    ResidualWeights,
    Sites,
    block_params,
    block_params_chain,
    block_pixels,
    convert_mask_to_indices,
    mask_conv2d,
    masked_conv2d,
    masked_residual_unit,
    pixel_index,
    reduce_mask,
    residual_unit,
    sites_from_mask,
    sites_from_points,
    sparse_conv,
    sparse_conv2d,
    sparse_conv2d_matmul,
    sparse_inverse_conv,
    sparse_residual_unit,
    subm_conv,
    to_dense,
)
from tests.block_sparse.support import FUSED, TWO_PIXELS

ROUTES = [*PIXEL_COMPOSITIONS, FUSED, "auto"]
RNG = np.random.default_rng(0)
X, W, B = RNG.normal(size=(2, 9, 8, 3)), RNG.normal(size=(3, 3, 3, 3)), RNG.normal(size=3)
MASK = RNG.random((2, 9, 8)) > 0.8
PIXELS = pixel_index(MASK, tol=0.5, ksize=(3, 3))
PARAMS = block_params(X.shape, (5, 4), (3, 3))
AT: dict[str, Any] = {"bsize": PARAMS.bsize, "bstride": PARAMS.bstrides, "boffset": PARAMS.boffset}
INDEX = reduce_mask(MASK, PARAMS.bcount, **AT, tol=0.5)


@pytest.mark.parametrize("version", ROUTES)
def test_out_is_written_at_the_pixels_only(version: Any) -> None:
    out = np.full(X.shape, 7.0)
    assert masked_conv2d(X, W, PIXELS, out=out, version=version) is out
    listed = np.zeros(MASK.size, bool)
    listed[PIXELS.pixels] = True
    listed = listed.reshape(MASK.shape)
    assert (out[~listed] == 7).all()
    np.testing.assert_allclose(out[listed], masked_conv2d(X, W, PIXELS)[listed], atol=1e-12)


@pytest.mark.parametrize("version", ["blocks", FUSED])
def test_bases_of_a_convolution_on_blocks(version: Any) -> None:
    covered = block_pixels(INDEX, PARAMS, 2)
    inside = np.isin(np.arange(MASK.size), covered.pixels).reshape(MASK.shape)
    y = {base: sparse_conv2d(X, W, INDEX, PARAMS, base=base, version=version) for base in ("zeros", "input")}
    assert not y["zeros"][~inside].any() and np.array_equal(y["input"][~inside], X[~inside])
    assert np.array_equal(y["zeros"][inside], y["input"][inside])
    dense = mask_conv2d(X, W, np.ones_like(MASK))
    np.testing.assert_allclose(y["zeros"][inside], dense[inside], atol=1e-12)


def test_sbnets_routes_agree() -> None:
    """``mask_conv2d``, the im2col form, blocks and their indices, where the dilated mask is."""
    dense = mask_conv2d(X, W, MASK)
    np.testing.assert_allclose(sparse_conv2d_matmul(X, W, MASK, tol=0.5), dense, atol=1e-12)
    assert np.array_equal(convert_mask_to_indices(MASK, (5, 4), (3, 3), tol=0.5), INDEX.active_block_indices)
    inside = np.isin(np.arange(MASK.size), PIXELS.pixels).reshape(MASK.shape)
    np.testing.assert_allclose(sparse_conv2d(X, W, INDEX, PARAMS)[inside], dense[inside], atol=1e-12)


def test_a_mask_with_other_values_scales_the_dense_convolution() -> None:
    values = TWO_PIXELS * 3 - 1
    y = mask_conv2d(np.ones((1, 5, 5, 1)), np.ones((1, 1, 1, 1)), values)
    assert np.array_equal(y[..., 0], values)


def unit(channels: int, bottleneck: int) -> ResidualWeights:
    def norm(n: int) -> BatchNorm:
        return BatchNorm(*RNG.normal(size=(3, n)), RNG.random(n) + 0.5)

    shapes = ((channels, bottleneck), (3, 3, bottleneck, bottleneck), (bottleneck, channels))
    w1, w2, w3 = (RNG.normal(size=shape) for shape in shapes)
    return ResidualWeights(w1, w2, w3, norm(channels), norm(bottleneck), norm(bottleneck))


UNIT = unit(3, 2)
CHAIN = block_params_chain(X.shape, (5, 5), [(1, 1), (3, 3), (1, 1)])
BLOCKS = reduce_mask(MASK, CHAIN.bcount, bsize=CHAIN.bsize, bstride=CHAIN.bstrides, boffset=CHAIN.boffset, tol=0.5)


@pytest.mark.parametrize("version", ["blocks", "pixels", "dense", FUSED])
def test_the_unit_in_place_and_twice_in_the_list(version: Any) -> None:
    x, dense = X.copy(), residual_unit(X, UNIT)
    assert sparse_residual_unit(x, BLOCKS, CHAIN, UNIT, in_place=True, version=version) is x
    inside = np.isin(np.arange(MASK.size), block_pixels(BLOCKS, CHAIN, 2).pixels).reshape(MASK.shape)
    np.testing.assert_allclose(x[inside], dense[inside], atol=1e-12)
    assert np.array_equal(x[~inside], X[~inside])
    rows = np.concatenate([BLOCKS.active_block_indices] * 2)
    twice = BLOCKS._replace(active_block_indices=rows, bin_counts=np.array([len(rows)], np.int32))
    np.testing.assert_allclose(sparse_residual_unit(X, twice, CHAIN, UNIT, version=version), x, atol=1e-12)


@pytest.mark.parametrize("version", ["pixels", "dense", FUSED])
def test_the_unit_at_pixels_writes_to_out(version: Any) -> None:
    out = np.full(X.shape, 7.0)
    assert masked_residual_unit(X, PIXELS, UNIT, out=out, version=version) is out
    inside = np.isin(np.arange(MASK.size), PIXELS.pixels).reshape(MASK.shape)
    np.testing.assert_allclose(out[inside], residual_unit(X, UNIT)[inside], atol=1e-12)
    assert (out[~inside] == 7).all()


def test_sites_to_and_from_images_and_points() -> None:
    sites = sites_from_mask(X, MASK[..., None])
    image = np.where(MASK[..., None], X, 0)
    assert np.array_equal(to_dense(sites), image) and sites.batch == 2 and sites.shape == (9, 8)
    dense = mask_conv2d(image, W, np.ones_like(MASK)) * MASK[..., None]
    np.testing.assert_allclose(to_dense(subm_conv(sites, W)), dense, atol=1e-12)
    points = np.array([[0.1, 0.2, 5.0], [0.4, 0.3, 5.2], [2.0, 0.2, 5.0]])
    cloud = sites_from_points(points, 1.0, np.array([[1.0], [3.0], [5.0]]))
    assert cloud.coords.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]] and cloud.feats.tolist() == [[2.0], [5.0]]
    assert sites_from_points(points, (0.1, 1, 1), duplicates="error").feats.dtype == np.float64


def test_merged_features() -> None:
    coords, feats = np.array([[0, 1], [0, 0], [0, 1]]), np.array([[1.0], [2.0], [5.0]])
    for duplicates, expected in (("first", [1, 2]), ("last", [5, 2]), ("sum", [6, 2]), ("mean", [3, 2])):
        assert Sites.make(coords, feats, (3,), duplicates=duplicates).feats[:, 0].tolist() == expected


SITES = sites_from_mask(X, MASK)
NORM = UNIT.bn2
REFUSED: dict[str, tuple[Any, str]] = {
    "grid": (lambda: masked_conv2d(X, W, PIXELS._replace(grid=(2, 8, 9))), r"the grid \(2, 8, 9\)"),
    "channels": (lambda: masked_conv2d(X, W[:, :, :2], PIXELS), "2 input channels but x has 3"),
    "base": (lambda: masked_conv2d(X, W, PIXELS, base="ones"), "base='ones' is unknown"),
    "input": (lambda: masked_conv2d(X, W[..., :2], PIXELS, base="input"), "K = C"),
    "shape": (lambda: masked_conv2d(X, W, PIXELS, base=X[:1]), "base has shape"),
    "out": (lambda: masked_conv2d(X, W, PIXELS, base="input", out=X.copy()), "leave base= out"),
    "shared": (lambda: masked_conv2d(X, W, PIXELS, out=X), "not share memory"),
    "bias": (lambda: masked_conv2d(X, W, PIXELS, bias=B[:2]), "bias has shape"),
    "activation": (lambda: masked_conv2d(X, W, PIXELS, activation="gelu"), "activation='gelu'"),
    "padding": (lambda: masked_conv2d(X, W, PIXELS, padding="FULL"), "padding='FULL'"),
    "strides": (lambda: masked_conv2d(X, W, PIXELS, strides=(1, 2, 2, 2)), "first and the last"),
    "params": (lambda: sparse_conv2d(X[:, :7], W, INDEX, PARAMS), "does not belong to an image"),
    "mask": (lambda: sparse_conv2d_matmul(X, W, MASK[:1], tol=0.5), "resize_mask"),
    "border": (lambda: sparse_residual_unit(X, BLOCKS, CHAIN, UNIT, border="ring"), "border='ring'"),
    "bn": (lambda: sparse_residual_unit(X, BLOCKS, CHAIN, UNIT, bn="batch"), "bn='batch'"),
    "route": (
        lambda: sparse_residual_unit(X, BLOCKS, CHAIN, UNIT, bn="stack", version="pixels"),
        "version='pixels' needs bn='inference'.*: bn='stack'",
    ),
    "ring": (lambda: masked_residual_unit(X, PIXELS, UNIT, border="original", version="dense"), "has border='dense'"),
    "chain": (lambda: sparse_residual_unit(X, BLOCKS, CHAIN, UNIT, strides=(2, 2)), "block_params_chain"),
    "w1": (lambda: residual_unit(X, UNIT._replace(w1=UNIT.w1[:2])), r"w1 has shape \[2, 2\]"),
    "norm": (lambda: residual_unit(X, UNIT._replace(bn1=NORM)), "bn1.scale"),
    "project": (lambda: residual_unit(X, UNIT._replace(w3=UNIT.w3[:, :2])), "w_project"),
    "kernel": (lambda: subm_conv(SITES, W[0]), "expected rank 4"),
    "groups": (lambda: subm_conv(SITES, W, groups=2), "groups=2"),
    "feats": (lambda: SITES.with_feats(X[0, 0]), "feats has shape"),
    "pair": (lambda: sparse_inverse_conv(SITES, W, SITES), "no rulebook"),
    "extents": (
        lambda: sparse_inverse_conv(sparse_conv(SITES, W, stride=2), W[:2], SITES),
        r"the paired convolution has \(3, 3\)",
    ),
    "voxel": (lambda: sites_from_points(np.zeros((2, 3)), 0.0), "voxel"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_allowed(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_dtypes_must_agree() -> None:
    with pytest.raises(TypeError, match="w has dtype float32 but x has dtype float64"):
        masked_conv2d(X, W.astype(np.float32), PIXELS)
    with pytest.raises(TypeError, match="bias has dtype"):
        subm_conv(SITES, W, bias=B.astype(np.float32))
    with pytest.raises(IndexError, match="positions 0 to 143"):
        masked_conv2d(X, W, PIXELS._replace(pixels=np.array([144]), count=np.array([1])))


@pytest.mark.parametrize("back", [False, True])
def test_auto_on_sites_takes_what_computes_least(back: bool) -> None:
    every, few = np.argwhere(np.ones((1, 40, 40))), np.array([[0, 0, 0], [0, 20, 20], [0, 39, 39]])
    for framework in cost_model.SITE_RELATIVE:
        versions = []
        for coords in (every, few):
            book = make_pattern(coords, (40, 40))[0].strided((3, 3), 1, 1)
            versions.append(cost_model.choose_sites(book.sizes(back), framework, fused=False).version)
        assert versions[1] in ("rulebook", "table") and (versions[0] == "dense" or framework == "torch")
        assert cost_model.choose_sites(book.sizes(back), framework, fused=True).version == "fused"


def test_tiles_reach_past_the_edge_but_count_no_more_than_the_image() -> None:
    assert cost_model.tiles_of(np.array([0, 8, 80, 99]), (1, 10, 10)) == 4
    assert cost_model.sizes(4, 4, 100, (3, 3, 2, 5)).tile_pixels == 100


def test_the_cost_model_takes_what_computes_least() -> None:
    sizes = cost_model.Sizes(pixels=100, tile_pixels=1000, outputs=1000, taps=9, channels=8, filters=8)
    assert cost_model.choose(sizes, "numpy", fused=True).version == "fused"
    for framework in cost_model.RELATIVE:
        assert cost_model.choose(sizes, framework, fused=False).version == "matmul"
        full = sizes._replace(pixels=1000)
        assert cost_model.choose(full, framework, fused=False).version == "dense"
        compact = sizes._replace(pixels=100, tile_pixels=110)
        assert cost_model.choose(compact, framework, fused=False).version in ("blocks", "matmul")
