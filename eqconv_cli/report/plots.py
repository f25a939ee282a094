"""Plots of bench rows by Matplotlib: bars of times, or speed-ups over a swept sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eqconv_cli.errors import Unavailable, UsageError
from eqconv_cli.events import Row

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
_MARKERS = "osD^v<>Pp*Xhd"
#: Values that span more than this factor are drawn on a logarithmic axis.
_WIDE = 8
_MOST_TICKS = 12


def check_plot(target: str | None) -> None:
    """Refuse a plot that cannot be drawn, before the work.

    Raises:
        UsageError: an unknown file format.
        Unavailable: Matplotlib is not installed.
    """
    if target is None:
        return
    if Path(target).suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {target!r} has an unknown format: allowed: {', '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise Unavailable("--plot", ["matplotlib is not installed"], 'pip install "eqconv[plots]"') from None


def plot_bench(rows: Sequence[Row], target: str) -> None:
    """Draw the speed-ups over the sparsity when the rows sweep it, else the times as bars with their spread."""
    timed = [row for row in rows if row.median_s is not None]
    if not timed:
        raise UsageError(f"--plot {target!r}: no row was timed, nothing to draw")
    sweeps: dict[str, list[Row]] = {}
    for row in timed:
        if row.series is not None:
            sweeps.setdefault(f"{row.family} · {row.series} · {row.check}", []).append(row)
    swept = {title: mine for title, mine in sweeps.items() if len({row.facts["sparsity"] for row in mine}) > 1}
    figure = _sweeps(swept) if swept else _times(timed)
    figure.savefig(target, dpi=130)


def _sweeps(sweeps: Mapping[str, Sequence[Row]]) -> Figure:
    """One panel a sweep; a variant has the same colour and marker in all of them."""
    from matplotlib.figure import Figure

    columns = min(2, len(sweeps))
    lines = -(-len(sweeps) // columns)
    figure = Figure(figsize=(3 + 5 * columns, 4.2 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    variants = list(dict.fromkeys(r.variant for rows in sweeps.values() for r in rows if r.variant != r.baseline))
    named: dict[str, Artist] = {}
    for axis, (title, rows) in zip(panels, sweeps.items(), strict=False):
        named |= _speed_ups(axis, rows, variants)
        axis.set_title(f"{title}\nbaseline {rows[0].baseline}", loc="left", fontsize=9)
    for axis in panels[len(sweeps) :]:
        axis.set_axis_off()
    figure.legend(list(named.values()), list(named), loc="outside right upper", fontsize=8)
    return figure


def _speed_ups(axis: Axes, rows: Sequence[Row], variants: Sequence[str]) -> dict[str, Artist]:
    """Draw one sweep; returns what the legend names."""
    named: dict[str, Artist] = {}
    drawn = [1.0]
    for number, variant in enumerate(variants):
        points = _best([row for row in rows if row.variant == variant and row.variant != row.baseline])
        if points:
            (named[variant],) = axis.plot(
                [1 - sparsity for sparsity in points],
                list(points.values()),
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=5,
                color=f"C{number % 10}",
                linestyle="-" if number < 10 else ":",
            )
            drawn += list(points.values())
    ideal = {row.facts["sparsity"]: row.ideal for row in rows if row.ideal is not None}
    if ideal:
        points = dict(sorted(ideal.items()))
        (named["ideal"],) = axis.plot([1 - s for s in points], list(points.values()), color="0.35", linestyle="--")
        drawn += list(points.values())
    axis.axhline(1, color="0.35", linewidth=0.8)
    _scales(axis, sorted({row.facts["sparsity"] for row in rows}), drawn)
    axis.set_xlabel("sparsity", fontsize=9)
    axis.set_ylabel("speed-up over the baseline", fontsize=9)
    axis.grid(True, alpha=0.25)
    return named


def _best(rows: Sequence[Row]) -> dict[float, float]:
    """The speed-up over the sparsity, of the fastest row where there are several (block sizes)."""
    points: dict[float, float] = {}
    for row in rows:
        if row.ratio is not None:
            sparsity = row.facts["sparsity"]
            points[sparsity] = max(1 / row.ratio, points.get(sparsity, 0.0))
    return dict(sorted(points.items()))


def _scales(axis: Axes, sparsities: Sequence[float], speed_ups: Sequence[float]) -> None:
    """Linear axes, or where the densities or the speed-ups span much, logarithmic ones; x is labelled by sparsity.

    x is the density, drawn from right to left: on two logarithmic axes the ideal 1 / density is a straight line.
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullFormatter, NullLocator

    logarithmic = 1 - sparsities[0] > _WIDE * (1 - sparsities[-1])
    if logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_minor_locator(NullLocator())
    axis.invert_xaxis()
    shown = _apart(sparsities, (lambda s: math.log(1 - s)) if logarithmic else (lambda s: 1 - s))
    axis.xaxis.set_major_locator(FixedLocator([1 - sparsity for sparsity in shown]))
    axis.xaxis.set_major_formatter(FixedFormatter([f"{sparsity:g}" for sparsity in shown]))
    axis.tick_params(axis="both", labelsize=8)
    if max(speed_ups) > _WIDE * min(speed_ups):
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.set_ylim(bottom=0)


def _apart(sparsities: Sequence[float], position: Callable[[float], float]) -> list[float]:
    """Sparsities for the ticks, from the largest down: those whose labels have room beside each other."""
    room = abs(position(sparsities[0]) - position(sparsities[-1])) / _MOST_TICKS
    kept = [sparsities[-1]]
    for sparsity in reversed(sparsities[:-1]):
        if abs(position(sparsity) - position(kept[-1])) >= room:
            kept.append(sparsity)
    return kept


def _times(timed: Sequence[Row]) -> Figure:
    """One panel a problem and pass."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row.problem, row.check) for row in timed))
    height = 1.2 + 0.24 * len({row.variant for row in timed})
    figure = Figure(figsize=(11, height * len(panels)), layout="constrained")
    for axis, panel in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        _bars(axis, [row for row in timed if (row.problem, row.check) == panel])
        axis.set_title(" · ".join(panel), loc="left", fontsize=10)
    return figure


def _bars(axis: Axes, rows: Sequence[Row]) -> None:
    ordered = sorted(rows, key=lambda row: row.median_s or 0.0, reverse=True)
    milliseconds = [1e3 * (row.median_s or 0.0) for row in ordered]
    spread = [1e3 * (row.iqr_s or 0.0) / 2 for row in ordered]
    frameworks = list(dict.fromkeys(sorted(row.framework for row in rows)))
    colours = [f"C{frameworks.index(row.framework)}" for row in ordered]
    bars = axis.barh([row.variant for row in ordered], milliseconds, xerr=spread, color=colours, height=0.7)
    labels = [
        "" if row.ratio is None else f"{m:.3g} ms, x{row.ratio:.2f}"
        for row, m in zip(ordered, milliseconds, strict=True)
    ]
    axis.bar_label(bars, labels, padding=4, fontsize=7)
    axis.margins(x=0.18)
    axis.tick_params(axis="y", labelsize=7)
    axis.set_xlabel("median time, ms (bar: half the interquartile range to each side)")
    axis.grid(True, axis="x", alpha=0.25)
