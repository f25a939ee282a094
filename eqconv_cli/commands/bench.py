"""``eqconv bench``: how fast is every variant, beside the others and beside the machine's limit?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqconv_cli import __version__, frameworks
from eqconv_cli.commands import common
from eqconv_cli.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from eqconv_cli.events import Row

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
        str | None, typer.Option("--sparsity", metavar="LIST", help="0.9, a list 0.75,0.95 or a range 0.5:0.9:0.1.")
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
    sparsities = parse_sparsities(sparsity)
    common.check_stdout(json=json, csv=csv, md=md)
    (one_device,) = _one("--device", device, common.TIMED_DEVICES)
    (one_dtype,) = _one("--dtype", dtype, common.DTYPES)
    files = common.file_options(mesh=mesh, graph=graph)
    if case is not None and (files or problem):
        raise UsageError(f"--case {case} has its own problems: give it without --mesh, --graph and --problem")
    changes = common.settings(set_)
    frameworks.limit_threads(threads)

    from eqconv_cli.engine import baselines, selection
    from eqconv_cli.engine import bench as engine
    from eqconv_cli.engine.machine import fingerprint
    from eqconv_cli.report import console as terminal
    from eqconv_cli.report import files as writers
    from eqconv_cli.report.bench_table import bench_summary, bench_tables
    from eqconv_cli.report.markdown import write_markdown
    from eqconv_cli.report.plots import check_plot, plot_bench

    for option, target in (("--json", json), ("--csv", csv), ("--md", md), ("--plot", plot)):
        writers.check_writable(option, target)
    check_plot(plot)
    saved = baselines.load(compare) if compare is not None else None
    sweeps = (selection.Sweep("--sparsity", "sparsity", sparsities),) if sparsities else ()
    filters = selection.Filters(
        tuple(only or ()), tuple(skip or ()), tuple(problem or ()), changes, files, plugin, sweeps=sweeps
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
        writers.write_csv(rows, csv)
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
    bench_summary(rows, finished, shown)
    slower = _print_comparison(rows, saved, threshold, shown) if saved is not None else False
    if finished.interrupted:
        return common.INTERRUPTED
    if slower or any(row.status in ("fail", "error") for row in rows):
        return common.FINDING
    return common.OK if any(row.median_s is not None for row in rows) else common.NOTHING_TO_CHECK


def parse_sparsities(text: str | None) -> tuple[float, ...]:
    """A value, a comma-separated list or a range lo:hi:step (ends included); raises UsageError outside [0, 1)."""
    if text is None:
        return ()
    allowed = "allowed: numbers in [0, 1), a list 0.75,0.95 or a range 0.5:0.9:0.1"
    try:
        if ":" in text:
            low, high, step = (float(part) for part in text.split(":"))
            if not (step > 0 and high >= low):
                raise UsageError(f"--sparsity {text!r}: {allowed}")
            values = [round(low + k * step, 12) for k in range(int((high - low) / step + 1e-9) + 1)]
        else:
            values = [float(part) for part in text.split(",")]
    except (ValueError, OverflowError):
        raise UsageError(f"--sparsity {text!r}: {allowed}") from None
    for value in values:
        if not 0 <= value < 1:
            raise UsageError(f"--sparsity {value:g}: {allowed}")
    return tuple(dict.fromkeys(values))


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
