"""What this machine can do at most, measured in the same run: copy bandwidth and matrix-product rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eqconv_cli.catalog import Cost

#: Copied at once: beyond most last-level caches, and no burden to a small machine.
_COPY_BYTES = 256 * 2**20
_MATRIX = 1536
_REPEATS = 5


@dataclass(frozen=True)
class Ceilings:
    """Bytes per second that NumPy copies (read + written) and flop/s of its matrix product, with the run's threads."""

    bytes_per_s: float
    flops_per_s: float

    def floor(self, cost: Cost) -> tuple[float, str]:
        """The seconds below which no implementation can come, and which ceiling sets them."""
        by_bytes, by_flops = cost.bytes / self.bytes_per_s, cost.flops / self.flops_per_s
        return (by_bytes, "numpy copy") if by_bytes > by_flops else (by_flops, "numpy GEMM")


def measure(dtype: str) -> Ceilings:
    """Measure both ceilings in ``dtype``; takes about a second."""
    source = np.ones(_COPY_BYTES // 2 // np.dtype(dtype).itemsize, dtype)
    target = np.empty_like(source)
    copied = _best(lambda: np.copyto(target, source))
    a = np.ones((_MATRIX, _MATRIX), dtype)
    product = np.empty_like(a)
    multiplied = _best(lambda: np.matmul(a, a, out=product))
    return Ceilings(2 * source.nbytes / copied, 2.0 * _MATRIX**3 / multiplied)


def _best(work: Callable[[], object]) -> float:
    """The shortest of a few runs after one to warm up: a ceiling is what can be reached, not what is usual."""
    work()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
