"""The Keras layers of the sparse blocks and sites."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.backends.block_sparse.tensorflow_residual import KSIZES
from eqconv_cli.tensorflow import (
    Sites,
    SparseBlockConv2d,
    SparseConv,
    SparseInverseConv,
    SparseResidualUnit,
    SubmanifoldConv,
    block_params,
    block_params_chain,
    masked_conv2d,
    pixel_index,
    reduce_mask,
    sparse_residual_unit,
)

pytestmark = pytest.mark.tensorflow
RNG = np.random.default_rng(0)
X = tf.constant(RNG.normal(size=(2, 7, 11, 8)), tf.float32)
ONES = tf.ones([2, 7, 11])
MASK = tf.constant(RNG.random((2, 7, 11)) < 0.1)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def again(layer):
    """The layer made from its own configuration."""
    return type(layer).from_config(layer.get_config())


def trained(layer, *inputs, **options):
    """The loss before and after some steps."""
    optimizer = keras.optimizers.SGD(0.05)
    losses = []
    for _ in range(6):
        with tf.GradientTape() as tape:
            y = layer(*inputs, **options)
            loss = tf.reduce_mean(tf.square((y.feats if isinstance(y, Sites) else y) - 1.0))
        gradients = tape.gradient(loss, layer.trainable_variables)
        assert all(gradient is not None for gradient in gradients)
        optimizer.apply_gradients(zip(gradients, layer.trainable_variables, strict=True))
        losses.append(float(loss))
    return losses[0], losses[-1]


def test_block_convolution_has_the_weights_of_the_dense_layer():
    layer = SparseBlockConv2d(5, (3, 3), (6, 5), activation="relu")
    dense = keras.layers.Conv2D(5, 3, padding="same", activation="relu", bias_initializer="normal")
    dense(X), layer(X, ONES)
    layer.set_weights(dense.get_weights())
    np.testing.assert_allclose(layer(X, ONES), dense(X), atol=1e-5)
    sparse = layer(X, MASK).numpy()
    active = np.any(sparse != 0, axis=-1)
    assert 0 < active.sum() < active.size
    np.testing.assert_allclose(sparse[active], dense(X).numpy()[active], atol=1e-5)
    other = again(layer)
    other(X, ONES)
    other.set_weights(layer.get_weights())
    np.testing.assert_array_equal(other(X, MASK), sparse)
    assert not layer(X, 0 * ONES).numpy().any()


def test_block_convolution_of_images_of_any_size():
    layer = SparseBlockConv2d(4, (3, 3), (5, 5), strides=(2, 2))
    expected = layer(X, MASK)
    specification = [tf.TensorSpec([None, None, None, 8]), tf.TensorSpec([None, None, None], tf.bool)]
    traced = tf.function(layer, input_signature=specification)
    np.testing.assert_allclose(traced(X, MASK), expected, atol=1e-6)
    assert traced(X[:1, :6], MASK[:1, :6]).shape == (1, 3, 6, 4)


@pytest.mark.parametrize("bn", ["inference", "stack", "active"])
def test_residual_unit(bn):
    layer = SparseResidualUnit(2, (6, 5), bn=bn)
    dense = layer(X)
    assert [tuple(w.shape) for w in layer.weights[:3]] == [(8, 2), (3, 3, 2, 2), (2, 8)]
    np.testing.assert_allclose(layer(X, ONES), dense, atol=1e-5)
    other = again(layer)
    other(X)
    other.set_weights(layer.get_weights())
    np.testing.assert_array_equal(other(X, MASK), layer(X, MASK))
    first, last = trained(layer, X, MASK, training=True)
    assert last < first
    assert len(layer.trainable_variables) == 9
    moved = [np.any(variance.numpy() != 1) for *_, variance in layer.norms.values()]
    assert moved == 3 * [bn != "inference"]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("bn", ["stack", "active"])
def test_running_statistics(bn, traced):
    """A step of training moves them to the batch's, as the decay says; evaluation takes them and leaves them."""
    layer = SparseResidualUnit(2, (6, 5), bn=bn, decay=0.75)
    layer(X)
    params = block_params_chain(X.shape, (6, 5), KSIZES)
    window = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
    index = reduce_mask(MASK, params.bcount, **window, tol=0.0)
    found = []
    expected = sparse_residual_unit(X, index, params, layer.unit, bn=bn, statistics=found)
    call = tf.function(layer, autograph=False) if traced else layer
    np.testing.assert_allclose(call(X, MASK, training=True), expected, atol=1e-5)
    for (_, _, mean, variance), (batch_mean, batch_variance) in zip(layer.norms.values(), found, strict=True):
        np.testing.assert_allclose(mean, 0.25 * batch_mean, atol=1e-6)
        np.testing.assert_allclose(variance, 0.75 + 0.25 * batch_variance, atol=1e-6)
    before = layer.get_weights()
    evaluated = call(X, MASK).numpy()
    np.testing.assert_allclose(evaluated, sparse_residual_unit(X, index, params, layer.unit), atol=1e-5)
    assert np.abs(evaluated - expected).max() > 1e-3
    call(X, tf.zeros_like(ONES), training=True)
    assert all(np.array_equal(a, b) for a, b in zip(before, layer.get_weights(), strict=True))


def test_statistics_of_no_block_are_the_given_ones():
    layer = SparseResidualUnit(2, (6, 5), bn="stack", decay=0.0)
    layer(X, 0 * ONES, training=True)
    assert all(
        not mean.numpy().any() and (variance.numpy() == 1).all() for _, _, mean, variance in layer.norms.values()
    )


@pytest.mark.parametrize("strides", [1, 2])
def test_lists_of_blocks_and_of_pixels(strides):
    """A list of blocks is what the mask chooses; a list of pixels computes these alone."""
    conv = SparseBlockConv2d(8, 3, (7, 7), strides=strides)
    params = block_params(X.shape, (7, 7), (3, 3), (strides, strides))
    window = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
    index = reduce_mask(MASK, params.bcount, **window, tol=0.0)
    np.testing.assert_array_equal(conv(X, index), conv(X, MASK))
    pixels = pixel_index(MASK, tol=0.0, ksize=(3, 3), strides=(strides, strides))
    expected = masked_conv2d(X, conv.kernel.value, pixels, strides=(strides, strides), bias=conv.bias.value)
    np.testing.assert_allclose(conv(X, pixels), expected, atol=1e-6)
    unit = SparseResidualUnit(bsize=(7, 7), strides=strides)
    chain = block_params_chain(X.shape, (7, 7), KSIZES, (strides, strides))
    window = {"bsize": chain.bsize, "bstride": chain.bstrides, "boffset": chain.boffset}
    blocks = reduce_mask(MASK, chain.bcount, **window, tol=0.0)
    np.testing.assert_array_equal(unit(X, blocks), unit(X, MASK))
    assert (unit.w_project is None) == (strides == 1)
    pixels = pixel_index(MASK, tol=0.0)
    if strides == 2:
        with pytest.raises(ValueError, match="only stride 1"):
            unit(X, pixels)
        return
    on = MASK.numpy()
    at_pixels = unit(X, pixels).numpy()
    np.testing.assert_allclose(at_pixels[on], unit(X).numpy()[on], atol=1e-5)
    np.testing.assert_array_equal(at_pixels[~on], X.numpy()[~on])


def test_sbnets_number_of_blocks():
    x = tf.ones([1, 5, 5, 2])
    layer = SparseBlockConv2d(3, 3, (5, 5), coverage="original")
    y = layer(x, tf.ones([1, 5, 5])).numpy()
    assert y[:, :3, :3].any(axis=-1).all() and not y[:, 3:].any() and not y[:, :, 3:].any()
    assert again(layer).coverage == "original"


def test_the_defaults_are_those_of_pytorch():
    torch_layers = pytest.importorskip("eqconv_cli.backends.block_sparse.torch_layers")
    names = {"strides": "stride", "use_bias": "bias"}
    for layer, peer, renamed in (
        (SparseBlockConv2d, torch_layers.SparseBlockConv2d, names),
        (SparseResidualUnit, torch_layers.SparseResidualUnit, {}),
    ):
        mine, theirs = (inspect.signature(f.__init__).parameters for f in (layer, peer))
        own = set(mine) - {"self", "options", "filters", "kernel_initializer"}
        others = set(theirs) - {"self", "channels", "in_channels", "out_channels", "device", "dtype"}
        assert {renamed.get(name, name) for name in own} == others
        for name in own:
            assert mine[name].default == theirs[renamed.get(name, name)].default, name


def test_sites():
    coords = np.argwhere(MASK.numpy())
    sites = Sites.make(coords, tf.gather_nd(X, coords), (7, 11), 2)
    submanifold = SubmanifoldConv(6, (3, 3), groups=2)
    strided = SparseConv(5, (2, 2), stride=2)
    inverse = SparseInverseConv(3, (2, 2))
    made = submanifold(sites)
    smaller = strided(made)
    back = inverse(smaller, made)
    assert made.feats.shape == (len(coords), 6)
    assert smaller.shape == (3, 5)
    assert back.pattern is sites.pattern
    assert tuple(submanifold.kernel.shape) == (3, 3, 4, 6)
    for layer, inputs in ((submanifold, (sites,)), (strided, (made,)), (inverse, (smaller, made))):
        other = again(layer)
        other(*inputs)
        other.set_weights(layer.get_weights())
        np.testing.assert_array_equal(other(*inputs).feats, layer(*inputs).feats)
        first, last = trained(layer, *inputs)
        assert last < first


def test_the_kernel_is_initialised_with_the_fan_of_its_group():
    coords = np.argwhere(np.ones((1, 2, 2)))
    layer = SubmanifoldConv(64, (3, 3), groups=2)
    layer(Sites.make(coords, np.ones((4, 32), np.float32), (2, 2)))
    assert abs(np.std(layer.kernel.numpy()) / np.sqrt(2 * 2 / (32 * 9)) - 1) < 0.05
    assert not layer.bias.numpy().any()


@pytest.mark.parametrize(
    "make",
    [
        lambda: SparseBlockConv2d(0, (3, 3), (5, 5)),
        lambda: SparseBlockConv2d(3, (3, 3), (5, 5), padding="FULL"),
        lambda: SparseBlockConv2d(3, (3, 3), (2, 5)),
        lambda: SparseBlockConv2d(3, (3, 3), coverage="none"),
        lambda: SparseBlockConv2d(3, (3, 3))(X, MASK),
        lambda: SparseResidualUnit(2)(X, MASK),
        lambda: SparseResidualUnit(2, (5, 5), border="other"),
        lambda: SparseResidualUnit(2, bn="batch"),
        lambda: SparseResidualUnit(2, decay=1.5),
        lambda: SparseResidualUnit(0),
        lambda: SparseResidualUnit(2, filters=3, project=False)(X),
        lambda: SparseConv(2, (2, 2), stride=(1, 2, 3)),
    ],
)
def test_arguments_are_checked(make):
    with pytest.raises(ValueError, match=r"allowed|at least|numbers|smaller than|bsize=None|project=False"):
        make()
