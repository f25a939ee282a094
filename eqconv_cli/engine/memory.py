"""Peak memory of one pass of one variant, measured, not estimated.

On a GPU the framework's allocator counts. On the CPU no allocator does, so a fresh process prepares the variant, warms
it up on a small problem of the same kind, resets the kernel's high-water mark of its resident memory, and runs the pass
once: the peak is the mark minus what was resident before.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eqconv_cli import catalog
from eqconv_cli.catalog import Case, Family, Parameter, Prepared, Problem, Variant

RESIDENT = "resident high-water mark of a fresh process"
ALLOCATOR = "the framework's allocator"
_TIMEOUT_S = 600
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception|Unsupported|Interrupt)\b")


@dataclass(frozen=True)
class Request:
    """What to measure, in names that another process can look up."""

    family: str
    operation: str
    case: str | None
    problem: str
    parameters: Mapping[str, Parameter]
    variant: str
    dtype: str
    device: str
    seed: int
    backward: bool
    threads: int | None = None
    plugin: str | None = None
    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Measured:
    """Bytes above the start, how they were measured, or why they were not."""

    peak_bytes: int | None
    source: str


def measure(request: Request) -> Measured:
    """Measure in a fresh process."""
    if not Path("/proc/self/clear_refs").exists():
        return Measured(None, "not measured: this system keeps no resettable high-water mark")
    command = [sys.executable, "-m", "eqconv_cli.engine.memory"]
    try:
        done = subprocess.run(
            command, input=json.dumps(asdict(request)), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Measured(None, f"not measured: more than {_TIMEOUT_S} s")
    if done.returncode != 0:
        return Measured(None, f"not measured: exit code {done.returncode}, {_why(done.stderr)[:200]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return Measured(answer["peak_bytes"], answer["source"])


def _why(stderr: str) -> str:
    """The exception that ended a process, which some frameworks follow with advice; else its last words."""
    lines = stderr.strip().splitlines() or ["no message"]
    return next((line for line in reversed(lines) if _EXCEPTION.match(line)), lines[-1])


def resident_peak(work: Callable[[], Any]) -> int:
    """Bytes by which the resident memory of this process rose above its start while ``work`` ran (Linux).

    Memory that the process holds but no longer uses is given back first: an allocation that found its place there would
    not be seen.

    Raises:
        OSError: the kernel does not let the mark be reset.
    """
    gc.collect()
    _give_unused_memory_back()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = work()
    peak = _status("VmHWM") - before
    del result
    return peak


def _give_unused_memory_back() -> None:
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def _answer(request: Mapping[str, Any]) -> Measured:
    from eqconv_cli.engine.oracle import Instance

    family, case, variant, problem = _look_up(request)
    operation = family.operation_of(problem)
    operation = case.timed(operation) if case else operation
    instance = Instance(operation, problem, request["dtype"], request["seed"])
    warmed = ""
    try:
        tiny = Instance(operation, _tiny(family, problem), request["dtype"], request["seed"])
        _Pass(variant, tiny, request)()
    except Exception as error:  # whatever a variant raises that was not made for the small problem
        _Pass(variant, instance, request)()
        warmed = f", warmed up by the problem itself (the small one raised {type(error).__name__})"
    work = _Pass(variant, instance, request)
    counted = work.prepared.peak_bytes(work) if request["device"] != "cpu" else None
    if counted is not None:
        return Measured(counted, ALLOCATOR + warmed)
    return Measured(resident_peak(work), RESIDENT + warmed)


class _Pass:
    """One forward or forward+backward pass, prepared; calling it runs it to its end."""

    def __init__(self, variant: Variant, instance: Any, request: Mapping[str, Any]) -> None:
        self.prepared: Prepared = variant.bind(instance.fresh_inputs(), request["dtype"], request["device"])
        self.cotangents: Mapping[str, Any] | None = None
        if request["backward"]:
            self.cotangents = {name: self.prepared.upload(g) for name, g in instance.cotangents.items()}

    def __call__(self) -> Any:
        if self.cotangents is None:
            result = self.prepared.run()
        else:
            result = self.prepared.run_backward(self.cotangents)
        self.prepared.synchronize()
        return result


def _look_up(request: Mapping[str, Any]) -> tuple[Family, Case | None, Variant, Problem]:
    family = catalog.family(request["family"])
    case = next((c for c in family.cases if c.name == request["case"]), None)
    known: Sequence[Variant] = case.variants if case else family.variants
    if request["plugin"]:
        known = (*known, *catalog.plugin_variants(request["plugin"]).get(family.name, ()))
    opened = [problem for option, path in request["files"] for problem in family.opened(option, Path(path))]

    def mine(record: Variant | Problem, name: str) -> bool:
        return record.name == request[name] and family.operation_of(record).name == request["operation"]

    variant = next(v for v in known if mine(v, "variant"))
    problem = next(p for p in [*(case.problems if case else family.problems), *opened] if mine(p, "problem"))
    return family, case, variant, problem.with_parameters(**request["parameters"]) if request["parameters"] else problem


def _tiny(family: Family, problem: Problem) -> Problem:
    """A small problem with the same layer sizes: whatever a first call allocates for good is allocated by it."""
    if problem.tiny:
        return problem.with_parameters(**problem.tiny)
    mine = [p for p in family.problems if family.operation_of(p) is family.operation_of(problem)]
    tiny = next((p for p in mine if "tiny" in p.traits), problem)
    shared = {name: value for name, value in problem.parameters.items() if name in tiny.parameters}
    return tiny.with_parameters(**shared)


def main() -> None:
    """Answer one request from stdin on stdout, both JSON."""
    from eqconv_cli import frameworks

    request = json.loads(sys.stdin.read())
    frameworks.limit_threads(request["threads"])
    with frameworks.pinned(request["threads"]):
        print(json.dumps(asdict(_answer(request))))


if __name__ == "__main__":
    main()
