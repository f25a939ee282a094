"""Masks, blocks and pixel lists in TensorFlow."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.backends.block_sparse import reference
from eqconv_cli.tensorflow import (
    BlockIndex,
    block_params,
    block_pixels,
    pixel_index,
    reduce_mask,
    resize_mask,
    sparse_gather,
    sparse_scatter,
    sparse_scatter_var,
)
from tests.block_sparse.support_tensorflow import FUSED, MODES, address, arrays, built, check, own

pytestmark = pytest.mark.tensorflow
VERSIONS = pytest.mark.parametrize("version", ["indexed", FUSED])
RNG = np.random.default_rng(0)
MASK = (RNG.random((2, 7, 11)) < 0.15) * RNG.normal(size=(2, 7, 11))
X = RNG.normal(size=(2, 7, 11, 3))
#: Overlapping rows, a repeated one, one outside the image.
INDEX = np.array([[1, 0, 0], [0, 1, 2], [0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 9, 3]], np.int32)
WINDOWS = [((3, 3), (3, 3), (0, 0)), ((2, 3), (1, 2), (-1, -2)), ((3, 2), (4, 5), (1, 0)), ((1, 1), (1, 1), (-6, -2))]
GEOMETRY = pytest.mark.parametrize(("bsize", "bstride", "boffset"), WINDOWS, ids=str)
HALF = tf.Variable(X, dtype=tf.float16)


def index_of(rows, count=None):
    return BlockIndex(tf.constant(rows, tf.int32), tf.constant([len(rows) if count is None else count]))


@VERSIONS
@MODES
@GEOMETRY
@pytest.mark.parametrize("avgpool", [False, True])
@pytest.mark.parametrize("tol", [0.1, -0.25, 99.0])
def test_reduce_mask(bsize, bstride, boffset, avgpool, tol, mode, version):
    inputs = arrays(
        mask=MASK,
        bcount=(4, 5),
        bsize=bsize,
        bstride=bstride,
        boffset=boffset,
        tol=tol,
        avgpool=avgpool,
        on_empty="first",
    )
    check("reduce_mask", inputs, version, mode)


@VERSIONS
def test_reduce_mask_takes_truth_values_and_ignores_nan(version):
    mask = np.zeros((1, 4, 4), np.float32)
    mask[0, 0, 0], mask[0, 3, 3] = np.nan, 1
    geometry = {"bsize": (2, 2), "bstride": (2, 2), "tol": 0.5, "version": version}
    for given in (mask, mask > 0.5, mask[..., None]):
        assert reduce_mask(given, (2, 2), **geometry).active_block_indices.numpy().tolist() == [[0, 1, 1]]
    assert reduce_mask(mask * 0, (2, 2), **geometry).active_block_indices.shape == (0, 3)
    averaged = reduce_mask(np.where(np.isnan(mask), mask, 1), (2, 2), avgpool=True, **geometry)
    assert averaged.active_block_indices.numpy().tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 1]]


@VERSIONS
@MODES
@pytest.mark.parametrize(
    ("ksize", "strides", "padding"), [((1, 1), (1, 1), "SAME"), ((3, 3), (2, 1), "SAME"), ((2, 3), (1, 2), "VALID")]
)
def test_pixel_index(ksize, strides, padding, mode, version):
    check("pixel_index", arrays(mask=MASK, tol=0.1, ksize=ksize, strides=strides, padding=padding), version, mode)


@VERSIONS
@MODES
@GEOMETRY
@pytest.mark.parametrize("transpose", [False, True])
def test_gather_and_scatter(bsize, bstride, boffset, transpose, mode, version):
    inputs = arrays(x=X, index=INDEX, bsize=bsize, bstride=bstride, boffset=boffset, transpose=transpose)
    check("gather", inputs, version, mode)
    stack = RNG.normal(size=reference.gather(inputs)["blocks"].shape)
    for add in (False, True):
        check("scatter", {**inputs, **arrays(blocks=stack, ybase=X, add=add, atomic=True)}, version, mode)


@VERSIONS
def test_numerical_gradients_where_windows_overlap(version):
    x, base = tf.constant(RNG.normal(size=(1, 4, 5, 2))), tf.constant(RNG.normal(size=(1, 4, 5, 2)))
    index = index_of([[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]])
    geometry = {"bsize": (2, 3), "bstride": (1, 2), "boffset": (-1, 0), "version": version}

    def function(x, base, add):
        blocks = sparse_gather(x, index, transpose=True, **geometry)
        return sparse_scatter(blocks * blocks, index, base, add=add, atomic=True, transpose=True, **geometry)

    for add in (False, True):
        analytic, numeric = tf.test.compute_gradient(lambda x, base, add=add: function(x, base, add), [x, base])
        for mine, its in zip(analytic, numeric, strict=True):
            np.testing.assert_allclose(mine, its, rtol=0, atol=1e-7)


@VERSIONS
def test_rows_that_do_not_count_are_zero_and_change_nothing(version):
    geometry = {"bsize": (3, 3), "bstride": (3, 3), "version": version}
    index = index_of([[0, 1, 1], [7, -1, 0]], count=1)
    blocks = sparse_gather(X, index, **geometry).numpy()
    np.testing.assert_array_equal(blocks[0], X[0, 3:6, 3:6])
    assert not blocks[1].any()
    y = sparse_scatter(tf.ones_like(blocks), index, X, add=False, **geometry).numpy()
    assert (y != X).sum() == 27


@VERSIONS
def test_everything_unknown_while_tracing(version):
    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None] * 4, tf.float64),
            tf.TensorSpec([None] * 3, tf.float64),
            *[tf.TensorSpec([2], tf.int32)] * 4,
        ],
    )
    def traced(x, mask, bcount, bsize, bstride, boffset):
        geometry = {"bsize": bsize, "bstride": bstride, "boffset": boffset, "version": version}
        index = reduce_mask(mask, bcount, tol=0.1, **geometry)
        blocks = sparse_gather(x, index, **geometry)
        y = sparse_scatter(2 * blocks, index, x, add=False, **geometry)
        return index, blocks, y, pixel_index(mask, tol=0.1, ksize=(3, 3), version=version)

    for bsize, bstride, boffset in WINDOWS:
        geometry = {"bsize": bsize, "bstride": bstride, "boffset": boffset}
        index, blocks, y, pixels = traced(X, MASK, [4, 5], bsize, bstride, boffset)
        inputs = arrays(mask=MASK, bcount=(4, 5), tol=0.1, avgpool=False, on_empty="none", **geometry)
        rows = reference.reduce_mask(inputs)["active_block_indices"]
        np.testing.assert_array_equal(index.active_block_indices, rows)
        gathered = reference.gather(arrays(x=X, index=rows, transpose=False, **geometry))["blocks"]
        np.testing.assert_array_equal(blocks, gathered)
        flags = {"add": False, "atomic": False, "transpose": False}
        scattered = arrays(blocks=2 * gathered, index=rows, ybase=X, **geometry, **flags)
        np.testing.assert_array_equal(y, reference.scatter(scattered)["y"])
        wanted = arrays(mask=MASK, tol=0.1, ksize=(3, 3), strides=(1, 1), padding="SAME")
        np.testing.assert_array_equal(pixels.pixels, reference.pixel_index(wanted)["pixels"])


@VERSIONS
def test_block_pixels(version):
    params = block_params((7, 11), (5, 4), (3, 3))
    found = block_pixels(index_of([[1, 2, 4], [0, 0, 0], [0, 0, 0]]), params, 2, version)
    wanted = np.zeros((2, 7, 11), bool)
    wanted[1, 6:9, 8:10] = wanted[0, :3, :2] = True
    np.testing.assert_array_equal(found.pixels, np.flatnonzero(wanted))
    assert found.grid == (2, 7, 11)
    assert int(found.count[0]) == len(found.pixels)


def test_nchw():
    geometry, index = {"bsize": (3, 3), "bstride": (3, 3)}, index_of([[0, 1, 1]])
    first = sparse_gather(X.transpose(0, 3, 1, 2), index, layout="NCHW", **geometry)
    np.testing.assert_array_equal(first, sparse_gather(X, index, **geometry))


@VERSIONS
@MODES
@pytest.mark.parametrize("keras_variable", [False, True])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
def test_scatter_into_a_variable(transpose, add, keras_variable, mode, version):
    at = {"bsize": (2, 3), "bstride": (1, 2), "boffset": (-1, -2)}
    flags = {"add": add, "atomic": True, "transpose": transpose}
    var = keras.Variable(X, dtype="float64") if keras_variable else tf.Variable(X)
    stack = RNG.normal(size=(len(INDEX), *((3, 2, 3) if transpose else (2, 3, 3))))

    def change(stack):
        assert sparse_scatter_var(stack, index_of(INDEX), var, **at, **flags, version=version) is var
        return tf.convert_to_tensor(var)

    made = (change if mode == "eager" else tf.function(change, autograph=False))(tf.constant(stack))
    wanted = reference.scatter(arrays(blocks=stack, index=INDEX, ybase=X, **at, **flags))["y"]
    np.testing.assert_allclose(var.numpy(), wanted, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(made, var.numpy())


@built
@MODES
def test_the_kernel_writes_into_the_memory_of_the_variable(mode):
    def change(var, value):
        blocks = tf.fill([1, 3, 3, 3], tf.cast(value, tf.float64))
        sparse_scatter_var(blocks, index_of([[0, 1, 1]]), var, bsize=(3, 3), bstride=(3, 3), add=False, version="fused")

    var = own(X)
    run = partial(change if mode == "eager" else tf.function(change, autograph=False), var)
    before = address(var)
    run(1)
    assert address(var) == before
    old = tf.convert_to_tensor(var)
    run(2)
    assert address(var) != before
    wanted = X.copy()
    for tensor, value in ((old, 1), (var, 2)):
        wanted[0, 3:6, 3:6] = value
        np.testing.assert_array_equal(tensor.numpy(), wanted)


def test_resize_mask():
    mask = np.arange(12.0).reshape(1, 3, 4)
    np.testing.assert_array_equal(resize_mask(mask, 2, 2), [[[5, 7], [9, 11]]])
    np.testing.assert_array_equal(resize_mask(mask > 4.5, 3, 8)[0, 1], [False, False, *[True] * 6])


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ValueError, "bsize", lambda g: sparse_gather(X, index_of(INDEX), **{**g, "bsize": (0, 1)})),
        (ValueError, "boffset", lambda g: sparse_gather(X, index_of(INDEX), boffset=(1, 2, 3), **g)),
        (ValueError, "rank 4", lambda g: sparse_gather(X[0], index_of(INDEX), **g)),
        (TypeError, "float16", lambda g: sparse_gather(X.astype(np.float16), index_of(INDEX), **g)),
        (IndexError, "image 5", lambda g: sparse_gather(X, index_of([[5, 0, 0]]), **g)),
        (IndexError, "-1", lambda g: sparse_gather(X, index_of([[0, -1, 0]]), **g)),
        (IndexError, "bin_counts is 3", lambda g: sparse_gather(X, index_of([[0, 0, 0]], count=3), **g)),
        (ValueError, "blocks has shape", lambda g: sparse_scatter(X, index_of(INDEX), X, add=False, **g)),
        (ValueError, "atomic", lambda g: sparse_scatter(X, index_of(INDEX), X, add=True, bsize=(2, 2), bstride=(1, 2))),
        (TypeError, "Variable", lambda g: sparse_scatter_var(X, index_of(INDEX), X, add=False, **g)),
        (TypeError, "float16", lambda g: sparse_scatter_var(X, index_of(INDEX), HALF, add=False, **g)),
        (ValueError, "blocks has", lambda g: sparse_scatter_var(X, index_of(INDEX), tf.Variable(X), add=False, **g)),
        (ValueError, "3 channels", lambda g: reduce_mask(X, (1, 1), tol=0.0, **g)),
        (TypeError, "int64", lambda g: reduce_mask(INDEX[None].astype(np.int64), (1, 1), tol=0.0, **g)),
        (ValueError, "nan", lambda g: reduce_mask(MASK, (1, 1), tol=float("nan"), **g)),
        (ValueError, "bcount", lambda g: reduce_mask(MASK, (0, 1), tol=0.0, **g)),
        (ValueError, "version", lambda g: reduce_mask(MASK, (1, 1), tol=0.0, version="other", **g)),
    ],
)
def test_errors(error, words, call):
    with pytest.raises(error, match=words):
        call({"bsize": (3, 3), "bstride": (3, 3)})


@VERSIONS
def test_a_traced_function_refuses_rows_out_of_range(version):
    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, 3], tf.int32)])
    def traced(rows):
        index = BlockIndex(rows, tf.shape(rows)[:1])
        return sparse_gather(X, index, bsize=(3, 3), bstride=(3, 3), version=version)

    assert traced(INDEX).shape == (6, 3, 3, 3)
    for row in ([5, 0, 0], [0, -1, 0]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            traced([row])
