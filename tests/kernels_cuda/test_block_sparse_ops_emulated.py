"""The CUDA kernels that make, take out and put back blocks and sites, run by the emulated device, against loops over
the definition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from eqconv_cli import errors, kernels

pytestmark = pytest.mark.skipif(bool(kernels.missing("emulated")), reason="; ".join(kernels.missing("emulated")))

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])

AVERAGE, FIRST = 1, 2
TRANSPOSE, ADD, OWNED = 1, 2, 4
#: What is in memory that an operation must leave alone.
UNTOUCHED = -77

Pair = tuple[int, int]
Index = tuple[int, ...]


def call(operation: str, dtype: str, **fields: Any) -> None:
    kernels.core("emulated").call(operation, dtype, fields)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@dataclass(frozen=True)
class Windows:
    """A grid of windows over an image."""

    size: Pair
    stride: Pair
    offset: Pair = (0, 0)

    def fields(self) -> dict[str, int]:
        named = {"window": self.size, "stride": self.stride, "offset": self.offset}
        return {f"{name}_{axis}": pair[k] for name, pair in named.items() for k, axis in enumerate(("height", "width"))}

    def inside(self, image: Pair, i: int, j: int) -> Iterator[tuple[int, int, int, int]]:
        """Positions in the window and in the image of the pixels that are in both, of window (i, j)."""
        for r, s in itertools.product(range(self.size[0]), range(self.size[1])):
            h = self.offset[0] + self.stride[0] * i + r
            w = self.offset[1] + self.stride[1] * j + s
            if 0 <= h < image[0] and 0 <= w < image[1]:
                yield r, s, h, w

    def covering(self, image: Pair, margin: int = 0) -> Pair:
        """A grid that goes over the far edges."""
        down, across = (max(0, (image[k] - self.offset[k] - 1) // self.stride[k] + 1) + margin for k in range(2))
        return down, across


GEOMETRIES = [
    Windows((1, 1), (1, 1)),
    Windows((3, 3), (1, 1), (-1, -1)),
    Windows((4, 5), (2, 3), (-1, -2)),
    Windows((2, 3), (2, 3), (1, 0)),
    Windows((2, 2), (3, 4), (-3, 2)),
    Windows((5, 4), (3, 3), (-6, -2)),
    Windows((7, 9), (2, 2), (-20, -3)),
    Windows((3, 3), (2, 2), (40, 0)),
]
geometries = pytest.mark.parametrize("windows", GEOMETRIES, ids=lambda w: f"{w.size}{w.stride}{w.offset}")


# ---- masks ----------------------------------------------------------------------------------------------------------


def active_windows(mask: np.ndarray, windows: Windows, grid: Pair, tolerance: float, average: bool) -> list[Index]:
    values = mask.astype(np.float32)
    found: list[Index] = []
    for n, i, j in itertools.product(range(len(mask)), range(grid[0]), range(grid[1])):
        inside = [values[n, h, w] for _, _, h, w in windows.inside(mask.shape[1:], i, j)]
        with np.errstate(invalid="ignore"):
            mean = np.float32(sum(map(float, inside)) / (windows.size[0] * windows.size[1]))
            level = np.float32(tolerance)
            if mean > level if average else any(value > level for value in inside):
                found.append((n, i, j))
    return found


def run_mask(
    operation: str, mask: np.ndarray, windows: Windows, grid: Pair, tolerance: float, flags: int = 0, dtype: str = ""
) -> np.ndarray:
    """The list that the core makes; checks that nothing is written behind it."""
    capacity = len(mask) * grid[0] * grid[1]
    index = np.full((capacity, 3) if operation == "mask_blocks" else capacity, UNTOUCHED, np.int32)
    count = np.full(1, UNTOUCHED, np.int32)
    given = {"bytes" if mask.dtype == np.uint8 else "mask": mask}
    images, height, width = mask.shape
    sizes = {"images": images, "height": height, "width": width, "grid_height": grid[0], "grid_width": grid[1]}
    call(
        operation,
        dtype or mask.dtype.name,
        **sizes,
        **windows.fields(),
        **given,
        tolerance=tolerance,
        flags=flags,
        index=index,
        count=count,
    )
    assert (index[count[0] :] == UNTOUCHED).all()
    return index[: count[0]]


def assert_windows(
    mask: np.ndarray, windows: Windows, grid: Pair, tolerance: float, average: bool, dtype: str = ""
) -> None:
    wanted = active_windows(mask, windows, grid, tolerance, average)
    flags = AVERAGE if average else 0
    found = run_mask("mask_blocks", mask, windows, grid, tolerance, flags, dtype)
    assert found.tolist() == [list(triple) for triple in wanted]
    pixels = run_mask("mask_pixels", mask, windows, grid, tolerance, flags, dtype)
    assert pixels.tolist() == [(n * grid[0] + i) * grid[1] + j for n, i, j in wanted]


pooling = pytest.mark.parametrize("average", [False, True], ids=["max", "average"])


@geometries
@pooling
@both_dtypes
def test_masks(windows: Windows, average: bool, dtype: str) -> None:
    image = (7, 11)
    mask = random().standard_normal((2, *image)).astype(dtype)
    for tolerance in (0.0, 0.5, -0.25):
        assert_windows(mask, windows, windows.covering(image, 2), tolerance, average)


@pooling
def test_masks_of_bytes(average: bool) -> None:
    mask = (random().random((3, 9, 8)) < 0.2).astype(np.uint8)
    for dtype, tolerance in (("float32", 0.0), ("float64", 0.1)):
        assert_windows(mask, Windows((3, 4), (2, 2), (-1, -1)), (5, 4), tolerance, average, dtype)


@pooling
def test_masks_with_nan(average: bool) -> None:
    mask = random().standard_normal((1, 8, 8)).astype(np.float32)
    mask[0, 2, 2] = mask[0, 5, 6] = np.nan
    mask[0, 7, 0] = np.inf
    assert_windows(mask, Windows((3, 3), (2, 2), (-1, -1)), (5, 5), 0.1, average)


def test_a_value_equal_to_the_tolerance_is_not_above_it() -> None:
    """In float: the tolerance of a mask in double is rounded, and its values are."""
    windows = Windows((1, 1), (1, 1))
    mask = np.array([[[0.1, np.nextafter(0.1, 1), np.nextafter(np.float32(0.1), np.float32(1))]]], np.float64)
    assert run_mask("mask_pixels", mask, windows, (1, 3), 0.1).tolist() == [2]
    assert run_mask("mask_pixels", mask, windows, (1, 3), 0.1, AVERAGE).tolist() == [2]
    halves = np.array([[[1, 1, 0, 0, 1, 1, 1, 0]]], np.float32)
    assert run_mask("mask_pixels", halves, Windows((1, 4), (1, 4)), (1, 2), 0.5, AVERAGE).tolist() == [1]


@pooling
@pytest.mark.parametrize("side", [2, 9, 70], ids=["a lane", "some lanes", "the block"])
def test_lanes_that_share_a_window(average: bool, side: int) -> None:
    image = (side + 5, 2 * side + 3)
    mask = random().random((2, *image)).astype(np.float32)
    windows = Windows((side, side), (3, side - 1), (-2, -1))
    quantile = float(np.mean(mask)) if average else float(np.sort(mask, axis=None)[-3])
    assert_windows(mask, windows, (3, 4), quantile, average)


def test_many_tiles_in_order() -> None:
    """More tiles than a warp looks back over at a time."""
    mask = (random().random((1, 100, 110)) < 0.4).astype(np.float32)
    found = run_mask("mask_pixels", mask, Windows((1, 1), (1, 1)), (100, 110), 0.5)
    assert found.tolist() == np.flatnonzero(mask).tolist()


def test_so_many_windows_that_a_thread_has_several() -> None:
    mask = (random().random((1, 1050, 1031)) < 0.3).astype(np.uint8)
    found = run_mask("mask_pixels", mask, Windows((1, 1), (1, 1)), mask.shape[1:], 0.5, dtype="float32")
    assert np.array_equal(found, np.flatnonzero(mask))


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4), (2, 4, 0)], ids=str)
@pooling
def test_empty_masks(shape: Index, average: bool) -> None:
    assert_windows(np.zeros(shape, np.float32), Windows((2, 2), (2, 2)), (2, 2), 0.0, average)
    assert_windows(np.zeros(shape, np.float32), Windows((2, 2), (2, 2)), (2, 2), -1.0, average)
    assert len(run_mask("mask_blocks", np.zeros(shape, np.float32), Windows((2, 2), (2, 2)), (0, 2), 0.0, FIRST)) == 0


def test_first_block_of_an_empty_mask() -> None:
    windows = Windows((2, 2), (2, 2))
    mask = np.zeros((2, 4, 4), np.float32)
    assert run_mask("mask_blocks", mask, windows, (2, 2), 0.5, FIRST).tolist() == [[0, 0, 0]]
    assert run_mask("mask_pixels", mask, windows, (2, 2), 0.5, FIRST).tolist() == []
    mask[1, 3, 0] = 1
    assert run_mask("mask_blocks", mask, windows, (2, 2), 0.5, FIRST).tolist() == [[1, 1, 0]]


# ---- blocks ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """Windows of images by a list, of which ``used`` rows count."""

    images: int
    image: Pair
    channels: int
    windows: Windows
    index: np.ndarray
    used: int | None = None

    @property
    def rows(self) -> list[tuple[int, Index]]:
        return list(enumerate(map(tuple, self.index[: self.used].tolist())))

    @property
    def shape(self) -> Index:
        return self.images, *self.image, self.channels

    def blocks_shape(self, flags: int) -> Index:
        size = self.windows.size
        return len(self.index), *((self.channels, *size) if flags & TRANSPOSE else (*size, self.channels))

    def owner(self) -> np.ndarray:
        owner = np.full(self.shape[:3], -1)
        for row, (n, i, j) in self.rows:
            for _, _, h, w in self.windows.inside(self.image, i, j):
                owner[n, h, w] = row
        return owner

    def gathered(self, x: np.ndarray, flags: int) -> np.ndarray:
        blocks = np.zeros((len(self.index), *self.windows.size, self.channels), x.dtype)
        owner = self.owner()
        for row, (n, i, j) in self.rows:
            for r, s, h, w in self.windows.inside(self.image, i, j):
                if not flags & OWNED or owner[n, h, w] == row:
                    blocks[row, r, s] = x[n, h, w]
        return np.ascontiguousarray(blocks.transpose(0, 3, 1, 2)) if flags & TRANSPOSE else blocks

    def scattered(self, blocks: np.ndarray | None, base: np.ndarray, flags: int) -> np.ndarray:
        y = base.copy()
        given = np.zeros(self.blocks_shape(0), base.dtype) if blocks is None else blocks
        plain = given.transpose(0, 2, 3, 1) if blocks is not None and flags & TRANSPOSE else given
        for row, (n, i, j) in self.rows:
            for r, s, h, w in self.windows.inside(self.image, i, j):
                y[n, h, w] = y[n, h, w] + plain[row, r, s] if flags & ADD else plain[row, r, s]
        return y

    def fields(self, flags: int) -> dict[str, Any]:
        sizes = dict(zip(("images", "height", "width", "channels"), self.shape, strict=True))
        count = {} if self.used is None else {"count": np.array([self.used], np.int32)}
        return {**sizes, **self.windows.fields(), **count, "rows": len(self.index), "index": self.index, "flags": flags}

    def random_image(self, dtype: str) -> np.ndarray:
        return random(1).standard_normal(self.shape).astype(dtype)

    def random_blocks(self, dtype: str, flags: int) -> np.ndarray:
        return random(2).standard_normal(self.blocks_shape(flags)).astype(dtype)

    def check_gather(self, dtype: str, flags: int) -> None:
        x = self.random_image(dtype)
        blocks = np.full(self.blocks_shape(flags), np.nan, dtype)
        call("block_gather", dtype, **self.fields(flags), x=x, blocks=blocks)
        np.testing.assert_array_equal(blocks, self.gathered(x, flags))

    def check_scatter(self, dtype: str, flags: int, base: str = "base", zeros: bool = False) -> None:
        blocks = None if zeros else self.random_blocks(dtype, flags)
        given = np.zeros(self.shape, dtype) if base == "zeros" else self.random_image(dtype)
        wanted = self.scattered(blocks, given, flags)
        y = given if base == "y" else np.full(self.shape, np.nan, dtype)
        chosen = {"zeros": None, "base": given, "y": y}[base]
        call("block_scatter", dtype, **self.fields(flags), blocks_in=blocks, base=chosen, y=y)
        np.testing.assert_array_equal(y, wanted)

    def check_pixels(self) -> None:
        capacity = self.images * self.image[0] * self.image[1]
        pixels = np.full(capacity, UNTOUCHED, np.int32)
        count = np.full(1, UNTOUCHED, np.int32)
        call("block_pixels", "float32", **self.fields(0), pixels=pixels, pixel_count=count)
        wanted = np.flatnonzero(self.owner() >= 0)
        assert pixels[: count[0]].tolist() == wanted.tolist()
        assert (pixels[count[0] :] == UNTOUCHED).all()

    def check(self, dtype: str) -> None:
        for flags in (0, TRANSPOSE, OWNED, TRANSPOSE | OWNED):
            self.check_gather(dtype, flags)
        for flags in (0, TRANSPOSE, ADD, ADD | TRANSPOSE):
            for base in ("base", "zeros", "y"):
                self.check_scatter(dtype, flags, base)
        self.check_pixels()


def random_stack(
    windows: Windows, image: Pair = (6, 9), images: int = 2, channels: int = 3, rows: int = 9, seed: int = 0
) -> Stack:
    """Rows in any order and with repeats, some of them beyond the image."""
    grid = windows.covering(image, 2)
    high = (images, *grid)
    return Stack(images, image, channels, windows, random(seed).integers(0, high, (rows, 3)).astype(np.int32))


@geometries
@both_dtypes
def test_blocks(windows: Windows, dtype: str) -> None:
    stack = random_stack(windows)
    stack.check(dtype)
    replace(stack, used=4).check(dtype)


@pytest.mark.parametrize("channels", [1, 2, 4, 7, 32, 40])
@both_dtypes
def test_channels(channels: int, dtype: str) -> None:
    """Whole 16-byte vectors and not, and a second tile of channels where blocks are transposed."""
    random_stack(Windows((3, 4), (2, 3), (-1, -1)), channels=channels, image=(4, 5), images=1, rows=4).check(dtype)


def test_windows_of_more_pixels_than_a_transposed_tile() -> None:
    random_stack(Windows((7, 6), (5, 3), (-2, -1)), image=(12, 11), rows=3).check("float32")


def test_more_than_a_tile_of_vectors() -> None:
    random_stack(Windows((5, 5), (2, 2), (-1, -1)), image=(13, 12), channels=6, rows=12).check("float32")


def test_sums_in_the_order_of_the_rows() -> None:
    """Values whose sums depend on the order; cells that are named often and not in raster order."""
    windows = Windows((3, 3), (1, 1), (-1, -1))
    cells = [(0, 2, 2), (0, 1, 1), (0, 2, 2), (0, 0, 3), (0, 2, 2), (0, 1, 1), (0, 2, 1), (0, 2, 2), (0, 2, 2)]
    stack = Stack(1, (4, 5), 4, windows, np.array(cells, np.int32))
    scale = 10.0 ** random().integers(-6, 7, stack.blocks_shape(0))
    blocks = (random(3).standard_normal(stack.blocks_shape(0)) * scale).astype(np.float32)
    base = np.ones(stack.shape, np.float32)
    wanted = stack.scattered(blocks, base, ADD)
    backwards = replace(stack, index=stack.index[::-1].copy()).scattered(blocks[::-1].copy(), base, ADD)
    assert (wanted != backwards).any()
    y = np.empty_like(base)
    call("block_scatter", "float32", **stack.fields(ADD), blocks_in=blocks, base=base, y=y)
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("repeats", [2, 3, 21], ids=str)
def test_one_cell_many_times(repeats: int) -> None:
    cells = np.tile(np.array([[0, 1, 1], [1, 0, 1]], np.int32), (repeats, 1))
    Stack(2, (4, 5), 2, Windows((3, 2), (2, 2), (-1, 0)), cells).check("float32")


@pytest.mark.parametrize("flags", [0, ADD, TRANSPOSE, ADD | TRANSPOSE], ids=str)
def test_blocks_of_zeros(flags: int) -> None:
    for base in ("base", "zeros", "y"):
        random_stack(Windows((3, 4), (2, 3), (-1, -1))).check_scatter("float32", flags, base, zeros=True)


@pytest.mark.parametrize(("rows", "images", "image", "channels"), [
    (0, 2, (3, 3), 2), (3, 0, (3, 3), 2), (3, 1, (0, 3), 2), (3, 1, (3, 0), 2), (3, 1, (3, 3), 0)
], ids=str)  # fmt: skip
def test_empty_blocks(rows: int, images: int, image: Pair, channels: int) -> None:
    stack = Stack(images, image, channels, Windows((2, 2), (2, 2)), np.zeros((rows, 3), np.int32), min(rows, images))
    stack.check("float32")


def test_unaligned_images() -> None:
    """Four channels, but no addresses that vectors could be read from."""
    stack = random_stack(Windows((3, 4), (2, 3), (-1, -1)), channels=4)
    x, y, blocks = (
        np.full(int(np.prod(shape)) + 1, np.nan, np.float32)[1:].reshape(shape)
        for shape in (stack.shape, stack.shape, stack.blocks_shape(0))
    )
    assert any(array.ctypes.data % 16 != 0 for array in (x, y, blocks))
    x[:] = stack.random_image("float32")
    call("block_gather", "float32", **stack.fields(0), x=x, blocks=blocks)
    np.testing.assert_array_equal(blocks, stack.gathered(x, 0))
    call("block_scatter", "float32", **stack.fields(ADD), blocks_in=blocks, base=x, y=y)
    np.testing.assert_array_equal(y, stack.scattered(blocks, x, ADD))


def test_images_and_places_that_there_are_not_are_left_out() -> None:
    index = np.array([(2, 0, 0), (0, 2**31 - 1, 1), (0, 1, 2**31 - 1), (1, 1, 1)], np.int32)
    stack = Stack(2, (4, 5), 4, Windows((2, 2), (2**20, 2)), index)
    x = stack.random_image("float32")
    blocks = np.full(stack.blocks_shape(0), np.nan, np.float32)
    call("block_gather", "float32", **stack.fields(0), x=x, blocks=blocks)
    assert (blocks[:3] == 0).all()
    y = np.full(stack.shape, np.nan, np.float32)
    call("block_scatter", "float32", **stack.fields(0), blocks_in=np.ones_like(blocks), base=x, y=y)
    np.testing.assert_array_equal(y, x)


# ---- neighbours -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strided:
    """A convolution on sites; every size has one number an axis."""

    extent: Index
    kernel: Index
    stride: Index
    pad: Index
    dilation: Index
    batch: int = 2

    @property
    def out_extent(self) -> Index:
        axes = zip(self.extent, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        return tuple(max(0, (n + 2 * p - d * (k - 1) - 1) // s + 1) for n, k, s, p, d in axes)

    def taps(self) -> list[Index]:
        return list(itertools.product(*map(range, self.kernel)))

    def at(self, site: Sequence[int], tap: Sequence[int]) -> Index:
        """The input's coordinate at an output's tap."""
        axes = zip(site[1:], tap, self.stride, self.pad, self.dilation, strict=True)
        return site[0], *(t * s - p + o * d for t, o, s, p, d in axes)

    def outputs(self, coords: np.ndarray) -> list[list[int]]:
        found = set()
        for site in coords.tolist():
            for tap in self.taps():
                axes = list(zip(site[1:], tap, self.stride, self.pad, self.dilation, self.out_extent, strict=True))
                if all((c + p - o * d) % s == 0 and 0 <= (c + p - o * d) // s < n for c, o, s, p, d, n in axes):
                    found.add((site[0], *((c + p - o * d) // s for c, o, s, p, d, _ in axes)))
        return [list(site) for site in sorted(found)]

    def table(self, coords: np.ndarray, out_coords: np.ndarray) -> list[list[int]]:
        rows = {tuple(site): row for row, site in enumerate(coords.tolist())}
        return [[rows.get(self.at(site, tap), -1) for tap in self.taps()] for site in out_coords.tolist()]

    def fields(self) -> dict[str, int]:
        names = ("extent", "out_extent", "kernel", "stride", "pad", "dilation")
        sizes = {f"{name}_{axis}": size for name in names for axis, size in enumerate(getattr(self, name))}
        return {"axes": len(self.extent), "batch": self.batch, **sizes}

    def sites(self, rows: int, seed: int = 0) -> np.ndarray:
        """Different sites in any order."""
        cells = self.batch * int(np.prod(self.extent))
        flat = random(seed).choice(cells, rows, replace=False) if cells < 10**6 else self._near(rows, seed)
        return np.stack(np.unravel_index(flat, (self.batch, *self.extent)), axis=1).astype(np.int32)

    def _near(self, rows: int, seed: int) -> np.ndarray:
        """Sites of huge extents that are close enough together to have common outputs."""
        corner = [n // 2 for n in self.extent]
        steps = random(seed).integers(0, 4, (4 * rows, len(self.extent)))
        images = random(seed).integers(0, self.batch, 4 * rows)
        near = np.ravel_multi_index((images, *(steps + corner).T), (self.batch, *self.extent))
        return random(seed).permutation(np.unique(near))[:rows]

    def check(self, coords: np.ndarray, used: int | None = None) -> None:
        outputs = self.outputs(coords[:used])
        count = {} if used is None else {"count": np.array([used], np.int32)}
        given = {**self.fields(), **count, "rows": len(coords), "coords": coords}

        made = np.full((len(outputs) + 3, coords.shape[1]), UNTOUCHED, np.int32)
        made_count = np.full(1, UNTOUCHED, np.int32)
        call("site_outputs", "float32", **given, out_rows=len(made), made_coords=made, made_count=made_count)
        assert made[: made_count[0]].tolist() == outputs
        assert (made[made_count[0] :] == UNTOUCHED).all()

        made[made_count[0] :] = 0
        table = np.full((len(made), len(self.taps())), UNTOUCHED, np.int32)
        call("site_table", "float64", **given, out_rows=len(made), out_coords=made, out_count=made_count, table=table)
        assert table[: made_count[0]].tolist() == self.table(coords[:used], made[: made_count[0]])
        assert (table[made_count[0] :] == -1).all()


CONVOLUTIONS = [
    Strided((17,), (3,), (2,), (1,), (1,)),
    Strided((6, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
    Strided((9, 8), (3, 2), (2, 3), (0, 1), (1, 2)),
    Strided((7, 8), (2, 2), (3, 3), (0, 0), (1, 1)),
    Strided((4, 5, 6), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
    Strided((5, 5, 5), (2, 1, 3), (1, 2, 1), (0, 0, 2), (2, 1, 2)),
    Strided((3, 4, 3, 5), (2, 2, 2, 3), (1, 2, 1, 2), (1, 0, 0, 1), (1, 1, 2, 1)),
    Strided((9, 9), (5, 5), (2, 2), (-1, -2), (1, 1), batch=1),
]
#: Extents for which the operations take hash tables.
HUGE = [
    Strided((2**27,), (3,), (2,), (1,), (1,), batch=3),
    Strided((60_000, 50_000), (3, 3), (1, 1), (1, 1), (1, 1)),
    Strided((3000, 2000, 3000), (2, 3, 2), (2, 2, 2), (0, 1, 0), (1, 1, 1)),
    Strided((20_000, 20_000, 20_000, 20_000), (2, 2, 1, 2), (1, 2, 2, 1), (1, 1, 0, 0), (1, 1, 1, 2)),
]


@pytest.mark.parametrize("convolution", CONVOLUTIONS + HUGE, ids=lambda c: f"{c.extent}{c.kernel}{c.stride}")
def test_neighbours(convolution: Strided) -> None:
    coords = convolution.sites(14)
    convolution.check(coords)
    convolution.check(coords, used=5)


@pytest.mark.parametrize("convolution", [CONVOLUTIONS[1], HUGE[2]], ids=["dense", "hash"])
@pytest.mark.parametrize(("rows", "used"), [(0, None), (4, 0), (1, None)], ids=str)
def test_few_sites(convolution: Strided, rows: int, used: int | None) -> None:
    convolution.check(convolution.sites(rows), used)


def test_submanifold_tables() -> None:
    """Outputs that are the inputs, in their order."""
    convolution = Strided((5, 6, 4), (3, 2, 3), (1, 1, 1), (1, 1, 2), (1, 1, 2))
    coords = convolution.sites(30)
    table = np.full((30, 18), UNTOUCHED, np.int32)
    given = {**convolution.fields(), "rows": 30, "out_rows": 30, "coords": coords, "out_coords": coords}
    call("site_table", "float32", **given, table=table)
    assert table.tolist() == convolution.table(coords, coords)
    assert (table[:, 1 * 6 + 1 * 3 + 1] == np.arange(30)).all()


def test_more_outputs_than_a_tile_of_keys() -> None:
    """So that sorting has several tiles and rounds, and the bitmap several tiles."""
    for convolution in (
        Strided((400, 400), (2, 2), (1, 1), (0, 0), (1, 1), batch=1),
        Strided((400_000, 400_000), (1, 2), (1, 1), (0, 0), (1, 1), batch=1),
    ):
        coords = random().permutation(np.stack(np.meshgrid(np.arange(20), np.arange(3, 63)), -1).reshape(-1, 2))
        convolution.check(np.concatenate([np.zeros((len(coords), 1)), coords * 3 + 1], axis=1).astype(np.int32))


@pytest.mark.parametrize("convolution", [CONVOLUTIONS[1], HUGE[1]], ids=["bitmap", "sorted"])
def test_no_outputs_where_the_capacity_is_too_small(convolution: Strided) -> None:
    coords = convolution.sites(14)
    most = len(convolution.outputs(coords))
    made, count = np.zeros((most - 1, 3), np.int32), np.full(1, UNTOUCHED, np.int32)
    given = {**convolution.fields(), "rows": 14, "coords": coords, "out_rows": most - 1}
    call("site_outputs", "float32", **given, made_coords=made, made_count=count)
    assert count[0] == 0


# ---- bad arguments --------------------------------------------------------------------------------------------------

#: Good arguments of every operation.
MASK = {
    **dict.fromkeys(("images", "height", "width", "grid_height", "grid_width"), 2),
    **Windows((1, 1), (1, 1)).fields(),
    "mask": np.ones((2, 2, 2), np.float32),
    "index": np.zeros((8, 3), np.int32),
    "count": np.zeros(1, np.int32),
}
BLOCKS = {
    **dict.fromkeys(("images", "height", "width", "channels", "rows"), 2),
    **Windows((1, 1), (1, 1)).fields(),
    "index": np.zeros((2, 3), np.int32),
    "x": np.ones((2, 2, 2, 2), np.float32),
    "y": np.ones((2, 2, 2, 2), np.float32),
    "blocks": np.ones((2, 1, 1, 2), np.float32),
    "pixels": np.zeros(8, np.int32),
    "pixel_count": np.zeros(1, np.int32),
}
SITES = {
    **Strided((2,), (1,), (1,), (0,), (1,)).fields(),
    "rows": 1,
    "out_rows": 1,
    "coords": np.zeros((1, 2), np.int32),
    "out_coords": np.zeros((1, 2), np.int32),
    "made_coords": np.zeros((1, 2), np.int32),
    "made_count": np.zeros(1, np.int32),
    "table": np.zeros((1, 1), np.int32),
}
#: Operation, good arguments, arrays that it needs, sizes that cannot be below 0.
OPERATIONS: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("mask_blocks", MASK, ["mask", "index", "count"], ["images", "grid_width"]),
    ("mask_pixels", MASK, ["mask", "index", "count"], ["height", "grid_height"]),
    ("block_gather", BLOCKS, ["index", "x", "blocks"], ["images", "channels", "rows"]),
    ("block_scatter", BLOCKS, ["index", "y"], ["images", "height", "width"]),
    ("block_pixels", BLOCKS, ["index", "pixels", "pixel_count"], ["rows", "width"]),
    ("site_outputs", SITES, ["coords", "made_coords", "made_count"], ["batch", "rows", "out_rows", "extent_0"]),
    ("site_table", SITES, ["coords", "out_coords", "table"], ["batch", "rows", "out_rows", "out_extent_0"]),
]


@pytest.mark.parametrize(("operation", "good", "needed", "sizes"), OPERATIONS, ids=[row[0] for row in OPERATIONS])
def test_impossible_arguments(operation: str, good: dict[str, Any], needed: list[str], sizes: list[str]) -> None:
    call(operation, "float32", **good)
    positive = ["kernel_0", "stride_0", "dilation_0"] if good is SITES else ["window_height", "stride_width"]
    wrong = [{name: None} for name in needed] + [{name: -1} for name in sizes] + [{name: 0} for name in positive]
    wrong += [{"axes": 0}, {"axes": 5}] if good is SITES else []
    for change in wrong:
        with pytest.raises(errors.EqconvError, match="a needed array is missing or a size is impossible"):
            call(operation, "float32", **{**good, **change})


@pytest.mark.parametrize(
    ("operation", "good", "change"),
    [
        ("mask_blocks", MASK, {"images": 2**20, "height": 2**20}),
        ("block_gather", BLOCKS, {"window_height": 2**20, "window_width": 2**20}),
        ("block_scatter", BLOCKS, {"stride_width": 2**40}),
        ("site_table", SITES, {"extent_0": 2**40}),
        ("site_table", SITES, {"stride_0": 2**40}),
        ("site_outputs", SITES, {"kernel_0": 2**40}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_that_are_not_computed(operation: str, good: dict[str, Any], change: dict[str, int]) -> None:
    with pytest.raises(errors.EqconvError, match="does not compute this"):
        call(operation, "float32", **{**good, **change})
