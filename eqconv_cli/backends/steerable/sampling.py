"""Where kernels are sampled: the points of the grid, the rings, and the frequencies that each ring can hold.

The rules are those of QUVA-Lab/e2cnn ``nn/modules/r2_conv/basisexpansion.py`` and ``r2convolution.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from eqconv_cli.maths.planar_groups import Matrix

#: A pixel nearer to the centre than this is the origin.
ORIGIN = 1e-9

Cutoff = None | int | float | Callable[[float], float]


class Ring(NamedTuple):
    """A Gaussian of the distance, exp(-(r - radius)^2 / (2 sigma^2)), and the highest frequency kept on it."""

    radius: float
    sigma: float
    cutoff: float

    def profile(self, distances: Matrix) -> Matrix:
        """Its value at distances from the centre."""
        return np.exp(-((distances - self.radius) ** 2) / (2 * self.sigma**2))


@dataclass(frozen=True)
class Sampling:
    """A square kernel of ``size`` pixels ``dilation`` apart, and its rings."""

    size: int
    dilation: int
    rings: tuple[Ring, ...]

    @property
    def pixels(self) -> int:
        """size^2."""
        return self.size**2

    def points(self) -> Matrix:
        """[pixels, 2], x to the right and y up; pixel i * size + j is row i, column j."""
        centre = self.dilation * (self.size - 1) / 2
        at = np.arange(self.size) * float(self.dilation)
        rows, columns = np.meshgrid(at, at, indexing="ij")
        return np.stack([columns.ravel() - centre, centre - rows.ravel()], axis=1)

    def polar(self) -> tuple[Matrix, Matrix]:
        """Distances and angles of the points; the angle of the origin is 0."""
        return polar(self.points())

    @property
    def maximum_frequency(self) -> float:
        """The highest frequency that any ring holds, as a whole number."""
        most = max(ring.cutoff for ring in self.rings)
        return most if math.isinf(most) else math.floor(most)


def polar(points: Matrix) -> tuple[Matrix, Matrix]:
    """Distances and angles of points [n, 2]; the angle of the origin is 0."""
    distances = np.hypot(points[:, 0], points[:, 1])
    inner = distances < ORIGIN
    return np.where(inner, 0.0, distances), np.where(inner, 0.0, np.arctan2(points[:, 1], points[:, 0]))


def make_sampling(
    kernel_size: int,
    dilation: int = 1,
    rings: Sequence[float] | None = None,
    sigma: float | Sequence[float] | None = None,
    frequencies_cutoff: Cutoff = None,
    scale_cutoff_with_dilation: bool = False,
) -> Sampling:
    """The grid and its rings; what is not given is e2cnn's default.

    Args:
        kernel_size: k, one number: kernels are square.
        dilation: pixels from one tap to the next.
        rings: radii; default ceil(k / 2) from 0 to floor((k - 1) / 2) dilations.
        sigma: one for all rings or one each; default 0.6, on the last ring 0.4, on a ring of radius 0 0.005.
        frequencies_cutoff: the highest frequency at radius r: None or -1, -2, -3 for e2cnn's rules of these names, a
            number f for f r, or a function of r.
        scale_cutoff_with_dilation: the cut-off at r / dilation instead of r, so that a kernel has as many weights
            whatever its dilation.

    Raises:
        TypeError, ValueError: an argument is not allowed.
    """
    k, step = _positive("kernel_size", kernel_size), _positive("dilation", dilation)
    radii = _radii(k, step, rings)
    sigmas = _sigmas(radii, sigma)
    cutoff = _cutoff(k, frequencies_cutoff)
    scale = step if scale_cutoff_with_dilation else 1
    made = []
    for radius, width in zip(radii, sigmas, strict=True):
        most = float(cutoff(radius / scale))
        if math.isnan(most):
            raise ValueError(f"frequencies_cutoff gives nan at radius {radius}: a number is needed")
        made.append(Ring(radius, width, most))
    return Sampling(k, step, tuple(made))


def _positive(name: str, value: Any) -> int:
    if isinstance(value, (tuple, list)):
        raise ValueError(f"{name}={value!r}: kernels that are not square are not supported, give one integer")
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r}: an integer is needed, 1 or more")
    return int(value)


def _radii(k: int, step: int, rings: Sequence[float] | None) -> list[float]:
    if rings is None:
        return [float(r) for r in np.linspace(0, (k - 1) // 2, math.ceil(k / 2)) * step]
    radii = [float(r) for r in rings]
    if not radii:
        raise ValueError("rings=[]: at least one radius is needed")
    most = step * (k - 1) / 2 * math.sqrt(2)
    for radius in radii:
        if not 0 <= radius <= most + 1e-12:
            raise ValueError(f"rings has the radius {radius}: allowed for k={k}, dilation={step}: 0 to {most:.6g}")
    return radii


def _sigmas(radii: Sequence[float], sigma: float | Sequence[float] | None) -> list[float]:
    if sigma is None:
        widths = [0.6] * (len(radii) - 1) + [0.4]
        return [0.005 if radius == 0 else width for radius, width in zip(radii, widths, strict=True)]
    widths = (
        [float(sigma)] * len(radii) if isinstance(sigma, (int, float, np.number)) else [float(width) for width in sigma]
    )
    if len(widths) != len(radii):
        raise ValueError(f"sigma has {len(widths)} numbers: expected one, or {len(radii)}, one for each ring")
    for width in widths:
        if not width > 0 or math.isinf(width):
            raise ValueError(f"sigma={width}: every sigma must be above 0")
    return widths


def _cutoff(k: int, given: Cutoff) -> Callable[[float], float]:
    if callable(given):
        return given
    if given is None:
        given = -1
    if isinstance(given, bool) or not isinstance(given, (int, float, np.number)):
        raise TypeError(f"frequencies_cutoff={given!r}: a number, a function of the radius, or None is needed")
    if math.isnan(given):
        raise ValueError("frequencies_cutoff=nan: a number is needed")
    outermost = k // 2
    if given in (-1, -2):
        last = 2.0 if given == -1 else 1.0

        def by_rule(r: float) -> float:
            if r == 0:
                return 0.0
            return min(2 * r, last) if r == outermost else min(2 * r, 2 * r - ((r + 1) % 2))

        return by_rule
    if given == -3:
        return lambda r: 0.0 if r == 0 else 1.0 if r == outermost else 2.0
    factor = float(given)
    return lambda r: factor * r if r else 0.0
