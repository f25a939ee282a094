"""Masks, gather and scatter in PyTorch against the oracle, and what the specification says of their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eqconv_cli.backends.block_sparse.index import BlockIndex
from eqconv_cli.torch import (
    block_params,
    block_pixels,
    pixel_index,
    reduce_mask,
    resize_mask,
    sparse_gather,
    sparse_scatter,
    sparse_scatter_var,
)
from tests.block_sparse.support_torch import (
    WINDOWS,
    check,
    gather_instance,
    ints,
    mask_instance,
    rows,
    scatter_instance,
)
from tests.support import needs

VERSIONS = ["indexed", pytest.param("fused", marks=needs("torch", "cpu"))]
at_windows = pytest.mark.parametrize("at", WINDOWS, ids=str)
in_versions = pytest.mark.parametrize("version", VERSIONS)


def index_of(array):
    return BlockIndex(torch.from_numpy(array), torch.tensor([len(array)], dtype=torch.int32))


def geometry(at):
    return dict(zip(("bsize", "bstride", "boffset"), at, strict=True))


@in_versions
@at_windows
@pytest.mark.parametrize("average", [False, True], ids=["max", "mean"])
@pytest.mark.parametrize("tol", [0.0, 0.5, -0.25, 1e9])
def test_reduce_mask(at, average, tol, version):
    for on_empty in ("none", "first"):
        check("reduce_mask", mask_instance(at, average, tol, on_empty), version)


@in_versions
@pytest.mark.parametrize("average", [False, True], ids=["max", "mean"])
def test_values_that_are_not_finite(average, version):
    inputs = mask_instance(((3, 3), (2, 2), (-1, -1)), average, 0.0)
    inputs["mask"][0, 2, 3], inputs["mask"][1, 4, 4] = np.nan, np.inf
    check("reduce_mask", inputs, version)


@in_versions
def test_masks_of_truth_values_and_of_doubles(version):
    inputs = mask_instance(((2, 3), (3, 4), (-1, -2)), False, 0.5)
    for mask in (inputs["mask"] > 0, inputs["mask"].astype(np.float64)[..., None]):
        check("reduce_mask", {**inputs, "mask": mask}, version)


@in_versions
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_pixel_index(k, strides, padding, version):
    inputs = {"mask": mask_instance(WINDOWS[0], False, 1.0)["mask"], "tol": np.float64(1), "ksize": ints(k, k)}
    check("pixel_index", {**inputs, "strides": ints(*strides), "padding": np.array(padding)}, version)


@in_versions
@pytest.mark.parametrize("transpose", [False, True])
@at_windows
def test_gather(at, transpose, version):
    check("gather", gather_instance(at, transpose), version, 0 if version == "indexed" else 1e-12)


@in_versions
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
@at_windows
def test_scatter(at, transpose, add, version):
    check("scatter", scatter_instance(at, transpose, add), version)


@in_versions
@at_windows
def test_putting_back_what_was_taken_changes_nothing(at, version):
    inputs = gather_instance(at, False)
    x, index = torch.from_numpy(inputs["x"]), index_of(inputs["index"])
    blocks = sparse_gather(x, index, **geometry(at), version=version)
    assert torch.equal(sparse_scatter(blocks, index, x, **geometry(at), add=False, version=version), x)


@in_versions
@pytest.mark.parametrize("add", [False, True])
@at_windows
def test_scatter_in_place_is_the_same_under_autograd(at, add, version):
    inputs = scatter_instance(at, False, add)
    blocks = torch.from_numpy(inputs["blocks"]).requires_grad_()
    base = torch.from_numpy(inputs["ybase"]).requires_grad_()
    index, flags = index_of(inputs["index"]), {"add": add, "atomic": True, "version": version}
    weights = torch.randn(base.shape, dtype=torch.float64)
    made = sparse_scatter(blocks, index, base, **geometry(at), **flags)
    wanted = torch.autograd.grad((made * weights).sum(), (blocks, base))
    var = base * 1
    returned = sparse_scatter_var(blocks, index, var, **geometry(at), **flags)
    assert returned.data_ptr() == var.data_ptr() and torch.equal(returned, made)
    found = torch.autograd.grad((var * weights).sum(), (blocks, base))
    for mine, its in zip(found, wanted, strict=True):
        assert torch.equal(mine, its)


@in_versions
def test_scatter_into_a_leaf_is_refused_as_by_every_operation_in_place(version):
    inputs = scatter_instance(WINDOWS[0], False, False)
    var = torch.from_numpy(inputs["ybase"]).requires_grad_()
    with pytest.raises(RuntimeError, match="leaf"):
        sparse_scatter_var(
            torch.from_numpy(inputs["blocks"]),
            index_of(inputs["index"]),
            var,
            **geometry(WINDOWS[0]),
            add=False,
            version=version,
        )


@in_versions
@pytest.mark.parametrize("add", [False, True])
def test_gradients_of_overlapping_windows(add, version):
    at = ((3, 2), (1, 1), (-1, 0))
    index = index_of(np.array([[0, 1, 1], [0, 0, 0], [0, 2, 1], [0, 1, 1]], np.int32))
    blocks = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True)

    def scatter(blocks, base):
        return sparse_scatter(blocks, index, base, **geometry(at), add=add, atomic=True, version=version)

    def gather(x):
        return sparse_gather(x, index, **geometry(at), version=version)

    assert torch.autograd.gradcheck(scatter, (blocks, x))
    assert torch.autograd.gradcheck(gather, (x,))
    assert torch.autograd.gradgradcheck(gather, (x,))
    assert torch.autograd.gradgradcheck(scatter, (blocks, x))


@in_versions
def test_rows_behind_the_count_are_ignored(version):
    at = WINDOWS[1]
    inputs = gather_instance(at, False)
    x, index = torch.from_numpy(inputs["x"]), index_of(inputs["index"])
    padded = np.concatenate([inputs["index"], np.full((3, 3), -7, np.int32)]).astype(np.int16)
    longer = BlockIndex(torch.from_numpy(padded), index.bin_counts)
    expected = sparse_gather(x, index, **geometry(at), version=version)
    assert torch.equal(sparse_gather(x, longer, **geometry(at), version=version), expected)


@in_versions
def test_an_empty_list(version):
    index = index_of(np.zeros((0, 3), np.int32))
    x = torch.randn(1, 4, 5, 2)
    assert sparse_gather(x, index, **geometry(WINDOWS[0]), version=version).shape == (0, 2, 3, 2)
    made = sparse_scatter(x.new_zeros(0, 2, 3, 2), index, x, **geometry(WINDOWS[0]), add=False, version=version)
    assert torch.equal(made, x)


@in_versions
def test_channels_first_and_views(version):
    inputs = gather_instance(WINDOWS[1], False)
    x, index = torch.from_numpy(inputs["x"]), index_of(inputs["index"])
    expected = sparse_gather(x, index, **geometry(WINDOWS[1]), version=version)
    first = x.permute(0, 3, 1, 2).contiguous()
    found = sparse_gather(first, index, **geometry(WINDOWS[1]), layout="NCHW", version=version)
    assert torch.equal(found, expected)
    wide = x.repeat_interleave(2, -1)[..., ::2]
    assert torch.equal(sparse_gather(wide, index, **geometry(WINDOWS[1]), version=version), expected)


@in_versions
def test_pixels_of_blocks(version):
    params = block_params((7, 11), (5, 5), (3, 3))
    index = index_of(np.array([[1, 2, 3], [0, 0, 0], [0, 0, 0]], np.int32))
    pixels = block_pixels(index, params, 2, version=version)
    covered = np.zeros((2, 7, 11), bool)
    covered[0, :3, :3] = covered[1, 6:, 9:] = True
    assert pixels.pixels.tolist() == np.flatnonzero(covered).tolist() and pixels.grid == (2, 7, 11)
    assert pixels.count.tolist() == [len(pixels.pixels)]


@pytest.mark.parametrize("size", [(3, 4), (7, 11), (14, 30)], ids=str)
def test_resized_masks_keep_every_active_area(size):
    mask = torch.from_numpy(mask_instance(WINDOWS[0], False, 0.0)["mask"])
    made = resize_mask(mask, *size)
    for n in range(len(mask)):
        for i in range(size[0]):
            for j in range(size[1]):
                h0, h1 = i * 7 // size[0], -(-(i + 1) * 7 // size[0])
                w0, w1 = j * 11 // size[1], -(-(j + 1) * 11 // size[1])
                assert made[n, i, j] == mask[n, h0:h1, w0:w1].max()
    assert resize_mask(mask[..., None] > 0, *size).dtype == torch.bool


# Arguments.

X = torch.zeros(2, 7, 11, 3)
ROWS = index_of(np.zeros((2, 3), np.int32))
AT = {"bsize": (2, 3), "bstride": (2, 3)}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: reduce_mask(X[..., 0], (2, 0), **AT, tol=0.0), ValueError, "bcount"),
        (lambda: reduce_mask(X[..., 0], (2, 2), bsize=(0, 3), bstride=(2, 3), tol=0.0), ValueError, "bsize"),
        (lambda: reduce_mask(X, (2, 2), **AT, tol=0.0), ValueError, "mask has 3 channels"),
        (lambda: reduce_mask(X[0, 0], (2, 2), **AT, tol=0.0), ValueError, "mask has shape"),
        (lambda: reduce_mask(X[..., 0].int(), (2, 2), **AT, tol=0.0), TypeError, "mask has dtype int32"),
        (lambda: reduce_mask(X[..., 0], (2, 2), **AT, tol=float("nan")), ValueError, "tol=nan"),
        (lambda: reduce_mask(X[..., 0], (2, 2), **AT, tol=0.0, on_empty="all"), ValueError, "on_empty='all'"),
        (lambda: reduce_mask(X[..., 0], (2, 2), **AT, tol=0.0, version="sliced"), ValueError, "version='sliced'"),
        (lambda: pixel_index(X[..., 0], tol=0.0, padding="same"), ValueError, "padding='same'"),
        (lambda: resize_mask(X[..., 0], 2, 2, "mean"), ValueError, "how='mean'"),
        (lambda: sparse_gather(X[0], ROWS, **AT), ValueError, "x has shape"),
        (lambda: sparse_gather(X.half(), ROWS, **AT), TypeError, "x has dtype float16"),
        (lambda: sparse_gather(X, ROWS, **AT, layout="HWNC"), ValueError, "layout='HWNC'"),
        (lambda: sparse_gather(X, index_of(np.array([[2, 0, 0]])), **AT), IndexError, "image 2 but there are 2"),
        (lambda: sparse_gather(X, index_of(np.array([[0, -1, 0]])), **AT), IndexError, "block row -1"),
        (lambda: sparse_gather(X, index_of(np.zeros((1, 2), np.int32)), **AT), ValueError, "active_block_indices"),
        (
            lambda: sparse_gather(X, index_of(np.zeros((1, 3))), **AT),
            TypeError,
            "active_block_indices has dtype float64",
        ),
        (lambda: sparse_gather(X, ROWS._replace(bin_counts=torch.tensor([3])), **AT), IndexError, "bin_counts is 3"),
        (lambda: sparse_scatter(X.new_zeros(2, 2, 3, 4), ROWS, X, **AT, add=False), ValueError, "blocks has shape"),
        (
            lambda: sparse_scatter(X.new_zeros(2, 2, 3, 3).double(), ROWS, X, **AT, add=False),
            TypeError,
            "blocks has dtype",
        ),
        (
            lambda: sparse_scatter(X.new_zeros(2, 2, 3, 3), ROWS, X, bsize=(2, 3), bstride=(2, 2), add=True),
            ValueError,
            "add=True, atomic=False",
        ),
        (lambda: rows_of_int16(40000), OverflowError, "40000"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def rows_of_int16(number):
    return index_of(np.full((1, 3), number, np.int32)).as_int16()


def test_int16_rows_stay_on_their_device():
    assert index_of(rows(WINDOWS[0])).as_int16().active_block_indices.dtype == torch.int16
