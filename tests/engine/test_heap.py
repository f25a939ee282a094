from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from eqconv_cli.engine import heap

ARRAY = 100 * 2**20
PAGES = ARRAY // resource.getpagesize()

needs_glibc = pytest.mark.skipif(heap._glibc() is None, reason="not glibc")


def faults() -> int:
    """Page faults of the second of two arrays of 100 MiB, the first of which has been freed."""
    np.ones(ARRAY, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(ARRAY, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@contextmanager
def without_huge_pages() -> Iterator[None]:
    """Count pages, not the huge ones of 2 MiB that the kernel may put in their place (prctl PR_SET_THP_DISABLE)."""
    library = ctypes.CDLL(None)
    library.prctl(41, 1, 0, 0, 0)
    try:
        yield
    finally:
        library.prctl(41, 0, 0, 0, 0)


@needs_glibc
def test_freed_memory_is_kept_while_the_context_lasts_and_no_longer() -> None:
    with without_huge_pages():
        assert faults() > PAGES / 2
        with heap.retained() as kept:
            assert kept
            assert faults() < PAGES / 20
        assert faults() > PAGES / 2


def test_another_c_library_retains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with heap.retained() as kept:
        assert not kept
