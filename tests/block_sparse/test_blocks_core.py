"""Blocks out of images and back by the core, against loops over the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqconv_cli.errors import EqconvError
from tests.block_sparse import support_core as core
from tests.block_sparse.support_core import ADD, INSTRUCTIONS, OWNED, SHAPES, TRANSPOSE, Windows

CASES = [(shape[3], windows) for shape in SHAPES for windows in core.geometries([shape])]


@pytest.fixture(scope="module", params=core.cores())
def device(request):
    return request.param


def numbers(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def turned(blocks):
    """[rows, h, w, C] as [rows, C, h, w]."""
    return np.ascontiguousarray(np.moveaxis(blocks, 3, 1))


def image_shape(windows, channels):
    return windows.images, windows.height, windows.width, channels


def check(device, windows, channels, dtype, seed, **fields):
    index = core.listed(windows, seed)
    shape = image_shape(windows, channels)
    x, base = numbers(shape, dtype, seed), numbers(shape, dtype, seed + 1)
    blocks = numbers((len(index), *windows.window, channels), dtype, seed + 2)
    extra = fields.pop("flags", 0)
    plain, owned = core.gather_loops(x, windows, index), core.owned_loops(x, windows, index)
    kept, summed = (core.scatter_loops(blocks, windows, index, base, add) for add in (False, True))
    for transpose in (0, TRANSPOSE):

        def layout(array, transpose=transpose):
            return turned(array) if transpose else array

        flags = transpose | extra
        np.testing.assert_array_equal(core.gather(device, x, windows, index, flags, **fields), layout(plain))
        np.testing.assert_array_equal(core.gather(device, x, windows, index, flags | OWNED, **fields), layout(owned))
        for in_place in (False, True):
            found = core.scatter(device, layout(blocks), windows, index, base, flags, in_place, **fields)
            np.testing.assert_array_equal(found, kept)
            found = core.scatter(device, layout(blocks), windows, index, base, flags | ADD, in_place, **fields)
            np.testing.assert_array_equal(found, summed)
    pixels = np.flatnonzero(core.owners_loops(windows, index) >= 0)
    np.testing.assert_array_equal(core.covered(device, windows, index, flags=extra, **fields), pixels)


@pytest.mark.parametrize("part", range(8))
def test_geometries(device, part):
    for number, (channels, windows) in enumerate(CASES[part::8]):
        check(device, windows, channels, ["float32", "float64"][number % 2], number)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_of_channels(device, dtype, instructions):
    windows = Windows(2, 9, 10, (5, 7), (3, 4), (-2, -3))
    for channels in (1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 33, 48, 64):
        check(device, windows, channels, dtype, channels, flags=INSTRUCTIONS[instructions])


def test_very_many_channels(device):
    check(device, Windows(1, 1, 1, (1, 1), (1, 1), (0, 0)), 50176, "float32", 0)
    check(device, Windows(1, 1, 1, (2, 3), (1, 1), (-1, -1)), 50176, "float64", 1)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_numbers_of_threads(device, threads):
    for windows in (
        Windows(3, 40, 30, (6, 5), (2, 3), (-2, -1)),
        Windows(2, 33, 17, (40, 41), (1, 1), (-20, -20)),
        Windows(4, 9, 200, (1, 1), (1, 1), (0, 0)),
    ):
        check(device, windows, 5, "float32", 3, threads=threads)


def test_large_images_are_cut_into_bands(device):
    """Sums in the order of the rows are the same bits for any number of threads, and with the base copied or not."""
    windows = Windows(2, 150, 160, (9, 8), (4, 3), (-3, -2))
    rng = np.random.default_rng(1)
    index = np.stack([rng.integers(0, n, 900) for n in (2, 40, 55)], 1).astype(np.int32)
    base, blocks = numbers((2, 150, 160, 12), "float32"), numbers((900, 9, 8, 12), "float32", 1)
    for flags in (0, ADD):
        expected = core.scatter_loops(blocks, windows, index, base, bool(flags))
        for threads in (1, 2, 3, 4):
            for in_place in (False, True):
                for transpose, given_blocks in ((0, blocks), (TRANSPOSE, turned(blocks))):
                    found = core.scatter(
                        device, given_blocks, windows, index, base, flags | transpose, in_place, threads=threads
                    )
                    np.testing.assert_array_equal(found, expected)


def test_rows_behind_the_count(device):
    windows = Windows(1, 8, 8, (3, 3), (2, 2), (-1, -1))
    x, index = numbers((1, 8, 8, 4), "float32"), core.listed(windows)
    for count in (0, 1, len(index) - 1, len(index)):
        counted = index.copy()
        counted[count:] = np.iinfo(np.int32).max
        number = np.array([count], np.int32)
        for transpose in (0, TRANSPOSE):
            blocks = core.gather(device, x, windows, counted, OWNED | transpose, count=number)
            expected = core.owned_loops(x, windows, index[:count])
            np.testing.assert_array_equal(blocks[:count], turned(expected) if transpose else expected)
            np.testing.assert_array_equal(blocks[count:], 0)
        blocks = np.full((len(index), 3, 3, 4), np.nan, np.float32)
        blocks[:count] = core.gather_loops(x, windows, index[:count])
        found = core.scatter(device, blocks, windows, counted, x, ADD, count=number)
        np.testing.assert_array_equal(found, core.scatter_loops(blocks[:count], windows, index[:count], x, add=True))
        pixels = np.flatnonzero(core.owners_loops(windows, index[:count]) >= 0)
        np.testing.assert_array_equal(core.covered(device, windows, counted, count=number), pixels)


def test_no_base_and_no_blocks(device):
    windows = Windows(2, 40, 50, (4, 5), (3, 6), (-1, -2))
    index, zeros = core.listed(windows), np.zeros((2, 40, 50, 3), np.float32)
    blocks = numbers((len(index), 4, 5, 3), "float32")
    for flags in (0, ADD):
        found = core.scatter(device, blocks, windows, index, zeros, flags, base=None)
        np.testing.assert_array_equal(found, core.scatter_loops(blocks, windows, index, zeros, bool(flags)))
    base = numbers(zeros.shape, "float32")
    expected = np.where(core.owners_loops(windows, index)[..., None] >= 0, np.float32(0), base)
    for transpose in (0, TRANSPOSE):
        np.testing.assert_array_equal(core.scatter(device, None, windows, index, base, transpose), expected)
        np.testing.assert_array_equal(core.scatter(device, None, windows, index, base, transpose | ADD), base)


def test_windows_outside_and_enormous_offsets(device):
    x = numbers((1, 4, 4, 2), "float32")
    index = np.array([[0, 0, 0], [0, 2**31 - 1, 2**31 - 1]], np.int32)
    for offset in ((100, 0), (0, -100), (2**62, 2**62), (-(2**62), 1), (2**31, 2**31)):
        windows = Windows(1, 4, 4, (3, 3), (2**40, 2**62), offset)
        for flags in (0, TRANSPOSE, OWNED):
            np.testing.assert_array_equal(core.gather(device, x, windows, index, flags), 0)
        blocks = np.ones((2, 3, 3, 2), np.float32)
        np.testing.assert_array_equal(core.scatter(device, blocks, windows, index, x, ADD), x)
        assert len(core.covered(device, windows, index)) == 0


def test_nothing(device):
    windows = Windows(1, 4, 4, (2, 2), (2, 2), (0, 0))
    x, index = numbers((1, 4, 4, 3), "float32"), np.zeros((0, 3), np.int32)
    assert core.gather(device, x, windows, index).shape == (0, 2, 2, 3)
    np.testing.assert_array_equal(core.scatter(device, np.zeros((0, 2, 2, 3), np.float32), windows, index, x), x)
    assert len(core.covered(device, windows, index)) == 0
    for shape in ((0, 4, 4, 3), (1, 0, 4, 3), (1, 4, 4, 0)):
        x = np.zeros(shape, np.float32)
        windows = Windows(*shape[:3], (2, 2), (2, 2), (0, 0))
        assert core.gather(device, x, windows, np.zeros((2, 3), np.int32)).sum() == 0
        core.scatter(device, np.ones((2, 2, 2, shape[3]), np.float32), windows, np.zeros((2, 3), np.int32), x)


def test_arguments_that_cannot_be(device):
    windows = Windows(1, 4, 4, (2, 2), (2, 2), (0, 0))
    x, index = numbers((1, 4, 4, 3), "float32"), np.zeros((2, 3), np.int32)
    blocks = np.zeros((2, 2, 2, 3), np.float32)
    sizes = [{name: value} for name in ("window_height", "stride_width") for value in (0, -1)]
    sizes += [{"rows": -1}, {"rows": 2**31}, {"channels": -1}, {"images": -1}, {"height": 2**31}, {"channels": 2**60}]
    for change in [*sizes, {"index": None}, {"x": None}, {"blocks": None}, {"threads": -1}]:
        with pytest.raises(EqconvError, match="a size is impossible"):
            core.gather(device, x, windows, index, **change)
    for change in [*sizes, {"index": None}, {"y": None}]:
        with pytest.raises(EqconvError, match="a size is impossible"):
            core.scatter(device, blocks, windows, index, x, **change)
    for change in ({"rows": -1}, {"index": None}, {"pixels": None}, {"pixel_count": None}, {"stride_height": 0}):
        with pytest.raises(EqconvError, match="a size is impossible"):
            core.covered(device, windows, index, **change)


def test_windows_of_more_pixels_than_can_be_numbered(device):
    windows = Windows(1, 4, 4, (2, 2), (2, 2), (0, 0))
    x, index = numbers((1, 4, 4, 3), "float32"), np.zeros((2, 3), np.int32)
    large = {"window_height": 2**16, "window_width": 2**16}
    with pytest.raises(EqconvError, match="does not compute"):
        core.gather(device, x, windows, index, **large)
    with pytest.raises(EqconvError, match="does not compute"):
        core.scatter(device, np.zeros((2, 2, 2, 3), np.float32), windows, index, x, **large)


# Properties.


@st.composite
def problems(draw):
    def small(low, high):
        return draw(st.integers(low, high))

    sizes = small(1, 3), small(1, 12), small(1, 80)
    window, stride = (small(1, 6), small(1, 70)), (small(1, 7), small(1, 40))
    windows = Windows(*sizes, window, stride, (small(-8, 4), small(-40, 20)))
    count = small(0, 12)
    rows = [(small(0, sizes[0] - 1), small(0, 5), small(0, 5)) for _ in range(count)]
    index = np.array(rows, np.int32).reshape(-1, 3)
    return windows, index, small(1, 20), small(0, 2**16), draw(st.sampled_from([0, TRANSPOSE]))


@settings(max_examples=60)
@given(problem=problems())
def test_scatter_of_what_was_gathered_changes_nothing(device, problem):
    windows, index, channels, seed, flags = problem
    x = numbers(image_shape(windows, channels), "float32", seed)
    blocks = core.gather(device, x, windows, index, flags)
    np.testing.assert_array_equal(core.scatter(device, blocks, windows, index, x, flags), x)


@settings(max_examples=60)
@given(problem=problems())
def test_ones_add_up_to_the_number_of_covering_windows(device, problem):
    windows, index, channels, _, flags = problem
    zeros = np.zeros(image_shape(windows, channels), np.float32)
    ones = np.ones((len(index), *windows.window, channels), np.float32)
    expected = np.zeros(zeros.shape[:3])
    for image, i, j in index:
        for y, x, _, _ in windows.inside(i, j):
            expected[image, y, x] += 1
    blocks = turned(ones) if flags else ones
    found = core.scatter(device, blocks, windows, index, zeros, flags | ADD)
    np.testing.assert_array_equal(found, np.broadcast_to(expected[..., None], zeros.shape))
    np.testing.assert_array_equal(core.covered(device, windows, index), np.flatnonzero(expected))


@settings(max_examples=60)
@given(problem=problems())
def test_sums_and_gathers_are_adjoint(device, problem):
    windows, index, channels, seed, flags = problem
    shape = image_shape(windows, channels)
    x, zeros = numbers(shape, "float64", seed), np.zeros(shape)
    taken = core.gather(device, x, windows, index, flags)
    cotangent = numbers(taken.shape, "float64", seed + 1)
    back = core.scatter(device, cotangent, windows, index, zeros, flags | ADD)
    size = np.abs(taken * cotangent).sum()
    assert abs((taken * cotangent).sum() - (x * back).sum()) <= 1e-12 * max(size, 1e-300)
    owned = core.gather(device, x, windows, index, flags | OWNED)
    back = core.scatter(device, cotangent, windows, index, zeros, flags)
    assert abs((owned * cotangent).sum() - (x * back).sum()) <= 1e-12 * max(size, 1e-300)
