"""The emulator, and the two files of kernels that the tests run, compiled once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulation import support


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if support.compiler() is None:
        pytest.skip("no C++ compiler: g++ or clang++ on the PATH, or $CXX")
    return support.compile_emulator(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="session")
def primitives(emulator: list[Path], tmp_path_factory: pytest.TempPathFactory) -> support.Kernels:
    return support.Kernels(support.SOURCES / "primitives.cu", emulator, tmp_path_factory.mktemp("primitives"))


@pytest.fixture(scope="session")
def faults(emulator: list[Path], tmp_path_factory: pytest.TempPathFactory) -> support.Kernels:
    return support.Kernels(support.SOURCES / "faults.cu", emulator, tmp_path_factory.mktemp("faults"))


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EQCONV_EMULATION", raising=False)
