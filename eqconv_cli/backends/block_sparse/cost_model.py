"""What a convolution at some pixels or on sites costs by each route, and which is the cheapest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

TILE = 8


class Sizes(NamedTuple):
    """What there is to compute."""

    #: Output pixels that are asked for, those of the tiles of 8 by 8 that hold one, and all.
    pixels: int
    tile_pixels: int
    outputs: int
    taps: int
    channels: int
    filters: int


class SiteSizes(NamedTuple):
    """What a convolution on sites has to compute."""

    #: Output sites, the pairs of sites that all taps join, and the places of the strided convolution's output.
    sites: int
    pairs: int
    places: int
    taps: int


class Choice(NamedTuple):
    """A version and why."""

    version: str
    reason: str


#: Seconds for an output pixel that a composition computes, over those of the framework's dense convolution: 3x3, 24 and
#: 64 channels, a tenth and half of the pixels, float32, one core with AVX-512. They vary by a factor of 2 with the
#: channels and the mask; what a route moves around its products weighs most where channels are few.
RELATIVE = {
    "numpy": {"dense": 1.0, "blocks": 1.8, "matmul": 2.4, "rulebook": 2.5},
    "torch": {"dense": 1.0, "blocks": 2.5, "matmul": 5.0, "rulebook": 6.0},
    "tensorflow": {"dense": 1.0, "blocks": 4.0, "matmul": 8.0, "rulebook": 12.0},
}


def sizes(pixels: int, tiles: int, outputs: int, w: Sequence[int]) -> Sizes:
    """The sizes of a convolution by a kernel [kh, kw, C, K] at ``pixels`` of ``outputs`` pixels, in so many tiles.

    Tiles reach past the edge of the image, but what is computed is never more than all of it.
    """
    kh, kw, channels, filters = w
    return Sizes(pixels, min(tiles * TILE**2, outputs), outputs, kh * kw, channels, filters)


def tiles_of(pixels: npt.NDArray[Any], grid: Sequence[int]) -> int:
    """The number of tiles that hold one of the pixels, flat positions in (N, Hout, Wout)."""
    image, row, column = np.unravel_index(pixels, tuple(grid))
    places = np.stack([image, row // TILE, column // TILE], 1)
    return len(np.unique(places, axis=0))


def choose(sizes: Sizes, framework: str, fused: bool) -> Choice:
    """The version to take for :func:`masked_conv2d`.

    Args:
        sizes: of the problem.
        framework: "numpy", "torch" or "tensorflow".
        fused: whether the compiled kernels are there.
    """
    if fused:
        return Choice("fused", f"the compiled kernel computes the {sizes.pixels} pixels and nothing else")
    count = {
        "dense": sizes.outputs,
        "blocks": sizes.tile_pixels,
        "matmul": sizes.pixels,
        "rulebook": sizes.pixels,
    }
    work = {version: factor * count[version] for version, factor in RELATIVE[framework].items()}
    best = min(work, key=work.__getitem__)
    share = work[best] / max(sizes.outputs, 1)
    return Choice(best, f"{count[best]} of {sizes.outputs} pixels, about {share:.2f} of a dense convolution's time")


#: Seconds for a product of a channel with a filter, over those of the framework's dense route: 3x3 on a tenth and half
#: of 128 x 128 places and 3x3x3 on a fiftieth and a tenth of 32 x 32 x 32, 16 and 64 channels, float32, one core;
#: geometric means. Single ones are far from them: up to 6 times in NumPy and PyTorch, and 38 times in TensorFlow where
#: a tap has few pairs.
SITE_RELATIVE = {
    "numpy": {"dense": 1.0, "rulebook": 4.2, "table": 1.4},
    "torch": {"dense": 1.0, "rulebook": 4.6, "table": 0.7},
    "tensorflow": {"dense": 1.0, "rulebook": 60.0, "table": 4.7},
}


def choose_sites(sizes: SiteSizes, framework: str, fused: bool) -> Choice:
    """The version to take for a convolution on sites; arguments as for :func:`choose`."""
    if fused:
        return Choice("fused", f"the compiled kernel computes the {sizes.pairs} pairs of sites and nothing else")
    count = {
        "dense": sizes.places * sizes.taps,
        "rulebook": sizes.pairs,
        "table": sizes.sites * sizes.taps,
    }
    work = {version: factor * count[version] for version, factor in SITE_RELATIVE[framework].items()}
    best = min(work, key=work.__getitem__)
    share = work[best] / max(count["dense"], 1)
    return Choice(best, f"{count[best]} of {count['dense']} products, about {share:.2f} of a dense convolution's time")


def flops(sizes: Sizes) -> float:
    """Multiplications and additions of the pixels that are asked for."""
    return 2.0 * sizes.pixels * sizes.taps * sizes.channels * sizes.filters
