from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from eqconv_cli.kernels import toolchain
from eqconv_cli.kernels.toolchain import Missing
from tests.kernels import support


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder on the PATH; no CUDA toolkit anywhere else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(toolchain, "_SYSTEM", tmp_path / "local")
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: str(tmp_path / "site"))
    return folder


def says(path: Path, version: str) -> Path:
    return support.program(path, f"echo '{version}'")


def test_the_cpp_compiler(only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missing, match="neither g\\+\\+ nor clang\\+\\+ is on the PATH") as missing:
        toolchain.cxx()
    assert missing.value.remedy == "apt-get install g++"
    clang = says(only / "clang++", "clang version 19")
    assert toolchain.cxx() == toolchain.Compiler((str(clang),), "clang version 19")
    gcc = says(only / "g++", "g++ 14")
    assert toolchain.cxx().command == (str(gcc),)
    monkeypatch.setenv("CXX", "clang++ -m64")
    assert toolchain.cxx().command == (str(clang), "-m64")
    monkeypatch.setenv("CXX", "icpx")
    with pytest.raises(Missing, match="the variable CXX names 'icpx', which is not here"):
        toolchain.cxx()


def test_a_compiler_that_does_not_work(only: Path) -> None:
    support.program(only / "g++", "exit 1")
    with pytest.raises(Missing, match="does not work: it fails when asked for its version"):
        toolchain.cxx()
    (only / "g++").write_text("#!/no/such/shell\n")
    with pytest.raises(Missing, match="does not work"):
        toolchain.cxx()


def test_nvcc_is_found_where_it_can_be(only: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missing, match=r"no nvcc: not in \$CUDA_HOME, on the PATH") as missing:
        toolchain.nvcc()
    assert missing.value.remedy == "pip install nvidia-cuda-nvcc"
    version = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\nBuild 1"
    places = [
        tmp_path / "site" / "nvidia" / "cuda_nvcc" / "bin" / "nvcc",
        tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc",
        tmp_path / "local" / "cuda-9.2" / "bin" / "nvcc",
        tmp_path / "local" / "cuda-12.4" / "bin" / "nvcc",
        tmp_path / "local" / "cuda" / "bin" / "nvcc",
        only / "nvcc",
        tmp_path / "home" / "bin" / "nvcc",
    ]
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    for place in places:
        says(place, version)
        found = toolchain.nvcc()
        assert found.command == (str(place),)
        assert found.version == "Cuda compilation tools, release 13.0, V13.0.88"


def test_architectures(tmp_path: Path) -> None:
    nvcc = support.program(tmp_path / "nvcc", "printf 'sm_80\\nsm_90\\n'")
    assert toolchain.architectures(toolchain.Compiler((str(nvcc),), "")) == ("sm_80", "sm_90")
    silent = support.program(tmp_path / "old", "exit 1")
    assert toolchain.architectures(toolchain.Compiler((str(silent),), "")) == ()


def test_frameworks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolchain.framework.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert toolchain.missing_framework("torch") == ['torch is not installed: pip install "eqconv[torch]"']
    assert toolchain.missing_framework(None) == []
    with pytest.raises(Missing, match="tensorflow is not installed") as missing:
        toolchain.needed_framework("tensorflow")
    assert missing.value.remedy == 'pip install "eqconv[tensorflow]"'
    spec = ModuleSpec("tensorflow", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    toolchain.framework.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    found = toolchain.needed_framework("tensorflow")
    toolchain.framework.cache_clear()
    assert found.folder == tmp_path
    with pytest.raises(Missing, match=r"libtensorflow_framework.so.2 cannot be read"):
        toolchain.cxx11_abi(found)
    for content, abi in ((b"_ZNSt7__cxx1112basic_stringIcE", 1), (b"_ZNSsC1Ev", 0)):
        (tmp_path / "libtensorflow_framework.so.2").write_bytes(content)
        assert toolchain.cxx11_abi(found) == abi
    assert toolchain.Framework("torch", tmp_path, "2.13").identity == "torch 2.13"
    assert toolchain.Framework("torch", tmp_path, "").identity == f"torch {tmp_path}"
