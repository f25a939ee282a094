"""What a convolution at some pixels costs by each route, and which is the cheapest."""

from __future__ import annotations

from typing import NamedTuple

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


def flops(sizes: Sizes) -> float:
    """Multiplications and additions of the pixels that are asked for."""
    return 2.0 * sizes.pixels * sizes.taps * sizes.channels * sizes.filters
