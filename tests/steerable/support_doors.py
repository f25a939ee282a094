"""Random layers as the compiled expansion reads them, and the filters of their weights by the definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from eqconv_cli.backends.steerable.packed import Packed

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
#: Channels of the fields on both sides. Every second pair of fields or so shares a type with another one.
OUT_FIELDS, IN_FIELDS = (2, 1, 3, 1), (1, 2, 2)
PIXELS = 9


def random_packed(direct: bool, seed: int = 0) -> tuple[Packed, np.ndarray]:
    """A layer, and its matrix [out_channels * in_channels * pixels, weights_size] by the definition of the struct."""
    rng = np.random.default_rng(seed)
    harmonic = rng.normal(size=(0 if direct else 4, PIXELS))
    permutation = np.stack([np.arange(PIXELS), rng.permutation(PIXELS)])[: 0 if direct else 2]
    shapes = sorted({(out, into) for out in OUT_FIELDS for into in IN_FIELDS})
    make = _direct_type if direct else _harmonic_type
    made = [make(rng, out, into, harmonic, permutation) for out, into in shapes]
    records, lists, values, blocks = [], [], [], []
    for record, numbers, reals, block in made:
        places = (8 * len(made) + sum(map(len, lists)), sum(map(len, values)))
        records.append([*record, *places])
        lists.append(numbers)
        values.append(reals)
        blocks.append(block)

    out_starts, in_starts = (np.cumsum([0, *sizes]) for sizes in (OUT_FIELDS, IN_FIELDS))
    pairs = np.full((len(OUT_FIELDS), len(IN_FIELDS), 2), -1)
    first = 0
    for place in np.ndindex(pairs.shape[:2]):
        if place == (1, 1):
            continue  # a pair without a type
        kind = shapes.index((OUT_FIELDS[place[0]], IN_FIELDS[place[1]]))
        pairs[place] = kind, first
        first += blocks[kind].shape[0]

    table = np.concatenate([np.ravel(records), *lists])
    words = np.concatenate([np.ravel(part) for part in (pairs, out_starts, in_starts, table, permutation)])
    reals = np.concatenate([*values, np.ravel(harmonic)])
    matrix = np.zeros((out_starts[-1], in_starts[-1], PIXELS, first))
    for (f, g, _), kind in np.ndenumerate(pairs[:, :, :1]):
        if kind >= 0:
            block, start = blocks[kind], pairs[f, g, 1]
            rows, columns = slice(*out_starts[f : f + 2]), slice(*in_starts[g : g + 2])
            matrix[rows, columns, :, start : start + len(block)] = np.moveaxis(block, 0, -1)
    packed = Packed(
        words=words.astype(np.int32),
        reals=reals,
        out_fields=len(OUT_FIELDS),
        in_fields=len(IN_FIELDS),
        out_channels=int(out_starts[-1]),
        in_channels=int(in_starts[-1]),
        pixels=PIXELS,
        harmonics=len(harmonic),
        types=len(shapes),
        permutations=len(permutation),
        weights_size=first,
        table_size=len(table),
        values_size=sum(map(len, values)),
        direct=direct,
    )
    return packed, matrix.reshape(-1, first)


Type = tuple[Sequence[int], np.ndarray, np.ndarray, np.ndarray]


def _direct_type(rng: np.random.Generator, out: int, into: int, *_: np.ndarray) -> Type:
    """What a record begins with, its lists, its values, and the block [elements, out, in, pixels] of each weight."""
    block = rng.normal(size=(3, out, into, PIXELS))
    return (out, into, 3, 0, 0, 0), np.zeros(0, int), block.ravel(), block


def _harmonic_type(
    rng: np.random.Generator, out: int, into: int, harmonic: np.ndarray, permutation: np.ndarray
) -> Type:
    """As above; rows have two images where there are so many channels."""
    used, elements = rng.choice(len(harmonic), 3, replace=False), 5
    slots = [rng.choice(elements, count, replace=False) for count in (2, 1, 3)]
    starts = np.cumsum([0, 2, 1])
    channels = rng.permutation([(o, i) for o in range(out) for i in range(into)])
    ends = [*range(0, len(channels), 2), len(channels)]
    images = [(*place, rng.choice([-1, 1]), rng.integers(len(permutation))) for place in channels]
    value = rng.normal(size=(6, len(ends) - 1))
    block = np.zeros((elements, out, into, PIXELS))
    for row, (begin, end) in enumerate(pairwise(ends)):
        for o, i, sign, turn in images[begin:end]:
            for k, index in enumerate(used):
                for j, element in enumerate(slots[k], starts[k]):
                    block[element, o, i] += sign * value[j, row] * harmonic[index, permutation[turn]]
    lists = [np.stack([used, [2, 1, 3], starts], 1), np.concatenate(slots), ends, images]
    record = (out, into, elements, len(ends) - 1, len(used), 6)
    return record, np.concatenate([np.ravel(part) for part in lists]), value.ravel(), block


def arrays(direct: bool, dtype: str) -> tuple[Packed, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A layer, weights, their filter, a cotangent of the filter, and what the transposed map makes of it."""
    packed, matrix = random_packed(direct)
    rng = np.random.default_rng(1)
    shape = (packed.out_channels, packed.in_channels, packed.pixels)
    weights, cotangent = rng.normal(size=packed.weights_size).astype(dtype), rng.normal(size=shape).astype(dtype)
    return packed, weights, (matrix @ weights).reshape(shape), cotangent, matrix.T @ cotangent.ravel()


def assert_close(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * max(1.0, np.abs(expected).max()))


def with_size(packed: Packed, name: str, size: int) -> Packed:
    """A layer one of whose sizes is wrong."""
    return replace(packed, **{name: size})
