from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqconv_cli.backends.block_sparse import site_patterns
from eqconv_cli.backends.block_sparse.site_patterns import make_pattern

COORDS = np.array([[0, 1, 2], [0, 0, 0], [1, 2, 3], [0, 2, 2]])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2**16), st.data())
def test_tables_are_the_definition(axes: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 7, axes).tolist())
    size, stride, padding, dilation = (
        tuple(data.draw(st.integers(low, 3)) for _ in range(axes)) for low in (1, 1, 0, 1)
    )
    coords = rng.permutation(np.argwhere(rng.random((2, *shape)) < 0.4))
    pattern, _ = make_pattern(coords, shape, 2)
    row_of = {tuple(site): row for row, site in enumerate(coords.tolist())}
    books = [pattern.submanifold(size, dilation)]
    if all(n + 2 * p > d * (k - 1) for n, p, d, k in zip(shape, padding, dilation, size, strict=True)):
        books.append(pattern.strided(size, stride, padding, dilation))
    for book in books:
        step, front = book.kernel.stride, book.kernel.padding
        for out, row in zip(book.out.coords.tolist(), book.table.tolist(), strict=True):
            for tap, at in zip(np.ndindex(size), row, strict=True):
                geometry = zip(out[1:], step, front, tap, dilation, strict=True)
                there = (out[0], *(t * s - p + o * d for t, s, p, o, d in geometry))
                assert at == row_of.get(there, -1)
        for tap, (rows, out_rows) in enumerate(book.pairs):
            assert np.array_equal(book.table[out_rows, tap], rows)
            assert np.array_equal(book.inverse[rows, tap], out_rows)
        assert book.pair_count == (book.table >= 0).sum() == (book.inverse >= 0).sum()
    if len(books) == 2:
        made = books[1].out.coords
        assert (books[1].table >= 0).any(1).all()
        assert np.array_equal(made, np.unique(made, axis=0))


def test_search_and_map_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern, _ = make_pattern(COORDS, (3, 4))
    mapped = pattern.submanifold((3, 3)).table
    monkeypatch.setattr(site_patterns, "_MAPPED_PLACES", 0)
    again, _ = make_pattern(COORDS, (3, 4))
    assert np.array_equal(again.submanifold((3, 3)).table, mapped)
    none, _ = make_pattern(COORDS[:0], (3, 4))
    assert none.submanifold((3, 3)).table.shape == (0, 9)


def test_rulebooks_are_made_once_and_know_their_pair() -> None:
    pattern, _ = make_pattern(COORDS, (3, 4))
    assert pattern.submanifold((3, 3)) is pattern.submanifold([3, 3], (1, 1))
    assert pattern.submanifold((3, 3)) is not pattern.submanifold((3, 3), 2)
    book = pattern.strided((2, 2), 2)
    assert pattern.strided((2, 2), (2, 2)) is book and pattern.made(book.out) is book
    assert pattern.made(pattern) is None
    made: list[Any] = []
    convert: Callable[[Any], Any] = lambda table: made.append(table) or len(made)  # noqa: E731
    assert [book.converted("table", place, convert) for place in ("cpu", "cpu", "gpu")] == [1, 1, 2]
    assert [book.converted("inverse", "cpu", convert), pattern.converted("cpu", convert)] == [3, 4]


@pytest.mark.parametrize(
    ("duplicates", "kept"), [("first", [0, 1, 2]), ("last", [3, 4, 2]), ("sum", None), ("mean", None)]
)
def test_duplicates(duplicates: str, kept: list[int] | None) -> None:
    coords = COORDS[[0, 1, 2, 0, 1]]
    with pytest.raises(ValueError, match=r"coords has \[0, 0, 0\] more than once"):
        make_pattern(coords, (3, 4))
    pattern, merged = make_pattern(coords, (3, 4), duplicates=duplicates)
    assert pattern.coords.tolist() == COORDS[:3].tolist()
    if kept is not None:
        assert merged.rows is not None and merged.rows.tolist() == kept
    else:
        assert merged.group is not None and merged.group.tolist() == [0, 1, 2, 0, 1]
        assert (merged.share is None) == (duplicates == "sum")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_any_memory_order_and_integer_dtype(order: Any, dtype: Any) -> None:
    """Coordinates out of nonzero() are transposed in memory; peers read those wrongly."""
    pattern, _ = make_pattern(np.array(COORDS, dtype, order=order), (3, 4))
    assert pattern.coords.flags.c_contiguous and pattern.coords.dtype == np.int32
    assert pattern.coords.tolist() == COORDS.tolist() and pattern.batch == 2


@pytest.mark.parametrize(
    ("coords", "shape", "message"),
    [
        (COORDS, (3, 3), r"coords\[2\] is \[1, 2, 3\]: outside batch and shape \[2, 3, 3\]"),
        (-COORDS, (3, 4), "outside batch"),
        (COORDS.astype(float), (3, 4), "whole numbers are needed"),
        (COORDS, (3, 4, 5), r"expected \[M, 4\]"),
        (COORDS, (), "1 to 4 spatial extents"),
        (COORDS, (3, 0), "every number must be at least 1"),
    ],
)
def test_coordinates_that_are_not_allowed(coords: Any, shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pattern(coords, shape)


def test_kernels_that_are_not_allowed() -> None:
    pattern, _ = make_pattern(COORDS, (3, 4))
    with pytest.raises(ValueError, match="stride=\\(2, 2, 2\\): 3 numbers for sites with 2 spatial axes"):
        pattern.strided((3, 3), (2, 2, 2))
    with pytest.raises(ValueError, match="the kernel spans"):
        pattern.strided((5, 5), 1)
    with pytest.raises(ValueError, match="every number must be at least 1"):
        pattern.submanifold((3, 0))
    with pytest.raises(ValueError, match="duplicates='both' is unknown"):
        make_pattern(COORDS, (3, 4), duplicates="both")
