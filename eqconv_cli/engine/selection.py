"""What a command works on: families, problems and variants chosen by name, glob and option."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from eqconv_cli import catalog
from eqconv_cli.catalog import Case, Family, Operation, Parameter, Problem, Variant
from eqconv_cli.errors import UsageError, unknown

Record = TypeVar("Record", Problem, Variant)


@dataclass(frozen=True)
class Selection:
    """One operation of a family with the problems and variants to work on.

    ``case`` when a published benchmark was asked for.
    """

    family: Family
    problems: tuple[Problem, ...]
    variants: tuple[Variant, ...]
    case: Case | None = None
    #: Names of variants that an option left out, for a note to the reader.
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        records: tuple[Problem | Variant, ...] = (*self.problems, *self.variants)
        names = {self.family.operation_of(record).name for record in records}
        if len(names) > 1:
            raise ValueError(f"a selection of several operations: {', '.join(sorted(names))}")

    @property
    def operation(self) -> Operation:
        """The operation that all the problems and variants belong to, as the case times it if there is one."""
        records: tuple[Problem | Variant, ...] = (*self.problems, *self.variants)
        operation = self.family.operation_of(records[0]) if records else self.family.operations[0]
        return self.case.timed(operation) if self.case else operation

    @property
    def label(self) -> str:
        """The family, with the operation where there are several."""
        several = len(self.family.operations) > 1
        return f"{self.family.name}, {self.operation.name}" if several else self.family.name


@dataclass(frozen=True)
class Sweep:
    """A parameter that an option sets to one or several values, each in its turn.

    Only problems that have the parameter are taken then.
    """

    option: str
    parameter: str
    values: tuple[Parameter, ...]


@dataclass(frozen=True)
class Filters:
    """The options that narrow or change a selection; globs match variant and problem names."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    settings: Mapping[str, Parameter] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    plugin: str | None = None
    #: ``Problem.facets`` that are asked for.
    facets: Mapping[str, str] = field(default_factory=dict)
    sweeps: tuple[Sweep, ...] = ()


def selected_on(variant: Variant, device: str) -> bool:
    """Whether a device means a variant at all.

    The emulated device means the variants that were written for it, and those are not asked about devices that they do
    not name. Every other variant is, to say why not.
    """
    return device in variant.devices or "emulated" not in (device, *variant.devices)


def families(names: Sequence[str]) -> tuple[Family, ...]:
    """The families of these names, or all; raises UsageError for an unknown one."""
    return tuple(catalog.family(name) for name in dict.fromkeys(names or catalog.family_names()))


def for_verify(families: Sequence[Family], filters: Filters, effort: str) -> tuple[Selection, ...]:
    """What ``verify`` compares, operation by operation.

    Args:
        families: the families asked for.
        filters: the options. Without ``problems`` or files the effort chooses the problems.
        effort: "quick" (the smallest problems), "default" or "full" (hard problems, slowly compiled variants too).

    Peers are other people's: they are compared where ``bench`` times them, and here only when ``filters.only`` says so.

    Raises:
        UsageError: a glob, a setting or a file option matches nothing in any of the families.
    """
    traits = {"quick": {"quick"}, "default": {"verify"}, "full": {"verify", "full"}}[effort]
    _check_filters(families, filters)
    selections: list[Selection] = []
    for family in families:
        problems = _problems(family, filters)
        if not (filters.problems or filters.files):
            problems = tuple(problem for problem in problems if traits & problem.traits)
        variants = _variants(family.variants, filters, family.name)
        slow = () if effort == "full" or filters.only else tuple(v for v in variants if v.slow)
        kept = tuple(v for v in variants if v not in slow and (filters.only or not v.peer))
        selections += _by_operation(family, _with_settings(problems, filters.settings), kept, None, slow)
    return tuple(selections)


def for_bench(families: Sequence[Family], filters: Filters, case: str | None) -> tuple[Selection, ...]:
    """What ``bench`` times, operation by operation: a published case by name, else bench problems, headline variants.

    Facets and sweeps narrow the problems to those that have them. Where some of these are bench problems, they are
    taken; else all of them are.

    Raises:
        UsageError: an unknown case; a facet or a swept parameter that no problem has; a glob, a setting or a file
            option that matches nothing in any of the families.
    """
    cases = {c.name: (family, c) for family in families for c in family.cases}
    if case is not None:
        if case not in cases:
            raise unknown("--case", case, tuple(cases))
        families = [cases[case][0]]
    found = None if case is None else cases[case][1]
    _check_filters(families, filters, found)
    narrowed = {
        family.name: _narrowed(found.problems if found else _problems(family, filters), filters) for family in families
    }
    _check_narrowed([p for problems in narrowed.values() for p in problems], families, filters, found)
    selections: list[Selection] = []
    for family in families:
        problems = narrowed[family.name]
        if not (found or filters.problems or filters.files):
            usual = tuple(problem for problem in problems if "bench" in problem.traits)
            problems = usual if usual or not (filters.facets or filters.sweeps) else problems
        for sweep in filters.sweeps:
            problems = tuple(
                problem.with_parameters(**{sweep.parameter: value}) for problem in problems for value in sweep.values
            )
        variants = _variants(found.variants if found else family.variants, filters, family.name)
        everything = found is not None or filters.only
        left_out = () if everything else tuple(v for v in variants if not v.headline and v in family.variants)
        chosen = tuple(v for v in variants if v not in left_out)
        selections += _by_operation(family, _with_settings(problems, filters.settings), chosen, found, left_out)
    return tuple(selections)


def _by_operation(
    family: Family,
    problems: Sequence[Problem],
    variants: Sequence[Variant],
    case: Case | None,
    left_out: Sequence[Variant],
) -> Iterator[Selection]:
    """A variant meets the problems of its own operation; an operation without problems is left out."""
    for operation in family.operations:

        def mine(records: Sequence[Record], operation: Operation = operation) -> tuple[Record, ...]:
            return tuple(record for record in records if family.operation_of(record) is operation)

        if mine(problems):
            names = tuple(v.name for v in mine(left_out))
            yield Selection(family, mine(problems), mine(variants), case, names)


def _check_filters(families: Sequence[Family], filters: Filters, case: Case | None = None) -> None:
    """Every glob, setting and file option must mean something in at least one of the families."""
    if filters.files and filters.problems:
        option = next(iter(filters.files))
        raise UsageError(f"--problem {filters.problems[0]!r} and --{option} exclude each other: give one of them")
    own = case.variants if case else tuple(v for family in families for v in family.variants)
    names = [v.name for v in (*own, *(v for family in families for v in _plugged(filters, family.name)))]
    for option, patterns in (("--only", filters.only), ("--skip", filters.skip)):
        _check_patterns(option, patterns, names)
    problems = case.problems if case else tuple(p for family in families for p in family.problems)
    _check_patterns("--problem", filters.problems, [problem.name for problem in problems])
    known = {name for problem in problems for name in problem.parameters}
    for name in filters.settings:
        if name not in known:
            raise unknown("--set", name, sorted(known))
    for option, path in filters.files.items():
        if not any(option in family.file_problems for family in families):
            raise UsageError(f"--{option} {str(path)!r} has no meaning for {', '.join(f.name for f in families)}")
    for facet, word in filters.facets.items():
        allowed = sorted({problem.facets[facet] for problem in problems if facet in problem.facets})
        if word not in allowed:
            raise unknown(f"--{facet}", word, allowed)
    for sweep in filters.sweeps:
        choices = [p.choices[sweep.parameter] for p in problems if sweep.parameter in p.choices]
        words = tuple(dict.fromkeys(word for choice in choices for word in choice))
        for value in sweep.values:
            if words and value not in words:
                raise unknown(sweep.option, str(value), words)


def _narrowed(problems: Sequence[Problem], filters: Filters) -> tuple[Problem, ...]:
    """The problems that have every facet and every swept parameter asked for."""
    return tuple(
        problem
        for problem in problems
        if all(problem.facets.get(facet) == value for facet, value in filters.facets.items())
        and all(sweep.parameter in problem.parameters for sweep in filters.sweeps)
    )


def _check_narrowed(left: Sequence[Problem], families: Sequence[Family], filters: Filters, case: Case | None) -> None:
    """Say which option leaves no problem, when none is left."""
    if left or not (filters.facets or filters.sweeps):
        return
    problems = [p for family in families for p in (case.problems if case else _problems(family, filters))]
    names = ", ".join(family.name for family in families)
    if not _narrowed(problems, replace(filters, sweeps=())):
        asked = " ".join(f"--{facet} {value}" for facet, value in filters.facets.items())
        raise UsageError(f"{asked}: no problem of {names} is all of it")
    for number, sweep in enumerate(filters.sweeps):
        if not _narrowed(problems, replace(filters, sweeps=filters.sweeps[: number + 1])):
            raise UsageError(
                f"{sweep.option} {sweep.values[0]}: none of the chosen problems of {names} has a {sweep.parameter}"
            )


def _check_patterns(option: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise unknown(option, pattern, names)


def _problems(family: Family, filters: Filters) -> tuple[Problem, ...]:
    """The problems on the user's files, those named by glob, or all."""
    if filters.files:
        return tuple(p for option, path in filters.files.items() for p in family.opened(option, path))
    if filters.problems:
        return tuple(problem for problem in family.problems if _matches(problem.name, filters.problems))
    return family.problems


def _with_settings(problems: Sequence[Problem], settings: Mapping[str, Parameter]) -> tuple[Problem, ...]:
    changed = []
    for problem in problems:
        mine = {name: value for name, value in settings.items() if name in problem.parameters}
        changed.append(problem.with_parameters(**mine) if mine else problem)
    return tuple(changed)


def _variants(known: Sequence[Variant], filters: Filters, family: str) -> tuple[Variant, ...]:
    return tuple(
        variant
        for variant in (*known, *_plugged(filters, family))
        if (not filters.only or _matches(variant.name, filters.only)) and not _matches(variant.name, filters.skip)
    )


def _plugged(filters: Filters, family: str) -> Sequence[Variant]:
    return catalog.plugin_variants(filters.plugin).get(family, ()) if filters.plugin else ()


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
