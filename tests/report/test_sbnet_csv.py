from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eqconv_cli.events import Row
from eqconv_cli.report.sbnet_csv import COLUMNS, sbnet_lines, write_sbnet_csv

SIZES = {"H": 400.0, "W": 704.0, "C": 24.0, "K": 24.0}


BLANK = Row("f", "p", "", "a", "numpy", "cpu", "float32", "forward", "pass", baseline="dense", series="p")


def row(variant: str, milliseconds: float, ratio: float, **changes: Any) -> Row:
    facts = {**SIZES, "sparsity": 0.9}
    timed = replace(BLANK, variant=variant, median_s=1e-3 * milliseconds, ratio=ratio, facts=facts)
    return replace(timed, **changes)


def blocks(height: float, width: float, sparsity: float = 0.9) -> dict[str, float]:
    return {**SIZES, "BH": height, "BW": width, "sparsity": sparsity, "block_sparsity": 0.85, "density": 0.1}


def test_one_line_for_each_variant_at_its_best_block_size() -> None:
    rows = [
        row("dense", 10.0, 1.0, problem="p[block_size=8]", facts=blocks(8, 8)),
        row("blocks", 5.0, 0.5, problem="p[block_size=8]", facts=blocks(8, 8)),
        row("dense", 12.0, 1.0, problem="p[block_size=9]", facts=blocks(9, 7)),
        row("blocks", 3.0, 0.25, problem="p[block_size=9]", facts=blocks(9, 7)),
        row("dense", 99.0, 1.0, problem="p[block_size=9]", facts=blocks(9, 7), check="forward+backward"),
    ]
    assert sbnet_lines(rows) == [
        {
            "H": "400", "W": "704", "C": "24", "K": "24", "BH": "9", "BW": "7", "sparsity": "0.9",
            "block_sparsity": "0.85", "dense_time": "12", "sparse_time": "3", "speedup": "4",
        }
    ]  # fmt: skip


def test_sparsities_are_lines_and_what_is_not_known_is_empty() -> None:
    rows = [
        row("dense", 10.0, 1.0),
        row("pixels", 2.0, 0.2, facts={**SIZES, "density": 0.25}),
        row("pixels", 1.0, 0.1),
        row("no image", 1.0, 0.1, facts={"sparsity": 0.9}),
        replace(BLANK, variant="skipped", status="skip"),
    ]
    assert [(line["sparsity"], line["speedup"], line["BH"]) for line in sbnet_lines(rows)] == [
        ("0.75", "5", ""),
        ("0.9", "10", ""),
    ]


def test_the_file_has_the_published_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = "H,W,C,K,BH,BW,sparsity,block_sparsity,dense_time,sparse_time,speedup"
    rows = [row("dense", 10.0, 1.0), row("pixels", 1.0, 0.1)]
    write_sbnet_csv(rows, str(tmp_path / "x.csv"))
    write_sbnet_csv(rows, "-")
    text = (tmp_path / "x.csv").read_text()
    assert text == capsys.readouterr().out
    assert text.splitlines()[0] == header == ",".join(COLUMNS)
    assert len(list(csv.DictReader(io.StringIO(text)))) == 1
