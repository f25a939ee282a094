"""What this machine can do at most, measured in the same run: floating-point operations and bytes a second.

The compiled core has probes for both: multiply-adds in registers, and a copy. NumPy's matrix product and its copy are
measured too. A ceiling is what can be reached, so of several measurements the largest counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eqconv_cli import kernels
from eqconv_cli.catalog import Cost
from eqconv_cli.errors import EqconvError
from eqconv_cli.events import Floor, Unit

#: Read and written by a copy: beyond most last-level caches, and no burden to a small machine.
_COPY_BYTES = 256 * 2**20
_MATRIX = 1536
_REPEATS = 5
#: Rounds of the probe's loop, a few milliseconds, and how long it is repeated: a processor that is shared with others
#: is undisturbed for a moment only.
_ROUNDS = 1_000_000
_PROBING_S = 0.25
_ALIGNMENT = 64
_STREAMED = 1  # EQC_PROBE_STREAMED of cuda/probes/probes.h


@dataclass(frozen=True)
class Ceiling:
    """A rate that was reached: units (flop or byte) a second."""

    name: str
    unit: Unit
    rate: float
    #: How it was reached, where there are several ways.
    remark: str = ""

    def __str__(self) -> str:
        rate = f"{self.rate / 1e9:.1f} GB/s" if self.unit == "byte" else f"{self.rate / 1e9:.0f} GFLOP/s"
        return f"{self.name} {rate} ({self.remark})" if self.remark else f"{self.name} {rate}"


@dataclass(frozen=True)
class Ceilings:
    """All the rates that were measured, of both units at least one."""

    measured: tuple[Ceiling, ...]

    def floors(self, cost: Cost) -> tuple[Floor, ...]:
        """The least time of the flops and of the bytes of ``cost`` at the highest rate of each; the longer one first.

        No implementation can be faster than either.
        """
        amounts: dict[Unit, float] = {"flop": cost.flops, "byte": cost.bytes}
        floors = []
        for unit, amount in amounts.items():
            highest = max((c for c in self.measured if c.unit == unit), key=lambda c: c.rate)
            floors.append(Floor(highest.name, unit, amount, amount / highest.rate))
        return tuple(sorted(floors, key=lambda floor: -floor.seconds))


def measure(dtype: str, threads: int | None = None) -> Ceilings:
    """Measure the ceilings in ``dtype``; takes about a second.

    Args:
        dtype: "float32" or "float64".
        threads: of the probes; None takes all cores. NumPy takes what its libraries were told when they were loaded.
    """
    source = np.ones(_COPY_BYTES // 2 // np.dtype(dtype).itemsize, dtype)
    target = _aligned_like(source)
    copied = _best(lambda: np.copyto(target, source))
    a = np.ones((_MATRIX, _MATRIX), dtype)
    product = np.empty_like(a)
    multiplied = _best(lambda: np.matmul(a, a, out=product))
    return Ceilings(
        (
            *_probes(dtype, threads or 0, source, target),
            Ceiling("numpy copy", "byte", 2 * source.nbytes / copied),
            Ceiling("numpy GEMM", "flop", 2.0 * _MATRIX**3 / multiplied),
        )
    )


def _probes(dtype: str, threads: int, source: np.ndarray, target: np.ndarray) -> Sequence[Ceiling]:
    """The rates of the compiled probes; none where the core is not built."""
    try:
        core = kernels.core("cpu")
    except EqconvError:
        return ()

    def rate(operation: str, work: str, fields: dict[str, Any]) -> float:
        done, seconds = np.empty(1), np.empty(1)
        best = 0.0
        stop = time.perf_counter() + _PROBING_S
        while time.perf_counter() < stop or best == 0.0:
            core.call(operation, dtype, {**fields, "threads": threads, work: done, "seconds": seconds})
            best = max(best, float(done[0] / seconds[0]))
        return best

    peak = rate("probe_multiply_add", "flops", {"rounds": _ROUNDS, "sum": np.empty(1, dtype)})
    copy = {"size": source.size, "rounds": 1, "source": source, "target": target}
    plain, streamed = (rate("probe_copy", "bytes", {**copy, "flags": flags}) for flags in (0, _STREAMED))
    remark = "non-temporal stores" if streamed > plain else "plain stores"
    return Ceiling("stream copy", "byte", max(plain, streamed), remark), Ceiling("FMA peak", "flop", peak)


def _aligned_like(array: np.ndarray) -> np.ndarray:
    """An uninitialised array like a one-dimensional one, whose memory begins at a cache line."""
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    aligned: np.ndarray = memory[begin : begin + array.nbytes].view(array.dtype)
    return aligned


def _best(work: Callable[[], object]) -> float:
    """The shortest of a few runs after one to warm up: a ceiling is what can be reached, not what is usual."""
    work()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
