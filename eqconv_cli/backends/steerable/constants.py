"""What the compositions of PyTorch and TensorFlow read of a plan, in the layout in which they multiply it.

Both convert these arrays once for each plan, algorithm, dtype and device, and keep them with the plan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable import tables
from eqconv_cli.backends.steerable.basis import Harmonic, SteerableBasis, sampled
from eqconv_cli.backends.steerable.plan import PairType, Plan

#: Of NumPy here, of a framework after :func:`converted`.
Array = Any


class Place(NamedTuple):
    """The weights of a pair type, [outs, ins, elements], and the blocks [so, si] that they make."""

    start: int
    end: int
    outs: int
    ins: int
    elements: int
    so: int
    si: int
    #: First channel and the one after the last where the fields follow one another, else None and all channels.
    rows: tuple[int, int] | None
    columns: tuple[int, int] | None
    row_index: Array
    column_index: Array
    #: First channel of each out field.
    out_starts: tuple[int, ...]


class Recombination(NamedTuple):
    """The changes of basis, Q_out [so, so] and the transposed Q_in^-1 [si, si]; None for the identity."""

    out: Array | None
    inverse: Array | None


class Dense(NamedTuple):
    """[elements, so · si · S]; by rows [so, elements, si · S]."""

    basis: Array


class IrrepPair(NamedTuple):
    """The elements of one pair of irreps: which, where, and their values [elements, rows, columns, S]."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    ids: Array
    values: Array


class IrrepsLoop(NamedTuple):
    """The pairs of irreps that have elements."""

    pairs: tuple[IrrepPair, ...]
    change: Recombination


class IrrepsVec(NamedTuple):
    """[so · si, elements, S] in the coordinates of the irreps."""

    padded: Array
    change: Recombination


class PackedSlices(NamedTuple):
    """Elements [so · si · L], 0 where there is none, and their values [so · si, L, S], 0 there."""

    ids: Array
    values: Array
    change: Recombination


class Compressed(NamedTuple):
    """The padded basis as a compressed matrix [elements, so · si · S], and its transpose."""

    starts: Array
    columns: Array
    values: Array
    transposed_starts: Array
    transposed_columns: Array
    transposed_values: Array
    change: Recombination


class Harmonics(NamedTuple):
    """For each harmonic of the layer its slots' elements [H · n] and values [H, n, so · si], padded with 0."""

    ids: Array
    values: Array


class Orbit(NamedTuple):
    """The basis at representatives [elements, R · S], and for each (o, i, p) which of their entries and its sign."""

    basis: Array
    index: Array
    #: [so · si · S]; None where all are +1.
    sign: Array | None


class Layer(NamedTuple):
    """All that an algorithm needs of a plan."""

    weights_size: int
    filter_shape: tuple[int, int, int, int]
    #: One pair type whose blocks are the whole filter, field by field.
    whole: bool
    places: tuple[Place, ...]
    #: One for each place.
    data: tuple[Any, ...]
    #: Of the layer on the grid, [H, S]; only for "harmonic".
    harmonic: Array | None


class Assembly(NamedTuple):
    """How the rows (out channel, in channel) of all blocks, one after the other, become those of the filter."""

    #: For each row of the filter that of the blocks, or the one after the last where there is no block.
    source: Array
    #: For each row of the blocks that of the filter; where a row is missing, one more that stands for it.
    positions: Array
    #: Whether none is missing.
    covers: bool


def assembly(plan: Plan) -> Assembly:
    """For blocks that are [out occurrences, so, in occurrences, si], as int64."""
    out_channels, in_channels = plan.filter_shape[:2]
    found = [
        (place.rows.ravel()[:, None] * in_channels + place.columns.ravel()).ravel() for place in tables.places(plan)
    ]
    positions = np.concatenate(found, dtype=np.int64)
    source = np.full(out_channels * in_channels, len(positions), np.int64)
    source[positions] = np.arange(len(positions))
    covers = len(positions) == len(source)
    return Assembly(source, positions if covers else np.append(positions, 0), covers)


def layer_constants(plan: Plan, algorithm: str) -> Layer:
    """The constants of a composition as arrays of NumPy, float64 and int64."""
    harmonics = tuple(sorted({harmonic for pair in plan.pairs for harmonic in pair.basis.harmonics}))
    makers: dict[str, Callable[[SteerableBasis], Any]] = {
        "dense": lambda basis: Dense(basis.dense.reshape(len(basis), math.prod(basis.block_shape))),
        "dense_direct": _dense_by_rows,
        "irreps_loop": _irreps_loop,
        "irreps_vec": _irreps_vec,
        "packed": _packed,
        "csr": _compressed,
        "harmonic": lambda basis: _harmonics(basis, harmonics),
        "orbit": _orbit,
    }
    make, sampling, space = makers[algorithm], plan.sampling, plan.out_type.space
    return Layer(
        plan.weights_size,
        plan.filter_shape,
        len(plan.pairs) == 1 and tables.covers(plan),
        tuple(_place(pair, place) for pair, place in zip(plan.pairs, tables.places(plan), strict=True)),
        tuple(make(pair.basis) for pair in plan.pairs),
        sampled(space, sampling, harmonics, sampling.points()) if algorithm == "harmonic" else None,
    )


def converted(constants: Any, convert: Callable[[npt.NDArray[Any]], Any]) -> Any:
    """The same records with each array converted."""
    if isinstance(constants, np.ndarray):
        return convert(constants)
    if isinstance(constants, tuple):
        parts = [converted(part, convert) for part in constants]
        return type(constants)(*parts) if hasattr(constants, "_fields") else tuple(parts)
    return constants


def _place(pair: PairType, place: tables.Place) -> Place:
    so, si, _ = pair.basis.block_shape
    rows, columns = place.rows.ravel().astype(np.int64), place.columns.ravel().astype(np.int64)
    end = pair.start + pair.weights
    starts = tuple(place.rows[:, 0].tolist())
    return Place(pair.start, end, *pair.shape, so, si, _range(rows), _range(columns), rows, columns, starts)


def _range(channels: npt.NDArray[np.int64]) -> tuple[int, int] | None:
    first, end = int(channels[0]), int(channels[-1]) + 1
    return (first, end) if end - first == len(channels) else None


def _recombination(basis: SteerableBasis) -> Recombination:
    out, given = basis.out_rep, basis.in_rep
    return Recombination(
        None if out.is_identity else out.change_of_basis,
        None if given.is_identity else np.ascontiguousarray(given.inverse.T),
    )


def _dense_by_rows(basis: SteerableBasis) -> Dense:
    so, si, pixels = basis.block_shape
    return Dense(np.ascontiguousarray(basis.dense.transpose(1, 0, 2, 3).reshape(so, len(basis), si * pixels)))


def _irreps_loop(basis: SteerableBasis) -> IrrepsLoop:
    pairs = tuple(
        IrrepPair(
            (block.rows.start, block.rows.stop),
            (block.columns.start, block.columns.stop),
            block.elements.astype(np.int64),
            np.ascontiguousarray(block.values),
        )
        for block in tables.irrep_blocks(basis)
    )
    return IrrepsLoop(pairs, _recombination(basis))


def _irreps_vec(basis: SteerableBasis) -> IrrepsVec:
    so, si, pixels = basis.block_shape
    padded = basis.padded.transpose(1, 2, 0, 3).reshape(so * si, len(basis), pixels)
    return IrrepsVec(np.ascontiguousarray(padded), _recombination(basis))


def _packed(basis: SteerableBasis) -> PackedSlices:
    found = tables.slices(basis)
    so, si, pixels = basis.block_shape
    ids = found.elements.transpose(1, 2, 0).astype(np.int64).ravel()
    values = found.values.transpose(1, 2, 0, 3).reshape(so * si, len(found.values), pixels)
    return PackedSlices(ids, np.ascontiguousarray(values), _recombination(basis))


def _compressed(basis: SteerableBasis) -> Compressed:
    starts, columns, values = (np.asarray(part) for part in basis.csr)
    rows = np.repeat(np.arange(len(basis)), np.diff(starts))
    order = np.argsort(columns, kind="stable")
    turned = np.searchsorted(columns[order], np.arange(math.prod(basis.block_shape) + 1))
    return Compressed(
        starts.astype(np.int64),
        columns.astype(np.int64),
        values,
        turned.astype(np.int64),
        rows[order].astype(np.int64),
        values[order],
        _recombination(basis),
    )


def _harmonics(basis: SteerableBasis, harmonics: Sequence[Harmonic]) -> Harmonics:
    so, si, _ = basis.block_shape
    position = {harmonic: h for h, harmonic in enumerate(harmonics)}
    slots = basis.slots
    counts = np.bincount(slots.harmonic, minlength=len(basis.harmonics))
    ids = np.zeros((len(harmonics), counts.max()), np.int64)
    values = np.zeros((*ids.shape, so * si))
    ends = np.cumsum(counts)
    for harmonic, count, end in zip(basis.harmonics, counts.tolist(), ends.tolist(), strict=True):
        h = position[harmonic]
        ids[h, :count] = slots.element[end - count : end]
        values[h, :count] = slots.values[end - count : end].reshape(count, so * si)
    return Harmonics(ids.ravel(), values)


def _orbit(basis: SteerableBasis) -> Orbit:
    found = tables.orbits(basis)
    sign = None if (found.sign == 1).all() else np.broadcast_to(found.sign, basis.block_shape).ravel()
    return Orbit(found.values.reshape(len(basis), -1), found.source.astype(np.int64), sign)
