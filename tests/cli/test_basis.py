"""``eqconv basis`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from eqconv_cli.app import app

SUM = "irrep:0+irrep:1+irrep:2"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["basis", *arguments])


def test_tables_and_filters_without_colour_in_a_pipe() -> None:
    result = run("--group", "C8")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("C8 · regular → regular · 5 × 5 · 88 kernels\n")
    for part in (
        "C8 has order 8: 0°; 45°; 90°; 135°; 180°; 225°; 270°; 315°",
        " irrep_1       2   complex           1             1              1 ",
        "    1        1     0.6         2   |μ| = 0, 1, 2        40 ",
        "H           11  functions of the grid",
        "     45°      ",
        "r = 2  |μ| = 2",
        "irreps 0 → 2",
        "██▒▒  ▒▒██",
    ):
        assert part in result.stdout, part
    assert "\x1b" not in result.stdout + result.stderr
    assert "Costs" not in result.stdout and result.stderr == ""
    assert "88 kernels of 11 functions on 3 rings, equivariant, in " in result.stdout.splitlines()[-1]


def test_costs() -> None:
    result = run("--group", "SO(2)", "--in", SUM, "--out", SUM, "--costs")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    row = lines[next(n for n, line in enumerate(lines) if "9c+9e" in line) + 2]
    assert " ".join(row.split()) == "5 43 10 11 0.107 12.2 % 7.19 % Q = I 86 30 (10) 31 (22) 15 (7)"
    assert any(line.startswith(" fused_orbit ") for line in lines)
    assert "SO(2): all rotations" in result.stdout and "largest of all 52 elements" in result.stdout


def test_elements() -> None:
    result = run("--group", "D4", "--in", "quotient:0,1", "--axis", "45", "--elements", "-k", "3")
    assert result.exit_code == 0
    assert "the mirror is a line at 45° to the x axis" in result.stdout
    lines = result.stdout.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(" element   ring")) + 2
    assert [int(line.split()[0]) for line in lines[start : start + 24]] == list(range(24))
    assert "mirror, 90°" in result.stdout


def test_quiet() -> None:
    result = run("--group", "C4", "--quiet")
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 1


def test_json_alone_on_stdout() -> None:
    result = run("--group", "C8", "--json", "-", "--seed", "3")
    content = json.loads(result.stdout)
    assert result.exit_code == 0 and "equivariant" in result.stderr
    assert content["schema"] == "eqconv.report/1" and content["command"] == "basis"
    assert content["options"]["group"] == "C8" and content["options"]["seed"] == 3
    basis = content["basis"]
    assert (basis["dimension"], basis["harmonics"], basis["slices"], basis["order"]) == (88, 11, 10, 8)
    assert len(basis["errors"]) == 8 and basis["costs"]["dense"] == 176
    assert content["algorithms"][0]["bytes"] == 563200
    assert content["summary"]["passed"] is True
    assert "elements" not in content and "machine" in content


def test_json_with_elements(tmp_path: Path) -> None:
    path = tmp_path / "basis.json"
    result = run("--group", "C4", "-k", "3", "--elements", "--json", str(path))
    assert result.exit_code == 0 and "Filters" in result.stdout
    elements = json.loads(path.read_text())["elements"]
    assert len(elements) == 24
    assert elements[1]["frequency"] == 0 and elements[1]["shape"] == [2, 2]


def test_npz_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "basis.dat"
    assert run("--group", "D4", "--in", "trivial", "-k", "3", "--save", str(path), "--quiet").exit_code == 0
    with np.load(path, allow_pickle=False) as saved:
        made = {name: saved[name] for name in saved.files}
    dense = made["dense"]
    assert dense.dtype == np.float64 and dense.shape[1:] == (8, 1, 3, 3)
    assert len(made["frequency"]) == len(dense) and str(made["group"]) == "D4"
    # Turning all kernels by 90 degrees permutes the out channels of the regular representation.
    turned = np.rot90(dense, axes=(3, 4))
    np.testing.assert_allclose(turned[:, :4], dense[:, [1, 2, 3, 0]], atol=1e-12)


def test_plot(tmp_path: Path) -> None:
    path = tmp_path / "basis.png"
    assert run("--group", "C4", "--plot", str(path), "--quiet").exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_an_even_kernel_is_a_note_on_stderr() -> None:
    result = run("--group", "C8", "-k", "4", "--quiet")
    assert result.exit_code == 0
    assert result.stderr.startswith("--kernel-size 4 is even: beyond turns by 90 degrees")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--group '' is unknown: allowed: C1, C2"),
        (["--group", "X9"], "--group 'X9' is unknown: allowed: C1, C2, C3, ..., D1, D2, D3, ..., SO(2) or SO2, O(2)"),
        (["--group", "C0"], "--group 'C0' is unknown: allowed"),
        (["--group", "SO(2)"], "--in: regular needs a finite group: SO(2) is continuous (take irreps, such as"),
        (["--group", "C8", "--out", "irrep:9"], "--out: irrep 9 of C8 is unknown: allowed: 0, 1, 2, 3, 4"),
        (["--group", "D4", "--in", "quotient:3,2"], "--in: (3, 2) names no subgroup of D4: allowed: q an integer"),
        (["--group", "C8", "--in", "sum"], "--in 'sum' is not understood"),
        (["--group", "C8", "--rings", "0;1"], "--rings '0;1': allowed: numbers, comma-separated"),
        (["--group", "C8", "--rings", "inf"], "--rings 'inf': allowed: finite numbers"),
        (["--group", "C8", "--rings", "3"], "--rings has the radius 3.0: allowed for k=5, dilation=1: 0 to 2.82843"),
        (["--group", "C8", "--sigma", "0"], "--sigma 0.0: every sigma must be above 0"),
        (["--group", "C8", "--sigma", "1,1"], "--sigma has 2 numbers: expected one, or 3"),
        (["--group", "C8", "-k", "0"], "--kernel-size 0: an integer is needed, 1 or more"),
        (["--group", "C8", "-k", "2"], "take --sigma 0.5 --rings 0.7 --cutoff 2"),
        (["--group", "C8", "--cutoff", "nan"], "--cutoff nan: a number is needed"),
        (["--group", "C8", "--max-offset", "-1"], "--max-offset -1: an integer is needed, 0 or more"),
        (["--group", "C8", "--dilation", "0"], "--dilation 0: an integer is needed, 1 or more"),
        (["--group", "D4", "--axis", "nan"], "--axis nan: a finite angle is needed"),
        (["--group", "C8", "--plot", "a.bmp"], "--plot 'a.bmp' has an unknown format: allowed: .png, .svg, .pdf"),
        (["--group", "C8", "--save", "no/a.npz"], "--save 'no/a.npz': the folder 'no' is not there"),
        (["--group", "C8", "--json", "no/a.json"], "--json 'no/a.json': the folder 'no' is not there"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1 and result.stdout == ""


def test_a_basis_that_is_not_equivariant_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eqconv_cli.backends.steerable.study.TOLERANCE", 1e-20)
    result = run("--group", "C4", "-k", "3")
    assert result.exit_code == 1
    assert "NOT equivariant within 1e-20" in result.stdout and " fail" in result.stdout


def test_imports_no_framework_and_matplotlib_only_to_plot() -> None:
    program = (
        "import sys\nsys.argv[1:] = ['basis', '--group', 'C8', '--quiet']\nfrom eqconv_cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted({'torch', 'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
