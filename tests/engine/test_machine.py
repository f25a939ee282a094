from __future__ import annotations

import json

import pytest

from eqconv_cli.engine import machine


def test_fingerprint_is_json_and_names_what_matters() -> None:
    found = machine.fingerprint()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"]["cores"] >= found["cpu"]["usable_cores"] >= 1
    assert found["packages"]["numpy"]
    assert set(found["compilers"]) == {"g++", "clang++", "nvcc"}


def test_missing_programs_and_files_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert machine.compiler_version("g++") is None
    assert machine.gpus() == []
    assert machine.fingerprint()["compilers"]["nvcc"] is None


def test_identity_sees_another_machine() -> None:
    here = machine.fingerprint()
    there = {**here, "cpu": {**here["cpu"], "model": "another"}}
    assert machine.identity(here) != machine.identity(there)
    assert machine.identity(here) == machine.identity({**here, "load_average": [9.0, 9.0, 9.0]})
