"""TensorFlow functions as prepared runs, eager, as ``tf.function`` or compiled by XLA; gradients by the tape."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np


@contextmanager
def _native_stderr_held_back() -> Iterator[None]:
    """Hold back what native code writes to stderr; shown after all if the block raises.

    While it is imported and while it looks for devices, TensorFlow's runtime writes banners that no log level stops.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
with _native_stderr_held_back():
    tf: Any = importlib.import_module("tensorflow")
    tf.config.list_physical_devices()
# TensorFloat-32 products keep ten bits and would fail any comparison in float32.
tf.config.experimental.enable_tensor_float_32_execution(False)
# Each problem has a tf.function of its own on purpose: the advice about retracing does not apply.
tf.get_logger().setLevel("ERROR")

Tensors = Mapping[str, Any]
Mode = Literal["eager", "function", "xla"]


def missing_device(device: str) -> list[str]:
    """Why TensorFlow cannot compute on this device."""
    if device == "cuda" and not tf.config.list_physical_devices("GPU"):
        built = "sees no CUDA device" if tf.test.is_built_with_cuda() else "was built without CUDA"
        return [f"tensorflow {tf.__version__} {built}"]
    return []


def _wrapped(function: Callable[..., Tensors], mode: Mode) -> Callable[..., Tensors]:
    if mode == "eager":
        return function
    traced: Callable[..., Tensors] = tf.function(function, autograph=False, jit_compile=mode == "xla")
    return traced


class BoundRun:
    """A TensorFlow function bound to its tensors on one device.

    Args:
        function: ``function(tensors) -> outputs by name``.
        arrays: the floating-point inputs by name, already in the dtype of the run.
        differentiable: the names of the inputs to differentiate.
        device: "cpu", "cuda" or "emulated".
        mode: how the function is executed; "function" traces it once, "xla" also compiles the trace.
    """

    def __init__(
        self,
        function: Callable[[Tensors], Tensors],
        arrays: Mapping[str, np.ndarray],
        differentiable: Sequence[str],
        device: str,
        mode: Mode = "eager",
    ) -> None:
        self._device = "/GPU:0" if device == "cuda" else "/CPU:0"
        self._dtype = next(iter(arrays.values())).dtype
        names = tuple(differentiable)

        def backward(tensors: Tensors, cotangents: Tensors) -> Tensors:
            leaves = [tensors[name] for name in names]
            with tf.GradientTape() as tape:
                tape.watch(leaves)
                outputs = function(tensors)
                wanted = [outputs[name] for name in cotangents]
            gradients = tape.gradient(wanted, leaves, output_gradients=list(cotangents.values()))
            return {n: tf.convert_to_tensor(g) for n, g in zip(names, gradients, strict=True) if g is not None}

        self._forward, self._backward = _wrapped(function, mode), _wrapped(backward, mode)
        with tf.device(self._device):
            self._tensors = {name: tf.constant(array) for name, array in arrays.items()}

    def run(self) -> Tensors:
        """Compute the outputs."""
        with tf.device(self._device):
            outputs: Tensors = self._forward(self._tensors)
        return outputs

    def run_backward(self, cotangents: Tensors) -> Tensors:
        """Compute outputs and gradients; an input that the outputs do not depend on has no entry."""
        with tf.device(self._device):
            gradients: Tensors = self._backward(self._tensors, dict(cotangents))
        return gradients

    def upload(self, array: np.ndarray) -> Any:
        """A tensor of the run's dtype and device."""
        with tf.device(self._device):
            return tf.constant(array.astype(self._dtype))

    def download(self, native: Any) -> np.ndarray:
        """The values in the tensor's own dtype."""
        array: np.ndarray = native.numpy()
        return array

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device != "/CPU:0":
            tf.test.experimental.sync_devices()

    def inputs(self) -> Mapping[str, np.ndarray]:
        """The inputs as they are now."""
        return {name: self.download(tensor) for name, tensor in self._tensors.items()}

    def peak_bytes(self, work: Callable[[], Any]) -> int | None:
        """The GPU allocator's peak above the start; the CPU allocator keeps no count."""
        if self._device == "/CPU:0":
            work()
            return None
        self.synchronize()
        tf.config.experimental.reset_memory_stats("GPU:0")
        before = tf.config.experimental.get_memory_info("GPU:0")["current"]
        result = work()
        self.synchronize()
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] - before
        del result
        return int(peak)
