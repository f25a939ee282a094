"""Initial weights of steerable layers.

Weiler, Cesa, arXiv 1911.08251, section 2.7 (He's scheme for steerable kernels); Xiao et al., arXiv 1806.05393
(delta-orthogonal); QUVA-Lab/e2cnn ``nn/init.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable.basis import SteerableBasis
from eqconv_cli.backends.steerable.fields import FieldType
from eqconv_cli.backends.steerable.plan import Plan
from eqconv_cli.maths.planar_groups import IrrepId, Matrix

Integers = npt.NDArray[np.int64]


def he_standard_deviations(plan: Plan) -> tuple[Matrix, ...]:
    """The deviation of the weight of each element, [d] for each of the plan's types of pairs.

    1 / sqrt(T n): n weights lead from the input irreps of the element's kind to its output irrep, and T kinds lead
    there. Both depend on the type of the output field, the irrep in it and the kind alone, so the work does not grow
    with the number of weights.
    """
    leading: dict[tuple[str, int], dict[IrrepId, int]] = {}
    for pair in plan.pairs:
        for element in pair.basis.elements:
            kinds = leading.setdefault((pair.out_name, element.oo), {})
            kinds[element.in_irrep] = kinds.get(element.in_irrep, 0) + len(pair.in_fields)
    made = []
    for pair in plan.pairs:
        found = [(leading[pair.out_name, element.oo], element.in_irrep) for element in pair.basis.elements]
        made.append(np.array([len(kinds) * kinds[irrep] for kinds, irrep in found], np.float64) ** -0.5)
    return tuple(made)


def generalised_he(plan: Plan, rng: np.random.Generator) -> Matrix:
    """Normal weights that give unit-variance outputs for unit-variance inputs, [weights_size] float64."""
    weights = rng.standard_normal(plan.weights_size)
    for pair, deviations in zip(plan.pairs, he_standard_deviations(plan), strict=True):
        weights[pair.start : pair.start + pair.weights].reshape(pair.shape)[:] *= deviations
    return weights


def delta_orthogonal(plan: Plan, rng: np.random.Generator, groups: int = 1) -> Matrix:
    """Weights of a filter that is 0 but for its centre, which is an orthogonal map, [weights_size] float64.

    Only elements at radius 0 from an irrep to itself are used. For each irrep with i copies in the input and o in the
    output, a weight is v[o, q] W[o, i]: W is a random orthogonal matrix of size max(i, o) cut to [o, i], and v[o] a
    random vector of length 1 over the s elements that a pair of copies has.

    Args:
        plan: lengths are preserved where no irrep has fewer copies in the output than in the input.
        rng: draws.
        groups: of the convolution; each group of output fields gets a map of its own.

    Raises:
        ValueError: input and output share no irrep; a pair of copies of one has no element at radius 0, or not as many
            as other pairs.
    """
    weights = np.zeros(plan.weights_size)
    central = {(pair.in_name, pair.out_name): _central_elements(pair.basis) for pair in plan.pairs}
    shared = sorted(_irreps(plan.in_type) & _irreps(plan.out_type))
    if not shared:
        raise ValueError(f"delta-orthogonal weights: {plan.in_type} and {plan.out_type} share no irrep")
    for irrep in shared:
        ins, outs = _copies(plan.in_type, irrep), _copies(plan.out_type, irrep)
        each = len(outs) // groups
        for first in range(0, len(outs), each):
            index = _weights_between(plan, central, irrep, ins, outs[first : first + each])
            o, i, s = index.shape
            v = rng.standard_normal((o, s))
            v /= np.linalg.norm(v, axis=1, keepdims=True)
            weights[index] = v[:, None] * _orthogonal(max(o, i), rng)[:o, :i, None]
    return weights


class _Copy(NamedTuple):
    """One copy of an irrep among the fields of a type."""

    name: str
    #: Position among the fields.
    field: int
    #: Position among the irreps of the field.
    number: int


#: Elements at radius 0 by the positions (in, out) of two equal irreps.
_Central = dict[tuple[int, int], list[int]]


def _irreps(fields: FieldType) -> set[IrrepId]:
    return {label for field, _ in fields.by_name.values() for label in field.irreps}


def _copies(fields: FieldType, irrep: IrrepId) -> list[_Copy]:
    return [
        _Copy(field.name, position, number)
        for position, field in enumerate(fields.representations)
        for number, label in enumerate(field.irreps)
        if label == irrep
    ]


def _central_elements(basis: SteerableBasis) -> _Central:
    found: _Central = {}
    for element in basis.elements:
        if element.radius == 0 and element.in_irrep == element.out_irrep:
            found.setdefault((element.ii, element.oo), []).append(element.idx)
    return found


def _weights_between(
    plan: Plan,
    central: dict[tuple[str, str], _Central],
    irrep: IrrepId,
    ins: Sequence[_Copy],
    outs: Sequence[_Copy],
) -> Integers:
    """Positions of the weights of the central elements between copies of an irrep, [o, i, s]."""
    rows = [
        [
            [int(plan.pair_table[b.field, a.field, 1]) + element for element in found]
            for a in ins
            for found in [central.get((a.name, b.name), {}).get((a.number, b.number), [])]
        ]
        for b in outs
    ]
    counts = {len(found) for row in rows for found in row}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(
            f"delta-orthogonal weights: pairs of copies of irrep {','.join(map(str, irrep))} have "
            f"{' or '.join(map(str, sorted(counts)))} elements at radius 0: each needs as many, at least 1 "
            "(kernels of odd size with a ring at radius 0 have them)"
        )
    return np.array(rows, np.int64)


def _orthogonal(size: int, rng: np.random.Generator) -> Matrix:
    """A random orthogonal matrix, Haar distributed (Mezzadri, arXiv math-ph/0609050)."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    made: Matrix = q * np.sign(np.diag(r))
    return made
