"""Symmetries of the grid, and the rows of a kernel that they make equal."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eqconv_cli.backends.steerable.basis import build_basis
from eqconv_cli.backends.steerable.fields import Space
from eqconv_cli.backends.steerable.orbits import grid_symmetries, pixel_permutations, row_orbits, single_rows
from eqconv_cli.backends.steerable.sampling import make_sampling
from eqconv_cli.maths.planar_groups import parse_group
from eqconv_cli.maths.representations import Representation, change_basis, direct_sum, parse_fields, regular


def rep(group: str, expression: str) -> Representation:
    return direct_sum(parse_fields(expression, parse_group(group)))


@pytest.mark.parametrize(
    ("group", "axis", "count"),
    [
        ("C1", 0.0, 1),
        ("C2", 0.0, 2),
        ("C3", 0.0, 1),
        ("C4", 0.0, 4),
        ("C6", 0.0, 2),
        ("C8", 0.0, 4),
        ("flip", math.pi / 2, 2),
        ("flip", math.pi / 4, 2),
        ("flip", 0.3, 1),
        ("D4", math.pi / 2, 8),
        ("D4", math.pi / 4, 8),
        ("D4", 0.3, 4),
        ("D8", math.pi / 8, 8),
        ("D3", math.pi / 2, 2),
        ("D3", math.pi / 4, 2),
        ("SO2", 0.0, 4),
        ("O2", 0.3, 8),
    ],
)
def test_elements_that_map_the_grid_to_itself(group: str, axis: float, count: int) -> None:
    space = Space.of(group, axis)
    found = grid_symmetries(space)
    assert len(found) == count and tuple(found[0]) == (0, 0.0)
    for g in found:
        action = space.action(g)
        assert np.allclose(action, np.rint(action), atol=1e-9)
    if space.group.is_finite:
        actions = [space.action(g) for g in space.group.elements]
        assert sum(np.allclose(action, np.rint(action), atol=1e-9) for action in actions) == count


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 3])
def test_permutations_are_turned_and_mirrored_pictures(k: int, dilation: int) -> None:
    space, sampling = Space.of("D4"), make_sampling(k, dilation)
    picture = np.random.default_rng(0).normal(size=(k, k))
    for g, permutation in zip(grid_symmetries(space), pixel_permutations(space, sampling), strict=True):
        turns = round(g.angle / (math.pi / 2))
        # The axis is vertical: first left and right change places.
        expected = np.rot90(picture[:, ::-1] if g.flip else picture, turns)
        assert np.array_equal(picture.ravel()[permutation].reshape(k, k), expected)
    assert np.array_equal(pixel_permutations(space, sampling)[0], np.arange(k * k))


@pytest.mark.parametrize(
    ("group", "axis", "in_fields", "out_fields", "rows"),
    [
        ("C4", 0.0, "regular", "regular", 4),
        ("C8", 0.0, "regular", "regular", 16),
        ("D4", math.pi / 4, "regular", "regular", 8),
        ("D8", math.pi / 2, "regular", "regular", 32),
        ("D4", 0.3, "regular", "regular", 16),
        ("C8", 0.0, "quotient:2", "regular+irrep:4", 10),
        ("D4", math.pi / 2, "irrep:1,1", "irrep:1,1", 2),
        ("SO2", 0.0, "irrep:1+irrep:0", "irrep:2+irrep:1", 7),
    ],
)
def test_every_row_is_one_image_and_images_are_right(
    group: str, axis: float, in_fields: str, out_fields: str, rows: int
) -> None:
    space = Space.of(group, axis)
    in_rep, out_rep = rep(group, in_fields), rep(group, out_fields)
    orbits = row_orbits(space, in_rep, out_rep)
    assert len(orbits.rows) == rows and orbits.first[-1] == len(orbits.images) == out_rep.size * in_rep.size
    assert sorted(map(tuple, orbits.images[:, :2].tolist())) == list(np.ndindex(out_rep.size, in_rep.size))
    found = build_basis(space, in_rep, out_rep, 5)
    permutations = pixel_permutations(space, found.sampling)
    for row, (o, i) in enumerate(orbits.rows):
        images = orbits.images[orbits.first[row] : orbits.first[row + 1]]
        assert images[0].tolist() == [o, i, 1, 0]
        for to_o, to_i, sign, number in images:
            moved = sign * found.dense[:, o, i][:, permutations[number]]
            assert np.allclose(found.dense[:, to_o, to_i], moved, atol=1e-12)


def test_coordinates_that_do_not_permute_channels_leave_every_row_alone() -> None:
    space, inner = Space.of("C4"), regular(parse_group("C4"))
    turned = change_basis(inner, np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0], "turned")
    for in_rep, out_rep in ((turned, inner), (inner, turned)):
        orbits = row_orbits(space, in_rep, out_rep)
        for made, plain in zip(orbits, single_rows(in_rep, out_rep), strict=True):
            assert np.array_equal(made, plain)


def test_single_rows() -> None:
    made = single_rows(rep("C4", "irrep:1"), rep("C4", "irrep:0+irrep:1"))
    assert made.rows.tolist() == [[o, i] for o in range(3) for i in range(2)]
    assert made.first.tolist() == list(range(7))
    assert made.images.tolist() == [[o, i, 1, 0] for o in range(3) for i in range(2)]
    assert all(array.dtype == np.int32 for array in made)
