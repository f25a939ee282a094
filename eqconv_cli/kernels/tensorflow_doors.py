"""What the TensorFlow operators of all families have in common: where they compute, or why not, how to open them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import tensorflow as tf

from eqconv_cli.kernels.doors import Settings, missing_kernels, open_core, operators_path

F = TypeVar("F", bound=Callable[..., Any])


def gradient_of(name: str) -> Callable[[F], F]:
    """Decorates the function that computes the gradient of an operator."""
    return cast("Callable[[F], F]", tf.RegisterGradient(name))


def place_of(settings: Settings, device: str) -> str:
    """Where tensors on a device are computed: "cpu", "cuda" or "emulated"; unknown while tracing is the default."""
    if settings.core is not None:
        return settings.core
    kind = tf.DeviceSpec.from_string(device).device_type if device else None
    if kind is None:
        return "cuda" if tf.config.list_logical_devices("GPU") else "cpu"
    return "cuda" if kind == "GPU" else str(kind).lower()


def missing_operators(settings: Settings, device: str) -> list[str]:
    """Why no compiled operator can compute on such a device here; empty when they can."""
    place = place_of(settings, device)
    if place not in ("cpu", "cuda", "emulated"):
        return [f"data is on a device of type {place}: the compiled kernels compute on cpu and cuda"]
    reasons = list(missing_kernels("tensorflow", place))
    if not reasons and not tf.executing_eagerly() and tf.__internal__.get_enclosing_xla_context() is not None:
        return ["XLA (jit_compile=True) compiles TensorFlow's own operations only"]
    return reasons


@cache
def library() -> Any:
    """The operators as TensorFlow's module.

    Raises:
        Unavailable: they are not built.
    """
    return tf.load_op_library(operators_path("tensorflow", "TensorFlow"))


@cache
def operators(place: str) -> Any:
    """The same, with the core of a place behind them.

    Raises:
        Unavailable: the operators or the core are not built, or do not load.
    """
    module = library()
    open_core(operators_path("tensorflow", "TensorFlow"), place)
    return module
