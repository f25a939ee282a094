"""Planar groups, their irreps and their subgroups."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from eqconv_cli.maths.planar_groups import (
    Element,
    Group,
    Subgroup,
    cyclic,
    dihedral,
    flip,
    o2,
    parse_group,
    so2,
    subgroup,
    trivial_group,
)

FINITE = ("C1", "flip", "C2", "C3", "C4", "C5", "C8", "C16", "D2", "D3", "D4", "D5", "D8")
ALL = (*FINITE, "SO2", "O2")

groups = pytest.mark.parametrize("name", ALL)
finite = pytest.mark.parametrize("name", FINITE)


def pairs(group: Group) -> list[tuple[Element, Element]]:
    return list(itertools.product(group.test_elements[::3], group.test_elements[::2]))


def test_names() -> None:
    for text, group in {
        "C8": cyclic(8),
        "c_8": cyclic(8),
        " d4 ": dihedral(4),
        "D1": flip(),
        "Flip": flip(),
        "trivial": trivial_group(),
        "C1": trivial_group(),
        "SO(2)": so2(),
        "so2": so2(),
        "O(2)": o2(),
        "O2": o2(),
    }.items():
        assert parse_group(text) == group
    for name in ("C1", "C8", "Flip", "D4", "SO(2)", "O(2)"):
        assert parse_group(name).name == str(parse_group(name)) == name


@pytest.mark.parametrize("text", ["", "C0", "D0", "C-1", "C4.5", "E8", "SO(3)", "C 0"])
def test_unknown_names(text: str) -> None:
    with pytest.raises(ValueError, match=r"is unknown: allowed: C1, C2, C3, .* SO\(2\) or SO2, .* flip, trivial"):
        parse_group(text)


@pytest.mark.parametrize("n", [0, -3, 2.0, True, "4"])
def test_the_number_of_rotations_is_an_integer_from_1_on(n: object) -> None:
    with pytest.raises(ValueError, match=r"must be an integer, 1 or more"):
        cyclic(n)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be an integer, 1 or more"):
        dihedral(n)  # type: ignore[arg-type]


def test_the_order_of_elements() -> None:
    w = math.pi / 2
    assert cyclic(4).elements == tuple(Element(0, a * w) for a in range(4))
    assert dihedral(4).elements == tuple(Element(s, a * w) for s in (0, 1) for a in range(4))
    assert flip().elements == (Element(0, 0.0), Element(1, 0.0))
    assert [g.flip for g in o2().test_elements] == [0] * 52 + [1] * 52
    assert [g.angle for g in so2().test_elements] == [2 * math.pi * i / 52 for i in range(52)]
    for name in FINITE:
        group = parse_group(name)
        assert [group.index(g) for g in group.elements] == list(range(group.order))


def test_continuous_groups_have_no_list_of_elements() -> None:
    for group in (so2(), o2()):
        with pytest.raises(ValueError, match="is continuous"):
            _ = group.elements
        with pytest.raises(ValueError, match="is continuous"):
            _ = group.order


def test_an_element_of_another_group_has_no_index() -> None:
    with pytest.raises(ValueError, match="C4 has no element"):
        cyclic(4).index(Element(0, math.pi / 4))
    with pytest.raises(ValueError, match="C4 has no element"):
        cyclic(4).index(Element(1, 0.0))


@groups
def test_products_and_inverses_are_those_of_the_plane(name: str) -> None:
    group = parse_group(name)
    for axis in (math.pi / 2, 0.0, 0.7):
        for g, h in pairs(group):
            assert np.allclose(
                group.action(group.product(g, h), axis), group.action(g, axis) @ group.action(h, axis), atol=1e-12
            )
        for g in group.test_elements:
            assert np.allclose(group.action(g, axis) @ group.action(group.inverse(g), axis), np.eye(2), atol=1e-12)


def test_the_reflection_keeps_its_axis_and_comes_before_the_rotation() -> None:
    group = dihedral(4)
    for axis in (0.0, 0.4, math.pi / 2):
        line = np.array([math.cos(axis), math.sin(axis)])
        assert np.allclose(group.action(Element(1, 0.0), axis) @ line, line)
        assert np.allclose(
            group.action(Element(1, math.pi / 2), axis),
            group.action(Element(0, math.pi / 2), axis) @ group.action(Element(1, 0.0), axis),
        )
    # By default the vertical axis: left and right change places.
    assert np.allclose(group.action(Element(1, 0.0)) @ [1.0, 0.0], [-1.0, 0.0])


@finite
def test_finite_groups_are_closed(name: str) -> None:
    group = parse_group(name)
    table = [[group.index(group.product(g, h)) for h in group.elements] for g in group.elements]
    everything = list(range(group.order))
    assert all(sorted(row) == everything for row in table)
    assert all(sorted(column) == everything for column in zip(*table, strict=True))


@groups
def test_irreps_are_orthogonal_homomorphisms(name: str) -> None:
    group = parse_group(name)
    for psi in group.irreps(5):
        for g, h in pairs(group):
            assert np.allclose(psi(group.product(g, h)), psi(g) @ psi(h), atol=1e-12)
        for g in group.test_elements:
            assert np.allclose(psi(g) @ psi(g).T, np.eye(psi.size), atol=1e-12)
            assert np.allclose(psi(group.inverse(g)), psi(g).T, atol=1e-12)
        made = psi.matrices(group.test_elements)
        assert np.array_equal(made, np.stack([psi(g) for g in group.test_elements]))


@finite
def test_characters_are_orthogonal_and_the_irreps_are_all(name: str) -> None:
    group = parse_group(name)
    characters = np.stack([np.trace(p.matrices(group.elements), axis1=1, axis2=2) for p in group.irreps()])
    types = np.array([1 + p.is_complex for p in group.irreps()])
    assert np.allclose(characters @ characters.T / group.order, np.diag(types), atol=1e-12)
    assert sum(p.size**2 / t for p, t in zip(group.irreps(), types, strict=True)) == group.order


@groups
def test_one_dimensional_irreps_are_exactly_1_or_minus_1(name: str) -> None:
    group = parse_group(name)
    for psi in group.irreps():
        if psi.size == 1:
            assert set(psi.matrices(group.test_elements).ravel().tolist()) <= {1.0, -1.0}


def test_ids_sizes_and_types() -> None:
    def ids(name: str) -> list[tuple[int, ...]]:
        return [psi.id for psi in parse_group(name).irreps()]

    assert ids("C1") == [(0,)] and ids("flip") == [(0,), (1,)]
    assert ids("C4") == [(0,), (1,), (2,)] and ids("C5") == [(0,), (1,), (2,)]
    assert ids("D4") == [(0, 0), (1, 0), (1, 1), (1, 2), (0, 2)]
    assert ids("D5") == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert ids("SO2") == [(0,), (1,), (2,), (3,)] and ids("O2") == [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert [p.size for p in parse_group("C8").irreps()] == [1, 2, 2, 2, 1]
    assert [p.is_complex for p in parse_group("C8").irreps()] == [False, True, True, True, False]
    assert not any(p.is_complex for name in ("D4", "D5", "O2") for p in parse_group(name).irreps())
    assert [p.size for p in parse_group("D2").irreps()] == [1] * 4
    assert [p.name for p in parse_group("D4").irreps()][:3] == ["irrep_0,0", "irrep_1,0", "irrep_1,1"]
    assert parse_group("C8").irrep(2).name == str(parse_group("C8").irrep(2)) == "irrep_2"
    assert so2().irrep(9).frequency == 9 and o2().irrep(1, 9).frequency == 9
    assert flip().irrep(1).frequency == 0 and flip().irrep(1).flip_sign == 1
    assert all(parse_group(name).trivial_irrep.id in ((0,), (0, 0)) for name in ALL)


@pytest.mark.parametrize(
    ("name", "label", "allowed"),
    [
        ("C4", (3,), r"allowed: 0, 1, 2$"),
        ("C4", (-1,), r"allowed: 0, 1, 2$"),
        ("C4", (0, 0), r"allowed: 0, 1, 2$"),
        ("D4", (0, 1), r"allowed: 0,0, 1,0, 1,1, 1,2, 0,2$"),
        ("D4", (2,), r"allowed: 0,0, 1,0"),
        ("D5", (0, 2), r"allowed: 0,0, 1,0, 1,1, 1,2$"),
        ("SO2", (-2,), r"allowed: 0, 1, 2, 3, \.\.\.$"),
        ("O2", (0, 2), r"allowed: 0,0, 1,0, 1,1, 1,2, 1,3, \.\.\.$"),
        ("flip", (2,), r"allowed: 0, 1$"),
        ("SO2", (), r"allowed: 0, 1, 2, 3, \.\.\.$"),
    ],
)
def test_unknown_irreps_name_the_known_ones(name: str, label: tuple[int, ...], allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"^irrep .* of {parse_group(name).name.replace('(', '.')[:2]}.* {allowed}"):
        parse_group(name).irrep(*label)


SUBGROUPS = [
    ("C8", 1, "C1"),
    ("C8", 2, "C2"),
    ("C8", 8, "C8"),
    ("D4", (None, 2), "C2"),
    ("D4", (None, 4), "C4"),
    ("D4", (0, 1), "Flip"),
    ("D4", (3, 1), "Flip"),
    ("D4", (1, 2), "D2"),
    ("D4", (0, 4), "D4"),
    ("SO2", 6, "C6"),
    ("O2", (None, -1), "SO(2)"),
    ("O2", (None, 3), "C3"),
    ("O2", (0.3, 3), "D3"),
    ("flip", (None, 1), "C1"),
    ("flip", (0, 1), "Flip"),
]


@pytest.mark.parametrize(("name", "label", "found"), SUBGROUPS)
def test_subgroups_are_embedded_by_homomorphisms_and_move_the_axis(name: str, label: object, found: str) -> None:
    group = parse_group(name)
    inner = subgroup(group, label)
    assert isinstance(inner, Subgroup) and inner.group.name == found and inner.id == label
    for axis in (math.pi / 2, 0.2):
        for h, k in pairs(inner.group):
            both = inner.embed(inner.group.product(h, k))
            assert np.allclose(
                group.action(both), group.action(group.product(inner.embed(h), inner.embed(k))), atol=1e-12
            )
        for h in inner.group.test_elements:
            assert np.allclose(
                group.action(inner.embed(h), axis), inner.group.action(h, inner.moved_axis(axis)), atol=1e-12
            )
    if group.is_finite:
        assert len({group.index(inner.embed(h)) for h in inner.group.elements}) == inner.group.order


def test_reflections_of_a_dihedral_group_have_half_steps_between_their_axes() -> None:
    group = dihedral(4)
    assert [subgroup(group, (q, 1)).moved_axis(0.0) for q in range(4)] == pytest.approx(
        [q * group.step / 2 for q in range(4)]
    )


@pytest.mark.parametrize(
    ("name", "label", "allowed"),
    [
        ("C8", 3, "M one of 1, 2, 4, 8"),
        ("C8", 0, "M one of 1, 2, 4, 8"),
        ("C8", (None, 2), "the number of rotations, an integer"),
        ("C8", True, "the number of rotations, an integer"),
        ("D4", 2, r"\(None, M\) or \(q, M\)"),
        ("D4", (None, 3), "M one of 1, 2, 4"),
        ("D4", (2, 2), "q an integer from 0 to 1"),
        ("D4", (-1, 1), "q an integer from 0 to 3"),
        ("D4", (0.5, 1), "q an integer from 0 to 3"),
        ("SO2", 0, "M an integer, 1 or more"),
        ("O2", (0.1, -1), "M an integer, 1 or more"),
    ],
)
def test_what_is_no_subgroup_is_refused(name: str, label: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"names no subgroup of .*: allowed: {allowed}"):
        subgroup(parse_group(name), label)
