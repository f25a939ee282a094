"""NumPy functions as prepared runs. Gradients exist where a closed form is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


class BoundRun:
    """A NumPy function bound to its arrays.

    Args:
        function: ``function(arrays) -> outputs by name``.
        arrays: the floating-point inputs by name.
        gradients: ``gradients(arrays, cotangents) -> gradients by name``, or None.
    """

    def __init__(
        self,
        function: Callable[[Arrays], Arrays],
        arrays: Arrays,
        gradients: Callable[[Arrays, Arrays], Arrays] | None = None,
    ) -> None:
        self._function, self._arrays, self._gradients = function, dict(arrays), gradients
        self._dtype = next(iter(arrays.values())).dtype

    def run(self) -> Arrays:
        """Compute the outputs."""
        return self._function(self._arrays)

    def run_backward(self, cotangents: Arrays) -> Arrays:
        """Compute the gradients by the closed form."""
        if self._gradients is None:
            raise TypeError("this variant has no gradient")
        return self._gradients(self._arrays, cotangents)

    def upload(self, array: np.ndarray) -> np.ndarray:
        """The array in the run's dtype."""
        return array.astype(self._dtype)

    def download(self, native: Any) -> np.ndarray:
        """The array itself."""
        return np.asarray(native)

    def synchronize(self) -> None:
        """NumPy is done when it returns."""

    def inputs(self) -> Arrays:
        """The inputs as they are now."""
        return self._arrays

    def peak_bytes(self, work: Callable[[], Any]) -> int | None:
        """NumPy's allocator keeps no count."""
        work()
        return None
