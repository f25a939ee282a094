"""Compiles .cu files with the host compiler against ``cuda/emulation`` and calls what they export."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

EMULATION = Path(__file__).resolve().parents[2] / "cuda" / "emulation"
SOURCES = Path(__file__).resolve().parent
FLAGS = ("-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas")
SUCCESS, INVALID_VALUE, INVALID_CONFIGURATION, LAUNCH_FAILURE = 0, 1, 9, 719


def compiler() -> str | None:
    """$CXX, else g++, else clang++."""
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")


def compile_object(source: Path, folder: Path, flags: Iterable[str] = ()) -> Path:
    """The object of a .cpp or .cu file; raises with the compiler's messages."""
    to = folder / f"{source.name}.o"
    command = [str(compiler()), *FLAGS, *flags, "-I", str(EMULATION), "-DEQC_EMULATED", "-c"]
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    done = subprocess.run([*command, *language, str(source), "-o", str(to)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return to


def compile_emulator(folder: Path, flags: Iterable[str] = ()) -> list[Path]:
    return [compile_object(source, folder, flags) for source in sorted(EMULATION.glob("*.cpp"))]


class Kernels:
    """A .cu file, compiled, linked with the emulator and loaded."""

    def __init__(self, source: Path, emulator: list[Path], folder: Path, flags: Iterable[str] = ()) -> None:
        library = folder / f"lib{source.stem}.so"
        objects = [compile_object(source, folder, flags), *emulator]
        link = [str(compiler()), "-shared", "-pthread", "-Wl,--no-undefined", "-o", str(library)]
        subprocess.run([*link, *map(str, objects)], check=True)
        self._library = ctypes.CDLL(str(library))
        self._library.eqc_emulation_report.restype = ctypes.c_char_p

    def __call__(self, function: str, *arguments: Any) -> int:
        """Calls an exported function with arrays and ints; returns the CUDA error that it returns."""
        return int(self._library[function](*map(_converted, arguments)))

    def report(self) -> str:
        return str(self._library.eqc_emulation_report().decode())


def _converted(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return argument.ctypes.data_as(ctypes.c_void_p)
    return ctypes.c_int64(argument)
