"""Builds the compiled core and shows that what was built works.

A smoke test is a small run of ``verify`` with the variants that need the target, in a process of its own, so that a
library that crashes takes nothing with it. Where no such variant can run, loading the library is all that is shown.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import eqconv_cli
from eqconv_cli import catalog, frameworks, kernels
from eqconv_cli.engine import selection
from eqconv_cli.engine.machine import gpus
from eqconv_cli.events import (
    Event,
    RowFinished,
    RunFinished,
    RunStarted,
    Status,
    TargetFinished,
    TargetRow,
    UnitFinished,
    UnitStarted,
)
from eqconv_cli.kernels import bindings, targets

TARGETS = kernels.TARGETS
#: The algorithm that the compiled core computes.
_ALGORITHM = "fused"
_TIMEOUT_S = 600
#: The new process takes this very package, not one that lies in the folder it starts in.
_START = f"import sys; sys.path[:] = [{str(Path(eqconv_cli.__file__).parent.parent)!r}, *filter(None, sys.path)]\n"
_SMOKE = _START + "from eqconv_cli.engine.build import smoke; smoke(*sys.argv[1:])"
_LOAD = _START + "from eqconv_cli.engine.build import load; load(*sys.argv[1:])"


@dataclass(frozen=True)
class BuildPlan:
    """Everything that ``build-kernels`` needs to know."""

    targets: tuple[str, ...] = TARGETS
    arch: tuple[str, ...] | None = None
    jobs: int | None = None
    force: bool = False
    #: Run a smoke test on every target that is there afterwards.
    check: bool = False


def build(plan: BuildPlan) -> Generator[Event, None, None]:
    """Build the targets, check them if that is wanted, and yield the events; rows come in the order of the targets.

    An interrupt (Ctrl-C) ends the run; the closing event says so, and what was finished has its row.
    """
    started = time.perf_counter()
    rows: list[TargetRow] = []
    finished = RunFinished({}, 0.0)
    events = kernels.build(plan.targets, arch=plan.arch, jobs=plan.jobs, force=plan.force)
    with closing(events):
        for event in events:
            if isinstance(event, TargetFinished):
                rows.append(event.row)
            elif isinstance(event, RunFinished):
                finished = event
            elif isinstance(event, RunStarted) and plan.check:
                yield RunStarted(event.total + len(plan.targets))
            else:
                yield event
    rows.sort(key=lambda row: plan.targets.index(row.target))
    interrupted = finished.interrupted
    for place, row in enumerate(rows):
        if plan.check and not interrupted:
            yield UnitStarted(f"{row.target}: check")
            try:
                rows[place] = _checked(row)
            except KeyboardInterrupt:
                interrupted = True
            yield UnitFinished()
        yield TargetFinished(rows[place])
    yield replace(finished, interrupted=interrupted, seconds=time.perf_counter() - started)


def _checked(row: TargetRow) -> TargetRow:
    if row.path is None:
        return row
    reasons = []
    for framework, device in targets.target(row.target).smoke:
        why = _why_no_smoke(framework, device)
        if why:
            reasons.append(why)
            continue
        status, detail = _in_own_process(_SMOKE, framework, device)
        if status != "skip":
            return replace(row, check=status, check_detail=detail)
        reasons.append(detail)
    status, detail = _in_own_process(_LOAD, row.target, row.path)
    if status == "pass":
        detail = f"{detail}; nothing was computed: {'; '.join(dict.fromkeys(reasons))}"
    return replace(row, check=status, check_detail=detail)


def _why_no_smoke(framework: str, device: str) -> str:
    if device == "cuda" and not gpus():
        return "there is no NVIDIA GPU here"
    if frameworks.missing(framework):
        return f"{framework} is not installed"
    return "" if _variants(framework) else f"no {_ALGORITHM} variant for {framework}"


def _variants(framework: str) -> list[str]:
    families = [catalog.family(name) for name in catalog.family_names()]
    variants = (variant for family in families for variant in family.variants)
    return [variant.name for variant in variants if (variant.algorithm, variant.framework) == (_ALGORITHM, framework)]


def _in_own_process(program: str, *arguments: str) -> tuple[Status, str]:
    """Run one of the functions below in a fresh interpreter; a crash and an endless run are failures."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "fail", f"did not end in {_TIMEOUT_S} s"
    if done.returncode < 0:
        return "fail", f"ended by {signal.Signals(-done.returncode).name}"
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        return answer["status"], answer["detail"]
    except (IndexError, ValueError, KeyError, TypeError):
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        return "fail", "; ".join(last) or f"ended with status {done.returncode}"


def _answer(status: Status, detail: str) -> None:
    print(json.dumps({"status": status, "detail": detail}))


def smoke(framework: str, device: str) -> None:
    """Compare the compiled variants of a framework with the reference on the smallest problems; prints the outcome."""
    from eqconv_cli.engine.verify import VerifyPlan, verify  # NumPy, which building does without

    names = _variants(framework)
    families = selection.families(())
    plan = VerifyPlan(
        selections=selection.for_verify(families, selection.Filters(only=tuple(names)), "quick"),
        dtypes=("float32",),
        devices=(device,),
        invariants=False,
    )
    rows = [event.row for event in verify(plan) if isinstance(event, RowFinished)]
    compared = [row for row in rows if row.status == "pass"]
    wrong = [row for row in rows if row.status in ("fail", "error")]
    if wrong:
        first = wrong[0]
        _answer("fail", f"{first.variant} on {first.problem}, {first.check}: {first.reason}; repeat: {first.repeat}")
    elif compared:
        worst = max(row.max_rel or 0.0 for row in compared)
        _answer("pass", f"{len(compared)} comparisons with the reference, largest error {worst:.1e}")
    else:
        reasons: Sequence[str] = [row.reason for row in rows] or ["no problem to run on"]
        _answer("skip", "; ".join(dict.fromkeys(reasons)))


def load(target: str, path: str) -> None:
    """Load a library as its users do; prints the outcome."""
    record = targets.target(target)
    if record.framework:
        # A binding finds the framework's symbols in the libraries that importing it has loaded.
        importlib.import_module(record.framework)
    try:
        library: Any = ctypes.CDLL(path)
    except OSError as error:
        _answer("fail", f"does not load: {error}")
        return
    opened = [core for core in ("cpu", "emulated", "cuda") if record.framework and kernels.built(core) is not None]
    for core in opened:
        if failure := bindings.open_core(library, core):
            _answer("fail", f"cannot open the core for {core}: {failure}")
            return
    _answer("pass", f"loads and opens the core for {', '.join(opened)}" if opened else "loads")
