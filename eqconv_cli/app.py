"""Assembles the Typer application; nothing else."""

from __future__ import annotations

from typing import Annotated

import typer

from eqconv_cli import __version__
from eqconv_cli.commands import basis, bench, build_kernels, info, verify

app = typer.Typer(
    name="eqconv",
    help="Every way of computing an equivariant or a sparse convolution: proved equal, timed, ready to import.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("verify", epilog=verify.EPILOG)(verify.verify)
app.command("bench", epilog=bench.EPILOG)(bench.bench)
app.command("basis", epilog=basis.EPILOG)(basis.basis)
app.command("build-kernels", epilog=build_kernels.EPILOG)(build_kernels.build_kernels)
app.command("info", epilog=info.EPILOG)(info.info)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eqconv {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Every way of computing an equivariant or a sparse convolution: proved equal, timed, ready to import."""


def main() -> None:
    """The console script."""
    app()
