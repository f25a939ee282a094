"""``eqconv info``: what is here, and what each missing thing would enable."""

from __future__ import annotations

from eqconv_cli import __version__
from eqconv_cli.commands import common

EPILOG = "Examples: [bold]eqconv info[/]; [bold]eqconv info --json -[/]. " + common.EXIT_CODES


@common.handled
def info(json: common.Json = None, no_color: common.NoColor = False, debug: common.Debug = False) -> int:
    """Show frameworks, mesh readers, data, compilers, devices and families, and how to get what is missing."""
    from dataclasses import asdict

    from eqconv_cli.engine import inventory
    from eqconv_cli.engine.machine import fingerprint
    from eqconv_cli.events import SCHEMA
    from eqconv_cli.report import console as terminal
    from eqconv_cli.report import files as writers
    from eqconv_cli.report.info_table import families_table, items_table

    writers.check_writable("--json", json)
    items, families = list(inventory.items()), list(inventory.families())
    if json is not None:
        content = {
            "schema": SCHEMA,
            "command": "info",
            "version": __version__,
            "machine": fingerprint(),
            "items": [asdict(item) for item in items],
            "families": [asdict(family) for family in families],
        }
        writers.write_json(content, json)
    if json != "-":
        out = terminal.out_console(no_color)
        out.print(f"eqconv {__version__}")
        out.print(items_table((i.kind, i.name, i.found, i.enables, i.remedy) for i in items))
        out.print(
            families_table((f.name, f.missing or f.title, f.variants, f.problems, ", ".join(f.cases)) for f in families)
        )
    return common.OK
