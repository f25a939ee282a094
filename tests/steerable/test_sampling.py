"""The grid of a kernel, its rings and their frequencies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from eqconv_cli.backends.steerable.sampling import Ring, make_sampling, polar

#: k: radii, sigmas, the highest frequency on each ring.
RINGS = {
    1: ([0], [0.005], [0]),
    2: ([0], [0.005], [0]),
    3: ([0, 1], [0.005, 0.4], [0, 2]),
    4: ([0, 1], [0.005, 0.4], [0, 2]),
    5: ([0, 1, 2], [0.005, 0.6, 0.4], [0, 2, 2]),
    6: ([0, 1, 2], [0.005, 0.6, 0.4], [0, 2, 3]),
    7: ([0, 1, 2, 3], [0.005, 0.6, 0.6, 0.4], [0, 2, 3, 2]),
    8: ([0, 1, 2, 3], [0.005, 0.6, 0.6, 0.4], [0, 2, 3, 6]),
    9: ([0, 1, 2, 3, 4], [0.005, 0.6, 0.6, 0.6, 0.4], [0, 2, 3, 6, 2]),
    11: ([0, 1, 2, 3, 4, 5], [0.005, 0.6, 0.6, 0.6, 0.6, 0.4], [0, 2, 3, 6, 7, 2]),
}


def frequencies(**options: Any) -> list[int]:
    return [math.floor(ring.cutoff) for ring in make_sampling(**options).rings]


@pytest.mark.parametrize("k", RINGS)
def test_default_rings(k: int) -> None:
    radii, sigmas, highest = RINGS[k]
    sampling = make_sampling(k)
    assert [ring.radius for ring in sampling.rings] == pytest.approx(radii, abs=1e-12)
    assert [ring.sigma for ring in sampling.rings] == sigmas
    assert frequencies(kernel_size=k) == highest
    assert sampling.maximum_frequency == max(highest) and sampling.pixels == k * k


@pytest.mark.parametrize(
    ("rule", "expected"),
    [(None, [0, 2, 3, 2]), (-1, [0, 2, 3, 2]), (-2, [0, 2, 3, 1]), (-3, [0, 2, 2, 1]), (3, [0, 3, 6, 9])],
)
def test_rules_of_frequencies(rule: int | None, expected: list[int]) -> None:
    assert frequencies(kernel_size=7, frequencies_cutoff=rule) == expected


def test_frequencies_by_a_number_or_a_function() -> None:
    assert [ring.cutoff for ring in make_sampling(5, frequencies_cutoff=1.5).rings] == [0, 1.5, 3]
    assert [ring.cutoff for ring in make_sampling(5, frequencies_cutoff=lambda r: 4 - r).rings] == [4, 3, 2]
    assert make_sampling(5, frequencies_cutoff=lambda r: math.inf).maximum_frequency == math.inf
    # Half a radius: the remainder is that of real numbers.
    ring = make_sampling(7, rings=[1.5], sigma=0.5).rings[0]
    assert ring.cutoff == min(3.0, 3.0 - 2.5 % 2)


def test_dilation_moves_points_and_rings_but_not_the_outermost_radius_of_the_rule() -> None:
    sampling = make_sampling(3, dilation=2)
    assert [ring.radius for ring in sampling.rings] == [0, 2]
    assert np.array_equal(sampling.points(), 2 * make_sampling(3).points())
    assert frequencies(kernel_size=3, dilation=2) == [0, 3]
    assert frequencies(kernel_size=3, dilation=2, scale_cutoff_with_dilation=True) == [0, 2]
    assert frequencies(kernel_size=7, dilation=3, scale_cutoff_with_dilation=True) == frequencies(kernel_size=7)


def test_points_go_right_and_up() -> None:
    points = make_sampling(3).points()
    assert points.tolist() == [[x, y] for y in (1, 0, -1) for x in (-1, 0, 1)]
    assert make_sampling(2).points().tolist() == [[-0.5, 0.5], [0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]]


def test_polar_coordinates() -> None:
    distances, angles = make_sampling(3).polar()
    assert distances[4] == angles[4] == 0
    assert angles[5] == 0 and angles[1] == pytest.approx(math.pi / 2) and angles[2] == pytest.approx(math.pi / 4)
    assert angles[3] == pytest.approx(math.pi) and distances[0] == pytest.approx(math.sqrt(2))
    near, far = polar(np.array([[1e-10, -1e-10], [1e-8, 0]]))[0]
    assert near == 0 and far == 1e-8


def test_profiles_are_gaussians_of_the_distance() -> None:
    ring = Ring(1.5, 0.7, 2)
    at = np.linspace(0, 4, 9)
    assert np.allclose(ring.profile(at), np.exp(-((at - 1.5) ** 2) / (2 * 0.49)))


def test_given_rings_and_sigmas() -> None:
    sampling = make_sampling(5, rings=[0, 1, 2.5], sigma=0.5)
    assert [(ring.radius, ring.sigma) for ring in sampling.rings] == [(0, 0.5), (1, 0.5), (2.5, 0.5)]
    assert [ring.sigma for ring in make_sampling(5, sigma=[0.1, 0.2, 0.3]).rings] == [0.1, 0.2, 0.3]
    assert [ring.sigma for ring in make_sampling(5, rings=[1, 2, 0]).rings] == [0.6, 0.6, 0.005]
    # Up to the corner.
    assert make_sampling(5, rings=[2 * math.sqrt(2)]).rings[0].radius == 2 * math.sqrt(2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, "kernel_size=0: an integer is needed, 1 or more"),
        ({"kernel_size": 2.0}, ValueError, r"kernel_size=2\.0: an integer is needed, 1 or more"),
        ({"kernel_size": True}, ValueError, "kernel_size=True: an integer is needed"),
        ({"kernel_size": (3, 3)}, ValueError, r"kernel_size=\(3, 3\): kernels that are not square are not supported"),
        ({"kernel_size": [3, 5]}, ValueError, r"kernel_size=\[3, 5\]: kernels that are not square are not supported"),
        ({"dilation": 0}, ValueError, "dilation=0: an integer is needed, 1 or more"),
        ({"dilation": (1, 2)}, ValueError, r"dilation=\(1, 2\): kernels that are not square are not supported"),
        ({"rings": []}, ValueError, r"rings=\[\]: at least one radius is needed"),
        ({"rings": [3.0]}, ValueError, r"rings has the radius 3\.0: allowed for k=5, dilation=1: 0 to 2\.82843"),
        ({"rings": [-1]}, ValueError, r"rings has the radius -1\.0: allowed"),
        ({"rings": [math.nan]}, ValueError, "rings has the radius nan: allowed"),
        ({"sigma": 0}, ValueError, r"sigma=0\.0: every sigma must be above 0"),
        ({"sigma": [0.1, -0.2, 0.3]}, ValueError, r"sigma=-0\.2: every sigma must be above 0"),
        ({"sigma": math.nan}, ValueError, "sigma=nan: every sigma must be above 0"),
        ({"sigma": math.inf}, ValueError, "sigma=inf: every sigma must be above 0"),
        ({"sigma": [0.5, 0.5]}, ValueError, "sigma has 2 numbers: expected one, or 3, one for each ring"),
        ({"frequencies_cutoff": "3r"}, TypeError, "frequencies_cutoff='3r': a number, a function of the radius, or"),
        ({"frequencies_cutoff": True}, TypeError, "frequencies_cutoff=True: a number, a function"),
        ({"frequencies_cutoff": math.nan}, ValueError, "frequencies_cutoff=nan: a number is needed"),
        ({"frequencies_cutoff": lambda r: math.nan}, ValueError, "frequencies_cutoff gives nan at radius 0"),
    ],
)
def test_what_is_not_allowed(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_sampling(**{"kernel_size": 5, **options})


def test_numpy_numbers_are_numbers() -> None:
    assert make_sampling(np.int64(5), np.int32(1), sigma=np.float64(0.5)).rings[0].sigma == 0.5  # type: ignore[arg-type]
    assert make_sampling(5, frequencies_cutoff=np.float32(3)).rings[1].cutoff == 3
    assert make_sampling(5, frequencies_cutoff=np.int64(3)).rings[1].cutoff == 3  # type: ignore[arg-type]
