from __future__ import annotations

import json
from pathlib import Path

import pytest

from eqconv_cli.engine import baselines
from eqconv_cli.engine.machine import fingerprint
from eqconv_cli.errors import UsageError
from eqconv_cli.events import Row
from eqconv_cli.report.files import row_object


def row(variant: str, *samples: float) -> Row:
    return Row("f", "p", variant, "a", "numpy", "cpu", "float32", "forward", "pass", samples_s=samples)


def saved(*rows: Row) -> dict[str, object]:
    return {"schema": "eqconv.report/1", "command": "bench", "rows": [row_object(r) for r in rows]}


def test_names_and_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert baselines.saved_path("before") == tmp_path / "eqconv" / "runs" / "before.json"
    assert baselines.saved_path("here.json") == Path("here.json")
    with pytest.raises(UsageError, match=r"--compare 'before': .* is not there; saved runs: none"):
        baselines.load("before")


def test_only_reports_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    for content, message in (("{", "cannot be read"), ("{}", "is not a bench report"), ("[]", "is not a bench report")):
        path.write_text(content)
        with pytest.raises(UsageError, match=message):
            baselines.load(str(path))
    path.write_text(json.dumps(saved()))
    assert baselines.load(str(path))["rows"] == []


def test_verdicts_row_by_row() -> None:
    then = saved(row("a", 1.0, 1.0, 1.0), row("b", 1.0, 1.0, 1.0), row("gone", 1.0))
    now = [row("a", 2.0, 2.0, 2.0), row("b", 1.0, 1.01, 1.0), row("new", 1.0)]
    compared = baselines.compare(now, then, 0.05)
    assert [(c.label.split(" ")[0], c.verdict) for c in compared] == [("a", "SLOWER"), ("b", "SAME")]
    assert compared[0].ratio.value == 2.0 and compared[0].then_s == 1.0 and compared[0].now_s == 2.0


def test_another_machine_is_named() -> None:
    here = fingerprint()
    assert baselines.differences(here, here) == []
    other = {**here, "threads": {"OMP_NUM_THREADS": "64"}}
    (difference,) = baselines.differences(here, other)
    assert difference.startswith("threads: {'OMP_NUM_THREADS': '64'} then")
