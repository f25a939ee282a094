"""The tables of ``eqconv build-kernels``: what was built, and what each GPU kernel takes."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from eqconv_cli.events import CompileStarted, Event, KernelUse, Note, RunFinished, TargetFinished, TargetRow
from eqconv_cli.report.console import status_text, with_progress

_STYLES = {"built": "green", "cached": "green", "skipped": "yellow", "failed": "bold red"}
_COUNTED = ("built", "cached", "skipped", "failed")


def follow_build(
    events: Iterable[Event], console: Console, quiet: bool, verbose: bool
) -> tuple[list[TargetRow], RunFinished]:
    """Follow a build to its end: progress, notes and commands to ``console``, rows and closing event to the caller."""
    rows: list[TargetRow] = []
    finished = RunFinished({}, 0.0)
    for event in with_progress(events, console, quiet):
        if isinstance(event, TargetFinished):
            rows.append(event.row)
        elif isinstance(event, RunFinished):
            finished = event
        elif isinstance(event, Note) and not quiet:
            console.print(Text(event.text))
        elif isinstance(event, CompileStarted) and verbose:
            console.print(Text(shlex.join(event.command)))
    return rows, finished


def build_tables(rows: Sequence[TargetRow], console: Console) -> None:
    """One line a target; then, for GPU kernels, one line a kernel and one column an architecture."""
    parts: list[RenderableType] = [_targets(rows), *_paths(rows)]
    parts += [_kernels(row) for row in rows if row.kernels]
    console.print(Group(*parts), crop=False)  # a path goes on in the next line of the terminal


def build_summary(rows: Sequence[TargetRow], finished: RunFinished, console: Console) -> None:
    """The errors with their logs, what is missing with its remedy, and the counts."""
    for row in rows:
        if row.status == "failed":
            console.print(Text(f"{row.target} failed: {row.reason}", "red"))
            if row.log:
                console.print(Text(f"  the whole log: {row.log}"))
            if row.remedy:
                console.print(Text(f"  to mend it: {row.remedy}"))
        elif row.status == "skipped":
            console.print(Text(f"{row.target} skipped: {row.reason}. To get it: {row.remedy}", "yellow"))
        if row.check == "fail":
            console.print(Text(f"{row.target}: the check failed: {row.check_detail}", "red"))
        if row.warnings:
            console.print(Text(f"{row.target}: {row.warnings} compiler warnings: {row.log}", "yellow"))
    counts: Counter[str] = Counter(row.status for row in rows)
    text = ", ".join(f"{counts[status]} {status}" for status in _COUNTED if counts[status]) or "nothing was built"
    failed = sum(row.check == "fail" for row in rows)
    checks = f", {failed} of {sum(row.check is not None for row in rows)} checks failed" if failed else ""
    interrupted = " (interrupted; what was done is above)" if finished.interrupted else ""
    bad = finished.interrupted or bool(counts["failed"] or failed)
    style = "bold red" if bad else "bold green"
    console.print(Text(f"{text}{checks} in {finished.seconds:.1f} s{interrupted}", style=style))


def _targets(rows: Sequence[TargetRow]) -> Table:
    checked = any(row.check for row in rows)
    told = [row.check_detail or next(iter(row.reason.splitlines()), "") for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("target", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    if checked:
        table.add_column("check", no_wrap=True)
    if any(told):
        table.add_column("what the check found, or reason" if checked else "reason", overflow="fold")
    for row, detail in zip(rows, told, strict=True):
        cells = [
            Text(row.target),
            Text(row.status, style=_STYLES[row.status]),
            Text("" if row.seconds is None else f"{row.seconds:.1f}"),
            Text("" if row.size_bytes is None else size(row.size_bytes)),
        ]
        if checked:
            cells.append(status_text(row.check or ""))
        if any(told):
            cells.append(Text(detail))
        table.add_row(*cells)
    return table


def _paths(rows: Sequence[TargetRow]) -> list[Text]:
    """One line a library and never two, so that it can be copied."""
    lines = [f" {row.target}: {row.path}" for row in rows if row.path]
    return [Text(line, no_wrap=True, overflow="ignore") for line in lines] + [Text()] * bool(lines)


def _kernels(row: TargetRow) -> Table:
    archs = [arch for arch in row.arch if any(use.arch == arch for use in row.kernels)]
    table = Table(
        title=Text.assemble(
            f" {row.target}: registers of a thread, ",
            ("+ bytes that it spills", "bold red"),
            " or ",
            ("keeps on a stack", "yellow"),
        ),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("kernel", no_wrap=True)
    for arch in archs:
        table.add_column(arch, overflow="fold")
    names = dict.fromkeys(use.kernel for use in row.kernels)
    for name in names:
        uses = {use.arch: use for use in row.kernels if use.kernel == name}
        table.add_row(Text(name), *(_use(uses.get(arch)) for arch in archs))
    return table


def _use(use: KernelUse | None) -> Text:
    if use is None:
        return Text("")
    text = Text(str(use.registers))
    spilled = use.spill_store_bytes + use.spill_load_bytes
    if spilled:
        text.append(f" +{spilled}", "bold red")
    elif use.stack_bytes:
        text.append(f" +{use.stack_bytes}", "yellow")
    return text


def size(count: int) -> str:
    """A number of bytes for people."""
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < 1 << 20 else f"{count / (1 << 20):.1f} MiB"
