"""Statistics of timings: robust locations, ratios with intervals, and verdicts that may say "cannot tell"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Verdict = Literal["FASTER", "SLOWER", "SAME", "UNSURE"]

#: Two-sided confidence of every interval, and how many resamples carry it.
CONFIDENCE = 0.99
RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """A ratio of times and the interval that holds it with 99 % confidence."""

    value: float
    low: float
    high: float


def median(samples: Sequence[float]) -> float:
    """The middle value."""
    return float(np.median(samples))


def interquartile_range(samples: Sequence[float]) -> float:
    """Third quartile minus first."""
    low, high = np.quantile(samples, [0.25, 0.75])
    return float(high - low)


def tukey_outliers(samples: Sequence[float]) -> int:
    """How many samples lie more than 1.5 interquartile ranges outside the quartiles."""
    values = np.asarray(samples, np.float64)
    low, high = np.quantile(values, [0.25, 0.75])
    reach = 1.5 * (high - low)
    return int(((values < low - reach) | (values > high + reach)).sum())


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm; for ratios over a suite."""
    return float(np.exp(np.mean(np.log(values))))


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Ratio:
    """Median over rounds of numerator/denominator, with its bootstrap interval.

    The two series are of the same rounds, so what slows a whole round down cancels.
    """
    ratios = np.asarray(numerator, np.float64) / np.asarray(denominator, np.float64)
    medians = np.median(_resampled(ratios, np.random.default_rng(seed)), axis=1)
    return _ratio(float(np.median(ratios)), medians)


def unpaired_ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Ratio:
    """Ratio of medians of two runs at different times, with its bootstrap interval."""
    rng = np.random.default_rng(seed)
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    medians = np.median(_resampled(top, rng), axis=1) / np.median(_resampled(bottom, rng), axis=1)
    return _ratio(float(np.median(top) / np.median(bottom)), medians)


def verdict(time_ratio: Ratio, threshold: float) -> Verdict:
    """What a ratio of times (new / old) says.

    A difference needs evidence (the interval excludes 1) and size (more than ``threshold``); sameness needs the whole
    interval within the threshold; everything else is UNSURE.
    """
    if time_ratio.high < 1 and time_ratio.value < 1 / (1 + threshold):
        return "FASTER"
    if time_ratio.low > 1 and time_ratio.value > 1 + threshold:
        return "SLOWER"
    if time_ratio.low >= 1 / (1 + threshold) and time_ratio.high <= 1 + threshold:
        return "SAME"
    return "UNSURE"


def _resampled(values: Floats, rng: np.random.Generator) -> Floats:
    return values[rng.integers(0, len(values), (RESAMPLES, len(values)))]


def _ratio(value: float, resampled: Floats) -> Ratio:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Ratio(value, float(low), float(high))
