"""Bases of kernels: how many, in which order, how long, and equal in every form."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqconv_cli.backends.steerable.angular import angular_solutions
from eqconv_cli.backends.steerable.basis import (
    Attributes,
    SteerableBasis,
    build_basis,
    forget_bases,
    sampled_basis,
)
from eqconv_cli.backends.steerable.equivariance import continuous_errors
from eqconv_cli.backends.steerable.fields import Space
from eqconv_cli.backends.steerable.sampling import make_sampling
from eqconv_cli.maths.planar_groups import parse_group
from eqconv_cli.maths.representations import (
    Representation,
    change_basis,
    direct_sum,
    irrep,
    parse_fields,
    quotient,
    regular,
)


def rep(group: str, expression: str) -> Representation:
    """The sum of the fields of an expression, as one representation."""
    fields = parse_fields(expression, parse_group(group))
    return fields[0] if len(fields) == 1 else direct_sum(fields)


def basis(
    group: str, in_fields: str, out_fields: str, k: int, axis: float = math.pi / 2, **options: Any
) -> SteerableBasis:
    return build_basis(Space.of(group, axis), rep(group, in_fields), rep(group, out_fields), k, **options)


def regular_basis(group: str, k: int, **options: Any) -> SteerableBasis:
    return basis(group, "regular", "regular", k, **options)


SO2 = "irrep:0+irrep:1+irrep:2+irrep:3"
O2 = "irrep:0,0+irrep:1,0+irrep:1,1+irrep:1,2+irrep:1,3"

#: Mixed pairs with every shape of block, phases of all groups, and coordinates that are not the irreps'.
MIXED = (
    ("C1", "trivial", "trivial", 3, 0.0),
    ("C4", "regular+irrep:1", "quotient:2+irrep:2", 5, 0.0),
    ("C8", "regular", "irrep:0+irrep:3+irrep:4", 5, 0.0),
    ("flip", "regular", "regular+irrep:1", 3, 0.4),
    ("D3", "regular", "irrep:1,1+irrep:1,0", 5, 0.3),
    ("D4", "quotient:1,2+irrep:1,1", "regular+irrep:0,2", 4, math.pi / 4),
    ("SO2", SO2, SO2, 5, 0.0),
    ("O2", O2, "irrep:1,1+irrep:1,0", 7, 1.2),
)
mixed = pytest.mark.parametrize(("group", "in_fields", "out_fields", "k", "axis"), MIXED)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("C4", (24, 44, 72, 124)),
        ("C8", (48, 88, 144, 248)),
        ("D4", (48, 88, 144, 248)),
        ("C16", (96, 176, 288, 496)),
        ("D8", (96, 176, 288, 496)),
    ],
)
def test_dimensions_of_regular_representations(group: str, expected: tuple[int, ...]) -> None:
    assert tuple(len(regular_basis(group, k)) for k in (3, 5, 7, 9)) == expected


@pytest.mark.parametrize(
    ("group", "in_fields", "out_fields", "options", "expected"),
    [
        ("C8", "quotient:2", "regular", {}, 44),
        ("C8", "quotient:2", "quotient:2", {}, 28),
        ("D4", "quotient:0,1", "regular", {}, 44),
        ("D4", "quotient:0,1", "quotient:0,1", {}, 25),
        ("C8", "regular", "regular", {"kernel_size": 3, "frequencies_cutoff": 3}, 64),
        ("C8", "regular", "regular", {"frequencies_cutoff": 3}, 168),
        ("C8", "regular", "regular", {"kernel_size": 7, "frequencies_cutoff": lambda r: 3 * r}, 320),
        ("C8", "regular", "regular", {"kernel_size": 3, "dilation": 2}, 64),
        ("C8", "regular", "regular", {"kernel_size": 3, "dilation": 2, "scale_cutoff_with_dilation": True}, 48),
        ("C8", "regular", "regular", {"kernel_size": 7, "frequencies_cutoff": 3, "maximum_offset": 0}, 170),
        ("C8", "regular", "regular", {"kernel_size": 7, "frequencies_cutoff": 3, "maximum_offset": 1}, 316),
        ("C8", "regular", "regular", {"kernel_size": 7, "frequencies_cutoff": 3, "maximum_offset": 2}, 320),
        ("C8", "regular", "regular", {"kernel_size": 2}, 0),
        (
            "C8",
            "regular",
            "regular",
            {"kernel_size": 2, "sigma": 0.5, "rings": [0.7], "frequencies_cutoff": 2},
            24,
        ),
    ],
)
def test_other_dimensions(group: str, in_fields: str, out_fields: str, options: dict[str, Any], expected: int) -> None:
    arguments = {"kernel_size": 5, **options}
    assert len(basis(group, in_fields, out_fields, arguments.pop("kernel_size"), **arguments)) == expected


@pytest.mark.parametrize(
    ("group", "fields", "expected"), [("SO2", SO2, (36, 65, 102, 151)), ("O2", O2, (25, 45, 71, 103))]
)
def test_dimensions_of_sums_of_irreps(group: str, fields: str, expected: tuple[int, ...]) -> None:
    assert tuple(len(basis(group, fields, fields, k)) for k in (3, 5, 7, 9)) == expected


@pytest.mark.parametrize(
    ("k", "harmonics"),
    [(1, 1), (3, 6), (4, 5), (5, 11), (6, 12), (7, 18), (8, 25), (9, 31), (11, 46)],
)
def test_harmonics_that_survive_on_the_grid(k: int, harmonics: int) -> None:
    found = regular_basis("C4", k)
    assert len(found.harmonics) == harmonics and len(found) == 4 * harmonics


@pytest.mark.parametrize("group", ["C1", "C3", "C5", "flip", "D2", "D3", "D5"])
def test_regular_to_regular_has_as_many_as_a_group_convolution(group: str) -> None:
    """|G| (2 M + 1) on a ring that holds the frequencies up to M."""
    order = parse_group(group).order
    for most in (0, 1, 2, 4):
        found = regular_basis(group, 9, rings=[3], sigma=0.6, frequencies_cutoff=lambda r, most=most: most)
        assert len(found) == order * (2 * most + 1)


@pytest.mark.parametrize(
    ("group", "k", "slices", "harmonics", "megabytes", "blocks", "exact", "recombined"),
    [
        ("C4", 3, 8, 6, 0.01, 14.6, 6.8, 51),
        ("C4", 5, 14, 11, 0.07, 14.5, 9.0, 66),
        ("C8", 3, 6, 6, 0.11, 4.8, 2.2, 55),
        ("C8", 5, 10, 11, 0.56, 4.8, 3.0, 69),
        ("C8", 7, 14, 18, 1.81, 4.8, 3.4, 77),
        ("C8", 9, 20, 31, 5.14, 4.8, 3.6, 78),
        ("C16", 5, 10, 11, 4.51, 1.4, 0.85, 78),
        ("D4", 5, 7, 11, 0.56, 3.6, 2.3, 66),
        ("D8", 5, 5, 11, 4.51, 1.2, 0.74, 69),
    ],
)
def test_sizes_and_densities(
    group: str, k: int, slices: int, harmonics: int, megabytes: float, blocks: float, exact: float, recombined: float
) -> None:
    """What a float32 copy of the basis takes, and how much of it is not 0, in per cent."""
    found = regular_basis(group, k)
    values, ids = found.packed
    assert len(values) == len(ids) == slices and len(found.harmonics) == harmonics
    assert 4 * found.dense.size / 1e6 == pytest.approx(megabytes, abs=0.005)
    entries = sum(math.prod(element.shape) for element in found.elements) * found.sampling.pixels
    assert 100 * entries / found.padded.size == pytest.approx(blocks, abs=0.06)
    # Sines and cosines that are 0 up to rounding count as 0.
    assert 100 * np.mean(np.abs(found.padded) > 1e-9) == pytest.approx(exact, abs=0.06)
    assert 100 * np.mean(np.abs(found.dense) > 1e-9) == pytest.approx(recombined, abs=0.6)


@mixed
def test_elements_come_in_the_order_of_e2cnn(group: str, in_fields: str, out_fields: str, k: int, axis: float) -> None:
    found = basis(group, in_fields, out_fields, k, axis)
    expected = []
    for number, ring in enumerate(found.sampling.rings):
        for ii, in_irrep in enumerate(found.in_rep.members):
            for oo, out_irrep in enumerate(found.out_rep.members):
                for s in angular_solutions(out_irrep, in_irrep, found.sampling.maximum_frequency):
                    if abs(s.frequency) <= ring.cutoff:
                        expected.append((number, ii, oo, s.quarter * math.pi / 2, s.reflected, s.frequency, s.offset))
    kept = {(e.ring, e.ii, e.oo, e.gamma, e.reflected, e.frequency, e.offset) for e in found.elements}
    assert [(e.ring, e.ii, e.oo, e.gamma, e.reflected, e.frequency, e.offset) for e in found.elements] == [
        e for e in expected if e in kept
    ]
    for idx, e in enumerate(found.elements):
        ring = found.sampling.rings[e.ring]
        assert e.idx == idx and (e.radius, e.sigma) == (ring.radius, ring.sigma)
        assert found.in_rep.irreps[e.ii] == e.in_irrep and found.out_rep.irreps[e.oo] == e.out_irrep
        assert e.shape == (found.out_rep.members[e.oo].size, found.in_rep.members[e.ii].size)


@mixed
def test_all_forms_are_the_same_kernels(group: str, in_fields: str, out_fields: str, k: int, axis: float) -> None:
    found = basis(group, in_fields, out_fields, k, axis)
    d, (so, si, pixels) = len(found), found.block_shape
    assert d and found.dense.shape == found.padded.shape == (d, so, si, pixels)

    values, ids = found.packed
    unpacked = np.zeros_like(found.padded)
    for (slice_, o, i), element in np.ndenumerate(ids):
        if element >= 0:
            unpacked[element, o, i] = values[slice_, o, i]
        else:
            assert not values[slice_, o, i].any()
    assert np.array_equal(unpacked, found.padded) and ids.dtype == np.int32

    starts, columns, entries = found.csr
    rows = np.repeat(np.arange(d), np.diff(starts))
    scattered = np.zeros((d, so * si * pixels))
    scattered[rows, columns] = entries
    assert np.array_equal(scattered, found.padded.reshape(d, -1)) and entries.all()
    assert starts.dtype == columns.dtype == np.int32 and starts[-1] == len(entries)

    c = found.coupling
    assert max(np.bincount(c.element)) <= 4
    coupled = np.zeros_like(found.padded)
    for element, row, column, harmonic, factor in zip(*c, strict=True):
        coupled[element, row, column] += factor * found.harmonic[harmonic]
    assert np.allclose(coupled, found.padded, atol=1e-12)

    recombined = np.einsum("po,doix,ij->dpjx", found.out_rep.change_of_basis, found.padded, found.in_rep.inverse)
    assert np.allclose(recombined, found.dense, atol=1e-12)
    slotted = np.zeros_like(found.dense)
    for element, harmonic, value in zip(*found.slots, strict=True):
        slotted[element] += value[..., None] * found.harmonic[harmonic]
    assert np.allclose(slotted, found.dense, atol=1e-12)
    order = list(zip(found.slots.harmonic.tolist(), found.slots.element.tolist(), strict=True))
    assert order == sorted(set(order))

    assert np.allclose(found.at(found.sampling.points()), found.dense, atol=1e-12)
    assert list(found.harmonics) == sorted(set(found.harmonics))


@mixed
def test_norms_are_1_and_those_of_the_closed_form(
    group: str, in_fields: str, out_fields: str, k: int, axis: float
) -> None:
    found = basis(group, in_fields, out_fields, k, axis)
    distances, angles = found.sampling.polar()
    phi = angles - (axis if found.space.group.flips else 0)
    assert np.allclose((found.padded**2).sum(axis=(1, 2, 3)), [e.shape[0] for e in found.elements], atol=1e-9)
    for e in found.elements:
        profile = found.sampling.rings[e.ring].profile(distances) * ((distances > 0) | (e.frequency == 0))
        energy = (profile**2).sum()
        closed = {
            (2, 2): energy,
            (1, 2): energy,
            (2, 1): energy / 2,
            (1, 1): (profile**2 * np.cos(e.frequency * phi + e.gamma) ** 2).sum(),
        }[e.shape]
        assert e.norm == pytest.approx(math.sqrt(closed), rel=1e-9)


@mixed
def test_elements_are_independent_on_the_plane(
    group: str, in_fields: str, out_fields: str, k: int, axis: float
) -> None:
    found = basis(group, in_fields, out_fields, k, axis)
    assert np.linalg.matrix_rank(found.coefficients.reshape(len(found), -1)) == len(found)


@mixed
def test_kernels_are_equivariant_off_the_grid(group: str, in_fields: str, out_fields: str, k: int, axis: float) -> None:
    assert max(e.relative for e in continuous_errors(basis(group, in_fields, out_fields, k, axis))) < 1e-12


def test_only_frequency_0_reaches_the_origin() -> None:
    found = regular_basis("C8", 5)
    frequencies = np.array([element.frequency for element in found.elements])
    at_origin = np.abs(found.padded[..., 12]).max(axis=(1, 2))
    assert not at_origin[frequencies != 0].any() and at_origin[frequencies == 0].all()


def test_a_single_pixel_gives_the_circulant_matrices() -> None:
    found = regular_basis("C8", 1)
    matrices = found.dense[..., 0]
    assert len(found) == 8
    for matrix in matrices:
        assert all(np.allclose(matrix[(o + 1) % 8, (i + 1) % 8], matrix[o, i]) for o in range(8) for i in range(8))
    assert np.linalg.matrix_rank(matrices.reshape(8, -1)) == 8


@pytest.mark.parametrize("group", ["C8", "D4"])
def test_regular_to_regular_is_the_convolution_on_the_group(group: str) -> None:
    """kappa[o, i](x) = psi_{o^-1 i}(o^-1 x), where psi_j(x) = kappa[e, j](x)."""
    found = regular_basis(group, 5)
    g, space = found.space.group, found.space
    points = np.random.default_rng(0).normal(size=(6, 2))
    kernels = found.at(points)
    for row, o in enumerate(g.elements):
        turned = found.at(points @ space.action(o))[:, 0]
        for column, i in enumerate(g.elements):
            assert np.allclose(kernels[:, row, column], turned[:, g.index(g.product(g.inverse(o), i))], atol=1e-9)


def test_lifting_turns_one_kernel() -> None:
    found = basis("C4", "trivial", "regular", 5)
    for kernel in found.dense.reshape(-1, 4, 5, 5):
        for quarter in range(4):
            assert np.allclose(kernel[quarter], np.rot90(kernel[0], quarter), atol=1e-12)


def test_another_axis_is_another_basis() -> None:
    forget_bases()
    for group, fields in (("D4", "regular"), ("O2", O2), ("flip", "regular")):
        upright, slanted = (basis(group, fields, fields, 5, axis) for axis in (math.pi / 2, 0.3))
        assert upright is basis(group, fields, fields, 5, math.pi / 2)
        assert slanted is basis(group, fields, fields, 5, 0.3) and slanted is not upright
        assert len(slanted) == len(upright) and np.abs(slanted.dense - upright.dense).max() > 0.1
        assert slanted.space.axis == 0.3
    # Without reflections there is no axis.
    assert basis("C4", "regular", "regular", 5, 0.1) is basis("C4", "regular", "regular", 5, 0.2)


def test_bases_are_kept_by_everything_that_they_depend_on() -> None:
    first = regular_basis("C8", 5)
    group = parse_group("C8")
    assert regular_basis("C8", 5) is first
    # Names do not matter, coordinates do.
    same = change_basis(regular(group), np.eye(8), "other")
    other = change_basis(regular(group), 2 * np.eye(8), "other")
    assert build_basis(group, same, regular(group), 5) is first
    for changed in (
        build_basis(group, other, regular(group), 5),
        regular_basis("C8", 7),
        regular_basis("C8", 5, dilation=2),
        regular_basis("C8", 5, sigma=0.5),
        regular_basis("C8", 5, rings=[0, 1]),
        regular_basis("C8", 5, frequencies_cutoff=3),
        regular_basis("C8", 5, maximum_offset=0),
        regular_basis("C4", 5),
        basis("C8", "irrep:1", "regular", 5),
    ):
        assert changed is not first
    # Functions of the radius are compared by what they give.
    assert regular_basis("C8", 5, frequencies_cutoff=lambda r: 3 * r) is regular_basis("C8", 5, frequencies_cutoff=3)
    # Two filters that keep the same elements give the same basis, others do not.
    low = regular_basis("C8", 5, basis_filter=lambda a: a.frequency == 0)
    assert low is regular_basis("C8", 5, basis_filter=lambda a: abs(a.frequency) < 1)
    assert low is not regular_basis("C8", 5, basis_filter=lambda a: abs(a.frequency) < 2) and low is not first
    forget_bases()
    assert regular_basis("C8", 5) is not first


def test_a_filter_sees_attributes_and_is_joined_with_the_cutoffs() -> None:
    seen: list[Attributes] = []

    def wanted(attributes: Attributes) -> bool:
        seen.append(attributes)
        return attributes.radius > 0 and attributes.in_irrep == attributes.out_irrep

    found = basis("C8", "regular", "regular", 5, basis_filter=wanted)
    whole = regular_basis("C8", 5)
    assert len(seen) >= len(whole) and all(abs(a.frequency) <= 2 for a in seen)
    kept = [e for e in whole.elements if e.radius > 0 and e.in_irrep == e.out_irrep]
    assert [e._replace(idx=-1) for e in found.elements] == [e._replace(idx=-1) for e in kept]
    assert np.allclose(found.dense, whole.dense[[e.idx for e in kept]])


def test_nothing_is_left_by_a_filter_that_refuses_all() -> None:
    found = basis("C4", "regular", "regular", 3, basis_filter=lambda a: False)
    assert len(found) == 0 and found.dense.shape == found.padded.shape == (0, 4, 4, 9)
    assert (
        found.packed[0].shape == (0, 4, 4, 9) and found.csr[0].tolist() == [0] and found.slots.values.shape == (0, 4, 4)
    )


def test_groups_and_offsets_are_checked() -> None:
    space, sampling = Space.of("C8"), make_sampling(3)
    inner, other = regular(parse_group("C8")), regular(parse_group("C4"))
    with pytest.raises(ValueError, match=r"in_rep \(regular\) is of C4: the space has C8"):
        sampled_basis(space, other, inner, sampling)
    with pytest.raises(ValueError, match=r"out_rep \(regular\) is of C4: the space has C8"):
        sampled_basis(space, inner, other, sampling)
    for wrong in (-1, True, 1.5, "2"):
        with pytest.raises(ValueError, match=r"maximum_offset=.*: an integer is needed, 0 or more"):
            sampled_basis(space, inner, inner, sampling, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="neither maximum_frequency nor maximum_offset is given"):
        regular_basis("C8", 3, frequencies_cutoff=lambda r: math.inf)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Space, Representation, Representation, int]:
    """A group with any axis, and two representations in random invertible coordinates."""
    group = parse_group(draw(st.sampled_from(["C1", "flip", "C3", "C4", "C8", "D2", "D3", "D4", "SO2", "O2"])))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    made = []
    for _ in range(2):
        labels = draw(st.lists(st.sampled_from([psi.id for psi in group.irreps()]), min_size=1, max_size=3))
        whole = direct_sum([irrep(group, *label) for label in labels])
        left, right = (np.linalg.qr(rng.normal(size=(whole.size,) * 2))[0] for _ in range(2))
        made.append(change_basis(whole, left * rng.uniform(0.5, 2, whole.size) @ right, "random"))
    return Space(group, draw(st.floats(-3, 3))), made[0], made[1], draw(st.sampled_from([3, 4, 5]))


@given(pairs())
@settings(max_examples=40, deadline=None)
def test_any_pair_of_representations_has_equivariant_kernels(
    case: tuple[Space, Representation, Representation, int],
) -> None:
    space, in_rep, out_rep, k = case
    found = build_basis(space, in_rep, out_rep, k)
    assert max((e.relative for e in continuous_errors(found)), default=0) < 1e-10
    slotted = np.zeros_like(found.dense)
    for element, harmonic, value in zip(*found.slots, strict=True):
        slotted[element] += value[..., None] * found.harmonic[harmonic]
    assert np.allclose(slotted, found.dense, atol=1e-10)


def test_quotients_have_the_kernels_of_the_regular_representation_that_are_constant_on_cosets() -> None:
    group = parse_group("C8")
    for k in (3, 5):
        whole, part = regular_basis("C8", k), build_basis(group, quotient(group, 2), regular(group), k)
        # Cosets of the half turn: elements a and a + 4.
        summed = part.dense[:, :, [a % 4 for a in range(8)]].reshape(len(part), -1)
        joined = np.concatenate([whole.dense.reshape(len(whole), -1), summed])
        assert np.linalg.matrix_rank(joined) == len(whole)


def test_every_irrep_pair_of_every_group_off_the_grid() -> None:
    for name, axis in itertools.product(("C6", "D2", "D5"), (0.0, math.pi / 3)):
        space = Space.of(name, axis)
        for a, b in itertools.product(space.group.irreps(), repeat=2):
            found = build_basis(space, irrep(space.group, *a.id), irrep(space.group, *b.id), 5, frequencies_cutoff=4)
            assert max((e.relative for e in continuous_errors(found)), default=0) < 1e-10
