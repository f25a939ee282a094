"""The TensorFlow operator against the float64 reference, and results that are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.backends.feature_steered import problems
from eqconv_cli.backends.feature_steered.tensorflow_algorithms import Graph, Parameters, guarded_edges
from eqconv_cli.backends.feature_steered.tensorflow_runs import prepare
from eqconv_cli.backends.feature_steered.tensorflow_sparse import edges_of
from eqconv_cli.tensorflow import feature_steered_convolution, plan_neighborhood
from tests.feature_steered.support import PARAMETERS
from tests.feature_steered.support_tensorflow import (
    ALGORITHMS,
    ALL,
    SMALL,
    V1,
    as_sparse,
    check,
    convolve,
    name_of,
    on_line,
)

pytestmark = pytest.mark.tensorflow

GRID = [
    *(o | {"transform_data_first": f, "memory_efficient": m} for o in V1 for f in (True, False) for m in (True, False)),
    *(
        o | {"transform_data_first": f, "memory_efficient": m}
        for o in ({"version": "v3"}, {"version": "sparse_matmul"}, {"version": "v1", "softmax": "guarded"})
        for f in (True, False)
        for m in (True, False)
    ),
    *({"version": "v1", "transform_data_first": "edges", "memory_efficient": m} for m in (True, False)),
    *({"version": "v2", "transform_data_first": f} for f in (True, False)),
    {"version": "sparse_matmul", "softmax": "guarded"},
    *({"version": "pyg", "segment_sum_impl": s} for s in ("partition2d", "sorted", "unsorted")),
    {"version": "gather_sum"},
    {"version": "auto"},
]
RAW = [{"version": v, "softmax": "raw"} for v in ("v1", "v2", "v3", "sparse_matmul", "pyg")]


@pytest.mark.parametrize("problem", SMALL)
@pytest.mark.parametrize("options", GRID, ids=name_of)
def test_equals_the_reference(problem, options):
    check(SMALL[problem](), options)


@pytest.mark.parametrize("problem", ["ragged", "bipartite"])
@pytest.mark.parametrize("options", RAW, ids=name_of)
def test_published_exponentials_equal_the_reference_on_small_logits(problem, options):
    check(SMALL[problem](), options)


@pytest.mark.parametrize("problem", ["hard", "offset"])
@ALL
def test_float32_keeps_five_digits_on_hard_logits_and_far_features(problem, options):
    inputs = SMALL["hard"]() if problem == "hard" else problems.offset(0, 16, 8, 8, 300.0)
    check(inputs, options, "float32")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_published_exponentials_lose_hard_logits(version):
    run = prepare(SMALL["hard"](), "float32", "cpu", version=version, softmax="raw")
    assert not np.isfinite(run.download(run.run()["output"])).all()


@pytest.mark.parametrize("options", [{"version": "v1", "softmax": "guarded"}, {"version": "v3"}], ids=name_of)
def test_finite_differences(options):
    inputs = on_line(4, 2, 2, 2, indices=[[0, 1], [0, 1], [2, 0], [3, 3], [1, 2]])
    plan = plan_neighborhood(as_sparse(inputs))

    def function(data, values, *parameters):
        return feature_steered_convolution(data, plan.with_values(values), None, *parameters, **options)

    arrays = [tf.constant(inputs[name]) for name in ("data", "values", *PARAMETERS)]
    analytic, numeric = tf.test.compute_gradient(function, arrays, delta=1e-5)
    for ours, theirs in zip(analytic, numeric, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)


@pytest.mark.parametrize("version", ["v1", "v2", "sparse_matmul", "pyg"])
def test_second_derivatives(version):
    inputs = on_line(4, 2, 2, 2)
    plan = plan_neighborhood(as_sparse(inputs))
    parameters = [tf.constant(inputs[name]) for name in PARAMETERS]

    def gradient(data):
        with tf.GradientTape() as tape:
            tape.watch(data)
            y = feature_steered_convolution(data, plan, None, *parameters, version=version)
            energy = tf.reduce_sum(y**2)
        return tape.gradient(energy, data)

    analytic, numeric = tf.test.compute_gradient(gradient, [tf.constant(inputs["data"])], delta=1e-5)
    np.testing.assert_allclose(analytic[0], numeric[0], rtol=0, atol=1e-6)


def test_two_runs_are_bitwise_equal():
    inputs = SMALL["ragged"]()
    for options in ALGORITHMS:
        np.testing.assert_array_equal(convolve(inputs, **options), convolve(inputs, **options))


def test_guarded_edges_are_counted():
    for problem, expected in (("ragged", False), ("hard", True)):
        inputs = {name: a.astype(np.float32) for name, a in SMALL[problem]().items() if a.dtype == np.float64}
        inputs = SMALL[problem]() | inputs
        plan = plan_neighborhood(as_sparse(inputs), None)
        x = tf.reshape(inputs["data"], [-1, inputs["data"].shape[-1]])
        graph = Graph(x, x, plan.values, edges_of(plan.pattern, ""))
        count = int(guarded_edges(graph, Parameters(*(tf.constant(inputs[name]) for name in PARAMETERS))))
        assert (count > 0) == expected


@ALL
def test_preset_values(options):
    x = np.array([[1.0], [2.0], [3.0]])
    indices = np.argwhere(np.ones((3, 3)))
    base = {"data": x, "indices": indices, "values": np.full(9, 1 / 3), "dense_shape": np.array([3, 3])}
    one = {"var_u": [[0.5]], "var_v": [[1.3]], "var_c": [-0.7], "var_w": [[[0.8]]], "var_b": [3.0]}
    two = {
        "var_u": [[0.5, 0.2]],
        "var_v": [[0.3, 0.4]],
        "var_c": [-0.7, 0.15],
        "var_w": [[[0.8]], [[1.1]]],
        "var_b": [3.0],
    }
    as_arrays = [{name: np.array(value) for name, value in p.items()} for p in (one, two)]
    np.testing.assert_allclose(convolve(base | as_arrays[0], **options)[:, 0], [4.6, 4.6, 4.6], rtol=1e-14)
    expected = [5.011706928844621, 4.971030281984818, 4.927388658982911]
    np.testing.assert_allclose(convolve(base | as_arrays[1], **options)[:, 0], expected, rtol=1e-14)


@ALL
def test_self_edges_alone(options):
    inputs = on_line(6, indices=[[k, k] for k in range(6)])
    inputs["values"][:] = 1.0
    inputs["var_v"] = -inputs["var_u"]
    q = np.exp(inputs["var_c"]) / np.exp(inputs["var_c"]).sum()
    expected = inputs["data"] @ np.einsum("m,mcd->cd", q, inputs["var_w"]) + inputs["var_b"]
    np.testing.assert_allclose(convolve(inputs, **options), expected, rtol=0, atol=1e-12)
    inputs["var_w"] = np.zeros_like(inputs["var_w"])
    np.testing.assert_array_equal(convolve(inputs, **options), np.tile(inputs["var_b"], (6, 1)))


@ALL
def test_padded_batches(options):
    inputs = SMALL["ragged"]()
    sizes = inputs["sizes"]
    inside = np.arange(inputs["data"].shape[1]) < sizes[:, None]
    constant = inputs | {"data": np.ones_like(inputs["data"]), "values": np.ones_like(inputs["values"])}
    counts = np.zeros(inside.shape)
    np.add.at(counts, tuple(inputs["indices"][:, :2].T), 1.0)
    constant["values"] = 1.0 / counts[tuple(inputs["indices"][:, :2].T)]
    rows = convolve(constant, **options)[counts > 0]
    np.testing.assert_allclose(rows, np.tile(rows[0], (len(rows), 1)), rtol=0, atol=1e-12)
    y = convolve(inputs | {"var_w": np.zeros_like(inputs["var_w"])}, **options)
    np.testing.assert_array_equal(y[inside], np.tile(inputs["var_b"], (inside.sum(), 1)))
    np.testing.assert_array_equal(convolve(inputs, **options)[~inside], 0.0)


@ALL
def test_gauge_freedom_and_euler_identities(options):
    inputs = SMALL["ragged"]()
    shifted = inputs | {"var_u": inputs["var_u"] + 0.3, "var_v": inputs["var_v"] - 0.7, "var_c": inputs["var_c"] + 1.1}
    y = convolve(inputs, **options)
    np.testing.assert_allclose(convolve(shifted, **options), y, rtol=0, atol=1e-12)
    run = prepare(inputs, "float64", "cpu", **options)
    cotangent = np.random.default_rng(0).normal(size=y.shape)
    g = {name: t.numpy() for name, t in run.run_backward({"output": run.upload(cotangent)}).items()}
    for name, axis in (("var_u", 1), ("var_v", 1), ("var_c", 0)):
        np.testing.assert_allclose(g[name].sum(axis), 0.0, atol=1e-12)
    inside = (np.arange(y.shape[1]) < inputs["sizes"][:, None])[..., None]
    expected = (cotangent * (y - inputs["var_b"]) * inside).sum()
    np.testing.assert_allclose((inputs["values"] * g["values"]).sum(), expected, rtol=1e-12)
    np.testing.assert_allclose((inputs["var_w"] * g["var_w"]).sum(), expected, rtol=1e-12)
