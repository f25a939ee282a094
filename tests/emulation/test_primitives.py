"""What kernels can use, run by the emulated device, against NumPy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.emulation import support
from tests.emulation.support import SUCCESS, Kernels


def run(kernels: Kernels, function: str, *arguments: object) -> None:
    """A call that finds no fault."""
    assert (kernels(function, *arguments), kernels.report()) == (SUCCESS, "")


@pytest.mark.parametrize(("suffix", "dtype", "tolerance"), [("f32", np.float32, 1e-5), ("f64", np.float64, 1e-13)])
@pytest.mark.parametrize(("n", "blocks"), [(1, 1), (255, 1), (5000, 7), (100_000, 300)])
def test_block_sums(primitives: Kernels, suffix: str, dtype: type, tolerance: float, n: int, blocks: int) -> None:
    values = np.random.default_rng(n).normal(size=n).astype(dtype)
    out = np.full(blocks, np.nan, dtype)
    run(primitives, f"block_sum_{suffix}", values, out, n, blocks)
    block = np.arange(n) // 256 % blocks
    wanted = np.bincount(block, weights=values, minlength=blocks)
    np.testing.assert_allclose(out, wanted, rtol=0, atol=tolerance * np.abs(values).sum())


def shuffled(values: np.ndarray, width: int, parameter: int) -> np.ndarray:
    """The lane that each of the four shuffles reads, as the CUDA guide defines it."""
    lane = np.arange(32)
    first = lane // width * width
    last = first + width
    sources = [
        first + parameter % width,
        np.where(lane - parameter < first, lane, lane - parameter),
        np.where(lane + parameter >= last, lane, lane + parameter),
        np.where(lane ^ parameter >= last, lane, lane ^ parameter),
    ]
    return np.stack([values.reshape(-1, 32)[:, source].ravel() for source in sources])


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "float32", "float64"])
@pytest.mark.parametrize("width", [32, 16, 4, 1])
@pytest.mark.parametrize("parameter", [0, 1, 3, 5, 16, 31])
def test_shuffles(primitives: Kernels, dtype: str, width: int, parameter: int) -> None:
    rng = np.random.default_rng(0)
    values = np.frombuffer(rng.bytes(64 * np.dtype(dtype).itemsize), dtype).copy()
    values[np.isnan(values)] = 0
    out = np.zeros((4, 64), dtype)
    run(primitives, f"shuffles_{dtype}", values, out, width, parameter)
    np.testing.assert_array_equal(out, shuffled(values, width, parameter))


@pytest.mark.parametrize("split", [1, 7, 16, 31])
@pytest.mark.parametrize("kind", ["random", "none", "all"])
def test_votes_of_parts_of_a_warp(primitives: Kernels, split: int, kind: str) -> None:
    rng = np.random.default_rng(split)
    chosen = {"random": rng.integers(0, 2, 96), "none": np.zeros(96), "all": np.full(96, 5)}[kind].astype(np.int32)
    out = np.zeros((3, 96), np.uint32)
    run(primitives, "run_votes", chosen, out, split)
    wanted = np.zeros((3, 96), np.uint32)
    for warp in range(3):
        for lanes in (range(split), range(split, 32)):
            its = [32 * warp + lane for lane in lanes]
            wanted[0, its] = sum(1 << lane for lane in lanes if chosen[32 * warp + lane])
            wanted[1, its] = chosen[its].any()
            wanted[2, its] = chosen[its].all()
    np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize("threads", [1, 31, 96, 1024])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_barriers_that_vote(primitives: Kernels, threads: int, share: float) -> None:
    chosen = (np.random.default_rng(threads).random(threads) < share).astype(np.int32)
    out = np.full((3, threads), -1, np.int32)
    run(primitives, "run_barriers", chosen, out, threads)
    wanted = [[chosen.any()], [chosen.all()], [chosen.sum()]]
    np.testing.assert_array_equal(out, np.broadcast_to(wanted, (3, threads)))


def test_warp_reductions(primitives: Kernels) -> None:
    values = np.random.default_rng(0).integers(-(2**31), 2**31, 64).astype(np.int32)
    out = np.zeros((9, 64), np.int32)
    run(primitives, "run_warp_reductions", values, out)
    warps = values.reshape(2, 32)
    unsigned = warps.view(np.uint32)
    rows = [
        warps.sum(1, dtype=np.int64).astype(np.int32),
        warps.min(1),
        warps.max(1),
        unsigned.sum(1, dtype=np.uint64).astype(np.uint32),
        unsigned.min(1),
        unsigned.max(1),
        np.bitwise_and.reduce(unsigned, 1),
        np.bitwise_or.reduce(unsigned, 1),
        np.bitwise_xor.reduce(unsigned, 1),
    ]
    np.testing.assert_array_equal(out, np.stack([row.view(np.int32).repeat(32) for row in rows]))


@pytest.mark.parametrize("dtype", ["int32", "uint64", "float32", "float64"])
def test_atomic_sums_in_shared_and_global_memory(primitives: Kernels, dtype: str) -> None:
    rng = np.random.default_rng(0)
    bins = rng.integers(0, 37, 1000).astype(np.int32)
    weights = rng.integers(0, 100, 1000).astype(dtype)
    out, again = np.ones(37, dtype), np.ones(37, dtype)
    run(primitives, f"histogram_{dtype}", bins, weights, out, 37, 1000)
    np.testing.assert_array_equal(out, 1 + np.bincount(bins, weights=weights.astype(np.float64), minlength=37))
    run(primitives, f"histogram_{dtype}", bins, weights, again, 37, 1000)
    np.testing.assert_array_equal(out, again)


def test_other_atomics(primitives: Kernels) -> None:
    values = np.random.default_rng(0).integers(-1000, 1000, 200).astype(np.int32)
    out, seen = np.array([-5000, 5000, -1, 0], np.int32), np.zeros(201, np.int32)
    run(primitives, "run_other_atomics", values, out, seen, 200)
    assert out[:2].tolist() == [values.max(), values.min()]
    assert seen[out[2] + 1] == 0  # the value that nobody has taken out again
    assert seen.sum() == 200
    assert seen.max() == 1
    assert out[3] == 200


def test_dynamic_shared_memory_of_two_types(primitives: Kernels) -> None:
    values = np.random.default_rng(0).normal(size=64)
    out, packed = np.zeros(64), np.zeros(16, np.uint32)
    run(primitives, "run_dynamic_memory", values, out, packed, 64)
    np.testing.assert_array_equal(out, values[::-1])
    np.testing.assert_array_equal(packed.view(np.uint8), np.arange(64))


@pytest.mark.parametrize("sizes", [(2, 3, 4, 3, 2, 5), (1, 1, 1, 1, 1, 1), (7, 1, 2, 33, 1, 2)], ids=str)
def test_indices_in_three_dimensions(primitives: Kernels, sizes: tuple[int, ...]) -> None:
    out = np.full((np.prod(sizes), 6), -1, np.int32)
    run(primitives, "run_indices", out, np.array(sizes, np.int32))
    gx, gy, gz, bx, by, bz = sizes
    block_z, block_y, block_x, z, y, x = np.indices((gz, gy, gx, bz, by, bx)).reshape(6, -1)
    np.testing.assert_array_equal(out, np.stack([block_x, block_y, block_z, x, y, z], axis=1))


@pytest.mark.parametrize("n", [1, 32, 33, 200, 256])
def test_threads_that_exit_early(primitives: Kernels, n: int) -> None:
    values = np.arange(1, 257, dtype=np.int32)
    out = np.full(8, -1, np.int32)
    run(primitives, "run_early_exit", values, out, n)
    wanted = np.where(np.arange(256) < n, values, 0).reshape(8, 32).sum(1)
    wanted[np.arange(8) * 32 >= n] = -1
    np.testing.assert_array_equal(out, wanted)


def test_active_mask_is_the_branch(primitives: Kernels) -> None:
    out = np.zeros(32, np.uint32)
    run(primitives, "run_active", out)
    third = sum(1 << lane for lane in range(0, 32, 3))
    np.testing.assert_array_equal(out, np.where(np.arange(32) % 3 == 0, third, 0xFFFFFFFF - third))


def aligned(values: np.ndarray) -> np.ndarray:
    room = np.zeros(values.nbytes + 16, np.uint8)
    at = -room.ctypes.data % 16
    to = room[at : at + values.nbytes].view(values.dtype)
    to[:] = values
    return to


def test_vectors(primitives: Kernels) -> None:
    values = np.random.default_rng(0).normal(size=128)
    single, double = aligned(values.astype(np.float32)), aligned(values)
    out, out2 = aligned(np.zeros(128, np.float32)), aligned(np.zeros(128))
    run(primitives, "run_vectors", single, out, double, out2)
    np.testing.assert_array_equal(out, single[::-1])
    np.testing.assert_array_equal(out2, double[::-1])


@pytest.mark.parametrize("rounds", [0, 1, 2, 31])
def test_each_thread_keeps_its_own_values(primitives: Kernels, rounds: int) -> None:
    out = np.zeros(1024)
    run(primitives, "run_private_values", out, rounds)
    thread = np.arange(1024)
    wanted = 16 * thread + 0.5 * 120 + (rounds % 2) * 120 * (1.0 + thread)
    np.testing.assert_array_equal(out, wanted)


def test_bits(primitives: Kernels) -> None:
    values = np.array([0, 1, -1, 2, 1000, -12345, 2**31 - 1, -(2**31), 0x7F800001], np.int64).astype(np.int32)
    out = np.zeros((6, len(values)), np.int32)
    run(primitives, "run_bits", values, out, len(values))
    as_text = [f"{int(value) & 0xFFFFFFFF:032b}" for value in values]
    wanted = [
        [text.count("1") for text in as_text],
        [32 - len(text.lstrip("0")) for text in as_text],
        [0 if "1" not in text else 32 - text.rindex("1") for text in as_text],
        np.array([int(text[::-1], 2) for text in as_text], np.uint32).view(np.int32),
        values,
        np.rint(np.fmod(values, 1000) / 2),
    ]
    np.testing.assert_array_equal(out, np.array(wanted))


def test_maths(primitives: Kernels) -> None:
    values = np.array([0.25, 1.0, 3.75, 20.0], np.float32)
    out = np.zeros((6, 4), np.float32)
    run(primitives, "run_maths", values, out, 4)
    x = values.astype(np.float64)
    wanted = [
        x**-0.5,
        np.exp(-x),
        x * x - x,
        1 / x,
        np.minimum(x, 2),
        np.maximum(x.astype(int), 2) + np.minimum(x, 1.5),
    ]
    np.testing.assert_allclose(out, np.array(wanted), rtol=1e-6)


def test_launches_from_several_threads_do_not_meet(primitives: Kernels) -> None:
    def sums(seed: int) -> bool:
        values = np.random.default_rng(seed).integers(0, 100, 20_000).astype(np.float64)
        out = np.zeros(10)
        error = primitives("block_sum_f64", values, out, len(values), 10)
        return error == SUCCESS and primitives.report() == "" and out.sum() == values.sum()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(sums, range(16)))


def test_ucontext_runs_the_same(tmp_path: Path, emulator: list[Path]) -> None:
    """Where there is no assembly for the processor."""
    flags = ["-DEQC_FIBRES_BY_UCONTEXT"]
    kernels = Kernels(support.SOURCES / "primitives.cu", support.compile_emulator(tmp_path, flags), tmp_path, flags)
    test_each_thread_keeps_its_own_values(kernels, 31)
    test_warp_reductions(kernels)
