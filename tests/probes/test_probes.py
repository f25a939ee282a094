"""The probes of the CPU do the work that they say they did; how fast is for ``bench`` to tell."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest

from eqconv_cli import kernels
from eqconv_cli.errors import EqconvError

pytestmark = pytest.mark.skipif(bool(kernels.missing("cpu")), reason="the core for the CPU is not built")

STREAMED, AVX2, PORTABLE = 1, 16, 32
#: Instruction sets as flags; all give the same results.
SETS = (0, AVX2, PORTABLE)


def aligned(size: int, dtype: str) -> np.ndarray:
    memory = np.zeros(size * np.dtype(dtype).itemsize + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + size * np.dtype(dtype).itemsize].view(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("flags", SETS)
@pytest.mark.parametrize("threads", [1, 3])
def test_multiply_add_counts_what_it_computes(dtype: str, flags: int, threads: int) -> None:
    flops, seconds, total = np.empty(1), np.empty(1), np.empty(1, dtype)
    fields = {"rounds": 1000, "flags": flags, "threads": threads, "flops": flops, "seconds": seconds, "sum": total}
    kernels.core("cpu").call("probe_multiply_add", dtype, fields)
    # Every number tends to 1, so their sum is how many there are; each takes one multiplication and one addition.
    numbers = round(float(total[0]))
    assert total[0] == pytest.approx(numbers, rel=1e-6)
    assert flops[0] == 2 * 1000 * numbers
    assert numbers % threads == 0 and numbers // threads >= 10
    assert seconds[0] > 0


def test_wider_instructions_compute_more_numbers() -> None:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("one instruction set here")
    counts = []
    for flags in SETS:
        flops = np.empty(1)
        fields: dict[str, Any] = {"rounds": 10, "flags": flags, "threads": 1, "flops": flops}
        kernels.core("cpu").call(
            "probe_multiply_add", "float32", {**fields, "seconds": np.empty(1), "sum": np.empty(1, np.float32)}
        )
        counts.append(flops[0])
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("flags", [flags | streamed for flags in SETS for streamed in (0, STREAMED)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [0, 5, 1024, 4099])
def test_copy_copies_everything(dtype: str, flags: int, threads: int, size: int) -> None:
    source, target = np.arange(1, size + 1).astype(dtype), aligned(size, dtype)
    moved, seconds = np.empty(1), np.empty(1)
    fields = {"size": size, "rounds": 2, "flags": flags, "threads": threads, "source": source, "target": target}
    kernels.core("cpu").call("probe_copy", dtype, {**fields, "bytes": moved, "seconds": seconds})
    assert np.array_equal(source, target)
    # Whole vectors count, twice each round: read and written.
    assert 0 <= 2 * 2 * source.nbytes - moved[0] < 2 * 2 * 64
    assert seconds[0] > 0


def test_what_cannot_be_measured_is_refused() -> None:
    one, numbers = np.empty(1), aligned(64, "float32")
    core = kernels.core("cpu")
    wrong_status = "a needed array is missing or a size is impossible"
    with pytest.raises(EqconvError, match=wrong_status):
        core.call("probe_multiply_add", "float32", {"rounds": -1, "flops": one, "seconds": one, "sum": numbers})
    with pytest.raises(EqconvError, match=wrong_status):
        core.call("probe_multiply_add", "float32", {"rounds": 1, "flops": one, "seconds": one})
    fields = {"size": 8, "rounds": 1, "source": numbers, "bytes": one, "seconds": one}
    with pytest.raises(EqconvError, match=wrong_status):
        core.call("probe_copy", "float32", fields)
    with pytest.raises(EqconvError, match=wrong_status):
        core.call("probe_copy", "float32", {**fields, "target": numbers[1:], "flags": STREAMED})
