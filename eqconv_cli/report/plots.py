"""Plots of bench rows by Matplotlib: bars of times, or lines over a swept parameter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eqconv_cli.errors import Unavailable, UsageError
from eqconv_cli.events import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg", ".pdf")
_SPARSITY = re.compile(r"sparsity=([0-9.eE+-]+)")


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
    """Draw one panel a pass: lines over sparsity when the rows sweep it, else bars with their quartile spread."""
    from matplotlib.figure import Figure

    timed = [row for row in rows if row.median_s is not None]
    if not timed:
        raise UsageError(f"--plot {target!r}: no row was timed, nothing to draw")
    sweep = len({_sparsity(row) for row in timed} - {None}) > 1
    panels = list(dict.fromkeys((row.check,) if sweep else (row.problem, row.check) for row in timed))
    variants = list(dict.fromkeys(row.variant for row in timed))
    height = 4.5 if sweep else 1.2 + 0.24 * len(variants)
    figure = Figure(figsize=(11, height * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        mine = [row for row in timed if panel in ((row.check,), (row.problem, row.check))]
        if sweep:
            _lines(axis, mine)
        else:
            _bars(axis, mine)
        axis.set_title(" · ".join(panel), loc="left", fontsize=10)
    figure.savefig(target, dpi=130)


def _sparsity(row: Row) -> float | None:
    found = _SPARSITY.search(row.problem)
    return float(found.group(1)) if found else None


def _lines(axis: Axes, rows: Sequence[Row]) -> None:
    markers = "osD^v<>Pp*Xhd"
    for number, variant in enumerate(dict.fromkeys(row.variant for row in rows)):
        points = sorted(
            (1 - s, row.median_s or 0.0) for row in rows if row.variant == variant and (s := _sparsity(row))
        )
        density, seconds = zip(*points, strict=True)
        axis.plot(
            density,
            [1e3 * t for t in seconds],
            label=variant,
            marker=markers[number % len(markers)],
            color=f"C{number % 10}",
            linestyle="-" if number < 10 else "--",
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("density of the neighbourhoods (1 - sparsity)")
    axis.set_ylabel("median time, ms")
    axis.grid(True, which="both", alpha=0.25)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))


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
