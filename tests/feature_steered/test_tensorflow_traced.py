"""The TensorFlow operator in traced functions, with static and unknown shapes, and compiled by XLA."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from eqconv_cli.backends.feature_steered.reference import reference, reference_gradients
from eqconv_cli.tensorflow import Coo, feature_steered_convolution, plan_neighborhood
from tests.feature_steered.support import PARAMETERS
from tests.feature_steered.support_tensorflow import (
    SMALL,
    V1,
    as_sparse,
    check,
    name_of,
    on_line,
)

pytestmark = pytest.mark.tensorflow

UNKNOWN = [
    tf.TensorSpec([None, None, None], tf.float64),
    tf.SparseTensorSpec([None, None, None], tf.float64),
    tf.TensorSpec([None], tf.int64),
    *(tf.TensorSpec([None] * rank, tf.float64) for rank in (2, 2, 1, 3, 1)),
]


@pytest.mark.parametrize("options", [V1[1], {"version": "v2"}, {"version": "v3"}], ids=name_of)
def test_traced_with_static_shapes(options):
    check(SMALL["ragged"](), options, mode="function")


@pytest.mark.parametrize(
    "options",
    [{"version": "v1"}, {"version": "v1", "transform_data_first": True, "softmax": "raw"}, {"version": "pyg"}],
    ids=name_of,
)
def test_compiled_by_xla(options):
    check(SMALL["ragged"](), {"segment_sum_impl": "unsorted", **options}, mode="xla")


def test_xla_compiles_the_planning_of_unsorted_neighbors_without_sizes():
    inputs = SMALL["ragged"]()
    compiled = tf.function(
        partial(feature_steered_convolution, version="v1", segment_sum_impl="unsorted"), jit_compile=True
    )
    y = compiled(inputs["data"], as_sparse(inputs), None, *(tf.constant(inputs[name]) for name in PARAMETERS))
    del inputs["sizes"]
    np.testing.assert_allclose(y, reference(inputs)["output"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("version", "fold"),
    [("v1", True), ("v1", False), ("v2", True), ("v3", True), ("sparse_matmul", False), ("pyg", True)],
)
def test_traced_with_unknown_shapes(version, fold):
    @tf.function(input_signature=UNKNOWN)
    def run(data, neighbors, sizes, *parameters):
        leaves = [data, neighbors.values, *parameters]
        with tf.GradientTape() as tape:
            tape.watch(leaves)
            y = feature_steered_convolution(
                data, neighbors, sizes, *parameters, version=version, memory_efficient=fold, validate="full"
            )
        return y, tape.gradient(y, leaves)

    for name in ("ragged", "wider"):
        inputs = SMALL[name]()
        parameters = [tf.constant(inputs[p]) for p in PARAMETERS]
        y, gradients = run(tf.constant(inputs["data"]), as_sparse(inputs), tf.constant(inputs["sizes"]), *parameters)
        expected = reference(inputs)["output"]
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
        wanted = reference_gradients(inputs, {"output": np.ones_like(expected)})
        for gradient, leaf in zip(gradients, ("data", "values", *PARAMETERS), strict=True):
            np.testing.assert_allclose(gradient, wanted[leaf], rtol=0, atol=1e-11)


@pytest.fixture(scope="module")
def traced():
    return tf.function(feature_steered_convolution, input_signature=UNKNOWN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": lambda a: a + np.array([0, 0, 11])}, "beyond its axis"),
        ({"indices": lambda a: a - np.array([0, 1, 0])}, "negative"),
        ({"sizes": lambda a: a + 1}, "larger than the number of vertices"),
        ({"sizes": lambda a: a - 1}, "sizes is negative"),
        ({"sizes": lambda a: a[:3]}, "batch dimensions"),
        ({"sizes": lambda a: np.array([11, 0, 9, 0])}, "outside sizes"),
        ({"data": lambda a: a[:, :10]}, "data does not have the shape"),
        ({"data": lambda a: a[:3]}, "data does not have the shape"),
        ({"var_u": lambda a: a[:, :2]}, "var_u does not have the shape"),
        ({"var_c": lambda a: a[:2]}, "var_c does not have the shape"),
        ({"var_b": lambda a: a[:1]}, "var_b does not have the shape"),
    ],
)
def test_traced_assertions_fire(traced, change, message):
    inputs = SMALL["ragged"]()
    inputs |= {name: function(inputs[name]) for name, function in change.items()}
    parameters = [tf.constant(inputs[name]) for name in PARAMETERS]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        traced(tf.constant(inputs["data"]), as_sparse(inputs), tf.constant(inputs["sizes"]), *parameters)


def test_traced_full_validation_fires():
    inputs = on_line(4)
    inputs["data"][2, 1] = np.inf
    run = tf.function(partial(feature_steered_convolution, validate="full"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="validate='full' wants finite values"):
        run(inputs["data"], as_sparse(inputs), None, *(tf.constant(inputs[name]) for name in PARAMETERS))


def test_static_faults_are_raised_while_tracing():
    inputs = SMALL["ragged"]()
    parameters = [tf.constant(inputs[name]) for name in PARAMETERS]
    run = tf.function(feature_steered_convolution)
    with pytest.raises(TypeError, match="neighbors has values of dtype float32"):
        run(tf.constant(inputs["data"]), tf.cast(as_sparse(inputs), tf.float32), None, *parameters)
    with pytest.raises(TypeError, match="sizes has dtype float64"):
        run(tf.constant(inputs["data"]), as_sparse(inputs), tf.ones([4], tf.float64), *parameters)
    with pytest.raises(ValueError, match=r"sizes has shape \[3\]"):
        run(tf.constant(inputs["data"]), as_sparse(inputs), tf.ones([3], tf.int64), *parameters)
    with pytest.raises(ValueError, match=r"neighbors is a dense .* of shape \[4, 4\]"):
        run(tf.constant(inputs["data"]), tf.eye(4), None, *parameters)
    unranked = tf.function(feature_steered_convolution)
    with pytest.raises(ValueError, match="data has unknown rank"):
        unranked.get_concrete_function(tf.TensorSpec(None, tf.float64), as_sparse(inputs), None, *parameters)


def test_traced_forms_of_neighbors():
    inputs = on_line(5, indices=[[0, 3], [0, 1], [1, 1], [4, 0]])
    expected = reference(inputs)["output"]
    matrix = scipy.sparse.csr_matrix((inputs["values"], inputs["indices"].T), (5, 5))
    parameters = [tf.constant(inputs[name]) for name in PARAMETERS]
    run = tf.function(lambda data, *parts: feature_steered_convolution(data, parts, None, *parameters))
    coo = run(inputs["data"], *(tf.constant(inputs[name]) for name in ("indices", "values", "dense_shape")))
    csr = run(inputs["data"], *(tf.constant(part) for part in (matrix.indptr, matrix.indices, matrix.data)))
    np.testing.assert_allclose(coo, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(csr, expected, rtol=0, atol=1e-12)
    with pytest.raises(tf.errors.InvalidArgumentError, match="does not end at the number of entries"):
        run(inputs["data"], tf.constant(matrix.indptr), tf.constant(matrix.indices[:-1]), tf.constant(matrix.data[:-1]))


def traced_over(neighbors, parameters):
    return tf.function(lambda data, sizes: feature_steered_convolution(data, neighbors, sizes, *parameters))


def test_traced_sizes_with_known_neighbors():
    inputs = SMALL["ragged"]()
    parameters = [tf.constant(inputs[name]) for name in PARAMETERS]
    expected = reference(inputs)["output"]
    plan = plan_neighborhood(as_sparse(inputs), inputs["sizes"])
    coo = Coo(inputs["indices"], inputs["values"], inputs["dense_shape"])
    for neighbors in (coo, plan):
        run = traced_over(neighbors, parameters)
        y = run(tf.constant(inputs["data"]), tf.constant(inputs["sizes"]))
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    with pytest.raises(tf.errors.InvalidArgumentError, match="sizes differs from what neighbors was planned with"):
        run(tf.constant(inputs["data"]), tf.constant([11, 0, 8, 1]))


def test_traced_plan_drops_entries_outside_sizes():
    inputs = SMALL["ragged"]()
    parameters = [tf.constant(inputs[name]) for name in PARAMETERS]
    smaller = np.array([5, 0, 9, 1])
    kept = (inputs["indices"][:, 1:] < smaller[inputs["indices"][:, 0], None]).all(axis=1)
    expected = inputs | {"sizes": smaller, "indices": inputs["indices"][kept], "values": inputs["values"][kept]}

    @tf.function
    def run(data, neighbors, sizes):
        plan = plan_neighborhood(neighbors, sizes, outside_sizes="drop")
        return feature_steered_convolution(data, plan, sizes, *parameters)

    y = run(tf.constant(inputs["data"]), as_sparse(inputs), tf.constant(smaller))
    np.testing.assert_allclose(y, reference(expected)["output"], rtol=0, atol=1e-12)


def test_traced_bipartite_with_unknown_extents():
    inputs = SMALL["bipartite"]()
    parameters = [tf.constant(inputs[name]) for name in PARAMETERS]
    specs = [UNKNOWN[0], UNKNOWN[0], UNKNOWN[1]]
    run = tf.function(lambda x, c, n: feature_steered_convolution((x, c), n, None, *parameters), input_signature=specs)
    y = run(tf.constant(inputs["data"]), tf.constant(inputs["data_out"]), as_sparse(inputs))
    np.testing.assert_allclose(y, reference(inputs)["output"], rtol=0, atol=1e-12)
    alone = tf.function(lambda x, n: feature_steered_convolution(x, n, None, *parameters), input_signature=specs[1:])
    del inputs["data_out"]
    y = alone(tf.constant(inputs["data"]), as_sparse(inputs))
    np.testing.assert_allclose(y, reference(inputs)["output"], rtol=0, atol=1e-12)
    flipped = tf.sparse.transpose(as_sparse(inputs), [0, 2, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="more rows than data has vertices"):
        alone(tf.constant(inputs["data"][:, :7]), flipped)
