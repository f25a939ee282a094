"""The block-sparse operations of the core as plain loops over their definitions, and cases for them.

The functions that call the core take its device first; fields of the operation by name replace what they would give.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from eqconv_cli import kernels

#: Flags of the header.
AVERAGE, FIRST = 1, 2
TRANSPOSE, ADD, OWNED = 1, 2, 4
AVX2, PORTABLE, AVX512 = 16, 32, 64

#: Flags that choose other code in the core for the CPU; the others pass over them.
INSTRUCTIONS = {"best": 0, "avx512": AVX512, "avx2": AVX2, "portable": PORTABLE}

SHAPES = [(1, 1, 1, 1), (1, 5, 5, 1), (2, 7, 11, 3), (3, 13, 9, 5), (1, 6, 10, 8)]
WINDOWS = [(1, 1), (2, 3), (3, 3), (3, 2), (4, 5), (5, 4), (7, 3), (16, 16), (18, 18), (40, 41)]
OFFSETS = [(0, 0), (-1, -2), (1, 0), (-3, 2), (-6, -2), (-100, 0), (0, 200)]
TOLERANCES = [0.0, 0.5, -0.25]
#: The devices that have these operations.
CORES = ("cpu",)

Pair = tuple[int, int]


def cores(devices: Sequence[str] = CORES) -> list[Any]:
    """Parameters for a fixture: each device, skipped, with the reason, where its core is not built."""

    def parameter(device: str) -> Any:
        reasons = kernels.missing(device)
        return pytest.param(device, marks=pytest.mark.skipif(bool(reasons), reason="; ".join(reasons)))

    return [parameter(device) for device in devices]


def call(device: str, operation: str, dtype: Any, fields: Mapping[str, Any]) -> None:
    kernels.core(device).call(operation, dtype, fields)


@dataclass(frozen=True)
class Windows:
    """Windows over images."""

    images: int
    height: int
    width: int
    window: Pair
    stride: Pair
    offset: Pair

    def span(self, axis: int, position: int) -> tuple[int, int]:
        """First and last + 1 of a window, as the definition says: it may be outside."""
        first = self.offset[axis] + self.stride[axis] * int(position)
        return first, first + self.window[axis]

    def part(self, i: int, j: int) -> tuple[slice, slice]:
        """The rows and columns of the image that a window holds."""
        (top, bottom), (left, right) = self.span(0, i), self.span(1, j)
        return slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))

    def inside(self, i: int, j: int) -> Iterator[tuple[int, int, int, int]]:
        """(y, x, row, column) of a window's pixels inside the image."""
        top, bottom = self.span(0, i)
        left, right = self.span(1, j)
        for y in range(max(top, 0), min(bottom, self.height)):
            for x in range(max(left, 0), min(right, self.width)):
                yield y, x, y - top, x - left

    @property
    def fields(self) -> dict[str, int]:
        pairs = {"window": self.window, "stride": self.stride, "offset": self.offset}
        sides = {
            f"{name}_{side}": pair[k] for name, pair in pairs.items() for k, side in enumerate(("height", "width"))
        }
        return {"images": self.images, "height": self.height, "width": self.width, **sides}

    def grid(self) -> Pair:
        """So many windows that some begin behind the image, or a few where all are outside."""
        sizes = (self.height, self.width)
        counts = [(sizes[k] - self.offset[k] - 1) // self.stride[k] + 2 for k in (0, 1)]
        return max(1, min(counts[0], 40)), max(1, min(counts[1], 40))


def geometries(shapes: Sequence[tuple[int, ...]] = tuple(SHAPES)) -> list[Windows]:
    """Every shape with every window; strides below, equal to and above the window, and offsets, take turns."""
    made = []
    for number, (shape, window) in enumerate(itertools.product(shapes, WINDOWS)):
        strides = [
            tuple(max(1, size // 2) for size in window),
            window,
            tuple(size + 1 + k for k, size in enumerate(window)),
        ]
        for k, stride in enumerate([*strides, (1, 1)]):
            for offset in (OFFSETS[(number + k) % len(OFFSETS)], OFFSETS[(number + 3 * k + 2) % len(OFFSETS)]):
                made.append(Windows(*shape[:3], window, stride, offset))  # type: ignore[arg-type]
    return made


# Masks.


def masks(windows: Windows, seed: int = 0) -> dict[str, np.ndarray]:
    """Masks by name; their values are multiples of 1/8, so that sums are exact."""
    shape = (windows.images, windows.height, windows.width)
    rng = np.random.default_rng(seed)
    single, corner, noise = np.zeros(shape), np.zeros(shape), rng.integers(-8, 9, shape) / 8
    single[-1, shape[1] // 2, shape[2] // 3] = 1
    corner[0, : (shape[1] + 2) // 3, : (shape[2] + 2) // 3] = 1
    holes = noise.copy()
    holes[rng.random(shape) < 0.1] = np.nan
    sparse = np.where(rng.random(shape) < 0.02, 1.0, 0.0)
    return {
        "empty": np.zeros(shape),
        "full": np.ones(shape),
        "single": single,
        "corner": corner,
        "noise": noise,
        "sparse": sparse,
        "nan": holes,
    }


def active_windows(mask: np.ndarray, windows: Windows, grid: Pair, tolerance: float, average: bool) -> list[Any]:
    """(image, i, j) of the active windows."""
    found = []
    rounded, limit = mask.astype(np.float32), np.float32(tolerance)
    for image, i, j in itertools.product(range(windows.images), range(grid[0]), range(grid[1])):
        values = rounded[(image, *windows.part(i, j))]
        if average:
            mean = values.sum(dtype=np.float64) / (windows.window[0] * windows.window[1])
            active = np.float32(mean) > limit
        else:
            active = (values > limit).any()
        if active:
            found.append((image, i, j))
    return found


def reduce_mask(
    device: str, operation: str, mask: np.ndarray, windows: Windows, grid: Pair, tolerance: float, /, **fields: Any
) -> np.ndarray:
    """What mask_blocks or mask_pixels lists; the memory behind it must be as before."""
    width = (3,) if operation == "mask_blocks" else ()
    index = np.full((windows.images * grid[0] * grid[1], *width), -77, np.int32)
    count = np.full(1, -1, np.int32)
    dtype = np.float32 if mask.dtype == np.uint8 else mask.dtype
    given = {"bytes": mask} if mask.dtype == np.uint8 else {"mask": mask}
    sizes = {**windows.fields, "grid_height": grid[0], "grid_width": grid[1], "tolerance": tolerance}
    call(device, operation, dtype, {**sizes, **given, "index": index, "count": count, **fields})
    assert 0 <= count[0] <= len(index)
    np.testing.assert_array_equal(index[count[0] :], -77)
    return index[: count[0]]


# Blocks.


def listed(windows: Windows, seed: int = 0) -> np.ndarray:
    """A shuffled list of windows with repeats, some of them outside the image."""
    rng = np.random.default_rng(seed)
    grid = windows.grid()
    rows = np.array(list(itertools.product(range(windows.images), range(grid[0]), range(grid[1]))), np.int32)
    kept = rows[rng.random(len(rows)) < min(1, 40 / len(rows))]
    chosen = np.concatenate([kept, kept[::3], rows[-1:], rows[:1]])
    return rng.permutation(chosen[:60])


def gather_loops(x: np.ndarray, windows: Windows, index: np.ndarray) -> np.ndarray:
    """[rows, h, w, C]"""
    blocks = np.zeros((len(index), *windows.window, x.shape[3]), x.dtype)
    for r, (image, i, j) in enumerate(index):
        for y, x_at, row, column in windows.inside(i, j):
            blocks[r, row, column] = x[image, y, x_at]
    return blocks


def owners_loops(windows: Windows, index: np.ndarray) -> np.ndarray:
    """The last row of the list that covers each pixel, -1 where none does."""
    owner = np.full((windows.images, windows.height, windows.width), -1)
    for r, (image, i, j) in enumerate(index):
        for y, x, _, _ in windows.inside(i, j):
            owner[image, y, x] = r
    return owner


def owned_loops(x: np.ndarray, windows: Windows, index: np.ndarray) -> np.ndarray:
    """Gather with EQC_BS_OWNED."""
    owner, blocks = owners_loops(windows, index), gather_loops(x, windows, index)
    for r, (image, i, j) in enumerate(index):
        for y, x_at, row, column in windows.inside(i, j):
            if owner[image, y, x_at] != r:
                blocks[r, row, column] = 0
    return blocks


def scatter_loops(
    blocks: np.ndarray, windows: Windows, index: np.ndarray, base: np.ndarray, add: bool = False
) -> np.ndarray:
    """blocks [rows, h, w, C]; sums go in the order of the rows, in the arrays' own type."""
    y = base.copy()
    for r, (image, i, j) in enumerate(index):
        for y_at, x, row, column in windows.inside(i, j):
            if add:
                y[image, y_at, x] += blocks[r, row, column]
            else:
                y[image, y_at, x] = blocks[r, row, column]
    return y


def gather(
    device: str, x: np.ndarray, windows: Windows, index: np.ndarray, flags: int = 0, /, **fields: Any
) -> np.ndarray:
    """block_gather; [rows, h, w, C], or [rows, C, h, w] with TRANSPOSE."""
    channels = x.shape[3]
    shape = (channels, *windows.window) if flags & TRANSPOSE else (*windows.window, channels)
    blocks = np.full((len(index), *shape), 99, x.dtype)
    sizes = {**windows.fields, "channels": channels, "rows": len(index), "flags": flags}
    call(device, "block_gather", x.dtype, {**sizes, "index": index, "x": x, "blocks": blocks, **fields})
    return blocks


def scatter(
    device: str,
    blocks: np.ndarray | None,
    windows: Windows,
    index: np.ndarray,
    base: np.ndarray,
    flags: int = 0,
    in_place: bool = False,
    /,
    **fields: Any,
) -> np.ndarray:
    """block_scatter onto a copy of ``base``."""
    y = base.copy() if in_place else np.full_like(base, 99)
    sizes = {**windows.fields, "channels": base.shape[3], "rows": len(index), "flags": flags}
    arrays = {"index": index, "blocks_in": blocks, "base": y if in_place else base, "y": y}
    call(device, "block_scatter", base.dtype, {**sizes, **arrays, **fields})
    return y


def covered(device: str, windows: Windows, index: np.ndarray, /, **fields: Any) -> np.ndarray:
    """block_pixels."""
    pixels = np.full(windows.images * windows.height * windows.width, -77, np.int32)
    count = np.full(1, -1, np.int32)
    sizes = {**windows.fields, "rows": len(index)}
    call(
        device, "block_pixels", np.float32, {**sizes, "index": index, "pixels": pixels, "pixel_count": count, **fields}
    )
    np.testing.assert_array_equal(pixels[count[0] :], -77)
    return pixels[: count[0]]


# Sites.


@dataclass(frozen=True)
class Kernel:
    """A kernel over sites of a batch with some extent; one number an axis each."""

    batch: int
    extent: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    dilation: tuple[int, ...]
    given_out_extent: tuple[int, ...] | None = None

    @property
    def out_extent(self) -> tuple[int, ...]:
        if self.given_out_extent is not None:
            return self.given_out_extent
        axes = zip(self.extent, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        return tuple(max(0, (n + 2 * p - d * (k - 1) - 1) // s + 1) for n, k, s, p, d in axes)

    @property
    def taps(self) -> list[tuple[int, ...]]:
        return list(itertools.product(*(range(k) for k in self.kernel)))

    def read(self, out: Sequence[int], tap: Sequence[int]) -> tuple[int, ...]:
        """The place in the input that a tap of an output's place reads, inside or not."""
        axes = zip(out, self.stride, self.pad, tap, self.dilation, strict=True)
        return tuple(int(t) * s - p + o * d for t, s, p, o, d in axes)

    @property
    def fields(self) -> dict[str, int]:
        named = {name: getattr(self, name) for name in ("extent", "out_extent", "kernel", "stride", "pad", "dilation")}
        numbers = {f"{name}_{d}": int(number) for name, axes in named.items() for d, number in enumerate(axes)}
        return {"axes": len(self.extent), "batch": self.batch, **numbers}


def submanifold(batch: int, extent: tuple[int, ...], size: int, dilation: int = 1) -> Kernel:
    """Output sites are input sites."""
    axes = len(extent)
    pad, ones = (size // 2 * dilation,) * axes, (1,) * axes
    return Kernel(batch, extent, (size,) * axes, ones, pad, (dilation,) * axes, given_out_extent=extent)


KERNELS = {
    "subm 1": submanifold(3, (50,), 3),
    "subm 2": submanifold(2, (13, 70), 3),
    "subm 2 even": submanifold(1, (13, 9), 2),
    "subm 2 dilated": submanifold(2, (13, 9), 3, dilation=2),
    "subm 3": submanifold(2, (7, 8, 9), 3),
    "subm 3 wide": submanifold(1, (9, 8, 9), 5),
    "subm 4": submanifold(2, (4, 5, 3, 6), 3),
    "strided 1": Kernel(2, (40,), (4,), (3,), (2,), (1,)),
    "strided 2": Kernel(2, (13, 9), (3, 3), (2, 2), (1, 1), (1, 1)),
    "uneven 2": Kernel(3, (12, 15), (2, 5), (3, 1), (0, 4), (2, 3)),
    "strided 3": Kernel(2, (9, 7, 8), (3, 2, 3), (2, 2, 1), (1, 0, 1), (1, 1, 2)),
    "strided 4": Kernel(1, (4, 5, 6, 3), (2, 3, 2, 1), (2, 1, 2, 1), (1, 1, 0, 0), (1, 1, 1, 1)),
    "gaps": Kernel(1, (20, 20), (1, 1), (4, 3), (0, 0), (1, 1)),
    "no output": Kernel(1, (3, 3), (5, 5), (1, 1), (0, 0), (1, 1)),
    # More cells than memory has room for.
    "huge 2": submanifold(3, (2**30, 2**28), 3),
    "huge strided 2": Kernel(2, (2**31 - 1, 2**20), (3, 3), (2, 2), (1, 1), (1, 1)),
    "huge 3": submanifold(2, (2**19, 2**20, 2**21), 3),
}


def random_sites(kernel: Kernel, rows: int, seed: int = 0) -> np.ndarray:
    """Different coordinates in range, in no order; in huge extents most of them close together."""
    rng = np.random.default_rng(seed)
    limits = np.array([kernel.batch, *kernel.extent])
    near = np.minimum(limits, 12)
    corner = (limits - near) * np.array([0] + [1] * len(kernel.extent))
    rows_near = rng.integers(0, near, (rows, len(limits))) + corner * rng.integers(0, 2, (rows, 1))
    rows_far = rng.integers(0, limits, (rows, len(limits)))
    unique = np.unique(np.concatenate([rows_near[: rows - rows // 4], rows_far[: rows // 4]]), axis=0)
    return np.ascontiguousarray(rng.permutation(unique), np.int32)


def outputs_loops(kernel: Kernel, coords: np.ndarray) -> np.ndarray:
    found = set()
    for batch, *place in coords.tolist():
        for tap in kernel.taps:
            out = []
            axes = zip(place, tap, kernel.stride, kernel.pad, kernel.dilation, kernel.out_extent, strict=True)
            for c, o, s, p, d, n in axes:
                quotient, remainder = divmod(c + p - o * d, s)
                if remainder == 0 and 0 <= quotient < n:
                    out.append(quotient)
            if len(out) == len(place):
                found.add((batch, *out))
    return np.array(sorted(found), np.int32).reshape(-1, coords.shape[1])


def table_loops(kernel: Kernel, coords: np.ndarray, out_coords: np.ndarray) -> np.ndarray:
    row_of = {tuple(row): i for i, row in enumerate(coords.tolist())}
    taps = kernel.taps
    table = np.full((len(out_coords), len(taps)), -1, np.int32)
    for i, (batch, *out) in enumerate(out_coords.tolist()):
        for t, tap in enumerate(taps):
            table[i, t] = row_of.get((batch, *kernel.read(out, tap)), -1)
    return table


def site_outputs(device: str, kernel: Kernel, coords: np.ndarray, room: int, /, **fields: Any) -> np.ndarray:
    made, count = np.full((room, coords.shape[1]), -77, np.int32), np.full(1, -1, np.int32)
    sizes = {**kernel.fields, "rows": len(coords), "out_rows": room}
    arrays = {"coords": coords, "made_coords": made, "made_count": count}
    call(device, "site_outputs", np.float32, {**sizes, **arrays, **fields})
    np.testing.assert_array_equal(made[count[0] :], -77)
    return made[: count[0]]


def site_table(device: str, kernel: Kernel, coords: np.ndarray, out_coords: np.ndarray, /, **fields: Any) -> np.ndarray:
    table = np.full((len(out_coords), len(kernel.taps)), -77, np.int32)
    sizes = {**kernel.fields, "rows": len(coords), "out_rows": len(out_coords)}
    arrays = {"coords": coords, "out_coords": out_coords, "table": table}
    call(device, "site_table", np.float32, {**sizes, **arrays, **fields})
    return table
