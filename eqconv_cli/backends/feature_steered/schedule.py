"""A pattern as the compiled kernels take it: its arrays, and what they want to know beyond rows and columns.

On the CPU the rows are cut into fixed chunks, so that sums do not depend on the number of threads. For the backward
pass each chunk lists the columns that it adds to (``touched``), and each edge its column's place in that list
(``local``). The deterministic backward pass on a GPU wants the pattern by columns. All arrays lie in one, see
:class:`Packed`, for an operator of a framework takes one tensor faster than a dozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.feature_steered.plan import IntArray, Pattern

Longs = npt.NDArray[np.int64]
Ints = npt.NDArray[np.int32]

#: A chunk ends where its rows and edges together cost this much; a row costs as much as ROW_COST edges.
CHUNK_COST = 32768
ROW_COST = 8
#: There should be this many chunks to share out among threads, as long as a chunk keeps this many rows.
WANTED_CHUNKS = 16
SMALLEST_CHUNK = 64
#: Sections of a packed pattern begin at multiples of this many int64 words (64 bytes).
SECTION = 8
#: Rows, columns and edges that the kernels' 32-bit indices can name.
LARGEST = 2**31 - 1


#: The optional sections of a packed pattern, numbered as in ``cuda/bindings/feature_steered_pattern.h``: plain numbers,
#: for an operator on a small graph takes less time than the arithmetic of enumerations.
EDGE_OF_SLOT, CHUNKS, TOUCHED, TRANSPOSED = 1, 2, 4, 8

#: Name and type of the arrays in each section, in the order of ``unpack_pattern`` in the same header.
SECTIONS: tuple[tuple[int, tuple[tuple[str, type], ...]], ...] = (
    (0, (("rowptr", np.int64), ("col", np.int32))),
    (EDGE_OF_SLOT, (("edge_of_slot", np.int64),)),
    (CHUNKS, (("chunk_rows", np.int64),)),
    (TOUCHED, (("touched_start", np.int64), ("touched", np.int32), ("local", np.int32))),
    (TRANSPOSED, (("colptr", np.int64), ("row_of_position", np.int32), ("slot_of_position", np.int64))),
)


@dataclass(frozen=True)
class Packed:
    """A pattern as one int64 array; each section begins at a multiple of 64 bytes."""

    words: Longs
    rows: int
    cols: int
    edges: int
    chunks: int
    touched: int
    parts: int

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """rows, edges, chunks, touched, parts: what the operators take next to the array."""
        return self.rows, self.edges, self.chunks, self.touched, self.parts

    @cached_property
    def arrays(self) -> dict[str, IntArray]:
        """The arrays by name, as views."""
        lengths = {
            "rowptr": self.rows + 1,
            "chunk_rows": self.chunks + 1,
            "touched_start": self.chunks + 1,
            "touched": self.touched,
            "colptr": self.cols + 1,
        }
        views: dict[str, IntArray] = {}
        place = 0
        for part, section in SECTIONS:
            if part & ~self.parts:
                continue
            for name, dtype in section:
                length = lengths.get(name, self.edges)
                words = _words(length * np.dtype(dtype).itemsize)
                views[name] = self.words[place : place + words].view(dtype)[:length]
                place += words
        return views


class HasParts(Protocol):
    """A packed pattern in whatever form a framework keeps it."""

    @property
    def parts(self) -> int:
        """The optional sections it has."""


P = TypeVar("P", bound=HasParts)


def too_large(rows: int, cols: int, edges: int) -> list[str]:
    """Why the kernels' 32-bit indices cannot name everything in a pattern; empty when they can."""
    extents = {"rows": rows, "columns": cols, "edges": edges}
    return [f"{count:,} {name}: at most {LARGEST:,}" for name, count in extents.items() if count > LARGEST]


def packed(pattern: Pattern, key: Any, parts: int, convert: Callable[[Packed], P]) -> P:
    """The pattern with at least these parts, converted and kept with the pattern under ``key``.

    A pattern that was kept with fewer parts is made anew with both, and takes its place.
    """
    found: P | None = pattern.copies.get(key)
    if found is None or parts & ~found.parts:
        found = convert(pack(pattern, parts if found is None else parts | found.parts))
        pattern.copies[key] = found
    return found


def pack(pattern: Pattern, parts: int) -> Packed:
    """The pattern with the optional sections asked for; ``edge_of_slot`` is there whenever the pattern has one."""
    parts = parts & ~EDGE_OF_SLOT if pattern.edge_of_slot is None else parts | EDGE_OF_SLOT
    arrays: dict[str, IntArray] = {"rowptr": pattern.rowptr, "col": pattern.col}
    if pattern.edge_of_slot is not None:
        arrays["edge_of_slot"] = pattern.edge_of_slot
    if parts & (CHUNKS | TOUCHED):
        arrays["chunk_rows"] = cut_rows(pattern.rowptr)
    if parts & TOUCHED:
        parts |= CHUNKS
        arrays |= named_columns(arrays["chunk_rows"], pattern.rowptr, pattern.col, pattern.cols)
    if parts & TRANSPOSED:
        names = ("colptr", "row_of_position", "slot_of_position")
        arrays |= dict(zip(names, pattern.transposed, strict=True))
    sections: list[IntArray] = [
        arrays[n].astype(dtype, copy=False) for part, of in SECTIONS if not part & ~parts for n, dtype in of
    ]
    words = np.zeros(sum(_words(section.nbytes) for section in sections), np.int64)
    place = 0
    for section in sections:
        words[place:].view(section.dtype)[: len(section)] = section
        place += _words(section.nbytes)
    chunks, columns = len(arrays.get("chunk_rows", "0")) - 1, len(arrays.get("touched", ""))
    return Packed(words, pattern.rows, pattern.cols, pattern.edges, chunks, columns, parts)


def _words(count: int) -> int:
    """int64 words that a section of so many bytes takes."""
    return -(-count // (8 * SECTION)) * SECTION


def cut_rows(rowptr: IntArray) -> Longs:
    """Cut rows, given the first slot of each [rows + 1], into chunks of about equal cost; a long row has its own.

    Returns:
        First row of each chunk [chunks + 1].
    """
    pointer = rowptr.astype(np.int64, copy=False)
    rows = len(pointer) - 1
    if rows == 0:
        return np.zeros(1, np.int64)
    total = ROW_COST * rows + int(pointer[-1])
    unit = min(CHUNK_COST, max(-(-total // WANTED_CHUNKS), -(-SMALLEST_CHUNK * total // rows)))
    bins = (ROW_COST * np.arange(rows) + pointer[:-1]) // unit
    first = np.diff(pointer) >= unit
    first[0] = True
    first[1:] |= bins[1:] != bins[:-1]
    return np.append(np.flatnonzero(first), rows)


def named_columns(chunk_rows: IntArray, rowptr: IntArray, col: IntArray, cols: int) -> dict[str, IntArray]:
    """Columns that each chunk adds to, ascending, and the place of each edge's column among those of its chunk.

    A chunk adds to the columns that its edges name, and in a square pattern to those that its rows are: there the
    features of a centre may be those of the column.

    Returns:
        ``touched_start`` [chunks + 1], ``touched``, ``local`` [E].
    """
    chunks, rows = len(chunk_rows) - 1, len(rowptr) - 1
    edges = np.diff(rowptr[chunk_rows])
    keys = np.repeat(np.arange(chunks) * cols, edges) + col
    own = np.repeat(np.arange(chunks) * cols, np.diff(chunk_rows)) + np.arange(rows) if rows == cols else keys[:0]
    named, place = np.unique(np.concatenate([keys, own]), return_inverse=True)
    start = np.searchsorted(named, np.arange(chunks + 1) * cols)
    return {
        "touched_start": start,
        "touched": named % max(1, cols),
        "local": place.reshape(-1)[: len(keys)] - np.repeat(start[:-1], edges),
    }


def parts_for(place: str, backward: bool, deterministic: bool) -> int:
    """What a pass needs of the optional sections.

    Args:
        place: "cpu", "cuda" or "emulated".
        backward: whether gradients will be asked for.
        deterministic: whether they are to be the same in every run, which on the CPU they always are.
    """
    if place == "cpu":
        return CHUNKS | TOUCHED if backward else CHUNKS
    return TRANSPOSED if backward and deterministic else 0
