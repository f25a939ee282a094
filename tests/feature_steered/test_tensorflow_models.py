"""The mesh-segmentation model in Keras, and its loss."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.backends.feature_steered.meshes import icosphere, mesh_graph
from eqconv_cli.backends.feature_steered.reference import reference
from eqconv_cli.tensorflow import (
    MeshSegmentation,
    masked_cross_entropy,
    plan_neighborhood,
)
from tests.feature_steered.support import PARAMETERS, random_problem, rounded
from tests.feature_steered.support_tensorflow import SMALL, as_sparse

pytestmark = pytest.mark.tensorflow


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def batch():
    """Data, a sparse tensor in row order and sizes of a padded batch, in float32."""
    inputs = rounded(SMALL["ragged"](), "float32")
    return tf.constant(inputs["data"]), tf.sparse.reorder(as_sparse(inputs)), tf.constant(inputs["sizes"])


def test_the_network_of_the_notebook(batch):
    model = MeshSegmentation()
    logits = model(list(batch))
    assert logits.shape == (4, 11, 16)
    channels = [(5, 16), (8, 16, 32), (8, 32, 64), (8, 64, 128), (128, 256), (256, 16)]
    assert [tuple(w.shape) for w in model.weights if len(w.shape) == 3 or "kernel" in w.name] == channels
    plan = plan_neighborhood(batch[1], batch[2])
    np.testing.assert_array_equal(model(batch[0], plan), logits)
    traced = tf.function(lambda *inputs: model(*inputs))
    np.testing.assert_allclose(traced(*batch), logits, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(logits[1], 0.0)


def test_the_network_equals_its_layers_one_after_the_other():
    inputs = rounded(random_problem(0, centres=9, edges=40), "float64")
    model = MeshSegmentation(5, 3, dtype="float64")
    logits = model(inputs["data"], plan_neighborhood(as_sparse(inputs)))
    x = inputs["data"] @ model.embed.kernel.numpy() + model.embed.bias.numpy()
    for layer in model.convolutions:
        layer_inputs = {name: getattr(layer, name).numpy() for name in PARAMETERS if name != "var_v"}
        layer_inputs["var_v"] = -layer_inputs["var_u"]
        x = np.maximum(reference(inputs | layer_inputs | {"data": x})["output"], 0)
    x = np.maximum(x @ model.hidden.kernel.numpy() + model.hidden.bias.numpy(), 0)
    expected = x @ model.classify.kernel.numpy() + model.classify.bias.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)


def test_padding_is_not_read(batch):
    data, neighbors, sizes = batch
    real = np.arange(11) < sizes.numpy()[:, None]
    soiled = tf.where(real[..., None], data, np.float32(np.nan))
    labels = np.where(real, 3, -7)
    model = MeshSegmentation(4, 2)
    results = []
    for x in (data, soiled):
        with tf.GradientTape() as tape:
            loss = masked_cross_entropy(model(x, neighbors, sizes), labels, sizes)
        results.append([loss, *tape.gradient(loss, model.trainable_variables)])
    for clean, with_nan in zip(*results, strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(clean, with_nan)


def test_masked_cross_entropy():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4))
    labels = np.array([[0, 1, 2], [3, -1, 99]])
    each = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None] % 4, -1)[..., 0]
    wanted = (each[0].sum() + each[1, 0]) / 4
    np.testing.assert_allclose(masked_cross_entropy(tf.constant(logits), labels, [3, 1]), wanted, rtol=1e-14)
    np.testing.assert_allclose(masked_cross_entropy(tf.constant(logits[:1]), labels[:1]), each[0].mean(), rtol=1e-14)
    assert float(masked_cross_entropy(tf.constant(logits), labels, [0, 0])) == 0.0
    with pytest.raises(ValueError, match="expected labels of shape"):
        masked_cross_entropy(tf.constant(logits), labels[:, :2])
    with pytest.raises(ValueError, match="sizes has shape"):
        masked_cross_entropy(tf.constant(logits), labels, [3, 1, 1])


def loss(labels, logits):
    return masked_cross_entropy(logits, labels)


def test_the_model_learns_a_sphere_and_is_restored_from_a_file(tmp_path):
    vertices, triangles = icosphere(2)
    indices, weights = mesh_graph(len(vertices), triangles)
    data = tf.constant(vertices[None], tf.float32)
    batched = np.insert(indices, 0, 0, axis=1)
    neighbors = tf.SparseTensor(batched, weights.astype(np.float32), [1, len(vertices), len(vertices)])
    labels = ((vertices > 0) @ [1, 2, 4])[None]
    model = MeshSegmentation(8, 4)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss)
    batches = tf.data.Dataset.from_tensors(((data, neighbors, [len(vertices)]), labels)).repeat(30)
    first = model.evaluate(batches.take(1), verbose=0)
    model.fit(batches, shuffle=False, verbose=0)
    assert model.evaluate(batches.take(1), verbose=0) < first / 2
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(restored([data, neighbors]), model([data, neighbors]))
