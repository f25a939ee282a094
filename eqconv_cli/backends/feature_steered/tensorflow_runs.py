"""The TensorFlow variants of the catalog: the operator bound to the arrays of a problem."""

from __future__ import annotations

# First, because it sets how much TensorFlow writes to the terminal before TensorFlow is imported.
from eqconv_cli.frameworks.tensorflow import BoundRun, Mode, Tensors

# isort: split
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from eqconv_cli.backends.feature_steered import tensorflow_fused
from eqconv_cli.backends.feature_steered.options import Fused, fused_settings
from eqconv_cli.backends.feature_steered.plan import Coo
from eqconv_cli.backends.feature_steered.tensorflow import feature_steered_convolution, plan_neighborhood
from eqconv_cli.backends.feature_steered.tensorflow_sparse import edges_of
from eqconv_cli.kernels.doors import settings_on

PARAMETERS = ("var_u", "var_v", "var_c", "var_w", "var_b")
DIFFERENTIABLE = ("data", "data_out", "values", *PARAMETERS)


def prepare(
    inputs: Mapping[str, npt.NDArray[Any]],
    dtype: str,
    device: str,
    mode: Mode = "eager",
    fused: Mapping[str, Any] | None = None,
    **options: Any,
) -> BoundRun:
    """The operator on one problem; the plan is built and uploaded here, once.

    Args:
        inputs: ``data``, optional ``data_out``, ``values``, ``indices``, ``dense_shape``, optional ``sizes``,
            ``var_u``, ``var_v``, ``var_c``, ``var_w``, ``var_b``.
        dtype: "float32" or "float64", the dtype of the run.
        device: "cpu", "cuda", or "emulated" for the compiled kernels.
        mode: "eager", "function" or "xla".
        fused: settings of the compiled kernels, see :class:`Fused`; None runs the version that the options name.
        options: keyword options of :func:`feature_steered_convolution`.
    """
    if fused is not None:
        options["version"] = settings_on(Fused, device, fused)
    arrays = {name: inputs[name].astype(dtype, copy=False) for name in DIFFERENTIABLE if name in inputs}
    plan = plan_neighborhood(Coo(inputs["indices"], arrays["values"], inputs["dense_shape"]), inputs.get("sizes"))
    place = "/GPU:0" if device == "cuda" else "/CPU:0"
    edges_of(plan.pattern, place)
    settings = fused_settings(
        options.get("version", "auto"),
        options.get("softmax", "stable"),
        lambda settings: tensorflow_fused.missing(settings, place, plan.pattern),
    )
    if settings is not None:
        tensorflow_fused.upload(plan.pattern, place, settings)

    def function(tensors: Tensors) -> Tensors:
        data = (tensors["data"], tensors["data_out"]) if "data_out" in tensors else tensors["data"]
        weighted = plan.with_values(tensors["values"])
        parameters = (tensors[name] for name in PARAMETERS)
        return {"output": feature_steered_convolution(data, weighted, None, *parameters, validate="none", **options)}

    return BoundRun(function, arrays, tuple(arrays), device, mode)
