"""``eqconv verify`` as a user meets it: tables, exit codes, files, one-line errors."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from eqconv_cli import catalog
from eqconv_cli.app import app
from eqconv_cli.engine import verify as engine
from tests.engine import fake

FAST = ["verify", "feature_steered", "--only", "v2+*@numpy", "--problem", "ragged"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_all_pass_exit_0_one_table_row_for_each_json_row(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    result = run(*FAST, "--json", str(path))
    assert result.exit_code == 0
    report = json.loads(path.read_text())
    assert report["schema"] == "eqconv.report/1"
    assert report["command"] == "verify"
    assert {"version", "options", "machine", "rows", "summary"} <= set(report)
    table_rows = re.findall(r"e-\d+ +pass ", result.stdout)
    assert len(report["rows"]) == len(table_rows) == 12
    for row in report["rows"]:
        assert row["status"] == "pass"
        assert row["max_rel"] <= row["tolerance"]
        assert {"family", "problem", "variant", "algorithm", "framework", "device", "dtype", "check"} <= set(row)
    assert "12 pass" in result.stdout


def test_json_to_stdout_is_json_and_nothing_else() -> None:
    result = run(*FAST, "--json", "-")
    assert json.loads(result.stdout)["summary"]["pass"] == 12
    assert "12 pass" in result.stderr


def test_csv_and_junit(tmp_path: Path) -> None:
    table, junit = tmp_path / "rows.csv", tmp_path / "junit.xml"
    assert run(*FAST, "--csv", str(table), "--junit", str(junit)).exit_code == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["status"] for row in rows} == {"pass"}
    suite = ElementTree.parse(junit).getroot()
    assert suite.get("tests") == "12"
    assert suite.get("failures") == "0"
    assert len(suite.findall("testcase")) == 12


def test_no_colour_and_no_progress_in_a_pipe() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from eqconv_cli.app import main; main()", *FAST],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""


def test_a_broken_variant_exits_1_and_repeats(tmp_path: Path) -> None:
    plugin = Path(__file__).parent.parent / "planted" / "plugin.py"
    junit = tmp_path / "junit.xml"
    arguments = ["verify", "feature_steered", "--plugin", str(plugin), "--problem", "ragged", "--no-grad"]
    result = run(*arguments, "--only", "planted*", "--only", "v2+last@numpy", "--junit", str(junit))
    assert result.exit_code == 1
    assert "planted+zeros@numpy on ragged, float32, value: output is" in result.stdout
    repeat = next(line for line in result.stdout.splitlines() if line.strip().startswith("repeat:"))
    again = repeat.split("repeat: eqconv ")[1].split()
    assert run(*again).exit_code == 1
    failures = ElementTree.parse(junit).getroot().findall("testcase/failure")
    assert failures and all("repeat: eqconv verify" in (failure.text or "") for failure in failures)
    failed = [line for line in result.stdout.splitlines() if "  fail  " in line]
    assert failed and not [line for line in failed if "v2+last" in line]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "FAMILY 'nothing' is unknown: allowed: block_sparse, feature_steered"),
        (["--only", "v9*"], "--only 'v9*' is unknown"),
        (["--skip", "v9*"], "--skip 'v9*' is unknown"),
        (["--problem", "teapot"], "--problem 'teapot' is unknown"),
        (["--device", "tpu"], "--device 'tpu' is unknown"),
        (["--device", ","], "--device ',' names nothing"),
        (["--dtype", "float8"], "--dtype 'float8' is unknown"),
        (["--tol", "0"], "--tol 0: allowed: a number above 0"),
        (["--tol", "-1e-5"], "--tol -1e-05: allowed: a number above 0"),
        (["--tol", "nan"], "--tol nan: allowed: a number above 0"),
        (["--set", "channels"], "--set 'channels': expected NAME=VALUE"),
        (["--set", "colour=3"], "--set 'colour' is unknown"),
        (["--problem", "cow", "--graph", __file__], "--problem 'cow' and --graph exclude each other"),
        (["--quick", "--full"], "--quick and --full exclude each other"),
        (["--mesh", "no.obj"], "--mesh 'no.obj' is not a file"),
        (["--graph", "no.npz"], "--graph 'no.npz' is not a file"),
        (["--json", "/no/such/folder/x.json"], "--json '/no/such/folder/x.json': the folder"),
        (["--json", "-", "--csv", "-"], "both want stdout"),
        (["--plugin", "no.such.module"], "--plugin 'no.such.module' cannot be imported"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    result = run("verify", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_unreadable_meshes_and_graphs(tmp_path: Path) -> None:
    cases = {
        "noise.ply": (b"\x00\x01garbage", "--mesh", "cannot be read"),
        "empty.obj": (b"v 0 0 0\n", "--mesh", ""),
        "picture.png": (b"\x89PNG", "--mesh", "unknown suffix: allowed: .obj"),
        "far.obj": (b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", "--mesh", ""),
        "noise.npz": (b"garbage", "--graph", "cannot be read"),
    }
    for name, (content, option, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        result = run("verify", "feature_steered", option, str(path))
        assert result.exit_code == 2, name
        assert str(path) in result.stderr and message in result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr


def test_nothing_available_exits_3_and_strict_skips_exit_1() -> None:
    on_gpu = ["verify", "feature_steered", "--only", "v2+last@numpy", "--problem", "ragged", "--device", "cuda"]
    result = run(*on_gpu)
    assert result.exit_code == 3
    assert "v2 runs on cpu, not on cuda" in result.stdout
    assert run(*on_gpu, "--strict").exit_code == 1


def test_the_users_mesh_and_graph(tmp_path: Path) -> None:
    mesh = tmp_path / "tetrahedron.off"
    mesh.write_text("OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 1 2 3\n3 0 3 2\n")
    graph = tmp_path / "graph.npz"
    np.savez(graph, indices=np.array([[0, 1], [1, 0], [2, 2]]), data=np.eye(3))
    for option, path in (("--mesh", mesh), ("--graph", graph)):
        result = run("verify", "feature_steered", "--only", "closed_form@numpy", option, str(path))
        assert result.exit_code == 0, result.stderr
        assert f"{option[2:]}:{path.name}" in result.stdout


def test_a_fault_of_eqconv_exits_4_and_debug_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(plan: object) -> object:
        raise RuntimeError("planted fault")

    monkeypatch.setattr(engine, "verify", broken)
    result = run(*FAST)
    assert result.exit_code == 4
    assert "a fault of eqconv: RuntimeError: planted fault (traceback in " in result.stderr
    log = result.stderr.split("traceback in ")[1].split(";")[0]
    assert "planted fault" in Path(log).read_text()
    Path(log).unlink()
    assert isinstance(run(*FAST, "--debug").exception, RuntimeError)


def test_an_interrupt_prints_what_was_done_and_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = engine.check_value, []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return right(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "check_value", interrupted)
    result = run(*FAST)
    assert result.exit_code == 130
    assert "interrupted; what was done is above" in result.stdout


def test_seed_and_set_reach_the_problem() -> None:
    result = run(*FAST, "--seed", "7", "--set", "channels=3", "--json", "-")
    report = json.loads(result.stdout)
    assert {row["problem"] for row in report["rows"]} == {"ragged[channels=3]"}
    assert report["summary"]["seed"] == 7


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "family_names", lambda: ("two",))
    monkeypatch.setattr(catalog, "family", lambda name: {"two": fake.TWO}[name])


def test_the_overview_of_checks_and_globs(two: None, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    result = run("verify", "two", "--check", "E1*", "--check", "value", "--json", str(report))
    assert result.exit_code == 0, result.stderr
    assert "two: checks" in result.stdout and "two runs give the same bits" in result.stdout
    content = json.loads(report.read_text())
    assert {row["check"] for row in content["rows"]} == {"E1", "E14", "value"}
    assert [check["check"] for check in content["summary"]["checks"]] == ["E1", "E14", "value"]
    assert content["summary"]["checks"][0]["tolerance"] == 0.0
    unknown = run("verify", "two", "--check", "E5")
    assert unknown.exit_code == 2 and "--check 'E5' is unknown" in unknown.stderr
    assert run("verify", "two", "--check", "E3").exit_code == 3


def test_the_users_mask_and_image(two: None, tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    np.save(path, np.arange(12) % 5 == 0)
    result = run("verify", "two", "--mask", str(path), "--only", "sparse@numpy")
    assert result.exit_code == 0, result.stderr
    assert "two · mask:mask.npy · cpu" in result.stdout
    refused = run("verify", "two", "--image", str(path))
    assert refused.exit_code == 2 and "has no meaning for two" in refused.stderr


def test_quiet_prints_the_summary_only() -> None:
    result = run(*FAST, "--quiet")
    assert "v2+last@numpy  " not in result.stdout
    assert "12 pass" in result.stdout
