"""The operations of the family in float64, as the paper prints them; loops, and nothing that an algorithm uses.

Weiler, Cesa, arXiv 1911.08251: an element of the basis is exp(-(r - radius)^2 / (2 sigma^2)) times a matrix of
cos(mu phi + gamma) and sin(mu phi + gamma) (tables 10 to 13), in the coordinates of two irreps; it is divided by its
norm, and Q_out and Q_in^-1 take it to the coordinates of the representations (eq. 4). Which elements there are and in
which order is the plan's to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable.basis import Attributes
from eqconv_cli.backends.steerable.fields import Space
from eqconv_cli.backends.steerable.plan import PairType, Plan
from eqconv_cli.backends.steerable.problem_arrays import described, layer_of, plan_of, planned
from eqconv_cli.backends.steerable.sampling import ORIGIN
from eqconv_cli.catalog import Arrays

Array = npt.NDArray[np.float64]
Results = dict[str, Array]


# The filter.


def expansion(inputs: Arrays) -> Results:
    """The block of an out field and an in field is the sum of weight times element over the elements of their pair.

    Args:
        inputs: ``weights`` [n], and the layer as :class:`~eqconv_cli.backends.steerable.problem_arrays.Described`.

    Returns:
        ``filter`` [out channels, in channels / groups, k, k].
    """
    return {"filter": filter_of(plan_of(inputs), _float(inputs["weights"]))}


def expansion_gradients(inputs: Arrays, cotangents: Arrays) -> Results:
    """The gradient of a weight is the sum of its element times the filter's gradient."""
    return {"weights": weights_gradient(plan_of(inputs), _float(cotangents["filter"]))}


def filter_of(plan: Plan, weights: Array) -> Array:
    """The filter of a plan, [out channels, in channels / groups, k, k]."""
    made = np.zeros(plan.filter_shape)
    for rows, columns, at, elements in blocks(plan):
        made[rows, columns] = np.tensordot(weights[at], elements, 1)
    return made


def weights_gradient(plan: Plan, grad_filter: Array) -> Array:
    """The transpose of :func:`filter_of`, [n]."""
    made = np.zeros(plan.weights_size)
    for rows, columns, at, elements in blocks(plan):
        made[at] = np.tensordot(elements, grad_filter[rows, columns], 4)
    return made


def blocks(plan: Plan) -> Iterator[tuple[slice, slice, slice, Array]]:
    """For each pair of fields its channels, its weights, and the elements of its basis [d, so, si, k, k].

    Weights are in the order of the names of the in field and the out field, then of the out fields, the in fields and
    the elements.
    """
    known = {(pair.in_name, pair.out_name): pair for pair in plan.pairs}
    start = 0
    for in_name in sorted({field.name for field in plan.in_type.representations}):
        for out_name in sorted({field.name for field in plan.out_type.representations}):
            if (in_name, out_name) not in known:
                continue
            elements = sampled_elements(known[in_name, out_name], plan)
            for rows in _channels(plan.out_type, out_name):
                for columns in _channels(plan.in_type, in_name):
                    yield rows, columns, slice(start, start + len(elements)), elements
                    start += len(elements)


def _channels(fields: Any, name: str) -> Iterator[slice]:
    start = 0
    for field in fields.representations:
        if field.name == name:
            yield slice(start, start + field.size)
        start += field.size


def sampled_elements(pair: PairType, plan: Plan) -> Array:
    """The basis of a pair on the grid, [d, so, si, k, k]."""
    basis, k = pair.basis, plan.sampling.size
    q_out, q_in = basis.out_rep.change_of_basis, np.linalg.inv(basis.in_rep.change_of_basis)
    made = np.zeros((len(basis), basis.out_rep.size, basis.in_rep.size, k, k))
    for number, element in enumerate(basis.elements):
        block = np.zeros((k, k, *element.shape))
        for row in range(k):
            for column in range(k):
                block[row, column] = element_at(element, *_point(plan, row, column), plan.out_type.space)
        block /= math.sqrt((block**2).sum() / element.shape[0])
        out, given = _offset(basis.out_rep, element.oo), _offset(basis.in_rep, element.ii)
        left = q_out[:, out : out + element.shape[0]]
        right = q_in[given : given + element.shape[1]]
        made[number] = np.moveaxis(left @ block @ right, (0, 1), (2, 3))
    return made


def _offset(representation: Any, number: int) -> int:
    return sum(irrep.size for irrep in representation.members[:number])


def _point(plan: Plan, row: int, column: int) -> tuple[float, float]:
    """x to the right, y up."""
    step, centre = plan.sampling.dilation, plan.sampling.dilation * (plan.sampling.size - 1) / 2
    return column * step - centre, centre - row * step


def element_at(element: Attributes, x: float, y: float, space: Space) -> Array:
    """An element at a point, before it is divided by its norm."""
    r, mu, e = math.hypot(x, y), element.frequency, -1 if element.reflected else 1
    at_origin = r < ORIGIN
    if at_origin and mu != 0:
        return np.zeros(element.shape)
    phi = 0.0 if at_origin else math.atan2(y, x) - (space.axis if space.group.flips else 0.0)
    c, s = math.cos(mu * phi + element.gamma), math.sin(mu * phi + element.gamma)
    angular = {(2, 2): [[c, -e * s], [s, e * c]], (1, 2): [[c, s]], (2, 1): [[c], [s]], (1, 1): [[c]]}
    radial = math.exp(-((r - element.radius) ** 2) / (2 * element.sigma**2))
    return radial * np.array(angular[element.shape])


# The layer.


def layer(inputs: Arrays) -> Results:
    """y(q) = bias + sum over p of filter(p) x(stride q - padding + dilation p).

    Args:
        inputs: ``x`` [B, C, H, W], ``weights`` and the description as of :func:`expansion`, optional ``bias`` (one
            number for each trivial irrep of an out field), ``stride``, ``padding``, ``padding_mode`` ("zeros",
            "reflect", "replicate", "circular").

    Returns:
        ``y`` [B, out channels, H', W'].
    """
    x, plan, how = _float(inputs["x"]), plan_of(inputs), layer_of(inputs)
    kernel = filter_of(plan, _float(inputs["weights"]))
    rows, columns = (_padded(n, how.padding, how.padding_mode) for n in x.shape[2:])
    padded = _read(x, rows, columns)
    side = [(len(n) - how.dilation * (plan.sampling.size - 1) - 1) // how.stride + 1 for n in (rows, columns)]
    y = np.zeros((len(x), len(kernel), *side))
    for row, column, seen in _taps(plan, how, side):
        for o, i in _groups(plan, how.groups):
            y[:, o] += np.einsum("oi,bihw->bohw", kernel[o, :, row, column], padded[:, i, seen[0], seen[1]])
    if "bias" in inputs:
        y += (_bias_columns(inputs) @ _float(inputs["bias"]))[:, None, None]
    return {"y": y}


def layer_gradients(inputs: Arrays, cotangents: Arrays) -> Results:
    """Gradients of ``x``, ``weights`` and ``bias``."""
    x, dy, plan, how = _float(inputs["x"]), _float(cotangents["y"]), plan_of(inputs), layer_of(inputs)
    kernel = filter_of(plan, _float(inputs["weights"]))
    rows, columns = (_padded(n, how.padding, how.padding_mode) for n in x.shape[2:])
    padded = _read(x, rows, columns)
    dkernel, dpadded = np.zeros_like(kernel), np.zeros_like(padded)
    for row, column, seen in _taps(plan, how, dy.shape[2:]):
        for o, i in _groups(plan, how.groups):
            inside = padded[:, i, seen[0], seen[1]]
            dkernel[o, :, row, column] = np.einsum("bohw,bihw->oi", dy[:, o], inside)
            dpadded[:, i, seen[0], seen[1]] += np.einsum("oi,bohw->bihw", kernel[o, :, row, column], dy[:, o])
    dx = np.zeros_like(x)
    for to, row in enumerate(rows):
        for at, column in enumerate(columns):
            if row >= 0 and column >= 0:
                dx[:, :, row, column] += dpadded[:, :, to, at]
    return {"x": dx, "weights": weights_gradient(plan, dkernel), "bias": _bias_columns(inputs).T @ dy.sum((0, 2, 3))}


def _padded(size: int, padding: int, mode: str) -> list[int]:
    """The pixel that each pixel of a padded line repeats; -1: it is 0."""
    positions = range(-padding, size + padding)
    if mode == "zeros":
        return [p if 0 <= p < size else -1 for p in positions]
    if mode == "replicate":
        return [min(max(p, 0), size - 1) for p in positions]
    if mode == "circular":
        return [p % size for p in positions]
    return [size - 1 - abs(size - 1 - abs(p)) for p in positions]


def _read(x: Array, rows: list[int], columns: list[int]) -> Array:
    inside = np.multiply.outer(np.array(rows) >= 0, np.array(columns) >= 0)
    return x[:, :, rows][..., columns] * inside


def _taps(plan: Plan, how: Any, side: Any) -> Iterator[tuple[int, int, tuple[slice, slice]]]:
    """Each tap, and the padded pixels that it meets at all output pixels."""
    for row in range(plan.sampling.size):
        for column in range(plan.sampling.size):
            first = [how.dilation * tap for tap in (row, column)]
            down, right = (slice(f, f + (n - 1) * how.stride + 1, how.stride) for f, n in zip(first, side, strict=True))
            yield row, column, (down, right)


def _groups(plan: Plan, groups: int) -> Iterator[tuple[slice, slice]]:
    """The out channels and the in channels of each group."""
    o, i = plan.out_type.size // groups, plan.in_type.size
    for number in range(groups):
        yield slice(number * o, (number + 1) * o), slice(number * i, (number + 1) * i)


def _bias_columns(inputs: Arrays) -> Array:
    """[out channels, biases]: the column of Q for each trivial irrep, field by field."""
    _, fields, _ = planned(described(inputs))
    columns = []
    for field, start in zip(fields.representations, fields.starts, strict=False):
        for number, irrep in enumerate(field.members):
            if irrep == field.group.trivial_irrep:
                column = np.zeros(fields.size)
                column[start : start + field.size] = field.change_of_basis[:, _offset(field, number)]
                columns.append(column)
    return np.array(columns).reshape(-1, fields.size).T


def _float(array: npt.NDArray[Any]) -> Array:
    return np.asarray(array, np.float64)
