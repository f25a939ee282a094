"""Faults planted in kernels: each is found, with kernel, block and thread; the kernel without it reports nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.emulation.support import INVALID_CONFIGURATION, INVALID_VALUE, LAUNCH_FAILURE, SUCCESS, Kernels

AT = "(faults.cu:*)"
SHUFFLE = f"waits at __shfl_xor_sync with mask 0xffffffff {AT}"
LANE_5 = f"{SHUFFLE}, but lane 5, thread (37, 0, 0),"
BARRIER = f"waits at __syncthreads {AT}"
NEVER = "which no thread of the block has written"


def race(does: str, element: int, array: str, other: int, did: str) -> str:
    what = f"{does} element {element} of the shared array {array}"
    return f"{what}, which thread ({other}, 0, 0) {did} with no barrier between the two"


#: (kernel, which of its faults, block, thread, what it did); the last is the whole text, with * for a line number.
FAULTS = [
    ("neighbours", 1, 0, 1, race("reads", 0, "values", 0, "wrote")),
    ("neighbours", 2, 0, 1, race("writes", 0, "values", 0, "read")),
    ("written_twice", 1, 0, 40, race("writes", 3, "values", 3, "wrote")),
    ("flag", 1, 0, 9, race("writes", 0, "any", 4, "wrote")),
    ("within_a_warp", 1, 0, 1, race("reads", 0, "values", 0, "wrote")),
    ("within_a_warp", 2, 0, 31, race("reads", 30, "values", 30, "wrote")),
    ("within_a_warp", 3, 0, 31, race("reads", 15, "values", 15, "wrote")),
    ("within_a_warp", 4, 0, 0, race("reads", 0, "values", 31, "wrote")),
    ("half_warps", 1, 0, 31, race("reads", 15, "values", 15, "wrote")),
    ("readers", 1, 0, 40, race("writes", 0, "value", 32, "read")),
    ("readers", 2, 0, 40, race("writes", 0, "value", 0, "read")),
    ("readers", 3, 0, 40, race("writes", 0, "value", 32, "read")),
    ("atomic_counter", 1, 0, 1, race("changes atomically", 0, "count", 0, "read")),
    ("atomic_counter", 2, 0, 63, race("reads", 0, "count", 30, "changed atomically")),
    ("bytes", 1, 0, 1, race("writes", 0, "values", 0, "wrote")),
    ("static_bounds", 1, 2, 33, "reads element 5 of the shared array first, which has 5"),
    ("static_bounds", 2, 2, 33, "reads element -1 of the shared array first, which has 5"),
    ("plain_bounds", 1, 0, 63, "reads element 64 of the shared array (of EQC_SHARED), which has 64"),
    ("dynamic_bounds", 1, 0, 7, "reads byte 320 of dynamic shared memory, which has 320 bytes"),
    ("dynamic_bounds", 2, 0, 7, "reads byte -4 of dynamic shared memory, which has 320 bytes"),
    ("dynamic_bounds", 3, 0, 15, "reads byte 312 of dynamic shared memory, which has 320 bytes"),
    ("null_pointer", 1, 0, 0, "writes element 0 of the shared array NULL, which has 0"),
    ("view_bounds", 1, 2, 2, "writes element 192 of a view of 192"),
    ("view_bounds", 2, 0, 0, "writes element -1 of a view of 192"),
    ("view_bounds", 3, 0, 0, "writes element 0 of a view of NULL"),
    ("unwritten_shared", 1, 1, 20, f"reads element 20 of the shared array values, {NEVER}"),
    ("unwritten_dynamic", 1, 0, 32, f"reads byte 256 of dynamic shared memory, {NEVER}"),
    ("barrier_after_exit", 1, 1, 0, f"{BARRIER}, but thread (50, 0, 0) has exited"),
    ("barrier_elsewhere", 1, 0, 0, f"{BARRIER}, but thread (32, 0, 0) {BARRIER}"),
    ("barrier_elsewhere", 2, 0, 0, f"waits at __syncthreads_or {AT}, but thread (32, 0, 0) {BARRIER}"),
    ("masks", 1, 0, 32, f"{LANE_5} has exited"),
    ("masks", 2, 0, 32, f"{LANE_5} {BARRIER}"),
    ("masks", 3, 0, 32, f"{LANE_5} waits at __shfl_xor_sync with mask 0x7fffffff {AT}"),
    ("masks", 4, 0, 32, f"{LANE_5} waits at __any_sync with mask 0xffffffff {AT}"),
    ("masks", 5, 0, 5, f"{SHUFFLE.replace('ffffff ', 'ffffdf ')}, but the mask does not name its own lane 5"),
    ("masks", 6, 0, 0, f"{SHUFFLE}, width 12: allowed: 1, 2, 4, 8, 16, 32"),
    ("masks", 7, 0, 32, f"{LANE_5} {SHUFFLE}"),
    ("alignment", 1, 0, 0, "takes a vector of 8 bytes at an address that is 4 bytes off"),
    ("alignment", 2, 0, 0, "takes dynamic shared memory from byte 2 on, which is not a multiple of 4"),
    ("alignment", 3, 0, 0, "takes a vector of 16 bytes at an address that is 8 bytes off"),
    ("stack", 1, 0, 9, "needs more than the 69824 bytes of its stack"),
    ("traps", 1, 1, 36, f"calls __trap {AT}"),
    ("many_arrays", 1, 0, 0, "needs 65536 bytes of shared arrays and 0 of dynamic: allowed: 49152, and 232448 in all"),
    ("accumulate", 1, 0, 0, "reads element 0 of a view of 64 before anything has written it"),
    ("with_arguments<double, 3>", 1, 0, 3, "writes element 3 of a view of 3"),
]  # fmt: skip


def aligned_floats(count: int) -> np.ndarray:
    room = np.zeros(count + 4, np.float32)
    at = -room.ctypes.data % 16 // 4
    return room[at : at + count]


@pytest.fixture
def out() -> np.ndarray:
    return aligned_floats(192)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[0]} {fault[1]}")
def test_planted_fault_is_found(faults: Kernels, out: np.ndarray, fault: tuple[str, int, int, int, str]) -> None:
    kernel, planted, block, thread, what = fault
    function = f"run_{kernel.partition('<')[0]}"
    assert faults(function, out, planted) == LAUNCH_FAILURE
    text = f"kernel {kernel}, block ({block}, 0, 0), thread ({thread}, 0, 0): {what}"
    assert re.fullmatch(re.escape(text).replace(r"\*", r"\d+"), faults.report()), faults.report()


@pytest.mark.parametrize("kernel", sorted({fault[0] for fault in FAULTS if "<" not in fault[0]}))
def test_without_the_fault_nothing_is_reported(faults: Kernels, out: np.ndarray, kernel: str) -> None:
    for _ in range(2):  # again, with what the first run left behind
        assert (faults(f"run_{kernel}", out, 0), faults.report()) == (SUCCESS, "")


def test_a_vector_across_the_end_of_a_view(faults: Kernels) -> None:
    """At an address that a vector may have: two elements are within the view and two beyond."""
    out = aligned_floats(200)[2:]
    assert faults("run_view_bounds", out, 4) == LAUNCH_FAILURE
    wanted = "kernel view_bounds, block (0, 0, 0), thread (3, 0, 0): writes elements 190 to 193 of a view of 192"
    assert faults.report() == wanted


@pytest.mark.parametrize("planted", [2, 3], ids=["mark_written", "memset"])
def test_marked_memory_that_the_host_writes(faults: Kernels, out: np.ndarray, planted: int) -> None:
    assert (faults("run_accumulate", out, planted), faults.report()) == (SUCCESS, "")
    if planted == 3:
        assert (out[:64] == 1).all()


def test_marked_memory_holds_no_numbers(faults: Kernels, out: np.ndarray) -> None:
    assert faults("run_accumulate", out, 1) == LAUNCH_FAILURE
    assert np.isnan(out[:64]).all()
    assert (out[:64].view(np.int32) == -1).all()


def test_the_grid_ends_at_the_fault(faults: Kernels, out: np.ndarray) -> None:
    assert faults("run_traps", out, 1) == LAUNCH_FAILURE
    assert out.tolist() == [1.0] * 101 + [0.0] * 91


def test_a_good_launch_forgets_the_report(faults: Kernels, out: np.ndarray) -> None:
    assert faults("run_traps", out, 1) == LAUNCH_FAILURE
    assert faults.report() != ""
    assert faults("run_traps", out, 0) == SUCCESS
    assert faults.report() == ""
    assert (out == 1).all()


def test_an_error_is_kept_until_it_is_fetched(faults: Kernels, out: np.ndarray) -> None:
    assert faults("error_is_kept_once", out) == 0


LAUNCHES = [
    ((1, 1, 1), (1024, 1, 1), 0, 0, SUCCESS, ""),
    ((1, 1, 1), (16, 16, 4), 48 * 1024, 0, SUCCESS, ""),
    ((1, 1, 1), (1, 1, 1), 227 * 1024, 227 * 1024, SUCCESS, ""),
    ((1, 1, 1), (1025, 1, 1), 0, 0, INVALID_CONFIGURATION, "a block of (1025, 1, 1) threads: allowed: 1 to 1024"),
    ((1, 1, 1), (32, 33, 1), 0, 0, INVALID_CONFIGURATION, "a block of (32, 33, 1) threads: allowed: 1 to 1024"),
    ((1, 1, 1), (1, 1, 65), 0, 0, INVALID_CONFIGURATION, "a block of (1, 1, 65) threads: allowed: 1 to 1024"),
    ((1, 1, 1), (0, 1, 1), 0, 0, INVALID_CONFIGURATION, "a block of (0, 1, 1) threads: allowed: 1 to 1024"),
    ((0, 1, 1), (32, 1, 1), 0, 0, INVALID_CONFIGURATION, "a grid of (0, 1, 1) blocks: allowed: 1 to 2147483647"),
    ((1, 65536, 1), (32, 1, 1), 0, 0, INVALID_CONFIGURATION, "a grid of (1, 65536, 1) blocks: allowed: 1 to"),
    ((1, 1, 1), (32, 1, 1), 48 * 1024 + 1, 0, INVALID_VALUE, "49153 bytes of dynamic shared memory: allowed: 49152"),
    ((1, 1, 1), (32, 1, 1), 100_001, 100_000, INVALID_VALUE, "100001 bytes of dynamic shared memory: allowed: 100000"),
    ((1, 1, 1), (32, 1, 1), 232_449, 0, INVALID_VALUE, "232449 bytes of dynamic shared memory: allowed: 49152"),
]


@pytest.mark.parametrize("case", LAUNCHES, ids=str)
def test_launch_configurations(
    faults: Kernels, case: tuple[tuple[int, ...], tuple[int, ...], int, int, int, str]
) -> None:
    grid, block, shared, allowed, error, why = case
    out = np.zeros(2000, np.float32)
    assert faults("launch", out, np.array(grid), np.array(block), shared, allowed) == error
    if error == SUCCESS:
        assert faults.report() == ""
        assert out.sum() == block[0]
    else:
        assert faults.report().startswith(f"kernel with_arguments<char, 2000>: {why}")
        assert (out == 0).all()


def test_fast_mode_leaves_out_the_history_of_shared_memory(
    faults: Kernels, out: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQCONV_EMULATION", "fast")
    for kernel, planted in [("neighbours", 1), ("unwritten_shared", 1)]:
        assert (faults(f"run_{kernel}", out, planted), faults.report()) == (SUCCESS, "")
    assert np.isnan(out[64 + 20])  # what nobody has written is still not a number
    for kernel, planted in [("static_bounds", 1), ("view_bounds", 1), ("barrier_after_exit", 1), ("accumulate", 1)]:
        assert faults(f"run_{kernel}", out, planted) == LAUNCH_FAILURE
    monkeypatch.setenv("EQCONV_EMULATION", "checked")
    assert faults("run_neighbours", out, 1) == LAUNCH_FAILURE


def test_a_mode_that_there_is_not(faults: Kernels, out: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQCONV_EMULATION", "slow")
    assert faults("run_traps", out, 0) == INVALID_VALUE
    assert faults.report() == "kernel traps: EQCONV_EMULATION is 'slow': allowed: checked, fast"
