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
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

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


@dataclass(frozen=True)
class Variant:
    """One algorithm with its options in one framework, named ``algorithm+option@framework``.

    ``prepare`` names a function ``prepare(inputs, dtype, device, **arguments) -> Prepared``.
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

    def arrays(self, seed: int) -> Arrays:
        """The inputs for a seed."""
        return self.make(seed, **self.parameters)

    def with_parameters(self, **changes: Parameter) -> Problem:
        """The same problem with other parameters, which then show in its name."""
        unknown_names = sorted(set(changes) - set(self.parameters))
        if unknown_names:
            raise unknown("--set", unknown_names[0], sorted(self.parameters))
        merged = {**self.changes, **changes}
        shown = ",".join(f"{name}={value}" for name, value in merged.items())
        base = self.name.split("[")[0]
        parameters = {**self.parameters, **changes}
        return replace(self, name=f"{base}[{shown}]", parameters=parameters, changes=merged)


@dataclass(frozen=True)
class Pair:
    """Two arrays that an invariant says are equal, and the scale below which a difference is absolute."""

    name: str
    actual: np.ndarray
    expected: np.ndarray
    floor: float = 1.0


@dataclass(frozen=True)
class Check:
    """An invariant of the family: ``run(compute, inputs, seed)`` calls the variant and returns pairs to compare."""

    name: str
    run: Callable[[Callable[[Arrays], Arrays], Arrays, int], Sequence[Pair]]
    title: str = ""


@dataclass(frozen=True)
class Cost:
    """The work that any implementation must do: floating-point operations and bytes read or written once."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Case:
    """A published benchmark: its problems, its variants and what every time is divided by."""

    name: str
    title: str
    source: str
    problems: tuple[Problem, ...]
    variants: tuple[Variant, ...]
    baseline: str
    #: Which passes are timed, of "forward", "forward+backward", "step".
    passes: tuple[str, ...] = ("forward", "forward+backward")
    #: The oracle when the case times something else than the family's operation, as in :class:`Family`.
    reference: str | None = None
    reference_gradients: str | None = None
    differentiable: tuple[str, ...] | None = None
    #: The gradient jumps where an activation does (ReLU at 0), and rounding in float32 moves some units across. Then a
    #: float32 run is verified by its outputs, and its gradients by the same variant in float64 on the small form of
    #: the problem.
    gradient_jumps: bool = False
    #: Whether ``Family.cost`` describes what the case times.
    costed: bool = True


@dataclass(frozen=True)
class Family:
    """One operation, defined by one formula, with everything that is known about computing it."""

    name: str
    title: str
    formula: str
    paper: str
    #: ``reference(inputs) -> outputs`` and ``gradients(inputs, cotangents) -> gradients``, in float64.
    reference: str
    reference_gradients: str
    #: Inputs with a gradient, in the order of the table.
    differentiable: tuple[str, ...]
    problems: tuple[Problem, ...]
    variants: tuple[Variant, ...]
    checks: tuple[Check, ...]
    cases: tuple[Case, ...]
    #: The variant that every time is divided by in ``bench`` without ``--case``.
    baseline: str
    #: The work that each pass needs at least, by the pass's name: "forward", "forward+backward".
    cost: Callable[[Arrays], Mapping[str, Cost]]
    #: Scale floors of the error metric: |error| / max(floor, max|reference|).
    value_floor: float = 1.0
    gradient_floor: float = 1e-3
    #: Tolerance of float64 runs, unless the user asks for a tighter one.
    float64_tolerance: float = 1e-12
    #: Options that take the user's own file, by name: "mesh", "graph", "image", ...
    file_problems: Mapping[str, Callable[[Path], Problem]] = field(default_factory=dict)
    #: Says which variant ``version="auto"`` would take for these inputs, and why; one line a framework.
    explain: Callable[[Arrays], Sequence[str]] | None = None


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
