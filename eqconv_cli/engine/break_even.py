"""From which sparsity on a variant is faster than the baseline, by the rows of a sweep.

Where block sizes are swept too, each sparsity counts with the block size that is best there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from eqconv_cli.events import Row


@dataclass(frozen=True)
class BreakEven:
    """One variant over one sweep; ``series`` is what its problems have in common."""

    family: str
    series: str
    check: str
    device: str
    dtype: str
    variant: str
    baseline: str
    #: Above it every time that was measured is below the baseline's; None where that is everywhere or nowhere.
    sparsity: float | None
    #: The least and the largest sparsity of the sweep, and time / time of the baseline there.
    sparsities: tuple[float, float]
    ratios: tuple[float, float]


def break_evens(rows: Sequence[Row]) -> list[BreakEven]:
    """Every variant that was timed at two sparsities or more against one baseline."""
    sweeps: dict[tuple[str, str, str, str, str, str, str], dict[float, float]] = {}
    for row in rows:
        if row.series is None or row.ratio is None or row.baseline is None or row.variant == row.baseline:
            continue
        key = (row.family, row.series, row.check, row.device, row.dtype, row.variant, row.baseline)
        measured, sparsity = sweeps.setdefault(key, {}), row.facts["sparsity"]
        measured[sparsity] = min(row.ratio, measured.get(sparsity, row.ratio))
    found = []
    for key, measured in sweeps.items():
        if len(measured) > 1:
            points = sorted(measured.items())
            (low, first), (high, last) = points[0], points[-1]
            found.append(BreakEven(*key, _crossing(points), (low, high), (first, last)))
    return found


def _crossing(points: Sequence[tuple[float, float]]) -> float | None:
    """Where the ratio falls below 1 for good, linearly between the two sparsities beside it; None: nowhere between."""
    for (s, ratio), (next_s, next_ratio) in reversed(list(pairwise(points))):
        if next_ratio >= 1:
            return None
        if ratio >= 1:
            return s + (ratio - 1) / (ratio - next_ratio) * (next_s - s)
    return None
