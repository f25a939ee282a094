"""The tables of ``eqconv info``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text


def items_table(items: Iterable[tuple[str, str, str | None, str, str]]) -> Table:
    """What is here: (kind, name, found or None, what it enables, how to get it)."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("kind", "name", "found", "enables", "to get it"):
        table.add_column(name, overflow="fold", no_wrap=name in ("kind", "name"))
    previous = ""
    for kind, name, found, enables, remedy in items:
        table.add_row(
            Text("" if kind == previous else kind),
            Text(name),
            Text(_short(found) if found else "missing", style="green" if found else "yellow"),
            Text(enables),
            Text("" if found else remedy),
        )
        previous = kind
    return table


def _short(found: str) -> str:
    """A path by its last part: the cells are narrow, and the JSON has it whole."""
    path = Path(found)
    return f".../{path.name}" if path.is_absolute() else found


def families_table(families: Iterable[tuple[str, str, int, int, str]]) -> Table:
    """What can be computed: (family, title or why it is missing, variants, problems, cases)."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("family", no_wrap=True)
    table.add_column("title", overflow="fold")
    table.add_column("variants", justify="right")
    table.add_column("problems", justify="right")
    table.add_column("published cases", overflow="fold")
    for family, title, variants, problems, cases in families:
        table.add_row(Text(family), Text(title), Text(str(variants)), Text(str(problems)), Text(cases))
    return table
