from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from eqconv_cli.errors import UsageError
from eqconv_cli.events import Row
from eqconv_cli.report import plots

pytest.importorskip("matplotlib")


def row(sparsity: float, variant: str, ratio: float, **changes: object) -> Row:
    fields: dict[str, object] = {
        "median_s": ratio * 1e-3, "iqr_s": 1e-5, "ratio": ratio, "baseline": "dense", "series": "p",
        "facts": {"sparsity": sparsity}, "ideal": 1 / (1 - sparsity),
    }  # fmt: skip
    fields |= changes
    return Row("f", f"p[{sparsity}]", variant, "a", "numpy", "cpu", "float32", "forward", "pass", **fields)  # type: ignore[arg-type]


def sweep(*sparsities: float, **changes: object) -> list[Row]:
    return [
        row(s, variant, ratio, **changes)
        for s in sparsities
        for variant, ratio in (("dense", 1.0), ("blocks", 2 * (1 - s)), ("blocks", 3 * (1 - s)))
    ]


def test_a_sweep_shows_speed_ups_beside_the_ideal() -> None:
    figure = plots._sweeps({"one": sweep(0.5, 0.9, 0.99), "two": sweep(0.5, 0.6)})
    wide, narrow = figure.axes
    blocks, ideal, even = wide.get_lines()
    assert list(blocks.get_xdata()) == pytest.approx([0.5, 0.1, 0.01])
    assert list(blocks.get_ydata()) == pytest.approx([1.0, 5.0, 50.0])
    assert list(ideal.get_ydata()) == pytest.approx([2.0, 10.0, 100.0])
    assert ideal.get_linestyle() == "--"
    assert list(even.get_ydata()) == [1, 1]
    assert [label.get_text() for label in wide.get_xticklabels()] == ["0.99", "0.9", "0.5"]
    assert (wide.get_xscale(), wide.get_yscale()) == ("log", "log")
    assert (narrow.get_xscale(), narrow.get_yscale()) == ("linear", "linear")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["blocks", "ideal"]
    assert wide.get_title("left") == "one\nbaseline dense"


def test_ticks_keep_their_distance() -> None:
    ticks = plots._apart([k / 100 for k in range(100)], lambda s: 1 - s)
    assert ticks[0] == 0.99 and 5 < len(ticks) <= 13
    assert min(a - b for a, b in pairwise(ticks)) >= 0.08


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_files(tmp_path: Path, suffix: str) -> None:
    for name, rows in (("sweep", sweep(0.5, 0.9)), ("bars", sweep(0.5)), ("plain", sweep(0.5, 0.9, series=None))):
        path = tmp_path / f"{name}{suffix}"
        plots.plot_bench(rows, str(path))
        assert path.stat().st_size > 1000


def test_nothing_timed_is_an_error() -> None:
    with pytest.raises(UsageError, match="no row was timed"):
        plots.plot_bench([row(0.5, "v", 1.0, median_s=None)], "x.png")
