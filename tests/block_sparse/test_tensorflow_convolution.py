"""Convolutions at some output pixels in TensorFlow."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.backends.block_sparse import tensorflow_convolution
from eqconv_cli.backends.block_sparse.tensorflow_inputs import block_params as params_of
from eqconv_cli.tensorflow import (
    BlockIndex,
    block_params,
    convert_mask_to_indices,
    mask_conv2d,
    masked_conv2d,
    pixel_index,
    reduce_mask,
    sparse_conv2d,
    sparse_conv2d_matmul,
    upsample_indices,
)
from tests.block_sparse.support_tensorflow import FUSED, MODES, address, arrays, built, check, close, own

pytestmark = pytest.mark.tensorflow
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 7, 11, 3))
MASK = np.zeros((1, 5, 5), np.float32)
MASK[0, 1, 2] = MASK[0, 2, 0] = 1
BLOCKS = pytest.mark.parametrize("version", ["blocks", FUSED])
PIXELS = pytest.mark.parametrize("version", ["dense", "matmul", "blocks", "upsample", "rulebook", "auto", FUSED])
LAYERS = pytest.mark.parametrize(
    ("ksize", "strides", "padding", "bsize"),
    [
        ((3, 3), (1, 1), "SAME", (5, 4)),
        ((3, 3), (2, 2), "SAME", (5, 7)),
        ((2, 3), (1, 1), "VALID", (4, 4)),
        ((1, 1), (2, 1), "SAME", (3, 2)),
    ],
    ids=str,
)


def layer(ksize, strides, padding, bsize, activation):
    params = block_params(X.shape, bsize, ksize, strides, padding)
    rows = np.argwhere(RNG.random((2, *params.bcount)) < 0.5).astype(np.int32)
    base = RNG.normal(size=(2, *params.out_size, 4))
    pixels = np.flatnonzero(RNG.random(base.shape[:3]) < 0.3).astype(np.int32)
    common = arrays(strides=strides, padding=padding, base=base, activation=activation, bias=RNG.normal(size=4))
    return {"x": X, "w": RNG.normal(size=(*ksize, 3, 4)), **common}, rows, pixels


@BLOCKS
@MODES
@LAYERS
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_in_blocks(ksize, strides, padding, bsize, activation, mode, version):
    inputs, rows, _ = layer(ksize, strides, padding, bsize, activation)
    check("convolution", {**inputs, **arrays(index=rows, bsize=bsize, coverage="full")}, version, mode)


@PIXELS
@MODES
@LAYERS
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_at_pixels(ksize, strides, padding, bsize, activation, mode, version):
    inputs, _, pixels = layer(ksize, strides, padding, bsize, activation)
    check("masked", {**inputs, "pixels": pixels}, version, mode)


@BLOCKS
def test_no_block_and_base_input(version):
    params = block_params(X.shape, (5, 5), (3, 3))
    none = BlockIndex(tf.zeros([0, 3], tf.int32), tf.zeros([1], tf.int32))
    w = RNG.normal(size=(3, 3, 3, 3))
    np.testing.assert_array_equal(sparse_conv2d(X, w, none, params, base="input", version=version), X)
    assert not sparse_conv2d(X, w, none, params, version=version).numpy().any()


SBNET = [
    ((3, 3), (3, 3), (1, 1), "VALID", [[9, 9, 9], [9, 9, 9], [9, 0, 0]]),
    ((3, 3), (3, 3), (1, 1), "SAME", [[0, 6, 6, 6, 0], [6, 9, 9, 9, 0], [6, 9, 9, 9, 0], [6, 9, 0, 0, 0], [0] * 5]),
    ((4, 4), (3, 3), (1, 1), "SAME", [[4, 6, 6, 6, 0], *[[6, 9, 9, 9, 0]] * 3, [0] * 5]),
    ((5, 5), (3, 3), (2, 2), "SAME", [[4, 6, 0], [6, 9, 0], [0, 0, 0]]),
]


@pytest.mark.parametrize("version", ["blocks", "matmul", FUSED])
@pytest.mark.parametrize(("bsize", "ksize", "strides", "padding", "wanted"), SBNET)
def test_the_original_tests(bsize, ksize, strides, padding, wanted, version):
    ones, w = np.ones((1, 5, 5, 1), np.float32), np.ones((*ksize, 1, 1), np.float32)
    if version == "matmul":
        if bsize != ksize:
            pytest.skip("blocks of the size of the kernel only")
        y = sparse_conv2d_matmul(ones, w, MASK, tol=0.0, strides=strides, padding=padding)
    else:
        params = block_params((5, 5), bsize, ksize, strides, padding)
        windows = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
        index = reduce_mask(MASK, params.bcount, tol=0.0, **windows)
        y = sparse_conv2d(ones, w, index, params, strides=strides, version=version)
    np.testing.assert_array_equal(y[0, ..., 0], wanted)


@BLOCKS
def test_the_original_test_with_an_even_kernel(version):
    mask = np.zeros((1, 8, 8), np.float32)
    mask[0, :5, 5:] = mask[0, 2, 0] = 1
    params = block_params((8, 8), (5, 5), (2, 2), padding="VALID")
    index = reduce_mask(mask, params.bcount, bsize=params.bsize, bstride=params.bstrides, tol=0.0)
    x, w = np.ones((1, 8, 8, 1), np.float32), np.ones((2, 2, 1, 1), np.float32)
    wanted = np.array([[4] * 7] * 4 + [[0, 0, 0, 0, 4, 4, 4]] * 3)
    np.testing.assert_array_equal(sparse_conv2d(x, w, index, params, version=version)[0, ..., 0], wanted)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("s", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_routes_agree_on_the_dilated_mask(k, s, padding):
    x, w = RNG.normal(size=(2, 13, 13, 4)), RNG.normal(size=(k, k, 4, 5))
    mask = RNG.random((2, 13, 13)) < 0.1
    dense = tf.nn.conv2d(x, w, s, padding).numpy()
    pixels = pixel_index(mask, tol=0.5, ksize=(k, k), strides=(s, s), padding=padding)
    listed = np.zeros(dense.shape[:3], bool)
    listed.reshape(-1)[pixels.pixels.numpy()] = True
    wanted = dense * listed[..., None]
    steps = {"strides": (s, s), "padding": padding}
    close(mask_conv2d(x, w, mask, **steps).numpy(), wanted, 1e-12)
    close(sparse_conv2d_matmul(x, w, mask, tol=0.5, **steps).numpy(), wanted, 1e-12)
    close(masked_conv2d(x, w, pixels, **steps).numpy(), wanted, 1e-12)


@pytest.mark.parametrize(("bsize", "ksize", "strides", "padding"), [row[:4] for row in SBNET])
def test_indices_by_pooling_are_those_of_reduce_mask(bsize, ksize, strides, padding):
    mask = RNG.random((2, 9, 10)).astype(np.float32) - 0.9
    params = block_params((9, 10), bsize, ksize, strides, padding)
    rows = convert_mask_to_indices(mask, bsize, ksize, strides, padding, -0.05)
    windows = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
    np.testing.assert_array_equal(rows, reduce_mask(mask, params.bcount, tol=-0.05, **windows).active_block_indices)
    first = upsample_indices(rows, params.bsize, params.bstrides).numpy()[:, 0, 0]
    np.testing.assert_array_equal(first, rows.numpy() * [1, *params.bstrides])


@BLOCKS
def test_everything_unknown_while_tracing(version):
    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec([None] * 4, tf.float64), tf.TensorSpec([None] * 3, tf.bool)]
    )
    def traced(x, mask):
        params = params_of(x, (5, 5), [(3, 3)], (2, 2))
        windows = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
        index = reduce_mask(mask, params.bcount, tol=0.5, **windows)
        blocks = sparse_conv2d(x, w, index, params, strides=(2, 2), version=version)
        pixels = pixel_index(mask, tol=0.5, ksize=(3, 3), strides=(2, 2))
        routes = ("dense", "matmul", "blocks", "upsample", "rulebook", "auto")
        return blocks, [masked_conv2d(x, w, pixels, strides=(2, 2), version=route) for route in routes]

    w = tf.constant(RNG.normal(size=(3, 3, 3, 4)))
    for shape in ((2, 7, 11), (1, 6, 5)):
        x, mask = RNG.normal(size=(*shape, 3)), np.ones(shape, bool)
        dense = tf.nn.conv2d(x, w, 2, "SAME").numpy()
        blocks, pixels = traced(x, mask)
        for made in (blocks, *pixels):
            close(made.numpy(), dense, 1e-12)


@PIXELS
def test_out_is_written_at_the_listed_pixels_alone(version):
    inputs, _, pixels = layer((3, 3), (1, 1), "SAME", (5, 4), "none")
    listed = pixel_index(np.ones((2, 7, 11), bool), tol=0.5)._replace(
        pixels=tf.constant(pixels), count=tf.constant([len(pixels)])
    )
    out = tf.Variable(inputs["base"])
    assert masked_conv2d(X, inputs["w"], listed, out=out, version=version) is out
    wanted = masked_conv2d(X, inputs["w"], listed, base=inputs["base"], version="dense")
    close(out.numpy(), wanted.numpy(), 1e-12)


@BLOCKS
@MODES
def test_out_is_changed_in_the_tiles_alone(mode, version):
    inputs, rows, _ = layer((3, 3), (1, 1), "SAME", (5, 4), "relu")
    params, out = block_params(X.shape, (5, 4), (3, 3)), tf.Variable(inputs["base"])
    index, rest = BlockIndex(tf.constant(rows), tf.constant([len(rows)])), {"bias": inputs["bias"]}

    def change(x):
        assert sparse_conv2d(x, inputs["w"], index, params, out=out, activation="relu", version=version, **rest) is out

    (change if mode == "eager" else tf.function(change, autograph=False))(tf.constant(X))
    wanted = sparse_conv2d(
        X, inputs["w"], index, params, base=inputs["base"], activation="relu", version="blocks", **rest
    )
    close(out.numpy(), wanted.numpy(), 1e-12)


@built
@MODES
def test_the_kernel_writes_into_the_memory_of_out(mode):
    w = RNG.normal(size=(3, 3, 3, 3))
    pixels = pixel_index(RNG.random((2, 7, 11)) < 0.3, tol=0.5)

    def change(x):
        masked_conv2d(x, w, pixels, out=out, version="fused")

    run, out = change if mode == "eager" else tf.function(change, autograph=False), own(X)
    before, wanted = address(out), masked_conv2d(X, w, pixels, base="input", version="dense").numpy()
    run(tf.constant(X))
    assert address(out) == before
    close(out.numpy(), wanted, 1e-12)
    # Its own value as the image: neighbours are read as they were.
    old = tf.convert_to_tensor(out)
    run(old)
    close(old.numpy(), wanted, 1e-12)
    close(out.numpy(), masked_conv2d(wanted, w, pixels, base="input", version="dense").numpy(), 1e-10)


@pytest.mark.parametrize("version", ["blocks", "upsample", "matmul", "rulebook", "dense", FUSED])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_pixel_and_no_block_of_another_number_of_filters(dtype, version):
    x, w, bias = X.astype(dtype), np.ones((3, 3, 3, 5), dtype), np.ones(5, dtype)
    none = pixel_index(np.zeros((2, 7, 11), bool), tol=0.5)
    assert not masked_conv2d(x, w, none, bias=bias, version=version).numpy().any()
    if version in ("blocks", "fused"):
        index = BlockIndex(tf.zeros([0, 3], tf.int32), tf.zeros([1], tf.int32))
        y = sparse_conv2d(x, w, index, block_params(X.shape, (5, 4), (3, 3)), bias=bias, version=version)
        assert y.shape == (2, 7, 11, 5)


@pytest.mark.parametrize(("step", "wanted"), [(70, "matmul"), (1, "dense")])
def test_auto_without_kernels_takes_what_the_cost_model_chooses(step, wanted, monkeypatch):
    taken, routes = [], tensorflow_convolution._ROUTES
    monkeypatch.setattr(tensorflow_convolution, "how_of", lambda version, like, compositions: "matmul")
    for name, route in routes.items():
        noted = partial(lambda name, route, *given: taken.append(name) or route(*given), name, route)
        monkeypatch.setitem(routes, name, noted)
    pixels = pixel_index(np.arange(2 * 7 * 11).reshape(2, 7, 11) % step == 0, tol=0.5)
    w = RNG.normal(size=(3, 3, 3, 4))
    y = masked_conv2d(X, w, pixels)
    assert taken == ([] if wanted == "dense" else [wanted])
    monkeypatch.undo()
    close(y.numpy(), masked_conv2d(X, w, pixels, version="dense").numpy(), 1e-12)


W = np.ones((3, 3, 3, 4))
ALL = pixel_index(np.ones((2, 7, 11), bool), tol=0.5)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ValueError, "base='input'", lambda: masked_conv2d(X, W, ALL, base="input")),
        (ValueError, "base has shape", lambda: masked_conv2d(X, W, ALL, base=X)),
        (ValueError, "input channels", lambda: masked_conv2d(X, W[:, :, :2], ALL)),
        (ValueError, "bias has shape", lambda: masked_conv2d(X, W, ALL, bias=np.ones(3))),
        (TypeError, "float32", lambda: masked_conv2d(X, W.astype(np.float32), ALL)),
        (ValueError, "padding", lambda: masked_conv2d(X, W, ALL, padding="FULL")),
        (ValueError, "strides", lambda: masked_conv2d(X, W, ALL, strides=(2, 1, 1, 1))),
        (ValueError, "activation", lambda: masked_conv2d(X, W, ALL, activation="tanh")),
        (ValueError, "list for an output", lambda: masked_conv2d(X, W, ALL, strides=(2, 2))),
        (IndexError, "154", lambda: masked_conv2d(X, W, ALL._replace(pixels=ALL.pixels + 1))),
        (TypeError, "Variable", lambda: masked_conv2d(X, W, ALL, out=np.ones((2, 7, 11, 4)))),
        (ValueError, "mask has shape", lambda: mask_conv2d(X, W, np.ones((2, 6, 11)))),
    ],
)
def test_errors(error, words, call):
    with pytest.raises(error, match=words):
        call()
