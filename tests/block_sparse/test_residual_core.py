"""The compiled bottleneck at a list of pixels, called bare, against the formula in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eqconv_cli import kernels
from eqconv_cli.errors import EqconvError
from tests.block_sparse.test_sites_core import INSTRUCTIONS, POISON, TOLERANCE, Arrays, assert_close

pytestmark = pytest.mark.skipif(bool(kernels.missing("cpu")), reason="; ".join(kernels.missing("cpu")))

ORIGINAL = 2


def problem(
    seed: int,
    channels: int,
    bottleneck: int,
    *,
    images: int = 2,
    size: tuple[int, int] = (12, 15),
    density: float = 0.4,
    short: int = 0,
    flags: int = 0,
    activate: bool = True,
    dtype: str = "float32",
) -> Arrays:
    """A problem; ``short`` entries of the list do not count. Pixels of x that no listed one reads are poison."""
    rng = np.random.default_rng(seed)
    listed = rng.random((images, *size)) < density
    positions = np.flatnonzero(listed).astype(np.int32)
    f: Arrays = {
        "images": images,
        "height": size[0],
        "width": size[1],
        "channels": channels,
        "bottleneck": bottleneck,
        "sites": len(positions),
        "flags": flags,
        "threads": 1,
        "site": positions,
    }
    if short:
        f["count"] = np.array([max(len(positions) - short, 0)], np.int32)
        positions[f["count"][0] :] = 2**31 - 1
        listed.reshape(-1)[:] = False
        listed.reshape(-1)[positions[: f["count"][0]]] = True
    near = np.pad(listed, ((0, 0), (1, 1), (1, 1)))
    read = np.zeros_like(listed)
    for i in range(3):
        for j in range(3):
            read |= near[:, i : i + size[0], j : j + size[1]]
    x = rng.standard_normal((images, *size, channels))
    x[~read] = POISON
    shapes = {
        "scale1": (channels,),
        "shift1": (channels,),
        "w1": (channels, bottleneck),
        "scale2": (bottleneck,),
        "shift2": (bottleneck,),
        "w2": (9, bottleneck, bottleneck),
        "scale3": (bottleneck,),
        "shift3": (bottleneck,),
        "w3": (bottleneck, channels),
    }
    for name, shape in shapes.items():
        width = np.sqrt(max(np.prod(shape[:-1]), 1))
        f[name] = (rng.standard_normal(shape) / width).astype(dtype)
    if not activate:
        f["scale1"] = f["shift1"] = None
    f["x"] = x.astype(dtype)
    f["y"] = np.full(x.shape, 7.5, dtype)
    return f


def expected(f: Arrays) -> np.ndarray:
    """The formula on whole images; pixels that are poison do not matter."""
    g = {name: value.astype(float) for name, value in f.items() if isinstance(value, np.ndarray) and name != "site"}
    x = np.nan_to_num(g["x"], nan=0.0)

    def narrow(x: np.ndarray) -> np.ndarray:
        a = x if f["scale1"] is None else np.maximum(g["scale1"] * x + g["shift1"], 0)
        return np.maximum(g["scale2"] * (a @ g["w1"]) + g["shift2"], 0)

    h2 = narrow(x)
    outside = narrow(np.zeros(f["channels"])) if f["flags"] & ORIGINAL else np.zeros(f["bottleneck"])
    wide = np.empty((f["images"], f["height"] + 2, f["width"] + 2, f["bottleneck"]))
    wide[:] = outside
    wide[:, 1:-1, 1:-1] = h2
    h3 = sum(wide[:, i : i + f["height"], j : j + f["width"]] @ g["w2"][3 * i + j] for i in range(3) for j in range(3))
    done = x + np.maximum(g["scale3"] * h3 + g["shift3"], 0) @ g["w3"]
    y = g["y"].copy()
    count = f["sites"] if f.get("count") is None else f["count"][0]
    at = f["site"][:count]
    rows = (f["images"] * f["height"] * f["width"], f["channels"])
    y.reshape(rows)[at] = done.reshape(rows)[at]
    return y


def run(f: Arrays, dtype: str = "float32", **fields: Any) -> np.ndarray:
    given = {**f, **fields, "y": f["y"].copy()}
    kernels.core("cpu").call("residual_forward", dtype, given)
    return given["y"]


def check(f: Arrays, dtype: str = "float32") -> None:
    got, want = run(f, dtype), expected(f)
    assert_close(got, want, dtype)
    assert (got[want == 7.5] == 7.5).all()


SIZES = [(1, 1), (3, 7), (7, 3), (16, 4), (24, 24), (33, 17), (96, 24), (64, 32), (130, 48), (192, 64), (48, 96)]
OPTIONS: dict[str, Arrays] = {
    "empty": {"density": 0.0},
    "full": {"density": 1.1},
    "sparse": {"density": 0.03, "size": (40, 50)},
    "short": {"short": 20},
    "shorter than nothing": {"short": 30, "density": 0.01},
    "original": {"flags": ORIGINAL},
    "plain input": {"activate": False},
    "plain input, original": {"activate": False, "flags": ORIGINAL},
    "one pixel": {"size": (1, 1), "density": 1.1, "flags": ORIGINAL},
    "one line": {"size": (1, 40), "flags": ORIGINAL},
    "no image": {"images": 0},
    "larger": {"size": (60, 70), "density": 0.8},
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("flags", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, flags, dtype):
    check(problem(1, *size, flags=flags, dtype=dtype), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("flags", INSTRUCTIONS.values(), ids=INSTRUCTIONS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, flags, dtype):
    options = {**options, "flags": options.get("flags", 0) | flags, "dtype": dtype}
    check(problem(2, 40, 12, **options), dtype)


@pytest.mark.parametrize("channels,bottleneck", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("flags", [0, ORIGINAL])
def test_no_channels(channels, bottleneck, flags):
    check(problem(3, channels, bottleneck, flags=flags))


def test_threads_give_the_same_bits():
    for flags in INSTRUCTIONS.values():
        f = problem(4, 64, 40, size=(31, 47), flags=flags)
        alone = run(f)
        for threads in (2, 3, 4):
            assert np.array_equal(run(f, threads=threads), alone)


@pytest.mark.parametrize(
    "fields",
    [
        {"sites": -1},
        {"sites": 10**6},
        {"channels": -1},
        {"bottleneck": -1},
        {"images": 2**40},
        {"height": -1},
        {"threads": -1},
        *(
            {name: None}
            for name in ("site", "x", "shift1", "w1", "scale2", "shift2", "w2", "scale3", "shift3", "w3", "y")
        ),
    ],
    ids=str,
)
def test_impossible(fields):
    with pytest.raises(EqconvError, match="missing or a size is impossible"):
        kernels.core("cpu").call("residual_forward", "float32", {**problem(5, 6, 4), **fields})


@pytest.mark.parametrize("position", [-1, "pixels"])
def test_a_pixel_that_is_not_there(position):
    f = problem(5, 6, 4)
    wrong = f["images"] * f["height"] * f["width"] if position == "pixels" else position
    site = np.append(f["site"][:-1], wrong).astype(np.int32)
    with pytest.raises(EqconvError, match="missing or a size is impossible"):
        kernels.core("cpu").call("residual_forward", "float32", {**f, "site": site})


def test_in_place():
    f = problem(6, 6, 4)
    with pytest.raises(EqconvError, match="missing or a size is impossible"):
        kernels.core("cpu").call("residual_forward", "float32", {**f, "y": f["x"]})
