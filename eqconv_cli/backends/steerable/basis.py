"""A basis of all kernels that commute with a group, for a pair of representations, sampled on the grid.

Weiler, Cesa, arXiv 1911.08251, eq. 4; the elements, their order and their norm are those of QUVA-Lab/e2cnn
``kernels/basis.py`` and ``kernels/steerable_basis.py``. Every form of the basis is made of the same list of elements,
when it is asked for, in float64.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable.angular import AngularSolution, Term, angular_solutions, terms
from eqconv_cli.backends.steerable.fields import Space
from eqconv_cli.backends.steerable.sampling import Cutoff, Sampling, make_sampling, polar
from eqconv_cli.maths.planar_groups import Group, IrrepId, Matrix
from eqconv_cli.maths.representations import Representation

Integers = npt.NDArray[np.int32]

#: An element whose norm on the grid is below this is 0 there and left out.
SMALLEST_NORM = 1e-6
#: Bases that are kept.
CACHED = 512


class Attributes(NamedTuple):
    """What describes an element of a basis."""

    #: The position among the elements of the pair: that of its weight.
    idx: int
    ring: int
    radius: float
    sigma: float
    in_irrep: IrrepId
    out_irrep: IrrepId
    #: Positions of the irreps in their representations.
    ii: int
    oo: int
    #: mu.
    frequency: int
    #: s, and gamma in radians.
    reflected: int
    gamma: float
    #: t.
    offset: int
    #: (rows, columns) of its block.
    shape: tuple[int, int]
    #: Of the element before it is divided by it.
    norm: float


class Coupling(NamedTuple):
    """Entries of all elements in the coordinates of the irreps: element b has ``factor`` · harmonic h at (o, i)."""

    element: Integers
    row: Integers
    column: Integers
    harmonic: Integers
    factor: Matrix


class Harmonic(NamedTuple):
    """g(r) cos(mu phi), or sin, on one ring."""

    ring: int
    frequency: int
    sine: int


class Slots(NamedTuple):
    """What each element has of each harmonic that it is made of, in the coordinates of the representations."""

    element: Integers
    #: Ascending.
    harmonic: Integers
    #: [slots, so, si].
    values: Matrix


class SteerableBasis:
    """The elements for one (in, out) pair of representations, and the forms in which algorithms want them.

    d elements, so and si the sizes of the representations, S pixels, H harmonics.
    """

    def __init__(
        self,
        space: Space,
        in_rep: Representation,
        out_rep: Representation,
        sampling: Sampling,
        elements: Sequence[Attributes],
        coupling: Coupling,
        harmonics: Sequence[Harmonic],
    ) -> None:
        """As :func:`build_basis` makes it."""
        self.space, self.in_rep, self.out_rep, self.sampling = space, in_rep, out_rep, sampling
        self.elements, self.coupling, self.harmonics = tuple(elements), coupling, tuple(harmonics)

    def __len__(self) -> int:
        return len(self.elements)

    def __getstate__(self) -> dict[str, Any]:
        """Without the forms: they are made again when they are asked for."""
        names = ("space", "in_rep", "out_rep", "sampling", "elements", "coupling", "harmonics")
        return {name: self.__dict__[name] for name in names}

    @property
    def block_shape(self) -> tuple[int, int, int]:
        """(so, si, S)."""
        return self.out_rep.size, self.in_rep.size, self.sampling.pixels

    @cached_property
    def harmonic(self) -> Matrix:
        """The harmonics on the grid, [H, S]."""
        return self.harmonics_at(self.sampling.points())

    def harmonics_at(self, points: Matrix) -> Matrix:
        """The harmonics at any points [n, 2], [H, n]."""
        return sampled(self.space, self.sampling, self.harmonics, points)

    def at(self, points: Matrix) -> Matrix:
        """The elements at any points [n, 2] of the plane, [d, so, si, n]; norms are those of the grid."""
        return self._recombined(self.coefficients @ self.harmonics_at(points))

    @cached_property
    def coefficients(self) -> Matrix:
        """The coupling as an array, [d, so, si, H], in the coordinates of the irreps."""
        made = np.zeros((len(self), *self.block_shape[:2], len(self.harmonics)))
        c = self.coupling
        made[c.element, c.row, c.column, c.harmonic] = c.factor
        return made

    @property
    def slots(self) -> Slots:
        """The coupling in the coordinates of the representations, ordered by harmonics and then elements.

        Large, and not kept: what compiled kernels need of it is in the tables of a plan.
        """
        c = self.coupling
        order = np.lexsort((c.element, c.harmonic))
        element, harmonic = c.element[order], c.harmonic[order]
        begins = np.flatnonzero(np.diff(element, prepend=-1) | np.diff(harmonic, prepend=-1))
        left = self.out_rep.change_of_basis.T[c.row[order]] * c.factor[order, None]
        entries = left[:, :, None] * self.in_rep.inverse[c.column[order]][:, None, :]
        values = np.add.reduceat(entries, begins) if len(begins) else entries
        return Slots(element[begins], harmonic[begins], values)

    @cached_property
    def padded(self) -> Matrix:
        """The elements on the grid in the coordinates of the irreps, mostly zeros, [d, so, si, S]."""
        return self.coefficients @ self.harmonic

    @cached_property
    def dense(self) -> Matrix:
        """The elements on the grid, [d, so, si, S]: what e2cnn stores."""
        return self._recombined(self.padded)

    @cached_property
    def packed(self) -> tuple[Matrix, Integers]:
        """Values [L, so, si, S] and element ids [L, so, si] (-1: none): the l-th element of every pair of irreps.

        In the coordinates of the irreps blocks of different pairs do not overlap, so one slice holds one of each.
        """
        rank = np.zeros(len(self), np.int64)
        seen: dict[tuple[int, int], int] = {}
        for element in self.elements:
            pair = (element.oo, element.ii)
            rank[element.idx] = seen.get(pair, 0)
            seen[pair] = seen.get(pair, 0) + 1
        slices = max(seen.values(), default=0)
        values = np.zeros((slices, *self.block_shape))
        ids = np.full((slices, *self.block_shape[:2]), -1, np.int32)
        for element in self.elements:
            rows, columns = self._block(element)
            values[rank[element.idx], rows, columns] = self.padded[element.idx, rows, columns]
            ids[rank[element.idx], rows, columns] = element.idx
        return values, ids

    @cached_property
    def csr(self) -> tuple[Integers, Integers, Matrix]:
        """``padded`` as a compressed matrix [d, so · si · S]: row starts [d + 1], columns and values."""
        flat = self.padded.reshape(len(self), math.prod(self.block_shape))
        rows, columns = flat.nonzero()
        starts = np.searchsorted(rows, np.arange(len(self) + 1))
        return starts.astype(np.int32), columns.astype(np.int32), flat[rows, columns]

    def _block(self, element: Attributes) -> tuple[slice, slice]:
        row, column = self.out_rep.offsets[element.oo], self.in_rep.offsets[element.ii]
        return slice(row, row + element.shape[0]), slice(column, column + element.shape[1])

    def _recombined(self, made: Matrix) -> Matrix:
        """Q_out x Q_in^-1 for x [d, so, si, ...]."""
        if not self.out_rep.is_identity:
            made = np.einsum("po,doix->dpix", self.out_rep.change_of_basis, made, optimize=True)
        if not self.in_rep.is_identity:
            made = np.einsum("doix,ij->dojx", made, self.in_rep.inverse, optimize=True)
        return np.ascontiguousarray(made)


def sampled(space: Space, sampling: Sampling, harmonics: Sequence[Harmonic], points: Matrix) -> Matrix:
    """Harmonics at points, [H, n]; phi is measured from the axis where there are reflections."""
    distances, angles = polar(points)
    turned = angles - space.axis if space.group.flips else angles
    inner = distances == 0
    profiles = [ring.profile(distances) for ring in sampling.rings]
    made = np.zeros((len(harmonics), len(points)))
    for h, (ring, frequency, sine) in enumerate(harmonics):
        if frequency == 0:
            made[h] = profiles[ring]
        else:
            wave = np.sin(frequency * turned) if sine else np.cos(frequency * turned)
            made[h] = np.where(inner, 0.0, profiles[ring] * wave)
    return made


def build_basis(
    space: Space | Group,
    in_rep: Representation,
    out_rep: Representation,
    kernel_size: int,
    *,
    dilation: int = 1,
    rings: Sequence[float] | None = None,
    sigma: float | Sequence[float] | None = None,
    frequencies_cutoff: Cutoff = None,
    maximum_offset: int | None = None,
    basis_filter: Callable[[Attributes], bool] | None = None,
    scale_cutoff_with_dilation: bool = False,
) -> SteerableBasis:
    """All kernels kappa(g x) = rho_out(g) kappa(x) rho_in(g)^-1 for every g of the group, up to the rings' frequencies.

    Args:
        space: the group, with the axis of its reflections.
        in_rep, out_rep: of the group.
        kernel_size, dilation, rings, sigma, frequencies_cutoff, scale_cutoff_with_dilation: see
            :func:`eqconv_cli.backends.steerable.sampling.make_sampling`.
        maximum_offset: keeps elements whose frequency is at most so many times N from the smallest.
        basis_filter: keeps the elements that it is true for; their ``norm`` and ``idx`` are not known yet.

    Raises:
        TypeError, ValueError: an argument is not allowed.
    """
    place = Space(space) if isinstance(space, Group) else space
    sampling = make_sampling(kernel_size, dilation, rings, sigma, frequencies_cutoff, scale_cutoff_with_dilation)
    return sampled_basis(place, in_rep, out_rep, sampling, maximum_offset, basis_filter)


_CACHE: OrderedDict[tuple[Any, ...], SteerableBasis] = OrderedDict()
_LOCK = Lock()


def sampled_basis(
    space: Space,
    in_rep: Representation,
    out_rep: Representation,
    sampling: Sampling,
    maximum_offset: int | None = None,
    basis_filter: Callable[[Attributes], bool] | None = None,
    recompute: bool = False,
) -> SteerableBasis:
    """:func:`build_basis` for a sampling; bases are kept and, unless ``recompute``, given again.

    Raises:
        ValueError: a representation is of another group; ``maximum_offset`` is negative.
    """
    for name, rep in (("in_rep", in_rep), ("out_rep", out_rep)):
        if rep.group != space.group:
            raise ValueError(f"{name} ({rep.name}) is of {rep.group.name}: the space has {space.group.name}")
    if maximum_offset is not None and not _counts(maximum_offset):
        raise ValueError(f"maximum_offset={maximum_offset!r}: an integer is needed, 0 or more")
    candidates = _candidates(space, in_rep, out_rep, sampling, maximum_offset)
    if basis_filter is not None:
        candidates = [candidate for candidate in candidates if basis_filter(candidate)]
    key = (
        space.group,
        space.axis if space.group.flips else None,
        _identity(in_rep),
        _identity(out_rep),
        sampling,
        maximum_offset,
        None if basis_filter is None else tuple(candidates),
    )
    with _LOCK:
        if key in _CACHE and not recompute:
            _CACHE.move_to_end(key)
            return _CACHE[key]
    made = _build(space, in_rep, out_rep, sampling, candidates)
    with _LOCK:
        _CACHE[key] = made
        while len(_CACHE) > CACHED:
            _CACHE.popitem(last=False)
    return made


def forget_bases() -> None:
    """Let go of all bases that are kept."""
    with _LOCK:
        _CACHE.clear()


def _counts(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 0)


def _identity(rep: Representation) -> tuple[Any, ...]:
    return rep.irreps, rep.change_of_basis.tobytes()


def _candidates(
    space: Space, in_rep: Representation, out_rep: Representation, sampling: Sampling, maximum_offset: int | None
) -> list[Attributes]:
    """The elements in order, before their norms are known."""
    most = sampling.maximum_frequency
    solutions = {
        (a.id, b.id): angular_solutions(a, b, most, maximum_offset)
        for a in dict.fromkeys(out_rep.members)
        for b in dict.fromkeys(in_rep.members)
    }
    return [
        Attributes(
            -1,
            number,
            ring.radius,
            ring.sigma,
            in_irrep.id,
            out_irrep.id,
            ii,
            oo,
            solution.frequency,
            solution.reflected,
            solution.quarter * math.pi / 2,
            solution.offset,
            (out_irrep.size, in_irrep.size),
            math.nan,
        )
        for number, ring in enumerate(sampling.rings)
        for ii, in_irrep in enumerate(in_rep.members)
        for oo, out_irrep in enumerate(out_rep.members)
        for solution in solutions[out_irrep.id, in_irrep.id]
        if abs(solution.frequency) <= ring.cutoff
    ]


def _build(
    space: Space, in_rep: Representation, out_rep: Representation, sampling: Sampling, candidates: Sequence[Attributes]
) -> SteerableBasis:
    """Norms on the grid, and what is not 0 there."""
    made = [(candidate, _terms(candidate)) for candidate in candidates]
    wanted = sorted({Harmonic(c.ring, term.frequency, term.sine) for c, found in made for term in found})
    energy = (sampled(space, sampling, wanted, sampling.points()) ** 2).sum(axis=1)
    energies = dict(zip(wanted, energy.tolist(), strict=True))
    elements: list[Attributes] = []
    entries: list[tuple[int, int, int, Harmonic, float]] = []
    for candidate, found in made:
        total = sum(energies[Harmonic(candidate.ring, term.frequency, term.sine)] for term in found)
        norm = math.sqrt(total / candidate.shape[0])
        if norm < SMALLEST_NORM:
            continue
        row, column = out_rep.offsets[candidate.oo], in_rep.offsets[candidate.ii]
        for term in found:
            harmonic = Harmonic(candidate.ring, term.frequency, term.sine)
            entries.append((len(elements), row + term.row, column + term.column, harmonic, term.sign / norm))
        elements.append(candidate._replace(idx=len(elements), norm=norm))
    used = sorted({entry[3] for entry in entries})
    position = {harmonic: h for h, harmonic in enumerate(used)}
    numbers = np.array([(*entry[:3], position[entry[3]]) for entry in entries], np.int32).reshape(-1, 4).T.copy()
    coupling = Coupling(numbers[0], numbers[1], numbers[2], numbers[3], np.array([entry[4] for entry in entries]))
    return SteerableBasis(space, in_rep, out_rep, sampling, elements, coupling, used)


def _terms(candidate: Attributes) -> list[Term]:
    quarter = round(candidate.gamma / (math.pi / 2))
    return terms(AngularSolution(candidate.frequency, candidate.reflected, quarter, candidate.offset), candidate.shape)
