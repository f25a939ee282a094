"""Rows as Markdown tables, for issues, pull requests and pages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import groupby

from eqconv_cli.events import Row
from eqconv_cli.report.files import write_text
from eqconv_cli.report.units import time_unit, tolerance_text

_Column = tuple[str, Callable[[Row], str]]

_VERIFY: tuple[_Column, ...] = (
    ("variant", lambda row: f"`{row.variant}`"),
    ("dtype", lambda row: row.dtype),
    ("check", lambda row: row.check),
    ("error", lambda row: _number(row.max_rel, "{:.1e}")),
    ("tolerance", lambda row: "" if row.tolerance is None else tolerance_text(row.tolerance)),
    ("status", lambda row: row.status),
    ("reason", lambda row: row.reason),
)
_RATIOS: tuple[_Column, ...] = (
    ("ratio", lambda row: _number(row.ratio, "{:.3f}")),
    ("99 % interval", lambda row: "" if row.verdict is None else f"{row.ratio_low:.3f} to {row.ratio_high:.3f}"),
    ("verdict", lambda row: row.verdict or ("baseline" if row.median_s is not None else "")),
)
_REST: tuple[_Column, ...] = (
    ("peak MiB", lambda row: _number(row.peak_bytes, "{:.1f}", 2**-20)),
    ("error", lambda row: _number(row.max_rel, "{:.0e}")),
    ("status", lambda row: f"{row.status} {row.reason}".strip()),
)


_IDEAL: tuple[_Column, ...] = (
    ("speed-up", lambda row: _number(row.speed_up, "{:.2f}")),
    ("% of ideal", lambda row: _number(row.percent_of_ideal, "{:.0f}")),
)


def _bench_columns(rows: Sequence[Row]) -> tuple[_Column, ...]:
    unit = time_unit(row.median_s for row in rows)
    return (
        ("variant", lambda row: f"`{row.variant}`"),
        (f"median {unit.name}", lambda row: _number(row.median_s, "{:.2f}", unit.per_second)),
        (f"spread {unit.name}", lambda row: _number(row.iqr_s, "{:.2f}", unit.per_second)),
        *_RATIOS,
        *(_IDEAL if any(row.speed_up is not None for row in rows) else ()),
        *_REST,
    )


def markdown(rows: Sequence[Row], command: str) -> str:
    """One table for each family, problem and device (and pass, for ``bench``), under a heading."""

    def key(row: Row) -> tuple[str, ...]:
        place = (row.family, row.problem, row.device)
        return (*place, row.dtype, row.check) if command == "bench" else place

    blocks = []
    for names, grouped in groupby(rows, key=key):
        group = list(grouped)
        columns = _bench_columns(group) if command == "bench" else _VERIFY
        lines = [" | ".join(name for name, _ in columns), " | ".join("---" for _ in columns)]
        lines += [" | ".join(_escaped(cell(row)) for _, cell in columns) for row in group]
        blocks.append(f"### {' · '.join(names)}\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n")
    return "\n".join(blocks)


def write_markdown(rows: Sequence[Row], target: str, command: str) -> None:
    """Write the tables to a path, or to stdout for ``-``."""
    text = markdown(rows, command)
    if target == "-":
        sys.stdout.write(text)
    else:
        write_text("--md", target, text)


def _number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else form.format(value * factor)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
