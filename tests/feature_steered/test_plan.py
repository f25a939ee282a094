from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqconv_cli.backends.feature_steered.plan import NeighborhoodPlan, build_pattern, csr_rows

INTEGERS = (np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64)


@st.composite
def batches(draw):
    """Indices, dense shape and sizes; every entry lies inside sizes."""
    extent = st.sampled_from([2, 1, 3, 4, 5, 0])
    batch = draw(st.lists(extent, max_size=2))
    square = draw(st.booleans())
    centres = draw(extent)
    sources = centres if square else draw(extent)
    shape = (*batch, centres, sources)
    sizes = None
    if square and batch and draw(st.booleans()):
        flat = draw(st.lists(st.integers(0, centres), min_size=int(np.prod(batch)), max_size=int(np.prod(batch))))
        sizes = np.array(flat, np.int64).reshape(batch)
    blocks = [
        block for block in np.ndindex(*batch) if (min(centres, sources) if sizes is None else int(sizes[block])) > 0
    ]
    edges = []
    if blocks:
        for block in draw(st.lists(st.sampled_from(blocks), max_size=20)):
            reach = (centres, sources) if sizes is None else (int(sizes[block]),) * 2
            edges.append((*block, draw(st.integers(0, reach[0] - 1)), draw(st.integers(0, reach[1] - 1))))
    return np.array(edges, np.int64).reshape(-1, len(shape)), shape, sizes


def block_numbers(indices, shape):
    strides = np.cumprod((1, *shape[:-2][::-1]))[:-1][::-1]
    return (indices[:, :-2] * strides).sum(1).astype(int)


@given(batches())
@settings(max_examples=150, deadline=None)
def test_pattern_is_the_block_diagonal_matrix_in_row_order(batch):
    indices, shape, sizes = batch
    pattern = build_pattern(indices, shape, sizes)
    blocks = int(np.prod(shape[:-2]))
    counts = np.tile(np.array(shape[-2:]), (blocks, 1)) if sizes is None else np.stack([sizes.reshape(-1)] * 2, axis=1)
    starts = np.cumsum(counts, axis=0) - counts
    assert (pattern.rows, pattern.cols) == tuple(counts.sum(0))
    assert pattern.blocks == blocks
    order = np.arange(len(indices)) if pattern.edge_of_slot is None else pattern.edge_of_slot
    assert sorted(order) == list(range(len(indices)))
    wanted = indices[order, -2:] + starts[block_numbers(indices[order], shape)].reshape(-1, 2)
    np.testing.assert_array_equal(np.stack([pattern.row, pattern.col], axis=1), wanted)
    assert (np.diff(pattern.row) >= 0).all()
    for row in range(pattern.rows):
        assert (pattern.row[pattern.rowptr[row] : pattern.rowptr[row + 1]] == row).all()
    assert (pattern.rowptr[0], pattern.rowptr[-1], len(pattern.rowptr)) == (0, len(indices), pattern.rows + 1)
    assert pattern.max_degree == max(np.bincount(pattern.row), default=0)
    np.testing.assert_array_equal(pattern.block_of_row, np.repeat(np.arange(blocks), counts[:, 0]))
    np.testing.assert_array_equal(pattern.block_of_col, np.repeat(np.arange(blocks), counts[:, 1]))


@given(batches())
@settings(max_examples=100, deadline=None)
def test_transposed_pattern_lists_the_same_edges_by_column(batch):
    pattern = build_pattern(*batch)
    pointer, row, slot = pattern.transposed
    assert sorted(slot) == list(range(pattern.edges))
    np.testing.assert_array_equal(row, pattern.row[slot])
    assert (np.diff(pattern.col[slot]) >= 0).all()
    np.testing.assert_array_equal(np.diff(pointer), np.bincount(pattern.col, minlength=pattern.cols))


@given(batches())
@settings(max_examples=100, deadline=None)
def test_kept_rows_are_the_first_of_each_block(batch):
    indices, shape, sizes = batch
    pattern = build_pattern(indices, shape, sizes)
    if sizes is None:
        assert pattern.kept is None
        return
    wanted = [b * shape[-1] + v for b, size in enumerate(sizes.reshape(-1)) for v in range(size)]
    np.testing.assert_array_equal(pattern.kept, wanted)


def test_kept_rows_by_hand():
    pattern = build_pattern(np.zeros((0, 3), int), (3, 3, 3), np.array([2, 0, 3]))
    assert pattern.kept.tolist() == [0, 1, 6, 7, 8]
    assert pattern.block_of_row.tolist() == [0, 0, 2, 2, 2]


def test_rows_keep_the_order_of_their_edges():
    indices = np.array([[1, 2], [0, 0], [1, 0], [1, 2], [0, 1]])
    pattern = build_pattern(indices, (2, 3))
    np.testing.assert_array_equal(pattern.edge_of_slot, [1, 4, 0, 2, 3])
    np.testing.assert_array_equal(pattern.col, [0, 1, 2, 0, 2])


def test_edges_in_row_order_need_no_permutation():
    pattern = build_pattern(np.array([[0, 1], [0, 0], [2, 1]]), (3, 3))
    assert pattern.edge_of_slot is None
    np.testing.assert_array_equal(pattern.rowptr, [0, 2, 2, 3])


@pytest.mark.parametrize("dtype", INTEGERS)
def test_any_integer_dtype(dtype):
    indices = np.array([[0, 1, 2], [1, 2, 0], [1, 0, 0]], dtype)
    pattern = build_pattern(indices, (2, 3, 3), np.array([3, 3], dtype))
    np.testing.assert_array_equal(pattern.row, [1, 3, 5])
    np.testing.assert_array_equal(pattern.col, [2, 3, 3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, bool])
def test_indices_and_sizes_must_be_integers(dtype):
    with pytest.raises(TypeError, match=f"neighbors.indices has dtype {np.dtype(dtype)}: an integer"):
        build_pattern(np.zeros((1, 3), dtype), (1, 2, 2))
    with pytest.raises(TypeError, match=f"sizes has dtype {np.dtype(dtype)}: an integer"):
        build_pattern(np.zeros((1, 3), int), (1, 2, 2), np.ones(1, dtype))


@pytest.mark.parametrize(
    ("indices", "shape"),
    [(np.zeros((4, 2), int), (1, 3, 3)), (np.zeros((4, 3), int), (3, 3)), (np.zeros(4, int), (3, 3)),
     (np.zeros((4, 1), int), (3,))],
)  # fmt: skip
def test_indices_must_have_one_column_an_axis(indices, shape):
    text = f"neighbors.indices has shape {list(indices.shape)} and the dense shape is {list(shape)}: expected"
    with pytest.raises(ValueError, match=re.escape(text)):
        build_pattern(indices, shape)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("beyond", ["below", "above"])
def test_index_outside_its_axis(axis, beyond):
    shape = (2, 3, 4)
    indices = np.zeros((5, 3), int)
    indices[3, axis] = value = -1 if beyond == "below" else shape[axis]
    text = f"neighbors: edge 3 has index {value} on axis {axis}, outside [0, {shape[axis]})"
    with pytest.raises(IndexError, match=re.escape(text)):
        build_pattern(indices, shape)


@pytest.mark.parametrize("size", [-1, 4])
def test_sizes_out_of_range(size):
    with pytest.raises(ValueError, match=re.escape(f"sizes[1] is {size}: allowed: 0 to the 3 vertices")):
        build_pattern(np.zeros((0, 3), int), (2, 3, 3), np.array([3, size]))


@pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
def test_sizes_must_have_the_batch_dimensions(shape):
    with pytest.raises(ValueError, match=re.escape(f"sizes has shape {list(shape)} but neighbors has batch")):
        build_pattern(np.zeros((0, 3), int), (2, 3, 3), np.ones(shape, int))


def test_sizes_need_square_neighbourhoods():
    with pytest.raises(ValueError, match="neighbors is 3 x 4: sizes needs square"):
        build_pattern(np.zeros((0, 3), int), (2, 3, 4), np.array([3, 3]))


def test_sizes_without_batch_dimensions_is_the_number_of_vertices():
    indices = np.array([[0, 2]])
    assert build_pattern(indices, (3, 3), np.array(3)).rows == 3
    with pytest.raises(ValueError, match="sizes is 2 but data without batch dimensions has 3 vertices"):
        build_pattern(indices, (3, 3), np.array(2))


@pytest.mark.parametrize("entry", [(2, 0), (0, 2)])
def test_entry_outside_sizes(entry):
    indices = np.array([[0, 2, 2], [1, 1, 0], [1, *entry]])
    sizes = np.array([3, 2])
    text = f"edge 2 is entry {entry} of batch element [1], which keeps only 2 vertices (sizes)"
    with pytest.raises(ValueError, match=re.escape(text)):
        build_pattern(indices, (2, 3, 3), sizes)
    pattern = build_pattern(indices, (2, 3, 3), sizes, "drop")
    np.testing.assert_array_equal(pattern.edge_of_slot, [0, 1])
    np.testing.assert_array_equal(pattern.row, [2, 4])


def test_dropping_and_sorting_together():
    indices = np.array([[1, 1, 1], [1, 0, 2], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    pattern = build_pattern(indices, (2, 3, 3), np.array([2, 2]), "drop")
    np.testing.assert_array_equal(pattern.edge_of_slot, [4, 2, 3, 0])
    np.testing.assert_array_equal(np.stack([pattern.row, pattern.col], 1), [[0, 1], [1, 0], [2, 2], [3, 3]])


def test_unknown_way_with_outside_entries():
    with pytest.raises(ValueError, match="outside_sizes='clip' is unknown: allowed: error, drop"):
        build_pattern(np.zeros((0, 2), int), (3, 3), None, "clip")


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0), (0, 3, 3), (2, 0, 0), (3, 3)])
def test_no_edges(shape):
    pattern = build_pattern(np.zeros((0, len(shape)), int), shape)
    assert (pattern.edges, pattern.max_degree) == (0, 0)
    assert pattern.rowptr.tolist() == [0] * (pattern.rows + 1)
    pointer, row, slot = pattern.transposed
    assert pointer.tolist() == [0] * (pattern.cols + 1) and len(row) == len(slot) == 0


def test_index_arrays_are_32_bit_where_that_is_enough():
    pattern = build_pattern(np.array([[1, 0], [0, 1]]), (2, 2))
    assert {pattern.row.dtype, pattern.col.dtype, pattern.rowptr.dtype} == {np.dtype(np.int32)}
    far = build_pattern(np.array([[1, 2**31]]), (2, 2**31 + 1))
    assert far.col.dtype == np.int64 and far.col[0] == 2**31


def test_csr_rows():
    np.testing.assert_array_equal(csr_rows(np.array([0, 2, 2, 3]), 3), [0, 0, 2])


@pytest.mark.parametrize(
    ("indptr", "text"),
    [
        ([[0, 1]], "neighbors.indptr has shape [1, 2]: expected [V + 1]"),
        ([], "neighbors.indptr has shape [0]: expected [V + 1]"),
        ([1, 3], "neighbors.indptr runs from 1 to 3: expected 0 to the 3 entries"),
        ([0, 2], "neighbors.indptr runs from 0 to 2: expected 0 to the 3 entries"),
        ([0, 2, 1, 3], "neighbors.indptr decreases after row 1: 2 to 1"),
    ],
)
def test_csr_rows_refuses_what_is_no_row_pointer(indptr, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        csr_rows(np.array(indptr, int), 3)


def test_with_values_needs_one_weight_an_edge():
    plan = NeighborhoodPlan(build_pattern(np.array([[0, 1], [1, 0]]), (2, 2)), np.ones(2))
    assert plan.with_values(np.array([3.0, 4.0])).values[1] == 4.0
    with pytest.raises(ValueError, match=re.escape("values has shape [3] but the plan has edges of shape [2]")):
        plan.with_values(np.ones(3))
