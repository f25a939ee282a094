"""Stacks of layers in TensorFlow, as the published benchmarks time them: forward, gradients, one optimiser step."""

from __future__ import annotations

# First, because it sets how much TensorFlow writes to the terminal before TensorFlow is imported.
from eqconv_cli.frameworks.tensorflow import BoundRun, Mode, Tensors

# isort: split
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from eqconv_cli.backends.feature_steered import stacks
from eqconv_cli.backends.feature_steered.plan import Coo
from eqconv_cli.backends.feature_steered.tensorflow import feature_steered_convolution, plan_neighborhood
from eqconv_cli.backends.feature_steered.tensorflow_models import masked_cross_entropy
from eqconv_cli.backends.feature_steered.tensorflow_sparse import edges_of

Array = npt.NDArray[Any]


class TrainingStep(BoundRun):
    """A run whose backward pass also updates the parameters by Adam (β1 0.9, β2 0.999, ε 1e-8, rate 1e-3).

    The update goes to a copy of the parameters: every step starts from the same ones, so that each timed step can be
    compared with the oracle.
    """

    def __init__(self, *arguments: Any, parameters: Mapping[str, Array], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._updated = {name: tf.Variable(array) for name, array in parameters.items()}
        self._adam = tf.keras.optimizers.Adam(learning_rate=1e-3, beta_1=0.9, epsilon=1e-8)
        self._adam.build(list(self._updated.values()))

    def run_backward(self, cotangents: Tensors) -> Tensors:
        """Compute the gradients and apply one Adam step."""
        gradients = super().run_backward(cotangents)
        self._adam.apply_gradients([(gradients[name], variable) for name, variable in self._updated.items()])
        return gradients


def prepare(inputs: Mapping[str, Array], dtype: str, device: str, mode: Mode = "eager", **options: Any) -> BoundRun:
    """A stack on one problem of :mod:`eqconv_cli.backends.feature_steered.stacks`.

    The batch is made block-diagonal once, as ``preprocess_neighbors=True`` does in pull request #101's benchmark.
    """
    layers = stacks.layers_of(inputs)
    names = stacks.parameter_names(layers)
    arrays = {name: inputs[name].astype(dtype, copy=False) for name in ("data", *names)}
    place = "/GPU:0" if device == "cuda" else "/CPU:0"
    with tf.device(place):
        values = tf.constant(inputs["values"].astype(dtype))
        labels = tf.constant(inputs["labels"]) if "labels" in inputs else None
    plan = plan_neighborhood(Coo(inputs["indices"], values, inputs["dense_shape"]))
    edges_of(plan.pattern, place)

    def convolve(x: Any, *parameters: Any) -> Any:
        return feature_steered_convolution(x, plan, None, *parameters, validate="none", **options)

    def function(tensors: Tensors) -> Tensors:
        y = stacks.apply(layers, tensors["data"], tensors, convolve, tf.nn.relu)
        return {"output": y} if labels is None else {"loss": masked_cross_entropy(y, labels)}

    if labels is None:
        return BoundRun(function, arrays, names, device, mode)
    parameters = {name: np.asarray(arrays[name]) for name in names}
    return TrainingStep(function, arrays, names, device, mode, parameters=parameters)
