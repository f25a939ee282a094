"""What every command shares: option values checked and parsed, errors turned into one line and an exit code."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import typer

from eqconv_cli import catalog, frameworks
from eqconv_cli.catalog import Parameter
from eqconv_cli.errors import EqconvError, Unavailable, UsageError, unknown

#: Exit codes, the same for every command.
OK, FINDING, USAGE, NOTHING_TO_CHECK, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 4, 130

EXIT_CODES = (
    "Exit codes: 0 all good; 1 a check or comparison failed; 2 wrong use; 3 something asked for is not available here, "
    "or nothing was left to check; 4 a fault of eqconv; 130 interrupted."
)

DEVICES = frameworks.DEVICES
#: An emulated device has no times worth a table.
TIMED_DEVICES = tuple(device for device in DEVICES if device != "emulated")
DTYPES = ("float32", "float64")

P = ParamSpec("P")


def complete_family(incomplete: str) -> list[str]:
    """Family names for the shell; imports no framework."""
    return [name for name in catalog.family_names() if name.startswith(incomplete)]


def _complete(incomplete: str, names: Callable[[catalog.Family], Iterable[str]]) -> list[str]:
    known = (name for family in catalog.family_names() for name in names(catalog.family(family)))
    return [name for name in dict.fromkeys(known) if name.startswith(incomplete)]


def complete_variant(incomplete: str) -> list[str]:
    """Variant names for the shell."""
    return _complete(incomplete, lambda family: (variant.name for variant in family.variants))


def complete_problem(incomplete: str) -> list[str]:
    """Problem names for the shell."""
    return _complete(incomplete, lambda family: (problem.name for problem in family.problems))


def complete_case(incomplete: str) -> list[str]:
    """Names of the published benchmarks for the shell."""
    return _complete(incomplete, lambda family: (case.name for case in family.cases))


Families = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FAMILY]...", help="Families by name; all without.", autocompletion=complete_family),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="GLOB", help="Variants by name, e.g. 'v2*@torch'.", autocompletion=complete_variant),
]
Skip = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="GLOB", help="Variants to leave out.", autocompletion=complete_variant),
]
Problems = Annotated[
    list[str] | None,
    typer.Option(
        "--problem", metavar="GLOB", help="Problems by name instead of the usual ones.", autocompletion=complete_problem
    ),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change a parameter of the problems.")
]
Mesh = Annotated[
    Path | None, typer.Option("--mesh", metavar="FILE", help="Your own mesh: obj, ply, off, stl, gii, vtk.")
]
GraphFile = Annotated[Path | None, typer.Option("--graph", metavar="FILE", help="Your own graph: npz.")]
MaskFile = Annotated[Path | None, typer.Option("--mask", metavar="FILE", help="Your own mask: npy, npz, or a picture.")]
ImageFile = Annotated[Path | None, typer.Option("--image", metavar="FILE", help="Your own picture: png, jpg.")]
Device = Annotated[str, typer.Option("--device", metavar="LIST", help="Devices, comma-separated: cpu, cuda.")]
Plugin = Annotated[
    str | None, typer.Option("--plugin", metavar="MODULE", help="Module or .py file with VARIANTS of your own.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of all random inputs.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Compute threads of every framework; all cores without.")
]
Json = Annotated[
    str | None, typer.Option("--json", metavar="PATH|-", help="Write the report as JSON; - is stdout, alone.")
]
Csv = Annotated[str | None, typer.Option("--csv", metavar="PATH|-", help="Write the rows as CSV; - is stdout, alone.")]
Markdown = Annotated[
    str | None, typer.Option("--md", metavar="PATH|-", help="Write Markdown tables; - is stdout, alone.")
]
Quick = Annotated[bool, typer.Option("--quick", help="The smallest problems only.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No tables and no progress: the summary only.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colour (NO_COLOR does the same).")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of a fault.")]


def handled(command: Callable[P, int]) -> Callable[P, None]:
    """Run a command that returns an exit code; every error becomes one line on stderr and its own code."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        no_color = bool(kwargs.get("no_color"))
        try:
            code = command(*args, **kwargs)
        except UsageError as error:
            _stop(str(error), USAGE, no_color)
        except (Unavailable, EqconvError) as error:
            _stop(str(error), NOTHING_TO_CHECK, no_color)
        except KeyboardInterrupt:
            _stop("interrupted", INTERRUPTED, no_color)
        except BrokenPipeError:
            # The reader of our output has gone (`eqconv ... | head`): nobody is left to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(OK) from None
        except Exception as error:
            if kwargs.get("debug"):
                raise
            _stop(_keep_traceback(error), INTERNAL, no_color)
        raise typer.Exit(code)

    return run


def _stop(message: str, code: int, no_color: bool) -> NoReturn:
    from rich.text import Text

    from eqconv_cli.report.console import err_console

    err_console(no_color).print(Text(f"eqconv: {message}", style="red"))
    raise typer.Exit(code)


def _keep_traceback(error: Exception) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="eqconv-", suffix=".log", delete=False) as log:
        log.write("".join(traceback.format_exception(error)))
    return f"a fault of eqconv: {type(error).__name__}: {error} (traceback in {log.name}; --debug shows it)"


def comma_list(option: str, text: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """The words of a comma-separated option; raises UsageError for one that is not allowed, or for none."""
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in words:
        if word not in allowed:
            raise unknown(option, word, allowed)
    if not words:
        raise UsageError(f"{option} {text!r} names nothing: allowed: {', '.join(allowed)}")
    return words


def settings(pairs: Sequence[str] | None) -> dict[str, Parameter]:
    """NAME=VALUE options as numbers where they are numbers; raises UsageError for anything else than a pair."""
    parsed: dict[str, Parameter] = {}
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals or not name or not text:
            raise UsageError(f"--set {pair!r}: expected NAME=VALUE, for example channels=32")
        parsed[name] = _number_or_text(text)
    return parsed


def _number_or_text(text: str) -> Parameter:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def file_options(**paths: Path | None) -> dict[str, Path]:
    """The file options that were given; raises UsageError for a file that is not there."""
    given = {name: path for name, path in paths.items() if path is not None}
    for name, path in given.items():
        if not path.is_file():
            raise UsageError(f"--{name} {str(path)!r} is not a file")
    return given


def check_stdout(**targets: str | None) -> None:
    """Only one report can have stdout; raises UsageError when two want it."""
    wanting = [f"--{name} -" for name, target in targets.items() if target == "-"]
    if len(wanting) > 1:
        raise UsageError(f"{' and '.join(wanting)} both want stdout: give one of them a path")


def shown_options(**options: Any) -> dict[str, Any]:
    """The options for the report: what was given, without what was not."""
    return {name: value for name, value in options.items() if value not in (None, (), [], {}, False)}
