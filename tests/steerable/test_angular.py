"""The angular solutions are solutions, they are independent, and there are no others."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from eqconv_cli.backends.steerable.angular import AngularSolution, angular_solutions, terms
from eqconv_cli.maths.planar_groups import Group, Irrep, Matrix, parse_group, rotation

FINITE = ("C1", "flip", "C2", "C3", "C4", "C5", "C6", "C8", "D2", "D3", "D4", "D5", "D6")
ALL = (*FINITE, "SO2", "O2")

groups = pytest.mark.parametrize("name", ALL)


def irrep_pairs(group: Group) -> list[tuple[Irrep, Irrep]]:
    return list(itertools.product(group.irreps(), repeat=2))


def by_formula(solution: AngularSolution, shape: tuple[int, int], phi: float) -> Matrix:
    """R(mu phi + gamma) F^s, its first row, its first column, or its first entry."""
    flipped = np.diag([1.0, -1.0]) if solution.reflected else np.eye(2)
    whole = rotation(solution.frequency * phi + solution.quarter * math.pi / 2) @ flipped
    if shape == (1, 2):
        # (cos, sin) is the transposed first column of the rotation.
        return whole[:, :1].T
    return whole[: shape[0], : shape[1]]


def by_terms(solution: AngularSolution, shape: tuple[int, int], phi: float) -> Matrix:
    made = np.zeros(shape)
    for row, column, frequency, sine, sign in terms(solution, shape):
        made[row, column] += sign * (math.sin if sine else math.cos)(frequency * phi)
    return made


@groups
def test_terms_are_the_four_shapes(name: str) -> None:
    for out_irrep, in_irrep in irrep_pairs(parse_group(name)):
        shape = (out_irrep.size, in_irrep.size)
        for solution in angular_solutions(out_irrep, in_irrep, 5):
            assert all(term.frequency >= 0 and term.sign in (1, -1) for term in terms(solution, shape))
            for phi in (0.0, 0.3, 2.0, -1.1):
                assert np.allclose(by_terms(solution, shape, phi), by_formula(solution, shape, phi), atol=1e-12)


@groups
def test_every_solution_satisfies_the_constraint(name: str) -> None:
    """phi is measured from the axis of the reflection, so a reflection followed by a turn maps phi to t - phi."""
    group = parse_group(name)
    for out_irrep, in_irrep in irrep_pairs(group):
        shape = (out_irrep.size, in_irrep.size)
        for solution in angular_solutions(out_irrep, in_irrep, 6):
            for g in group.test_elements[::3]:
                for phi in (0.0, 0.4, 1.9):
                    moved = g.angle + (-phi if g.flip else phi)
                    expected = out_irrep(g) @ by_formula(solution, shape, phi) @ in_irrep(group.inverse(g))
                    assert np.allclose(by_formula(solution, shape, moved), expected, atol=1e-9)


def number_of_solutions(out_irrep: Irrep, in_irrep: Irrep, most: int) -> float:
    """The trace of the projection of all kernels with frequencies up to ``most`` on those that are equivariant."""
    group = out_irrep.group
    total = 0.0
    for g in group.test_elements:
        turned = 1 + 2 * sum(math.cos(mu * g.angle) for mu in range(1, most + 1))
        harmonics = 1.0 if g.flip else turned
        total += harmonics * np.trace(out_irrep(g)) * np.trace(in_irrep(group.inverse(g)))
    return total / len(group.test_elements)


@groups
@pytest.mark.parametrize("most", [0, 1, 2, 5, 7])
def test_there_are_as_many_as_characters_say_and_they_are_independent(name: str, most: int) -> None:
    for out_irrep, in_irrep in irrep_pairs(parse_group(name)):
        shape = (out_irrep.size, in_irrep.size)
        found = angular_solutions(out_irrep, in_irrep, most)
        assert len(found) == pytest.approx(number_of_solutions(out_irrep, in_irrep, most), abs=1e-6)
        assert all(abs(solution.frequency) <= most for solution in found)
        if found:
            angles = 2 * math.pi * np.arange(4 * most + 5) / (4 * most + 5) + 0.1
            values = np.array([[by_formula(s, shape, phi) for phi in angles] for s in found])
            assert np.linalg.matrix_rank(values.reshape(len(found), -1)) == len(found)


@pytest.mark.parametrize(
    ("name", "out_id", "in_id", "expected"),
    [
        ("SO2", (1,), (2,), 4),
        ("SO2", (0,), (2,), 2),
        ("SO2", (2,), (0,), 2),
        ("SO2", (0,), (0,), 1),
        ("O2", (1, 1), (1, 2), 2),
        ("O2", (0, 0), (1, 2), 1),
        ("O2", (1, 2), (1, 0), 1),
        ("O2", (1, 0), (1, 0), 1),
        ("O2", (0, 0), (1, 0), 0),
        ("O2", (1, 0), (0, 0), 0),
    ],
)
def test_the_counts_of_the_continuous_groups(
    name: str, out_id: tuple[int, ...], in_id: tuple[int, ...], expected: int
) -> None:
    group = parse_group(name)
    assert len(angular_solutions(group.irrep(*out_id), group.irrep(*in_id), 10)) == expected


def test_the_order_is_gamma_then_s_then_mu() -> None:
    group = parse_group("C8")
    found = angular_solutions(group.irrep(1), group.irrep(2), 12)
    assert found == sorted(found, key=lambda s: (s.quarter, s.reflected, s.frequency))
    assert [s.frequency for s in found if s.quarter == 0 and s.reflected == 0] == [-9, -1, 7]
    assert [s.frequency for s in found if s.quarter == 1 and s.reflected == 1] == [-5, 3, 11]
    scalars = angular_solutions(group.irrep(0), group.irrep(4), 12)
    assert [(s.quarter, s.frequency) for s in scalars] == [(0, 4), (0, 12), (1, 4), (1, 12)]
    dihedral = parse_group("D4")
    assert [
        (s.reflected, s.frequency, s.quarter) for s in angular_solutions(dihedral.irrep(1, 1), dihedral.irrep(1, 1), 4)
    ] == [(0, -4, 0), (0, 0, 0), (0, 4, 0), (1, -2, 0), (1, 2, 0)]


def test_offsets_are_counted_from_the_smallest_frequency_and_bounded() -> None:
    group = parse_group("C8")
    found = angular_solutions(group.irrep(1), group.irrep(2), 12)
    assert {s.offset for s in found} == {-1, 0, 1}
    assert all(s.frequency == (3 if s.reflected else -1) + 8 * s.offset for s in found)
    for most in (0, 1):
        kept = angular_solutions(group.irrep(1), group.irrep(2), 12, most)
        assert kept == [s for s in found if abs(s.offset) <= most]
    assert len(angular_solutions(group.irrep(1), group.irrep(2), math.inf, 2)) == 2 * 2 * 5


def test_an_infinity_of_solutions_is_refused() -> None:
    group = parse_group("C8")
    with pytest.raises(ValueError, match="neither maximum_frequency nor maximum_offset is given"):
        angular_solutions(group.irrep(1), group.irrep(1), math.inf)
    # The continuous groups have finitely many of them.
    continuous = parse_group("SO2")
    assert len(angular_solutions(continuous.irrep(1), continuous.irrep(1), math.inf)) == 4


def test_irreps_of_two_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="in_irrep is of C4 and out_irrep of C8: one group is needed"):
        angular_solutions(parse_group("C8").irrep(1), parse_group("C4").irrep(1), 2)
