"""``eqconv bench``: how fast is every variant, beside the others and beside the machine's limit?"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqconv_cli import __version__, frameworks
from eqconv_cli.catalog import Parameter
from eqconv_cli.commands import common
from eqconv_cli.engine.selection import Sweep
from eqconv_cli.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from eqconv_cli.events import Row

CSV_FORMATS = ("rows", "sbnet")
_BLOCK_SIZE = re.compile(r"auto|[1-9][0-9]*(x[1-9][0-9]*)?")

EPILOG = (
    "Examples: [bold]eqconv bench feature_steered --case pr101 --sparsity 0.75,0.95[/]; "
    "[bold]eqconv bench --only 'v*@torch' --set channels=64 --plot times.png[/]; "
    "[bold]eqconv bench --save before[/], then [bold]eqconv bench --compare before[/]. " + common.EXIT_CODES
)


@common.handled
def bench(
    families: common.Families = None,
    case: Annotated[
        str | None,
        typer.Option("--case", help="A published benchmark, e.g. pr101.", autocompletion=common.complete_case),
    ] = None,
    sparsity: Annotated[
        str | None,
        typer.Option("--sparsity", metavar="LIST", help="0.9, a list 0.75,0.95 or a range 0.5:0.99 (steps of 0.05)."),
    ] = None,
    test: Annotated[
        str | None, typer.Option("--test", metavar="NAME", help="Problems of one test, e.g. conv or res.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option("--arch", metavar="NAME", help="Problems of one architecture, e.g. resnet-v2.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option("--mask", metavar="KIND|FILE", help="The masks' kind, e.g. blobs, or your own mask.")
    ] = None,
    block_size: Annotated[
        str | None, typer.Option("--block-size", metavar="LIST", help="auto, 16, 16x18 or a list of these.")
    ] = None,
    include_reduce: Annotated[
        bool | None, typer.Option("--include-reduce/--no-include-reduce", help="Time the reduction of the mask too.")
    ] = None,
    backward: Annotated[
        bool | None, typer.Option("--backward/--forward", help="Only forward+backward, or only forward.")
    ] = None,
    only: common.Only = None,
    skip: common.Skip = None,
    problem: common.Problems = None,
    set_: common.Settings = None,
    mesh: common.Mesh = None,
    graph: common.GraphFile = None,
    plugin: common.Plugin = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or float64.")] = "float32",
    tol: Annotated[float, typer.Option("--tol", help="Largest error of a variant that may be timed.")] = 1e-5,
    threads: common.Threads = None,
    rounds: Annotated[int, typer.Option("--rounds", min=5, help="Interleaved rounds.")] = 11,
    time_budget: Annotated[
        float | None, typer.Option("--time-budget", metavar="SECONDS", help="For all rounds; at least 5 are run.")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory/--no-memory", help="Measure peak memory.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Five rounds, no memory.")] = False,
    seed: common.Seed = 0,
    json: common.Json = None,
    csv: common.Csv = None,
    csv_format: Annotated[
        str, typer.Option("--csv-format", help="rows, or sbnet: SBNet's columns, one line for each sparsity.")
    ] = "rows",
    md: common.Markdown = None,
    plot: Annotated[str | None, typer.Option("--plot", metavar="PATH", help="Draw the times: png, svg or pdf.")] = None,
    save: Annotated[str | None, typer.Option("--save", metavar="NAME", help="Keep this run under a name.")] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="NAME", help="Compare with a saved run; exit 1 if slower.")
    ] = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Smallest relative change that counts.")] = 0.05,
    force: Annotated[bool, typer.Option("--force", help="Compare runs of different machines.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what 'auto' takes for each problem, and why.")
    ] = False,
    quiet: common.Quiet = False,
    no_color: common.NoColor = False,
    debug: common.Debug = False,
) -> int:
    """Time variants side by side: verified, in interleaved rounds, with ratios, memory and percent of the ceiling."""
    _check_numbers(tol=tol, time_budget=time_budget, threshold=threshold)
    sweeps = _sweeps(sparsity, block_size, include_reduce)
    own_mask = Path(mask) if mask is not None and _is_file(mask) else None
    if mask is not None and own_mask is None:
        sweeps = (*sweeps, Sweep("--mask", "mask", (mask,)))
    (one_format,) = _one("--csv-format", csv_format, CSV_FORMATS)
    common.check_stdout(json=json, csv=csv, md=md)
    (one_device,) = _one("--device", device, common.TIMED_DEVICES)
    (one_dtype,) = _one("--dtype", dtype, common.DTYPES)
    files = common.file_options(mesh=mesh, graph=graph, mask=own_mask)
    if case is not None and (files or problem):
        raise UsageError(
            f"--case {case} has its own problems: give it without --mesh, --graph, --mask FILE and --problem"
        )
    changes = common.settings(set_)
    frameworks.limit_threads(threads)

    from eqconv_cli.engine import baselines, selection
    from eqconv_cli.engine import bench as engine
    from eqconv_cli.engine.machine import fingerprint
    from eqconv_cli.report import console as terminal
    from eqconv_cli.report import files as writers
    from eqconv_cli.report.bench_table import bench_summary, bench_tables, break_even_table
    from eqconv_cli.report.markdown import write_markdown
    from eqconv_cli.report.plots import check_plot, plot_bench
    from eqconv_cli.report.sbnet_csv import write_sbnet_csv

    for option, target in (("--json", json), ("--csv", csv), ("--md", md), ("--plot", plot)):
        writers.check_writable(option, target)
    check_plot(plot)
    saved = baselines.load(compare) if compare is not None else None
    filters = selection.Filters(
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        problems=tuple(problem or ()),
        settings=changes,
        files=files,
        plugin=plugin,
        facets={name: word for name, word in (("test", test), ("arch", arch)) if word is not None},
        sweeps=sweeps,
    )
    machine = fingerprint()
    if saved is not None and not force:
        _same_machine(compare, baselines.differences(machine, saved["machine"]))
    chosen = selection.for_bench(selection.families(families or ()), filters, case)
    plan = engine.BenchPlan(
        selections=chosen,
        passes=engine.PASSES if backward is None else (engine.PASSES[int(backward)],),
        dtype=one_dtype,
        device=one_device,
        seed=seed,
        tolerance=tol,
        rounds=engine.MIN_ROUNDS if quick else rounds,
        time_budget=time_budget,
        memory=memory and not quick,
        threshold=threshold,
        threads=threads,
        plugin=plugin,
        files=tuple(files.items()),
        debug=debug,
    )
    out, err = terminal.out_console(no_color), terminal.err_console(no_color)
    if explain:
        for line in engine.explain(plan):
            err.print(line, markup=False)
    rows, finished = terminal.collect(engine.bench(plan), err, quiet)
    options = common.shown_options(
        families=families,
        case=case,
        sparsity=sparsity,
        test=test,
        arch=arch,
        mask=mask,
        block_size=block_size,
        include_reduce=include_reduce,
        backward=backward,
        only=only,
        skip=skip,
        problem=problem,
        set=set_,
        mesh=mesh,
        graph=graph,
        plugin=plugin,
        device=device,
        dtype=dtype,
        tol=tol,
        threads=threads,
        rounds=plan.rounds,
        time_budget=time_budget,
        memory=plan.memory,
        seed=seed,
    )
    content = writers.report("bench", __version__, options, machine, rows, finished)
    if json is not None:
        writers.write_json(content, json)
    if csv is not None:
        (write_sbnet_csv if one_format == "sbnet" else writers.write_csv)(rows, csv)
    if md is not None:
        write_markdown(rows, md, "bench")
    if save is not None:
        path = baselines.saved_path(save)
        path.parent.mkdir(parents=True, exist_ok=True)
        writers.write_json(content, str(path))
        err.print(f"saved as {path}", markup=False)
    if plot is not None:
        plot_bench(rows, plot)
    shown = err if "-" in (json, csv, md) else out
    if not quiet and shown is not err:
        out.print(bench_tables(rows))
        if "break_even" in finished.facts:
            out.print(break_even_table(finished.facts["break_even"]))
    bench_summary(rows, finished, shown)
    slower = _print_comparison(rows, saved, threshold, shown) if saved is not None else False
    if finished.interrupted:
        return common.INTERRUPTED
    if slower or any(row.status in ("fail", "error") for row in rows):
        return common.FINDING
    return common.OK if any(row.median_s is not None for row in rows) else common.NOTHING_TO_CHECK


def parse_sparsities(text: str | None) -> tuple[float, ...]:
    """A value, a comma-separated list, a range lo:hi:step or lo:hi in steps of 0.05 that ends with hi itself.

    Raises:
        UsageError: a number outside [0, 1), or something else.
    """
    if text is None:
        return ()
    allowed = "allowed: numbers in [0, 1), a list 0.75,0.95 or a range 0.5:0.9:0.1 or 0.5:0.99"
    try:
        values = (
            _range(*(float(part) for part in text.split(":"))) if ":" in text else list(map(float, text.split(",")))
        )
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"--sparsity {text!r}: {allowed}") from None
    for value in values:
        if not 0 <= value < 1:
            raise UsageError(f"--sparsity {value:g}: {allowed}")
    return tuple(dict.fromkeys(values))


def _range(low: float, high: float, step: float | None = None) -> list[float]:
    """From low to high; without a step in steps of 0.05, and high itself."""
    width = 0.05 if step is None else step
    if not (width > 0 and 0 <= low <= high < 1):
        raise ValueError
    values = [round(low + k * width, 12) for k in range(int((high - low) / width + 1e-9) + 1)]
    return values if step is not None or values[-1] == high else [*values, high]


def parse_block_sizes(text: str | None) -> tuple[int | str, ...]:
    """``auto``, a number, HEIGHTxWIDTH, or a comma-separated list of these; raises UsageError for anything else."""
    if text is None:
        return ()
    sizes: list[int | str] = []
    for word in (part.strip() for part in text.split(",")):
        if not _BLOCK_SIZE.fullmatch(word):
            raise UsageError(
                f"--block-size {text!r}: allowed: auto, a number above 0, HEIGHTxWIDTH, or a list of these"
            )
        sizes.append(int(word) if word.isdigit() else word)
    return tuple(dict.fromkeys(sizes))


def _sweeps(sparsity: str | None, block_size: str | None, include_reduce: bool | None) -> tuple[Sweep, ...]:
    named: tuple[tuple[str, str, tuple[Parameter, ...]], ...] = (
        ("--sparsity", "sparsity", parse_sparsities(sparsity)),
        ("--block-size", "block_size", parse_block_sizes(block_size)),
        (
            "--include-reduce" if include_reduce else "--no-include-reduce",
            "include_reduce",
            () if include_reduce is None else (include_reduce,),
        ),
    )
    return tuple(Sweep(option, parameter, values) for option, parameter, values in named if values)


def _is_file(mask: str) -> bool:
    """Whether a mask is meant as a file: one that is there, or a word that can only be a path."""
    return Path(mask).is_file() or Path(mask).suffix != "" or os.sep in mask


def _check_numbers(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and (not value > 0 or value == float("inf")):
            raise UsageError(f"--{name.replace('_', '-')} {value:g}: allowed: a number above 0")


def _one(option: str, text: str, allowed: Sequence[str]) -> tuple[str, ...]:
    words = common.comma_list(option, text, allowed)
    if len(words) > 1:
        raise UsageError(f"{option} {text!r}: bench takes one at a time: {', '.join(allowed)}")
    return words


def _same_machine(name: str | None, differences: Sequence[str]) -> None:
    if differences:
        raise UsageError(
            f"--compare {name!r} is of another machine or software ({'; '.join(differences)}): --force does it anyway"
        )


def _print_comparison(rows: Sequence[Row], saved: dict[str, Any], threshold: float, console: Console) -> bool:
    """Print now against then; returns whether anything became slower."""
    from eqconv_cli.engine import baselines
    from eqconv_cli.report.bench_table import comparison_table

    compared = baselines.compare(rows, saved, threshold)
    cells = [(c.label, c.then_s, c.now_s, c.ratio.value, c.ratio.low, c.ratio.high, c.verdict) for c in compared]
    console.print(comparison_table(cells))
    return any(c.verdict == "SLOWER" for c in compared)
