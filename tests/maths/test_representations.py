"""Representations are compared by their matrices and spans; Q is one of many equally right choices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqconv_cli.maths.planar_groups import Element, Group, Matrix, o2, parse_group, so2, subgroup
from eqconv_cli.maths.representations import (
    Representation,
    change_basis,
    direct_sum,
    from_matrices,
    induced,
    irrep,
    parse_fields,
    quotient,
    regular,
    restrict,
    trivial,
)

FINITE = ("C1", "flip", "C2", "C3", "C4", "C8", "C16", "D2", "D3", "D4", "D8")
finite = pytest.mark.parametrize("name", FINITE)

QUOTIENTS = [
    ("C8", 2),
    ("C8", 1),
    ("C8", 8),
    ("D4", (0, 1)),
    ("D4", (1, 2)),
    ("D4", (None, 2)),
    ("D4", (3, 1)),
    ("D3", (2, 1)),
]
INDUCED = [
    ("C8", 2, (1,)),
    ("C8", 4, (1,)),
    ("C6", 3, (1,)),
    ("D4", (None, 4), (1,)),
    ("D4", (0, 2), (1, 1)),
    ("D4", (1, 1), (1,)),
    ("D6", (1, 3), (1, 1)),
    ("D6", (None, 3), (1,)),
]


def check_splits(rho: Representation, matrices: Matrix) -> None:
    """rho(g) = Q (psi_1(g) + ...) Q^-1, with irreps as Q says and isotypic spans as the characters say."""
    elements = rho.group.elements
    assert np.abs(rho.matrices(elements) - matrices).max(initial=0) < 1e-9
    traces = {psi.id: np.trace(psi.matrices(elements), axis1=1, axis2=2) for psi in rho.members}
    for label, character in traces.items():
        psi = rho.group.irrep(*label)
        projector = np.einsum("g,gij->ij", character, matrices) * psi.size / (1 + psi.is_complex) / rho.group.order
        chosen = np.concatenate([np.full(p.size, p.id == label) for p in rho.members])
        assert np.abs((rho.change_of_basis * chosen) @ rho.inverse - projector).max() < 1e-9


def is_orthogonal(matrix: Matrix) -> bool:
    return bool(np.abs(matrix @ matrix.T - np.eye(len(matrix))).max() < 1e-9)


def cosets(group: Group, label: Any) -> list[frozenset[int]]:
    """Left cosets, in the order in which the group's elements meet them."""
    inner = subgroup(group, label)
    met: list[frozenset[int]] = []
    for g in group.elements:
        coset = frozenset(group.index(group.product(g, inner.embed(h))) for h in inner.group.elements)
        if coset not in met:
            met.append(coset)
    return met


@finite
def test_the_regular_representation_permutes_the_elements(name: str) -> None:
    group = parse_group(name)
    rho = regular(group)
    expected = np.zeros((group.order,) * 3)
    for k, h in enumerate(group.elements):
        for j, g in enumerate(group.elements):
            expected[k, group.index(group.product(h, g)), j] = 1
    check_splits(rho, expected)
    assert is_orthogonal(rho.change_of_basis) and np.array_equal(rho.inverse, rho.change_of_basis.T)
    assert rho.name == str(rho) == "regular" and rho.size == group.order


@finite
def test_the_regular_change_of_basis_is_the_closed_form(name: str) -> None:
    group = parse_group(name)
    rho = regular(group)
    column = 0
    for psi in group.irreps():
        for copy in range(1 if psi.is_complex else psi.size):
            for a in range(psi.size):
                for row, g in enumerate(group.elements):
                    expected = math.sqrt(psi.size / group.order) * psi(g)[a, copy]
                    assert rho.change_of_basis[row, column] == pytest.approx(expected, abs=1e-12)
                column += 1
    assert column == group.order
    multiplicities = {psi.id: 1 if psi.is_complex else psi.size for psi in group.irreps()}
    assert rho.irreps == tuple(label for label, count in multiplicities.items() for _ in range(count))


@pytest.mark.parametrize(("name", "label"), QUOTIENTS)
def test_a_quotient_permutes_cosets_numbered_by_their_first_element(name: str, label: Any) -> None:
    group = parse_group(name)
    rho, met = quotient(group, label), cosets(group, label)
    assert rho.name == f"quotient[{label}]" and rho.size == len(met)
    expected = np.zeros((group.order, len(met), len(met)))
    for k, g in enumerate(group.elements):
        for i, coset in enumerate(met):
            moved = frozenset(group.index(group.product(g, group.elements[h])) for h in coset)
            expected[k, met.index(moved), i] = 1
    check_splits(rho, expected)
    assert is_orthogonal(rho.change_of_basis)


@pytest.mark.parametrize(("name", "label", "psi"), INDUCED)
def test_an_induced_representation_has_frobenius_character_and_blocks(
    name: str, label: Any, psi: tuple[int, ...]
) -> None:
    group = parse_group(name)
    inner = subgroup(group, label)
    sigma, rho = inner.group.irrep(*psi), induced(group, label, psi)
    where = {group.index(inner.embed(h)): h for h in inner.group.elements}
    first = [group.elements[min(coset)] for coset in cosets(group, label)]
    size = sigma.size
    expected = np.zeros((group.order, size * len(first), size * len(first)))
    for k, g in enumerate(group.elements):
        conjugates = (group.product(group.inverse(x), group.product(g, x)) for x in group.elements)
        inside = [where[group.index(c)] for c in conjugates if group.index(c) in where]
        character = sum(np.trace(sigma(h)) for h in inside) / inner.group.order
        assert np.trace(rho(g)) == pytest.approx(character, abs=1e-9)
        for i, r in enumerate(first):
            for j, s in enumerate(first):
                h = group.index(group.product(group.inverse(s), group.product(g, r)))
                if h in where:
                    expected[k, j * size : (j + 1) * size, i * size : (i + 1) * size] = sigma(where[h])
    check_splits(rho, expected)
    assert rho.name == f"induced[{label}][{sigma.name}]" and is_orthogonal(rho.change_of_basis)


def test_inducing_from_the_identity_gives_the_regular_representation() -> None:
    for name, label in (("C8", 1), ("D4", (None, 1))):
        group = parse_group(name)
        for other in (induced(group, label, (0,)), quotient(group, label)):
            assert np.allclose(other.matrices(group.elements), regular(group).matrices(group.elements), atol=1e-12)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_o2_induced_from_so2(k: int) -> None:
    group, rho = o2(), induced(o2(), (None, -1), (k,))
    elements = group.test_elements[::5]
    sigma = so2().irrep(k)
    for g in elements:
        for h in elements:
            assert np.allclose(rho(group.product(g, h)), rho(g) @ rho(h), atol=1e-12)
        blocks = [sigma(Element(0, g.angle)), sigma(Element(0, -g.angle))]
        zero = np.zeros_like(blocks[0])
        # The reflection is the representative of the second coset: t f = f (-t).
        expected = np.block(
            [[zero, blocks[0]], [blocks[1], zero]] if g.flip else [[blocks[0], zero], [zero, blocks[1]]]
        )
        assert np.allclose(rho(g), expected, atol=1e-12)


def test_infinite_representations_are_refused() -> None:
    for group, label in ((so2(), 4), (o2(), (None, 4)), (o2(), (0.0, 2))):
        with pytest.raises(ValueError, match="is infinite-dimensional: a subgroup with finitely many cosets"):
            quotient(group, label)
    for group in (so2(), o2()):
        with pytest.raises(ValueError, match=r"regular needs a finite group: .* is continuous \(take irreps"):
            regular(group)


@pytest.mark.parametrize(
    ("name", "label"),
    [("C8", 2), ("C8", 4), ("D4", (None, 4)), ("D4", (1, 2)), ("D4", (3, 1)), ("D8", (1, 4)), ("D8", (None, 2))],
)
def test_restricting_keeps_the_matrices(name: str, label: Any) -> None:
    group = parse_group(name)
    inner = subgroup(group, label)
    for rho in (regular(group), *(irrep(group, *psi.id) for psi in group.irreps())):
        made = restrict(rho, label)
        assert made.group == inner.group and made.name == f"{rho.name}|{inner.group.name}"
        check_splits(made, rho.matrices([inner.embed(h) for h in inner.group.elements]))


@pytest.mark.parametrize(("name", "label"), [("SO2", 4), ("SO2", 1), ("O2", (None, 5)), ("O2", (0.6, 4))])
def test_restricting_a_continuous_group_to_a_finite_one(name: str, label: Any) -> None:
    group = parse_group(name)
    inner = subgroup(group, label)
    rho = direct_sum([irrep(group, *psi.id) for psi in group.irreps(6)])
    check_splits(restrict(rho, label), rho.matrices([inner.embed(h) for h in inner.group.elements]))


def test_restricting_o2_to_its_rotations() -> None:
    rho = direct_sum([irrep(o2(), 1, 3), irrep(o2(), 1, 0), irrep(o2(), 0, 0)])
    made = restrict(rho, (None, -1))
    assert made.group == so2() and made.irreps == ((3,), (0,), (0,))
    rotations = so2().test_elements
    assert np.allclose(made.matrices(rotations), rho.matrices(rotations), atol=1e-12)


def test_direct_sums_and_other_coordinates() -> None:
    group = parse_group("C8")
    parts = [regular(group), irrep(group, 2), quotient(group, 2)]
    rho = direct_sum(parts)
    assert rho.name == "[regular]_[irrep_2]_[quotient[2]]" and rho.size == 8 + 2 + 4
    assert direct_sum(parts, "mine").name == "mine"
    for g in group.elements:
        at = 0
        for part in parts:
            assert np.allclose(rho(g)[at : at + part.size, at : at + part.size], part(g), atol=1e-12)
            at += part.size
        assert np.count_nonzero(np.abs(rho(g)) > 1e-12) <= sum(np.count_nonzero(part(g)) for part in parts)
    matrix = np.random.default_rng(0).normal(size=(14, 14))
    moved = change_basis(rho, matrix, "moved")
    for g in group.elements:
        assert np.allclose(moved(g), matrix @ rho(g) @ np.linalg.inv(matrix), atol=1e-9)


def test_trivial_and_irreps_are_their_own_coordinates() -> None:
    for name in ("C8", "D4", "SO2", "O2", "flip"):
        group = parse_group(name)
        assert trivial(group).is_identity and trivial(group).irreps == (group.trivial_irrep.id,)
        for psi in group.irreps():
            rho = irrep(group, *psi.id)
            assert rho.name == psi.name and rho.is_identity
            assert np.array_equal(rho.matrices(group.test_elements), psi.matrices(group.test_elements))


def test_equality_of_representations_is_that_of_their_matrices() -> None:
    group = parse_group("C4")
    assert regular(group).same_as(change_basis(regular(group), np.eye(4), "other"))
    assert not regular(group).same_as(change_basis(regular(group), 2 * np.eye(4), "regular"))
    assert not regular(group).same_as(regular(parse_group("C8")))
    assert not irrep(group, 0).same_as(irrep(group, 2))


def test_matrices_that_are_no_representation_are_refused() -> None:
    group = parse_group("C4")
    eye = np.stack([np.eye(2)] * 4)
    with pytest.raises(ValueError, match=r"matrices of mine have shape \(3, 2, 2\): expected \(4, n, n\)"):
        from_matrices(group, eye[:3], "mine")
    wrong = eye.copy()
    wrong[1] *= 0.5
    with pytest.raises(ValueError, match=r"mine is not a representation of C4: it holds irrep_0 1\.75"):
        from_matrices(group, wrong, "mine")
    swapped = regular(group).matrices(group.elements)[[0, 2, 1, 3]]
    with pytest.raises(ValueError, match="mine is not a representation of C4"):
        from_matrices(group, swapped, "mine")
    # The traces are those of a representation, the matrices are not: the element is named.
    rotated = irrep(group, 1).matrices(group.elements).copy()
    rotated[1] = np.diag([1.0, -1.0])
    with pytest.raises(ValueError, match=r"at \(flip, angle\) = \(\d, .*\) its irreps differ from the matrix by"):
        from_matrices(group, rotated, "mine")
    with pytest.raises(ValueError, match=r"mine needs a finite group: SO\(2\) is continuous"):
        from_matrices(so2(), eye, "mine")


def test_matrices_by_element() -> None:
    group = parse_group("D3")
    rho = regular(group)
    assert from_matrices(group, {g: rho(g) for g in group.elements}, "mine").same_as(
        from_matrices(group, rho.matrices(group.elements), "mine")
    )


def test_wrong_changes_of_basis_are_refused() -> None:
    group = parse_group("C4")
    with pytest.raises(ValueError, match=r"change_of_basis has shape \(3, 3\): expected \(4, 4\)"):
        Representation(group, "mine", regular(group).irreps, np.eye(3))
    with pytest.raises(ValueError, match="change_of_basis is not invertible"):
        Representation(group, "mine", regular(group).irreps, np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"matrix has shape \(2, 2\): expected \(4, 4\)"):
        change_basis(regular(group), np.eye(2), "mine")
    with pytest.raises(ValueError, match="direct_sum of no representations"):
        direct_sum([])
    with pytest.raises(ValueError, match="direct_sum of representations of C4 and C8: one group is needed"):
        direct_sum([regular(group), regular(parse_group("C8"))])


def test_expressions_of_fields() -> None:
    def names(text: str, group: str) -> list[str]:
        return [rep.name for rep in parse_fields(text, parse_group(group))]

    assert names("2*regular+irrep:1", "C8") == ["regular", "regular", "irrep_1"]
    assert names(" trivial + 3 * quotient: 2 ", "C8") == ["irrep_0", *["quotient[2]"] * 3]
    assert names("quotient:1,2+quotient:2+quotient:none,4+irrep:0,2", "D4") == [
        "quotient[(1, 2)]",
        "quotient[(None, 2)]",
        "quotient[(None, 4)]",
        "irrep_0,2",
    ]
    assert names("IRREP:5", "SO2") == ["irrep_5"]


@pytest.mark.parametrize(
    ("text", "at"),
    [("", "''"), ("regular+", "''"), ("2regular", "'2regular'"), ("regular*2", "'regular*2'"), ("irrep", "'irrep'")],
)
def test_expressions_that_are_not_understood_say_where(text: str, at: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_fields(text, parse_group("C8"))
    assert f"is not understood at {at}: allowed: regular, trivial, irrep:K" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "group", "message"),
    [
        ("0*regular", "C8", "0 copies are not allowed"),
        ("irrep:9", "C8", "irrep 9 of C8 is unknown: allowed: 0, 1, 2, 3, 4"),
        ("quotient:3", "C8", "3 names no subgroup of C8: allowed: M one of 1, 2, 4, 8"),
        ("regular", "SO2", "is continuous"),
        ("quotient:1,2", "C8", r"\(1, 2\) names no subgroup of C8"),
    ],
)
def test_fields_that_do_not_exist(text: str, group: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_fields(text, parse_group(group))


@st.composite
def representations(draw: st.DrawFn) -> tuple[Group, list[tuple[int, ...]], Matrix]:
    """A group, some irreps and invertible coordinates whose condition number is at most 9."""
    group = parse_group(draw(st.sampled_from(FINITE)))
    labels = draw(st.lists(st.sampled_from([psi.id for psi in group.irreps()]), min_size=1, max_size=5))
    size = sum(group.irrep(*label).size for label in labels)
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2))
    return group, labels, left * rng.uniform(1 / 3, 3, size) @ right


@given(representations())
@settings(max_examples=60, deadline=None)
def test_any_representation_is_split_again(case: tuple[Group, list[tuple[int, ...]], Matrix]) -> None:
    group, labels, q = case
    rho = Representation(group, "given", tuple(labels), q)
    made = from_matrices(group, rho.matrices(group.elements), "made")
    assert sorted(made.irreps) == sorted(labels)
    check_splits(made, rho.matrices(group.elements))


@given(representations())
@settings(max_examples=40, deadline=None)
def test_in_orthogonal_coordinates_the_change_of_basis_is_orthogonal(
    case: tuple[Group, list[tuple[int, ...]], Matrix],
) -> None:
    group, labels, q = case
    rho = Representation(group, "given", tuple(labels), np.linalg.qr(q)[0])
    made = from_matrices(group, rho.matrices(group.elements), "made")
    assert is_orthogonal(made.change_of_basis)
    for g in group.elements:
        for h in group.elements:
            assert np.allclose(made(group.product(g, h)), made(g) @ made(h), atol=1e-9)
