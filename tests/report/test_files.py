from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from eqconv_cli.errors import UsageError
from eqconv_cli.events import CSV_COLUMNS, Part, Row, RunFinished
from eqconv_cli.report import files
from eqconv_cli.report.markdown import markdown

PASS = Row("f", "p", "v@numpy", "v", "numpy", "cpu", "float32", "value", "pass", max_rel=1e-7, tolerance=1e-5)
FAIL = Row(
    "f", "p", "w@numpy", "w", "numpy", "cpu", "float32", "value", "fail",
    reason="y is nan, <b>", max_rel=float("nan"), repeat="eqconv verify f",
    parts=(Part("y", float("nan"), float("inf"), 1e-5, False, "is nan"),),
)  # fmt: skip
SKIP = Row("f", "p", "x@torch", "x", "torch", "cuda", "float32", "value", "skip", reason="no device")
ROWS = [PASS, FAIL, SKIP]


def test_report_is_strict_json_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    content = files.report("verify", "0", {"tol": 1e-5, "mesh": Path("a.obj")}, {}, ROWS, RunFinished({}, 1.5, True))
    path = tmp_path / "r.json"
    files.write_json(content, str(path))
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read == content
    assert read["summary"] == {
        "rows": 3, "pass": 1, "fail": 1, "error": 0, "skip": 1, "seconds": 1.5, "interrupted": True,
    }  # fmt: skip
    assert read["rows"][1]["max_rel"] is None and read["rows"][1]["parts"][0]["max_rel"] is None
    assert "max_rel" not in read["rows"][2]
    assert read["options"]["mesh"] == "a.obj"


def test_csv_has_every_scalar_column(capsys: pytest.CaptureFixture[str]) -> None:
    files.write_csv(ROWS, "-")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [row["status"] for row in rows] == ["pass", "fail", "skip"]
    assert rows[0]["median_s"] == "" and float(rows[0]["tolerance"]) == 1e-5


def test_junit_escapes_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    files.write_junit(ROWS, str(path), 2.0)
    suite = ElementTree.parse(path).getroot()
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3", "failures": "1", "errors": "0", "skipped": "1",
    }  # fmt: skip
    failure = suite.find("testcase/failure")
    assert failure is not None and failure.get("message") == "y is nan, <b>"
    assert "repeat: eqconv verify f" in (failure.text or "")


def test_targets_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    files.check_writable("--json", None)
    files.check_writable("--json", "-")
    files.check_writable("--json", str(tmp_path / "new.json"))
    with pytest.raises(UsageError, match="is a folder"):
        files.check_writable("--json", str(tmp_path))
    with pytest.raises(UsageError, match="is not there"):
        files.check_writable("--csv", str(tmp_path / "no" / "x.csv"))


def test_markdown_tables() -> None:
    lines = markdown([PASS, FAIL], "verify").splitlines()
    assert lines[0] == "### f · p · cpu"
    assert lines[2] == "| variant | dtype | check | error | tolerance | status | reason |"
    assert lines[4] == "| `v@numpy` | float32 | value | 1.0e-07 | 1e-05 | pass |  |"
    timed = replace(PASS, check="forward", median_s=0.002, iqr_s=0.001, ratio=0.5, ratio_low=0.4, ratio_high=0.6,
                    verdict="FASTER", peak_bytes=2**20)  # fmt: skip
    lines = markdown([timed], "bench").splitlines()
    assert lines[0] == "### f · p · cpu · float32 · forward"
    assert lines[-1] == "| `v@numpy` | 2.00 | 1.00 | 0.500 | 0.400 to 0.600 | FASTER | 1.0 | 1e-07 | pass |"
    assert markdown([replace(PASS, reason="a|b")], "verify").count("a\\|b") == 1
