"""What a run of ``verify`` says about each named statement of a family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from eqconv_cli.catalog import Family, Operation
from eqconv_cli.engine.selection import Selection
from eqconv_cli.errors import unknown
from eqconv_cli.events import Row

#: The row of the checks that have none of their own.
INVARIANT = "invariant"


@dataclass(frozen=True)
class CheckSummary:
    """One named check of a family over all the rows of a run."""

    family: str
    check: str
    statement: str
    #: How many arrays were compared.
    comparisons: int
    verdict: Literal["pass", "fail", "not compared"]
    #: The error that comes closest to its tolerance, or exceeds it most, with that tolerance.
    max_rel: float | None = None
    tolerance: float | None = None


def wanted(name: str, globs: Sequence[str]) -> bool:
    """Whether a check is asked for; without globs every one is."""
    return not globs or any(fnmatchcase(name, glob) for glob in globs)


def check_names(operation: Operation) -> tuple[str, ...]:
    """The names of the rows that an operation can have."""
    return tuple(name for name, _ in _statements(operation, shared=True))


def check_globs(selections: Sequence[Selection], globs: Sequence[str]) -> None:
    """Refuse a glob that is no check's name; raises UsageError."""
    names = tuple(dict.fromkeys(name for s in selections for name in check_names(s.operation)))
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise unknown("--check", glob, names)


def overview(selections: Sequence[Selection], rows: Sequence[Row], globs: Sequence[str] = ()) -> list[CheckSummary]:
    """Every check of every family that gives checks rows of their own, in the order of their names' numbers."""
    found = []
    families: dict[str, Family] = {s.family.name: s.family for s in selections}
    for family in families.values():
        operations = {s.operation.name: s.operation for s in selections if s.family.name == family.name}
        if not any(check.own_row for operation in operations.values() for check in operation.checks):
            continue
        named: dict[str, list[str]] = {}
        for operation in operations.values():
            for name, statement in _statements(operation):
                named.setdefault(name, []).append(statement)
        mine = [row for row in rows if row.family == family.name]
        for name in sorted((n for n in named if wanted(n, globs)), key=_by_number):
            statement = "; ".join(dict.fromkeys(text for text in named[name] if text))
            found.append(_summary(family.name, name, statement, [row for row in mine if row.check == name]))
    return found


def _statements(operation: Operation, shared: bool = False) -> Iterator[tuple[str, str]]:
    """Each row's name with what it states; the shared row "invariant" on request, for it states several things."""
    yield operation.value_check, operation.value_title or f"{operation.title}: the values are the reference's"
    if operation.reference_gradients is not None:
        gradients = f"{operation.title}: the gradients are the reference's"
        yield operation.gradient_check, operation.gradient_title or gradients
    for check in operation.checks:
        if check.own_row:
            yield check.name, check.title
    if shared and any(not check.own_row for check in operation.checks):
        yield INVARIANT, ""


def _by_number(name: str) -> tuple[str, int, str]:
    """E2 before E10."""
    letters = name.rstrip("0123456789")
    return letters, int(name[len(letters) :] or 0), name


def _summary(family: str, check: str, statement: str, rows: Sequence[Row]) -> CheckSummary:
    done = [row for row in rows if row.status != "skip"]
    comparisons = sum(len(row.parts) for row in done)
    wrong = any(row.status in ("fail", "error") for row in done)
    verdict: Literal["pass", "fail", "not compared"] = "fail" if wrong else "pass" if comparisons else "not compared"
    worst = max((row for row in done if row.max_rel is not None), key=_badness, default=None)
    if worst is None:
        return CheckSummary(family, check, statement, comparisons, verdict)
    return CheckSummary(family, check, statement, comparisons, verdict, worst.max_rel, worst.tolerance)


def _badness(row: Row) -> tuple[bool, float]:
    error = row.max_rel if row.max_rel is not None else 0.0
    if error != error:
        return row.status == "fail", float("inf")
    if row.tolerance:
        return row.status == "fail", error / row.tolerance
    return row.status == "fail", float("inf") if error else 0.0
