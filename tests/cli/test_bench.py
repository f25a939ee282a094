"""``eqconv bench`` and ``eqconv info`` as a user meets them, on a family that costs nothing."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from eqconv_cli import catalog
from eqconv_cli.app import app
from eqconv_cli.commands.bench import parse_block_sizes, parse_sparsities
from eqconv_cli.errors import UsageError
from tests.engine import fake

QUICK = ["bench", "fake", "--quick"]


@pytest.fixture(autouse=True)
def _only_the_fake_family(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "real_catalog" not in request.keywords:
        monkeypatch.setattr(catalog, "family_names", lambda: ("fake",))
        monkeypatch.setattr(catalog, "family", lambda name: {"fake": fake.FAMILY}[name])


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_table_json_csv_and_plot(tmp_path: Path) -> None:
    report, table, plot = tmp_path / "r.json", tmp_path / "r.csv", tmp_path / "r.png"
    result = run(*QUICK, "--json", str(report), "--csv", str(table), "--plot", str(plot))
    assert result.exit_code == 0, result.stderr
    assert "fake · small · forward · cpu · float32   (ratio: time / time of good@numpy)" in result.stdout
    assert "SLOWER" in result.stdout and "baseline" in result.stdout
    content = json.loads(report.read_text())
    assert content["command"] == "bench" and content["schema"] == "eqconv.report/1"
    timed = [row for row in content["rows"] if "median_s" in row]
    assert all(len(row["samples_s"]) == row["runs"] == 5 for row in timed)
    with table.open() as file:
        assert len(list(csv.DictReader(file))) == len(content["rows"]) == 8
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "\x1b" not in result.stdout + result.stderr


def test_json_alone_on_stdout() -> None:
    result = run(*QUICK, "--json", "-")
    assert json.loads(result.stdout)["summary"]["rows"] == 8


def test_case_sparsity_and_sweep_plot(tmp_path: Path) -> None:
    plot = tmp_path / "sweep.svg"
    result = run(*QUICK, "--case", "published", "--sparsity", "0.5:0.9:0.2", "--plot", str(plot), "--json", "-")
    assert result.exit_code == 0, result.stderr
    names = {row["problem"] for row in json.loads(result.stdout)["rows"]}
    assert names == {f"small[sparsity={s}]" for s in (0.5, 0.7, 0.9)}
    assert plot.read_text().count('<g id="axes_') == 1


def test_a_wrong_variant_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(fake.FAMILY, variants=(fake.GOOD, fake.WRONG))
    monkeypatch.setattr(catalog, "family", lambda name: wrong)
    result = run(*QUICK, "--forward")
    assert result.exit_code == 1
    assert "not timed: y is" in result.stdout


def test_save_compare_and_regression(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    only = [*QUICK, "--forward", "--only", "slow@numpy"]
    assert run(*only, "--save", "before").exit_code == 0
    # So wide that no load of the machine leaves it: what is tested is the way there.
    same = run(*only, "--compare", "before", "--threshold", "100")
    assert same.exit_code == 0, same.stderr
    assert "now / saved run" in same.stdout and "SAME" in same.stdout
    slower = replace(fake.FAMILY, variants=(fake.variant("slow", sleep=0.02),))
    monkeypatch.setattr(catalog, "family", lambda name: slower)
    regressed = run(*only, "--compare", "before")
    assert regressed.exit_code == 1
    assert "SLOWER" in regressed.stdout
    saved = tmp_path / "eqconv" / "runs" / "before.json"
    content = json.loads(saved.read_text())
    content["machine"]["cpu"]["model"] = "another"
    saved.write_text(json.dumps(content))
    foreign = run(*only, "--compare", "before")
    assert foreign.exit_code == 2 and "--force does it anyway" in foreign.stderr
    assert run(*only, "--compare", "before", "--force").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "1.0"], "--sparsity 1: allowed: numbers in [0, 1)"),
        (["--sparsity", "-0.1"], "--sparsity -0.1: allowed"),
        (["--sparsity", "much"], "--sparsity 'much': allowed"),
        (["--sparsity", "0.9:0.5:0.1"], "--sparsity '0.9:0.5:0.1': allowed"),
        (["--case", "none"], "--case 'none' is unknown: allowed: published"),
        (["--tol", "0"], "--tol 0: allowed: a number above 0"),
        (["--time-budget", "-1"], "--time-budget -1: allowed: a number above 0"),
        (["--device", "cpu,cuda"], "bench takes one at a time"),
        (["--dtype", "int8"], "--dtype 'int8' is unknown"),
        (["--plot", "times.bmp"], "--plot 'times.bmp' has an unknown format: allowed: .png, .svg, .pdf"),
        (["--compare", "nothing-saved"], "--compare 'nothing-saved'"),
        (["--only", "zzz*"], "--only 'zzz*' is unknown"),
        (["--mesh", "no.obj"], "--mesh 'no.obj' is not a file"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    result = run(*QUICK, *arguments)
    assert result.exit_code == 2, result.stdout
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_nothing_timed_exits_3() -> None:
    assert run(*QUICK, "--backward", "--only", "forward@numpy").exit_code == 3


def test_explain_goes_to_stderr() -> None:
    result = run(*QUICK, "--forward", "--only", "good@numpy", "--explain")
    assert "small: auto: good, because n=1000" in result.stderr


def test_sparsity_lists_and_ranges() -> None:
    assert parse_sparsities(None) == ()
    assert parse_sparsities("0.9") == (0.9,)
    assert parse_sparsities("0.75,0.95,0.75") == (0.75, 0.95)
    assert parse_sparsities("0.1:0.3:0.1") == (0.1, 0.2, 0.3)
    assert parse_sparsities("0.5:0.99") == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
    assert parse_sparsities("0.5:0.6") == (0.5, 0.55, 0.6)
    assert parse_sparsities("0.9:0.9") == (0.9,)
    for text in ("0.6:0.5", "0.5:", "0.5:1", "0.1:0.2:0.1:0.1", "0.1:nan", "0.1:0.3:0", "0.1:2:0.1", "nan", "", "0.5,"):
        with pytest.raises(UsageError, match="--sparsity"):
            parse_sparsities(text)


def test_block_sizes() -> None:
    assert parse_block_sizes(None) == ()
    assert parse_block_sizes("auto") == ("auto",)
    assert parse_block_sizes("8, 16x18,auto,8") == (8, "16x18", "auto")
    for text in ("0", "-1", "x8", "8x", "8x0", "8x8x8", "", "8,", "big"):
        with pytest.raises(UsageError, match="--block-size"):
            parse_block_sizes(text)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    families = {"fake": fake.FAMILY, "two": fake.TWO}
    monkeypatch.setattr(catalog, "family_names", lambda: tuple(families))
    monkeypatch.setattr(catalog, "family", lambda name: families[name])


TWO = ["bench", "--quick", "--forward"]


def problems(*arguments: str) -> list[str]:
    result = run(*TWO, *arguments, "--json", "-")
    assert result.exit_code == 0, result.stderr
    return list(dict.fromkeys(row["problem"] for row in json.loads(result.stdout)["rows"]))


def test_a_sparsity_alone_takes_every_familys_bench_problems(two: None) -> None:
    assert problems("--sparsity", "0.9") == ["small[sparsity=0.9]", "a[sparsity=0.9]"]


def test_shorthands(two: None, tmp_path: Path) -> None:
    assert problems("--test", "res", "--arch", "v3") == ["c"]
    assert problems("--mask", "noise", "--block-size", "4,8") == [
        "a[block_size=4,mask=noise]",
        "a[block_size=8,mask=noise]",
    ]
    assert problems("--include-reduce") == ["a[include_reduce=True]"]
    assert problems("--no-include-reduce") == ["a[include_reduce=False]"]
    np.save(tmp_path / "mine.npy", np.arange(50) % 7 == 0)
    assert problems("--mask", str(tmp_path / "mine.npy"), "--only", "sparse@numpy") == ["mask:mine.npy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--test", "cnv"], "--test 'cnv' is unknown: did you mean conv? allowed: conv, res"),
        (["--arch", "v1"], "--arch 'v1' is unknown"),
        (["--test", "res", "--arch", "v2"], "--test res --arch v2: no problem of fake, two is all of it"),
        (["--mask", "blobs"], "--mask 'blobs' is unknown: allowed: corner, noise"),
        (["--mask", "no.png"], "--mask 'no.png' is not a file"),
        (["--block-size", "huge"], "--block-size 'huge': allowed: auto, a number above 0, HEIGHTxWIDTH"),
        (["--csv-format", "xml"], "--csv-format 'xml' is unknown: allowed: rows, sbnet"),
    ],
)
def test_wrong_shorthands(two: None, arguments: list[str], message: str) -> None:
    result = run(*TWO, *arguments)
    assert result.exit_code == 2, result.stdout
    assert message in result.stderr


def test_a_sweep_prints_break_even_stages_and_sbnets_columns(two: None, tmp_path: Path) -> None:
    table, plot = tmp_path / "sbnet.csv", tmp_path / "sweep.png"
    sweep = ["two", "--test", "conv", "--sparsity", "0.2,0.9", "--csv", str(table), "--csv-format", "sbnet"]
    result = run(*TWO, *sweep, "--plot", str(plot), "--json", str(tmp_path / "r.json"))
    assert result.exit_code == 0, result.stderr
    assert "break-even sparsity" in result.stdout and "above 0." in result.stdout
    assert "stages of sparse@numpy, ms: reduce 4.000, gather 2.000" in result.stdout
    assert "ideal speed-up 10.00" in result.stdout
    with table.open() as file:
        assert [line["sparsity"] for line in csv.DictReader(file)] == ["0.2", "0.9"]
    content = json.loads((tmp_path / "r.json").read_text())
    assert [found["variant"] for found in content["summary"]["break_even"]] == ["sparse@numpy"]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.real_catalog
def test_info() -> None:
    result = run("info")
    assert result.exit_code == 0
    assert "feature_steered" in result.stdout and "torch" in result.stdout
    content = json.loads(run("info", "--json", "-").stdout)
    items = {item["name"]: item for item in content["items"]}
    assert items["numpy"]["found"] and items["cpu"]["found"]
    assert all(item["enables"] for item in items.values())
    assert all(item["found"] or item["remedy"] for item in items.values())
    assert [family["name"] for family in content["families"]] == list(catalog.family_names())


def test_version() -> None:
    from eqconv_cli import __version__

    assert run("--version").stdout == f"eqconv {__version__}\n"
