"""The tables of ``bench``: times, ratios with their intervals, memory, and the share of the measured ceiling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from eqconv_cli.events import Row, RunFinished
from eqconv_cli.report.console import status_text
from eqconv_cli.report.units import TimeUnit, amount, digits, time_unit, tolerance_text

_VERDICT_STYLES = {"FASTER": "green", "SLOWER": "red", "SAME": "", "UNSURE": "yellow"}


def bench_tables(rows: Sequence[Row]) -> Group:
    """One table a problem and pass; the fastest variant is marked."""
    groups = groupby(rows, key=lambda row: (row.family, row.problem, row.check, row.device, row.dtype))
    parts: list[RenderableType] = []
    for key, group in groups:
        mine = list(group)
        parts += [_table(" · ".join(key), mine), *_lines_below(mine)]
    return Group(*parts)


def bench_summary(rows: Sequence[Row], finished: RunFinished, console: Console) -> None:
    """How memory was measured, and what went wrong."""
    for source in sorted({row.peak_source for row in rows if row.peak_source}):
        console.print(Text(f"peak memory: {source}", style="dim"))
    for row in rows:
        if row.status in ("fail", "error"):
            console.print(Text(f"{row.variant} on {row.problem}, {row.check}: {row.reason}", style="red"))
    timed = sum(row.median_s is not None for row in rows)
    interrupted = " (interrupted; what was done is above)" if finished.interrupted else ""
    wrong = any(row.status in ("fail", "error") for row in rows) or timed == 0
    text = f"{timed} of {len(rows)} rows verified and timed in {finished.seconds:.1f} s{interrupted}"
    console.print(Text(text, style="bold red" if wrong else "bold green"))


def break_even_table(crossings: Sequence[Mapping[str, Any]]) -> Table:
    """From which sparsity on each variant of a sweep is faster than the baseline."""
    table = Table(title=Text("break-even sparsity"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("problem · pass", "variant", "baseline"):
        table.add_column(name, no_wrap=True)
    table.add_column("faster than the baseline")
    previous = ""
    for crossing in crossings:
        place = f"{crossing['family']} · {crossing['series']} · {crossing['check']}"
        cells = ("" if place == previous else place, crossing["variant"], crossing["baseline"], _above(crossing))
        table.add_row(*map(Text, cells))
        previous = place
    return table


def _above(crossing: Mapping[str, Any]) -> str:
    (low, high), (_, last) = crossing["sparsities"], crossing["ratios"]
    if crossing["sparsity"] is not None:
        return f"above {crossing['sparsity']:.3f}"
    return f"everywhere from {low:g} to {high:g}" if last < 1 else f"not at {high:g}"


def comparison_table(rows: Sequence[tuple[str, float, float, float, float, float, str]]) -> Table:
    """Now against a saved run: (label, seconds then, seconds now, ratio, low, high, verdict)."""
    table = Table(title=Text("now / saved run"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant · problem · pass", no_wrap=True)
    unit = time_unit(seconds for _, then, now, *_ in rows for seconds in (then, now))
    for name in (f"then {unit.name}", f"now {unit.name}", "ratio", "99 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict")
    for label, then, now, ratio, low, high, verdict in rows:
        table.add_row(
            Text(label),
            Text(digits(then * unit.per_second)),
            Text(digits(now * unit.per_second)),
            Text(f"{ratio:.3f}"),
            Text(f"{low:.3f} to {high:.3f}"),
            Text(verdict, style=_VERDICT_STYLES[verdict]),
        )
    return table


def _table(title: str, rows: Sequence[Row]) -> Table:
    baseline = next((row.baseline for row in rows if row.baseline), None)
    unit = time_unit(row.median_s for row in rows)
    shown = f"{title}   (ratio: time / time of {baseline})" if baseline else title
    floor = next((_floor(row, unit) for row in rows if row.floors), None)
    shown = f"{shown}\n{floor}" if floor else shown
    ideal = next((row.ideal for row in rows if row.ideal is not None), None)
    shown = f"{shown}\nideal speed-up {ideal:.2f}" if ideal is not None else shown
    table = Table(title=Text(shown), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for name in (f"median {unit.name}", f"spread {unit.name}", "rounds", "ratio", "99 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    has_ideal = any(row.speed_up is not None for row in rows)
    if has_ideal:
        table.add_column("speed-up", justify="right", no_wrap=True)
        table.add_column("% of ideal", justify="right", no_wrap=True)
    has_peak, has_ceiling = any(row.peak_source for row in rows), any(row.ceiling for row in rows)
    if has_peak:
        table.add_column("peak MiB", justify="right", no_wrap=True)
    if has_ceiling:
        table.add_column("GFLOP/s", justify="right", no_wrap=True)
        table.add_column("% of ceiling", justify="right", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("tolerance", justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    fastest = min((row.median_s for row in rows if row.median_s is not None), default=None)
    for row in rows:
        cells = [_variant(row, fastest), *_timing(row, unit)]
        if has_ideal:
            cells.append(Text("" if row.speed_up is None else f"{row.speed_up:.2f}"))
            cells.append(Text("" if row.percent_of_ideal is None else f"{row.percent_of_ideal:.0f}"))
        if has_peak:
            cells.append(Text("" if row.peak_bytes is None else digits(row.peak_bytes / 2**20)))
        if has_ceiling:
            cells += _throughput(row)
        cells.append(Text("" if row.max_rel is None else f"{row.max_rel:.0e}"))
        cells.append(Text("" if row.max_rel is None or row.tolerance is None else tolerance_text(row.tolerance)))
        cells.append(status_text(row.status).append(f" {row.reason}" if row.reason else "", style="default"))
        table.add_row(*cells)
    return table


def _lines_below(rows: Sequence[Row]) -> list[Text]:
    """The stages of the variants that time them, and the speed-ups that others have published."""
    lines = []
    for row in rows:
        if row.stages:
            unit = time_unit(row.stages.values())
            stages = ", ".join(f"{name} {digits(s * unit.per_second)}" for name, s in row.stages.items())
            lines.append(Text(f"stages of {row.variant}, {unit.name}: {stages}"))
    published = next((row.published for row in rows if row.published), {})
    if published:
        told = "; ".join(f"{source}: {value:g}" for source, value in published.items())
        lines.append(Text(f"published speed-ups: {told}"))
    return [*lines, Text()] if lines else []


def _variant(row: Row, fastest: float | None) -> Text:
    best = row.median_s is not None and row.median_s == fastest
    return Text(f"{row.variant} *" if best else row.variant, style="bold" if best else "")


def _floor(row: Row, unit: TimeUnit) -> str:
    """The least time of the row's pass, and what each ceiling makes of it."""
    parts = [
        f"{digits(floor.seconds * unit.per_second)} {unit.name} by {floor.ceiling} ({amount(floor.amount, floor.unit)})"
        for floor in row.floors
    ]
    longest = row.floors[0].seconds * unit.per_second
    return f"floor {digits(longest)} {unit.name}: {', '.join(parts)}"


def _timing(row: Row, unit: TimeUnit) -> list[Text]:
    if row.median_s is None or row.iqr_s is None or row.ratio is None:
        return [Text("") for _ in range(6)]
    interval = "" if row.verdict is None else f"{row.ratio_low:.3f} to {row.ratio_high:.3f}"
    verdict = row.verdict or "baseline"
    return [
        Text(digits(row.median_s * unit.per_second)),
        Text(digits(row.iqr_s * unit.per_second)),
        Text(str(row.runs)),
        Text(f"{row.ratio:.3f}"),
        Text(interval),
        Text(verdict, style=_VERDICT_STYLES.get(verdict, "dim")),
    ]


def _throughput(row: Row) -> list[Text]:
    if row.flops is None or not row.median_s or row.percent_of_ceiling is None:
        return [Text(""), Text("")]
    return [
        Text(digits(row.flops / row.median_s / 1e9)),
        Text(f"{row.percent_of_ceiling:.1f} {row.ceiling or ''}"),
    ]
