"""``eqconv verify``: is every variant equal to the float64 reference?"""

from __future__ import annotations

from typing import Annotated

import typer

from eqconv_cli import __version__, frameworks
from eqconv_cli.commands import common
from eqconv_cli.errors import UsageError

EPILOG = (
    "Examples: [bold]eqconv verify feature_steered --tol 1e-5[/]; "
    "[bold]eqconv verify --only 'v2*@torch' --problem cow[/]; "
    "[bold]eqconv verify feature_steered --mesh bunny.obj --json report.json[/]. " + common.EXIT_CODES
)


@common.handled
def verify(
    families: common.Families = None,
    tol: Annotated[float, typer.Option("--tol", help="Largest error, relative to max|reference|, in float32.")] = 1e-5,
    device: common.Device = "cpu",
    dtype: Annotated[str, typer.Option("--dtype", metavar="LIST", help="float32, float64.")] = "float32,float64",
    grad: Annotated[bool, typer.Option("--grad/--no-grad", help="Check gradients too.")] = True,
    check: Annotated[
        list[str] | None, typer.Option("--check", metavar="GLOB", help="Only these checks, e.g. value or 'E1*'.")
    ] = None,
    only: common.Only = None,
    skip: common.Skip = None,
    problem: common.Problems = None,
    set_: common.Settings = None,
    mesh: common.Mesh = None,
    graph: common.GraphFile = None,
    mask: common.MaskFile = None,
    image: common.ImageFile = None,
    plugin: common.Plugin = None,
    quick: common.Quick = False,
    full: Annotated[bool, typer.Option("--full", help="Hard problems and slowly compiled variants too.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A skipped row fails the run.")] = False,
    seed: common.Seed = 0,
    threads: common.Threads = None,
    json: common.Json = None,
    csv: common.Csv = None,
    md: common.Markdown = None,
    junit: Annotated[str | None, typer.Option("--junit", metavar="PATH", help="Write JUnit XML.")] = None,
    quiet: common.Quiet = False,
    no_color: common.NoColor = False,
    debug: common.Debug = False,
) -> int:
    """Compare every variant with the float64 reference: values, gradients, invariants, on small and real problems."""
    if not tol > 0 or tol == float("inf"):
        raise UsageError(f"--tol {tol:g}: allowed: a number above 0")
    if quick and full:
        raise UsageError("--quick and --full exclude each other: give one of them")
    common.check_stdout(json=json, csv=csv, md=md)
    devices = common.comma_list("--device", device, common.DEVICES)
    dtypes = common.comma_list("--dtype", dtype, common.DTYPES)
    files = common.file_options(mesh=mesh, graph=graph, mask=mask, image=image)
    changes = common.settings(set_)
    frameworks.limit_threads(threads)

    from eqconv_cli.engine import selection
    from eqconv_cli.engine.machine import fingerprint
    from eqconv_cli.engine.overview import check_globs
    from eqconv_cli.engine.verify import VerifyPlan
    from eqconv_cli.engine.verify import verify as run
    from eqconv_cli.report import console as terminal
    from eqconv_cli.report import files as writers
    from eqconv_cli.report.markdown import write_markdown
    from eqconv_cli.report.verify_table import check_tables, verify_summary, verify_tables

    for option, target in (("--json", json), ("--csv", csv), ("--md", md), ("--junit", junit)):
        writers.check_writable(option, target)
    filters = selection.Filters(
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        problems=tuple(problem or ()),
        settings=changes,
        files=files,
        plugin=plugin,
    )
    effort = "full" if full else "quick" if quick else "default"
    chosen = selection.for_verify(selection.families(families or ()), filters, effort)
    checks = tuple(check or ())
    check_globs(chosen, checks)
    plan = VerifyPlan(
        selections=chosen,
        checks=checks,
        dtypes=dtypes,
        devices=devices,
        tolerance=tol,
        seed=seed,
        gradients=grad,
        debug=debug,
        repeat_options=tuple(
            word
            for option, value in {**files, "plugin": plugin}.items()
            if value
            for word in (f"--{option}", str(value))
        ),
    )
    err = terminal.err_console(no_color)
    rows, finished = terminal.collect(run(plan), err, quiet)
    options = common.shown_options(
        families=families,
        tol=tol,
        device=devices,
        dtype=dtypes,
        check=check,
        only=only,
        skip=skip,
        problem=problem,
        set=set_,
        mesh=mesh,
        graph=graph,
        mask=mask,
        image=image,
        plugin=plugin,
        quick=quick,
        full=full,
        strict=strict,
        seed=seed,
        threads=threads,
    )
    if json is not None:
        writers.write_json(writers.report("verify", __version__, options, fingerprint(), rows, finished), json)
    if csv is not None:
        writers.write_csv(rows, csv)
    if md is not None:
        write_markdown(rows, md, "verify")
    if junit is not None:
        writers.write_junit(rows, junit, finished.seconds)
    out = err if "-" in (json, csv, md) else terminal.out_console(no_color)
    if not quiet and out is not err:
        out.print(verify_tables(rows))
        if "checks" in finished.facts:
            out.print(check_tables(finished.facts["checks"]))
    verify_summary(rows, finished, out)
    return _exit_code([row.status for row in rows], finished.interrupted, strict)


def _exit_code(statuses: list[str], interrupted: bool, strict: bool) -> int:
    if interrupted:
        return common.INTERRUPTED
    if "fail" in statuses or "error" in statuses or (strict and "skip" in statuses):
        return common.FINDING
    return common.OK if "pass" in statuses else common.NOTHING_TO_CHECK
