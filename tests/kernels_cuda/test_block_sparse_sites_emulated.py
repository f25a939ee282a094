"""CUDA kernels of the convolution at sites and of the bottleneck, run on the emulated device, against plain loops."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from eqconv_cli import errors, kernels

pytestmark = pytest.mark.skipif(bool(kernels.missing("emulated")), reason="; ".join(kernels.missing("emulated")))

RELU, ORIGINAL = 1, 2
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
GRADIENTS = ("dx", "dw", "db")


@dataclass
class Image:
    """Geometry of the image form; pairs are (height, width)."""

    images: int = 2
    size: tuple[int, int] = (7, 9)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    #: None: as many as fit with the same padding behind.
    out: tuple[int, int] | None = None

    @property
    def out_size(self) -> tuple[int, int]:
        if self.out is not None:
            return self.out
        return tuple(  # type: ignore[return-value]
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(self.size, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        )

    @property
    def in_rows(self) -> int:
        return self.images * self.size[0] * self.size[1]

    @property
    def out_rows(self) -> int:
        return self.images * self.out_size[0] * self.out_size[1]

    def neighbours(self, positions: Iterable[int]) -> np.ndarray:
        """[len(positions), taps] input position or -1."""
        H, W = self.size
        oh, ow = self.out_size
        found = []
        for position in positions:
            n, h, w = position // (oh * ow), position // ow % oh, position % ow
            for i in range(self.kernel[0]):
                for j in range(self.kernel[1]):
                    a = h * self.stride[0] - self.pad[0] + i * self.dilation[0]
                    b = w * self.stride[1] - self.pad[1] + j * self.dilation[1]
                    found.append((n * H + a) * W + b if 0 <= a < H and 0 <= b < W else -1)
        return np.array(found, np.int32).reshape(-1, self.kernel[0] * self.kernel[1])

    def fields(self) -> dict[str, int]:
        pairs = {
            "{}": self.size,
            "out_{}": self.out_size,
            "kernel_{}": self.kernel,
            "stride_{}": self.stride,
            "pad_{}": self.pad,
            "dilation_{}": self.dilation,
        }
        made = {
            name.format(axis): pair[a] for name, pair in pairs.items() for a, axis in enumerate(("height", "width"))
        }
        return {"images": self.images, **made}


@dataclass
class Problem:
    """A convolution at a list: the rows of y, and for each the rows of x it reads."""

    x: np.ndarray
    w: np.ndarray
    bias: np.ndarray | None
    dy: np.ndarray
    rows: np.ndarray
    neighbours: np.ndarray
    given: dict[str, Any]
    flags: int = 0
    capacity: int | None = None
    out_rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.out_rows = len(self.dy)

    def fields(self) -> dict[str, Any]:
        fields = {
            "sites": len(self.rows),
            "taps": self.w.shape[0],
            "channels": self.w.shape[1],
            "filters": self.w.shape[2],
            "in_rows": len(self.x),
            "out_rows": self.out_rows,
            "flags": self.flags,
            "x": self.x,
            "w": self.w,
            "bias": self.bias,
            **self.given,
        }
        if self.capacity is None:
            return fields
        # What is behind the entries that count must be neither read nor written: numbers that are no row.
        beyond = self.capacity - len(self.rows)
        for name in ("site", "table"):
            if fields.get(name) is not None:
                filler = np.full((beyond, *fields[name].shape[1:]), 1 << 30, np.int32)
                fields[name] = np.concatenate([fields[name], filler])
        return {**fields, "sites": self.capacity, "count": np.array([len(self.rows)], np.int32)}

    def wanted(self) -> dict[str, np.ndarray]:
        x, w, dy = (a.astype(np.float64) for a in (self.x, self.w, self.dy))
        y = np.full((self.out_rows, w.shape[2]), np.nan)
        dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(w.shape[2])
        for row, taps in zip(self.rows, self.neighbours, strict=True):
            y[row] = 0 if self.bias is None else self.bias
            for t, source in enumerate(taps):
                if source >= 0:
                    y[row] += x[source] @ w[t]
            g = np.where(y[row] > 0, dy[row], 0) if self.flags & RELU else dy[row]
            if self.flags & RELU:
                y[row] = np.maximum(y[row], 0)
            db += g
            for t, source in enumerate(taps):
                if source >= 0:
                    dx[source] += w[t] @ g
                    dw[t] += np.outer(x[source], g)
        return {"y": y, "dx": dx, "dw": dw, "db": db}

    def run(self, only: Iterable[str] = GRADIENTS) -> dict[str, np.ndarray]:
        core, fields, dtype = kernels.core("emulated"), self.fields(), self.x.dtype
        y = np.full(self.dy.shape, np.nan, dtype)
        core.call("site_forward", dtype, {**fields, "y": y})
        shapes = {"dx": self.x.shape, "dw": self.w.shape, "db": self.w.shape[2:]}
        grads = {name: np.full(shapes[name], np.nan, dtype) for name in only}
        core.call("site_backward", dtype, {**fields, "y": y, "dy": self.dy, **grads})
        return {"y": y, **grads}


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], dtype: str) -> None:
    """Rows that were not to be written are NaN in both."""
    for name, got in found.items():
        reference = wanted[name]
        np.testing.assert_array_equal(np.isnan(got), np.isnan(reference), err_msg=name)
        if got.size:
            scale = max(1.0, float(np.nanmax(np.abs(reference), initial=0)))
            error = float(np.nanmax(np.abs(got - reference), initial=0)) / scale
            assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"


def check(problem: Problem, only: Iterable[str] = GRADIENTS) -> dict[str, np.ndarray]:
    found = problem.run(only)
    assert_close(found, problem.wanted(), problem.x.dtype.name)
    return found


def values(seed: int, taps: int, channels: int, filters: int, in_rows: int, out_rows: int, dtype: str) -> Any:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(dtype)

    return rng, normal(in_rows, channels), normal(taps, channels, filters), normal(filters), normal(out_rows, filters)


def image_problem(
    image: Image | None = None,
    channels: int = 3,
    filters: int = 4,
    sites: int | None = None,
    dtype: str = "float64",
    shuffled: bool = False,
    bias: bool = True,
    flags: int = 0,
    capacity: int | None = None,
    seed: int = 0,
) -> Problem:
    """Some output positions of an image, all of them when ``sites`` is None; ``capacity`` makes the list longer."""
    image = image or Image()
    taps = image.kernel[0] * image.kernel[1]
    rng, x, w, b, dy = values(seed, taps, channels, filters, image.in_rows, image.out_rows, dtype)
    rows = rng.permutation(image.out_rows)[:sites]
    rows = (rows if shuffled else np.sort(rows)).astype(np.int32)
    given = {"site": rows, **image.fields()}
    return Problem(x, w, b if bias else None, dy, rows, image.neighbours(rows), given, flags, capacity)


def table_problem(
    in_rows: int = 20,
    sites: int = 30,
    taps: int = 5,
    channels: int = 3,
    filters: int = 4,
    out_rows: int | None = None,
    missing: float = 0.4,
    inverse: bool = False,
    dtype: str = "float64",
    flags: int = 0,
    capacity: int | None = None,
    seed: int = 0,
) -> Problem:
    """Random neighbours, none twice within a tap; with ``out_rows`` the entries are rows of y in random order."""
    ends = sites if out_rows is None else out_rows
    rng, x, w, b, dy = values(seed, taps, channels, filters, in_rows, max(ends, capacity or 0), dtype)
    table = np.full((sites, taps), -1, np.int32)
    for t in range(taps):
        readers = rng.permutation(sites)[: min(sites, in_rows)]
        table[readers, t] = rng.permutation(in_rows)[: len(readers)]
    table[rng.random(table.shape) < missing] = -1
    rows = (np.arange(sites) if out_rows is None else rng.permutation(out_rows)[:sites]).astype(np.int32)
    given: dict[str, Any] = {"table": table}
    if out_rows is not None:
        given["site"] = rows
    if inverse:
        given["inverse"] = np.full((in_rows, taps), -1, np.int32)
        for i, t in np.argwhere(table >= 0):
            given["inverse"][table[i, t], t] = i
    return Problem(x, w, b, dy, rows, table, given, flags, capacity)


@pytest.mark.parametrize(
    ("channels", "filters"),
    [(1, 1), (3, 7), (7, 3), (16, 16), (24, 24), (33, 33), (64, 64), (96, 24), (3, 96), (16, 130)],
)
@both_dtypes
def test_channels(channels: int, filters: int, dtype: str) -> None:
    check(image_problem(Image(images=1), channels, filters, sites=20, dtype=dtype))


@pytest.mark.parametrize(
    "image",
    [
        Image(kernel=(1, 1), pad=(0, 0)),
        Image(kernel=(2, 3), pad=(1, 1)),
        Image(kernel=(5, 4), pad=(2, 1)),
        Image(kernel=(1, 5), pad=(0, 2)),
        Image(stride=(2, 2)),
        Image(stride=(3, 1), pad=(0, 2)),
        Image(dilation=(2, 3), pad=(2, 3)),
        Image(kernel=(2, 5), stride=(2, 3), dilation=(3, 2), pad=(3, 1)),
        Image(stride=(2, 2), pad=(0, 0), out=(4, 5)),
        Image(pad=(-1, 0), out=(7, 9)),
        Image(images=3, size=(1, 1), kernel=(3, 2), pad=(1, 1)),
    ],
    ids=str,
)
def test_geometry(image: Image) -> None:
    check(image_problem(image))
    check(image_problem(image, sites=max(image.out_rows // 3, 1), flags=RELU))


@both_dtypes
@pytest.mark.parametrize("flags", [0, RELU], ids=["linear", "relu"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_epilogue(dtype: str, flags: int, bias: bool) -> None:
    found = check(image_problem(sites=40, filters=5, dtype=dtype, flags=flags, bias=bias))
    assert (found["y"] < 0).any() != bool(flags)


def test_an_unsorted_list() -> None:
    check(image_problem(sites=100, shuffled=True, flags=RELU))
    check(image_problem(sites=100, shuffled=True))


@pytest.mark.parametrize("count", [0, 1, 64, 65, 90])
@pytest.mark.parametrize("flags", [0, RELU], ids=["linear", "relu"])
def test_a_list_that_ends_before_its_capacity(count: int, flags: int) -> None:
    check(image_problem(sites=count, capacity=120, flags=flags))
    check(table_problem(in_rows=90, sites=count, capacity=120, flags=flags))


@pytest.mark.parametrize("count", [None, -1, 7], ids=str)
def test_without_sites(count: int | None) -> None:
    problem = image_problem(sites=0)
    if count is not None:
        problem.given["count"] = np.array([count], np.int32)
    found = check(problem)
    assert all((found[name] == 0).all() for name in GRADIENTS)


def test_without_rows() -> None:
    check(table_problem(in_rows=0, sites=0))
    check(table_problem(in_rows=0, sites=5))


@both_dtypes
@pytest.mark.parametrize("inverse", [False, True], ids=["made", "given"])
@pytest.mark.parametrize("flags", [0, RELU], ids=["linear", "relu"])
@pytest.mark.parametrize("out_rows", [None, 50], ids=["entries", "listed"])
def test_table(dtype: str, inverse: bool, flags: int, out_rows: int | None) -> None:
    check(table_problem(dtype=dtype, inverse=inverse, flags=flags, out_rows=out_rows))


@pytest.mark.parametrize(
    ("taps", "channels"), [(1, 1), (27, 1), (81, 1), (81, 2), (33, 3), (40, 16), (70, 33)], ids=str
)
@both_dtypes
def test_many_taps(taps: int, channels: int, dtype: str) -> None:
    """More than the neighbours that are in shared memory at a time."""
    check(table_problem(taps=taps, channels=channels, missing=0.2, dtype=dtype))


def test_taps_that_no_site_has() -> None:
    problem = table_problem(taps=70, channels=16)
    problem.given["table"][:, np.arange(70) % 7 != 3] = -1
    check(problem)


@pytest.mark.parametrize("only", [(), ("dx",), ("dw",), ("db",), ("dx", "db"), ("dw", "db")], ids=str)
@pytest.mark.parametrize("flags", [0, RELU], ids=["linear", "relu"])
def test_gradients_that_are_wanted(only: tuple[str, ...], flags: int) -> None:
    check(image_problem(sites=30, flags=flags), only)
    check(table_problem(flags=flags, inverse=True), only)


@both_dtypes
def test_many_tiles_and_shares(dtype: str) -> None:
    """Several tiles, several slabs in each of several shares of the list."""
    check(image_problem(Image(images=3, size=(19, 18)), channels=4, filters=8, sites=900, dtype=dtype, flags=RELU))


@both_dtypes
def test_unaligned_arrays(dtype: str) -> None:
    problem = image_problem(channels=4, filters=8, sites=50, dtype=dtype)
    for name in ("x", "w", "dy"):
        array = getattr(problem, name)
        moved = np.empty(array.size + 1, dtype)[1:].reshape(array.shape)
        moved[...] = array
        setattr(problem, name, moved)
    check(problem)


@both_dtypes
@pytest.mark.parametrize("flags", [0, RELU], ids=["linear", "relu"])
def test_the_bits_repeat(dtype: str, flags: int) -> None:
    for problem in (image_problem(sites=90, filters=9, dtype=dtype, flags=flags), table_problem(dtype=dtype)):
        first, second = problem.run(), problem.run()
        for name, found in first.items():
            np.testing.assert_array_equal(found, second[name])


def refused(operation: str, fields: dict[str, Any]) -> bool:
    try:
        kernels.core("emulated").call(operation, "float64", fields)
    except errors.EqconvError as error:
        return "a needed array is missing or a size is impossible" in str(error)
    return False


@pytest.mark.parametrize(
    "change",
    [
        {"sites": -1},
        {"sites": 10_000},
        {"taps": 0},
        {"taps": 8},
        {"channels": 0},
        {"filters": 0},
        {"in_rows": 5},
        {"out_rows": 125},
        {"images": -1},
        {"kernel_height": 0},
        {"stride_width": 0},
        {"dilation_height": 0},
        {"site": None},
        {"x": None},
        {"w": None},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(change: dict[str, Any]) -> None:
    problem = image_problem()
    fields = {**problem.fields(), "y": np.zeros(problem.dy.shape), "dy": problem.dy}
    gradients = {"dx": np.zeros_like(problem.x), "dw": np.zeros_like(problem.w)}
    assert refused("site_forward", {**fields, **change})
    assert refused("site_backward", {**fields, **gradients, **change})


def test_results_that_are_missing_are_refused() -> None:
    problem = image_problem(flags=RELU)
    fields = {**problem.fields(), "db": np.zeros(4)}
    assert refused("site_forward", fields)
    assert refused("site_backward", {**fields, "y": np.zeros(problem.dy.shape)})
    assert refused("site_backward", {**fields, "dy": problem.dy})


@dataclass
class Bottleneck:
    """A pre-activation bottleneck at some pixels; ``fields`` are those of the contract."""

    shape: tuple[int, int, int]
    fields: dict[str, Any]
    listed: np.ndarray

    def wanted(self) -> np.ndarray:
        f = {k: a.astype(np.float64) for k, a in self.fields.items() if isinstance(a, np.ndarray) and k != "count"}
        N, H, W = self.shape
        C, M = f["w1"].shape

        def inner(x: np.ndarray) -> np.ndarray:
            a = x if "scale1" not in f else np.maximum(f["scale1"] * x + f["shift1"], 0)
            return np.asarray(np.maximum(f["scale2"] * (a @ f["w1"]) + f["shift2"], 0))

        h2 = np.zeros((N, H + 2, W + 2, M))
        if self.fields["flags"] & ORIGINAL:
            h2 += inner(np.zeros(C))
        h2[:, 1:-1, 1:-1] = inner(f["x"].reshape(N, H, W, C))
        y = np.full((N * H * W, C), np.nan)
        for p in self.listed:
            n, h, w = p // (H * W), p // W % H, p % W
            total = np.einsum("ijm,ijmk->k", h2[n, h : h + 3, w : w + 3], f["w2"].reshape(3, 3, M, M))
            y[p] = f["x"][p] + np.maximum(f["scale3"] * total + f["shift3"], 0) @ f["w3"]
        return y

    def run(self) -> np.ndarray:
        y = np.full(self.fields["x"].shape, np.nan, self.fields["x"].dtype)
        kernels.core("emulated").call("residual_forward", y.dtype, {**self.fields, "y": y})
        return y


def bottleneck(
    shape: tuple[int, int, int] = (2, 7, 9),
    channels: int = 8,
    inner: int = 3,
    sites: int | Iterable[int] = 30,
    flags: int = 0,
    activated: bool = True,
    dtype: str = "float64",
    capacity: int | None = None,
    seed: int = 0,
) -> Bottleneck:
    """``sites`` random pixels, or those given."""
    rng = np.random.default_rng(seed)
    pixels = int(np.prod(shape))
    listed = rng.permutation(pixels)[:sites] if isinstance(sites, int) else np.array(list(sites))
    listed = np.sort(listed).astype(np.int32)
    C, M = channels, inner
    shapes = {
        "x": (pixels, C),
        "scale1": (C,),
        "shift1": (C,),
        "w1": (C, M),
        "scale2": (M,),
        "shift2": (M,),
        "w2": (9, M, M),
        "scale3": (M,),
        "shift3": (M,),
        "w3": (M, C),
    }
    fields: dict[str, Any] = {name: rng.normal(size=of).astype(dtype) for name, of in shapes.items()}
    if not activated:
        del fields["scale1"], fields["shift1"]
    fields |= dict(zip(("images", "height", "width"), shape, strict=True))
    fields |= {"channels": C, "bottleneck": M, "flags": flags, "sites": len(listed), "site": listed}
    if capacity is not None:
        filler = np.full(capacity - len(listed), 1 << 30, np.int32)
        count = np.array([len(listed)], np.int32)
        fields |= {"sites": capacity, "site": np.concatenate([listed, filler]), "count": count}
    return Bottleneck(shape, fields, listed)


def check_bottleneck(problem: Bottleneck) -> np.ndarray:
    y = problem.run()
    assert_close({"y": y}, {"y": problem.wanted()}, y.dtype.name)
    return y


@pytest.mark.parametrize(
    ("channels", "inner"), [(1, 1), (4, 1), (7, 3), (24, 6), (33, 9), (64, 16), (96, 24), (16, 33), (12, 70)], ids=str
)
@both_dtypes
def test_bottleneck_channels(channels: int, inner: int, dtype: str) -> None:
    check_bottleneck(bottleneck(channels=channels, inner=inner, dtype=dtype))


@both_dtypes
@pytest.mark.parametrize("activated", [True, False], ids=["activated", "plain"])
@pytest.mark.parametrize("flags", [0, ORIGINAL], ids=["dense", "original"])
def test_bottleneck_borders(dtype: str, activated: bool, flags: int) -> None:
    """Every pixel of small images, so that all borders are met."""
    check_bottleneck(bottleneck((3, 5, 6), sites=90, flags=flags, activated=activated, dtype=dtype))
    check_bottleneck(bottleneck((2, 1, 3), sites=6, flags=flags, activated=activated, dtype=dtype))
    check_bottleneck(bottleneck((2, 3, 1), sites=6, flags=flags, activated=activated, dtype=dtype))
    check_bottleneck(bottleneck((3, 1, 1), sites=3, flags=flags, activated=activated, dtype=dtype))


def test_the_two_borders_differ_at_the_edge_only() -> None:
    shape = (1, 6, 7)
    dense, original = (check_bottleneck(bottleneck(shape, sites=42, flags=flags)) for flags in (0, ORIGINAL))
    same = (dense == original).all(axis=1).reshape(6, 7)
    assert same[1:-1, 1:-1].all()
    assert not same[0].any()


@pytest.mark.parametrize("sites", [1, 5, 40, 200, 600, 1258], ids=str)
def test_bottleneck_many_segments(sites: int) -> None:
    """Images over several blocks of pixels, their rows ending anywhere."""
    check_bottleneck(bottleneck((2, 17, 37), sites=sites, channels=4, inner=2))
    check_bottleneck(bottleneck((1, 3, 300), sites=sites, channels=4, inner=2))


@pytest.mark.parametrize("pixel", [0, 36, 37, 127, 128, 129, 592, 628], ids=str)
def test_bottleneck_at_a_single_pixel(pixel: int) -> None:
    check_bottleneck(bottleneck((1, 17, 37), sites=[pixel], channels=4, inner=2))


@pytest.mark.parametrize("count", [0, 1, 64, 100])
def test_bottleneck_list_ends_before_its_capacity(count: int) -> None:
    check_bottleneck(bottleneck(sites=count, capacity=120))


def test_bottleneck_without_pixels() -> None:
    check_bottleneck(bottleneck(sites=0))
    check_bottleneck(bottleneck((0, 4, 4), sites=0))


@both_dtypes
@pytest.mark.parametrize("flags", [0, ORIGINAL], ids=["dense", "original"])
def test_the_bits_of_the_bottleneck_repeat(dtype: str, flags: int) -> None:
    problem = bottleneck(sites=100, dtype=dtype, flags=flags)
    np.testing.assert_array_equal(problem.run(), problem.run())


@pytest.mark.parametrize(
    "change",
    [
        {"sites": -1},
        {"sites": 10_000},
        {"images": -1},
        {"channels": 0},
        {"bottleneck": 0},
        *({name: None} for name in ("site", "x", "shift1", "w1", "scale2", "shift2", "w2", "scale3", "shift3", "w3")),
        {"y": None},
    ],
    ids=str,
)
def test_bottlenecks_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    problem = bottleneck()
    assert refused("residual_forward", {**problem.fields, "y": np.zeros_like(problem.fields["x"]), **change})


def test_a_bottleneck_in_place_is_refused() -> None:
    problem = bottleneck()
    assert refused("residual_forward", {**problem.fields, "y": problem.fields["x"]})


def test_a_bottleneck_too_wide_for_shared_memory() -> None:
    problem = bottleneck((1, 2, 2), channels=1, inner=800, sites=1)
    with pytest.raises(errors.EqconvError, match="does not compute this"):
        problem.run()
