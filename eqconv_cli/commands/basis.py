"""``eqconv basis``: the kernels that commute with a group."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from eqconv_cli import __version__, catalog
from eqconv_cli.commands import common
from eqconv_cli.errors import UsageError

EPILOG = (
    "Examples: [bold]eqconv basis --group C8[/]; "
    "[bold]eqconv basis --group D4 --in quotient:0,1 --out regular --costs[/]; "
    "[bold]eqconv basis --group 'SO(2)' --in irrep:0+irrep:1 --out irrep:0+irrep:1+irrep:2 --plot basis.png[/]. "
    "Exit codes: 0 all good; 1 the basis is not equivariant; 2 wrong use; 3 --plot without Matplotlib; 4 a fault of "
    "eqconv; 130 interrupted."
)
FIELDS = "regular, trivial, irrep:K, irrep:J,K, quotient:M, quotient:Q,M, or a sum: 2*regular+irrep:1."


@common.handled
def basis(
    group: Annotated[
        str, typer.Option("--group", metavar="NAME", help="C1, C2, ..., D1, D2, ..., SO(2), O(2), flip.")
    ] = "",
    in_: Annotated[str, typer.Option("--in", metavar="FIELDS", help=f"Input: {FIELDS}")] = "regular",
    out: Annotated[str, typer.Option("--out", metavar="FIELDS", help="Output, likewise.")] = "regular",
    kernel_size: Annotated[int, typer.Option("--kernel-size", "-k", metavar="K", help="Kernels have K x K taps.")] = 5,
    rings: Annotated[str | None, typer.Option("--rings", metavar="LIST", help="Radii in pixels: 0,1,2.")] = None,
    sigma: Annotated[
        str | None, typer.Option("--sigma", metavar="LIST", help="Widths of the rings: one, or one each.")
    ] = None,
    cutoff: Annotated[
        float | None,
        typer.Option(
            "--cutoff", metavar="F", help="Frequencies up to F times the radius; -1 (default), -2, -3: rules."
        ),
    ] = None,
    max_offset: Annotated[
        int | None, typer.Option("--max-offset", metavar="T", help="Frequencies up to T times N from the smallest.")
    ] = None,
    axis: Annotated[float, typer.Option("--axis", metavar="DEGREES", help="Mirror line, against the x axis.")] = 90.0,
    dilation: Annotated[int, typer.Option("--dilation", metavar="N", help="Pixels from tap to tap.")] = 1,
    costs: Annotated[bool, typer.Option("--costs", help="What each algorithm computes and keeps.")] = False,
    elements: Annotated[bool, typer.Option("--elements", help="List every kernel with its attributes.")] = False,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Write the basis as npz.")] = None,
    plot: Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw it: png, svg, pdf.")] = None,
    seed: common.Seed = 0,
    json: common.Json = None,
    quiet: common.Quiet = False,
    no_color: common.NoColor = False,
    debug: common.Debug = False,
) -> int:
    """Build a basis of steerable kernels: what it is made of, how equivariant it is, what it costs, how it looks."""
    from eqconv_cli.report import console as terminal
    from eqconv_cli.report import files as writers
    from eqconv_cli.report.plots import check_plot
    from eqconv_cli.studies import BasisRequest

    saved = None if save is None else str(save)
    for option, target in (("--json", json), ("--save", saved), ("--plot", plot)):
        writers.check_writable(option, target)
    check_plot(plot)
    request = BasisRequest(
        group=group,
        in_fields=in_,
        out_fields=out,
        kernel_size=kernel_size,
        rings=_numbers("--rings", rings),
        sigma=_numbers("--sigma", sigma),
        cutoff=cutoff,
        maximum_offset=max_offset,
        axis_degrees=axis,
        dilation=dilation,
        seed=seed,
        count_all=costs,
    )
    study = catalog.load("eqconv_cli.backends.steerable.study:study")(request)
    err = terminal.err_console(no_color)
    for note in study.notes:
        err.print(note, style="yellow", markup=False)
    if saved is not None:
        arrays = catalog.load("eqconv_cli.backends.steerable.study:arrays")
        writers.write_arrays("--save", saved, arrays(request))
    if plot is not None:
        from eqconv_cli.report.basis_plot import plot_basis

        plot_basis(study, plot)
    if json is not None:
        from eqconv_cli.engine.machine import fingerprint
        from eqconv_cli.report.basis_json import basis_report

        writers.write_json(basis_report(study, __version__, fingerprint(), elements), json)
    console = err if json == "-" else terminal.out_console(no_color)
    from eqconv_cli.report import basis_tables as tables

    if not quiet and json != "-":
        from eqconv_cli.report.basis_picture import FilterPicture

        console.print(tables.basis_tables(study))
        if costs:
            console.print(tables.costs_tables(study))
        if elements:
            console.print(tables.elements_table(study))
        console.print(FilterPicture(study))
    console.print(tables.basis_summary(study))
    return common.OK if study.passed else common.FINDING


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """The numbers of a comma-separated option; raises UsageError for anything else."""
    if text is None:
        return None
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: allowed: numbers, comma-separated, for example 0,1,2") from None
    if not all(math.isfinite(number) for number in numbers):
        raise UsageError(f"{option} {text!r}: allowed: finite numbers")
    return numbers
