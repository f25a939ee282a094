"""The core for the CPU, compiled with a sanitizer and linked with a driver that calls its operations."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eqconv_cli.kernels import sources, targets, toolchain

HERE = Path(__file__).resolve().parent
CUDA = HERE.parents[1] / "cuda"
#: Each is a program of its own.
DRIVERS = {path.stem: path for path in sorted(HERE.glob("*.cpp"))}
SANITIZERS = {"address": "address,undefined", "thread": "thread"}
TIMEOUT_S = 300

# An optimiser removes faults along with what they do not change, hence -O1. The first fault ends the program.
_FLAGS = ("-O1", "-g1", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
_OPTIONS = {
    # Looking for leaks takes rights that containers do not have; operations allocate nothing.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


class Build:
    """The objects of the core for one sanitizer; programs are linked from them."""

    def __init__(self, sanitizer: str, folder: Path) -> None:
        self._folder = folder
        self._command = (*toolchain.cxx().command, f"-fsanitize={SANITIZERS[sanitizer]}", "-pthread")
        jobs = [
            (source, rule.flags, f"{source.stem}-{rule.suffix}.o")
            for rule in targets.target("cpu").rules
            for source in sources.of_rule(rule, CUDA)
        ]
        jobs += [(source, ("-std=c++17", "-Wall", "-Wextra"), f"driver-{name}.o") for name, source in DRIVERS.items()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: self.compile(*job), jobs))
        self._core = [name for _, _, name in jobs if not name.startswith("driver-")]

    def compile(self, source: Path, flags: Sequence[str], name: str) -> None:
        """Compile a source into the object of this name."""
        to = str(self._folder / name)
        self._run([*self._command, *flags, *_FLAGS, f"-I{CUDA}", f"-I{CUDA / 'common'}", "-c", str(source), "-o", to])

    def program(self, driver: str, instead: Mapping[str, str] | None = None) -> Path:
        """Link a driver with the core, in which some objects can be replaced by others."""
        instead = instead or {}
        objects = [f"driver-{driver}.o", *(instead.get(name, name) for name in self._core)]
        to = self._folder / "-".join([driver, *instead])
        self._run([*self._command, *(str(self._folder / name) for name in objects), "-o", str(to)])
        return to

    @staticmethod
    def _run(command: Sequence[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)


def missing() -> str:
    """Why nothing can be built with the sanitizers here; empty when it can."""
    try:
        command = toolchain.cxx().command
    except toolchain.Missing as missing:
        return missing.reason
    for flags in SANITIZERS.values():
        link = [*command, "-x", "c++", "-", f"-fsanitize={flags}", "-o", os.devnull]
        done = subprocess.run(link, input="int main() {}", capture_output=True, text=True)
        if done.returncode != 0:
            return f"{command[0]} -fsanitize={flags} does not work: {done.stderr.strip().splitlines()[-1]}"
    return ""


def run(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, or to the first fault."""
    # The sanitizers' own memory is at fixed places, which random addresses of the program can run into.
    fixed = ["setarch", platform.machine(), "-R"]
    if shutil.which(fixed[0]) is None or subprocess.run([*fixed, "true"], capture_output=True).returncode != 0:
        fixed = []
    return subprocess.run(
        [*fixed, str(program), *words],
        env={**os.environ, **_OPTIONS},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
    )
