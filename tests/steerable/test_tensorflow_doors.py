"""The compiled expansion as TensorFlow operators: values, derivatives, traced functions, arguments."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli import kernels
from eqconv_cli.backends.steerable import tensorflow_fused
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels import doors, tensorflow_doors
from tests.steerable.support_doors import assert_close, example
from tests.support import needs

pytestmark = pytest.mark.tensorflow
built = needs("tensorflow", "cpu")
DTYPES = ["float32", "float64"]
DIRECT = pytest.mark.parametrize("direct", [False, True], ids=["harmonics", "direct"])
MODES = pytest.mark.parametrize("mode", ["eager", "function", "unknown length"])
OPERATORS = pytest.mark.parametrize("name", ["eqconv_expand_forward", "eqconv_expand_backward"])


def uploaded(direct, dtype="float64"):
    packed, *others = example(direct, dtype)
    return tensorflow_fused.upload(packed, "/CPU:0", tf.as_dtype(dtype)), *others


def traced(function, mode, dtype="float64"):
    if mode == "eager":
        return function
    signature = [tf.TensorSpec([None], dtype)] if mode == "unknown length" else None
    return tf.function(function, input_signature=signature, autograph=False)


def call(name, real, words, reals, sizes, flags=0, core=""):
    operator = getattr(tensorflow_doors.operators("cpu"), name)
    return operator(real, words, reals, sizes=sizes, flags=flags, core=core)


def arguments_of(name):
    tables, weights, _, cotangent, _ = uploaded(False)
    return weights if name == "eqconv_expand_forward" else cotangent, tables.words, tables.reals, list(tables.sizes)


@built
@DIRECT
@MODES
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients(direct, mode, dtype):
    tables, weights, filter, cotangent, gradient = uploaded(direct, dtype)

    def function(weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            y = tensorflow_fused.expand(tables, weights, Fused())
            assert y.shape == filter.shape
        return y, tape.gradient(y, weights, output_gradients=tf.constant(cotangent))

    y, found = traced(function, mode, dtype)(tf.constant(weights))
    assert_close(y.numpy(), filter, dtype)
    assert_close(found.numpy(), gradient, dtype)


@built
@DIRECT
@MODES
def test_derivatives_of_any_order(direct, mode):
    tables, weights, _, cotangent, _ = uploaded(direct)
    v = np.random.default_rng(2).normal(size=weights.shape)

    # f = Σ c y³: its third derivative along v is Σ 6 c (A v)³, for y = A w.
    def third(weights):
        def slope(order):
            if order == 0:
                return tf.reduce_sum(cotangent * tensorflow_fused.expand(tables, weights, Fused()) ** 3)
            with tf.GradientTape() as tape:
                tape.watch(weights)
                below = slope(order - 1)
            return tf.reduce_sum(tape.gradient(below, weights) * v)

        return slope(3)

    found = traced(third, mode)(tf.constant(weights)).numpy()
    expected = (6 * cotangent * tensorflow_fused.expand(tables, tf.constant(v), Fused()).numpy() ** 3).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@built
def test_tables_that_are_made_while_tracing_outlive_it():
    packed, weights, filter, *_ = example(False, "float64")
    made = []

    @tf.function(autograph=False)
    def function(weights):
        made.append(tensorflow_fused.upload(packed, "/CPU:0", tf.float64))
        return tensorflow_fused.expand(made[0], weights, Fused())

    assert_close(function(tf.constant(weights)).numpy(), filter, "float64")
    assert_close(tensorflow_fused.expand(made[0], tf.constant(weights), Fused()).numpy(), filter, "float64")


@built
def test_the_number_of_threads_changes_no_bit():
    tables, weights, _, cotangent, _ = uploaded(False, "float32")
    results = []
    for threads in (1, 2, 3):
        leaf = tf.constant(weights)
        with tf.GradientTape() as tape:
            tape.watch(leaf)
            y = tensorflow_fused.expand(tables, leaf, Fused(threads=threads))
        results.append((y.numpy(), tape.gradient(y, leaf, output_gradients=tf.constant(cotangent)).numpy()))
    for other in results[1:]:
        for mine, its in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(mine, its)


@built
def test_the_shape_of_a_gradient_is_known_while_tracing():
    _, words, reals, sizes = arguments_of("eqconv_expand_backward")

    @tf.function(autograph=False, input_signature=[tf.TensorSpec(None, tf.float64)])
    def function(filter):
        y = call("eqconv_expand_backward", filter, words, reals, sizes)
        assert y.shape == [sizes[8]]
        return y

    function.get_concrete_function()


# Arguments.


@built
@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("eqconv_expand_forward", 0, np.zeros(3), r"weights has shape \[3\]: expected \["),
        ("eqconv_expand_forward", 0, tf.zeros(3), "was expected to be a float tensor but is a double"),
        ("eqconv_expand_backward", 0, np.zeros((6, 7, 8)), r"filter has shape \[6,7,8\]: expected \[6,7,9\]"),
        ("eqconv_expand_forward", 1, np.zeros((3, 4), np.int32), r"have shapes \[3,4\] and "),
        ("eqconv_expand_forward", 1, np.zeros(3, np.int32), "words has 3 numbers: expected "),
        ("eqconv_expand_backward", 2, np.zeros(3), "reals has 3 numbers: expected "),
        ("eqconv_expand_backward", 3, [4, 3], "sizes has 2 numbers: expected 11"),
    ],
)
def test_the_operators_check_their_arguments(name, place, value, message):
    arguments = list(arguments_of(name))
    arguments[place] = value
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(name, *arguments)


@built
@OPERATORS
@pytest.mark.parametrize(
    ("place", "size", "message"),
    [
        (0, 5, "words has .* numbers: expected "),
        (1, -1, "sizes: in_fields is -1: 0 to 2\\^31 - 1 is allowed"),
        (4, 10, "numbers: expected"),
        (5, 6, "reals has .* numbers: expected "),
        (6, 1000, "1000 types have more numbers"),
        (10, 0, "reals has .* numbers: expected "),
    ],
)
def test_sizes_that_do_not_fit_the_tensors(name, place, size, message):
    real, words, reals, sizes = arguments_of(name)
    sizes[place] = size
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(name, real, words, reals, sizes)


@built
@OPERATORS
def test_a_wrong_shape_is_found_while_tracing(name):
    real, words, reals, sizes = arguments_of(name)
    with pytest.raises(ValueError, match="Dimension 0 in both shapes must be equal"):
        tf.function(lambda real: call(name, real, words, reals, sizes))(real[1:])


@built
def test_an_unknown_core_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="core is 'gpu': allowed: '' and, on the CPU, 'emulated'"):
        call("eqconv_expand_forward", *arguments_of("eqconv_expand_forward"), core="gpu")


def test_missing_kernels_are_named(monkeypatch):
    monkeypatch.setattr(kernels, "missing", lambda target: [f"{target} is not built"])
    for cached in (doors.missing_kernels, tensorflow_doors.operators, tensorflow_doors.library):
        cached.cache_clear()
    tables, weights, *_ = uploaded(True)
    try:
        assert tensorflow_doors.missing_operators(Fused(), "/CPU:0") == ["tensorflow is not built", "cpu is not built"]
        with pytest.raises(Unavailable, match="version='fused' in TensorFlow: tensorflow is not built"):
            tensorflow_fused.expand(tables, tf.constant(weights), Fused())
    finally:
        doors.missing_kernels.cache_clear()
