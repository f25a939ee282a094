"""``eqconv build-kernels``: compile the core for what is here."""

from __future__ import annotations

from typing import Annotated

import typer

from eqconv_cli import __version__
from eqconv_cli.commands import common
from eqconv_cli.errors import UsageError

EPILOG = (
    "Examples: [bold]eqconv build-kernels[/]; [bold]eqconv build-kernels --target cpu,torch --check[/]; "
    "[bold]eqconv build-kernels --target cuda --arch sm_90[/]. "
    "Exit codes: 0 all good; 1 a target does not compile or its check failed; 2 wrong use; 3 what a target named by "
    "--target needs is not here; 4 a fault of eqconv; 130 interrupted."
)


@common.handled
def build_kernels(
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="LIST", help="cpu, emulated, torch, tensorflow, cuda; all without."),
    ] = None,
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="LIST", help="GPU architectures, e.g. sm_80,sm_90.")
    ] = None,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Compilers at a time.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Compile what is in the cache, too.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Run a smoke test on each target that is there.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the compilers' commands.")] = False,
    json: common.Json = None,
    quiet: common.Quiet = False,
    no_color: common.NoColor = False,
    debug: common.Debug = False,
) -> int:
    """Compile the kernels for what is here, in parallel; what is in the cache already is not compiled again."""
    from contextlib import closing

    from eqconv_cli.engine.build import TARGETS, BuildPlan, build
    from eqconv_cli.engine.machine import fingerprint
    from eqconv_cli.events import SCHEMA
    from eqconv_cli.report import console as terminal
    from eqconv_cli.report import files as writers
    from eqconv_cli.report.build_table import build_summary, build_tables, follow_build

    named = () if target is None else common.comma_list("--target", target, TARGETS)
    chosen = None if arch is None else _architectures(arch)
    plan = BuildPlan(named or TARGETS, chosen, jobs, force, check)
    writers.check_writable("--json", json)
    err = terminal.err_console(no_color)
    with closing(build(plan)) as events:
        rows, finished = follow_build(events, err, quiet, verbose)
    if json is not None:
        options = common.shown_options(target=named, arch=plan.arch, jobs=jobs, force=force, check=check)
        content = {
            "schema": SCHEMA,
            "command": "build-kernels",
            "version": __version__,
            "options": options,
            "machine": fingerprint(),
            "rows": [writers.row_object(row) for row in rows],
            "summary": {
                "rows": len(rows),
                **{status: finished.counts.get(status, 0) for status in ("built", "cached", "skipped", "failed")},
                "seconds": finished.seconds,
                "interrupted": finished.interrupted,
                **finished.facts,
            },
        }
        writers.write_json(content, json)
    out = err if json == "-" else terminal.out_console(no_color)
    if rows and not quiet and out is not err:
        build_tables(rows, out)
    build_summary(rows, finished, out)
    if finished.interrupted:
        return common.INTERRUPTED
    if any(row.status == "failed" or row.check == "fail" for row in rows):
        return common.FINDING
    if any(row.status == "skipped" and row.target in named for row in rows):
        return common.NOTHING_TO_CHECK
    return common.OK


def _architectures(text: str) -> tuple[str, ...]:
    """The words of --arch; which of them there are, the compiler knows."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise UsageError(f"--arch {text!r} names nothing: allowed: GPU architectures, for example sm_80,sm_90")
    return words
