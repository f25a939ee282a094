"""Filters in the terminal: sizes, colours, shades, and what fits."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from eqconv_cli.backends.steerable.study import study
from eqconv_cli.report.basis_picture import FilterPicture
from eqconv_cli.report.basis_plot import basis_figure, plot_basis
from eqconv_cli.studies import BasisRequest, BasisStudy

SUM = "irrep:0+irrep:1"


@pytest.fixture(scope="module")
def c4() -> BasisStudy:
    return study(BasisRequest("C4", kernel_size=3))


def drawn(made: BasisStudy, width: int = 80, system: str | None = "truecolor", **options: object) -> str:
    file = io.StringIO()
    # A console without colours is a pipe, which has the width that it is given too.
    console = Console(
        file=file, width=width, force_terminal=system is not None, color_system=system, legacy_windows=False, **options
    )  # type: ignore[arg-type]
    console.print(FilterPicture(made))
    return file.getvalue()


def test_positive_is_red_and_negative_is_blue(c4: BasisStudy) -> None:
    kernel = np.array([[1.0, -1.0], [-1.0, 1.0]])
    one = replace(c4.filters[0], kernels=kernel[None], channels=((0, 0),))
    text = drawn(replace(c4, filters=(one,)))
    red, blue = "103;0;31", "5;48;97"
    # Zoom 3: a column of the upper pixel over itself, one of the upper over the lower, one of the lower over itself.
    for upper, lower in ((red, red), (red, blue), (blue, blue), (blue, red)):
        assert f"\x1b[38;2;{upper};48;2;{lower}m▀" in text


@pytest.mark.parametrize(("system", "code"), [("256", "38;5;88"), ("standard", "31")])
def test_few_colours(c4: BasisStudy, system: str, code: str) -> None:
    text = drawn(c4, system=system)
    assert f"\x1b[{code};" in text and "38;2;" not in text


def test_no_colour_is_shades(c4: BasisStudy) -> None:
    plain = drawn(c4, system=None)
    assert "\x1b" not in plain and "▀" not in plain
    lines = plain.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("r = 1  |μ| = 1"))
    # cos(phi) turned by 0, 90, 180 and 270 degrees; the label is beside it.
    tiles = [line[18:].rstrip() for line in lines[first + 1 : first + 4]]
    assert tiles == ["--  ▒▒  ▒▒██▒▒  ▒▒  --  --≡≡--", "≡≡  ██          ██  ≡≡", "--  ▒▒  --≡≡--  ▒▒  --  ▒▒██▒▒"]
    assert "\x1b[3" not in drawn(c4, no_color=True)


def test_ascii_terminals(c4: BasisStudy) -> None:
    class Ascii(io.StringIO):
        encoding = "ascii"  # type: ignore[assignment]

    file = Ascii()
    Console(file=file, width=80, force_terminal=False).print(FilterPicture(c4))
    tiles = [line[18:] for line in file.getvalue().splitlines() if line.startswith(("irreps", "kernel"))]
    assert tiles and all(tile.isascii() for tile in tiles)
    assert "@@" in "".join(tiles) and "~~" in "".join(tiles)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("system", ["truecolor", None])
def test_fits_the_width(width: int, system: str | None) -> None:
    made = study(BasisRequest("C8"))
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=True, color_system=None, no_color=system is None)
    console._color_system = None if system is None else console._detect_color_system() or 3  # type: ignore[assignment]
    options = console.options
    lines = console.render_lines(FilterPicture(made), options, pad=False)
    assert max(sum(len(segment.text) for segment in line) for line in lines) <= width


def test_says_how_many_do_not_fit() -> None:
    made = study(BasisRequest("C8"))
    assert "... " not in drawn(made, 120)
    narrow = drawn(made, 50)
    assert narrow.count("more") == len(made.filters)
    assert "... 4 more" in narrow


def test_zoom_grows_with_the_width(c4: BasisStudy) -> None:
    heights = [sum("▀" in line for line in drawn(c4, width).splitlines()) for width in (40, 52, 60)]
    # Four lines of kernels of 3, 6 and 9 half cells.
    assert heights == [4 * 2, 4 * 3, 4 * 5]


def test_blocks_name_in_and_out_channels() -> None:
    text = drawn(study(BasisRequest("SO(2)", SUM, SUM, 3)), system=None)
    assert "1→1" in text and "2→1" in text and "a kernel with the largest block" in text


@pytest.mark.parametrize(
    ("asked", "cells"),
    [
        (BasisRequest("C8"), 7),
        (BasisRequest("SO2", SUM, SUM), 7),
        (BasisRequest("D4", "quotient:0,1", "trivial", 3), 4),
        (BasisRequest("C1", "trivial", "trivial", 1), 1),
    ],
    ids=["c8", "so2", "d4", "one"],
)
def test_figure(asked: BasisRequest, cells: int, tmp_path: Path) -> None:
    made = study(asked)
    assert len(made.filters) == cells
    figure = basis_figure(made)
    # One axes a cell, and the scale.
    assert len(figure.axes) == cells + 1
    assert [len(axes.images) for axes in figure.axes[:-1]] == [len(f.kernels) for f in made.filters]
    limits = {image.get_clim() for axes in figure.axes[:-1] for image in axes.images}
    assert len(limits) == 1
    width, height = figure.get_size_inches() * 100
    figure.set_dpi(100)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()
    for name in ("basis.png", "basis.svg"):
        plot_basis(made, str(tmp_path / name))
        assert (tmp_path / name).stat().st_size > 1000
