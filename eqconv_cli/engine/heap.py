"""Keeps memory that was freed in the process, so that a timing does not pay for getting it from the system again.

glibc takes each large array from the system and gives it back when it is freed; the next one then costs a page fault
every 4 KiB, and zeroing. A framework that allocates its results anew at each call pays that at each call, one that
caches its buffers never does. With the heap retained all of them stand alike.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

#: ``mallopt`` parameters of glibc (malloc.h) and their defaults.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}
#: Never trim, and take no array by mmap: M_MMAP_THRESHOLD itself goes up to 32 MiB only.
_RETAINED = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}


@contextmanager
def retained() -> Iterator[bool]:
    """Retain the heap while the context lasts; afterwards what is free is given back.

    Yields:
        Whether the heap is retained: False on systems without glibc.
    """
    library = _glibc()
    if library is None or not all(library.mallopt(name, value) for name, value in _RETAINED.items()):
        yield False
        return
    try:
        yield True
    finally:
        for name, value in _DEFAULTS.items():
            library.mallopt(name, value)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (what only glibc has)
        return library
    except (AttributeError, OSError, TypeError):
        return None
