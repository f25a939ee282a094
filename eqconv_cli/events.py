"""What the engine tells the outside: frozen records, no behaviour.

The engine yields :class:`Event` objects while it works. ``report`` turns them into progress, tables and files; neither
side knows how the other is made. A :class:`Row` is one line of a table and one object in the JSON report
(schema ``eqconv.report/1``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

SCHEMA = "eqconv.report/1"

Status = Literal["pass", "fail", "skip", "error"]


@dataclass(frozen=True)
class Part:
    """One comparison inside a check, for example the gradient with respect to one input."""

    name: str
    max_abs: float
    max_rel: float
    tolerance: float
    passed: bool
    #: Where the largest error is and how the errors are spread; filled in for a part that failed.
    detail: str = ""


Unit = Literal["flop", "byte"]


@dataclass(frozen=True)
class Floor:
    """The seconds that the least amount of work takes at a measured ceiling."""

    ceiling: str
    unit: Unit
    amount: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """One finished piece of work. ``None`` means "does not apply here"; durations are seconds, sizes bytes."""

    family: str
    problem: str
    variant: str
    algorithm: str
    framework: str
    device: str
    dtype: str
    check: str
    status: Status
    reason: str = ""
    max_abs: float | None = None
    max_rel: float | None = None
    tolerance: float | None = None
    operation: str = ""
    parts: tuple[Part, ...] = ()
    repeat: str | None = None
    median_s: float | None = None
    iqr_s: float | None = None
    runs: int | None = None
    samples_s: tuple[float, ...] = ()
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    verdict: str | None = None
    baseline: str | None = None
    peak_bytes: int | None = None
    peak_source: str | None = None
    flops: float | None = None
    bytes_moved: float | None = None
    ceiling: str | None = None
    percent_of_ceiling: float | None = None
    #: Of the flops and of the bytes, the longer one first.
    floors: tuple[Floor, ...] = ()
    #: Time of the baseline / time, and what the inputs allow at most, where the operation says so.
    speed_up: float | None = None
    ideal: float | None = None
    percent_of_ideal: float | None = None
    #: The problem's name without its sparsity and block size: the rows of one sweep share it.
    series: str | None = None
    #: Numbers that describe the inputs.
    facts: Mapping[str, float] = field(default_factory=dict)
    #: Median seconds of each stage of a run.
    stages: Mapping[str, float] = field(default_factory=dict)
    #: Published speed-ups by source.
    published: Mapping[str, float] = field(default_factory=dict)


_NESTED = ("parts", "samples_s", "floors", "facts", "stages", "published")
#: Columns of the CSV file: every scalar field of a row, in order.
CSV_COLUMNS = tuple(f.name for f in fields(Row) if f.name not in _NESTED)


@dataclass(frozen=True)
class RunStarted:
    """The engine knows what it will do: how many units of work."""

    total: int


@dataclass(frozen=True)
class UnitStarted:
    """A unit of work (one variant on one problem) begins; ``label`` is for people."""

    label: str


@dataclass(frozen=True)
class CompileStarted(UnitStarted):
    """A compiler or linker starts, with this command."""

    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowFinished:
    """A row is final."""

    row: Row


@dataclass(frozen=True)
class KernelUse:
    """What one GPU kernel takes on one architecture, as the assembler counts it."""

    kernel: str
    arch: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int


TargetStatus = Literal["built", "cached", "skipped", "failed"]


@dataclass(frozen=True)
class TargetRow:
    """One target of ``eqconv build-kernels``. ``None`` means "does not apply here"."""

    target: str
    status: TargetStatus
    reason: str = ""
    #: The one command that mends it.
    remedy: str = ""
    #: From the first compiler's start to the library in the cache; for a cached one, what it took then.
    seconds: float | None = None
    size_bytes: int | None = None
    path: str | None = None
    log: str | None = None
    compiler: str | None = None
    arch: tuple[str, ...] = ()
    warnings: int = 0
    kernels: tuple[KernelUse, ...] = ()
    #: "pass", "fail" or "skip" of ``--check``, and what it did or found.
    check: Status | None = None
    check_detail: str = ""


@dataclass(frozen=True)
class TargetFinished:
    """A target is built, found in the cache, left out or given up."""

    row: TargetRow


@dataclass(frozen=True)
class UnitFinished:
    """A unit of work is done, with or without rows."""


@dataclass(frozen=True)
class Note:
    """A sentence for the reader of the table: something measured, chosen or left out, and why."""

    text: str


@dataclass(frozen=True)
class RunFinished:
    """Everything asked for is done (or was interrupted): the counts and the wall time."""

    counts: Mapping[str, int]
    seconds: float
    interrupted: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


Event = RunStarted | UnitStarted | RowFinished | TargetFinished | UnitFinished | Note | RunFinished
