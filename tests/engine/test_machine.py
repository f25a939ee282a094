from __future__ import annotations

import json

import pytest

from eqconv_cli.catalog import Cost
from eqconv_cli.engine import ceilings, machine


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


def test_the_higher_floor_binds() -> None:
    limits = ceilings.Ceilings(bytes_per_s=10.0, flops_per_s=100.0)
    assert limits.floor(Cost(flops=1000.0, bytes=10.0)) == (10.0, "numpy GEMM")
    assert limits.floor(Cost(flops=100.0, bytes=100.0)) == (10.0, "numpy copy")


def test_ceilings_are_measured() -> None:
    limits = ceilings.measure("float32")
    assert 1e8 < limits.bytes_per_s < 1e13
    assert 1e8 < limits.flops_per_s < 1e15
