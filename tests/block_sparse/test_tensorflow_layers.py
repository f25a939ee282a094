"""The Keras layers of the sparse blocks and sites."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.tensorflow import (
    Sites,
    SparseBlockConv2d,
    SparseConv,
    SparseInverseConv,
    SparseResidualUnit,
    SubmanifoldConv,
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


def trained(layer, *inputs):
    """The loss before and after some steps."""
    optimizer = keras.optimizers.SGD(0.05)
    losses = []
    for _ in range(6):
        with tf.GradientTape() as tape:
            y = layer(*inputs)
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


@pytest.mark.parametrize("statistics", ["inference", "stack", "active"])
def test_residual_unit(statistics):
    layer = SparseResidualUnit(2, (6, 5), statistics=statistics)
    dense = layer(X)
    assert [tuple(w.shape) for w in layer.weights[:3]] == [(8, 2), (3, 3, 2, 2), (2, 8)]
    if statistics == "inference":
        np.testing.assert_allclose(layer(X, ONES), dense, atol=1e-5)
    other = again(layer)
    other(X)
    other.set_weights(layer.get_weights())
    np.testing.assert_array_equal(other(X, MASK), layer(X, MASK))
    first, last = trained(layer, X, MASK)
    assert last < first
    assert len(layer.trainable_variables) == 9


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
        lambda: SparseResidualUnit(2, (5, 5), border="other"),
        lambda: SparseConv(2, (2, 2), stride=(1, 2, 3)),
    ],
)
def test_arguments_are_checked(make):
    with pytest.raises(ValueError, match=r"allowed|at least|numbers"):
        make()
