"""Builds targets: a plan for each, all their compilers in one pool, and one entry of the cache as the result."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache as memoised
from pathlib import Path

from eqconv_cli import __version__, events
from eqconv_cli.errors import UsageError
from eqconv_cli.events import CompileStarted, Event, KernelUse, Note, RunFinished, RunStarted, TargetFinished, TargetRow
from eqconv_cli.kernels import cache, ptxas, sources, targets, toolchain
from eqconv_cli.kernels.targets import Target
from eqconv_cli.kernels.toolchain import Compiler, Missing

DEFAULT_ARCH = ("sm_80", "sm_90", "sm_100", "sm_120")
_ARCH = re.compile(r"sm_(\d{2,3})([af]?)")
#: Architectures from here on have forms with a letter, for code that runs on exactly this one.
_FIRST_WITH_LETTER = 90
_POLL_S = 0.1
_ERROR = re.compile(r"(fatal )?error[: ]|undefined reference|cannot find|: No such file", re.IGNORECASE)
_SHOWN_ERROR_LINES = 6


@dataclass(frozen=True)
class _Step:
    """One call of a compiler."""

    target: str
    #: What is compiled, e.g. ``feature_steered/feature_steered.cpp (avx2)``.
    name: str
    command: tuple[str, ...]


@dataclass
class _Work:
    """A target on its way: what it needs, and how far it is."""

    target: Target
    compiler: Compiler
    arch: tuple[str, ...]
    entry: str
    facts: dict[str, object]
    compile: tuple[_Step, ...]
    link: _Step
    root: Path
    lock: cache.Lock
    force: bool
    folder: Path | None = None
    started: float = 0.0
    waiting: bool = True
    left: int = 0
    outputs: dict[str, str] = field(default_factory=dict)
    failed: str = ""

    @property
    def steps(self) -> int:
        return len(self.compile) + 1


@dataclass(frozen=True)
class _Started:
    work: _Work
    step: _Step


@dataclass(frozen=True)
class _Ended:
    work: _Work
    step: _Step
    status: int
    output: str


def build(
    names: Sequence[str],
    *,
    arch: Sequence[str] | None = None,
    jobs: int | None = None,
    force: bool = False,
    root: Path | None = None,
) -> Generator[Event, None, None]:
    """Build targets, see :func:`eqconv_cli.kernels.build`; ``root`` is the folder of the sources.

    An interrupt ends the run: compilers are stopped and nothing half-made stays; the closing event says so.

    Raises:
        UsageError: a target or an architecture is unknown.
        Unavailable: the sources are not here.
    """
    started = time.perf_counter()
    wanted = [targets.target(name) for name in dict.fromkeys(names)]
    for name in arch or ():
        _check_form(name)
    root = root or sources.root()
    counts: Counter[str] = Counter()
    interrupted = False
    pool = _Pool(jobs or _default_jobs(wanted))
    try:
        for event in _run(wanted, arch, force, root, pool):
            if isinstance(event, TargetFinished):
                counts[event.row.status] += 1
            yield event
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop()
    yield RunFinished(dict(counts), time.perf_counter() - started, interrupted, {"jobs": pool.jobs})


def _run(
    wanted: Sequence[Target], arch: Sequence[str] | None, force: bool, root: Path, pool: _Pool
) -> Generator[Event, None, None]:
    planned: list[_Work] = []
    done: list[TargetRow] = []
    notes: list[Note] = []
    for target in wanted:
        try:
            work = _plan(target, arch, force, root, pool.jobs, notes)
        except Missing as missing:
            done.append(TargetRow(target.name, "skipped", missing.reason, missing.remedy))
            continue
        entry = None if force else cache.valid(cache.folder(target.name) / work.entry, target.name)
        if entry:
            done.append(_row(entry, "cached"))
        else:
            planned.append(work)
    yield RunStarted(sum(work.steps for work in planned))
    yield from notes
    for row in done:
        yield TargetFinished(row)
    try:
        yield from _follow(planned, pool)
    finally:
        pool.stop()
        for work in planned:
            if work.folder is not None:
                shutil.rmtree(work.folder, ignore_errors=True)
            work.lock.release()


def _follow(planned: list[_Work], pool: _Pool) -> Generator[Event, None, None]:
    # What takes long comes first, so that the last compiler does not run alone for long.
    unfinished = sorted(planned, key=lambda work: -work.target.job_bytes)
    told: set[str] = set()
    while unfinished:
        for work in [work for work in unfinished if work.waiting]:
            try:
                owner = work.lock.acquire()
            except OSError as error:
                unfinished.remove(work)
                place = cache.folder(work.target.name)
                reason = f"the cache {place} cannot be written: {error.strerror}"
                yield TargetFinished(TargetRow(work.target.name, "failed", reason, "EQCONV_CACHE=FOLDER eqconv ..."))
                continue
            if owner is not None:
                if work.target.name not in told:
                    told.add(work.target.name)
                    yield Note(f"{work.target.name}: waiting for the build of process {owner or '?'}")
                continue
            work.waiting = False
            # Whoever had the lock may have built the same.
            entry = None if work.force else cache.valid(cache.folder(work.target.name) / work.entry, work.target.name)
            if entry:
                work.lock.release()
                unfinished.remove(work)
                yield from (events.UnitFinished() for _ in range(work.steps))
                yield TargetFinished(_row(entry, "cached"))
            else:
                _begin(work, pool)
        try:
            message = pool.messages.get(timeout=_POLL_S)
        except queue.Empty:
            continue
        if isinstance(message, _Started):
            message.work.started = message.work.started or time.perf_counter()
            yield CompileStarted(f"{message.step.target}: {message.step.name}", message.step.command)
            continue
        yield events.UnitFinished()
        row = _advance(message, pool)
        if row is not None:
            unfinished.remove(message.work)
            yield TargetFinished(row)


def _begin(work: _Work, pool: _Pool) -> None:
    work.folder = cache.workplace(work.target.name)
    work.left = len(work.compile)
    for step in work.compile:
        pool.submit(work, step)


def _advance(ended: _Ended, pool: _Pool) -> TargetRow | None:
    """Take the end of a step in; returns the row of the target when that was its last."""
    work, step = ended.work, ended.step
    work.left -= 1
    work.outputs[step.name] = f"$ {shlex.join(step.command)}\n{ended.output}"
    if ended.status != 0 and not work.failed:
        work.failed = f"{step.name}: {_first_error(ended.output, ended.status)}"
    if work.left > 0:
        return None
    if work.failed:
        return _give_up(work)
    if step is not work.link:
        work.left = 1
        pool.submit(work, work.link)
        return None
    return _finish(work)


def _finish(work: _Work) -> TargetRow:
    if not work.entry.startswith(sources.key(work.target, work.root)):
        work.failed = "the sources changed while they were compiled: run it again"
        return _give_up(work)
    assert work.folder is not None
    text = "\n".join(work.outputs.values())
    for path in work.folder.iterdir():
        if path.name != work.target.library:
            path.unlink()
    (work.folder / cache.LOG).write_text(text, encoding="utf-8")
    facts = {
        **work.facts,
        "seconds": round(time.perf_counter() - work.started, 3),
        "warnings": len(re.findall(r"\bwarning\b[: ]", text)),
        "kernels": [asdict(use) for use in ptxas.parse(text)] if work.target.tool == "nvcc" else [],
    }
    entry = cache.publish(work.folder, work.entry, work.target.name, work.target.library, facts)
    work.folder = None
    work.lock.release()
    return _row(entry, "built")


def _give_up(work: _Work) -> TargetRow:
    log = cache.failed_log(work.target.name, work.entry)
    log.write_text("\n".join(work.outputs.values()), encoding="utf-8")
    assert work.folder is not None
    shutil.rmtree(work.folder, ignore_errors=True)
    work.folder = None
    work.lock.release()
    return TargetRow(
        work.target.name,
        "failed",
        work.failed,
        seconds=round(time.perf_counter() - work.started, 3),
        log=str(log),
        compiler=work.compiler.version,
        arch=work.arch,
    )


def _row(entry: cache.Entry, status: events.TargetStatus) -> TargetRow:
    manifest = entry.manifest
    return TargetRow(
        manifest["target"],
        status,
        seconds=manifest["seconds"],
        size_bytes=manifest["size_bytes"],
        path=str(entry.library),
        log=str(entry.folder / cache.LOG),
        compiler=manifest["compiler"],
        arch=tuple(manifest["arch"]),
        warnings=manifest["warnings"],
        kernels=tuple(KernelUse(**use) for use in manifest["kernels"]),
    )


def _first_error(output: str, status: int) -> str:
    """The first error of a compiler, with the lines that explain it; its last lines where none looks like an error."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if _ERROR.search(line)), None)
    shown = lines[-_SHOWN_ERROR_LINES:] if first is None else lines[first : first + _SHOWN_ERROR_LINES]
    return "\n".join(shown) or f"the compiler ended with status {status} and said nothing"


def _plan(target: Target, arch: Sequence[str] | None, force: bool, root: Path, jobs: int, notes: list[Note]) -> _Work:
    files = [(rule, path) for rule in target.rules for path in sources.of_rule(rule, root)]
    if not files:
        raise Missing("there are no sources for it in this release", "pip install --upgrade eqconv")
    framework = toolchain.needed_framework(target.framework) if target.framework else None
    host = toolchain.cxx()
    places = {"root": str(root), "framework": str(framework.folder) if framework else "", "cxx11_abi": "1"}
    if target.framework == "tensorflow" and framework:
        places["cxx11_abi"] = str(toolchain.cxx11_abi(framework))
    compiler = host
    chosen: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    parallel: tuple[str, ...] = ()
    if target.tool == "nvcc":
        compiler = toolchain.nvcc()
        chosen = _architectures(compiler, arch, notes)
        # nvcc takes a program: not what stands before it (ccache), nor its options.
        program = next(word for word in reversed(host.command) if not word.startswith("-"))
        extra = ("-ccbin", program, *_gencodes(chosen))
        # nvcc compiles for several architectures at a time; that is no part of what it makes.
        parallel = (f"--threads={max(1, min(len(chosen), jobs // len(files)))}",)
    compile_flags = [_filled(rule.flags, places) for rule, _ in files]
    link_flags = _filled(target.link, places)
    tool = (compiler, host, chosen, extra, compile_flags, link_flags)
    entry = f"{sources.key(target, root)}-{hashlib.sha256(repr(tool).encode()).hexdigest()[:16]}"
    steps, objects = [], []
    for (rule, path), flags in zip(files, compile_flags, strict=True):
        relative = path.relative_to(root)
        name = "-".join((*relative.parts, *([rule.suffix] if rule.suffix else []))) + ".o"
        label = f"{relative} ({rule.suffix})" if rule.suffix else str(relative)
        steps.append(
            _Step(target.name, label, (*compiler.command, *extra, *parallel, *flags, "-c", str(path), "-o", name))
        )
        objects.append(name)
    link_command = (*compiler.command, *extra, *objects, *link_flags, "-o", target.library)
    facts: dict[str, object] = {
        "version": __version__,
        "compiler": compiler.version,
        "compiler_command": list(compiler.command),
        "host_compiler": host.version,
        "framework": framework.identity if framework else None,
        "arch": list(chosen),
        "commands": [shlex.join(step.command) for step in steps] + [shlex.join(link_command)],
    }
    return _Work(
        target=target,
        compiler=compiler,
        arch=chosen,
        entry=entry,
        facts=facts,
        compile=tuple(steps),
        link=_Step(target.name, "link", link_command),
        root=root,
        lock=cache.Lock(target.name),
        force=force,
    )


def _filled(flags: Sequence[str], places: dict[str, str]) -> tuple[str, ...]:
    return tuple(flag.format(**places) for flag in flags)


def _check_form(name: str) -> None:
    match = _ARCH.fullmatch(name)
    if match is None or (match[2] and int(match[1]) < _FIRST_WITH_LETTER):
        raise UsageError(f"--arch {name!r} is unknown: allowed: sm_ and a number, e.g. {', '.join(DEFAULT_ARCH)}")


def _architectures(compiler: Compiler, asked: Sequence[str] | None, notes: list[Note]) -> tuple[str, ...]:
    known = toolchain.architectures(compiler)
    chosen = tuple(dict.fromkeys(asked or DEFAULT_ARCH))
    foreign = [name for name in chosen if known and name not in known and name.rstrip("af") not in known]
    if foreign and asked:
        raise UsageError(f"--arch {foreign[0]!r} is unknown to {compiler.version}: allowed: {', '.join(known)}")
    if foreign:
        notes.append(Note(f"cuda: {compiler.version} does not know {', '.join(foreign)}: left out"))
    return tuple(name for name in chosen if name not in foreign)


def _gencodes(arch: Sequence[str]) -> tuple[str, ...]:
    """Machine code for each architecture, and PTX of the newest for those that come after it."""
    numbers = [name.removeprefix("sm_") for name in arch]
    newest = max((int(number.rstrip("af")) for number in numbers), default=None)
    codes = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in numbers]
    if newest is not None:
        codes.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
    return tuple(codes)


def _default_jobs(wanted: Sequence[Target]) -> int:
    """As many compilers as there are cores, ``MAX_JOBS`` allows and memory holds."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("MAX_JOBS", "")
    limit = int(given) if given.isdigit() and int(given) > 0 else cores
    each = max((target.job_bytes for target in wanted), default=1)
    return max(1, min(limit, cores, _available_bytes() // each))


@memoised
def _available_bytes() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 1 << 62


class _Pool:
    """Runs compilers, a few at a time; everything that happens arrives in ``messages``."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.messages: queue.SimpleQueue[_Started | _Ended] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(jobs, thread_name_prefix="eqconv-build")
        self._running: set[subprocess.Popen[str]] = set()
        self._guard = threading.Lock()
        self._stopped = False

    def submit(self, work: _Work, step: _Step) -> None:
        self._threads.submit(self._run, work, step)

    def stop(self) -> None:
        """End every compiler with all it has started, and wait until they are gone."""
        with self._guard:
            self._stopped = True
            running = list(self._running)
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _run(self, work: _Work, step: _Step) -> None:
        if work.failed:
            # One step of the target has failed: the others would only take time.
            self.messages.put(_Ended(work, step, 0, "not started: another step had failed\n"))
            return
        self.messages.put(_Started(work, step))
        try:
            status, output = self._call(step, work.folder)
        except OSError as error:
            status, output = 1, f"error: {step.command[0]} cannot be started: {error.strerror}\n"
        self.messages.put(_Ended(work, step, status, output))

    def _call(self, step: _Step, folder: Path | None) -> tuple[int, str]:
        with self._guard:
            if self._stopped:
                return 1, "stopped\n"
            # A group of its own: an interrupt at the terminal comes to eqconv only, which ends the whole group.
            process = subprocess.Popen(
                step.command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                # Error messages in English, which is what is searched for.
                env={**os.environ, "LC_ALL": "C"},
            )
            self._running.add(process)
        try:
            output, _ = process.communicate()
        finally:
            with self._guard:
                self._running.discard(process)
        return process.returncode, output
