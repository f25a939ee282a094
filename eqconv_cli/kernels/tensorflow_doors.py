"""What the TensorFlow operators of all families have in common: where they compute, and why they cannot."""

from __future__ import annotations

import tensorflow as tf

from eqconv_cli.kernels.doors import Settings, missing_kernels


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
