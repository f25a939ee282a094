"""Random layers for the expansion of steerable kernels in the core, and both directions as plain sums in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eqconv_cli import kernels

Arrays = dict[str, Any]

#: A flag of the header: by the sampled basis itself.
DIRECT = 1
#: Flags that choose other code in the core for the CPU.
INSTRUCTIONS = {"best": 0, "avx512": 64, "avx2": 16, "portable": 32}
RECORD = 8


def _type_by_harmonics(
    rng: np.random.Generator, out_size: int, in_size: int, harmonics: int, permutations: int
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The record without its offsets, the lists and the values of a type."""
    size = out_size * in_size
    rows = int(rng.integers((size + 3) // 4, size + 1))
    elements = int(rng.integers(1, 40))
    used = np.sort(rng.permutation(harmonics)[: rng.integers(1, harmonics + 1)])
    slots = rng.integers(0, 23, len(used))
    first_slots = np.cumsum(slots) - slots
    total = int(slots.sum())
    first_images = np.sort(rng.integers(0, size + 1, rows - 1))
    places = rng.permutation(size)
    images = np.stack(
        [places // in_size, places % in_size, rng.choice([-1, 1], size), rng.integers(0, permutations, size)], axis=1
    )
    lists = [
        np.stack([used, slots, first_slots], axis=1).ravel(),
        rng.integers(0, elements, total),
        np.concatenate([[0], first_images, [size]]),
        images.ravel(),
    ]
    record = [out_size, in_size, elements, rows, len(used), total]
    return record, np.concatenate(lists), rng.standard_normal(total * rows)


def layer(
    seed: int,
    out_fields: int = 7,
    in_fields: int = 9,
    *,
    pixels: int = 25,
    harmonics: int = 11,
    permutations: int = 4,
    sizes: tuple[int, ...] = (1, 2, 5),
    without: float = 0.2,
    direct: bool = False,
    dtype: str = "float32",
) -> Arrays:
    """The arguments of both operations, with fields of random sizes; weights lie in no order.

    Every pair of sizes is a type with lists and values of its own. A part ``without`` of the pairs has no type, and
    neither has any pair of an empty field, of which there are some when ``sizes`` has a 0.
    """
    rng = np.random.default_rng(seed)
    out_sizes, in_sizes = rng.choice(sizes, out_fields), rng.choice(sizes, in_fields)
    shapes = [(int(out), int(inner)) for out in sizes for inner in sizes if out and inner]
    records, lists, values, at, value_at = [], [], [], len(shapes) * RECORD, 0
    for out, inner in shapes:
        if direct:
            elements = int(rng.integers(0, 30))
            record, listed = [out, inner, elements, 0, 0, 0], np.zeros(0, int)
            numbers = rng.standard_normal(elements * out * inner * pixels)
        else:
            record, listed, numbers = _type_by_harmonics(rng, out, inner, harmonics, permutations)
        records.append([*record, at, value_at])
        lists.append(listed)
        values.append(numbers)
        at, value_at = at + len(listed), value_at + len(numbers)
    typed = rng.random((out_fields, in_fields)) >= without
    pairs = np.full((out_fields, in_fields, 2), -1)
    weights = 0
    for flat in rng.permutation(out_fields * in_fields):
        f, g = divmod(int(flat), in_fields)
        if not (typed[f, g] and out_sizes[f] and in_sizes[g]):
            continue
        number = shapes.index((int(out_sizes[f]), int(in_sizes[g])))
        pairs[f, g] = number, weights
        weights += records[number][2]
    moves = [np.arange(pixels), *(rng.permutation(pixels) for _ in range(permutations - 1))]
    real = np.dtype(dtype)
    return {
        "out_fields": out_fields,
        "in_fields": in_fields,
        "out_channels": int(out_sizes.sum()),
        "in_channels": int(in_sizes.sum()),
        "pixels": pixels,
        "harmonics": 0 if direct else harmonics,
        "types": len(shapes),
        "permutations": 0 if direct else permutations,
        "weights_size": weights,
        "table_size": at,
        "values_size": value_at,
        "flags": DIRECT if direct else 0,
        "threads": 1,
        "pairs": pairs.astype(np.int32),
        "out_starts": np.concatenate([[0], np.cumsum(out_sizes)]).astype(np.int32),
        "in_starts": np.concatenate([[0], np.cumsum(in_sizes)]).astype(np.int32),
        "table": np.concatenate([np.ravel(records).astype(int), *lists]).astype(np.int32),
        "permutation": np.array(moves).astype(np.int32),
        "values": np.concatenate([np.zeros(0), *values]).astype(real),
        "harmonic": rng.standard_normal((harmonics, pixels)).astype(real),
        "weights": rng.standard_normal(weights).astype(real),
        "filter": rng.standard_normal((int(out_sizes.sum()), int(in_sizes.sum()), pixels)).astype(real),
    }


def basis(f: Mapping[str, Any], number: int) -> np.ndarray:
    """[elements, out size, in size, pixels] of a type, as the header defines it."""
    out, inner, elements, rows, used, slots, at, value_at = f["table"][number * RECORD : (number + 1) * RECORD]
    values = f["values"].astype(float)[value_at:]
    if f["flags"] & DIRECT:
        shape = elements, out, inner, f["pixels"]
        return values[: np.prod(shape)].reshape(shape)
    lists = f["table"][at:]
    harmonics, lists = lists[: 3 * used].reshape(used, 3), lists[3 * used :]
    element, lists = lists[:slots], lists[slots:]
    first, images = lists[: rows + 1], lists[rows + 1 :][: 4 * out * inner].reshape(-1, 4)
    by_row = np.zeros((elements, rows, f["pixels"]))
    for index, count, start in harmonics:
        for j in range(start, start + count):
            by_row[element[j]] += np.outer(values[j * rows : (j + 1) * rows], f["harmonic"][index].astype(float))
    made = np.full((elements, out, inner, f["pixels"]), np.nan)
    for row in range(rows):
        for o, i, sign, permutation in images[first[row] : first[row + 1]]:
            made[:, o, i] = sign * by_row[:, row][:, f["permutation"][permutation]]
    return made


def _blocks(f: Mapping[str, Any]) -> list[tuple[slice, slice, np.ndarray | None, slice]]:
    """For each pair of fields: its channels, its basis (None without a type) and its weights."""
    bases = [basis(f, number) for number in range(f["types"])]
    blocks = []
    for o in range(f["out_fields"]):
        for i in range(f["in_fields"]):
            number, first = f["pairs"][o, i]
            channels = slice(*f["out_starts"][o : o + 2]), slice(*f["in_starts"][i : i + 2])
            made = bases[number] if number >= 0 else None
            blocks.append((*channels, made, slice(first, first + (0 if made is None else len(made)))))
    return blocks


def expected_filter(f: Mapping[str, Any]) -> np.ndarray:
    expected = np.zeros((f["out_channels"], f["in_channels"], f["pixels"]))
    for out, inner, made, weights in _blocks(f):
        if made is not None:
            expected[out, inner] = np.tensordot(f["weights"][weights].astype(float), made, axes=1)
    return expected


def expected_weights(f: Mapping[str, Any]) -> np.ndarray:
    expected = np.full(f["weights_size"], np.nan)
    for out, inner, made, weights in _blocks(f):
        if made is not None:
            expected[weights] = np.tensordot(made, f["filter"][out, inner].astype(float), axes=3)
    return expected


def run(device: str, operation: str, f: Mapping[str, Any], **changes: Any) -> np.ndarray:
    """The result of an operation into memory that is NaN before."""
    written = "filter" if operation == "expand_forward" else "weights"
    given = {**f, **changes}
    result = np.full_like(given[written], np.nan)
    kernels.core(device).call(operation, result.dtype, {**given, written: result})
    return result


def forward(device: str, f: Mapping[str, Any], **changes: Any) -> np.ndarray:
    return run(device, "expand_forward", f, **changes)


def backward(device: str, f: Mapping[str, Any], **changes: Any) -> np.ndarray:
    return run(device, "expand_backward", f, **changes)
