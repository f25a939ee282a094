"""Outputs and neighbours of sites by the core, against loops over the definition."""

from __future__ import annotations

import numpy as np
import pytest

from eqconv_cli.errors import EqconvError
from tests.block_sparse import support_core as core
from tests.block_sparse.support_core import INSTRUCTIONS, KERNELS, Kernel


@pytest.fixture(scope="module", params=core.cores())
def device(request):
    return request.param


def check(device, kernel, coords, **fields):
    outputs = core.outputs_loops(kernel, coords)
    np.testing.assert_array_equal(core.site_outputs(device, kernel, coords, len(outputs), **fields), outputs)
    np.testing.assert_array_equal(core.site_outputs(device, kernel, coords, len(outputs) + 9, **fields), outputs)
    expected = core.table_loops(kernel, coords, outputs)
    np.testing.assert_array_equal(core.site_table(device, kernel, coords, outputs, **fields), expected)
    return outputs


@pytest.mark.parametrize("rows", [1, 40, 400])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(device, name, rows):
    kernel = KERNELS[name]
    outputs = check(device, kernel, core.random_sites(kernel, rows))
    if rows == 400 and name not in ("no output",):
        assert len(outputs) > 10


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("name", ["subm 2", "subm 3 wide", "strided 3", "huge 3"])
def test_instructions(device, name, instructions):
    kernel = KERNELS[name]
    check(device, kernel, core.random_sites(kernel, 200, 1), flags=INSTRUCTIONS[instructions])


@pytest.mark.parametrize("name", [name for name in KERNELS if name.startswith("subm")])
def test_outputs_of_a_submanifold_table_keep_their_order(device, name):
    kernel = KERNELS[name]
    coords = core.random_sites(kernel, 150)
    table = core.site_table(device, kernel, coords, coords)
    np.testing.assert_array_equal(table, core.table_loops(kernel, coords, coords))
    centre = kernel.taps.index(tuple(k // 2 for k in kernel.kernel))
    np.testing.assert_array_equal(table[:, centre], np.arange(len(coords)))


@pytest.mark.parametrize("name", ["subm 2", "strided 2", "strided 3", "huge strided 2", "huge 3"])
def test_the_number_of_threads_changes_nothing(device, name):
    kernel = KERNELS[name]
    coords = core.random_sites(kernel, 20_000)
    outputs = core.site_outputs(device, kernel, coords, len(coords) * len(kernel.taps), threads=1)
    assert (np.lexsort(outputs.T[::-1]) == np.arange(len(outputs))).all()
    table = core.site_table(device, kernel, coords, outputs, threads=1)
    assert table.max() == len(coords) - 1 or name.startswith("strided")
    for threads in (2, 3, 4):
        again = core.site_outputs(device, kernel, coords, len(outputs), threads=threads)
        np.testing.assert_array_equal(again, outputs)
        np.testing.assert_array_equal(core.site_table(device, kernel, coords, outputs, threads=threads), table)


@pytest.mark.parametrize("name", ["subm 2", "huge 2"])
def test_rows_behind_the_counts(device, name):
    kernel = KERNELS[name]
    coords = core.random_sites(kernel, 50)
    used = 20
    rest = coords.copy()
    rest[used:] = np.iinfo(np.int32).min
    count = np.array([used], np.int32)
    outputs = core.outputs_loops(kernel, coords[:used])
    found = core.site_outputs(device, kernel, rest, len(outputs) + 5, count=count)
    np.testing.assert_array_equal(found, outputs)
    padded = np.concatenate([outputs, np.full_like(outputs[:7], -5)])
    out_count = np.array([len(outputs)], np.int32)
    table = core.site_table(device, kernel, rest, padded, count=count, out_count=out_count)
    np.testing.assert_array_equal(table[: len(outputs)], core.table_loops(kernel, coords[:used], outputs))
    np.testing.assert_array_equal(table[len(outputs) :], -1)


@pytest.mark.parametrize("name", ["subm 2", "strided 3", "huge 2"])
def test_rows_out_of_range_are_nobodys_neighbours(device, name):
    kernel = KERNELS[name]
    coords = core.random_sites(kernel, 60)
    wrong = coords.copy()
    wrong[::7, 0] = kernel.batch
    wrong[1::7, 1] = -1
    wrong[2::7, -1] = np.clip(kernel.extent[-1], 0, 2**31 - 1)
    inside = ((wrong >= 0) & (wrong < [kernel.batch, *kernel.extent])).all(1)
    assert 0 < inside.sum() < len(inside)
    outputs = core.outputs_loops(kernel, wrong[inside])
    np.testing.assert_array_equal(core.site_outputs(device, kernel, wrong, len(outputs)), outputs)
    row_of = np.flatnonzero(inside)
    expected = core.table_loops(kernel, wrong[inside], outputs)
    expected = np.where(expected >= 0, row_of[expected], -1)
    np.testing.assert_array_equal(core.site_table(device, kernel, wrong, outputs), expected)


@pytest.mark.parametrize("name", ["subm 3", "strided 2", "huge 3"])
def test_duplicates_are_survived(device, name):
    kernel = KERNELS[name]
    coords = core.random_sites(kernel, 60)
    twice = np.concatenate([coords, coords])
    outputs = core.outputs_loops(kernel, coords)
    np.testing.assert_array_equal(core.site_outputs(device, kernel, twice, len(outputs)), outputs)
    table = core.site_table(device, kernel, twice, outputs)
    expected = core.table_loops(kernel, coords, outputs)
    np.testing.assert_array_equal(np.where(table < 0, -1, table % len(coords)), expected)


def test_nothing(device):
    kernel = KERNELS["strided 2"]
    none = np.zeros((0, 3), np.int32)
    assert len(core.site_outputs(device, kernel, none, 0)) == 0
    assert core.site_table(device, kernel, none, none).shape == (0, 9)
    some = core.random_sites(kernel, 10)
    assert core.site_table(device, kernel, some, none).shape == (0, 9)
    np.testing.assert_array_equal(core.site_table(device, kernel, none, some), -1)
    empty = Kernel(0, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1))
    assert len(core.site_outputs(device, empty, none, 4)) == 0
    flat = Kernel(2, (4, 0), (3, 3), (1, 1), (1, 1), (1, 1))
    assert len(core.site_outputs(device, flat, none, 4)) == 0


def test_arguments_that_cannot_be(device):
    kernel = KERNELS["strided 2"]
    coords = core.random_sites(kernel, 10)
    changes = [{name: value} for name in ("kernel_0", "stride_1", "dilation_0") for value in (0, -1, 2**40)]
    changes += [{"axes": 0}, {"axes": 5}, {"batch": -1}, {"extent_1": -1}, {"out_extent_0": -1}, {"pad_0": 2**40}]
    changes += [{"rows": -1}, {"out_rows": -1}, {"coords": None}, {"threads": -1}]
    for change in changes:
        with pytest.raises(EqconvError, match="a size is impossible"):
            core.site_outputs(device, kernel, coords, 90, **change)
        with pytest.raises(EqconvError, match="a size is impossible"):
            core.site_table(device, kernel, coords, coords, **change)
    for change in ({"made_coords": None}, {"made_count": None}):
        with pytest.raises(EqconvError, match="a size is impossible"):
            core.site_outputs(device, kernel, coords, 90, **change)
    for change in ({"out_coords": None}, {"table": None}):
        with pytest.raises(EqconvError, match="a size is impossible"):
            core.site_table(device, kernel, coords, coords, **change)


def test_more_cells_than_can_be_numbered(device):
    kernel = Kernel(2**20, (2**30, 2**30), (3, 3), (1, 1), (1, 1), (1, 1))
    with pytest.raises(EqconvError, match="does not compute"):
        core.site_table(device, kernel, np.zeros((1, 3), np.int32), np.zeros((1, 3), np.int32))
    with pytest.raises(EqconvError, match="does not compute"):
        core.site_outputs(device, kernel, np.zeros((1, 3), np.int32), 9)
