"""The scripts in ``benchmarks/`` name what there is."""

from __future__ import annotations

import os
import shlex
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import typer.main

from eqconv_cli import catalog
from eqconv_cli.app import app

ROOT = Path(__file__).parent.parent
FUSED, BLOCK_SPARSE, STEERABLE = (
    ROOT / "benchmarks" / f"run_{name}.sh" for name in ("fused", "block_sparse", "steerable")
)


def commands(script: Path, folder: Path, *arguments: str) -> list[list[str]]:
    """The words after ``eqconv`` of every command that a script runs, in its order."""
    recorded = folder / "recorded"
    stand_in = folder / "eqconv"
    # One argument a line, and an empty one between commands.
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" "" >> {shlex.quote(str(recorded))}\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "EQCONV": str(stand_in), "ROUNDS": "5", "PYTHON": "true"}
    subprocess.run([str(script), str(folder / "out"), *arguments], env=environment, check=True, capture_output=True)
    return [block.split("\n") for block in recorded.read_text().rstrip("\n").split("\n\n")]


def test_every_command_parses_and_names_variants_that_there_are(tmp_path: Path) -> None:
    mesh = tmp_path / "wm_lh.gii"
    mesh.touch()
    command = typer.main.get_command(app).commands["bench"]  # type: ignore[attr-defined]
    family = catalog.family("feature_steered")
    found = commands(FUSED, tmp_path, str(mesh))
    assert len(found) == 6
    for words in found:
        given = command.make_context("bench", words[1:]).params
        assert given["threads"] == 1 and given["rounds"] == 5
        case = next((c for c in family.cases if c.name == given["case"]), None)
        assert given["case"] is None or case is not None
        known = [variant.name for variant in (case.variants if case else family.variants)]
        for pattern in given["only"] or ():
            assert any(fnmatchcase(name, pattern) for name in known), pattern
        problems = case.problems if case else family.problems
        for pattern in given["problem"] or ():
            assert pattern in {problem.name for problem in problems}


def test_without_the_mesh_its_rows_are_left_out(tmp_path: Path) -> None:
    assert not [words for words in commands(FUSED, tmp_path) if "--mesh" in words]
    assert len(commands(FUSED, tmp_path)) == 8  # the second run adds its four to the first one's


@pytest.mark.parametrize("script", [FUSED, BLOCK_SPARSE, STEERABLE], ids=lambda script: script.stem)
def test_a_folder_is_needed(script: Path) -> None:
    done = subprocess.run([str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "FOLDER" in done.stderr


@pytest.mark.parametrize("name", ["s1-forward", "s1-backward", "hcp-forward", "hcp-backward", "pr101", "overhead"])
def test_the_page_has_a_line_for_every_report(name: str) -> None:
    assert f"run {name} " in FUSED.read_text()
    assert f"`{name}`" in (ROOT / "benchmarks" / "README.md").read_text()


def test_commands_of_the_sparse_convolutions(tmp_path: Path) -> None:
    command = typer.main.get_command(app).commands["bench"]  # type: ignore[attr-defined]
    family = catalog.family("block_sparse")
    found = commands(BLOCK_SPARSE, tmp_path)
    assert len(found) == 10
    for words in found:
        given = command.make_context("bench", words[1:]).params
        assert given["threads"] == 1 and given["rounds"] == 5 and given["backward"] is False
        wanted = {"test": given["test"], "arch": given["arch"]}
        operations = {p.operation for p in family.problems if p.facets == wanted}
        assert operations
        known = [variant.name for variant in family.variants if variant.operation in operations]
        for pattern in given["only"]:
            assert any(fnmatchcase(name, pattern) for name in known), (given["test"], pattern)


def test_the_page_has_a_line_for_every_report_of_the_sparse_convolutions() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for name in ("conv-", "conv-full", "res-", "subm-", "operators", "sweep"):
        assert f"`{name}" in page


def test_commands_of_the_steerable_convolutions(tmp_path: Path) -> None:
    command = typer.main.get_command(app).commands["bench"]  # type: ignore[attr-defined]
    family = catalog.family("steerable")
    found = commands(STEERABLE, tmp_path)
    assert len(found) == 7
    for words in found:
        given = command.make_context("bench", words[1:]).params
        assert given["threads"] == 2 and given["rounds"] in (5, 7)
        problems = [p for p in family.problems if any(fnmatchcase(p.name, word) for word in given["problem"])]
        assert all(any(fnmatchcase(p.name, word) for p in problems) for word in given["problem"])
        known = [variant.name for variant in family.variants if variant.operation == problems[0].operation]
        for pattern in given["only"]:
            assert any(fnmatchcase(name, pattern) for name in known), pattern
        for setting in given["set_"] or ():
            assert all(setting.split("=")[0] in p.parameters for p in problems)


def test_the_page_has_a_line_for_every_report_of_the_steerable_convolutions() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for name in ("expansion", "expansion-8", "grid-8", "layers", "construction"):
        assert f"`{name}`" in page
