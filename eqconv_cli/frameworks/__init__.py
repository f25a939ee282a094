"""The array frameworks, seen alike: is it here, which version, which devices, how many threads.

Nothing in this file imports a framework; the module named after one does. ``BoundRun`` in each module is the
:class:`eqconv_cli.catalog.Prepared` for functions of that framework's arrays.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

FRAMEWORKS = ("numpy", "torch", "tensorflow")
#: "emulated" runs the CUDA kernels on the CPU; a framework's tensors are on the CPU then.
DEVICES = ("cpu", "cuda", "emulated")
#: How each optional framework is installed.
REMEDY = {"torch": 'pip install "eqconv[torch]"', "tensorflow": 'pip install "eqconv[tensorflow]"'}


def installed_version(package: str) -> str | None:
    """The version of an installed distribution, read from its metadata; None when it is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # 20 ms that `eqconv --help` does without

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def missing(framework: str) -> list[str]:
    """Why this framework cannot be used here; empty when it can (it is found, not imported)."""
    if importlib.util.find_spec(framework) is None:
        return [f"{framework} is not installed ({REMEDY[framework]})"]
    return []


def missing_device(framework: str, device: str) -> list[str]:
    """Why this framework cannot compute on this device; empty when it can. Imports the framework for a GPU."""
    if of_framework(device) == "cpu":
        return []
    if framework == "numpy":
        return [f"numpy computes on the cpu only, not on {device}"]
    reasons: list[str] = importlib.import_module(f"eqconv_cli.frameworks.{framework}").missing_device(device)
    return reasons


def of_framework(device: str) -> str:
    """The device that a framework's arrays are on: "cpu" or "cuda"."""
    return "cpu" if device == "emulated" else device


def limit_threads(threads: int | None) -> None:
    """Fix the number of compute threads of every framework; to be called before any of them is imported.

    None leaves each framework's own default (all cores).
    """
    if threads is None:
        return
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)
    os.environ["TF_NUM_INTEROP_THREADS"] = "1"


@contextmanager
def pinned(threads: int | None) -> Iterator[tuple[int, ...]]:
    """Keep this thread, and every thread and process that starts from it, on as many cores as there are threads.

    A number of compute threads alone leaves room for helpers: a framework's executor, compiler and autograd threads.
    Afterwards this thread may run where it could before.

    Args:
        threads: None, or more than the cores that the process may use, pins nothing.

    Yields:
        The cores; empty when nothing is pinned, also where the system cannot do it.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if threads is None or threads > len(allowed):
        yield ()
        return
    # The last ones, for the first serves most interrupts.
    cores = tuple(allowed[-threads:])
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, allowed)
