"""Everything that ``eqconv basis`` shows of a basis, as plain records."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable.basis import Attributes, SteerableBasis
from eqconv_cli.backends.steerable.costs import costs, densities, forms, slices
from eqconv_cli.backends.steerable.equivariance import continuous_errors, rotation_errors, smooth_input
from eqconv_cli.backends.steerable.fields import FieldType, Space
from eqconv_cli.backends.steerable.orbits import grid_symmetries
from eqconv_cli.backends.steerable.plan import Plan, make_plan
from eqconv_cli.errors import UsageError
from eqconv_cli.maths.planar_groups import Element, Group, IrrepId, parse_group
from eqconv_cli.maths.representations import Representation, direct_sum, parse_fields
from eqconv_cli.studies import (
    BasisRequest,
    BasisStudy,
    EquivarianceError,
    Filters,
    GroupElement,
    IrrepUse,
    RingUse,
)

#: What float64 rounds, relative to the largest value.
TOLERANCE = 1e-12
#: Numbers of all kernels at the test points beyond which only generators of the group are looked at, and none.
_ALL_ELEMENTS, _GENERATORS = 200_000_000, 30_000_000
#: The largest kernel that is looked at, its numbers, and the numbers of all kernels at a point: what memory holds.
_LARGEST_SIDE, _LARGEST_KERNEL, _LARGEST_BASIS = 101, 2**22, 2**27
#: About as many points as ``continuous_errors`` takes.
_POINTS = 32

T = TypeVar("T")

#: Options of the command by the names that messages have for them.
OPTIONS = {
    "kernel_size": "--kernel-size",
    "rings": "--rings",
    "sigma": "--sigma",
    "frequencies_cutoff": "--cutoff",
    "maximum_offset": "--max-offset",
    "axis": "--axis",
    "dilation": "--dilation",
}


def study(request: BasisRequest) -> BasisStudy:
    """Build the basis that is asked for and look at it.

    Raises:
        UsageError: a name or a number is not allowed, or no kernel is left; the message names the option.
    """
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan = plan_of(request)
    basis = plan.pairs[0].basis
    density = densities(basis, request.count_all)
    cost = costs(basis, density)
    space, group = basis.space, basis.space.group
    return BasisStudy(
        request=request,
        group=group.name,
        order=group.order if group.is_finite else None,
        group_elements=tuple(_plain(g) for g in group.test_elements),
        axis_degrees=request.axis_degrees if group.flips else None,
        in_name=basis.in_rep.name,
        out_name=basis.out_rep.name,
        in_size=basis.in_rep.size,
        out_size=basis.out_rep.size,
        irreps=_irreps(group, basis.in_rep, basis.out_rep),
        kernel_size=basis.sampling.size,
        dilation=basis.sampling.dilation,
        dimension=len(basis),
        harmonics=len(basis.harmonics),
        slices=slices(basis),
        rings=tuple(_ring(basis, number) for number in range(len(basis.sampling.rings))),
        densities=density,
        costs=cost,
        forms=forms(plan, cost),
        errors=_errors(basis, space, request.seed),
        tolerance=TOLERANCE,
        elements=tuple(_attributes(element) for element in basis.elements),
        filters=tuple(_filters(basis)),
        notes=tuple(_in_options(str(warning.message)) for warning in caught),
        seconds=time.perf_counter() - start,
    )


def plan_of(request: BasisRequest) -> Plan:
    """The plan of one field of each representation; a sum of several is one field.

    Raises:
        UsageError: as :func:`study`.
    """
    group = _named("--group", lambda: parse_group(request.group))
    space = _named("--axis", lambda: Space(group, math.radians(request.axis_degrees)))
    in_type = _named("--in", lambda: FieldType(space, (_one(parse_fields(request.in_fields, group)),)))
    out_type = _named("--out", lambda: FieldType(space, (_one(parse_fields(request.out_fields, group)),)))
    sigma = request.sigma
    side, channels = request.kernel_size, in_type.size * out_type.size
    if side > _LARGEST_SIDE:
        raise UsageError(f"--kernel-size {side}: allowed: 1 to {_LARGEST_SIDE}")
    if channels * side**2 > _LARGEST_KERNEL:
        raise UsageError(
            f"--in and --out have {in_type.size} and {out_type.size} channels: allowed for --kernel-size {side}: a "
            f"product of at most {_LARGEST_KERNEL // side**2}"
        )
    plan = _named(
        "basis",
        lambda: make_plan(
            in_type,
            out_type,
            request.kernel_size,
            dilation=request.dilation,
            rings=request.rings,
            sigma=sigma[0] if sigma is not None and len(sigma) == 1 else sigma,
            frequencies_cutoff=request.cutoff,
            maximum_offset=request.maximum_offset,
        ),
    )
    if plan.weights_size * channels > _LARGEST_BASIS:
        raise UsageError(
            f"--kernel-size {side}: {plan.weights_size} kernels of {out_type.size} x {in_type.size} channels: allowed: "
            f"{_LARGEST_BASIS // channels} kernels; fewer rings or a lower --cutoff leave fewer"
        )
    return plan


def arrays(request: BasisRequest) -> dict[str, npt.NDArray[Any]]:
    """The basis as arrays by name, which ``numpy.load`` reads without pickle.

    ``dense`` [d, so, si, k, k]; the attributes of the elements, [d] each, ``shape`` [d, 2]; ``ring_radius``,
    ``ring_sigma``, ``ring_cutoff``; ``in_change_of_basis``, ``out_change_of_basis`` and the names of the irreps in the
    order of their columns; ``group``, ``axis`` in radians, ``kernel_size``, ``dilation``.

    Raises:
        UsageError: as :func:`study`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        basis = plan_of(request).pairs[0].basis
    k, rings = basis.sampling.size, basis.sampling.rings
    so, si, _ = basis.block_shape
    columns: dict[str, list[Any]] = {
        name: [_id(value) if name.endswith("irrep") else value for value in values]
        for name, values in zip(Attributes._fields, zip(*basis.elements, strict=True), strict=True)
    }
    return {
        "dense": basis.dense.reshape(len(basis), so, si, k, k),
        **{name: np.array(values) for name, values in columns.items()},
        **{f"ring_{name}": np.array([getattr(ring, name) for ring in rings]) for name in rings[0]._fields},
        "in_change_of_basis": basis.in_rep.change_of_basis,
        "out_change_of_basis": basis.out_rep.change_of_basis,
        "in_irreps": np.array([_id(label) for label in basis.in_rep.irreps]),
        "out_irreps": np.array([_id(label) for label in basis.out_rep.irreps]),
        "group": np.array(basis.space.group.name),
        "axis": np.array(basis.space.axis),
        "kernel_size": np.array(k),
        "dilation": np.array(basis.sampling.dilation),
    }


def random_filter(basis: SteerableBasis, seed: int) -> npt.NDArray[np.float64]:
    """A kernel with random weights, [so, si, k, k], its largest value 1."""
    k = basis.sampling.size
    weights = np.random.default_rng(seed).standard_normal(len(basis))
    slots = basis.slots
    mixed = np.zeros((len(basis.harmonics), *basis.block_shape[:2]))
    np.add.at(mixed, slots.harmonic, weights[slots.element, None, None] * slots.values)
    made = np.einsum("hoi,hp->oip", mixed, basis.harmonic, optimize=True)
    return np.asarray((made / np.abs(made).max()).reshape(*made.shape[:2], k, k))


def kernel_of(basis: SteerableBasis, element: int) -> npt.NDArray[np.float64]:
    """One row of ``basis.dense``, [so, si, S], without the others."""
    slots = basis.slots
    mine = slots.element == element
    return np.einsum("hoi,hp->oip", slots.values[mine], basis.harmonic[slots.harmonic[mine]])


def _named(option: str, make: Callable[[], T]) -> T:
    """What ``make`` makes; its errors become those of an option, unless they name one themselves."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        message = re.sub(r"^(group|representation) (?=')", "", _in_options(str(error)))
        joint = "" if message.startswith("--") else f"{option} " if message.startswith("'") else f"{option}: "
        raise UsageError(joint + message) from error


def _in_options(message: str) -> str:
    """A message about arguments as one about options."""
    words = "|".join(OPTIONS)
    told, take, advice = message.partition(": take ")
    told = re.sub(rf"(^|With )({words})[= ]", lambda found: f"{found[1]}{OPTIONS[found[2]]} ", told)
    advice = re.sub(rf"({words})=\[?([\d.]+)\]?,?", lambda found: f"{OPTIONS[found[1]]} {found[2]}", advice)
    return told + take + advice


def _one(parts: Sequence[Representation]) -> Representation:
    if len(parts) == 1:
        return parts[0]
    names = [(name, len(list(same))) for name, same in groupby(part.name for part in parts)]
    return direct_sum(parts, " + ".join(name if count == 1 else f"{count} {name}" for name, count in names))


def _plain(g: Element) -> GroupElement:
    return GroupElement(g.flip, math.degrees(g.angle))


def _id(label: IrrepId) -> str:
    return ",".join(map(str, label))


def _irreps(group: Group, in_rep: Representation, out_rep: Representation) -> tuple[IrrepUse, ...]:
    """All irreps of a finite group; of a continuous one those up to the highest frequency that is used."""
    counts = [Counter(rep.irreps) for rep in (in_rep, out_rep)]
    most = max(irrep.frequency for irrep in (*in_rep.members, *out_rep.members))
    return tuple(
        IrrepUse(
            irrep.name,
            irrep.size,
            "complex" if irrep.is_complex else "real",
            irrep.frequency,
            counts[0][irrep.id],
            counts[1][irrep.id],
        )
        for irrep in group.irreps(most)
    )


def _ring(basis: SteerableBasis, number: int) -> RingUse:
    radius, sigma, cutoff = basis.sampling.rings[number]
    here = [abs(element.frequency) for element in basis.elements if element.ring == number]
    return RingUse(radius, sigma, cutoff, tuple(sorted(set(here))), len(here))


def _attributes(element: Attributes) -> Mapping[str, Any]:
    named = element._asdict()
    return {**named, "in_irrep": _id(element.in_irrep), "out_irrep": _id(element.out_irrep)}


def _errors(basis: SteerableBasis, space: Space, seed: int) -> tuple[EquivarianceError, ...]:
    elements = space.group.test_elements
    numbers = len(basis) * math.prod(basis.block_shape[:2]) * _POINTS
    chosen = elements
    if numbers * len(elements) > _ALL_ELEMENTS:
        # The smallest rotation and, behind all rotations, the first reflection.
        chosen = (*elements[1:2], *(elements[len(elements) // 2 :][:1] if space.group.flips else ()))
    if numbers > _GENERATORS:
        chosen = ()
    looked_at = continuous_errors(basis, chosen, seed) if chosen else ()
    continuous = {error.element: error.relative for error in looked_at}
    made = random_filter(basis, seed)
    in_type, out_type = FieldType(space, (basis.in_rep,)), FieldType(space, (basis.out_rep,))
    x = smooth_input(basis.in_rep.size, seed=seed)
    found = rotation_errors(lambda x: _correlated(x, made, basis.sampling.dilation), in_type, out_type, x, elements)
    exact = set(grid_symmetries(space))
    return tuple(
        EquivarianceError(_plain(g), continuous.get(g), error.relative, _is_one_of(g, exact))
        for g, error in zip(elements, found, strict=True)
    )


def _is_one_of(g: Element, elements: set[Element]) -> bool:
    return any(g.flip == h.flip and abs(math.remainder(g.angle - h.angle, 2 * math.pi)) < 1e-9 for h in elements)


def _correlated(x: npt.NDArray[np.float64], kernel: npt.NDArray[np.float64], dilation: int) -> npt.NDArray[np.float64]:
    """Cross-correlation of [1, C, H, W] around the same centre, 0 outside; an even span loses a row and a column."""
    k = kernel.shape[-1]
    margin = dilation * (k - 1) // 2
    padded = np.pad(x, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
    side = padded.shape[-1] - dilation * (k - 1)
    made = np.zeros((len(kernel), side * side))
    for i in range(k):
        for j in range(k):
            part = padded[0, :, i * dilation : i * dilation + side, j * dilation : j * dilation + side]
            made += kernel[:, :, i, j] @ part.reshape(x.shape[1], -1)
    return made.reshape(1, -1, side, side)


def _filters(basis: SteerableBasis) -> list[Filters]:
    """An element of each ring and frequency.

    Where no Q mixes the irreps, the first of those with the largest block, and its block; else the first one, from the
    first in channel that it reads to all out channels.
    """
    k, found = basis.sampling.size, []
    ordered = sorted(basis.elements, key=lambda element: (element.ring, abs(element.frequency), element.idx))
    blocks = basis.in_rep.is_identity and basis.out_rep.is_identity
    for (ring, frequency), group in groupby(ordered, key=lambda element: (element.ring, abs(element.frequency))):
        same = list(group)
        first = max(same, key=lambda element: math.prod(element.shape)) if blocks else same[0]
        kernel = kernel_of(basis, first.idx)
        largest = np.abs(kernel).max(axis=2)
        if blocks:
            rows, columns = basis.out_rep.offsets[first.oo], basis.in_rep.offsets[first.ii]
            channels = [(rows + o, columns + i) for o in range(first.shape[0]) for i in range(first.shape[1])]
        else:
            column = int((largest.max(axis=0) > 1e-9).argmax())
            channels = [(o, column) for o in range(basis.out_rep.size)]
        kernels = np.stack([kernel[o, i] for o, i in channels]).reshape(-1, k, k)
        found.append(
            Filters(
                ring,
                first.radius,
                frequency,
                len(same),
                first.idx,
                _id(first.in_irrep),
                _id(first.out_irrep),
                tuple(channels),
                first.shape[1] if blocks else None,
                kernels,
            )
        )
    return found
