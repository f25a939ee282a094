"""The compiled kernel called by ctypes with prepared pointers: what every door is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

from eqconv_cli import kernels
from eqconv_cli.backends.feature_steered import fused
from eqconv_cli.backends.feature_steered.numpy import plan_neighborhood
from eqconv_cli.backends.feature_steered.numpy_algorithms import Parameters
from eqconv_cli.backends.feature_steered.options import Fused
from eqconv_cli.catalog import Arrays
from eqconv_cli.errors import EqconvError
from eqconv_cli.frameworks.numpy import BoundRun


def prepare(inputs: Arrays, dtype: str, device: str) -> BoundRun:
    """A bare call on one graph, in order "last"; every run writes to the same array.

    Args:
        inputs: ``data`` [V, C], ``indices`` [E, 2], ``values`` [E], ``dense_shape`` [2] and the parameters.
        dtype: "float32" or "float64".
        device: "cpu".
    """
    plan = plan_neighborhood((inputs["indices"], inputs["values"], inputs["dense_shape"]))
    x, parameters = inputs["data"], Parameters(*(inputs[name] for name in Parameters._fields))
    fields = fused.fields_of(x, x, plan.values, parameters, plan.pattern, Fused(), 0, backward=False)
    y = np.empty((plan.pattern.rows, parameters[-1].shape[0]), dtype)
    core = kernels.core(device)
    call = core.prepare(fused.FORWARD, dtype, {**fields, "y": y})

    def run(arrays: Arrays) -> dict[str, Any]:
        status = call()
        if status != 0:
            raise EqconvError(f"{fused.FORWARD} on {device}: {core.status_text(status)}")
        return {"output": y}

    floats = {name: array for name, array in inputs.items() if np.issubdtype(array.dtype, np.floating)}
    return BoundRun(run, floats)
