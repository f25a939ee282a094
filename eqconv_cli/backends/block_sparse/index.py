"""What is active: lists of blocks and lists of pixels, for the arrays of every framework."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import numpy as np

_INT16_MAX = 32767


class BlockIndex(NamedTuple):
    """The active blocks.

    Only the first ``bin_counts[0]`` rows count. A list that was made on a GPU has room for every block behind them, so
    that nobody waits for the number; everywhere else there are no others.
    """

    #: int32 [B, 3]: (image, block row, block column), positions in the grid of blocks, not pixels.
    active_block_indices: Any
    #: int32 [1].
    bin_counts: Any

    def as_int16(self) -> BlockIndex:
        """The same list with int16 rows, as SBNet's operators have it; waits for a GPU.

        Raises:
            OverflowError: a number is above 32767.
        """
        rows = self.active_block_indices
        values = _to_numpy(rows)
        most = int(values.max(initial=0))
        if most > _INT16_MAX:
            raise OverflowError(f"active_block_indices has {most}: int16 holds at most {_INT16_MAX}")
        return self._replace(active_block_indices=_like(rows, values.astype(np.int16)))


class PixelIndex(NamedTuple):
    """The output pixels to compute; as for :class:`BlockIndex` only the first ``count[0]`` count."""

    #: int32 [P]: flat positions (n * Hout + h) * Wout + w, ascending, each once.
    pixels: Any
    #: int32 [1].
    count: Any
    #: (N, Hout, Wout).
    grid: tuple[int, int, int]


def _to_numpy(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array)


def _like(array: Any, values: np.ndarray) -> Any:
    """``values`` as an array of the framework, on the device, of ``array``."""
    framework = type(array).__module__.split(".")[0]
    if framework == "torch":
        return importlib.import_module("torch").from_numpy(values).to(array.device)
    if framework == "tensorflow":
        return importlib.import_module("tensorflow").constant(values)
    return values
