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
        coloured = console.color_system is not None and not console.no_color
        width = min(options.max_width, _PIPE) if not console.is_terminal else options.max_width
        lines = self.study.filters
        labels = [_label(line) for line in lines]
        margin = max((len(part) for label in labels for part in label), default=0) + _GAP
        zoom = _zoom(lines, width - margin, coloured)
        yield from self._heading(coloured, options.ascii_only)
        for line, label in zip(lines, labels, strict=True):
            tiles = _shown(line, zoom, width - margin, coloured)
            yield from _labelled(label, margin, _row(line, tiles, zoom, coloured, options.ascii_only))
            if line.columns is None and tiles < len(line.kernels):
                yield Text(f"{' ' * margin}... {len(line.kernels) - tiles} more", "dim")
            yield Text("")

    def _heading(self, coloured: bool, plain: bool) -> Iterator[Text]:
        blocks = any(line.columns is not None for line in self.study.filters)
        channel = next((line.channels[0][1] for line in self.study.filters), 0)
        what = "by out and in channels" if blocks else f"in channel {channel} to every out channel"
        which = "a kernel with the largest block" if blocks else "the first kernel"
        yield Text(f"Filters: {which} of each ring and frequency", "bold").append(f", {what}", "not bold")
        scale = Text("each line to its largest value:  ", "dim")
        if coloured:
            for step in range(-8, 9):
                scale.append(" ", Style(bgcolor=_colour(step / 8)))
            yield scale.append("  negative, 0, positive", "dim")
        else:
            negative, positive = _shades(plain)
            ramp = [*reversed(negative[1:]), *positive]
            yield scale.append(" ".join(ramp)).append("  negative, 0, positive", "dim")
        yield Text("")


def _label(line: Filters) -> tuple[str, str, str]:
    return (
        f"r = {line.radius:g}  |μ| = {line.frequency}",
        f"irreps {line.in_irrep} → {line.out_irrep}",
        f"kernel {line.index}, 1 of {line.elements}",
    )


def _pixel_width(coloured: bool) -> int:
    """Columns of a pixel at zoom 1: half a cell is a square, and so are two cells."""
    return 1 if coloured else 2


def _tile_lines(k: int, zoom: int, coloured: bool) -> int:
    return -(-k * zoom // 2) if coloured else k * zoom


def _zoom(lines: Sequence[Filters], width: int, coloured: bool) -> int:
    """The largest zoom at which all filters fit the width and do not take too many lines; else 1."""
    for zoom in range(_ZOOM if coloured else 1, 1, -1):
        height = 0
        for line in lines:
            k, across = line.kernels.shape[-1], line.columns or len(line.kernels)
            if across * (k * zoom * _pixel_width(coloured) + _GAP) > width:
                break
            down = -(-len(line.kernels) // across)
            height += max(len(_label(line)), down * (1 + _tile_lines(k, zoom, coloured)))
        else:
            if height <= _LINES:
                return zoom
    return 1


def _shown(line: Filters, zoom: int, width: int, coloured: bool) -> int:
    """How many filters of a line fit side by side."""
    each = line.kernels.shape[-1] * zoom * _pixel_width(coloured) + _GAP
    return max(1, min(line.columns or len(line.kernels), (width + _GAP) // each))


def _labelled(label: Sequence[str], margin: int, drawn: Sequence[Text]) -> Iterator[Text]:
    for number in range(max(len(label), len(drawn))):
        told = label[number] if number < len(label) else ""
        line = Text(told.ljust(margin), "bold" if number == 0 else "dim")
        yield line.append_text(drawn[number]) if number < len(drawn) else line


def _row(line: Filters, tiles: int, zoom: int, coloured: bool, plain: bool) -> list[Text]:
    """The filters of a ring and a frequency, and what they are: out channel and, for a block, its row and column."""
    largest = float(abs(line.kernels).max()) or 1.0
    made: list[Text] = []
    step = line.columns or len(line.kernels)
    for start in range(0, len(line.kernels), step):
        part = range(start, min(start + tiles, start + step, len(line.kernels)))
        drawn = [_tile(line.kernels[n] / largest, zoom, coloured, plain) for n in part]
        width = line.kernels.shape[-1] * zoom * _pixel_width(coloured)
        names = [_name(line, n)[:width].ljust(width) for n in part]
        made.append(Text((" " * _GAP).join(names), "dim"))
        made += [Text(" " * _GAP).join(cells) for cells in zip(*drawn, strict=True)]
    return made


def _name(line: Filters, number: int) -> str:
    out, of = line.channels[number]
    return f"{out}" if line.columns is None else f"{of}→{out}"


def _tile(values: np.ndarray, zoom: int, coloured: bool, plain: bool) -> list[Text]:
    """One filter, values from -1 to 1, by lines of text."""
    rows = values.repeat(zoom, 0).repeat(zoom, 1).tolist()
    if not coloured:
        negative, positive = _shades(plain)
        return [Text("".join(_shade(value, negative, positive) for value in row)) for row in rows]
    made = []
    for upper, lower in zip(rows[::2], [*rows[1::2], *([None] * (len(rows) % 2))], strict=True):
        line = Text()
        for column, value in enumerate(upper):
            below = None if lower is None else _colour(lower[column])
            line.append("▀", Style(color=_colour(value), bgcolor=below))
        made.append(line)
    return made


def _colour(value: float) -> Color:
    at = (min(1.0, max(-1.0, value)) + 1) * (len(_STOPS) - 1) / 2
    first = min(int(at), len(_STOPS) - 2)
    share = at - first
    mixed = [round(a + share * (b - a)) for a, b in zip(_STOPS[first], _STOPS[first + 1], strict=True)]
    return Color.from_rgb(*mixed)


def _shades(plain: bool) -> tuple[Sequence[str], Sequence[str]]:
    return (_PLAIN_NEGATIVE, _PLAIN_POSITIVE) if plain else (_NEGATIVE, _POSITIVE)


def _shade(value: float, negative: Sequence[str], positive: Sequence[str]) -> str:
    shades = positive if value > 0 else negative
    strength = abs(value)
    return shades[0] if strength < _FAINT else shades[min(len(shades) - 1, 1 + int(strength * (len(shades) - 1)))]
