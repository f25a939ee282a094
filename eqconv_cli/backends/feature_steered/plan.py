"""The plan: a neighbourhood matrix brought once into the order that every algorithm wants.

A batch of sparse matrices [A1, ..., An, Vo, Vi] becomes one block-diagonal matrix whose edges are sorted by row (CSR).
The pattern holds indices only, as NumPy arrays; the weights stay in the caller's edge order and framework, so that
gradients reach them there. Building costs O(E log E) at most and belongs outside any timed call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]
OutsideSizes = Literal["error", "drop"]

DENSE_MESSAGE = (
    "neighbors is a dense {kind} of shape {shape}: it must be sparse. Give (indices [E, n+2], values [E], "
    "dense shape), (indptr, indices, values), {sparse}"
)


class Coo(NamedTuple):
    """Edges as a list: ``indices`` [E, n+2] integer, ``values`` [E], ``dense_shape`` [A1, ..., An, Vo, Vi]."""

    indices: Any
    values: Any
    dense_shape: Any


class Csr(NamedTuple):
    """Edges by row: ``indptr`` [Vo+1], ``indices`` [E] columns, ``values`` [E]; Vi is ``columns`` or, if None, Vo."""

    indptr: Any
    indices: Any
    values: Any
    columns: int | None = None


@dataclass(frozen=True, eq=False)
class Pattern:
    """The indices of a block-diagonal neighbourhood matrix, edges sorted by row.

    With B blocks the matrix has ``rows`` x ``cols`` entries, numbered over the blocks one after the other: all Vo (Vi)
    rows (columns) of a block, or its first ``sizes[b]`` when sizes were given. A *slot* is a position in row order.
    """

    #: Shape of the neighbourhood matrix as given: [A1, ..., An, Vo, Vi].
    dense_shape: tuple[int, ...]
    #: Vertices per block [A1, ..., An], or None when all are kept.
    sizes: IntArray | None
    rows: int
    cols: int
    #: Row and column of each slot [E], and the first slot of each row [rows + 1].
    row: IntArray
    col: IntArray
    rowptr: IntArray
    #: Edge of the caller for each slot [E]; None when the caller's order is the slot order.
    edge_of_slot: IntArray | None
    #: Number of entries that the caller gave; more than E when some were dropped.
    given_edges: int
    #: Row of the flattened [B * V] input for each kept vertex; None when all are kept.
    kept: IntArray | None
    #: Device copies of the index arrays, by (framework, device); filled in by the framework modules.
    copies: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def edges(self) -> int:
        """Number of stored entries E."""
        return len(self.row)

    @property
    def blocks(self) -> int:
        """Number of blocks B, the product of the batch dimensions."""
        return int(np.prod(self.dense_shape[:-2], dtype=np.int64))

    @property
    def max_degree(self) -> int:
        """Largest number of entries in a row."""
        return int(np.diff(self.rowptr).max(initial=0))

    @cached_property
    def block_of_col(self) -> IntArray:
        """Block of each column [cols]."""
        return self._block_of(self.dense_shape[-1])

    @cached_property
    def block_of_row(self) -> IntArray:
        """Block of each row [rows]."""
        return self._block_of(self.dense_shape[-2])

    def check_same_sizes(self, sizes: IntArray | None) -> None:
        """Raise ValueError when ``sizes`` is given and differs from what the pattern was built with."""
        if sizes is None:
            return
        batch, vertices = self.dense_shape[:-2], self.dense_shape[-1]
        planned = np.full(batch, vertices) if self.sizes is None else self.sizes
        if not np.array_equal(planned, sizes):
            raise ValueError(f"sizes is {sizes.tolist()} but neighbors was planned with {planned.tolist()}")

    def _block_of(self, extent: int) -> IntArray:
        counts = np.full(self.blocks, extent) if self.sizes is None else self.sizes.reshape(-1)
        return np.repeat(np.arange(self.blocks), counts)

    @cached_property
    def transposed(self) -> tuple[IntArray, IntArray, IntArray]:
        """The pattern by columns: first position of each column [cols + 1], row [E] and slot [E] at each position."""
        slot = np.argsort(self.col, kind="stable").astype(self.col.dtype)
        return _pointer(self.col, self.cols), self.row[slot], slot


@dataclass(frozen=True, eq=False)
class NeighborhoodPlan:
    """A pattern with its weights: what :func:`feature_steered_convolution` accepts as ``neighbors`` at no cost.

    ``values`` [E] is an array of the caller's framework in the caller's edge order.
    """

    pattern: Any
    values: Any

    def with_values(self, values: Any) -> NeighborhoodPlan:
        """The same pattern with other weights [E]; raises ValueError when there is not one for each edge."""
        given, wanted = values.shape, self.values.shape
        # A TensorFlow shape may be unknown while a function is traced.
        fits = given.is_compatible_with(wanted) if hasattr(given, "is_compatible_with") else given == wanted
        if not fits:
            raise ValueError(f"values has shape {list(given)} but the plan has edges of shape {list(wanted)}")
        return replace(self, values=values)

    def __tf_flatten__(self) -> tuple[tuple[Any], tuple[Any]]:
        """As an argument of a ``tf.function`` the pattern is fixed and the weights are traced."""
        return (self.pattern,), (self.values,)

    @classmethod
    def __tf_unflatten__(cls, metadata: tuple[Any], components: tuple[Any]) -> NeighborhoodPlan:
        return cls(metadata[0], components[0])


def _pointer(sorted_or_not: IntArray, extent: int) -> IntArray:
    pointer = np.zeros(extent + 1, _index_dtype(extent, len(sorted_or_not)))
    np.cumsum(np.bincount(sorted_or_not, minlength=extent), out=pointer[1:])
    return pointer


def _index_dtype(*extents: int) -> type[np.int32] | type[np.int64]:
    return np.int32 if max(extents, default=0) < 2**31 else np.int64


def csr_rows(indptr: IntArray, edges: int) -> IntArray:
    """The row of each entry of a CSR matrix [E]; raises ValueError when ``indptr`` is not one."""
    if indptr.ndim != 1 or len(indptr) < 1:
        raise ValueError(f"neighbors.indptr has shape {list(indptr.shape)}: expected [V + 1]")
    if indptr[0] != 0 or indptr[-1] != edges:
        raise ValueError(f"neighbors.indptr runs from {indptr[0]} to {indptr[-1]}: expected 0 to the {edges} entries")
    counts = np.diff(indptr)
    if np.any(counts < 0):
        row = int(np.argmax(counts < 0))
        raise ValueError(f"neighbors.indptr decreases after row {row}: {indptr[row]} to {indptr[row + 1]}")
    return np.repeat(np.arange(len(counts)), counts)


def coordinates(
    neighbors: Any, integers: Callable[[str, Any], IntArray], values: Callable[[Any], Any], sparse: str
) -> tuple[IntArray, Any, Sequence[int]]:
    """Indices [E, n+2], values [E] and dense shape of the forms that every framework accepts.

    Args:
        neighbors: a SciPy sparse matrix, :class:`Coo`, :class:`Csr` or a plain tuple like one of them.
        integers: turns a named index array of the framework into NumPy, or raises TypeError.
        values: turns weights into the framework's array.
        sparse: the framework's own sparse forms, for the error on a dense matrix.

    Raises:
        TypeError: none of these forms.
        ValueError: a dense matrix; an ``indptr`` that is none.
    """
    if hasattr(neighbors, "tocoo"):
        coo = neighbors.tocoo()
        indices = np.stack([np.asarray(axis, np.int64) for axis in coo.coords], axis=1)
        return indices, values(np.ascontiguousarray(coo.data)), coo.shape
    if isinstance(neighbors, tuple) and len(neighbors) in (3, 4):
        first = integers("neighbors.indices", neighbors[0])
        if isinstance(neighbors, Csr) or (not isinstance(neighbors, Coo) and first.ndim == 1):
            csr = Csr(*neighbors)
            columns = integers("neighbors.indices", csr.indices)
            rows = csr_rows(first, len(columns))
            extent = len(first) - 1
            square = (extent, extent if csr.columns is None else csr.columns)
            return np.stack([rows, columns], axis=1), values(csr.values), square
        return first, values(neighbors[1]), [int(n) for n in integers("neighbors.dense_shape", neighbors[2])]
    if hasattr(neighbors, "shape"):
        shape = list(neighbors.shape)
        raise ValueError(DENSE_MESSAGE.format(kind=type(neighbors).__name__, shape=shape, sparse=sparse))
    raise TypeError(
        f"neighbors is a {type(neighbors).__name__}: expected (indices, values, dense shape), "
        f"(indptr, indices, values), {sparse}, or a plan"
    )


def build_pattern(
    indices: IntArray,
    dense_shape: Sequence[int],
    sizes: IntArray | None = None,
    outside_sizes: OutsideSizes = "error",
) -> Pattern:
    """Sort the edges of a batch of sparse matrices into one block-diagonal CSR pattern.

    Args:
        indices: integer [E, n+2]; batch indices, row (centre), column (neighbour). Any order, duplicates allowed.
        dense_shape: [A1, ..., An, Vo, Vi].
        sizes: integer [A1, ..., An], vertices to keep in each block, or None to keep all.
        outside_sizes: what to do with entries beyond ``sizes``: raise, or "drop" them (their weight gets gradient 0).

    Raises:
        TypeError: indices or sizes are not integers.
        ValueError: shapes do not fit, sizes out of [0, V], an entry lies outside sizes.
        IndexError: an index is negative or beyond its axis; names the edge, the axis, the value and the bound.
    """
    shape = tuple(int(extent) for extent in dense_shape)
    if not np.issubdtype(indices.dtype, np.integer):
        raise TypeError(f"neighbors.indices has dtype {indices.dtype}: an integer dtype is needed")
    if len(shape) < 2 or indices.ndim != 2 or indices.shape[1] != len(shape):
        raise ValueError(
            f"neighbors.indices has shape {list(indices.shape)} and the dense shape is {list(shape)}: expected "
            "indices of shape [E, n+2] and a dense shape [A1, ..., An, Vo, Vi]"
        )
    if outside_sizes not in ("error", "drop"):
        raise ValueError(f"outside_sizes={outside_sizes!r} is unknown: allowed: error, drop")
    _check_bounds(indices, shape)
    batch, (centres, sources) = shape[:-2], shape[-2:]
    block = np.ravel_multi_index(tuple(indices[:, :-2].T), batch) if batch else np.zeros(len(indices), np.int64)
    row, col = indices[:, -2].astype(np.int64), indices[:, -1].astype(np.int64)
    edge: IntArray | None = None
    kept: IntArray | None = None
    blocks = int(np.prod(batch, dtype=np.int64))
    if sizes is None:
        row_start, col_start = np.arange(blocks) * centres, np.arange(blocks) * sources
        rows, cols = blocks * centres, blocks * sources
    else:
        sizes = _check_sizes(sizes, shape)
        counts = sizes.reshape(-1)
        outside = (row >= counts[block]) | (col >= counts[block])
        if outside.any():
            if outside_sizes == "error":
                raise _outside_error(indices, counts, block, outside)
            edge = np.flatnonzero(~outside)
            block, row, col = block[edge], row[edge], col[edge]
        row_start = col_start = np.cumsum(counts) - counts
        rows = cols = int(counts.sum())
        kept = np.flatnonzero((np.arange(sources) < counts[:, None]).reshape(-1))
    dtype = _index_dtype(rows, cols, len(row))
    row, col = (row_start[block] + row).astype(dtype), (col_start[block] + col).astype(dtype)
    if np.any(row[1:] < row[:-1]):
        order = np.argsort(row, kind="stable")
        row, col = row[order], col[order]
        edge = order if edge is None else edge[order]
    return Pattern(
        dense_shape=shape,
        sizes=sizes,
        rows=rows,
        cols=cols,
        row=row,
        col=col,
        rowptr=_pointer(row, rows),
        edge_of_slot=edge,
        given_edges=len(indices),
        kept=kept,
    )


def _check_bounds(indices: IntArray, shape: tuple[int, ...]) -> None:
    bad = (indices < 0) | (indices >= np.asarray(shape))
    if bad.any():
        edge, axis = (int(k) for k in np.argwhere(bad)[0])
        raise IndexError(
            f"neighbors: edge {edge} has index {indices[edge, axis]} on axis {axis}, outside [0, {shape[axis]})"
        )


def _check_sizes(sizes: IntArray, shape: tuple[int, ...]) -> IntArray:
    batch, (centres, sources) = shape[:-2], shape[-2:]
    if not np.issubdtype(sizes.dtype, np.integer):
        raise TypeError(f"sizes has dtype {sizes.dtype}: an integer dtype is needed")
    if sizes.shape != batch:
        raise ValueError(
            f"sizes has shape {list(sizes.shape)} but neighbors has batch dimensions {list(batch)} "
            f"(expected sizes of shape {list(batch)})"
        )
    if centres != sources:
        raise ValueError(f"sizes was given but neighbors is {centres} x {sources}: sizes needs square neighbourhoods")
    bad = (sizes < 0) | (sizes > centres)
    if bad.any():
        where = tuple(int(k) for k in np.argwhere(bad)[0])
        raise ValueError(f"sizes{list(where)} is {sizes[where]}: allowed: 0 to the {centres} vertices")
    if not batch and int(sizes) != centres:
        raise ValueError(f"sizes is {int(sizes)} but data without batch dimensions has {centres} vertices")
    return sizes.astype(np.int64)


def _outside_error(indices: IntArray, counts: IntArray, block: IntArray, outside: npt.NDArray[np.bool_]) -> ValueError:
    edge = int(np.argmax(outside))
    element = [int(k) for k in indices[edge, :-2]]
    entry = tuple(int(k) for k in indices[edge, -2:])
    return ValueError(
        f"neighbors: edge {edge} is entry {entry} of batch element {element}, which keeps only "
        f"{counts[block[edge]]} vertices (sizes); plan it with outside_sizes='drop' to leave such entries out"
    )
