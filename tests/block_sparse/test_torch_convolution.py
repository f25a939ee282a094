"""Convolution on blocks and at pixels in PyTorch: against the oracle, and the numbers of the original's tests."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from eqconv_cli.backends.block_sparse.torch_convolution import PIXEL_COMPOSITIONS, dense_conv2d
from eqconv_cli.torch import (
    PixelIndex,
    block_params,
    convert_mask_to_indices,
    mask_conv2d,
    masked_conv2d,
    pixel_index,
    reduce_mask,
    sparse_conv2d,
    sparse_conv2d_matmul,
    sparse_gather,
    upsample_indices,
)
from tests.block_sparse.support_torch import check, convolution_instance, on_blocks, on_pixels
from tests.support import needs

FUSED = pytest.param("fused", marks=needs("torch", "cpu"))
CASES = [(1, (1, 1)), (2, (1, 1)), (2, (2, 2)), (3, (1, 1)), (3, (2, 2)), (3, (1, 2))]
in_pixel_versions = pytest.mark.parametrize("version", [*PIXEL_COMPOSITIONS, "auto", FUSED])
in_block_versions = pytest.mark.parametrize("version", ["blocks", "auto", FUSED])


@in_pixel_versions
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("k", "strides"), CASES)
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_at_pixels(k, strides, padding, activation, version):
    check("masked", on_pixels(convolution_instance(k, strides, padding, activation)), version)


@in_pixel_versions
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_at_no_pixel_few_and_all(share, version):
    check("masked", on_pixels(convolution_instance(3, (1, 1), "SAME", "relu", bias=False), share), version)


@in_block_versions
@pytest.mark.parametrize("coverage", ["full", "original"])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("k", "strides"), CASES)
def test_on_blocks(k, strides, padding, coverage, version):
    check("convolution", on_blocks(convolution_instance(k, strides, padding, "relu"), coverage), version)


FIRST_MASK = np.zeros((1, 5, 5), np.float32)
FIRST_MASK[0, 1, 2] = FIRST_MASK[0, 2, 0] = 1
SECOND_MASK = np.zeros((1, 8, 8), np.float32)
SECOND_MASK[0, :5, 5:] = SECOND_MASK[0, 2, 0] = 1


@in_block_versions
@pytest.mark.parametrize(
    ("mask", "b", "k", "stride", "padding", "expected"),
    [
        (FIRST_MASK, 3, 3, 1, "VALID", [[9, 9, 9], [9, 9, 9], [9, 0, 0]]),
        (FIRST_MASK, 3, 3, 1, "SAME", [[0, 6, 6, 6, 0], [6, 9, 9, 9, 0], [6, 9, 9, 9, 0], [6, 9, 0, 0, 0], [0] * 5]),
        (FIRST_MASK, 4, 3, 1, "SAME", [[4, 6, 6, 6, 0], *[[6, 9, 9, 9, 0]] * 3, [0] * 5]),
        (FIRST_MASK, 5, 3, 2, "SAME", [[4, 6, 0], [6, 9, 0], [0, 0, 0]]),
        (SECOND_MASK, 5, 2, 1, "VALID", [*[[4] * 7] * 4, *[[0] * 4 + [4] * 3] * 3]),
    ],
)
def test_the_originals_numbers(mask, b, k, stride, padding, expected, version):
    x, w = torch.ones(1, *mask.shape[1:], 1), torch.ones(k, k, 1, 1)
    for coverage in ("full", "original"):
        params = block_params(x.shape, (b, b), (k, k), (stride, stride), padding, coverage)
        geometry = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
        index = reduce_mask(torch.from_numpy(mask), params.bcount, **geometry, tol=0.0)
        y = sparse_conv2d(x, w, index, params, strides=(1, stride, stride, 1), version=version)
        # The first tile of a block size of 4 is not wholly in the image at its far end.
        assert y[0, :, :, 0].tolist() == expected


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_everything_agrees_on_the_dilated_mask(k, stride, padding):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(3, 28, 28, 4)))
    w = torch.from_numpy(rng.normal(size=(k, k, 4, 6)))
    mask = torch.from_numpy(rng.random((3, 28, 28)) < 0.02)
    options = {"strides": (stride, stride), "padding": padding}
    dense = mask_conv2d(x, w, mask, **options)
    pixels = pixel_index(mask, tol=0.0, ksize=(k, k), **options)
    where = torch.zeros(pixels.grid, dtype=torch.bool)
    where.view(-1)[pixels.pixels.long()] = True
    torch.testing.assert_close(masked_conv2d(x, w, pixels, **options), dense, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sparse_conv2d_matmul(x, w, mask, tol=0.0, **options), dense, rtol=1e-12, atol=1e-12)
    params = block_params(x.shape, [k + 2 * stride] * 2, (k, k), (stride, stride), padding)
    geometry = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
    index = reduce_mask(mask, params.bcount, **geometry, tol=0.0)
    found = sparse_conv2d(x, w, index, params, strides=(stride, stride))
    torch.testing.assert_close(found[where], dense[where], rtol=1e-12, atol=1e-12)


def test_same_padding_is_tensorflows():
    """On an even size a stride of 2 pads behind only, and PyTorch's padding=1 is another convolution."""
    x = torch.arange(16.0).view(1, 4, 4, 1)
    w = torch.zeros(3, 3, 1, 1)
    w[0, 0] = 1
    assert dense_conv2d(x, w, strides=(2, 2))[0, :, :, 0].tolist() == [[0, 2], [8, 10]]


@in_pixel_versions
def test_out_is_written_at_the_pixels_only(version):
    inputs = on_pixels(convolution_instance(3, (1, 1), "SAME", "relu"))
    x, w, bias = (torch.from_numpy(inputs[name]).requires_grad_() for name in ("x", "w", "bias"))
    base = torch.from_numpy(inputs["base"]).requires_grad_()
    pixels = PixelIndex(
        torch.from_numpy(inputs["pixels"]), torch.tensor([len(inputs["pixels"])]), tuple(base.shape[:3])
    )
    options = {"bias": bias, "activation": "relu", "version": version}
    expected = masked_conv2d(x, w, pixels, base=base, **options)
    weights = torch.randn(base.shape, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * weights).sum(), (x, w, bias, base))
    for strange in (False, True):
        out = base.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) if strange else base * 1
        returned = masked_conv2d(x, w, pixels, out=out, **options)
        assert returned is out or returned.data_ptr() == out.data_ptr()
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad((out * weights).sum(), (x, w, bias, base))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@in_block_versions
def test_base_input_and_weights_of_pytorchs_layout(version):
    x = torch.randn(1, 6, 9, 3, dtype=torch.float64)
    w = torch.randn(5, 3, 3, 3, dtype=torch.float64)[:3]
    params = block_params(x.shape, (5, 5), (3, 3))
    geometry = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
    mask = torch.zeros(1, 6, 9)
    mask[0, 0, 0] = 1
    index = reduce_mask(mask, params.bcount, **geometry, tol=0.0)
    y = sparse_conv2d(x, w, index, params, base="input", w_layout="OIHW", version=version)
    expected = x.clone()
    dense = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), w, padding=1).permute(0, 2, 3, 1)
    expected[:, :3, :3] = dense[:, :3, :3]
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    out = x * 1
    sparse_conv2d(x, w, index, params, out=out, w_layout="OIHW", version=version)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_indices_by_pooling_are_those_of_the_blocks(padding):
    rng = np.random.default_rng(1)
    x, mask = torch.from_numpy(rng.normal(size=(2, 9, 12, 2))), torch.from_numpy(rng.random((2, 9, 12)) < 0.05)
    params = block_params(x.shape, (5, 4), (3, 2), (1, 1), padding)
    geometry = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
    index = reduce_mask(mask, params.bcount, **geometry, tol=0.0)
    rows = convert_mask_to_indices(mask, (5, 4), (3, 2), (1, 1), padding, tol=0.0)
    assert rows.tolist() == index.active_block_indices.tolist()
    n, h, w = upsample_indices(rows, params.bsize, params.bstrides).unbind(-1)
    top, left = -params.boffset[0], -params.boffset[1]
    around = torch.nn.functional.pad(x, (0, 0, left, 20, top, 20))
    assert torch.equal(around[n, h, w], sparse_gather(x, index, **geometry))


@pytest.mark.parametrize("version", ["matmul", "rulebook", "blocks", FUSED])
def test_gradcheck(version):
    rng = np.random.default_rng(2)
    x, w, bias = (torch.from_numpy(rng.normal(size=s)).requires_grad_() for s in ((1, 4, 5, 2), (3, 3, 2, 2), (2,)))
    base = torch.from_numpy(rng.normal(size=(1, 2, 3, 2))).requires_grad_()
    pixels = PixelIndex(torch.tensor([0, 2, 5]), torch.tensor([3]), (1, 2, 3))

    def function(x, w, bias, base):
        return masked_conv2d(x, w, pixels, strides=(2, 2), bias=bias, base=base, activation="relu", version=version)

    assert torch.autograd.gradcheck(function, (x, w, bias, base))


# Arguments.


@pytest.mark.parametrize("version", ["matmul", FUSED])
def test_a_list_that_changed_is_looked_at_again(version):
    x, w = torch.randn(1, 4, 5, 2), torch.randn(3, 3, 2, 2)
    pixels = PixelIndex(torch.tensor([1, 7, 19], dtype=torch.int32), torch.tensor([3]), (1, 4, 5))
    whole = dense_conv2d(x, w).reshape(-1, 2)

    def check(*listed):
        made = masked_conv2d(x, w, pixels, version=version).reshape(-1, 2)
        assert made.any(1).nonzero().squeeze(1).tolist() == list(listed)
        torch.testing.assert_close(made[list(listed)], whole[list(listed)])

    check(1, 7, 19)
    check(1, 7, 19)
    pixels.pixels[1] = 8
    check(1, 8, 19)
    pixels.count[0] = 2
    check(1, 8)
    pixels.pixels[0] = -1
    with pytest.raises(IndexError, match="positions from -1 to 8"):
        masked_conv2d(x, w, pixels, version=version)
    pixels.pixels[0] = 0
    with pytest.raises(ValueError, match="pixels is a list for an output"):
        masked_conv2d(x, w, pixels._replace(grid=(1, 5, 4)), version=version)
    with pytest.raises(IndexError, match="positions from 0 to 8"):
        masked_conv2d(x[:, :1], w, pixels._replace(grid=(1, 1, 5)), version=version)


def test_a_list_that_was_looked_at_is_not_kept():
    positions = torch.tensor([1, 7, 0], dtype=torch.int32)
    masked_conv2d(X, W, PixelIndex(positions, torch.tensor([2]), (1, 6, 6)))
    alive = weakref.ref(positions)
    del positions
    gc.collect()
    assert alive() is None


X, W = torch.zeros(1, 6, 6, 3), torch.zeros(3, 3, 3, 4)
PIXELS = PixelIndex(torch.tensor([0]), torch.tensor([1]), (1, 6, 6))
PARAMS = block_params((6, 6), (5, 5), (3, 3))
INDEX = reduce_mask(torch.ones(1, 6, 6), (2, 2), bsize=(5, 5), bstride=(3, 3), boffset=(-1, -1), tol=0.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: masked_conv2d(X, W[0], PIXELS), ValueError, "w has shape"),
        (lambda: masked_conv2d(X, W[:, :, :2], PIXELS), ValueError, "w has 2 input channels but x has 3"),
        (lambda: masked_conv2d(X, W.double(), PIXELS), TypeError, "w has dtype float64 but x has dtype float32"),
        (lambda: masked_conv2d(X, W, PIXELS, strides=(2, 2)), ValueError, "pixels is a list for an output"),
        (lambda: masked_conv2d(X, W, PIXELS, strides=(2, 1, 1, 1)), ValueError, "strides"),
        (lambda: masked_conv2d(X, W, PIXELS, padding="same"), ValueError, "padding='same'"),
        (
            lambda: masked_conv2d(X, W, PIXELS._replace(pixels=torch.tensor([36]))),
            IndexError,
            "positions from 36 to 36",
        ),
        (lambda: masked_conv2d(X, W, PIXELS._replace(pixels=torch.tensor([0.5]))), TypeError, "pixels has dtype"),
        (lambda: masked_conv2d(X, W, PIXELS, base="input"), ValueError, "base='input' needs an output like x"),
        (lambda: masked_conv2d(X, W, PIXELS, base=torch.zeros(1, 6, 6, 3)), ValueError, "base has shape"),
        (lambda: masked_conv2d(X, W, PIXELS, out=X, base="input"), ValueError, "base and out"),
        (lambda: masked_conv2d(X, W, PIXELS, out=X), ValueError, "out has shape"),
        (lambda: masked_conv2d(X, W, PIXELS, bias=torch.zeros(3)), ValueError, "bias has shape"),
        (lambda: masked_conv2d(X, W, PIXELS, activation="gelu"), ValueError, "activation='gelu'"),
        (lambda: masked_conv2d(X, W, PIXELS, w_layout="HWOI"), ValueError, "w_layout='HWOI'"),
        (lambda: masked_conv2d(X, W, PIXELS, version="winograd"), ValueError, "version='winograd'"),
        (lambda: mask_conv2d(X, W, torch.ones(1, 5, 6)), ValueError, "mask has shape"),
        (lambda: sparse_conv2d(X, W, INDEX, block_params((7, 6), (5, 5), (3, 3))), ValueError, "does not belong"),
        (lambda: sparse_conv2d(X, W, INDEX, PARAMS, base="input"), ValueError, "base='input'"),
        (lambda: block_params((6, 6), (2, 5), (3, 3)), ValueError, "bsize=2"),
        (lambda: block_params((6, 6), (6, 5), (3, 3), (2, 2)), ValueError, "nearest sizes that fit are 5 and 7"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
