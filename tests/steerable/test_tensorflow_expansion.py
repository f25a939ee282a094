"""Every algorithm of TensorFlow gives the filter of the formula, with derivatives of any order."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from eqconv_cli.backends.steerable.arguments import COMPILED, COMPOSITIONS
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.errors import Unavailable
from eqconv_cli.frameworks.tensorflow import tf
from tests.steerable.support import plan_for
from tests.steerable.support_expansion import NAMES, assert_close, example, plan
from tests.steerable.support_layers import dense_filter
from tests.support import needs

# isort: split
from eqconv_cli.backends.steerable import tensorflow_expansion
from eqconv_cli.tensorflow import expand, expand_backward

pytestmark = pytest.mark.tensorflow
built = needs("tensorflow", "cpu")
EVERY = (*COMPOSITIONS, *(pytest.param(name, marks=built) for name in COMPILED), "auto")
DTYPES = ("float32", "float64")


def gradient_of(function: Callable[[Any], Any], at: Any, cotangent: Any) -> Any:
    with tf.GradientTape() as tape:
        tape.watch(at)
        made = function(at)
    return tape.gradient(made, at, output_gradients=cotangent)


@pytest.mark.parametrize("algorithm", EVERY)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_filter_and_gradient_are_those_of_the_formula(name: str, algorithm: str, dtype: str) -> None:
    weights, filter, cotangent, gradient = example(name, dtype)
    given, back = tf.constant(weights), tf.constant(cotangent)
    assert_close(expand(plan(name), given, algorithm=algorithm).numpy(), filter, dtype)
    found = gradient_of(lambda w: expand(plan(name), w, algorithm=algorithm), given, back)
    assert_close(found.numpy(), gradient, dtype)
    assert_close(expand_backward(plan(name), back, algorithm=algorithm).numpy(), gradient, dtype)


@pytest.mark.parametrize("algorithm", EVERY)
@pytest.mark.parametrize("name", ["missing-pairs", "one-type", "mixed"])
def test_second_derivatives(name: str, algorithm: str) -> None:
    """Of the sum of cubes of the filter, along a direction: 6 J^T (f · J d)."""
    weights, filter, cotangent, direction = example(name, "float64")

    def slope(w: Any) -> Any:
        return gradient_of(lambda v: tf.reduce_sum(expand(plan(name), v, algorithm=algorithm) ** 3), w, None)

    found = gradient_of(slope, tf.constant(weights), tf.constant(direction))
    moved = dense_filter(plan(name), direction)
    expected = expand_backward(plan(name), tf.constant(6 * filter * moved), algorithm="dense").numpy()
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    # The transposed map, differentiated, is the map.
    again = gradient_of(
        lambda g: expand_backward(plan(name), g, algorithm=algorithm), tf.constant(cotangent), tf.constant(direction)
    )
    assert_close(again.numpy(), moved, "float64")


@pytest.mark.parametrize("algorithm", EVERY)
@pytest.mark.parametrize("known", [True, False])
def test_traced(algorithm: str, known: bool) -> None:
    weights, filter, cotangent, gradient = example("mixed", "float32")
    layer = plan_for("C8", "regular+2*irrep:1+quotient:2+regular", "regular+trivial+regular", 5, 0.0)

    def both(w: Any) -> tuple[Any, Any]:
        return expand(layer, w, algorithm=algorithm), expand_backward(layer, cotangent, algorithm=algorithm)

    signature = [tf.TensorSpec([layer.weights_size if known else None], tf.float32)]
    traced = tf.function(both, input_signature=signature, autograph=False)
    made, back = traced(tf.constant(weights))
    assert_close(made.numpy(), filter, "float32")
    assert_close(back.numpy(), gradient, "float32")
    if not known:
        with pytest.raises(tf.errors.InvalidArgumentError, match="shape"):
            traced(tf.constant(weights[:-1]))
    # Constants that were made while tracing are of use outside.
    assert_close(expand(layer, tf.constant(weights), algorithm=algorithm).numpy(), filter, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["dense", "dense_direct", "irreps_vec", "packed", "harmonic", "orbit", "auto"])
def test_compiled_by_xla(algorithm: str) -> None:
    weights, filter, _, _ = example("mixed", "float32")
    compiled = tf.function(lambda w: expand(plan("mixed"), w, algorithm=algorithm), jit_compile=True)
    assert_close(compiled(tf.constant(weights)).numpy(), filter, "float32")


def test_variables_are_read() -> None:
    weights, filter, cotangent, gradient = example("mixed", "float64")
    variable = tf.Variable(weights)
    with tf.GradientTape() as tape:
        made = expand(plan("mixed"), variable)
    assert_close(made.numpy(), filter, "float64")
    assert_close(tape.gradient(made, variable, output_gradients=tf.constant(cotangent)).numpy(), gradient, "float64")


def test_constants_live_as_long_as_the_plan() -> None:
    layer = plan_for("C3", "regular", "regular", 3)
    for algorithm in COMPOSITIONS:
        expand(layer, tf.zeros([layer.weights_size]), algorithm=algorithm)
    known = weakref.ref(layer)
    del layer
    gc.collect()
    assert known() is None


def test_arguments_are_checked() -> None:
    layer = plan("mixed")
    weights, cotangent = tf.zeros([layer.weights_size]), tf.zeros(layer.filter_shape)
    for algorithm in ("dense", "auto"):
        with pytest.raises(ValueError, match=r"weights has shape \(3,\): expected .*irrep_1 -> regular: 2 x 2 x"):
            expand(layer, weights[:3], algorithm=algorithm)
        with pytest.raises(ValueError, match="weights has shape"):
            expand(layer, weights[None], algorithm=algorithm)
        with pytest.raises(TypeError, match="weights has dtype float16: allowed: float32, float64"):
            expand(layer, tf.cast(weights, tf.float16), algorithm=algorithm)
    with pytest.raises(ValueError, match="algorithm='fast' is unknown: allowed: auto, dense"):
        expand(layer, weights, algorithm="fast")
    with pytest.raises(ValueError, match=r"settings=.* with algorithm='dense'"):
        expand(layer, weights, algorithm="dense", settings=Fused())
    with pytest.raises(ValueError, match="grad_filter has shape"):
        expand_backward(layer, cotangent[:1])
    with pytest.raises(TypeError, match="grad_filter has dtype"):
        expand_backward(layer, tf.cast(cotangent, tf.int32))


def test_what_is_not_built_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorflow_expansion, "missing_operators", lambda settings, device: ["it is not built"])
    weights, filter, _, _ = example("one-type", "float64")
    with pytest.raises(Unavailable, match="it is not built"):
        expand(plan("one-type"), tf.constant(weights), algorithm="fused")
    assert_close(expand(plan("one-type"), tf.constant(weights)).numpy(), filter, "float64")
