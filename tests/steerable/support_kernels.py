"""Filters by the plain formula, correlation, and broken bases: what tests of the foundations are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable.basis import Coupling, Harmonic, SteerableBasis, sampled
from eqconv_cli.backends.steerable.packed import Packed
from eqconv_cli.backends.steerable.plan import Plan

Array = npt.NDArray[Any]


def filter_of(plan: Plan, weights: Array) -> Array:
    """Each block is the sum of its weights times the elements of its basis."""
    made = np.zeros((*plan.filter_shape[:2], plan.sampling.pixels))
    for pair in plan.pairs:
        each = weights[pair.start : pair.start + pair.weights].reshape(pair.shape)
        blocks = np.tensordot(each, pair.basis.dense, 1)
        for a, out_field in enumerate(pair.out_fields):
            for b, in_field in enumerate(pair.in_fields):
                o, i = plan.out_type.starts[out_field], plan.in_type.starts[in_field]
                made[o : o + blocks.shape[2], i : i + blocks.shape[3]] = blocks[a, b]
    return made.reshape(plan.filter_shape)


def filter_of_tables(packed: Packed, weights: Array) -> Array:
    """What ``cuda/steerable/steerable.h`` says that expand_forward computes, by plain loops over its tables."""
    words = packed.words
    sizes = [
        packed.out_fields * packed.in_fields * 2,
        packed.out_fields + 1,
        packed.in_fields + 1,
        packed.table_size,
        packed.permutations * packed.pixels,
    ]
    assert sum(sizes) == len(words) and words.dtype == np.int32 and packed.reals.dtype == np.float64
    pairs, out_starts, in_starts, table, permutation = np.split(words, np.cumsum(sizes)[:-1])
    assert len(packed.reals) == packed.values_size + packed.harmonics * packed.pixels
    values, harmonic = packed.reals[: packed.values_size], packed.reals[packed.values_size :]
    made = np.full((packed.out_channels, packed.in_channels, packed.pixels), np.nan)
    for out_field in range(packed.out_fields):
        for in_field in range(packed.in_fields):
            kind, at = pairs.reshape(packed.out_fields, packed.in_fields, 2)[out_field, in_field]
            rows = slice(out_starts[out_field], out_starts[out_field + 1])
            columns = slice(in_starts[in_field], in_starts[in_field + 1])
            if kind < 0:
                made[rows, columns] = 0
                continue
            record = table[8 * kind : 8 * kind + 8]
            own = weights[at : at + record[2]]
            filled = _direct if packed.direct else _by_harmonics
            made[rows, columns] = filled(
                packed, own, record, table, values, harmonic.reshape(packed.harmonics, packed.pixels), permutation
            )
    return made


def _direct(
    packed: Packed, own: Array, record: Array, table: Array, values: Array, harmonic: Array, permutation: Array
) -> Array:
    so, si, elements, rows, harmonics, slots, _, at = record
    assert rows == harmonics == slots == 0
    count = elements * so * si * packed.pixels
    return np.tensordot(own, values[at : at + count].reshape(elements, so, si, packed.pixels), 1)


def _by_harmonics(
    packed: Packed, own: Array, record: Array, table: Array, values: Array, harmonic: Array, permutation: Array
) -> Array:
    so, si, _, rows, harmonics, slots, lists, at = record
    sizes = [3 * harmonics, slots, rows + 1, 4 * so * si]
    used, element, first, images = np.split(table[lists : lists + sum(sizes)], np.cumsum(sizes)[:-1])
    of_slot = values[at : at + slots * rows].reshape(slots, rows)
    computed = np.zeros((rows, packed.pixels))
    for index, count, start in used.reshape(harmonics, 3):
        for j in range(start, start + count):
            computed += own[element[j]] * np.outer(of_slot[j], harmonic[index])
    made = np.full((so, si, packed.pixels), np.nan)
    for row in range(rows):
        for o, i, sign, number in images.reshape(-1, 4)[first[row] : first[row + 1]]:
            made[o, i] = sign * computed[row][permutation.reshape(packed.permutations, packed.pixels)[number]]
    return made


def layer(filter: Array, stride: int = 1, padding: int = 0, dilation: int = 1) -> Callable[[Array], Array]:
    """out(q) = sum_p filter(p) x(q + p), as ``conv2d`` has it; computed in the dtype of x."""
    k = filter.shape[-1]

    def convolve(x: Array) -> Array:
        padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
        reach = dilation * (k - 1) + 1
        windows = np.lib.stride_tricks.sliding_window_view(padded, (reach, reach), axis=(2, 3))
        chosen = windows[:, :, ::stride, ::stride, ::dilation, ::dilation]
        return np.einsum("bchwij,ocij->bohw", chosen, filter.astype(x.dtype), optimize=True)

    return convolve


def with_noise(basis: SteerableBasis, element: int, seed: int = 0) -> SteerableBasis:
    """The same basis with one element replaced by noise of the same norm on the grid.

    The noise has every frequency up to 3 on every ring in every entry, not only those that the group allows.
    """
    rng = np.random.default_rng(seed)
    waves = [(0, 0), *((mu, sine) for mu in (1, 2, 3) for sine in (0, 1))]
    noisy = [Harmonic(ring, *wave) for ring in range(len(basis.sampling.rings)) for wave in waves]
    harmonics = sorted({*basis.harmonics, *noisy})
    position = {harmonic: h for h, harmonic in enumerate(harmonics)}
    so, si, _ = basis.block_shape
    row, column, wave = np.indices((so, si, len(noisy))).reshape(3, -1)
    factor = rng.normal(size=row.size)
    on_grid = factor.reshape(so, si, -1) @ sampled(basis.space, basis.sampling, noisy, basis.sampling.points())
    factor *= np.sqrt(basis.elements[element].shape[0] / (on_grid**2).sum())
    c = basis.coupling
    kept = c.element != element
    old = np.array([position[harmonic] for harmonic in basis.harmonics])[c.harmonic]
    new = np.array([position[harmonic] for harmonic in noisy])[wave]
    coupling = Coupling(
        np.concatenate([c.element[kept], np.full(row.size, element)]).astype(np.int32),
        np.concatenate([c.row[kept], row]).astype(np.int32),
        np.concatenate([c.column[kept], column]).astype(np.int32),
        np.concatenate([old[kept], new]).astype(np.int32),
        np.concatenate([c.factor[kept], factor]),
    )
    return SteerableBasis(basis.space, basis.in_rep, basis.out_rep, basis.sampling, basis.elements, coupling, harmonics)


def broken(plan: Plan, seed: int = 0) -> Plan:
    """The plan with one element of its largest basis replaced by noise."""
    largest = max(plan.pairs, key=lambda pair: len(pair.basis))
    noisy = with_noise(largest.basis, len(largest.basis) // 2, seed)
    pairs = tuple(pair._replace(basis=noisy) if pair is largest else pair for pair in plan.pairs)
    return Plan(plan.in_type, plan.out_type, plan.sampling, pairs)
