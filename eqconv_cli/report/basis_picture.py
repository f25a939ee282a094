"""Filters drawn in the terminal: two pixels a character cell in colours, or a shade a pixel without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from eqconv_cli.studies import BasisStudy, Filters

if TYPE_CHECKING:
    import numpy as np

#: Blue, white, red at -1, ..., 1: ColorBrewer's RdBu, which people who see no green read, too.
_STOPS = ((5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31))
#: The same for terminals with 256 and with 16 colours, by number: the nearest ones are teal, purple and yellow.
_STEPS = {
    "256": (18, 25, 32, 74, 153, 231, 224, 217, 210, 160, 88),
    "standard": (4, 12, 15, 9, 1),
    "windows": (4, 12, 15, 9, 1),
}
#: Shades of growing values, two characters a pixel; the sign is told by the kind of character.
_POSITIVE, _NEGATIVE = ("  ", "░░", "▒▒", "▓▓", "██"), ("  ", "··", "--", "==", "≡≡")
_PLAIN_POSITIVE, _PLAIN_NEGATIVE = ("  ", "++", "xx", "##", "@@"), ("  ", "..", "--", "==", "~~")
#: Values below this share of the largest one are drawn as nothing.
_FAINT = 0.06
#: The largest side of a pixel, the lines that all filters should keep to, and the columns of a pipe.
_ZOOM, _LINES, _PIPE = 3, 64, 120
_GAP = 2


@dataclass(frozen=True)
class FilterPicture:
    """One line of filters for each ring and frequency; each line has its own scale."""

    study: BasisStudy

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        system = None if console.no_color else console.color_system
        brush = _Brush(system, options.ascii_only)
        width = options.max_width if console.is_terminal else min(options.max_width, _PIPE)
        lines = self.study.filters
        labels = [_label(line) for line in lines]
        margin = max(len(part) for label in labels for part in label) + _GAP
        zoom = _zoom(lines, width - margin, brush)
        yield from self._heading(brush)
        for line, label in zip(lines, labels, strict=True):
            shown = min(len(line.kernels), (width - margin + _GAP) // (brush.columns(line.kernels, zoom) + _GAP))
            yield from _labelled(label, margin, _row(line, max(1, shown), zoom, brush))
            if shown < len(line.kernels):
                yield Text(f"{' ' * margin}... {len(line.kernels) - shown} more", "dim")
            yield Text("")

    def _heading(self, brush: _Brush) -> Iterator[Text]:
        first = self.study.filters[0]
        yield Text("Filters", "bold")
        if first.columns is None:
            channel = first.channels[0][1]
            yield Text(f"the first kernel of each ring and frequency, from in channel {channel} to out channels")
        else:
            yield Text("a kernel with the largest block of each ring and frequency: in → out channels")
        yield Text("negative ", "dim").append_text(brush.ramp()).append(" positive, each line to its largest value")
        yield Text("")


@dataclass(frozen=True)
class _Brush:
    """How a pixel is drawn: half a cell in colour, or a shade in two cells where there is none."""

    system: str | None
    plain: bool

    def columns(self, kernels: np.ndarray, zoom: int) -> int:
        """The width of a kernel."""
        return kernels.shape[-1] * zoom * (2 if self.system is None else 1)

    def lines(self, kernels: np.ndarray, zoom: int) -> int:
        """The height of a kernel."""
        return kernels.shape[-1] * zoom if self.system is None else -(-kernels.shape[-1] * zoom // 2)

    def tile(self, values: np.ndarray, zoom: int) -> list[Text]:
        """A kernel with values from -1 to 1, by lines."""
        rows = values.repeat(zoom, 0).repeat(zoom, 1).tolist()
        if self.system is None:
            return [Text("".join(self.shade(value) for value in row)) for row in rows]
        made = []
        for upper, lower in zip(rows[::2], [*rows[1::2], *([None] * (len(rows) % 2))], strict=True):
            line = Text()
            for column, value in enumerate(upper):
                below = None if lower is None else _colour(lower[column], self.system)
                line.append("▀", Style(color=_colour(value, self.system), bgcolor=below))
            made.append(line)
        return made

    def ramp(self) -> Text:
        """All colours or shades from -1 to 1."""
        if self.system is None:
            negative, positive = self._shades
            return Text(" ".join([*reversed(negative[1:]), *positive]))
        made = Text()
        for step in range(-8, 9):
            made.append(" ", Style(bgcolor=_colour(step / 8, self.system)))
        return made

    def shade(self, value: float) -> str:
        """Two characters."""
        shades = self._shades[value > 0]
        strength = abs(value)
        return shades[0] if strength < _FAINT else shades[min(len(shades) - 1, 1 + int(strength * (len(shades) - 1)))]

    @property
    def _shades(self) -> tuple[Sequence[str], Sequence[str]]:
        return (_PLAIN_NEGATIVE, _PLAIN_POSITIVE) if self.plain else (_NEGATIVE, _POSITIVE)


def _label(line: Filters) -> tuple[str, str, str]:
    return (
        f"r = {line.radius:g}  |μ| = {line.frequency}",
        f"irreps {line.in_irrep} → {line.out_irrep}",
        f"kernel {line.index}, 1 of {line.elements}",
    )


def _zoom(lines: Sequence[Filters], width: int, brush: _Brush) -> int:
    """The largest zoom at which all filters fit the width and do not take too many lines; else 1."""
    for zoom in range(1 if brush.system is None else _ZOOM, 1, -1):
        wide = max(len(line.kernels) * (brush.columns(line.kernels, zoom) + _GAP) - _GAP for line in lines)
        high = sum(max(len(_label(line)), 1 + brush.lines(line.kernels, zoom)) + 1 for line in lines)
        if wide <= width and high <= _LINES:
            return zoom
    return 1


def _labelled(label: Sequence[str], margin: int, drawn: Sequence[Text]) -> Iterator[Text]:
    for number in range(max(len(label), len(drawn))):
        told = label[number] if number < len(label) else ""
        line = Text().append(told.ljust(margin), "bold" if number == 0 else "dim")
        yield line.append_text(drawn[number]) if number < len(drawn) else line


def _row(line: Filters, shown: int, zoom: int, brush: _Brush) -> list[Text]:
    """The filters of a ring and a frequency under the names of their channels."""
    largest = float(abs(line.kernels).max())
    tiles = [brush.tile(kernel / largest, zoom) for kernel in line.kernels[:shown]]
    width = brush.columns(line.kernels, zoom)
    names = [_name(line, number)[:width].ljust(width) for number in range(shown)]
    gap = " " * _GAP
    return [Text().append(gap.join(names), "dim"), *(Text(gap).join(cells) for cells in zip(*tiles, strict=True))]


def _name(line: Filters, number: int) -> str:
    out, of = line.channels[number]
    return f"{out}" if line.columns is None else f"{of}→{out}"


def _colour(value: float, system: str) -> Color:
    """The colour of a value from -1 to 1."""
    at = (min(1.0, max(-1.0, value)) + 1) / 2
    if system in _STEPS:
        steps = _STEPS[system]
        return Color.from_ansi(steps[round(at * (len(steps) - 1))])
    at *= len(_STOPS) - 1
    first = min(int(at), len(_STOPS) - 2)
    share = at - first
    mixed = [round(a + share * (b - a)) for a, b in zip(_STOPS[first], _STOPS[first + 1], strict=True)]
    return Color.from_rgb(*mixed)
