"""The catalog's door to NumPy: each operation bound to a problem's arrays, with its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eqconv_cli.backends.steerable import numpy_expansion, numpy_layers
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.backends.steerable.problem_arrays import layer_of, plan_of, reals
from eqconv_cli.catalog import Arrays
from eqconv_cli.frameworks.numpy import BoundRun
from eqconv_cli.kernels.doors import settings_on

Results = dict[str, Any]


def prepare(
    inputs: Arrays,
    dtype: str,
    device: str,
    *,
    operation: str,
    algorithm: str = "auto",
    fused: Mapping[str, Any] | None = None,
) -> BoundRun:
    """Bind an operation of the family.

    Args:
        inputs: of the problem, see the family's operations.
        dtype: "float32" or "float64".
        device: "cpu", or "emulated" for the compiled kernels.
        operation: its name in the catalog.
        algorithm: of the expansion.
        fused: settings of the compiled kernels, see :class:`Fused`; None for a composition.
    """
    settings = None if fused is None else settings_on(Fused, device, fused)
    how: Results = {"algorithm": algorithm, "settings": settings}
    arrays = reals(inputs, dtype, operation)
    return _expansion(inputs, arrays, how) if operation == "expansion" else _layer(inputs, arrays, how)


def _expansion(inputs: Arrays, arrays: Results, how: Results) -> BoundRun:
    plan = plan_of(inputs)

    def forward(given: Arrays) -> Results:
        return {"filter": numpy_expansion.expand(plan, given["weights"], **how)}

    def both(given: Arrays, cotangents: Arrays) -> Results:
        # The gradient does not need the filter; both are computed and kept to the end, as in the frameworks.
        filter = numpy_expansion.expand(plan, given["weights"], **how)
        found = numpy_expansion.expand_backward(plan, cotangents["filter"], **how)
        del filter
        return {"weights": found}

    forward(arrays)  # converts the constants
    return BoundRun(forward, arrays, both)


def _layer(inputs: Arrays, arrays: Results, how: Results) -> BoundRun:
    plan, told = plan_of(inputs), layer_of(inputs)
    options: Results = {
        "stride": told.stride,
        "padding": told.padding,
        "padding_mode": told.padding_mode,
        "groups": told.groups,
        **how,
    }

    def forward(given: Arrays) -> Results:
        bias = given.get("bias")
        return {"y": numpy_layers.steerable_conv2d(plan, given["x"], given["weights"], bias, **options)}

    def both(given: Arrays, cotangents: Arrays) -> Results:
        outputs = forward(given)
        x, weights, bias = given["x"], given["weights"], given.get("bias")
        found = numpy_layers.steerable_conv2d_gradients(cotangents["y"], plan, x, weights, bias, **options)
        del outputs
        return found

    forward(arrays)
    return BoundRun(forward, arrays, both)
