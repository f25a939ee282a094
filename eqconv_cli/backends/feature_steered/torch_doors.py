"""The compiled PyTorch operator called with prepared tensors, without the Python around it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from eqconv_cli.backends.feature_steered import torch_fused
from eqconv_cli.backends.feature_steered.options import Fused
from eqconv_cli.backends.feature_steered.plan import Coo
from eqconv_cli.backends.feature_steered.torch import plan_neighborhood
from eqconv_cli.backends.feature_steered.torch_runs import PARAMETERS
from eqconv_cli.frameworks.torch import BoundRun, Tensors


class _Door(BoundRun):
    """Runs the function as it is: it records no graph by itself."""

    def run(self) -> Tensors:
        return self._function(self._tensors)


def prepare(inputs: Mapping[str, np.ndarray], dtype: str, device: str) -> BoundRun:
    """The operator on one graph, in order "last", as the forward pass without gradients calls it.

    Args:
        inputs: ``data`` [V, C], ``indices`` [E, 2], ``values`` [E], ``dense_shape`` [2] and the parameters.
        dtype: "float32" or "float64".
        device: "cpu".
    """
    names = ("data", "values", *PARAMETERS)
    arrays = {name: inputs[name] for name in names}
    plan = plan_neighborhood(Coo(inputs["indices"], arrays["values"], inputs["dense_shape"]))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    operator, arguments = torch_fused.door(
        tensors["data"], tensors["values"], [tensors[name] for name in PARAMETERS], plan.pattern, Fused()
    )

    def call(_: Tensors) -> Tensors:
        with torch._C._AutoDispatchBelowAutograd():
            return {"output": operator(*arguments)}

    return _Door(call, arrays, names, device)
