"""The Keras layers, the mesh-segmentation model and its loss."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from eqconv_cli.tensorflow import (
    FeaStConv,
    FeatureSteeredConvolution,
    MeshSegmentation,
    feature_steered_convolution,
    plan_neighborhood,
)
from tests.feature_steered.support import PARAMETERS, random_problem, rounded
from tests.feature_steered.support_tensorflow import SMALL, as_sparse

pytestmark = pytest.mark.tensorflow

EDGES = np.array([[0, 1, 2, 2, 3, 1, 1], [1, 1, 0, 0, 3, 2, 2]])


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.fixture
def batch():
    """Data, a sparse tensor in row order and sizes of a padded batch, in float32."""
    inputs = rounded(SMALL["ragged"](), "float32")
    return tf.constant(inputs["data"]), tf.sparse.reorder(as_sparse(inputs)), tf.constant(inputs["sizes"])


# FeatureSteeredConvolution.


def test_parameters_in_the_order_of_their_creation(batch):
    for invariant, names in ((True, "ucwb"), (False, "uvcwb")):
        layer = FeatureSteeredConvolution(3, 7, translation_invariant=invariant)
        layer(list(batch))
        shapes = {"u": (5, 3), "v": (5, 3), "c": (3,), "w": (3, 5, 7), "b": (7,)}
        assert [(w.name, tuple(w.shape)) for w in layer.weights] == [(f"var_{k}", shapes[k]) for k in names]
        assert all(0 < np.abs(weight).max() <= 0.2 for weight in layer.get_weights())
    assert FeatureSteeredConvolution()(list(batch)).shape[-1] == 5


def test_one_seed_gives_u_and_v_different_values(batch):
    initializer = keras.initializers.TruncatedNormal(stddev=0.1, seed=7)
    layers = [FeatureSteeredConvolution(2, 3, False, initializer) for _ in range(2)]
    for layer in layers:
        layer(list(batch))
    assert np.abs((layers[0].var_u - layers[0].var_v).numpy()).min() > 0
    np.testing.assert_array_equal(layers[0].var_v.numpy(), layers[1].var_v.numpy())
    ones = FeatureSteeredConvolution(2, 3, initializer="ones")
    ones(list(batch))
    assert all((weight == 1).all() for weight in ones.get_weights())


def test_ways_of_calling_agree(batch):
    data, neighbors, sizes = batch
    layer = FeatureSteeredConvolution(3, 4)
    expected = layer([data, neighbors, sizes])
    u = layer.var_u
    operator = feature_steered_convolution(data, neighbors, sizes, u, -u, layer.var_c, layer.var_w, layer.var_b)
    np.testing.assert_array_equal(expected, operator)
    plan = plan_neighborhood(neighbors, sizes)
    double = plan.with_values(tf.cast(plan.values, tf.float64))
    traced = tf.function(lambda *inputs: layer(*inputs))
    calls = [
        layer(data, neighbors, sizes),
        layer([data, neighbors], sizes=sizes),
        layer(data, plan),
        layer(tf.cast(data, tf.float64), double),
        layer(data, (neighbors.indices, neighbors.values, neighbors.dense_shape), sizes),
        traced(data, neighbors, sizes),
    ]
    for y in calls:
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(layer([data, neighbors, None]), layer([data, neighbors]))
    flat = layer(data[0], scipy.sparse.eye_array(11, dtype=np.float32))
    assert flat.shape == (11, 4)


def test_wrong_calls(batch):
    data, neighbors, sizes = batch
    layer = FeatureSteeredConvolution()
    layer(list(batch))
    with pytest.raises(ValueError, match="inputs needs neighbors"):
        layer(data)
    with pytest.raises(ValueError, match="sizes is given twice"):
        layer([data, neighbors, sizes], sizes=sizes)
    with pytest.raises(ValueError, match="neighbors is a dense"):
        layer(data, tf.eye(11, batch_shape=[4]))
    with pytest.raises(ValueError, match="num_weight_matrices=0"):
        FeatureSteeredConvolution(0)
    with pytest.raises(ValueError, match="version='v9' is unknown"):
        FeatureSteeredConvolution(version="v9")
    with pytest.raises(ValueError, match="its last extent, the channels, must be known"):
        FeatureSteeredConvolution().build([(4, None), (4, 4)])


def test_v_follows_u_and_u_gets_both_gradients(batch):
    data, neighbors, sizes = batch
    layer = FeatureSteeredConvolution(3, 4)
    layer(list(batch))
    optimizer = keras.optimizers.SGD(0.5)
    for _ in range(2):
        parameters = {name: getattr(layer, name) for name in PARAMETERS if name != "var_v"}
        free = [tf.identity(parameters["var_u"]), -tf.identity(parameters["var_u"])]
        rest = [parameters[name] for name in ("var_c", "var_w", "var_b")]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(free)
            tied_loss = tf.reduce_sum(layer(list(batch)) ** 2)
            free_loss = tf.reduce_sum(feature_steered_convolution(data, neighbors, sizes, *free, *rest) ** 2)
        du, dv = tape.gradient(free_loss, free)
        tied = tape.gradient(tied_loss, layer.trainable_variables)
        assert float(tied_loss) == float(free_loss)
        # ∂u = Xᵀda and ∂v = Xᵀds, so that Xᵀ(da - ds) is their difference.
        np.testing.assert_allclose(tied[0], du - dv, rtol=0, atol=1e-5 * np.abs(du).max())
        optimizer.apply_gradients(zip(tied, layer.trainable_variables, strict=True))


@pytest.mark.parametrize("invariant", [True, False])
def test_training_reduces_the_loss_on_a_constant_signal(invariant):
    inputs = rounded(random_problem(0, batch=(2,), centres=6, edges=50), "float32")
    data, target = np.ones_like(inputs["data"]), np.full((2, 6, 3), 2.0, np.float32)
    model = FeatureSteeredConvolution(2, translation_invariant=invariant)
    plan = plan_neighborhood(as_sparse(inputs))
    optimizer, losses = keras.optimizers.Adam(0.05), []
    for _ in range(15):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(data, plan) - target) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2


def test_configuration_round_trip(batch):
    layer = FeatureSteeredConvolution(3, 4, False, "glorot_uniform", version="v2", softmax="guarded", name="steered")
    layer(list(batch))
    copy = FeatureSteeredConvolution.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    copy(list(batch))
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(copy(list(batch)), layer(list(batch)))
    graph = FeaStConv(5, 6, heads=3, add_self_loops=False, bias=False, segment_sum_impl="unsorted")
    assert FeaStConv.from_config(graph.get_config()).get_config() == graph.get_config()
    model = MeshSegmentation(4, 2, version="v3")
    assert MeshSegmentation.from_config(model.get_config()).get_config() == model.get_config()


def test_functional_models(batch):
    data, neighbors, sizes = batch
    inputs = [
        keras.Input((11, 5), batch_size=4),
        keras.Input((11, 11), batch_size=4, sparse=True),
        keras.Input((), batch_size=4, dtype="int64"),
    ]
    layer = FeatureSteeredConvolution(3, 7)
    model = keras.Model(inputs, layer(inputs))
    np.testing.assert_allclose(model([data, neighbors, sizes]), layer(list(batch)), rtol=0, atol=1e-6)
    graph = FeaStConv(5, 6, heads=2)
    x, edges = keras.Input((5,)), keras.Input((None,), batch_size=2, dtype="int64")
    model = keras.Model([x, edges], graph(x, edges))
    np.testing.assert_allclose(model([data[0, :4], tf.constant(EDGES)]), graph(data[0, :4], EDGES), rtol=0, atol=1e-6)


# FeaStConv.


def hand_formula(x_source, x_target, edge_index, layer):
    """One edge after the other: softmax over the heads of u·(x_j - x_i) + c, mean over the incoming edges."""
    lin, u, c = (weight.numpy() for weight in (layer.lin, layer.u, layer.c))
    lin = lin.reshape(layer.heads, layer.out_channels, layer.in_channels)
    sums, counts = np.zeros((len(x_target), layer.out_channels)), np.zeros((len(x_target), 1))
    loops = [(k, k) for k in range(len(x_target))]
    pairs = [(j, i) for j, i in edge_index.T if i != j] + loops if layer.add_self_loops else edge_index.T
    for j, i in pairs:
        logits = u @ (x_source[j] - x_target[i]) + c
        q = np.exp(logits - logits.max())
        sums[i] += np.einsum("m,mdc,c->d", q / q.sum(), lin, x_source[j])
        counts[i] += 1
    bias = 0.0 if layer.bias is None else layer.bias.numpy()
    return sums / np.maximum(counts, 1) + bias


@pytest.mark.parametrize("add_self_loops", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_feast_conv_equals_the_hand_formula(add_self_loops, bias):
    x = np.random.default_rng(0).normal(size=(5, 3))
    layer = FeaStConv(3, 4, heads=2, add_self_loops=add_self_loops, bias=bias, dtype="float64")
    expected = hand_formula(x, x, EDGES, layer)
    sparse = tf.SparseTensor(EDGES[::-1].T, np.zeros(EDGES.shape[1]), [5, 5])
    traced = tf.function(lambda *inputs: layer(*inputs))
    symbolic = traced.get_concrete_function(tf.TensorSpec([None, 3], tf.float64), tf.TensorSpec([2, None], tf.int32))
    calls = [
        layer(x, EDGES),
        layer(x, tf.constant(EDGES, tf.int32)),
        layer(x, sparse),
        layer(x, layer.plan(EDGES, 5)),
        layer((x, x), EDGES),
        symbolic(tf.constant(x), tf.constant(EDGES, tf.int32)),
    ]
    for y in calls:
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    pair = layer((x, x[:4] + 1.0), EDGES)
    np.testing.assert_allclose(pair, hand_formula(x, x[:4] + 1.0, EDGES, layer), rtol=0, atol=1e-12)


@pytest.mark.parametrize("add_self_loops", [True, False])
def test_feast_conv_equals_pytorch_geometric(add_self_loops):
    torch = pytest.importorskip("torch")
    peer_layer = pytest.importorskip("torch_geometric.nn").FeaStConv
    torch.manual_seed(0)
    peer = peer_layer(3, 4, heads=5, add_self_loops=add_self_loops)
    layer = FeaStConv(3, 4, heads=5, add_self_loops=add_self_loops)
    layer.load_pyg_state_dict(peer.state_dict())
    x = torch.randn(5, 3)
    edges = torch.from_numpy(EDGES)
    np.testing.assert_allclose(layer(x.numpy(), EDGES), peer(x, edges).detach(), rtol=0, atol=1e-6)
    pair = (x, torch.randn(4, 3))
    y = layer(tuple(part.numpy() for part in pair), EDGES)
    np.testing.assert_allclose(y, peer(pair, edges).detach(), rtol=0, atol=1e-6)


def test_feast_conv_starts_as_pytorch_geometric_does():
    layer = FeaStConv(400, 30, heads=20)
    for weight in (layer.lin, layer.u):
        assert 0.045 < np.abs(weight.numpy()).max() <= 0.05
    assert 0.05 < np.std(layer.c.numpy()) < 0.15
    assert 0.05 < np.std(layer.bias.numpy()) < 0.15
    assert len(FeaStConv(3, 4, bias=False).weights) == 3


def test_feast_conv_errors():
    layer = FeaStConv(3, 4)
    arrays = {"lin.weight": np.ones((4, 3)), "u.weight": np.ones((1, 3)), "c": np.ones(1), "bias": np.ones(4)}
    layer.load_pyg_state_dict(arrays)
    for change, message in (
        ({"c": np.ones(2)}, r"state_dict\['c'\] has shape \[2\]: expected \[1\]"),
        ({"lin.bias": np.ones(4)}, "has the unknown entry 'lin.bias'"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.load_pyg_state_dict(arrays | change)
    with pytest.raises(ValueError, match="misses 'bias'"):
        layer.load_pyg_state_dict({name: array for name, array in arrays.items() if name != "bias"})
    with pytest.raises(IndexError, match=r"edge 1 has target 9, outside \[0, 5\) of the targets"):
        layer.plan(np.array([[0, 1], [1, 9]]), 5)
    with pytest.raises(ValueError, match="heads=0"):
        FeaStConv(3, 4, heads=0)
