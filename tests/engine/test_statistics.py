from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqconv_cli.engine import statistics
from eqconv_cli.engine.statistics import Ratio, verdict

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=5, max_size=30)


def test_locations_by_hand() -> None:
    samples = [1.0, 2.0, 3.0, 4.0, 100.0]
    assert statistics.median(samples) == 3.0
    assert statistics.interquartile_range(samples) == 2.0
    assert statistics.tukey_outliers(samples) == 1
    assert statistics.tukey_outliers([1.0, 2.0, 3.0, 4.0, 5.0]) == 0
    assert statistics.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_a_slow_round_cancels_in_paired_ratios_only() -> None:
    drift = np.array([1.0, 1.0, 5.0, 1.0, 9.0, 1.0, 1.0])
    baseline, mine = 2.0 * drift, 1.0 * drift
    assert statistics.paired_ratio(mine, baseline) == Ratio(0.5, 0.5, 0.5)
    assert statistics.unpaired_ratio(mine, baseline).high > 0.5


@given(TIMES, st.floats(0.01, 100))
def test_ratio_is_exact_for_proportional_times(times: list[float], factor: float) -> None:
    ratio = statistics.paired_ratio([factor * t for t in times], times)
    assert ratio.value == pytest.approx(factor)
    assert ratio.low == pytest.approx(factor) and ratio.high == pytest.approx(factor)


@given(TIMES, TIMES)
def test_interval_holds_the_value(first: list[float], second: list[float]) -> None:
    ratio = statistics.unpaired_ratio(first, second)
    assert ratio.low <= ratio.value * (1 + 1e-12) and ratio.value <= ratio.high * (1 + 1e-12)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (Ratio(0.5, 0.4, 0.6), "FASTER"),
        (Ratio(2.0, 1.5, 2.5), "SLOWER"),
        (Ratio(1.0, 0.99, 1.01), "SAME"),
        (Ratio(1.02, 1.01, 1.03), "SAME"),
        (Ratio(1.2, 0.9, 1.5), "UNSURE"),
        (Ratio(0.97, 0.93, 0.99), "UNSURE"),
        (Ratio(float("nan"), float("nan"), float("nan")), "UNSURE"),
    ],
)
def test_verdicts(ratio: Ratio, expected: str) -> None:
    assert verdict(ratio, 0.05) == expected


def test_equal_work_is_rarely_called_different() -> None:
    """Interleaved A/A pairs with noise and drift: few false alarms at 99 % confidence and a 5 % threshold."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        drift = 1 + 0.3 * rng.random(15)
        first, second = (drift * (1 + 0.05 * rng.standard_normal(15)) for _ in range(2))
        wrong += verdict(statistics.paired_ratio(first, second), 0.05) in ("FASTER", "SLOWER")
    assert wrong <= 4
