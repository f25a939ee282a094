"""Imports point one way: commands -> report, engine -> catalog <- backends -> maths, kernels."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "eqconv_cli"
FRAMEWORKS = {"torch", "tensorflow", "keras"}
TERMINAL = {"typer", "rich"}
#: What every room may use.
GROUND = {"errors", "events", "__init__"}
#: Rooms that a file may import from, besides its own and the ground.
ALLOWED = {
    "app": {"commands"},
    "commands": {"report", "engine", "catalog", "frameworks"},
    "report": set(),
    "engine": {"catalog", "frameworks", "kernels"},
    "catalog": set(),
    "backends": {"catalog", "maths", "kernels", "frameworks"},
    "frameworks": set(),
    "maths": set(),
    "kernels": set(),
    "numpy": {"backends", "maths"},
    "torch": {"backends"},
    "tensorflow": {"backends"},
    "errors": set(),
    "events": set(),
    "__init__": set(),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module that the file imports, dotted."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def rooms_of(modules: set[str]) -> set[str]:
    inside = [module.split(".") for module in modules]
    names = {parts[1] if len(parts) > 1 else "__init__" for parts in inside if parts[0] == "eqconv_cli"}
    return {name if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists() else "__init__" for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_directions(path: Path) -> None:
    mine = room(path)
    extra = rooms_of(imported(path)) - ALLOWED[mine] - GROUND - {mine}
    assert not extra, f"{path.name} in {mine} imports from {sorted(extra)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_frameworks_and_terminal_stay_in_their_places(path: Path) -> None:
    roots = {module.split(".")[0] for module in imported(path)}
    if room(path) not in ("app", "commands", "report"):
        assert not roots & TERMINAL
    named_after = {name for name in FRAMEWORKS if path.stem.split("_")[0] == name}
    if "tensorflow" in named_after:
        named_after.add("keras")
    foreign = roots & FRAMEWORKS - named_after
    assert not foreign, f"{path.name} imports {sorted(foreign)}"


def test_engine_names_no_family() -> None:
    families = [folder.name for folder in (PACKAGE / "backends").iterdir() if (folder / "__init__.py").exists()]
    assert families
    for path in (PACKAGE / "engine").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [name for name in families if name in text], path.name


def test_the_test_sees_a_wrong_import(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from eqconv_cli.report import console\n")
    assert rooms_of(imported(wrong)) == {"report"}
