"""All solutions of the kernel constraint around a circle, for a pair of irreps.

Weiler, Cesa, arXiv 1911.08251, eq. 3 and the tables 11 (C_N) and 12 (D_N) of its appendix, in one closed form for all
groups. The order is that of QUVA-Lab/e2cnn ``kernels/irreps_basis.py``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from eqconv_cli.maths.planar_groups import Irrep


class AngularSolution(NamedTuple):
    """A matrix that turns with the angle phi; c is cos(mu phi + gamma) and s the sine.

    By rows and columns: 2 x 2 ``[[c, -e s], [s, e c]]`` with e = 1, or -1 where ``reflected``; 1 x 2 ``(c, s)``; 2 x 1
    ``(c, s)^T``; 1 x 1 ``c``.
    """

    #: mu, any integer.
    frequency: int
    reflected: int
    #: gamma in quarter turns: 0 or 1.
    quarter: int
    #: How many times N the frequency is from the smallest one.
    offset: int


class Term(NamedTuple):
    """An entry of a solution: ``sign`` times cos(frequency phi), or sin where ``sine``; frequency >= 0."""

    row: int
    column: int
    frequency: int
    sine: int
    sign: int


def angular_solutions(
    out_irrep: Irrep, in_irrep: Irrep, maximum_frequency: float, maximum_offset: int | None = None
) -> list[AngularSolution]:
    """A basis of the solutions with |mu| <= ``maximum_frequency`` and |offset| <= ``maximum_offset``.

    Raises:
        ValueError: the irreps are of two groups; neither bound is finite though there are infinitely many solutions.
    """
    group = out_irrep.group
    if in_irrep.group != group:
        raise ValueError(f"in_irrep is of {in_irrep.group.name} and out_irrep of {group.name}: one group is needed")
    if group.is_finite and math.isinf(maximum_frequency) and maximum_offset is None:
        raise ValueError(
            "neither maximum_frequency nor maximum_offset is given: finitely many solutions need one of them"
        )
    shape = (out_irrep.size, in_irrep.size)
    solutions = []
    for quarter in _quarters(out_irrep, in_irrep):
        for reflected in (0, 1) if shape == (2, 2) else (0,):
            for offset, frequency in _frequencies(out_irrep, in_irrep, reflected, maximum_frequency, maximum_offset):
                if shape == (1, 1) and (frequency < 0 or (frequency == 0 and quarter)):
                    continue
                solutions.append(AngularSolution(frequency, reflected, quarter, offset))
    return solutions


def _quarters(out_irrep: Irrep, in_irrep: Irrep) -> tuple[int, ...]:
    if not out_irrep.group.flips:
        return (0, 1)
    if out_irrep.size == in_irrep.size == 2:
        return (0,)
    if in_irrep.size == 2:
        return (out_irrep.flip_sign,)
    if out_irrep.size == 2:
        return (in_irrep.flip_sign,)
    return ((out_irrep.flip_sign + in_irrep.flip_sign) % 2,)


def _frequencies(
    out_irrep: Irrep, in_irrep: Irrep, reflected: int, most: float, most_offset: int | None
) -> list[tuple[int, int]]:
    """(offset, mu), mu ascending."""
    m, n, turns = out_irrep.frequency, in_irrep.frequency, out_irrep.group.rotations
    two = out_irrep.size == in_irrep.size == 2
    first = m - n if (two and not reflected) or out_irrep.size == in_irrep.size == 1 else m + n
    if turns == 0:
        return [(0, first)] if abs(first) <= most else []
    low, high = -math.inf if most_offset is None else -most_offset, math.inf if most_offset is None else most_offset
    if not math.isinf(most):
        low = max(low, math.ceil((-most - first) / turns))
        high = min(high, math.floor((most - first) / turns))
    return [(t, first + t * turns) for t in range(int(low), int(high) + 1)] if low <= high else []


def terms(solution: AngularSolution, shape: tuple[int, int]) -> list[Term]:
    """The entries that are not 0, by harmonics of frequency >= 0."""
    mu, sign = abs(solution.frequency), (solution.frequency > 0) - (solution.frequency < 0)
    # (sine, sign) of c and s: cos(mu phi + pi / 2) = -sin(mu phi), sin(mu phi + pi / 2) = cos(mu phi).
    c, s = ((1, -sign), (0, 1)) if solution.quarter else ((0, 1), (1, sign))
    e = -1 if solution.reflected else 1
    entries: dict[tuple[int, int], list[tuple[int, int, tuple[int, int], int]]] = {
        (2, 2): [(0, 0, c, 1), (0, 1, s, -e), (1, 0, s, 1), (1, 1, c, e)],
        (1, 2): [(0, 0, c, 1), (0, 1, s, 1)],
        (2, 1): [(0, 0, c, 1), (1, 0, s, 1)],
        (1, 1): [(0, 0, c, 1)],
    }
    return [Term(row, column, mu, sine, by * own) for row, column, (sine, own), by in entries[shape] if own]
