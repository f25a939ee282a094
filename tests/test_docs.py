"""The documentation is true: examples run and print what they say, commands parse, links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import eqconv_cli
from eqconv_cli import catalog
from eqconv_cli.app import app
from eqconv_cli.events import Row
from tests.planted import faults

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PRINTED = re.compile(r"print\(.*\)  # (.+)$", re.MULTILINE)
FILE_NAME = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, language, number among those of the page, and text."""

    page: str
    language: str
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}-{self.number}"


def blocks(*languages: str) -> list[Block]:
    return [
        Block(page.name, language, number, text)
        for page in PAGES
        for number, (language, text) in enumerate(FENCE.findall(page.read_text(encoding="utf-8")), start=1)
        if language in languages
    ]


def marked(block: Block) -> object:
    marks = [getattr(pytest.mark, name) for name in ("torch", "tensorflow") if f"import {name}" in block.text]
    return pytest.param(block, marks=marks, id=str(block))


def commands() -> list[tuple[str, list[str]]]:
    """Every line of a shell block that calls eqconv: (page, words after eqconv)."""
    found = []
    for block in blocks("sh", "console"):
        for line in block.text.splitlines():
            # In a console block only what follows the prompt was typed.
            typed = line if block.language == "sh" else line.removeprefix("$ ") if line.startswith("$ ") else ""
            if typed.startswith("eqconv "):
                found.append((block.page, shlex.split(typed, comments=True)[1:]))
    return found


@pytest.mark.parametrize("block", [marked(block) for block in blocks("python")])
def test_examples_run_and_print_what_they_say(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for framework in ("torch", "tensorflow"):
        if f"import {framework}" in block.text:
            pytest.importorskip(framework)
    monkeypatch.chdir(tmp_path)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(compile(block.text, str(block), "exec"), {"__name__": "example"})
    assert shown.getvalue().splitlines() == PRINTED.findall(block.text)


@pytest.mark.torch
def test_the_variant_of_the_readme_passes_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    (source,) = (block.text for block in blocks("python") if FILE_NAME.match(block.text))
    name = FILE_NAME.match(source)
    assert name is not None
    (tmp_path / name[1]).write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, Path(name[1]).stem, raising=False)
    (words,) = (
        words for page, words in commands() if page == "README.md" and words[0] == "verify" and "--plugin" in words
    )
    result = CliRunner().invoke(app, [*words, "--dtype", "float32"])
    assert result.exit_code == 0, result.output
    assert "2 pass" in result.output


@pytest.mark.parametrize("words", [pytest.param(words, id=f"{page}: {' '.join(words)}") for page, words in commands()])
def test_commands_parse(words: list[str]) -> None:
    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    given = command.make_context(words[0], list(words[1:])).params
    families = [catalog.family(name) for name in given.get("families") or catalog.family_names()]
    cases = [case for family in families for case in family.cases if case.name == given.get("case")]
    assert given.get("case") is None or cases
    known = [v for family in families for v in family.variants] + [v for case in cases for v in case.variants]
    for pattern in [*(given.get("only") or ()), *(given.get("skip") or ())]:
        assert given.get("plugin") or any(fnmatchcase(v.name, pattern) for v in known), pattern
    problems = [p for family in families for p in family.problems] + [p for case in cases for p in case.problems]
    for pattern in given.get("problem") or ():
        assert any(fnmatchcase(p.name, pattern) for p in problems), pattern
    for pair in given.get("set_") or ():
        assert any(pair.split("=")[0] in p.parameters for p in problems), pair


def test_there_is_something_to_test() -> None:
    assert len(blocks("python")) >= 6
    assert {words[0] for _, words in commands()} == {"verify", "bench", "basis", "build-kernels", "info"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as renderers of Markdown make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["verify", "bench", "basis", "build-kernels", "info"])
def test_every_option_has_its_line(name: str) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    options = page[page.index("| option |") : page.index("```console")]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    long = {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}
    assert set(re.findall(r"--[a-z-]+", " ".join(re.findall(r"^\| (.+?) \|", options, re.MULTILINE)))) == long


def test_every_field_of_a_row_has_its_line() -> None:
    page = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    fields = page[page.index("Each row has") : page.index("The CSV file")]
    named = {n for cell in re.findall(r"^\| (.+?) \|", fields, re.MULTILINE) for n in re.findall(r"`(\w+)`", cell)}
    assert named == set(Row.__dataclass_fields__)


def test_numbers_in_the_text() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    family = catalog.family("feature_steered")
    assert f"{len(family.variants)} variants in NumPy" in readme
    assert f"{len(faults.ALL_VALUE) + len(faults.ALL_GRADIENT)} planted faults" in readme
    info = (ROOT / "docs" / "info.md").read_text(encoding="utf-8")
    counts = (
        rf"feature_steered .* {len(family.variants)} +{len(family.problems)} +{', '.join(c.name for c in family.cases)}"
    )
    assert re.search(counts, info)


def test_the_page_of_the_family_names_all_problems_and_cases() -> None:
    page = (ROOT / "docs" / "feature_steered.md").read_text(encoding="utf-8")
    family = catalog.family("feature_steered")
    rows = set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))
    assert {problem.name for problem in family.problems} <= rows
    assert {case.name for case in family.cases} <= rows
    for variant in family.cases[0].variants:
        assert f"| `{variant.name}` |" in page


def test_changelog_has_this_version() -> None:
    assert f"## [{eqconv_cli.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
