"""What the TensorFlow tests share: a prepared run against the oracle, values and all gradients."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.backends.block_sparse import reference
from eqconv_cli.backends.block_sparse.tensorflow_runs import prepare
from tests.support import needs

TOLERANCE = 1e-9
MODES = pytest.mark.parametrize("mode", ["eager", "function"])

built = needs("tensorflow", "cpu")
FUSED = pytest.param("fused", marks=built)


def arrays(**inputs):
    """Numbers, pairs, words and truth values as the arrays that a problem has."""
    return {name: np.asarray(value) for name, value in inputs.items()}


def check(operation, inputs, version, mode="eager", dtype="float64", tolerance=TOLERANCE):
    """Every output and every gradient of a run in agreement with the oracle; integers exactly."""
    expected = getattr(reference, operation)(inputs)
    rng = np.random.default_rng(7)
    cotangents = {name: rng.normal(size=v.shape) for name, v in expected.items() if v.dtype.kind == "f"}
    run = prepare(inputs, dtype, "cpu", operation=operation, version=version, mode=mode)
    outputs = {name: run.download(native) for name, native in run.run().items()}
    assert set(outputs) == set(expected)
    for name, wanted in expected.items():
        if wanted.dtype.kind == "f":
            assert outputs[name].dtype == dtype
            close(outputs[name], wanted, tolerance, name)
        else:
            np.testing.assert_array_equal(outputs[name], wanted, err_msg=name)
    if not cotangents:
        return
    gradients = getattr(reference, f"{operation}_gradients")(inputs, cotangents)
    found = run.run_backward({name: run.upload(cotangent) for name, cotangent in cotangents.items()})
    for name, wanted in gradients.items():
        if name in inputs:
            made = run.download(found[name]) if name in found else np.zeros_like(wanted)
            close(made, wanted, tolerance, f"gradient of {name}")


def own(array):
    """A variable whose memory nobody else has: one that is made of an array may share the array's."""
    return tf.Variable(tf.constant(array) + 0)


def address(variable):
    """Where the values of a variable are in memory; nothing is held afterwards."""
    return np.asarray(memoryview(tf.convert_to_tensor(variable))).ctypes.data


def close(found, wanted, tolerance, name=""):
    assert found.shape == wanted.shape, name
    scale = max(1.0, np.abs(wanted).max(initial=0.0))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale, err_msg=name)
