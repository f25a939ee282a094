from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqconv_cli.engine.comparison import compare, same_arrays

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("actual", "expected", "passed"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0 + 1e-6], [1.0, 2.0], True),
        ([1.0, 2.1], [1.0, 2.0], False),
        ([1.0, NAN], [1.0, 2.0], False),
        ([NAN, NAN], [1.0, 2.0], False),
        ([1.0, INF], [1.0, 2.0], False),
        ([1.0, NAN], [1.0, NAN], True),
        ([1.0, INF], [1.0, NAN], True),
        ([1.0, 2.0], [1.0, NAN], False),
        ([NAN, 2.0], [1.0, NAN], False),
    ],
)
def test_verdicts(actual: list[float], expected: list[float], passed: bool) -> None:
    part = compare("y", np.array(actual), np.array(expected), 1e-5, 1.0)
    assert part.passed is passed
    assert bool(part.detail) is not passed


def test_shapes_must_be_equal_even_where_they_broadcast() -> None:
    part = compare("y", np.zeros((3, 1)), np.zeros(3), 1e-5, 1.0)
    assert not part.passed
    assert part.detail == "has shape [3, 1], expected [3]"


def test_error_is_relative_to_the_largest_value_but_not_below_the_floor() -> None:
    part = compare("y", np.array([0.0, 100.001]), np.array([0.0, 100.0]), 1e-4, 1.0)
    assert part.max_rel == pytest.approx(1e-5)
    small = compare("y", np.array([2e-6]), np.array([1e-6]), 1e-4, 1e-3)
    assert small.max_rel == pytest.approx(1e-3)


def test_detail_of_a_failure() -> None:
    expected = np.ones((10, 10))
    actual = expected.copy()
    actual[3, 4] = 1.5
    part = compare("y", actual, expected, 1e-5, 1.0)
    assert part.detail.startswith("is 1.5 at [3, 4], expected 1;")
    assert "1.00% above tolerance" in part.detail
    assert "bias +5.0e-03" in part.detail


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e3))
def test_whatever_is_above_tolerance_fails(value: float, factor: float) -> None:
    scale = max(1.0, abs(value))
    part = compare("y", np.array([value + (1 + factor) * 1e-3 * scale]), np.array([value]), 1e-3, 1.0)
    assert not part.passed


@pytest.mark.parametrize(
    ("actual", "expected", "passed"),
    [
        (np.array([1, 2], np.int16), np.array([1, 2]), True),
        (np.array([1, 2], np.uint8), np.array([1, 2]), True),
        (np.array([1, 3]), np.array([1, 2]), False),
        (np.array([1.0, 2.0]), np.array([1, 2]), False),
        (np.array([True, True]), np.array([1, 1]), False),
        (np.array([True, False]), np.array([True, False]), True),
        (np.array([True, True]), np.array([True, False]), False),
        (np.array([1, 0]), np.array([True, False]), False),
        (np.array([2**60 + 1]), np.array([2**60]), False),
    ],
)
def test_integers_and_booleans_are_exact_whatever_the_tolerance(
    actual: np.ndarray, expected: np.ndarray, passed: bool
) -> None:
    part = compare("i", actual, expected, 1e3, 1.0)
    assert part.passed is passed
    assert part.tolerance == 0.0
    assert bool(part.detail) is not passed


@pytest.mark.parametrize(
    ("actual", "expected", "passed"),
    [
        ([1.0, NAN, INF], [1.0, NAN, INF], True),
        ([1.0, INF], [1.0, NAN], False),
        ([1.0, -INF], [1.0, INF], False),
        ([1.0 + 2.0**-52], [1.0], False),
        ([5e-324], [0.0], False),
    ],
)
def test_at_tolerance_0_everything_is_equal(actual: list[float], expected: list[float], passed: bool) -> None:
    assert compare("y", np.array(actual), np.array(expected), 0.0, 1.0).passed is passed


def test_same_arrays_sees_bits_and_dtypes() -> None:
    assert same_arrays(np.array([NAN]), np.array([NAN]))
    assert not same_arrays(np.array([0.0]), np.array([-0.0]))
    assert not same_arrays(np.array([1], np.int32), np.array([1], np.int64))
