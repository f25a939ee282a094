"""Real representations of planar groups: matrices, and the change of basis that splits them into irreps.

rho(g) = Q (psi_1(g) + ... + psi_n(g)) Q^-1 with the irreps psi along the diagonal. Closed forms and transfer operators;
nothing is optimised. Weights of steerable kernels mean something only together with Q, so the choices here are fixed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from eqconv_cli.maths.planar_groups import (
    Element,
    Group,
    Irrep,
    IrrepId,
    Matrix,
    Subgroup,
    subgroup,
)

#: What a decomposition may be off, and a multiplicity.
EXACT, WHOLE = 1e-9, 1e-6

ALLOWED_EXPRESSIONS = (
    "regular, trivial, irrep:K or irrep:J,K, quotient:M or quotient:Q,M, and sums such as 2*regular+irrep:1"
)


@dataclass(frozen=True, eq=False)
class Representation:
    """A representation by its irreps and the change of basis.

    Raises:
        ValueError: the change of basis is not square, of another size than the irreps, or not invertible.
    """

    group: Group
    name: str
    #: Ids of the irreps, in the order of the columns of ``change_of_basis``.
    irreps: tuple[IrrepId, ...]
    #: Q, [size, size].
    change_of_basis: Matrix

    def __post_init__(self) -> None:
        size = sum(irrep.size for irrep in self.members)
        if self.change_of_basis.shape != (size, size):
            raise ValueError(
                f"change_of_basis has shape {self.change_of_basis.shape}: expected {(size, size)} for these irreps"
            )
        if not np.all(np.isfinite(self.change_of_basis)) or np.linalg.cond(self.change_of_basis) > 1e12:
            raise ValueError("change_of_basis is not invertible: its condition number is above 1e12")

    @cached_property
    def members(self) -> tuple[Irrep, ...]:
        """The irreps."""
        return tuple(self.group.irrep(*label) for label in self.irreps)

    @property
    def size(self) -> int:
        """The number of channels."""
        return sum(irrep.size for irrep in self.members)

    @cached_property
    def inverse(self) -> Matrix:
        """Q^-1."""
        if np.abs(self.change_of_basis @ self.change_of_basis.T - np.eye(self.size)).max(initial=0) < 1e-12:
            return self.change_of_basis.T.copy()
        return np.linalg.inv(self.change_of_basis).astype(np.float64)

    @cached_property
    def is_identity(self) -> bool:
        """Whether Q is the identity: the channels are those of the irreps."""
        return np.array_equal(self.change_of_basis, np.eye(self.size))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each irrep begins."""
        return tuple(np.cumsum([0, *(irrep.size for irrep in self.members[:-1])]).tolist()) if self.members else ()

    def matrices(self, elements: Sequence[Element]) -> Matrix:
        """[n, size, size]."""
        blocks = np.zeros((len(elements), self.size, self.size))
        made = {irrep: irrep.matrices(elements) for irrep in set(self.members)}
        for offset, irrep in zip(self.offsets, self.members, strict=True):
            end = offset + irrep.size
            blocks[:, offset:end, offset:end] = made[irrep]
        return blocks if self.is_identity else self.change_of_basis @ blocks @ self.inverse

    def __call__(self, g: Element) -> Matrix:
        """The matrix of an element."""
        made: Matrix = self.matrices([g])[0]
        return made

    def same_as(self, other: Representation) -> bool:
        """Whether group, irreps and Q are equal; names do not matter."""
        return (
            self.group == other.group
            and self.irreps == other.irreps
            and np.array_equal(self.change_of_basis, other.change_of_basis)
        )

    def __str__(self) -> str:
        return self.name


def trivial(group: Group) -> Representation:
    """One channel that nothing changes."""
    return irrep(group, *group.trivial_irrep.id)


def irrep(group: Group, *label: int) -> Representation:
    """An irrep as a representation; raises ValueError for an unknown id."""
    found = group.irrep(*label)
    return Representation(group, found.name, (found.id,), np.eye(found.size))


@lru_cache(maxsize=256)
def regular(group: Group) -> Representation:
    """One channel for each element, permuted by the group: rho(h) e_g = e_hg.

    Raises:
        ValueError: the group is continuous.
    """
    _check_finite(group, "regular")
    labels: list[IrrepId] = []
    columns: list[Matrix] = []
    for psi in group.irreps():
        # [|G|, copy, a] of psi(g)[a, copy].
        entries = psi.matrices(group.elements).transpose(0, 2, 1) * math.sqrt(psi.size / group.order)
        for copy in range(1 if psi.is_complex else psi.size):
            labels.append(psi.id)
            columns.append(entries[:, copy])
    return Representation(group, "regular", tuple(labels), np.concatenate(columns, axis=1))


def quotient(group: Group, label: Any) -> Representation:
    """One channel for each left coset of a subgroup, see :func:`subgroup`.

    Raises:
        ValueError: no such subgroup, or infinitely many cosets.
    """
    inner = subgroup(group, label)
    return _induced(group, inner, inner.group.trivial_irrep, f"quotient[{label}]")


def induced(group: Group, label: Any, psi: Sequence[int]) -> Representation:
    """The representation of the group that an irrep, by its id, of a subgroup induces.

    Raises:
        ValueError: no such subgroup or irrep, or infinitely many cosets.
    """
    inner = subgroup(group, label)
    found = inner.group.irrep(*psi)
    return _induced(group, inner, found, f"induced[{label}][{found.name}]")


def direct_sum(parts: Sequence[Representation], name: str | None = None) -> Representation:
    """Channels side by side.

    Raises:
        ValueError: there are no parts, or they are of several groups.
    """
    if not parts:
        raise ValueError("direct_sum of no representations: at least one is needed")
    group = parts[0].group
    for part in parts:
        if part.group != group:
            raise ValueError(
                f"direct_sum of representations of {group.name} and {part.group.name}: one group is needed"
            )
    size = sum(part.size for part in parts)
    q, at = np.zeros((size, size)), 0
    for part in parts:
        q[at : at + part.size, at : at + part.size] = part.change_of_basis
        at += part.size
    labels = tuple(label for part in parts for label in part.irreps)
    return Representation(group, name or "_".join(f"[{part.name}]" for part in parts), labels, q)


def change_basis(representation: Representation, matrix: Matrix, name: str) -> Representation:
    """The same in other coordinates: Q becomes ``matrix`` Q.

    Raises:
        ValueError: the matrix is not square of the representation's size, or not invertible.
    """
    wanted = (representation.size, representation.size)
    if np.shape(matrix) != wanted:
        raise ValueError(f"matrix has shape {np.shape(matrix)}: expected {wanted}")
    q = np.asarray(matrix, np.float64) @ representation.change_of_basis
    return Representation(representation.group, name, representation.irreps, q)


def restrict(representation: Representation, label: Any) -> Representation:
    """The same matrices, as a representation of a subgroup, see :func:`subgroup`; named ``<name>|<subgroup>``.

    Raises:
        ValueError: no such subgroup.
    """
    inner = subgroup(representation.group, label)
    name = f"{representation.name}|{inner.group.name}"
    if not inner.group.is_finite:
        # Without its reflections an irrep of O(2) is one of SO(2) with the same frequency, in the same coordinates.
        labels = tuple((psi.frequency,) for psi in representation.members)
        return Representation(inner.group, name, labels, representation.change_of_basis)
    made = representation.matrices([inner.embed(h) for h in inner.group.elements])
    return from_matrices(inner.group, made, name)


def from_matrices(group: Group, matrices: Matrix | Mapping[Element, Matrix], name: str) -> Representation:
    """Any representation of a finite group, by its matrices [|G|, n, n] in the order of the elements.

    Transfer operators split it into irreps; in orthogonal coordinates Q is orthogonal.

    Raises:
        ValueError: the group is continuous, the matrices have another shape, or they are no representation.
    """
    _check_finite(group, name)
    given = np.stack([matrices[g] for g in group.elements]) if isinstance(matrices, Mapping) else np.asarray(matrices)
    if given.ndim != 3 or given.shape[0] != group.order or given.shape[1] != given.shape[2]:
        raise ValueError(f"matrices of {name} have shape {given.shape}: expected ({group.order}, n, n)")
    rho = given.astype(np.float64)
    labels: list[IrrepId] = []
    columns: list[Matrix] = []
    inverses = [group.inverse(g) for g in group.elements]
    traces = np.trace(rho, axis1=1, axis2=2)
    for psi in group.irreps():
        against = np.trace(psi.matrices(inverses), axis1=1, axis2=2)
        share = float(traces @ against) / ((1 + psi.is_complex) * group.order)
        if abs(share - round(share)) > WHOLE or round(share) < 0:
            raise ValueError(f"{name} is not a representation of {group.name}: it holds {psi.name} {share:.6f} times")
        if round(share):
            columns.extend(_copies(group, rho, psi, round(share), name))
            labels.extend([psi.id] * round(share))
    q = np.concatenate(columns, axis=1) if columns else np.zeros((0, 0))
    if q.shape != rho.shape[1:]:
        raise ValueError(
            f"{name} is not a representation of {group.name}: its irreps have size {q.shape[1]}, not {rho.shape[1]}"
        )
    made = Representation(group, name, tuple(labels), q)
    errors = np.abs(made.matrices(group.elements) - rho).max(axis=(1, 2), initial=0)
    worst = int(errors.argmax())
    if errors[worst] > EXACT * max(1.0, float(np.abs(rho).max(initial=0))):
        raise ValueError(
            f"{name} is not a representation of {group.name}: at (flip, angle) = {tuple(group.elements[worst])} its "
            f"irreps differ from the matrix by {errors[worst]:.1e}"
        )
    return made


def _copies(group: Group, rho: Matrix, psi: Irrep, count: int, name: str) -> list[Matrix]:
    """Columns [n, psi.size] of each copy of an irrep."""
    if psi.is_complex:
        angles = np.array([g.angle for g in group.elements])
        transfer = np.einsum("g,gij->ij", np.exp(-1j * psi.frequency * angles), rho) / group.order
        found = _independent(transfer, count, name, psi)
        return [math.sqrt(2) * np.stack([u.real, -u.imag], 1) for u in found]
    entries = psi.matrices(group.elements)[:, :, 0]
    transfers = np.einsum("ga,gij->aij", entries, rho) * (psi.size / group.order)
    found = _independent(transfers[0], count, name, psi)
    return [np.stack([transfer @ u for transfer in transfers], 1) for u in found]


def _independent(matrix: np.ndarray, count: int, name: str, psi: Irrep) -> list[np.ndarray]:
    """The first ``count`` independent columns, made orthonormal one after the other."""
    found: list[np.ndarray] = []
    for column in matrix.T:
        rest = column.copy()
        for _ in range(2):
            for u in found:
                rest = rest - u * np.vdot(u, rest)
        length = float(np.linalg.norm(rest))
        if length > WHOLE:
            found.append(rest / length)
        if len(found) == count:
            return found
    raise ValueError(f"{name} is not a representation: of {count} copies of {psi.name} it has {len(found)}")


def _induced(group: Group, inner: Subgroup, sigma: Irrep, name: str) -> Representation:
    if not group.is_finite:
        if inner.group.is_finite:
            raise ValueError(
                f"{name} of {group.name} is infinite-dimensional: a subgroup with finitely many cosets is needed"
            )
        return _induced_from_rotations(group, sigma, name)
    inside = {group.index(inner.embed(h)): k for k, h in enumerate(inner.group.elements)}
    elements = group.elements
    matrices_of_sigma = sigma.matrices(inner.group.elements)
    first: list[Element] = []
    coset: dict[int, int] = {}
    for g in elements:
        if group.index(g) in coset:
            continue
        for h in inner.group.elements:
            coset[group.index(group.product(g, inner.embed(h)))] = len(first)
        first.append(g)
    size = sigma.size
    rho = np.zeros((len(elements), size * len(first), size * len(first)))
    for k, g in enumerate(elements):
        for i, r in enumerate(first):
            moved = group.product(g, r)
            j = coset[group.index(moved)]
            within = inside[group.index(group.product(group.inverse(first[j]), moved))]
            rho[k, j * size : (j + 1) * size, i * size : (i + 1) * size] = matrices_of_sigma[within]
    return from_matrices(group, rho, name)


def _induced_from_rotations(group: Group, sigma: Irrep, name: str) -> Representation:
    """O(2) from SO(2): two cosets, of the identity and of the reflection (1, 0)."""
    half = math.sqrt(0.5)
    if sigma.frequency == 0:
        return Representation(group, name, ((0, 0), (1, 0)), np.array([[half, half], [half, -half]]))
    # rho((0, t)) = R(k t) + R(-k t); rho((1, 0)) swaps. F R(-k t) F = R(k t), and F is what (1, k) does with (1, 0).
    f, j = np.diag([1.0, -1.0]), np.array([[0.0, -1.0], [1.0, 0.0]])
    q = half * np.block([[np.eye(2), j], [f, -f @ j]])
    return Representation(group, name, ((1, sigma.frequency),) * 2, q)


def _check_finite(group: Group, name: str) -> None:
    if not group.is_finite:
        raise ValueError(
            f"{name} needs a finite group: {group.name} is continuous (take irreps, such as irrep:0+irrep:1)"
        )


_NUMBERS = r"-?\d+(?:\s*,\s*-?\d+)?"
_TERM = re.compile(
    rf"(?:(\d+)\s*\*\s*)?(regular|trivial|irrep\s*:\s*({_NUMBERS})|quotient\s*:\s*((?:none\s*,\s*\d+)|{_NUMBERS}))"
)


def parse_fields(text: str, group: Group) -> tuple[Representation, ...]:
    """The fields that an expression such as ``2*regular+irrep:1`` names, one after the other.

    Raises:
        ValueError: the expression is not understood, or a representation does not exist; the message says what may be.
    """
    fields: list[Representation] = []
    for term in text.split("+"):
        match = _TERM.fullmatch(term.strip().lower())
        if match is None:
            raise ValueError(
                f"representation {text!r} is not understood at {term.strip()!r}: allowed: {ALLOWED_EXPRESSIONS}"
            )
        count, word, irrep_id, quotient_id = match.groups()
        if count is not None and int(count) < 1:
            raise ValueError(f"representation {text!r}: {count} copies are not allowed: 1 or more")
        fields.extend([_named(group, word, irrep_id, quotient_id)] * int(count or 1))
    return tuple(fields)


def _named(group: Group, word: str, irrep_id: str | None, quotient_id: str | None) -> Representation:
    if irrep_id is not None:
        return irrep(group, *(int(number) for number in irrep_id.split(",")))
    if quotient_id is not None:
        numbers = [None if part.strip() == "none" else int(part) for part in quotient_id.split(",")]
        if group.flips and len(numbers) == 1:
            numbers = [None, *numbers]
        return quotient(group, tuple(numbers) if group.flips else numbers[0] if len(numbers) == 1 else tuple(numbers))
    return regular(group) if word == "regular" else trivial(group)
