"""What the compositions of all frameworks read of a basis and of a plan: NumPy arrays in float64, made once.

Weiler, Cesa, arXiv 1911.08251, eq. 4. Of a basis there are d elements, so and si channels, S pixels, H harmonics.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable.basis import SteerableBasis
from eqconv_cli.backends.steerable.orbits import pixel_permutations, row_orbits
from eqconv_cli.backends.steerable.plan import PairType, Plan
from eqconv_cli.maths.planar_groups import Matrix

Positions = npt.NDArray[np.intp]
T = TypeVar("T")

_KEPT: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()


def kept(owner: SteerableBasis | Plan, key: Hashable, make: Callable[[], T]) -> T:
    """What ``make`` gives, made once for a basis or a plan and forgotten with it."""
    mine = _KEPT.setdefault(owner, {})
    if key not in mine:
        mine[key] = make()
    made: T = mine[key]
    return made


class Place(NamedTuple):
    """Where the blocks of a pair type are in the filter."""

    #: Channels of the out fields [out occurrences, so] and of the in fields [in occurrences, si].
    rows: Positions
    columns: Positions
    #: Whether rows and columns are each one ascending run: then the blocks are a slice of the filter.
    contiguous: bool


def places(plan: Plan) -> tuple[Place, ...]:
    """The place of each pair type."""
    return kept(plan, "places", lambda: tuple(_place(plan, pair) for pair in plan.pairs))


def covers(plan: Plan) -> bool:
    """Whether every pair of fields has kernels: nothing of the filter is left at 0."""
    return bool((plan.pair_table[..., 0] >= 0).all())


def _place(plan: Plan, pair: PairType) -> Place:
    out_starts, in_starts = np.array(plan.out_type.starts), np.array(plan.in_type.starts)
    so, si, _ = pair.basis.block_shape
    rows = out_starts[list(pair.out_fields)][:, None] + np.arange(so)
    columns = in_starts[list(pair.in_fields)][:, None] + np.arange(si)
    contiguous = all(bool((np.diff(found.ravel()) == 1).all()) for found in (rows, columns))
    return Place(rows, columns, contiguous)


class IrrepBlock(NamedTuple):
    """The elements of one pair of irreps, in the coordinates of the irreps."""

    elements: Positions
    rows: slice
    columns: slice
    #: [elements, rows, columns, S].
    values: Matrix


def irrep_blocks(basis: SteerableBasis) -> list[IrrepBlock]:
    """Every pair of irreps that has elements."""
    members: dict[tuple[int, int], list[int]] = {}
    for element in basis.elements:
        members.setdefault((element.oo, element.ii), []).append(element.idx)
    blocks = []
    for (oo, ii), found in members.items():
        height, width = basis.elements[found[0]].shape
        row, column = basis.out_rep.offsets[oo], basis.in_rep.offsets[ii]
        rows, columns = slice(row, row + height), slice(column, column + width)
        blocks.append(IrrepBlock(np.array(found), rows, columns, basis.padded[found, rows, columns]))
    return blocks


class Segments(NamedTuple):
    """Sums of neighbours in a list: number k of the result is the sum of ``order[first[k]:first[k + 1]]``."""

    order: Positions
    first: Positions
    #: The number that each sum belongs to, ascending.
    target: Positions


def segments(targets: npt.NDArray[Any]) -> Segments:
    """The list positions that share a target, target by target."""
    order = np.argsort(targets, kind="stable")
    found, first = np.unique(targets[order], return_index=True)
    return Segments(order, first, found)


class Slices(NamedTuple):
    """The packed basis, and the way back from its entries to the elements."""

    #: [L, so, si, S] and, 0 where there is none, [L, so, si].
    values: Matrix
    elements: Positions
    #: Entries of ``elements``, flat, by the element that they belong to.
    back: Segments


def slices(basis: SteerableBasis) -> Slices:
    """``basis.packed`` with a way back."""
    values, ids = basis.packed
    used = np.flatnonzero(ids.ravel() >= 0)
    back = segments(ids.ravel()[used])
    return Slices(values, np.maximum(ids, 0).astype(np.intp), back._replace(order=used[back.order]))


class Coupled(NamedTuple):
    """The coupling: entry j is ``factor[j]`` times the weight of ``element[j]``, in the order of ``at``."""

    element: Positions
    factor: Matrix
    #: By place (o, i, h) of [so, si, H], flat.
    at: Segments
    #: By element.
    back: Segments
    #: The place of each entry.
    place: Positions


def coupled(basis: SteerableBasis) -> Coupled:
    """``basis.coupling`` with flat places and a way back."""
    c = basis.coupling
    _, si, _ = basis.block_shape
    place = (c.row.astype(np.intp) * si + c.column) * len(basis.harmonics) + c.harmonic
    order = segments(place).order
    element, place = c.element[order].astype(np.intp), place[order]
    return Coupled(element, c.factor[order], segments(place), segments(element), place)


class Orbits(NamedTuple):
    """The elements at one row (o, i) of each orbit of the grid's symmetries, and where their copies are."""

    #: [d, rows, S].
    values: Matrix
    #: For each entry of [so, si, S], flat, its original in [rows, S], flat, and its sign, which is that of its row.
    source: Positions
    sign: Matrix
    #: Entries by their originals.
    back: Segments


def orbits(basis: SteerableBasis) -> Orbits:
    """Of ``basis.dense`` what the grid's symmetries do not give."""
    found = row_orbits(basis.space, basis.in_rep, basis.out_rep)
    permutations = pixel_permutations(basis.space, basis.sampling).astype(np.intp)
    so, si, pixels = basis.block_shape
    row = np.repeat(np.arange(len(found.rows)), np.diff(found.first))
    o, i, sign, symmetry = found.images.T
    source, signs = np.empty((so, si, pixels), np.intp), np.empty((so, si, 1))
    source[o, i] = row[:, None] * pixels + permutations[symmetry]
    signs[o, i, 0] = sign
    values = np.ascontiguousarray(basis.dense[:, found.rows[:, 0], found.rows[:, 1]])
    return Orbits(values, source.ravel(), signs, segments(source.ravel()))
