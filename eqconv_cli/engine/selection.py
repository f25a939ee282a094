"""What a command works on: families, problems and variants chosen by name, glob and option."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from eqconv_cli import catalog
from eqconv_cli.catalog import Case, Family, Parameter, Problem, Variant
from eqconv_cli.errors import UsageError, unknown


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
    """What ``verify`` compares, family by family.

    Args:
        families: the families asked for.
        filters: the options. Without ``problems`` or files the effort chooses the problems.
        effort: "quick" (the smallest problems), "default" or "full" (hard problems, slowly compiled variants too).

    Raises:
        UsageError: a glob, a setting or a file option matches nothing in any of the families.
    """
    traits = {"quick": {"quick"}, "default": {"verify"}, "full": {"verify", "full"}}[effort]
    _check_filters(families, filters)
    selections = []
    for family in families:
        problems = _problems(family, filters, lambda problem: bool(traits & problem.traits))
        variants = _variants(family.variants, filters, family.name)
        slow = () if effort == "full" or filters.only else tuple(v.name for v in variants if v.slow)
        kept = tuple(v for v in variants if v.name not in slow)
        selections.append(Selection(family, _with_settings(problems, filters.settings), kept, left_out=slow))
    return tuple(selections)


def for_bench(
    families: Sequence[Family], filters: Filters, case: str | None, sparsities: Sequence[float]
) -> tuple[Selection, ...]:
    """What ``bench`` times, family by family: a published case by name, else the bench problems and headline variants.

    A list of ``sparsities`` repeats every problem that has the parameter; without other choice of problems it selects
    those.

    Raises:
        UsageError: an unknown case; sparsities without a problem that has the parameter; a glob, a setting or a file
            option that matches nothing in any of the families.
    """
    cases = {c.name: (family, c) for family in families for c in family.cases}
    if case is not None:
        if case not in cases:
            raise unknown("--case", case, tuple(cases))
        families = [cases[case][0]]
    found = None if case is None else cases[case][1]
    _check_filters(families, filters, found)
    selections = []
    for family in families:
        wanted = _has_sparsity if sparsities else _is_bench
        problems = found.problems if found else _problems(family, filters, wanted)
        if sparsities:
            problems = tuple(
                problem.with_parameters(sparsity=sparsity)
                for problem in problems
                if _has_sparsity(problem)
                for sparsity in sparsities
            )
        variants = _variants(found.variants if found else family.variants, filters, family.name)
        everything = found is not None or filters.only
        chosen = variants if everything else tuple(v for v in variants if v.headline or v not in family.variants)
        left_out = tuple(v.name for v in variants if v not in chosen)
        selections.append(Selection(family, _with_settings(problems, filters.settings), chosen, found, left_out))
    if sparsities and not any(selection.problems for selection in selections):
        names = ", ".join(family.name for family in families)
        raise UsageError(f"--sparsity {sparsities[0]}: none of the chosen problems of {names} has a sparsity")
    return tuple(selections)


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


def _check_patterns(option: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise unknown(option, pattern, names)


def _is_bench(problem: Problem) -> bool:
    return "bench" in problem.traits


def _has_sparsity(problem: Problem) -> bool:
    return "sparsity" in problem.parameters


def _problems(family: Family, filters: Filters, default: Callable[[Problem], bool]) -> tuple[Problem, ...]:
    if filters.files:
        readers = family.file_problems
        return tuple(readers[option](path) for option, path in filters.files.items() if option in readers)
    if filters.problems:
        return tuple(problem for problem in family.problems if _matches(problem.name, filters.problems))
    return tuple(problem for problem in family.problems if default(problem))


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
