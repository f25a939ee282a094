"""The compiled convolution at a list of sites, called bare, against plain loops in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eqconv_cli import kernels
from eqconv_cli.errors import EqconvError

Arrays = dict[str, Any]

pytestmark = pytest.mark.skipif(bool(kernels.missing("cpu")), reason="; ".join(kernels.missing("cpu")))

RELU = 1
INSTRUCTIONS = {"best": 0, "avx512": 64, "avx2": 16, "portable": 32}
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
#: Stands for what must not be read, or not be written.
POISON = np.nan


def output_size(size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
    return max((size + 2 * pad - (kernel - 1) * dilation - 1) // stride + 1, 0)


def neighbours(f: Arrays) -> np.ndarray:
    """[entries that count, taps]: the row of x, or -1."""
    count = f["sites"] if f.get("count") is None else int(f["count"][0])
    if f.get("table") is not None:
        return f["table"][:count]
    rows = np.full((count, f["taps"]), -1)
    for s, position in enumerate(f["site"][:count]):
        n, h, w = np.unravel_index(position, (f["images"], f["out_height"], f["out_width"]))
        for i in range(f["kernel_height"]):
            for j in range(f["kernel_width"]):
                row = h * f["stride_height"] - f["pad_height"] + i * f["dilation_height"]
                column = w * f["stride_width"] - f["pad_width"] + j * f["dilation_width"]
                if 0 <= row < f["height"] and 0 <= column < f["width"]:
                    rows[s, i * f["kernel_width"] + j] = (n * f["height"] + row) * f["width"] + column
    return rows


def listed(f: Arrays, count: int) -> np.ndarray:
    return np.arange(count) if f.get("site") is None else f["site"][:count]


def expected_forward(f: Arrays, before: np.ndarray) -> np.ndarray:
    rows, x, w = neighbours(f), f["x"].astype(float), f["w"].astype(float)
    y = before.astype(float)
    at = listed(f, len(rows))
    y[at] = 0 if f.get("bias") is None else f["bias"]
    for t in range(f["taps"]):
        there = rows[:, t] >= 0
        y[at[there]] += x[rows[there, t]] @ w[t]
    if f["flags"] & RELU:
        y[at] = np.maximum(y[at], 0)
    return y


def expected_backward(f: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, x, w = neighbours(f), f["x"].astype(float), f["w"].astype(float)
    at = listed(f, len(rows))
    g = f["dy"][at].astype(float)
    if f["flags"] & RELU:
        g = np.where(f["y"][at] > 0, g, 0)
    dx, dw = np.zeros(x.shape), np.zeros(w.shape)
    for t in range(f["taps"]):
        there = rows[:, t] >= 0
        np.add.at(dx, rows[there, t], g[there] @ w[t].T)
        dw[t] = x[rows[there, t]].T @ g[there]
    return dx, dw, g.sum(axis=0)


def image_form(
    seed: int,
    channels: int,
    filters: int,
    *,
    images: int = 1,
    size: tuple[int, int] = (13, 17),
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    pad: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    density: float = 0.5,
    shuffled: bool = False,
    short: int = 0,
    flags: int = 0,
    bias: bool = True,
    dtype: str = "float32",
) -> Arrays:
    """A problem; ``short`` entries of the list do not count. Rows of x that no site reads are poison."""
    rng = np.random.default_rng(seed)
    out = [output_size(*axis) for axis in zip(size, kernel, stride, pad, dilation, strict=True)]
    positions = np.flatnonzero(rng.random(images * out[0] * out[1]) < density).astype(np.int32)
    if shuffled:
        rng.shuffle(positions)
    f: Arrays = {
        "sites": len(positions),
        "taps": kernel[0] * kernel[1],
        "channels": channels,
        "filters": filters,
        "in_rows": images * size[0] * size[1],
        "out_rows": images * out[0] * out[1],
        "images": images,
        "flags": flags,
        "threads": 1,
        "site": positions,
    }
    pairs = {"": size, "out_": out, "kernel_": kernel, "stride_": stride, "pad_": pad, "dilation_": dilation}
    for name, pair in pairs.items():
        f[f"{name}height"], f[f"{name}width"] = pair
    if short:
        f["count"] = np.array([max(len(positions) - short, 0)], np.int32)
        positions[len(positions) - short :] = 2**31 - 1
    return with_arrays(rng, f, bias, dtype)


def table_form(
    seed: int,
    channels: int,
    filters: int,
    *,
    sites: int = 150,
    in_rows: int = 170,
    taps: int = 9,
    present: float = 0.3,
    short: int = 0,
    flags: int = 0,
    bias: bool = True,
    dtype: str = "float32",
) -> Arrays:
    rng = np.random.default_rng(seed)
    table = np.stack([rng.permutation(in_rows)[:sites] for _ in range(taps)], axis=1)
    table = np.where(rng.random(table.shape) < present, table, -1).astype(np.int32)
    f: Arrays = {
        "sites": sites,
        "taps": taps,
        "channels": channels,
        "filters": filters,
        "in_rows": in_rows,
        "out_rows": sites,
        "flags": flags,
        "threads": 1,
        "table": table,
    }
    if short:
        f["count"] = np.array([sites - short], np.int32)
        table[sites - short :] = 2**31 - 1
    return with_arrays(rng, f, bias, dtype)


def with_arrays(rng: np.random.Generator, f: Arrays, bias: bool, dtype: str) -> Arrays:
    rows = neighbours(f)
    x = rng.standard_normal((f["in_rows"], f["channels"]))
    x[np.setdiff1d(np.arange(f["in_rows"]), rows)] = POISON
    f["x"] = x.astype(dtype)
    f["w"] = (rng.standard_normal((f["taps"], f["channels"], f["filters"])) / np.sqrt(f["taps"])).astype(dtype)
    f["bias"] = rng.standard_normal(f["filters"]).astype(dtype) if bias else None
    f["y"] = np.full((f["out_rows"], f["filters"]), 7.5, dtype)
    return f


def assert_close(got: np.ndarray, want: np.ndarray, dtype: str) -> None:
    assert got.shape == want.shape
    assert got.dtype == dtype
    if got.size:
        assert np.isfinite(got).all()
        error = np.abs(got - want).max()
        allowed = TOLERANCE[dtype] * max(1.0, np.abs(want).max())
        assert error <= allowed, f"{error} > {allowed}"


def forward(f: Arrays, dtype: str = "float32", **fields: Any) -> np.ndarray:
    given = {**f, **fields}
    given["y"] = f["y"].copy()
    kernels.core("cpu").call("site_forward", dtype, given)
    return given["y"]


def check_forward(f: Arrays, dtype: str = "float32", **fields: Any) -> None:
    given = {**f, **fields}
    got, want = forward(given, dtype), expected_forward(given, f["y"])
    assert_close(got, want, dtype)
    untouched = np.setdiff1d(np.arange(f["out_rows"]), listed(f, len(neighbours(f))))
    assert (got[untouched] == f["y"][untouched]).all()


def with_cotangent(f: Arrays) -> Arrays:
    """Unlisted rows of dy are poison; y is what forward gives."""
    rng = np.random.default_rng(99)
    at = listed(f, len(neighbours(f)))
    dy = np.full(f["y"].shape, POISON, f["y"].dtype)
    dy[at] = rng.standard_normal((len(at), f["filters"]))
    return {**f, "y": expected_forward(f, f["y"]).astype(f["y"].dtype), "dy": dy}


def backward(f: Arrays, dtype: str = "float32", wanted: str = "dx dw db", **fields: Any) -> tuple[Any, ...]:
    like = {"dx": "x", "dw": "w"}
    made = {
        name: np.full(f[like[name]].shape if name in like else f["filters"], POISON, dtype) for name in wanted.split()
    }
    kernels.core("cpu").call("site_backward", dtype, {**f, **fields, **made})
    return tuple(made.get(name) for name in ("dx", "dw", "db"))


def check_backward(f: Arrays, dtype: str = "float32", **fields: Any) -> None:
    f = with_cotangent({**f, **fields})
    for got, want in zip(backward(f, dtype), expected_backward(f), strict=True):
        assert_close(got, want, dtype)


def inverse(f: Arrays) -> np.ndarray:
    made = np.full((f["in_rows"], f["taps"]), -1, np.int32)
    for entry, rows in enumerate(neighbours(f)):
        for tap in np.flatnonzero(rows >= 0):
            made[rows[tap], tap] = entry
    return made


#: Enough sites for several chunks of each kind.
MANY: dict[Any, Arrays] = {image_form: {"size": (31, 47)}, table_form: {"sites": 1000, "in_rows": 1100}}
SIZES = [
    *((c, k) for c in (1, 3, 7, 16, 24, 33) for k in (1, 3, 7, 16, 24, 33, 48)),
    (48, 64),
    (64, 96),
    (96, 130),
    (130, 7),
]
GEOMETRIES: dict[str, Arrays] = {
    "1x1": {"kernel": (1, 1), "pad": (0, 0)},
    "valid": {"pad": (0, 0)},
    "5x2": {"kernel": (5, 2), "pad": (2, 1)},
    "1x4": {"kernel": (1, 4), "pad": (0, 3), "images": 2},
    "stride": {"stride": (2, 3), "images": 3},
    "stride beyond the kernel": {"kernel": (2, 2), "stride": (3, 4), "pad": (0, 0)},
    "dilation": {"dilation": (2, 3), "pad": (2, 3)},
    "all": {"kernel": (4, 3), "stride": (3, 2), "pad": (5, 2), "dilation": (2, 3), "images": 2},
    "wide padding": {"pad": (6, 9)},
    "one pixel": {"size": (1, 1)},
    "larger": {"size": (45, 61), "density": 0.9},
}
LISTS: dict[str, Arrays] = {
    "empty": {"density": 0.0},
    "full": {"density": 1.1},
    "sparse": {"density": 0.05, "size": (40, 50)},
    "shuffled": {"shuffled": True, "images": 2},
    "short": {"short": 20},
    "shorter than nothing": {"short": 10, "density": 0.02},
    "relu": {"flags": RELU},
    "no bias": {"bias": False},
}
TABLES: dict[str, Arrays] = {
    "few": {"present": 0.1},
    "most": {"present": 0.9},
    "all": {"present": 1.1},
    "none": {"present": 0.0},
    "one tap": {"taps": 1, "present": 0.5},
    "3-D": {"taps": 27, "sites": 900, "in_rows": 1000},
    "short": {"short": 33},
    "relu": {"flags": RELU},
    "no site": {"sites": 0},
    "no row": {"sites": 0, "in_rows": 0},
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("flags", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, flags, dtype):
    for f in (image_form(1, *size, flags=flags | RELU, dtype=dtype), table_form(1, *size, flags=flags, dtype=dtype)):
        check_forward(f, dtype)
        check_backward(f, dtype)


@pytest.mark.parametrize("flags", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
@pytest.mark.parametrize("options", [*GEOMETRIES.values(), *LISTS.values()], ids=[*GEOMETRIES, *LISTS])
def test_images(options, flags):
    options = {**options, "flags": options.get("flags", 0) | flags}
    for dtype, size in (("float32", (12, 20)), ("float64", (5, 9))):
        f = image_form(2, *size, dtype=dtype, **options)
        check_forward(f, dtype)
        check_backward(f, dtype)


@pytest.mark.parametrize("flags", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
@pytest.mark.parametrize("options", TABLES.values(), ids=TABLES)
def test_tables(options, flags):
    options = {**options, "flags": options.get("flags", 0) | flags}
    for dtype, size in (("float32", (12, 20)), ("float64", (5, 9))):
        f = table_form(4, *size, dtype=dtype, **options)
        check_forward(f, dtype)
        check_backward(f, dtype)
        check_backward(f, dtype, inverse=inverse(f))


@pytest.mark.parametrize("flags", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
def test_many_channels(flags):
    """Weights of a tap that are cut into pieces of channels."""
    for f in (image_form(6, 700, 40, size=(7, 9), flags=flags), table_form(6, 700, 40, flags=flags)):
        check_forward(f)
        check_backward(f)
    check_backward(table_form(6, 40, 700, flags=flags))


@pytest.mark.parametrize("channels,filters", [(0, 5), (5, 0), (0, 0)])
def test_no_channels_or_filters(channels, filters):
    for f in (image_form(7, channels, filters), table_form(7, channels, filters)):
        check_forward(f)
        check_backward(f)


@pytest.mark.parametrize("make", [image_form, table_form])
def test_threads_give_the_same_bits(make):
    for flags in INSTRUCTIONS.values():
        f = make(8, 24, 40, flags=flags, **MANY[make])
        g = with_cotangent(f)
        alone, gradients = forward(f), backward(g)
        for threads in (2, 3, 4):
            assert np.array_equal(forward(f, threads=threads), alone)
            for got, want in zip(backward(g, threads=threads), gradients, strict=True):
                assert np.array_equal(got, want)


@pytest.mark.parametrize("wanted", ["dx", "dw", "db", "dx db", "dw db", ""])
@pytest.mark.parametrize("make", [image_form, table_form])
def test_gradients_that_are_not_wanted(make, wanted):
    f = with_cotangent(make(11, 12, 20))
    everything = backward(f)
    for name, got, want in zip(("dx", "dw", "db"), backward(f, wanted=wanted), everything, strict=True):
        assert (got is not None) == (name in wanted)
        assert got is None or np.array_equal(got, want)


def test_neighbouring_poison_stays_out():
    """Infinite and undefined numbers in rows that no site reads do not reach a sum, whatever shares a register."""
    f = image_form(9, 24, 24, density=0.02, size=(40, 60))
    f["x"][np.isnan(f["x"])] = np.inf
    check_forward(f)


@pytest.mark.parametrize(
    "fields",
    [
        {"sites": -1},
        {"channels": -1},
        {"filters": -1},
        {"taps": 8},
        {"taps": 0},
        {"in_rows": 3},
        {"out_rows": 3},
        {"kernel_height": 0},
        {"stride_width": 0},
        {"dilation_height": 0},
        {"pad_width": -1},
        {"images": -1},
        {"stride_height": 2**40},
        {"threads": -1},
        {"x": None},
        {"w": None},
        {"y": None},
        {"site": None},
        {"site": -1},
        {"site": 2**31 - 1},
    ],
    ids=str,
)
def test_impossible(fields):
    f = image_form(10, 4, 4)
    if isinstance(fields.get("site"), int):
        fields = {"site": np.append(f["site"][:-1], fields["site"]).astype(np.int32)}
    with pytest.raises(EqconvError, match="missing or a size is impossible"):
        kernels.core("cpu").call("site_forward", "float32", {**f, **fields})
    made = {"dx": np.empty_like(f["x"]), "dw": np.empty_like(f["w"]), "dy": np.zeros_like(f["y"])}
    with pytest.raises(EqconvError, match="missing or a size is impossible"):
        kernels.core("cpu").call("site_backward", "float32", {**f, "flags": RELU, **made, **fields})
