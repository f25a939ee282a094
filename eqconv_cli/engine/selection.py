"""What a command works on: families, problems and variants chosen by name, glob and option."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from eqconv_cli import catalog
from eqconv_cli.catalog import Case, Family, Parameter, Problem, Variant
from eqconv_cli.errors import UsageError, unknown

Item = TypeVar("Item")


@dataclass(frozen=True)
class Selection:
    """One family with the problems and variants to work on; ``case`` when a published benchmark was asked for."""

    family: Family
    problems: tuple[Problem, ...]
    variants: tuple[Variant, ...]
    case: Case | None = None
    #: Names of variants that an option left out, for a note to the reader.
    left_out: tuple[str, ...] = ()

    @property
    def baseline(self) -> str:
        """The variant that times are divided by."""
        return self.case.baseline if self.case else self.family.baseline


@dataclass(frozen=True)
class Filters:
    """The options that narrow or change a selection; globs match variant and problem names."""

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    settings: Mapping[str, Parameter] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    plugin: str | None = None


def families(names: Sequence[str]) -> tuple[Family, ...]:
    """The families of these names, or all; raises UsageError for an unknown one."""
    return tuple(catalog.family(name) for name in dict.fromkeys(names or catalog.family_names()))


def for_verify(family: Family, filters: Filters, effort: str) -> Selection:
    """What ``verify`` compares.

    Args:
        family: the family.
        filters: the options. Without ``problems`` or files the effort chooses the problems.
        effort: "quick" (the smallest problems), "default" or "full" (hard problems, slowly compiled variants too).

    Raises:
        UsageError: a glob, a setting or a file option matches nothing here.
    """
    traits = {"quick": {"quick"}, "default": {"verify"}, "full": {"verify", "full"}}[effort]
    problems = _problems(family, filters, lambda problem: bool(traits & problem.traits))
    variants = _variants(family.variants, filters, family.name)
    slow = () if effort == "full" or filters.only else tuple(v.name for v in variants if v.slow)
    return Selection(family, problems, tuple(v for v in variants if v.name not in slow), left_out=slow)


def for_bench(family: Family, filters: Filters, case: str | None, sparsities: Sequence[float]) -> Selection:
    """What ``bench`` times: a published case by name, else the family's bench problems.

    A list of ``sparsities`` repeats every problem that has the parameter; without other choice of problems it selects
    those.

    Raises:
        UsageError: unknown case; sparsities given but no problem has the parameter; a glob or a file matches nothing.
    """
    found = None
    if case is not None:
        by_name = {c.name: c for c in family.cases}
        if case not in by_name:
            raise unknown("--case", case, tuple(by_name))
        found = by_name[case]
    wanted = _has_sparsity if sparsities else _is_bench
    problems = found.problems if found else _problems(family, filters, wanted, set_parameters=False)
    if sparsities:
        problems = tuple(
            problem.with_parameters(sparsity=sparsity)
            for problem in problems
            if _has_sparsity(problem)
            for sparsity in sparsities
        )
        if not problems:
            raise UsageError(f"--sparsity {sparsities[0]}: none of the chosen problems of {family.name} has a sparsity")
    problems = _with_settings(problems, filters.settings)
    variants = _variants(found.variants if found else family.variants, filters, family.name)
    everything = found is not None or filters.only or filters.plugin
    chosen = variants if everything else tuple(v for v in variants if v.headline)
    left_out = tuple(v.name for v in variants if v not in chosen)
    return Selection(family, problems, chosen, found, left_out)


def _is_bench(problem: Problem) -> bool:
    return "bench" in problem.traits


def _has_sparsity(problem: Problem) -> bool:
    return "sparsity" in problem.parameters


def _problems(
    family: Family, filters: Filters, default: Callable[[Problem], bool], set_parameters: bool = True
) -> tuple[Problem, ...]:
    if filters.files:
        chosen = tuple(
            family.file_problems[option](path)
            for option, path in filters.files.items()
            if option in family.file_problems
        )
        if not chosen:
            option, path = next(iter(filters.files.items()))
            allowed = ", ".join(f"--{name}" for name in family.file_problems) or "no file"
            raise UsageError(f"--{option} {str(path)!r} has no meaning for {family.name}: it takes {allowed}")
    elif filters.problems:
        chosen = _match("--problem", filters.problems, family.problems, lambda problem: problem.name)
    else:
        chosen = tuple(problem for problem in family.problems if default(problem))
    return _with_settings(chosen, filters.settings) if set_parameters else chosen


def _with_settings(problems: Sequence[Problem], settings: Mapping[str, Parameter]) -> tuple[Problem, ...]:
    if not settings:
        return tuple(problems)
    known = {name for problem in problems for name in problem.parameters}
    for name in settings:
        if name not in known:
            raise unknown("--set", name, sorted(known))
    return tuple(
        problem.with_parameters(**mine)
        if (mine := {name: value for name, value in settings.items() if name in problem.parameters})
        else problem
        for problem in problems
    )


def _variants(known: Sequence[Variant], filters: Filters, family: str) -> tuple[Variant, ...]:
    extra = catalog.plugin_variants(filters.plugin).get(family, ()) if filters.plugin else ()
    variants: tuple[Variant, ...] = (*known, *extra)
    if filters.only:
        variants = _match("--only", filters.only, variants, lambda variant: variant.name)
    if filters.skip:
        dropped = {v.name for v in _match("--skip", filters.skip, variants, lambda variant: variant.name)}
        variants = tuple(v for v in variants if v.name not in dropped)
    return variants


def _match(
    option: str, patterns: Iterable[str], items: Sequence[Item], name: Callable[[Item], str]
) -> tuple[Item, ...]:
    chosen: dict[str, Item] = {}
    for pattern in patterns:
        matching = {name(item): item for item in items if fnmatchcase(name(item), pattern)}
        if not matching:
            raise unknown(option, pattern, [name(item) for item in items])
        chosen |= matching
    return tuple(item for item in items if name(item) in chosen)
