"""Speed-ups in the columns that SBNet's own benchmark writes, to be laid beside its results."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence

from eqconv_cli.events import Row
from eqconv_cli.report.files import write_text

COLUMNS = (
    "H", "W", "C", "K", "BH", "BW", "sparsity", "block_sparsity", "dense_time", "sparse_time", "speedup",
)  # fmt: skip
#: Without these a row is not of an image.
_NEEDED = ("H", "W", "C", "K")


def sbnet_lines(rows: Sequence[Row]) -> list[dict[str, float | str]]:
    """One line for each problem, sparsity and variant except the baseline, at the block size that is fastest there.

    Times are milliseconds, of the forward pass. What a row does not say (a block size, where there are no blocks) stays
    empty.
    """
    best: dict[tuple[str, ...], Row] = {}
    for row in rows:
        timed = row.check == "forward" and row.ratio is not None and row.variant != row.baseline
        if timed and all(name in row.facts for name in _NEEDED):
            key = (row.family, row.series or row.problem, str(row.facts.get("sparsity")), row.variant)
            if key not in best or (row.ratio or 0.0) < (best[key].ratio or 0.0):
                best[key] = row
    dense = {
        (row.family, row.problem): row.median_s
        for row in rows
        if row.check == "forward" and row.variant == row.baseline
    }
    return [_line(row, dense[row.family, row.problem]) for row in best.values()]


def _line(row: Row, dense: float | None) -> dict[str, float | str]:
    times = {
        "dense_time": 1e3 * (dense or 0.0),
        "sparse_time": 1e3 * (row.median_s or 0.0),
        "speedup": 1 / (row.ratio or 1.0),
    }
    density = row.facts.get("density")
    sparsity = {} if density is None else {"sparsity": 1 - density}
    values = {**sparsity, **row.facts, **times}
    return {name: f"{values[name]:.6g}" if name in values else "" for name in COLUMNS}


def write_sbnet_csv(rows: Sequence[Row], target: str) -> None:
    """Write the lines to a path, or to stdout for ``-``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sbnet_lines(rows))
    if target == "-":
        sys.stdout.write(text.getvalue())
    else:
        write_text("--csv", target, text.getvalue())
