from __future__ import annotations

import subprocess
import sys

import pytest

from eqconv_cli.engine import heap

#: Counts the page faults of the second of two arrays of 100 MiB, the first of which has been freed. Pages of 2 MiB
#: (prctl PR_SET_THP_DISABLE) would make few of them.
PROGRAM = """
import ctypes, resource
import numpy as np
from eqconv_cli.engine import heap

def faults():
    np.ones(100 * 2**20, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(100 * 2**20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)
counts = [faults()]
with heap.retained() as kept:
    assert kept
    counts.append(faults())
counts.append(faults())
pages = 100 * 2**20 // resource.getpagesize()
print(*(count / pages for count in counts))
"""


@pytest.mark.skipif(heap._glibc() is None, reason="not glibc")
def test_freed_memory_is_kept_while_the_context_lasts_and_no_longer() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, during, after = map(float, done.stdout.split())
    assert before > 0.5 and after > 0.5
    assert during < 0.05


def test_another_c_library_retains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with heap.retained() as kept:
        assert not kept
