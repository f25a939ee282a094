"""The table of truth: every comparison of ``verify`` with its error, its tolerance and its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from eqconv_cli.events import Part, Row, RunFinished, Status
from eqconv_cli.report.console import status_text
from eqconv_cli.report.units import tolerance_text

_STATUSES: tuple[Status, ...] = ("pass", "fail", "error", "skip")


def verify_tables(rows: Sequence[Row]) -> Group:
    """One table a family and problem, one line a row; identical leading cells are blanked."""
    groups = groupby(rows, key=lambda row: (row.family, row.problem, row.device))
    return Group(*(_table(" · ".join(key), list(group)) for key, group in groups))


def verify_summary(rows: Sequence[Row], finished: RunFinished, console: Console) -> None:
    """Counts by framework, the worst error, and the command that repeats each failure."""
    console.print(_counts(rows))
    compared = [row for row in rows if row.status in ("pass", "fail") and row.max_rel is not None]
    closest = max(compared, key=_share_of_tolerance, default=None)
    if closest is not None:
        console.print(
            Text(
                f"closest to its tolerance: {closest.variant} on {closest.problem}, {closest.dtype}, {closest.check}: "
                f"{closest.max_rel:.1e} of {tolerance_text(closest.tolerance or 0.0)}"
            )
        )
    for row in rows:
        if row.status in ("fail", "error"):
            console.print(Text(f"{row.variant} on {row.problem}, {row.dtype}, {row.check}: {row.reason}", "red"))
            console.print(Text(f"  repeat: {row.repeat}"))
    totals = Counter(row.status for row in rows)
    text = ", ".join(f"{totals[status]} {status}" for status in _STATUSES if totals[status]) or "nothing was compared"
    interrupted = " (interrupted; what was done is above)" if finished.interrupted else ""
    bad = totals["fail"] + totals["error"] > 0 or not totals["pass"]
    console.print(Text(f"{text} in {finished.seconds:.1f} s{interrupted}", style="bold red" if bad else "bold green"))


def check_tables(checks: Sequence[Mapping[str, Any]]) -> Group:
    """One table a family: each of its statements, how often and how well it held."""
    families = dict.fromkeys(check["family"] for check in checks)
    return Group(*(_checks(name, [c for c in checks if c["family"] == name]) for name in families))


def _checks(family: str, checks: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=Text(f"{family}: checks"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("statement", overflow="fold")
    for name in ("comparisons", "worst error", "tolerance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for check in checks:
        error, tolerance = check["max_rel"], check["tolerance"]
        table.add_row(
            Text(check["check"]),
            Text(check["statement"]),
            Text(str(check["comparisons"])),
            Text(_number(error)),
            Text("" if tolerance is None else tolerance_text(tolerance)),
            status_text(check["verdict"]),
        )
    return table


def _share_of_tolerance(row: Row) -> float:
    if not row.tolerance:
        return float("inf") if row.max_rel else 0.0
    share = (row.max_rel or 0.0) / row.tolerance
    return share if share == share else float("inf")


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant", no_wrap=True)
    table.add_column("dtype", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("tolerance", justify="right", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("largest part, or reason", overflow="fold")
    previous = ("", "")
    for row in rows:
        variant, dtype = row.variant, row.dtype
        same_variant, same_dtype = variant == previous[0], (variant, dtype) == previous
        previous = (variant, dtype)
        table.add_row(
            Text("" if same_variant else variant),
            Text("" if same_dtype else dtype),
            Text(row.check),
            Text(_number(row.max_rel)),
            Text("" if row.max_rel is None or row.tolerance is None else tolerance_text(row.tolerance)),
            status_text(row.status),
            _detail(row),
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _detail(row: Row) -> RenderableType:
    if row.status != "pass":
        return Text(row.reason)
    if row.reason:
        return Text(row.reason, style="dim")
    if len(row.parts) < 2:
        return Text("")
    return Text(" ".join(f"{_short(part)} {part.max_rel:.0e}" for part in row.parts), style="dim")


def _short(part: Part) -> str:
    return part.name.removeprefix("var_")


def _counts(rows: Sequence[Row]) -> Table:
    table = Table(title=Text("Summary"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("framework")
    table.add_column("device")
    table.add_column("variants", justify="right")
    for status in _STATUSES:
        table.add_column(status, justify="right")
    keys = dict.fromkeys((row.framework, row.device) for row in rows)
    for framework, device in keys:
        mine = [row for row in rows if (row.framework, row.device) == (framework, device)]
        counts = Counter(row.status for row in mine)
        cells = [Text(str(counts[s]), style="" if not counts[s] else status_text(s).style) for s in _STATUSES]
        table.add_row(Text(framework), Text(device), Text(str(len({row.variant for row in mine}))), *cells)
    return table
