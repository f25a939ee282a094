"""Units that tables show numbers in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: A table whose shortest time is below this is in microseconds.
_SHORT_S = 1e-4


@dataclass(frozen=True)
class TimeUnit:
    """A unit of time: its name, and how many of it make a second."""

    name: str
    per_second: float


def time_unit(seconds: Iterable[float | None]) -> TimeUnit:
    """The unit for a table with these times: milliseconds, or microseconds where milliseconds would lose digits."""
    shortest = min((s for s in seconds if s is not None), default=_SHORT_S)
    return TimeUnit("µs", 1e6) if shortest < _SHORT_S else TimeUnit("ms", 1e3)


def digits(value: float) -> str:
    """Three or four significant digits without an exponent."""
    for limit, places in ((10, 3), (100, 2), (1000, 1)):
        if abs(value) < limit:
            return f"{value:.{places}f}"
    return f"{value:.0f}"


def tolerance_text(tolerance: float) -> str:
    """A tolerance, where 0 reads "exact"."""
    return "exact" if tolerance == 0 else f"{tolerance:.0e}"


def amount(value: float, unit: str) -> str:
    """A number of operations or bytes with its prefix, e.g. ``682 Mflop``, ``12.2 MB``."""
    symbol = {"byte": "B"}.get(unit, unit)
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {prefix}{symbol}"
    return f"{value:.3g} {symbol}"
