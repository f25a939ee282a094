"""The machine that a result came from. Every probe stands alone; what cannot be read is None."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from eqconv_cli import frameworks

#: Instruction sets that kernels of this field care about, as the kernel of the system names them.
_INSTRUCTIONS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "asimd", "sve")
_PACKAGES = ("numpy", "scipy", "torch", "tensorflow", "keras", "torch-geometric", "matplotlib", "typer", "rich")
_COMPILERS = ("g++", "clang++", "nvcc")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")


def fingerprint() -> dict[str, Any]:
    """CPU, memory, GPU, load, compilers, library versions, thread settings and commit, as plain JSON types."""
    return {
        "system": platform.platform(),
        "cpu": cpu(),
        "memory_bytes": _memory_bytes(),
        "gpu": gpus(),
        "load_average": _load(),
        "cgroup": _cgroup(),
        "compilers": {name: compiler_version(name) for name in _COMPILERS},
        "python": platform.python_version(),
        "packages": {name: frameworks.installed_version(name) for name in _PACKAGES},
        "threads": {name: os.environ.get(name) for name in _THREAD_VARIABLES},
        "commit": _commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def identity(machine: dict[str, Any]) -> dict[str, Any]:
    """The part of a fingerprint that must be equal for two runs to be comparable."""
    processor = machine.get("cpu") or {}
    return {
        "model": processor.get("model"),
        "usable_cores": processor.get("usable_cores"),
        "gpu": machine.get("gpu"),
        "packages": machine.get("packages"),
        "threads": machine.get("threads"),
    }


def cpu() -> dict[str, Any]:
    """Model, cores, instruction sets, caches and frequency governor."""
    info = _read("/proc/cpuinfo") or ""
    fields = dict(line.split(":", 1) for line in info.split("\n\n")[0].splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set((named.get("flags") or named.get("Features") or "").split())
    return {
        "model": named.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "caches": _caches(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def gpus() -> list[str]:
    """One line for each NVIDIA GPU: name, memory, driver, clocks, power limit; empty without one."""
    query = "name,memory.total,driver_version,clocks.max.sm,power.limit"
    text = _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    return text.splitlines() if text else []


def compiler_version(name: str) -> str | None:
    """The line of ``--version`` with the release, or None when the compiler is not there."""
    text = _output(name, "--version") or ""
    lines = [line for line in text.splitlines() if line.strip()]
    release = [line for line in lines if "release" in line]
    return next(iter(release or lines), None)


def _caches() -> dict[str, str]:
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (_read(str(index / name)) for name in ("level", "type", "size"))
        if level and kind and size:
            caches[f"L{level} {kind}"] = size
    return caches


def _memory_bytes() -> int | None:
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _load() -> list[float] | None:
    try:
        return list(os.getloadavg())
    except (AttributeError, OSError):
        return None


def _cgroup() -> dict[str, str | None]:
    return {
        "cpu_quota": _read("/sys/fs/cgroup/cpu.max"),
        "throttled": next(
            (line for line in (_read("/sys/fs/cgroup/cpu.stat") or "").splitlines() if line.startswith("nr_throttled")),
            None,
        ),
    }


def _commit() -> str | None:
    """The commit of the checkout that this package lies in, with "+changes" when it differs from it."""
    here = str(Path(__file__).resolve().parents[2])
    if not (Path(here) / ".git").exists():
        return None
    commit = _output("git", "-C", here, "rev-parse", "--short", "HEAD")
    if not commit:
        return None
    return commit + ("+changes" if _output("git", "-C", here, "status", "--porcelain") else "")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _output(program: str, *arguments: str) -> str | None:
    found = shutil.which(program)
    if found is None:
        return None
    try:
        done = subprocess.run([found, *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
