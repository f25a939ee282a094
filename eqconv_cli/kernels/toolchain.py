"""Compilers and frameworks to build with: found without being started or imported where that is possible."""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CXX_REMEDY = "apt-get install g++"
NVCC_REMEDY = "pip install nvidia-cuda-nvcc"
_FRAMEWORK_REMEDY = {"torch": 'pip install "eqconv[torch]"', "tensorflow": 'pip install "eqconv[tensorflow]"'}
#: Distributions that bring the module tensorflow.
_DISTRIBUTIONS = {"torch": ("torch",), "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-rocm", "tf-nightly")}
TENSORFLOW_LIBRARY = "libtensorflow_framework.so.2"
#: Where toolkits of the system are.
_SYSTEM = Path("/usr/local")
_TIMEOUT_S = 60


class Missing(Exception):
    """A tool that a target needs is not here; carries the reason and the one command that gets it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclass(frozen=True)
class Compiler:
    """A compiler that answered when asked for its version."""

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Framework:
    """An installed framework: where it is and which release."""

    name: str
    folder: Path
    version: str

    @property
    def identity(self) -> str:
        """What a library built for it depends on: the release, wherever it is installed."""
        return f"{self.name} {self.version or self.folder}"


def cxx() -> Compiler:
    """The C++ compiler: ``$CXX``, else g++, else clang++.

    Raises:
        Missing: there is none, or it does not work.
    """
    given = os.environ.get("CXX", "").strip()
    if given:
        words = shlex.split(given)
        program = shutil.which(words[0])
        if program is None:
            raise Missing(f"the variable CXX names {words[0]!r}, which is not here", f"unset CXX; {CXX_REMEDY}")
        return _asked((program, *words[1:]), CXX_REMEDY)
    for name in ("g++", "clang++"):
        program = shutil.which(name)
        if program:
            return _asked((program,), CXX_REMEDY)
    raise Missing("no C++ compiler: neither g++ nor clang++ is on the PATH", CXX_REMEDY)


def nvcc() -> Compiler:
    """The CUDA compiler: of ``$CUDA_HOME``, on the PATH, in /usr/local/cuda*, or from the pip wheel.

    Raises:
        Missing: there is none, or it does not work.
    """
    for program in _nvcc_places():
        if os.access(program, os.X_OK) and program.is_file():
            return _asked((str(program),), NVCC_REMEDY)
    raise Missing("no nvcc: not in $CUDA_HOME, on the PATH, in /usr/local/cuda* or among the pip packages", NVCC_REMEDY)


def _nvcc_places() -> Iterator[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable], "bin", "nvcc")
    on_path = shutil.which("nvcc")
    if on_path:
        yield Path(on_path)
    yield _SYSTEM / "cuda" / "bin" / "nvcc"
    yield from sorted(_SYSTEM.glob("cuda-*/bin/nvcc"), key=_numbers, reverse=True)
    for site in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
        yield from sorted(Path(site).glob("nvidia/*/bin/nvcc"), key=_numbers, reverse=True)


def _numbers(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", str(path))]


def architectures(compiler: Compiler) -> tuple[str, ...]:
    """What this nvcc can compile for, e.g. ``("sm_80", "sm_90", "sm_90a")``; empty when it does not say."""
    text = _answer((*compiler.command, "--list-gpu-code"))
    return tuple(re.findall(r"\bsm_\w+", text or ""))


def _asked(command: tuple[str, ...], remedy: str) -> Compiler:
    text = _answer((*command, "--version"))
    if text is None:
        raise Missing(f"{' '.join(command)} does not work: it fails when asked for its version", remedy)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    release = [line for line in lines if "release" in line]
    return Compiler(command, next(iter(release or lines), ""))


def _answer(command: tuple[str, ...]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@cache
def framework(name: str) -> Framework | None:
    """An installed framework, found without importing it; None without it."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Framework(name, Path(folders[0]), _distribution_version(name)) if folders else None


def missing_framework(name: str | None) -> list[str]:
    """Why a target that is built for this framework cannot be, with the remedy; empty when it can."""
    if name is None or framework(name) is not None:
        return []
    return [f"{name} is not installed: {_FRAMEWORK_REMEDY[name]}"]


def needed_framework(name: str) -> Framework:
    """The installed framework.

    Raises:
        Missing: it is not installed.
    """
    found = framework(name)
    if found is None:
        raise Missing(f"{name} is not installed", _FRAMEWORK_REMEDY[name])
    return found


def _distribution_version(module: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    for distribution in _DISTRIBUTIONS[module]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return ""


def cxx11_abi(tensorflow: Framework) -> int:
    """1 when TensorFlow speaks the C++11 ABI of libstdc++ (its std::string is in ``std::__cxx11``), else 0.

    Raises:
        Missing: the library to link with is not in the installation.
    """
    library = tensorflow.folder / TENSORFLOW_LIBRARY
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return int(content.find(b"St7__cxx1112basic_string") >= 0)
    except (OSError, ValueError) as error:
        raise Missing(f"{library} cannot be read: {error}", "pip install --force-reinstall tensorflow") from error
