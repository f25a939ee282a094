"""The PyTorch variants as prepared runs: the neighbourhood is planned and uploaded before the first run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

import numpy as np
import torch

from eqconv_cli.backends.feature_steered import torch_fused
from eqconv_cli.backends.feature_steered.options import Fused, fused_settings
from eqconv_cli.backends.feature_steered.plan import Coo
from eqconv_cli.backends.feature_steered.torch import feature_steered_convolution, plan_neighborhood
from eqconv_cli.backends.feature_steered.torch_sparse import edges_of
from eqconv_cli.frameworks import of_framework
from eqconv_cli.frameworks.torch import BoundRun, Tensors
from eqconv_cli.kernels.doors import settings_on

PARAMETERS = ("var_u", "var_v", "var_c", "var_w", "var_b")
DIFFERENTIABLE = ("data", "data_out", "values", *PARAMETERS)


def prepare(
    inputs: Mapping[str, np.ndarray],
    dtype: str,
    device: str,
    compiled: bool = False,
    fused: Mapping[str, Any] | None = None,
    **options: Any,
) -> BoundRun:
    """Bind the operator to one problem's arrays.

    Args:
        inputs: ``data`` [A1..An, Vi, C], optional ``data_out`` [A1..An, Vo, C], ``indices`` [E, n+2], ``values`` [E],
            ``dense_shape`` [n+2], optional ``sizes`` [A1..An], ``var_u``, ``var_v``, ``var_c``, ``var_w``, ``var_b``.
        dtype: "float32" or "float64"; the floating-point inputs are converted to it.
        device: "cpu", "cuda", or "emulated" for the compiled kernels.
        compiled: run through ``torch.compile``, which compiles at the first run and again at the first gradient.
        fused: settings of the compiled kernels, see :class:`Fused`; None runs the version that the options name.
        **options: keyword options of :func:`feature_steered_convolution`.

    Returns:
        A run with the output ``output`` and gradients of all floating-point inputs.

    Raises:
        TypeError, ValueError, IndexError: see :func:`feature_steered_convolution`.
    """
    if fused is not None:
        options["version"] = settings_on(Fused, device, fused)
    names = tuple(name for name in DIFFERENTIABLE if name in inputs)
    arrays = {name: inputs[name].astype(dtype, copy=False) for name in names}
    neighbors = Coo(inputs["indices"], arrays["values"], inputs["dense_shape"])
    plan = plan_neighborhood(neighbors, inputs.get("sizes"))
    place = torch.device(of_framework(device))
    edges_of(plan.pattern, place)
    settings = fused_settings(
        options.get("version", "auto"),
        options.get("softmax", "stable"),
        lambda settings: torch_fused.missing(
            settings, place.type, plan.pattern.rows, plan.pattern.cols, plan.pattern.edges
        ),
    )
    if settings is not None:
        torch_fused.upload(plan.pattern, place, settings)
    paired = "data_out" in inputs

    def convolve(tensors: Tensors) -> Tensors:
        data = (tensors["data"], tensors["data_out"]) if paired else tensors["data"]
        weighted = plan.with_values(tensors["values"])
        parameters = (tensors[name] for name in PARAMETERS)
        return {"output": feature_steered_convolution(data, weighted, None, *parameters, validate="none", **options)}

    return BoundRun(_compiled(convolve) if compiled else convolve, arrays, names, device)


def _compiled(function: Callable[[Tensors], Tensors]) -> Callable[[Tensors], Tensors]:
    """``function`` through ``torch.compile``, for its own shapes alone.

    Compiled code is kept with the code object, which all closures of one definition share: their shapes would count
    together against the limit of recompilations, and from the second on be compiled as dynamic. A copy shares nothing.
    """
    code = function.__code__.replace()
    copy = FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)
    compiled: Callable[[Tensors], Tensors] = torch.compile(copy, fullgraph=True, dynamic=False)
    return compiled
