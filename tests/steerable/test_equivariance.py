"""Kernels, filters and layers commute with their groups, and what is broken is seen to be broken."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from eqconv_cli.backends.steerable.basis import SteerableBasis, build_basis
from eqconv_cli.backends.steerable.equivariance import (
    Acceptance,
    ElementError,
    central_disc,
    check_side,
    continuous_errors,
    grid_errors,
    layer_errors,
    original_check,
    resized,
    rotation_errors,
    smooth_input,
    transformed,
)
from eqconv_cli.backends.steerable.fields import Space
from eqconv_cli.backends.steerable.orbits import grid_symmetries
from eqconv_cli.backends.steerable.plan import Plan, make_plan
from eqconv_cli.maths.planar_groups import Element
from eqconv_cli.maths.representations import irrep
from tests.steerable.support_kernels import Array, broken, filter_of, layer, with_noise

#: Five rings of e2cnn's tests of its bases.
RINGS, SIGMAS = [0, 1, 2, 5, 10], [0.6, 1, 1.3, 2.5, 3]
QUARTER = Element(0, math.pi / 2)

#: (group, axis, in fields, out fields, k): every element of the group maps the grid to itself.
EXACT = (
    ("C2", 0.0, "regular", "regular+irrep:1", 3),
    ("C4", 0.0, "regular", "regular", 3),
    ("C4", 0.0, "irrep:1+quotient:2", "regular", 4),
    ("D2", math.pi / 2, "regular", "regular", 5),
    ("D4", math.pi / 2, "regular", "irrep:1,1+regular", 5),
    ("D4", math.pi / 4, "2*trivial", "regular", 3),
    ("flip", 0.0, "regular", "regular", 3),
    ("flip", math.pi / 4, "regular", "regular", 5),
    ("flip", math.pi / 2, "trivial+irrep:1", "regular", 2),
)
#: Groups with more elements than the grid.
FINER = (
    ("C8", 0.0, "regular", "regular", 5),
    ("C16", 0.0, "trivial", "regular", 7),
    ("D8", math.pi / 2, "regular", "regular", 5),
    ("SO2", 0.0, "irrep:0+irrep:1+irrep:2", "irrep:0+irrep:1+irrep:2", 7),
    ("O2", 0.4, "irrep:0,0+irrep:1,1", "irrep:1,0+irrep:1,1+irrep:1,2", 5),
)


def worst(errors: Sequence[ElementError]) -> float:
    return max(error.relative for error in errors)


def plan_of(group: str, axis: float, in_fields: str, out_fields: str, k: int, **options: Any) -> Plan:
    space = Space.of(group, axis)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if k == 2:
            options = {"sigma": 0.5, "rings": [0.7], "frequencies_cutoff": 2, **options}
        return make_plan(space.fields(in_fields), space.fields(out_fields), k, **options)


def random_filter(plan: Plan, seed: int = 0) -> Array:
    return filter_of(plan, np.random.default_rng(seed).normal(size=plan.weights_size))


def some_elements(plan: Plan) -> tuple[Element, ...]:
    """All elements of a finite group, every fifth of the test elements of a continuous one."""
    group = plan.out_type.space.group
    return group.elements if group.is_finite else group.test_elements[::5]


def check_every_irrep_pair(space: Space, irreps: Sequence[tuple[int, ...]], frequency: int) -> None:
    for a, b in itertools.product(irreps, repeat=2):
        found = build_basis(
            space,
            irrep(space.group, *a),
            irrep(space.group, *b),
            21,
            rings=RINGS,
            sigma=SIGMAS,
            frequencies_cutoff=lambda r: frequency,
        )
        for error in continuous_errors(found):
            assert error.relative < 1e-9, (a, b, error)


# The groups and frequencies of e2cnn's test/kernels.


@pytest.mark.parametrize("frequency", [9, 13])
@pytest.mark.parametrize(
    ("group", "axes"),
    [
        ("C1", [0.0]),
        ("flip", [i * math.pi / 10 for i in range(10)]),
        ("C3", [0.0]),
        ("C6", [0.0]),
        ("C8", [0.0]),
        ("D2", [0.0, math.pi / 2, math.pi / 3]),
        ("D4", [0.0, math.pi / 2, math.pi / 3]),
        ("D5", [0.0]),
    ],
)
def test_every_kernel_of_every_pair_of_irreps(group: str, axes: list[float], frequency: int) -> None:
    for axis in axes:
        space = Space.of(group, axis)
        check_every_irrep_pair(space, [psi.id for psi in space.group.irreps()], frequency)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "axis"), [("SO2", 0.0), ("O2", 0.0), ("O2", math.pi / 3)])
def test_every_kernel_of_the_continuous_groups_up_to_frequency_10(group: str, axis: float) -> None:
    space = Space.of(group, axis)
    check_every_irrep_pair(space, [psi.id for psi in space.group.irreps(10)], 13)


def test_chosen_elements_and_points() -> None:
    space = Space.of("C8")
    found = build_basis(space, space.fields("regular").representations[0], irrep(space.group, 1), 5)
    chosen = space.group.elements[2:4]
    errors = continuous_errors(found, chosen, seed=3)
    assert [error.element for error in errors] == list(chosen) and worst(errors) < 1e-12
    assert [error.element for error in continuous_errors(found)] == list(space.group.elements)


@pytest.mark.parametrize(("group", "axis", "in_fields", "out_fields", "k"), (*EXACT, *FINER))
def test_filters_keep_the_constraint_on_their_own_pixels(
    group: str, axis: float, in_fields: str, out_fields: str, k: int
) -> None:
    plan = plan_of(group, axis, in_fields, out_fields, k)
    errors = grid_errors(plan, random_filter(plan))
    assert [error.element for error in errors] == list(grid_symmetries(plan.out_type.space))
    assert worst(errors) < 1e-13
    assert worst(grid_errors(plan, random_filter(plan).astype(np.float32))) < 1e-6


@pytest.mark.parametrize(("group", "axis", "in_fields", "out_fields", "k"), (*EXACT, *FINER))
def test_layers_commute_with_the_symmetries_of_the_grid(
    group: str, axis: float, in_fields: str, out_fields: str, k: int
) -> None:
    plan = plan_of(group, axis, in_fields, out_fields, k)
    convolve = layer(random_filter(plan), padding=k // 2)
    for side in (8, 9):
        x = np.random.default_rng(1).normal(size=(2, plan.in_type.size, side, side))
        errors = layer_errors(convolve, plan.in_type, plan.out_type, x)
        assert [error.element for error in errors] == list(grid_symmetries(plan.out_type.space))
        assert worst(errors) < 1e-13
        assert worst(layer_errors(convolve, plan.in_type, plan.out_type, x.astype(np.float32))) < 1e-6


@pytest.mark.parametrize(("stride", "side"), [(2, 9), (2, 13), (3, 10), (4, 17)])
def test_strided_layers_commute_where_the_last_pixel_mirrors_the_first(stride: int, side: int) -> None:
    plan = plan_of("D4", math.pi / 2, "regular", "regular", 5)
    convolve = layer(random_filter(plan), stride, padding=2)
    x = np.random.default_rng(1).normal(size=(1, 8, side, side))
    assert worst(layer_errors(convolve, plan.in_type, plan.out_type, x, stride=stride)) < 1e-13
    # Without padding the side that counts is that of the input less k - 1.
    bare = layer(random_filter(plan), stride)
    x = np.random.default_rng(1).normal(size=(1, 8, side + 4, side + 4))
    assert worst(layer_errors(bare, plan.in_type, plan.out_type, x, stride=stride, margin=-4)) < 1e-13


@pytest.mark.parametrize("stride", [2, 3])
def test_other_sides_of_strided_layers_are_refused_because_nothing_commutes_there(stride: int) -> None:
    plan = plan_of("C4", 0.0, "regular", "regular", 3)
    convolve = layer(random_filter(plan), stride, padding=1)
    for rest in range(1, stride):
        side = 6 * stride + 1 + rest
        x = np.random.default_rng(1).normal(size=(1, 4, side, side))
        for check in (layer_errors, rotation_errors):
            with pytest.raises(
                ValueError,
                match=rf"side={side} with stride={stride}: the last {rest} rows and columns are read by no output "
                rf"pixel .* take side={side - rest} or {side - rest + stride}$",
            ):
                check(convolve, plan.in_type, plan.out_type, x, stride=stride)
        turned = convolve(transformed(x, plan.in_type, QUARTER))
        assert np.abs(turned - transformed(convolve(x), plan.out_type, QUARTER)).max() > 0.1


def test_sides() -> None:
    for side, stride, margin in ((5, 1, 0), (4, 1, 0), (9, 2, 0), (9, 4, 0), (8, 2, -1), (33, 2, -4)):
        check_side(side, stride, margin)
    with pytest.raises(ValueError, match=r"side=32 with stride=2: .* take side=31 or 33"):
        check_side(32, 2)


def test_wrong_inputs_are_refused() -> None:
    plan = plan_of("C8", 0.0, "regular", "regular", 3)
    convolve = layer(random_filter(plan), padding=1)
    for shape in ((1, 8, 9, 8), (1, 4, 9, 9), (8, 9, 9)):
        for check in (layer_errors, rotation_errors):
            with pytest.raises(ValueError, match=r"x has shape .*: expected \[B, 8, side, side\]"):
                check(convolve, plan.in_type, plan.out_type, np.zeros(shape))
    with pytest.raises(ValueError, match=r"element \(0, 0\.785.*\) maps pixels between pixels: take rotation_errors"):
        layer_errors(
            convolve, plan.in_type, plan.out_type, np.zeros((1, 8, 9, 9)), [plan.in_type.space.group.elements[1]]
        )
    with pytest.raises(ValueError, match=r"filter has shape \(8, 8, 9\): expected \(8, 8, 3, 3\)"):
        grid_errors(plan, np.zeros((8, 8, 9)))
    with pytest.raises(ValueError, match=r"image has shape \(9, 9\): expected \[channels, height, width\]"):
        original_check(convolve, plan.in_type, plan.out_type, np.zeros((9, 9)), 3)


def test_fields_are_turned_as_pictures_are() -> None:
    space = Space.of("D4")
    fields = space.fields("trivial+regular")
    x = np.random.default_rng(0).normal(size=(2, 9, 6, 6))
    for g in space.group.elements:
        turns = round(g.angle / (math.pi / 2))
        picture = np.rot90(x[..., ::-1] if g.flip else x, turns, axes=(2, 3))
        mixed = np.einsum("oc,bchw->bohw", fields.matrix(g), picture)
        assert np.allclose(transformed(x, fields, g), mixed, atol=1e-12)
    assert transformed(x.astype(np.float32), fields, QUARTER).dtype == np.float32


def test_splines_turn_a_plane_wave() -> None:
    """[g f](x) = f(g^-1 x), where the spline can know f."""
    for group, axis in (("SO2", 0.0), ("O2", 0.7)):
        space = Space.of(group, axis)
        side = 41
        at = np.arange(side) - 20
        points = np.stack(np.meshgrid(at, -at), -1)
        for g in space.group.test_elements[5::17]:
            wave, moved = (np.cos(p @ [0.2, 0.35] + 0.4) for p in (points, points @ space.action(g)))
            found = transformed(wave[None, None], space.trivial_fields(1), g)[0, 0]
            disc = central_disc(side)
            assert np.abs(found - moved)[disc].max() < 2e-3


@pytest.mark.parametrize(("group", "axis", "in_fields", "out_fields", "k"), FINER)
def test_layers_nearly_commute_with_the_other_elements(
    group: str, axis: float, in_fields: str, out_fields: str, k: int
) -> None:
    """The originals have 0.02 for C8, k = 5, and 0.03 for SO(2), k = 7."""
    plan = plan_of(group, axis, in_fields, out_fields, k)
    x = smooth_input(plan.in_type.size)
    convolve = layer(random_filter(plan), padding=k // 2)
    errors = rotation_errors(convolve, plan.in_type, plan.out_type, x, some_elements(plan))
    assert [error.element for error in errors] == list(some_elements(plan))
    assert 1e-4 < worst(errors) < 0.01
    y = convolve(x)
    assert max(error.maximum for error in errors) < 0.03 * np.abs(y).max()
    plain = np.random.default_rng(0).normal(size=plan.filter_shape)
    spoilt = rotation_errors(layer(plain, padding=k // 2), plan.in_type, plan.out_type, x, some_elements(plan))
    assert worst(spoilt) > 0.3


def test_a_strided_layer_nearly_commutes() -> None:
    plan = plan_of("C8", 0.0, "regular", "regular", 5)
    convolve = layer(random_filter(plan), 2, padding=2)
    errors = rotation_errors(convolve, plan.in_type, plan.out_type, smooth_input(8), stride=2)
    assert [error.element for error in errors] == list(plan.out_type.space.group.elements) and worst(errors) < 0.01


# The test of the tests: one element of a basis becomes noise.


def broken_basis(basis: SteerableBasis) -> SteerableBasis:
    return with_noise(basis, len(basis) // 2)


@pytest.mark.parametrize(("group", "axis", "in_fields", "out_fields", "k"), (*EXACT, *FINER))
def test_a_broken_basis_is_seen_off_the_grid(group: str, axis: float, in_fields: str, out_fields: str, k: int) -> None:
    plan = plan_of(group, axis, in_fields, out_fields, k)
    basis = plan.pairs[0].basis
    identity, *others = continuous_errors(broken_basis(basis))
    assert identity.relative < 1e-12 and all(error.relative > 0.05 for error in others)


@pytest.mark.parametrize(("group", "axis", "in_fields", "out_fields", "k"), (*EXACT, *FINER))
def test_a_broken_filter_is_seen_on_the_grid(group: str, axis: float, in_fields: str, out_fields: str, k: int) -> None:
    plan = plan_of(group, axis, in_fields, out_fields, k)
    filter = random_filter(broken(plan))
    identity, *others = grid_errors(plan, filter)
    assert identity.relative < 1e-13 and all(error.relative > 0.01 for error in others)
    x = np.random.default_rng(1).normal(size=(1, plan.in_type.size, 9, 9))
    identity, *others = layer_errors(layer(filter, padding=k // 2), plan.in_type, plan.out_type, x)
    assert identity.relative < 1e-13 and all(error.relative > 0.01 for error in others)


@pytest.mark.parametrize(("group", "axis", "in_fields", "out_fields", "k"), FINER)
def test_a_broken_filter_is_seen_between_the_pixels(
    group: str, axis: float, in_fields: str, out_fields: str, k: int
) -> None:
    plan = plan_of(group, axis, in_fields, out_fields, k)
    x = smooth_input(plan.in_type.size)
    made = [random_filter(plan), random_filter(broken(plan))]
    sound, spoilt = (
        worst(rotation_errors(layer(filter, padding=k // 2), plan.in_type, plan.out_type, x, some_elements(plan)))
        for filter in made
    )
    assert sound < 0.01 < 0.02 < spoilt


def picture(side: int = 64) -> Array:
    """A channel of low frequencies, values in [-0.5, 0.5]."""
    return smooth_input(1, side)[0] / (2 * np.abs(smooth_input(1, side)).max())


@pytest.mark.parametrize("padding", [0, 2])
def test_the_acceptance_of_escnn(padding: int) -> None:
    plan = plan_of("C8", 0.0, "trivial", "regular", 5)
    filter = random_filter(plan)
    filter /= np.sqrt((filter**2).sum(axis=(1, 2, 3)).mean())
    elements = plan.in_type.space.group.elements[:2]
    sides = []

    def convolve(x: Array) -> Array:
        sides.append(x.shape[-1])
        return layer(filter, padding=padding)(x)

    found = original_check(convolve, plan.in_type, plan.out_type, picture(), 5, padding, elements)
    assert [result.element for result in found] == list(elements) and all(result.passed for result in found)
    # The output has 33 x 5 pixels whatever the padding is.
    assert set(sides) == {165 + 4 - 2 * padding}
    spoilt = np.random.default_rng(0).normal(size=filter.shape)
    refused = original_check(
        layer(spoilt, padding=padding), plan.in_type, plan.out_type, picture(), 5, padding, elements
    )
    assert refused[0].passed and not all(result.passed for result in refused)


def test_acceptance_is_below_1() -> None:
    assert Acceptance(QUARTER, 0.999).passed and not Acceptance(QUARTER, 1.0).passed
    assert not Acceptance(QUARTER, math.nan).passed


def test_pictures_are_resized() -> None:
    image = np.broadcast_to(np.linspace(0, 1, 60)[:, None], (2, 60, 90))
    for side in (30, 120):
        made = resized(image, side)
        assert made.shape == (2, side, side)
        assert np.allclose(
            made[0, side // 4 : -side // 4, 3], np.linspace(0, 1, side)[side // 4 : -side // 4], atol=0.02
        )
    stripes = np.tile([0.0, 1.0], (1, 64, 64))
    assert np.abs(resized(stripes, 32) - 0.5).max() < 0.25


def test_smooth_inputs_are_reproducible_and_small_at_the_edge() -> None:
    x = smooth_input(4, batch=2, seed=5)
    assert x.shape == (2, 4, 33, 33) and np.array_equal(x, smooth_input(4, batch=2, seed=5))
    assert not np.array_equal(x, smooth_input(4, batch=2, seed=6))
    assert np.abs(x[..., 0, :]).max() < 0.02 * np.abs(x).max()
