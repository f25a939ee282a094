"""What each algorithm that expands weights to a filter computes and keeps, counted on a basis.

Per field pair a filter has so · si · S numbers; every count below is divided by that. A multiplication with its
addition counts 2.
"""

from __future__ import annotations

import math

import numpy as np

from eqconv_cli.backends.steerable.basis import SteerableBasis
from eqconv_cli.backends.steerable.orbits import grid_symmetries, pixel_permutations, row_orbits, signed_permutation
from eqconv_cli.backends.steerable.plan import Plan
from eqconv_cli.studies import Costs, Densities, Form

#: What is below this is 0: an entry in the coordinates of the irreps is a product, one of the dense basis a sum.
ZERO, ZERO_OF_SUMS = 1e-12, 1e-9
#: Numbers of a dense basis up to which they are counted for a look.
COUNTED = 30_000_000
#: Numbers that are made at a time.
_CHUNK = 4_000_000


def block_entries(basis: SteerableBasis) -> int:
    """Entries (o, i) of the blocks of all elements."""
    return sum(math.prod(element.shape) for element in basis.elements)


def pixel_share(basis: SteerableBasis) -> float:
    """The share of pixels that one of each orbit is, under the grid's symmetries that permute channels up to signs."""
    symmetries = grid_symmetries(basis.space)
    matrices = zip(basis.out_rep.matrices(symmetries), basis.in_rep.matrices(symmetries), strict=True)
    permuting = [all(signed_permutation(matrix) is not None for matrix in pair) for pair in matrices]
    images = pixel_permutations(basis.space, basis.sampling)[permuting]
    return len(np.unique(images.min(axis=0))) / basis.sampling.pixels


def slices(basis: SteerableBasis) -> int:
    """L, the most elements that any pair of irreps has."""
    pairs = [(element.oo, element.ii) for element in basis.elements]
    return max((pairs.count(pair) for pair in set(pairs)), default=0)


def exact_entries(basis: SteerableBasis) -> int:
    """Numbers of the basis on the grid, in the coordinates of the irreps, that are not 0."""
    coupling, largest = basis.coupling, np.abs(basis.harmonic)
    step = max(1, _CHUNK // basis.sampling.pixels)
    found = 0
    for start in range(0, len(coupling.element), step):
        part = slice(start, start + step)
        found += int((np.abs(coupling.factor[part, None]) * largest[coupling.harmonic[part]] > ZERO).sum())
    return found


def dense_entries(basis: SteerableBasis) -> int:
    """Numbers of the dense basis that are not 0."""
    so, si, pixels = basis.block_shape
    slots, harmonic = basis.slots, basis.harmonic
    step = max(1, _CHUNK // (so * si * pixels))
    found = 0
    for start in range(0, len(basis), step):
        made = np.zeros((min(step, len(basis) - start), so, si, pixels))
        for slot in np.flatnonzero((slots.element >= start) & (slots.element < start + step)):
            made[slots.element[slot] - start] += slots.values[slot][:, :, None] * harmonic[slots.harmonic[slot]]
        found += int((np.abs(made) > ZERO_OF_SUMS).sum())
    return found


def densities(basis: SteerableBasis, count_all: bool) -> Densities:
    """Shares of the dense basis; what the change of basis fills is counted up to ``COUNTED`` numbers, or always."""
    so, si, pixels = basis.block_shape
    numbers = len(basis) * so * si * pixels
    return Densities(
        blocks=block_entries(basis) * pixels / numbers,
        exact=exact_entries(basis) / numbers,
        dense=dense_entries(basis) / numbers if count_all or numbers <= COUNTED else None,
    )


def costs(basis: SteerableBasis, density: Densities) -> Costs:
    """Multiplications and additions for each number of the filter."""
    so, si, pixels = basis.block_shape
    d, h = len(basis), len(basis.harmonics)
    couplings = 2 * block_entries(basis) / (so * si * pixels)
    # Q_out x is 2 so for each number, x Q_in^-1 is 2 si.
    products = 2 * so * (not basis.out_rep.is_identity) + 2 * si * (not basis.in_rep.is_identity)
    fill = 2 * d * density.blocks
    share = pixel_share(basis)
    return Costs(
        dense=2 * d,
        fill=fill,
        irreps=fill + products,
        harmonic=couplings + products * h / pixels + 2 * h,
        harmonic_orbit=couplings + products * h / pixels + 2 * h * share,
        irreps_products=2 * (so + si),
        harmonic_products=2 * (so + si) * h / pixels,
        packed=2 * slices(basis) + products,
        csr=2 * d * density.exact + products,
        no_change_of_basis=basis.out_rep.is_identity and basis.in_rep.is_identity,
    )


def forms(plan: Plan, cost: Costs) -> tuple[Form, ...]:
    """What the algorithms of ``expand`` keep of a plan with one pair of fields, and compute."""
    (pair,) = plan.pairs
    basis, (so, si, pixels) = pair.basis, pair.basis.block_shape
    d, layers, entries = len(basis), slices(basis), so * si
    q = so * so * (not basis.out_rep.is_identity) + si * si * (not basis.in_rep.is_identity)
    products = cost.irreps - cost.fill
    exact, coupled = exact_entries(basis), len(basis.coupling.element)
    # The compiled expansion keeps the products with Q in its table, and computes one row (o, i) of each orbit.
    folded = 2 * len(basis.slots.element) / pixels + 2 * len(basis.harmonics)
    share = len(row_orbits(basis.space, basis.in_rep, basis.out_rep).rows) / entries
    fused, fused_orbit = ((p.reals.size, p.words.size) for p in (plan.fused, plan.fused_orbit))
    return (
        Form(("dense", "dense_direct", "fused_direct"), d * entries * pixels, 0, cost.dense),
        Form(("orbit",), d * entries * pixels, 0, cost.dense * share),
        Form(("irreps_loop",), block_entries(basis) * pixels + q, 0, cost.irreps),
        Form(("irreps_vec",), d * entries * pixels + q, 0, cost.dense + products),
        Form(("packed",), layers * entries * pixels + q, layers * entries, cost.packed),
        Form(("csr",), exact + q, exact + d + 1, cost.csr),
        Form(("harmonic",), len(basis.harmonics) * pixels + coupled + q, 4 * coupled, cost.harmonic),
        Form(("fused",), *fused, folded),
        Form(("fused_orbit",), *fused_orbit, folded * share),
    )
