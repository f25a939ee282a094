"""The terminal: results to stdout, progress and diagnostics to stderr, colour and motion only for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from eqconv_cli.events import Event, Note, Row, RowFinished, RunFinished, RunStarted, UnitFinished, UnitStarted

STATUS_STYLES = {"pass": "green", "fail": "bold red", "error": "bold magenta", "skip": "yellow"}
#: Width of tables in a pipe or a file: wide enough that no cell is ever cut.
UNLIMITED = 10_000


def out_console(no_color: bool) -> Console:
    """The console of results. In a pipe it is wide and plain; NO_COLOR and --no-color take the colour only."""
    return _console(no_color, stderr=False)


def err_console(no_color: bool) -> Console:
    """The console of progress, notes and errors."""
    return _console(no_color, stderr=True)


def _console(no_color: bool, stderr: bool) -> Console:
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    plain = no_color or "NO_COLOR" in os.environ
    width = None if terminal or "COLUMNS" in os.environ else UNLIMITED
    return Console(stderr=stderr, no_color=plain, width=width, highlight=False, soft_wrap=not terminal)


def status_text(status: str) -> Text:
    """The word of a status in its colour; the word alone says it all."""
    return Text(status, style=STATUS_STYLES.get(status, ""))


def collect(events: Iterable[Event], console: Console, quiet: bool) -> tuple[list[Row], RunFinished]:
    """Follow a run to its end: progress and notes to ``console``, the rows and the closing event to the caller."""
    rows: list[Row] = []
    finished = RunFinished({}, 0.0)
    for event in with_progress(events, console, quiet):
        if isinstance(event, RowFinished):
            rows.append(event.row)
        elif isinstance(event, Note) and not quiet:
            console.print(event.text, markup=False)
        elif isinstance(event, RunFinished):
            finished = event
    return rows, finished


def with_progress(events: Iterable[Event], console: Console, quiet: bool) -> Iterator[Event]:
    """Pass events through, drawing a progress bar on a terminal and nothing elsewhere."""
    if quiet or not console.is_terminal:
        yield from events
        return
    columns = (
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[problems]}"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    wrong = 0
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, problems="")
        for event in events:
            if isinstance(event, RunStarted):
                progress.update(task, total=event.total)
            elif isinstance(event, UnitStarted):
                progress.update(task, description=event.label)
            elif isinstance(event, UnitFinished):
                progress.advance(task)
            elif isinstance(event, RowFinished) and event.row.status in ("fail", "error"):
                wrong += 1
                progress.update(task, problems=f"[bold red]{wrong} wrong[/]")
            yield event
