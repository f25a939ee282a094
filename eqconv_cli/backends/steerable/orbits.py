"""Entries of a filter that are equal, up to sign and place, because the group maps the grid of pixels to itself.

For such an element g, kappa(g x) = rho_out(g) kappa(x) rho_in(g)^-1 holds on the grid exactly. Where both matrices only
permute channels and change signs, one entry (o, i) of the kernel gives all those of its orbit.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable.fields import Space
from eqconv_cli.backends.steerable.sampling import Sampling
from eqconv_cli.maths.planar_groups import Element
from eqconv_cli.maths.representations import EXACT, Representation

Integers = npt.NDArray[np.int32]


class RowOrbits(NamedTuple):
    """Rows (o, i) of which all others are images."""

    #: [rows, 2].
    rows: Integers
    #: First image of each row, and the number of images so · si.
    first: Integers
    #: [so · si, 4]: o, i, sign, and the number of the symmetry.
    images: Integers


@lru_cache(maxsize=256)
def grid_symmetries(space: Space) -> tuple[Element, ...]:
    """The elements that map a square grid around the origin to itself; the identity is the first."""
    if space.group.is_finite:
        candidates = space.group.elements
    else:
        quarters = [k * math.pi / 2 for k in range(4)]
        mirrored = [Element(1, (t - 2 * space.axis) % (2 * math.pi)) for t in quarters] if space.group.flips else []
        candidates = (*(Element(0, t) for t in quarters), *mirrored)
    return tuple(
        g for g in candidates if np.abs(np.abs(space.action(g)).round() - np.abs(space.action(g))).max() < EXACT
    )


def pixel_permutations(space: Space, sampling: Sampling) -> Integers:
    """For each grid symmetry g and pixel p the pixel g^-1 p, [symmetries, S]."""
    centre = sampling.dilation * (sampling.size - 1) / 2
    made = []
    for g in grid_symmetries(space):
        # Row vectors times the matrix are g^-1 applied, for g is orthogonal.
        x, y = (sampling.points() @ space.action(g)).T
        rows, columns = np.rint((centre - y) / sampling.dilation), np.rint((x + centre) / sampling.dilation)
        made.append(rows * sampling.size + columns)
    return np.array(made, np.int32)


def row_orbits(space: Space, in_rep: Representation, out_rep: Representation) -> RowOrbits:
    """The orbits of the entries of a kernel under those symmetries that permute channels, up to signs."""
    symmetries = grid_symmetries(space)
    moves = []
    for number, (out_matrix, in_matrix) in enumerate(
        zip(out_rep.matrices(symmetries), in_rep.matrices(symmetries), strict=True)
    ):
        out_move, in_move = signed_permutation(out_matrix), signed_permutation(in_matrix)
        if out_move is not None and in_move is not None:
            moves.append((number, *out_move, *in_move))
    so, si = out_rep.size, in_rep.size
    taken = np.zeros((so, si), bool)
    rows, first, images = [], [0], []
    for o in range(so):
        for i in range(si):
            if taken[o, i]:
                continue
            rows.append((o, i))
            for number, out_to, out_sign, in_to, in_sign in moves:
                target = (int(out_to[o]), int(in_to[i]))
                if not taken[target]:
                    taken[target] = True
                    images.append((*target, int(out_sign[o] * in_sign[i]), number))
            first.append(len(images))
    return RowOrbits(
        np.array(rows, np.int32).reshape(-1, 2), np.array(first, np.int32), np.array(images, np.int32).reshape(-1, 4)
    )


def single_rows(in_rep: Representation, out_rep: Representation) -> RowOrbits:
    """Every row is its own and only image."""
    o, i = np.indices((out_rep.size, in_rep.size), np.int32).reshape(2, -1)
    ones, zeros = np.ones_like(o), np.zeros_like(o)
    return RowOrbits(np.stack([o, i], 1), np.arange(len(o) + 1, dtype=np.int32), np.stack([o, i, ones, zeros], 1))


def signed_permutation(matrix: npt.NDArray[np.float64]) -> tuple[Integers, Integers] | None:
    """Where each channel goes and its sign; None for a matrix that does more than that."""
    rounded = np.rint(matrix)
    if np.abs(matrix - rounded).max(initial=0) > EXACT or (np.abs(rounded).sum(axis=0) != 1).any():
        return None
    to = np.abs(rounded).argmax(axis=0)
    return to.astype(np.int32), rounded[to, np.arange(len(to))].astype(np.int32)
