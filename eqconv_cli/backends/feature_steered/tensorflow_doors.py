"""The compiled TensorFlow operator called with prepared tensors, without the Python around it."""

from __future__ import annotations

# First, because it sets how much TensorFlow writes to the terminal before TensorFlow is imported.
from eqconv_cli.frameworks.tensorflow import BoundRun, Tensors

# isort: split
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from eqconv_cli.backends.feature_steered import tensorflow_fused
from eqconv_cli.backends.feature_steered.options import Fused
from eqconv_cli.backends.feature_steered.plan import Coo
from eqconv_cli.backends.feature_steered.tensorflow import plan_neighborhood
from eqconv_cli.backends.feature_steered.tensorflow_runs import PARAMETERS


class _Door(BoundRun):
    """Runs the function as it is: its tensors are where they are computed."""

    def run(self) -> Tensors:
        return self._forward(self._tensors)


def prepare(inputs: Mapping[str, npt.NDArray[Any]], dtype: str, device: str) -> BoundRun:
    """The operator on one graph, in order "last", called eagerly.

    Args:
        inputs: ``data`` [V, C], ``indices`` [E, 2], ``values`` [E], ``dense_shape`` [2] and the parameters.
        dtype: "float32" or "float64".
        device: "cpu".
    """
    names = ("data", "values", *PARAMETERS)
    arrays = {name: inputs[name] for name in names}
    plan = plan_neighborhood(Coo(inputs["indices"], arrays["values"], inputs["dense_shape"]))
    with tf.device("/CPU:0"):
        tensors = {name: tf.constant(array) for name, array in arrays.items()}
    call = tensorflow_fused.door(
        tensors["data"], tensors["values"], [tensors[name] for name in PARAMETERS], plan.pattern, Fused()
    )
    return _Door(lambda _: {"output": call()}, arrays, names, device)
