"""PyTorch functions as prepared runs; gradients by autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from eqconv_cli.frameworks import of_framework

Tensors = Mapping[str, torch.Tensor]


def missing_device(device: str) -> list[str]:
    """Why PyTorch cannot compute on this device."""
    if device == "cuda" and not torch.cuda.is_available():
        built = "was built without CUDA" if torch.version.cuda is None else "sees no CUDA device"
        return [f"torch {torch.__version__} {built}"]
    return []


class BoundRun:
    """A PyTorch function bound to its tensors on one device.

    Args:
        function: ``function(tensors) -> outputs by name``.
        arrays: the floating-point inputs by name, already in the dtype of the run.
        differentiable: the names of the inputs to differentiate.
        device: "cpu", "cuda" or "emulated".
    """

    def __init__(
        self,
        function: Callable[[Tensors], Tensors],
        arrays: Mapping[str, np.ndarray],
        differentiable: Sequence[str],
        device: str,
    ) -> None:
        self._function, self._device = function, torch.device(of_framework(device))
        self._differentiable = tuple(differentiable)
        self._dtype = torch.from_numpy(np.empty(0, next(iter(arrays.values())).dtype)).dtype
        self._tensors = {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}

    def run(self) -> Tensors:
        """Compute the outputs without recording a graph."""
        with torch.no_grad():
            return self._function(self._tensors)

    def run_backward(self, cotangents: Tensors) -> Tensors:
        """Compute outputs and gradients; an input that the outputs do not depend on has no entry."""
        leaves = {name: self._tensors[name].detach().requires_grad_() for name in self._differentiable}
        outputs = self._function({**self._tensors, **leaves})
        gradients = torch.autograd.grad(
            [outputs[name] for name in cotangents],
            list(leaves.values()),
            list(cotangents.values()),
            allow_unused=True,
        )
        return {name: g for name, g in zip(leaves, gradients, strict=True) if g is not None}

    def upload(self, array: np.ndarray) -> torch.Tensor:
        """A tensor of the run's dtype and device."""
        return torch.tensor(array, dtype=self._dtype, device=self._device)

    def download(self, native: torch.Tensor) -> np.ndarray:
        """The values in the tensor's own dtype; on the CPU the memory is shared."""
        array: np.ndarray = native.detach().cpu().numpy()
        return array

    def synchronize(self) -> None:
        """Wait for the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def inputs(self) -> Mapping[str, np.ndarray]:
        """The inputs as they are now."""
        return {name: self.download(tensor) for name, tensor in self._tensors.items()}

    def peak_bytes(self, work: Callable[[], Any]) -> int | None:
        """The CUDA allocator's peak above the start; the CPU allocator keeps no count."""
        if self._device.type != "cuda":
            work()
            return None
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        result = work()
        self.synchronize()
        peak = torch.cuda.max_memory_allocated(self._device) - before
        del result
        return int(peak)
