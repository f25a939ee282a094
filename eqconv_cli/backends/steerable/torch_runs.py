"""The PyTorch variants as prepared runs: plans and constants are there before the first run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from eqconv_cli.backends.steerable import problem_arrays
from eqconv_cli.backends.steerable.bias import bias_map
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.backends.steerable.torch_expansion import expand
from eqconv_cli.catalog import Arrays
from eqconv_cli.frameworks import of_framework
from eqconv_cli.frameworks.torch import BoundRun, Tensors
from eqconv_cli.kernels.doors import settings_on

#: A function of the real tensors by name.
Function = Callable[[Tensors], Tensors]
Expand = Callable[[torch.Tensor], torch.Tensor]


def prepare(
    inputs: Arrays,
    dtype: str,
    device: str,
    *,
    operation: str,
    algorithm: str = "auto",
    fused: Mapping[str, Any] | None = None,
) -> BoundRun:
    """Bind an operation of the family to one problem's arrays.

    Args:
        inputs: of the problem, see the family's operations.
        dtype: "float32" or "float64"; the real inputs are converted to it.
        device: "cpu", "cuda", or "emulated" for the compiled kernels.
        operation: "expansion" or "layer".
        algorithm: of the expansion.
        fused: settings of the compiled kernels, see :class:`Fused`; None for a composition.

    Returns:
        A run with the operation's output and the gradients of its real inputs.

    Raises:
        TypeError, ValueError: see :func:`eqconv_cli.backends.steerable.torch_expansion.expand`.
        Unavailable: the compiled kernels are asked for and are not built.
    """
    settings = None if fused is None else settings_on(Fused, device, fused)
    plan, arrays = problem_arrays.plan_of(inputs), problem_arrays.reals(inputs, dtype, operation)

    def expanded(weights: torch.Tensor) -> torch.Tensor:
        return expand(plan, weights, algorithm=algorithm, settings=settings)

    place = torch.device(of_framework(device))
    expanded(torch.from_numpy(arrays["weights"]).to(place))  # converts the constants
    function = _expansion(expanded) if operation == "expansion" else _layer(inputs, expanded, dtype, place)
    return BoundRun(function, arrays, tuple(arrays), device)


def _expansion(expanded: Expand) -> Function:
    return lambda tensors: {"filter": expanded(tensors["weights"])}


def _layer(inputs: Arrays, expanded: Expand, dtype: str, device: torch.device) -> Function:
    told, trivial = problem_arrays.layer_of(inputs), bias_map(problem_arrays.plan_of(inputs).out_type)
    positions = torch.from_numpy(trivial.positions).to(device)
    values = torch.from_numpy(trivial.values.astype(np.dtype(dtype))).to(device)

    def run(tensors: Tensors) -> Tensors:
        x, padding = tensors["x"], told.padding
        bias = (tensors["bias"][positions] * values).sum(0) if "bias" in tensors else None
        if told.padding_mode != "zeros":
            x, padding = F.pad(x, [told.padding] * 4, told.padding_mode), 0
        filter = expanded(tensors["weights"])
        return {"y": F.conv2d(x, filter, bias, told.stride, padding, told.dilation, told.groups)}

    return run
