"""What the TensorFlow tests share: small problems, the algorithms, the operator on NumPy inputs, a comparison."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.backends.feature_steered import problems
from eqconv_cli.backends.feature_steered.tensorflow_runs import prepare
from eqconv_cli.tensorflow import Coo, feature_steered_convolution
from tests.feature_steered.support import PARAMETERS, TOLERANCE, assert_close, assert_gradients, oracle, rounded

V1 = [{"version": "v1", "segment_sum_impl": s} for s in ("partition2d", "sorted", "unsorted")]
ALGORITHMS = [
    *V1,
    {"version": "v1", "softmax": "guarded"},
    {"version": "v1", "transform_data_first": "edges"},
    {"version": "v2"},
    {"version": "v3"},
    {"version": "gather_sum"},
    {"version": "sparse_matmul"},
    {"version": "pyg"},
    {"version": "auto"},
]
SMALL = {
    "ragged": partial(problems.ragged, 0, 5, 4, 3),
    "wider": partial(problems.ragged, 3, 3, 6, 2),
    "bipartite": partial(problems.bipartite, 1, 4, 6, 3),
    "hard": partial(problems.hard_logits, 2, 4, 6, 5),
}


def name_of(options):
    return "+".join(str(value) for value in options.values())


ALL = pytest.mark.parametrize("options", ALGORITHMS, ids=name_of)


def on_line(vertices=5, channels=3, outputs=4, matrices=2, seed=0, indices=None):
    """A path graph, or the edges given, with random weights."""
    rng = np.random.default_rng(seed)
    if indices is None:
        indices = np.stack([np.arange(vertices - 1), np.arange(1, vertices)], axis=1)
    return {
        "data": rng.normal(size=(vertices, channels)),
        "indices": np.asarray(indices, np.int64).reshape(-1, 2),
        "values": rng.normal(size=len(indices)),
        "dense_shape": np.array([vertices, vertices]),
        **problems.parameters(rng, channels, outputs, matrices),
    }


def as_sparse(inputs):
    return tf.SparseTensor(inputs["indices"], inputs["values"], inputs["dense_shape"])


def convolve(inputs, **options):
    """The operator on NumPy inputs by name, as a NumPy array."""
    neighbors = Coo(inputs["indices"], inputs["values"], inputs["dense_shape"])
    data = (inputs["data"], inputs["data_out"]) if "data_out" in inputs else inputs["data"]
    parameters = (inputs[name] for name in PARAMETERS)
    return feature_steered_convolution(data, neighbors, inputs.get("sizes"), *parameters, **options).numpy()


def check(inputs, options, dtype="float64", mode="eager", factor=1.0):
    """Values and all gradients of a prepared run against the reference."""
    inputs = rounded(inputs, dtype)
    expected, cotangent, expected_gradients = oracle(inputs)
    run = prepare(inputs, dtype, "cpu", mode, **options)
    gradients = run.run_backward({"output": run.upload(cotangent)})
    assert_close(run.download(run.run()["output"]), expected, factor * TOLERANCE[dtype])
    downloaded = {name: run.download(gradient) for name, gradient in gradients.items()}
    assert_gradients(downloaded, expected_gradients, factor * TOLERANCE[dtype])
