"""The kernels of a basis as a figure to print: rings by rows, frequencies by columns, one colour scale."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eqconv_cli.errors import UsageError
from eqconv_cli.report.basis_tables import fields_name
from eqconv_cli.studies import BasisStudy, Filters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _SOFT, _EDGE, _PAPER = "#1b1f24", "#6a737d", "#b4bcc5", "white"
_COLOURS = "RdBu_r"
#: Kernels of a cell at most.
_MOST = 16
#: Inches: the widest figure, a cell, the side of a kernel at most and at least, between cells, margins.
_WIDEST, _CELL, _LARGEST, _SMALLEST, _GAP = 11.0, 1.9, 0.85, 0.2, 0.34
_LEFT, _RIGHT, _TOP, _BOTTOM, _NARROWEST, _EDGE_OF_TEXT = 1.2, 0.95, 1.12, 0.45, 5.4, 0.3
#: Between kernels, as a share of their side.
_SEAM = 0.1
_DPI = 200


@dataclass(frozen=True)
class _Layout:
    """Lengths in inches; a cell has ``down`` x ``across`` kernels of ``side``."""

    down: int
    across: int
    side: float
    rings: tuple[int, ...]
    frequencies: tuple[int, ...]

    @property
    def cell(self) -> tuple[float, float]:
        """Width and height."""
        width, height = ((n + (n - 1) * _SEAM) * self.side for n in (self.across, self.down))
        return width, height

    @property
    def pitch(self) -> tuple[float, float]:
        """From a cell to the next one, to the right and down; the label of a cell stands below it."""
        return self.cell[0] + _GAP, self.cell[1] + _GAP + 0.08

    @property
    def size(self) -> tuple[float, float]:
        """Of the figure."""
        width = _LEFT + len(self.frequencies) * self.pitch[0] - _GAP + _RIGHT
        return max(width, _NARROWEST), _TOP + len(self.rings) * self.pitch[1] + _BOTTOM


def plot_basis(study: BasisStudy, target: str) -> None:
    """Write the figure as PNG, SVG or PDF, by the ending of ``target``; raises UsageError when that fails.

    A cell shows a kernel of a ring and a frequency: its block, where channels are those of irreps, else what goes from
    one in channel to the out channels, row by row.
    """
    try:
        basis_figure(study).savefig(target, dpi=_DPI, facecolor=_PAPER)
    except OSError as error:
        raise UsageError(f"--plot {target!r} cannot be written: {error.strerror}") from error


def basis_figure(study: BasisStudy) -> Figure:
    """The figure of :func:`plot_basis`."""
    from matplotlib.figure import Figure

    layout = _layout(study.filters)
    width, height = layout.size
    figure = Figure(figsize=(width, height), facecolor=_PAPER)
    beyond = max((_largest(cell) for cell in study.filters if cell.radius > 0), default=0.0)
    everything = max(_largest(cell) for cell in study.filters)
    limit = beyond or everything
    for cell in study.filters:
        row, column = layout.rings.index(cell.ring), layout.frequencies.index(cell.frequency)
        x, y = _LEFT + column * layout.pitch[0], _TOP + row * layout.pitch[1]
        axes = _axes(figure, x, y, *layout.cell)
        _draw_cell(axes, cell, layout, limit)
        label = f"{cell.in_irrep} → {cell.out_irrep}   {_count(cell.elements)}"
        _write(figure, x + layout.cell[0] / 2, y + layout.cell[1] + 0.13, label, size=6.5, color=_SOFT, ha="center")
    clipped = 0 < beyond < everything
    _write_headings(figure, study, layout, clipped)
    _draw_scale(figure, layout, limit, clipped)
    return figure


def _layout(filters: tuple[Filters, ...]) -> _Layout:
    if filters[0].columns is None:
        count = min(_MOST, len(filters[0].kernels))
        down = 1 if count < 4 else 2 if count <= 8 else math.ceil(math.sqrt(count))
        across = -(-count // down)
    else:
        across = max(cell.columns or 1 for cell in filters)
        down = max(len(cell.kernels) // (cell.columns or 1) for cell in filters)
    rings, frequencies = sorted({cell.ring for cell in filters}), sorted({cell.frequency for cell in filters})
    room = (_WIDEST - _LEFT - _RIGHT) / len(frequencies) - _GAP
    side = min(_LARGEST, min(_CELL, room) / (across + (across - 1) * _SEAM))
    return _Layout(down, across, max(_SMALLEST, side), tuple(rings), tuple(frequencies))


def _largest(cell: Filters) -> float:
    return float(abs(cell.kernels).max())


def _count(elements: int) -> str:
    return f"{elements} kernel{'' if elements == 1 else 's'}"


def _axes(figure: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """Axes without a frame at inches from the left and upper edge."""
    whole_width, whole_height = figure.get_size_inches()
    place = (x / whole_width, 1 - (y + height) / whole_height, width / whole_width, height / whole_height)
    axes = figure.add_axes(place)
    axes.set_axis_off()
    return axes


def _write(figure: Figure, x: float, y: float, text: str, **style: object) -> None:
    """Text at inches from the left and upper edge."""
    width, height = figure.get_size_inches()
    figure.text(x / width, 1 - y / height, text, va=style.pop("va", "center"), **style)  # type: ignore[arg-type]


def _draw_cell(axes: Axes, cell: Filters, layout: _Layout, limit: float) -> None:
    """The kernels in reading order; a block that is smaller than the cell stands in its middle."""
    from matplotlib.patches import Rectangle

    across = cell.columns or layout.across
    shown = cell.kernels[: layout.down * layout.across]
    down = -(-len(shown) // across)
    step = layout.side * (1 + _SEAM)
    left, top = (layout.across - across) * step / 2, (layout.down - down) * step / 2
    for number, kernel in enumerate(shown):
        x, y = left + number % across * step, top + number // across * step
        box = (x, x + layout.side, y + layout.side, y)
        axes.imshow(kernel, cmap=_COLOURS, vmin=-limit, vmax=limit, extent=box, interpolation="nearest")
        frame = Rectangle((x, y), layout.side, layout.side, fill=False, edgecolor=_EDGE, linewidth=0.5, clip_on=False)
        axes.add_patch(frame)
    axes.set_xlim(0, layout.cell[0])
    axes.set_ylim(layout.cell[1], 0)


def _write_headings(figure: Figure, study: BasisStudy, layout: _Layout, clipped: bool) -> None:
    k = study.kernel_size
    spread = "" if study.dilation == 1 else f", dilation {study.dilation}"
    axis = "" if study.axis_degrees is None else f", mirror at {study.axis_degrees:g}°"
    heading = f"{study.group}: {fields_name(study.in_name)} → {fields_name(study.out_name)}"
    # A bold letter is about 0.65 as wide as high.
    size = min(14.0, (layout.size[0] - 2 * _EDGE_OF_TEXT) * 72 / (0.65 * len(heading)))
    _write(figure, _EDGE_OF_TEXT, 0.32, heading, size=size, weight="bold", color=_INK)
    sizes = f"{k} × {k} pixels{spread}{axis}.  {study.dimension} kernels of {study.harmonics} functions of the grid"
    _write(figure, _EDGE_OF_TEXT, 0.58, sizes, size=9, color=_SOFT)
    for column, frequency in enumerate(layout.frequencies):
        x = _LEFT + column * layout.pitch[0] + layout.cell[0] / 2
        _write(figure, x, _TOP - 0.17, f"|μ| = {frequency}", size=9, color=_INK, ha="center")
    for row, number in enumerate(layout.rings):
        ring, y = study.rings[number], _TOP + row * layout.pitch[1] + layout.cell[1] / 2
        _write(figure, _EDGE_OF_TEXT, y - 0.1, f"r = {ring.radius:g}", size=9, color=_INK)
        _write(figure, _EDGE_OF_TEXT, y + 0.09, f"σ = {ring.sigma:g}", size=7, color=_SOFT)
    letters = int((layout.size[0] - 2 * _EDGE_OF_TEXT) * 72 / (0.5 * 7))
    caption = textwrap.fill(_caption(study.filters[0], clipped), letters)
    _write(figure, _EDGE_OF_TEXT, layout.size[1] - 0.2, caption, size=7, color=_SOFT, va="bottom", linespacing=1.4)


def _caption(cell: Filters, clipped: bool) -> str:
    if cell.columns is not None:
        what = "a kernel with the largest block of its ring and frequency, by out and in channels"
    else:
        shown = min(_MOST, len(cell.kernels))
        out = f"out channels 0 to {shown - 1}" if shown > 1 else "the out channel"
        what = f"the first kernel of its ring and frequency, from in channel {cell.channels[0][1]} to {out}"
    beyond = " r = 0 is beyond the scale." if clipped else ""
    return f"Each cell: {what}; below it in irrep → out irrep.{beyond}"


def _draw_scale(figure: Figure, layout: _Layout, limit: float, clipped: bool) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    width, height = layout.size
    tall = min(2.2, height - _TOP - _BOTTOM - 0.4)
    axes = _axes(figure, width - _RIGHT + 0.28, _TOP, 0.1, tall)
    axes.set_axis_on()
    colours = ScalarMappable(Normalize(-limit, limit), _COLOURS)
    bar = figure.colorbar(colours, cax=axes, extend="both" if clipped else "neither")
    bar.outline.set(linewidth=0.5, edgecolor=_SOFT)
    bar.ax.tick_params(labelsize=6.5, width=0.5, length=2, colors=_SOFT)
