"""Active windows of masks by the core, against loops over the definition."""

from __future__ import annotations

import numpy as np
import pytest

from eqconv_cli.errors import EqconvError
from tests.block_sparse import support_core as core
from tests.block_sparse.support_core import AVERAGE, FIRST, INSTRUCTIONS, TOLERANCES, Windows

GEOMETRIES = core.geometries()


@pytest.fixture(scope="module", params=core.cores())
def device(request):
    return request.param


def flat(triples, grid):
    return [(image * grid[0] + i) * grid[1] + j for image, i, j in triples]


def check(device, mask, windows, grid, tolerance, average, **fields):
    expected = core.active_windows(mask, windows, grid, tolerance, average)
    flags = fields.pop("flags", 0) | (AVERAGE if average else 0)
    found = core.reduce_mask(device, "mask_blocks", mask, windows, grid, tolerance, flags=flags, **fields)
    np.testing.assert_array_equal(found, np.array(expected, np.int32).reshape(-1, 3))
    found = core.reduce_mask(device, "mask_pixels", mask, windows, grid, tolerance, flags=flags, **fields)
    np.testing.assert_array_equal(found, np.array(flat(expected, grid), np.int32))
    return expected


@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("average", [False, True], ids=["maximum", "average"])
def test_geometries(device, average, part):
    for number, windows in enumerate(GEOMETRIES[part::8]):
        given = core.masks(windows, number)
        names = list(given)
        for k in range(2):
            mask = given[names[(number + 3 * k) % len(names)]].astype(["float32", "float64"][(number + k) % 2])
            grid = min(windows.grid()[0], 12), min(windows.grid()[1], 12)
            check(device, mask, windows, grid, TOLERANCES[(number // 7 + k) % 3], average)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("average", [False, True], ids=["maximum", "average"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_rows_of_many_lengths(device, dtype, average, instructions):
    for width in (1, 7, 16, 31, 63, 64, 65, 127, 128, 200):
        rng = np.random.default_rng(width)
        for window, stride, offset in (
            ((1, 1), (1, 1), (0, 0)),
            ((3, 3), (1, 1), (-1, -1)),
            ((2, 70), (1, 1), (0, -35)),
            ((3, 2), (2, 3), (-2, 1)),
            ((5, 130), (4, 7), (-3, -65)),
        ):
            windows = Windows(2, 6, width, window, stride, offset)
            mask = (rng.random((2, 6, width)) < 0.05).astype(dtype)
            grid = (5, (width - offset[1]) // stride[1] + 2)
            for tolerance in (0.0, 1.0, -0.25, 0.03):
                check(device, mask, windows, grid, tolerance, average, flags=INSTRUCTIONS[instructions])


def test_comparisons_are_strict_and_in_float(device):
    windows = Windows(1, 1, 4, (1, 1), (1, 1), (0, 0))
    above = np.nextafter(np.float64(np.float32(0.1)), 1)
    mask = np.array([[[0.1, above, np.float64(np.nextafter(np.float32(0.1), np.float32(1))), 0.5]]])
    assert np.float64(0.1) < above
    for average in (False, True):
        check(device, mask, windows, (1, 4), 0.1, average)
        found = core.active_windows(mask, windows, (1, 4), 0.1, average)
        assert found == [(0, 0, 2), (0, 0, 3)]


def test_a_window_partly_outside_has_the_whole_area(device):
    mask = np.ones((1, 5, 5), np.float32)
    windows = Windows(1, 5, 5, (4, 4), (4, 4), (-1, -1))
    for tolerance, expected in ((0.5625, []), (0.56, [(0, 0, 0)])):
        found = core.reduce_mask(device, "mask_blocks", mask, windows, (1, 1), tolerance, flags=AVERAGE)
        np.testing.assert_array_equal(found, np.array(expected, np.int32).reshape(-1, 3))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_windows(device, bad):
    windows = Windows(1, 9, 150, (3, 3), (1, 1), (-1, -1))
    mask = np.full((1, 9, 150), 0.5, np.float32)
    mask[0, 4, 70] = bad
    grid = (9, 150)
    with np.errstate(invalid="ignore"):
        check(device, mask, windows, grid, 0.25, average=True)
        check(device, mask, windows, grid, 0.25, average=False)


def test_windows_outside(device):
    mask = np.ones((2, 4, 4), np.float32)
    for offset in ((50, 50), (-50, 0), (0, 2**62), (-(2**62), -5), (2**31, 0), (0, -(2**33))):
        windows = Windows(2, 4, 4, (2, 2), (2, 2), offset)
        for average in (False, True):
            check(device, mask, windows, (3, 3), -0.25, average)
            check(device, mask, windows, (3, 3), 0.0, average)


def test_enormous_windows_and_strides(device):
    mask = np.zeros((1, 4, 70), np.float32)
    mask[0, 3, 69] = 1
    windows = Windows(1, 4, 70, (2**40, 2**41), (2**62, 2**62), (-(2**39), -(2**39)))
    found = core.reduce_mask(device, "mask_blocks", mask, windows, (3, 3), 0.0)
    np.testing.assert_array_equal(found, [[0, 0, 0]])
    found = core.reduce_mask(device, "mask_blocks", mask, windows, (3, 3), 0.0, flags=AVERAGE)
    np.testing.assert_array_equal(found, [[0, 0, 0]])


def test_an_empty_mask_gives_nothing_or_the_first_block(device):
    windows = Windows(2, 7, 11, (3, 3), (2, 2), (-1, -1))
    mask = np.zeros((2, 7, 11), np.float32)
    assert len(core.reduce_mask(device, "mask_blocks", mask, windows, (4, 6), 0.0)) == 0
    first = core.reduce_mask(device, "mask_blocks", mask, windows, (4, 6), 0.0, flags=FIRST)
    np.testing.assert_array_equal(first, [[0, 0, 0]])
    mask[1, 6, 10] = 1
    found = core.reduce_mask(device, "mask_blocks", mask, windows, (4, 6), 0.0, flags=FIRST)
    np.testing.assert_array_equal(found, core.active_windows(mask, windows, (4, 6), 0.0, False))


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 5), (2, 5, 0)])
@pytest.mark.parametrize("flags", [0, AVERAGE])
def test_no_pixels(device, shape, flags):
    windows = Windows(*shape, (2, 2), (2, 2), (0, 0))
    mask = np.zeros(shape, np.float32)
    for tolerance in (0.0, -0.25):
        expected = core.active_windows(mask, windows, (2, 2), tolerance, bool(flags))
        found = core.reduce_mask(device, "mask_blocks", mask, windows, (2, 2), tolerance, flags=flags)
        np.testing.assert_array_equal(found, np.array(expected, np.int32).reshape(-1, 3))
    assert len(core.reduce_mask(device, "mask_pixels", mask, windows, (0, 3), 0.0, flags=flags)) == 0


@pytest.mark.parametrize("flags", [0, AVERAGE])
def test_the_number_of_threads_changes_no_bit(device, flags):
    rng = np.random.default_rng(0)
    mask = np.where(rng.random((3, 300, 301)) < 0.1, rng.random((3, 300, 301)), 0).astype(np.float32)
    for window, stride, grid in (
        ((3, 3), (1, 1), (300, 301)),
        ((16, 16), (14, 14), (22, 22)),
        ((5, 2), (2, 3), (150, 100)),
    ):
        windows = Windows(3, 300, 301, window, stride, (-1, -1))
        for operation in ("mask_blocks", "mask_pixels"):
            found = [
                core.reduce_mask(device, operation, mask, windows, grid, 0.05, flags=flags, threads=threads)
                for threads in (1, 2, 3, 4)
            ]
            assert len(found[0])
            for other in found[1:]:
                np.testing.assert_array_equal(found[0], other)


def test_arguments_that_cannot_be(device):
    windows = Windows(1, 4, 4, (2, 2), (2, 2), (0, 0))
    mask = np.ones((1, 4, 4), np.float32)
    for field in ("window_height", "window_width", "stride_height", "stride_width"):
        for value in (0, -1):
            with pytest.raises(EqconvError, match="a size is impossible"):
                core.reduce_mask(device, "mask_blocks", mask, windows, (2, 2), 0.0, **{field: value})
    for change in (
        {"images": -1},
        {"height": 2**31},
        {"width": 2**62},
        {"mask": None},
        {"index": None},
        {"count": None},
    ):
        with pytest.raises(EqconvError, match="a size is impossible"):
            core.reduce_mask(device, "mask_pixels", mask, windows, (2, 2), 0.0, **change)
    with pytest.raises(EqconvError, match="a size is impossible"):
        core.reduce_mask(device, "mask_pixels", mask, windows, (2, 2), 0.0, grid_height=2**31)
