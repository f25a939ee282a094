"""The TensorFlow variants as prepared runs: plans and constants are there before the first run."""

from __future__ import annotations

# First, because it sets how much TensorFlow writes to the terminal before TensorFlow is imported.
from eqconv_cli.frameworks.tensorflow import BoundRun, Mode, Tensors

# isort: split
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from eqconv_cli.backends.steerable import problem_arrays
from eqconv_cli.backends.steerable.bias import bias_map
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.backends.steerable.tensorflow_convolution import convolve, padded
from eqconv_cli.backends.steerable.tensorflow_expansion import expand
from eqconv_cli.catalog import Arrays
from eqconv_cli.kernels.doors import settings_on

#: A function of the real tensors by name.
Function = Callable[[Tensors], Tensors]
Expand = Callable[[tf.Tensor], tf.Tensor]


def prepare(
    inputs: Arrays,
    dtype: str,
    device: str,
    *,
    operation: str,
    algorithm: str = "auto",
    mode: Mode = "eager",
    fused: Mapping[str, Any] | None = None,
) -> BoundRun:
    """Bind an operation of the family to one problem's arrays.

    Args:
        inputs: of the problem, see the family's operations.
        dtype: "float32" or "float64"; the real inputs are converted to it.
        device: "cpu", "cuda", or "emulated" for the compiled kernels.
        operation: "expansion" or "layer".
        algorithm: of the expansion.
        mode: "eager", "function" or "xla".
        fused: settings of the compiled kernels, see :class:`Fused`; None for a composition.

    Returns:
        A run with the operation's output and the gradients of its real inputs.

    Raises:
        TypeError, ValueError: see :func:`eqconv_cli.backends.steerable.tensorflow_expansion.expand`.
        Unavailable: the compiled kernels are asked for and are not built.
    """
    settings = None if fused is None else settings_on(Fused, device, fused)
    plan, arrays = problem_arrays.plan_of(inputs), problem_arrays.reals(inputs, dtype, operation)

    def expanded(weights: tf.Tensor) -> tf.Tensor:
        return expand(plan, weights, algorithm=algorithm, settings=settings)

    with tf.device("/GPU:0" if device == "cuda" else "/CPU:0"):
        expanded(tf.constant(arrays["weights"]))  # converts the constants
    function = _expansion(expanded) if operation == "expansion" else _layer(inputs, expanded)
    return BoundRun(function, arrays, tuple(arrays), device, mode)


def _expansion(expanded: Expand) -> Function:
    return lambda tensors: {"filter": expanded(tensors["weights"])}


def _layer(inputs: Arrays, expanded: Expand) -> Function:
    """Images are channels first in the problem, and last for the convolution, whose CPU kernel knows nothing else."""
    told, trivial = problem_arrays.layer_of(inputs), bias_map(problem_arrays.plan_of(inputs).out_type)

    def run(tensors: Tensors) -> Tensors:
        image, around = tf.transpose(tensors["x"], [0, 2, 3, 1]), told.padding
        if told.padding_mode != "zeros":
            image, around = padded(image, (around, around), told.padding_mode), 0
        y = convolve(image, expanded(tensors["weights"]), [told.stride] * 2, [around] * 2, told.dilation)
        if "bias" in tensors:
            bias = tensors["bias"]
            y += tf.reduce_sum(tf.gather(bias, trivial.positions) * tf.cast(trivial.values, bias.dtype), 0)
        return {"y": tf.transpose(y, [0, 3, 1, 2])}

    return run
