"""The helper threads of ``cuda/common/parallel.cpp``."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from eqconv_cli.kernels import targets, toolchain

HERE = Path(__file__).resolve().parent
CUDA = HERE.parents[1] / "cuda"
TIMEOUT_S = 60

#: What the programs below begin with.
PROLOGUE = """
import ctypes, os, resource, signal, sys, threading, time
from pathlib import Path

path = sys.argv[1]
library = ctypes.CDLL(path)
library.chain.restype = ctypes.c_uint64

def chain(threads, items=300):
    return library.chain(threads, ctypes.c_int64(items))

def helpers():
    return [task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text().strip() == "eqconv"]

def in_child(function):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if function() else 1)
    assert os.waitpid(child, 0)[1] == 0

def start_hold(threads, daemon=False):
    thread = threading.Thread(target=library.hold, args=(threads,), daemon=daemon)
    thread.start()
    while library.in_hold() < threads:
        time.sleep(0.001)
    return thread
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pool and its callers, linked as the core is."""
    try:
        compiler = toolchain.cxx()
    except toolchain.Missing as missing:
        pytest.skip(missing.reason)
    to = tmp_path_factory.mktemp("parallel") / "libparallel_calls.so"
    sources = [str(HERE / "parallel_calls.cpp"), str(CUDA / "common" / "parallel.cpp")]
    flags = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", f"-I{CUDA}"]
    link = targets.target("cpu").link
    subprocess.run([*compiler.command, *flags, *sources, *link, "-o", str(to)], check=True)
    return to


@pytest.fixture(scope="session")
def calls(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    loaded.chain.restype = ctypes.c_uint64
    return loaded


def chained(items: int) -> int:
    value = 0
    for item in range(items):
        value = (value * 6364136223846793005 + item + 1) % 2**64
    return value


def run(library: Path, program: str) -> None:
    """A process of its own runs this; its end is part of the test."""
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(program), str(library)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("items", [0, 1, 2, 7, 1000])
def test_every_item_once(calls: ctypes.CDLL, threads: int, items: int) -> None:
    for _ in range(20):
        thread_of, times = np.full(items, -1, np.int32), np.zeros(items, np.int64)
        calls.trace(
            threads, ctypes.c_int64(items), ctypes.c_void_p(thread_of.ctypes.data), ctypes.c_void_p(times.ctypes.data)
        )
        assert (times == 1).all()
        assert (thread_of >= 0).all()
        assert (thread_of < max(1, min(threads, items))).all()


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_the_turnstile_keeps_the_order(calls: ctypes.CDLL, threads: int) -> None:
    for items in (1, 2, 500):
        for _ in range(10):
            assert calls.chain(threads, ctypes.c_int64(items)) == chained(items)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_helpers_take_part(calls: ctypes.CDLL, threads: int) -> None:
    for pause in (0, 0, 0.01, 0.05):  # awake and asleep
        threading.Event().wait(pause)
        assert calls.meeting(threads) == threads


@pytest.fixture
def lending(calls: ctypes.CDLL) -> Iterator[Callable[[int], None]]:
    yield calls.borrow
    calls.borrow(0)


@pytest.mark.parametrize("kind", [1, 2])
def test_lent_threads_do_the_work(calls: ctypes.CDLL, lending: Callable[[int], None], kind: int) -> None:
    lending(kind)
    before = calls.threads_lent()
    for threads, items in ((1, 5), (3, 1), (3, 200), (8, 200)):
        thread_of, times = np.full(items, -1, np.int32), np.zeros(items, np.int64)
        calls.trace(
            threads, ctypes.c_int64(items), ctypes.c_void_p(thread_of.ctypes.data), ctypes.c_void_p(times.ctypes.data)
        )
        assert (times == 1).all()
        assert ((thread_of >= 0) & (thread_of < min(threads, items))).all()
        assert calls.chain(threads, ctypes.c_int64(items)) == chained(items)
    # Nobody is asked where one thread does it all.
    assert calls.threads_lent() - before == 2 * (3 + 8)


def test_lent_threads_work_at_the_same_time(calls: ctypes.CDLL, lending: Callable[[int], None]) -> None:
    lending(1)
    assert calls.meeting(5) == 5
    largest = ctypes.c_int(-1)
    assert calls.nested(3, ctypes.byref(largest)) == 6
    assert largest.value == 0


def test_lent_threads_start_no_helpers(library: Path) -> None:
    run(
        library,
        """
        library.borrow(1)
        assert chain(4) == chain(1)
        assert not helpers()
        library.borrow(0)
        chain(4)
        assert helpers()
        """,
    )


def test_a_call_inside_a_body_runs_in_its_caller(calls: ctypes.CDLL) -> None:
    largest = ctypes.c_int(-1)
    assert calls.meeting(4) == 4  # so that helpers are there to be taken
    assert calls.nested(3, ctypes.byref(largest)) == 6
    assert largest.value == 0


def test_calls_from_several_threads(calls: ctypes.CDLL) -> None:
    found: list[int] = []

    def several() -> None:
        found.extend(calls.chain(3, ctypes.c_int64(200)) for _ in range(50))

    callers = [threading.Thread(target=several) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(TIMEOUT_S)
    assert found == [chained(200)] * 200


def test_helpers_are_kept_and_shared(library: Path) -> None:
    run(
        library,
        """
        assert not helpers()
        for threads in (2, 4, 3, 4):
            assert library.meeting(threads) == threads
        assert len(helpers()) == 3
        # The second call does without those that the first one has, and takes the one that is left.
        holding = start_hold(3)
        assert chain(4) == chain(1)
        assert library.meeting(2) == 2
        library.release()
        holding.join()
        assert library.meeting(4) == 4
        assert len(helpers()) == 3
        """,
    )


def test_helpers_leave_signals_to_the_program(library: Path) -> None:
    run(
        library,
        """
        library.meeting(2)
        (status,) = [(task / "status").read_text() for task in helpers()]
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        assert blocked & 1 << signal.SIGINT - 1 and not blocked & 1 << signal.SIGSEGV - 1
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])
        """,
    )


def test_a_forked_child_has_helpers_of_its_own(library: Path) -> None:
    run(
        library,
        """
        expected = chain(1)
        works = lambda: library.meeting(3) == 3 and chain(3) == expected and len(helpers()) == 2
        assert works()
        in_child(works)
        in_child(lambda: works() and in_child(works) is None)
        assert works()
        # Also while another thread is in a call, which nobody in the child can finish.
        holding = start_hold(2)
        in_child(works)
        library.release()
        holding.join()
        """,
    )


def test_multiprocessing_by_fork(library: Path) -> None:
    run(
        library,
        """
        import multiprocessing
        expected = [chain(3)] * 8
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map_async(chain, [3] * 8).get(30) == expected
        """,
    )


def test_without_threads_from_the_system_the_caller_does_all(library: Path) -> None:
    run(
        library,
        """
        before = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        # Room for no stack of a thread.
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, before[1]))
        try:
            threading.Thread(target=print).start()
            sys.exit("the limit does not work")
        except RuntimeError:
            pass
        found, there = chain(4), len(helpers())
        resource.setrlimit(resource.RLIMIT_AS, before)
        assert found == chain(1) and there == 0
        assert library.meeting(4) == 4
        """,
    )


def test_unloading_leaves_helpers_their_code(library: Path) -> None:
    run(
        library,
        """
        import _ctypes
        library.meeting(3)
        _ctypes.dlclose(library._handle)
        time.sleep(0.05)  # the helpers have gone to sleep, in the library's code
        again = ctypes.CDLL(path)
        assert again.meeting(3) == 3 and len(helpers()) == 2
        _ctypes.dlclose(again._handle)
        """,
    )


@pytest.mark.parametrize("working", [False, True], ids=["asleep", "working"])
def test_a_process_ends_with_its_helpers(library: Path, working: bool) -> None:
    run(library, "start_hold(3, daemon=True)" if working else "library.meeting(3); time.sleep(0.05)")
