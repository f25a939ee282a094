"""What the PyTorch operators of all families have in common: where they compute, or why not, and how to open them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch

from eqconv_cli.kernels.doors import Settings, missing_kernels, open_core, operators_path

F = TypeVar("F", bound=Callable[..., Any])


def constant(function: F) -> F:
    """A function that a compiler calls while it traces, to take the result for a constant."""
    return cast(F, torch.compiler.assume_constant_result(function))


@constant
def missing_operators(settings: Settings, device_type: str) -> list[str]:
    """Why no compiled operator can compute on such a device here; empty when they can."""
    if device_type not in ("cpu", "cuda"):
        return [f"data is on a device of type {device_type}: the compiled kernels compute on cpu and cuda"]
    if settings.core == "emulated" and device_type != "cpu":
        return [f"the emulated device computes on tensors of the cpu, not of {device_type}"]
    return list(missing_kernels("torch", settings.core or device_type))


@cache
def library() -> str:
    """The path of the library of operators, which is loaded.

    Raises:
        Unavailable: it is not built.
    """
    path = operators_path("torch", "PyTorch")
    torch.ops.load_library(path)
    return path


@cache
def operator(name: str, place: str) -> Any:
    """The operator ``eqconv::name``, with the core of a place behind it.

    Raises:
        Unavailable: the operators or the core are not built, or do not load.
    """
    open_core(library(), place)
    return getattr(torch.ops.eqconv, name).default
