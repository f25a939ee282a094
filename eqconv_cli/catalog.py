"""What eqconv knows: families, problems, variants, checks and published benchmark cases, as plain records.

A family is a folder in ``eqconv_cli/backends`` whose ``__init__`` defines ``FAMILY``; outside packages add theirs by an
entry point in the group ``eqconv.families``, or single variants by ``--plugin``. The records name their code by
``"module:attribute"`` strings, so reading the catalog imports no framework.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from eqconv_cli.errors import Unavailable, UsageError, unknown

if TYPE_CHECKING:  # NumPy itself would double the time that `eqconv --help` takes
    import numpy as np

Arrays: TypeAlias = "Mapping[str, np.ndarray]"
#: A parameter of a problem: a size, a density, a switch.
Parameter = int | float | str | bool


class Prepared(Protocol):
    """A variant bound to one problem's arrays: everything is converted, uploaded and planned."""

    def run(self) -> Mapping[str, Any]:
        """Compute the outputs, as the framework's own arrays by name."""

    def run_backward(self, cotangents: Mapping[str, Any]) -> Mapping[str, Any]:
        """Compute outputs and gradients; returns the gradient of each differentiable input by name."""

    def upload(self, array: np.ndarray) -> Any:
        """Convert an array as the inputs were converted (same dtype, same device)."""

    def download(self, native: Any) -> np.ndarray:
        """The NumPy view or copy of a framework array, in its own dtype."""

    def synchronize(self) -> None:
        """Wait until all the work that was issued is done."""

    def inputs(self) -> Arrays:
        """The floating-point inputs as they are now, to show that no run changed them."""

    def peak_bytes(self, work: Callable[[], Any]) -> int | None:
        """Run ``work`` and return the allocator's peak above the start, or None where it keeps no count."""


@runtime_checkable
class Staged(Protocol):
    """A :class:`Prepared` whose run is made of stages that can be timed apart."""

    def stages(self) -> Mapping[str, float]:
        """Run once and return the seconds of each stage by name, in their order."""


@dataclass(frozen=True)
class Variant:
    """One algorithm with its options in one framework, named ``algorithm+option@framework``.

    ``prepare`` names a function ``prepare(inputs, dtype, device, **arguments) -> Prepared``. Names are unique among the
    variants of an operation.
    """

    algorithm: str
    framework: str
    prepare: str
    options: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu",)
    #: Compiled artefacts without which it cannot run, as ``eqconv build-kernels --target`` names them; "{device}" is
    #: the core of the device that it runs on.
    needs: tuple[str, ...] = ()
    #: False: this variant has no backward pass, and ``why_no_gradient`` says so in the table.
    gradient: bool = True
    why_no_gradient: str = ""
    #: Kinds of problem (``Problem.traits``) the variant is known not to compute, with the reason to show.
    refuses: Mapping[str, str] = field(default_factory=dict)
    #: Compiles for seconds before its first result: left to ``--full`` by ``verify``.
    slow: bool = False
    #: One of the few that ``bench`` times when nothing else is asked for.
    headline: bool = False
    #: Factor on the tolerance for an algorithm known to lose digits, and its derivation.
    tolerance_factor: float = 1.0
    tolerance_why: str = ""
    #: The operation that it computes, by name; "" is the family's first.
    operation: str = ""
    #: Somebody else's package, shown beside eqconv's own: where it is not installed, one row says so.
    peer: bool = False
    #: Python modules, besides the framework, without which it cannot run.
    requires: tuple[str, ...] = ()
    summary: str = ""
    source: str = ""

    @property
    def name(self) -> str:
        """The id that users type and tables show, for example ``v1+sorted+fold@torch``."""
        return "+".join((self.algorithm, *self.options)) + f"@{self.framework}"

    def unavailable(self, problem: Problem) -> list[str]:
        """Every reason why this variant does not compute this problem; empty when it does."""
        return [why for trait, why in self.refuses.items() if trait in problem.traits]

    def bind(self, inputs: Arrays, dtype: str, device: str) -> Prepared:
        """Load the implementation and prepare it for ``inputs``."""
        prepared: Prepared = load(self.prepare)(inputs, dtype, device, **self.arguments)
        return prepared


@dataclass(frozen=True)
class Problem:
    """One concrete instance of a family's operation: a maker of NumPy inputs and its parameters.

    ``make(seed, **parameters)`` returns float64 arrays (and integer arrays) by name.
    """

    name: str
    make: Callable[..., Arrays]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    title: str = ""
    #: Words that decide where a problem is used: "small", "verify", "bench", "real", and what variants may refuse.
    traits: frozenset[str] = frozenset()
    #: Says what is missing for this problem (a data package), every reason with its remedy; empty when it can be made.
    missing: Callable[[], list[str]] = list
    #: Parameters that make it a small problem with the same layer sizes, to warm a process up with.
    tiny: Mapping[str, Parameter] = field(default_factory=dict)
    #: The parameters that differ from the catalog's; they show in the name.
    changes: Mapping[str, Parameter] = field(default_factory=dict)
    #: The operation that it is an instance of, by name; "" is the family's first.
    operation: str = ""
    #: What it belongs to, by kind, e.g. ``{"test": "conv", "arch": "resnet-v2"}``; options of ``bench`` choose by it.
    facets: Mapping[str, str] = field(default_factory=dict)
    #: The words that a parameter may be, for parameters that are one of a few words.
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Published speed-ups over the baseline by source, for these very parameters.
    published: Mapping[str, float] = field(default_factory=dict)

    def arrays(self, seed: int) -> Arrays:
        """The inputs for a seed."""
        return self.make(seed, **self.parameters)

    def with_parameters(self, **changes: Parameter) -> Problem:
        """The same problem with other parameters, which then show in its name.

        Raises:
            UsageError: the problem has no such parameter, or the parameter cannot have this value.
        """
        unknown_names = sorted(set(changes) - set(self.parameters))
        if unknown_names:
            raise unknown("--set", unknown_names[0], sorted(self.parameters))
        for name, value in changes.items():
            if name in self.choices and value not in self.choices[name]:
                raise unknown(f"--set {name}", str(value), self.choices[name])
        merged = {**self.changes, **changes}
        parameters = {**self.parameters, **changes}
        published = self.published if parameters == self.parameters else {}
        name = _shown_name(self.name, merged)
        return replace(self, name=name, parameters=parameters, changes=merged, published=published)

    def name_without(self, *parameters: str) -> str:
        """The name that the problem has when these changes are not shown: what a sweep over them has in common."""
        return _shown_name(self.name, {name: value for name, value in self.changes.items() if name not in parameters})


def _shown_name(name: str, changes: Mapping[str, Parameter]) -> str:
    base = name.split("[")[0]
    return f"{base}[{','.join(f'{key}={value}' for key, value in changes.items())}]" if changes else base


@dataclass(frozen=True)
class Pair:
    """Two arrays that an invariant says are equal, and the scale below which a difference is absolute.

    Integers and booleans must be equal, whatever the tolerance.
    """

    name: str
    actual: np.ndarray
    expected: np.ndarray
    floor: float = 1.0


@dataclass(frozen=True)
class Check:
    """An invariant: ``run(compute, inputs, seed)`` calls the variant and returns pairs to compare.

    No pairs say that the invariant means nothing for these inputs.
    """

    name: str
    run: Callable[[Callable[[Arrays], Arrays], Arrays, int], Sequence[Pair]]
    #: The statement that it checks.
    title: str = ""
    #: True: a row of its own under its own name, and every call of ``compute`` runs the variant again. False: a part of
    #: the row "invariant", which computes the unchanged inputs once for all its checks.
    own_row: bool = False
    #: None: the tolerance of the row; 0: equal to the last bit; else this number, whatever the user's is.
    tolerance: float | None = None


@dataclass(frozen=True)
class Cost:
    """The work that any implementation must do: floating-point operations and bytes read or written once."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Operation:
    """One formula, its reference in float64 and what is known about checking and timing it."""

    name: str
    title: str
    formula: str
    #: ``reference(inputs) -> outputs`` in float64; an output of integers or booleans must be met exactly.
    reference: str
    #: The variant that every time is divided by in ``bench``.
    baseline: str
    #: ``gradients(inputs, cotangents) -> gradients`` in float64; None when nothing is differentiable.
    reference_gradients: str | None = None
    #: Inputs with a gradient, in the order of the table.
    differentiable: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    #: The work that each pass needs at least, by the pass's name: "forward", "forward+backward".
    cost: Callable[[Arrays], Mapping[str, Cost]] | None = None
    #: The names and statements of its comparisons with the reference.
    value_check: str = "value"
    gradient_check: str = "gradient"
    value_title: str = ""
    gradient_title: str = ""
    #: The outputs must equal the reference to the last bit: nothing is rounded on the way.
    exact: bool = False
    #: Scale floors of the error metric: |error| / max(floor, max|reference|).
    value_floor: float = 1.0
    gradient_floor: float = 1e-3
    #: The gradient jumps where an activation does (ReLU at 0), and rounding in float32 moves some units across. Then
    #: ``bench`` verifies a float32 run by its outputs, and its gradients by the same variant in float64 on the small
    #: form of the problem.
    gradient_jumps: bool = False
    #: Numbers that describe the inputs, for the report: sizes, densities.
    facts: Callable[[Arrays], Mapping[str, float]] | None = None
    #: The speed-up over the baseline that these inputs allow, e.g. 1 / density.
    ideal: Callable[[Arrays], float] | None = None


@dataclass(frozen=True)
class Case:
    """A published benchmark: its problems, its variants and what every time is divided by."""

    name: str
    title: str
    source: str
    problems: tuple[Problem, ...]
    variants: tuple[Variant, ...]
    #: "": the baseline of each operation.
    baseline: str
    #: Which passes are timed, of "forward", "forward+backward", "step".
    passes: tuple[str, ...] = ("forward", "forward+backward")
    #: The oracle when the case times something else than the operation, as in :class:`Operation`.
    reference: str | None = None
    reference_gradients: str | None = None
    differentiable: tuple[str, ...] | None = None
    #: As in :class:`Operation`.
    gradient_jumps: bool = False
    #: Whether ``Operation.cost`` describes what the case times.
    costed: bool = True

    def timed(self, operation: Operation) -> Operation:
        """The operation as this case times it."""
        return replace(
            operation,
            baseline=self.baseline or operation.baseline,
            reference=self.reference or operation.reference,
            reference_gradients=self.reference_gradients or operation.reference_gradients,
            differentiable=operation.differentiable if self.differentiable is None else self.differentiable,
            gradient_jumps=self.gradient_jumps or operation.gradient_jumps,
            cost=operation.cost if self.costed else None,
        )


@dataclass(frozen=True)
class Family:
    """Operations that belong together, with everything that is known about computing them."""

    name: str
    title: str
    paper: str
    operations: tuple[Operation, ...]
    problems: tuple[Problem, ...]
    variants: tuple[Variant, ...]
    cases: tuple[Case, ...] = ()
    #: Tolerance of float64 runs, unless the user asks for a tighter one.
    float64_tolerance: float = 1e-12
    #: Options that take the user's own file, by name: "mesh", "graph", "image", "mask". A file makes one problem, or
    #: one for each operation that it is an input of.
    file_problems: Mapping[str, Callable[[Path], Problem | tuple[Problem, ...]]] = field(default_factory=dict)
    #: Says which variant ``version="auto"`` would take for these inputs, and why; one line a framework.
    explain: Callable[[Arrays], Sequence[str]] | None = None

    def operation_of(self, record: Problem | Variant) -> Operation:
        """The operation that a problem or a variant belongs to."""
        if not record.operation:
            return self.operations[0]
        return next(operation for operation in self.operations if operation.name == record.operation)

    def opened(self, option: str, path: Path) -> tuple[Problem, ...]:
        """The problems on a user's file; none when the option means nothing to this family."""
        if option not in self.file_problems:
            return ()
        found = self.file_problems[option](path)
        return found if isinstance(found, tuple) else (found,)


def load(path: str) -> Any:
    """The object named ``"package.module:attribute"``."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


@cache
def _own_family_names() -> tuple[str, ...]:
    package = importlib.util.find_spec("eqconv_cli.backends")
    locations = list(package.submodule_search_locations or ()) if package else []
    return tuple(sorted(module.name for module in pkgutil.iter_modules(locations) if module.ispkg))


def _outside_families() -> dict[str, Any]:
    from importlib.metadata import entry_points  # 20 ms that `eqconv --help` does without

    return {point.name: point for point in entry_points(group="eqconv.families")}


def family_names() -> tuple[str, ...]:
    """The names of all families, eqconv's own and those of entry points; imports none of them."""
    return tuple(sorted({*_own_family_names(), *_outside_families()}))


def family(name: str) -> Family:
    """Load a family by name.

    Raises:
        UsageError: no family has this name.
        Unavailable: an outside package announces it but cannot be imported.
    """
    if name in _own_family_names():
        found: Family = load(f"eqconv_cli.backends.{name}:FAMILY")
        return found
    outside = _outside_families()
    if name not in outside:
        raise unknown("FAMILY", name, family_names())
    try:
        found = outside[name].load()
    except Exception as error:
        raise Unavailable(f"family {name}", [f"its package fails to import: {error}"]) from error
    return found


def plugin_variants(module: str) -> Mapping[str, Sequence[Variant]]:
    """The variants that a user's module offers: its ``VARIANTS``, a mapping from family name to variants.

    ``module`` is a dotted name or the path of a Python file.

    Raises:
        UsageError: the module cannot be imported, or has no such mapping.
    """
    try:
        if module.endswith(".py"):
            path = Path(module)
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None and spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = loaded
            spec.loader.exec_module(loaded)
        else:
            loaded = importlib.import_module(module)
    except Exception as error:
        raise UsageError(f"--plugin {module!r} cannot be imported: {type(error).__name__}: {error}") from error
    variants = getattr(loaded, "VARIANTS", None)
    if not isinstance(variants, Mapping):
        raise UsageError(f"--plugin {module!r} has no VARIANTS: it must map a family name to a list of Variant")
    for name in variants:
        if name not in family_names():
            raise unknown(f"--plugin {module!r} names the family", str(name), family_names())
    return variants
