"""Statements that hold whatever computes the filter and the layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from eqconv_cli.backends.steerable.orbits import grid_symmetries
from eqconv_cli.backends.steerable.problem_arrays import described, layer_of, plan_of, planned
from eqconv_cli.backends.steerable.reference import expansion_gradients
from eqconv_cli.catalog import Arrays, Check, Pair
from eqconv_cli.maths.planar_groups import Element

Compute = Callable[[Arrays], Arrays]


def adjoint(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """The product of the filter with any array is that of the weights with the array's gradient."""
    filter = compute(inputs)["filter"].astype(np.float64)
    against = np.random.default_rng([seed, 2]).normal(size=filter.shape)
    against /= np.linalg.norm(against)
    gradient = expansion_gradients(inputs, {"filter": against})["weights"]
    expected = gradient @ inputs["weights"].astype(np.float64)
    return [Pair("", np.array((against * filter).sum()), np.array(expected))]


def linear(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """The filter of a sum is the sum of the filters."""
    weights = inputs["weights"]
    other = np.random.default_rng([seed, 3]).normal(size=weights.shape).astype(weights.dtype)
    summed = compute({**inputs, "weights": (2 * weights - other).astype(weights.dtype)})["filter"]
    return [Pair("", summed, 2 * compute(inputs)["filter"] - compute({**inputs, "weights": other})["filter"])]


def commutes_on_grid(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """Kappa(g x) = rho_out(g) kappa(x) rho_in(g)^-1 for each element g that maps the pixels to pixels."""
    from eqconv_cli.backends.steerable.equivariance import transformed  # SciPy's images, at the first check only

    plan, filter = plan_of(inputs), compute(inputs)["filter"]
    pairs = []
    for g in grid_symmetries(plan.out_type.space)[1:]:
        # Representations are orthogonal here: from the right rho_in(g)^-1 does what rho_in(g) does from the left.
        moved = np.einsum("po,oixy->pixy", plan.out_type.matrix(g), transformed(filter, plan.in_type, g))
        pairs.append(Pair(_named(g), filter, moved))
    return pairs


def layer_commutes_on_grid(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """Layer(g x) = g layer(x) for each element g that maps the pixels of input and output to pixels."""
    from eqconv_cli.backends.steerable.equivariance import transformed

    in_type, out_type, plan = planned(described(inputs))
    how, (height, width), k = layer_of(inputs), inputs["x"].shape[2:], plan.sampling.size
    rest = (height + 2 * how.padding - how.dilation * (k - 1) - 1) % how.stride
    if height != width or rest:
        return []
    y = compute(inputs)["y"]
    return [
        Pair(
            _named(g), compute({**inputs, "x": transformed(inputs["x"], in_type, g)})["y"], transformed(y, out_type, g)
        )
        for g in grid_symmetries(out_type.space)[1:]
    ]


def same_bits(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """Two runs give the same bits."""
    first, second = compute(dict(inputs)), compute(dict(inputs))
    return [Pair(name, _bits(first[name]), _bits(second[name])) for name in first]


def _named(g: Element) -> str:
    return f"{'flip, ' if g.flip else ''}{round(np.degrees(g.angle), 1):g}°"


def _bits(array: np.ndarray) -> np.ndarray:
    """Floating-point numbers as whole ones, so that equal means every bit."""
    return array.view(f"i{array.dtype.itemsize}")


_TWICE = Check("twice", same_bits, "two runs give the same bits", tolerance=0.0)

#: By operation.
CHECKS: dict[str, tuple[Check, ...]] = {
    "expansion": (
        Check("adjoint", adjoint, "⟨dF, expand(w)⟩ = ⟨expand_backward(dF), w⟩", own_row=True),
        Check("linear", linear, "expand(2 w - v) = 2 expand(w) - expand(v)"),
        Check(
            "equivariance",
            commutes_on_grid,
            "κ(g x) = ρ_out(g) κ(x) ρ_in(g)⁻¹ for every g that maps pixels to pixels",
            own_row=True,
        ),
        _TWICE,
    ),
    "layer": (
        Check(
            "equivariance",
            layer_commutes_on_grid,
            "layer(g x) = g layer(x) for every g that maps pixels to pixels",
            own_row=True,
        ),
        _TWICE,
    ),
}
