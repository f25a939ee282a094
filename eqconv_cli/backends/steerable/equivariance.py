"""How far a kernel, a filter or a layer is from commuting with its group.

Three measures, from exact to approximate: the constraint kappa(g x) = rho_out(g) kappa(x) rho_in(g)^-1 of Weiler, Cesa,
arXiv 1911.08251, eq. 2 at any points of the plane; the same on the pixels, and through a layer, for the elements that
map the grid to itself; and through a layer for any element, where the input and the output are turned by splines. The
last one is the acceptance test of QUVA-Lab/escnn, ``check_equivariance`` of ``nn/modules/conv/r2convolution.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from eqconv_cli.backends.steerable.basis import SteerableBasis
from eqconv_cli.backends.steerable.fields import FieldType
from eqconv_cli.backends.steerable.orbits import grid_symmetries, pixel_permutations
from eqconv_cli.backends.steerable.plan import Plan
from eqconv_cli.backends.steerable.sampling import Sampling
from eqconv_cli.maths.planar_groups import Element, Matrix
from eqconv_cli.maths.representations import EXACT

Array = npt.NDArray[Any]
#: x [B, C, H, W] -> y [B, C', H', W'].
Convolve = Callable[[Array], Array]

#: Random points on each ring, beside the nine points of the unit square.
POINTS_PER_RING = 4
#: The side of smooth inputs.
SIDE = 33
#: The order of the splines that turn images.
SPLINE: Final = 2
#: Waves of a smooth input, and the most cycles that one has across the image.
WAVES, CYCLES = 12, 3.0
#: Of escnn's acceptance: pixels that are averaged before and after the layer, and both tolerances.
POOL, TOLERANCE = 5, 0.1


class ElementError(NamedTuple):
    """How far from equivariant something is under one element of the group."""

    element: Element
    #: ||K(g x) - g K(x)|| / ||g K(x)||; the largest number instead of the norm for a basis.
    relative: float
    #: max |K(g x) - g K(x)|.
    maximum: float


class Acceptance(NamedTuple):
    """The acceptance of one element: ``worst`` is the largest |a - b| / (0.1 max(|a|, |b|) + 0.1)."""

    element: Element
    worst: float

    @property
    def passed(self) -> bool:
        """Whether the tolerance holds everywhere."""
        return self.worst < 1


def continuous_errors(
    basis: SteerableBasis, elements: Sequence[Element] | None = None, seed: int = 0
) -> tuple[ElementError, ...]:
    """The constraint of every kernel of a basis, without a grid: at random points near the rings and in a square.

    Args:
        basis: of d kernels.
        elements: of its group; default all test elements.
        seed: of the points.

    Returns:
        For each element the worst of the d kernels, relative to that kernel's largest value.
    """
    space, points = basis.space, _points(basis.sampling, seed)
    # Matrices last, so that the products are matrix products.
    kernels = np.moveaxis(basis.at(points), 3, 1)
    found = []
    for g in space.group.test_elements if elements is None else elements:
        moved = np.moveaxis(basis.at(points @ space.action(g).T), 3, 1)
        expected = basis.out_rep(g) @ kernels @ basis.in_rep(space.group.inverse(g))
        differences = np.abs(moved - expected).max(axis=(1, 2, 3), initial=0)
        largest = np.abs(expected).max(axis=(1, 2, 3), initial=0)
        ratios = [_ratio(float(a), float(b)) for a, b in zip(differences, largest, strict=True)]
        found.append(ElementError(g, max(ratios, default=0.0), float(differences.max(initial=0))))
    return tuple(found)


def grid_errors(plan: Plan, filter: Array) -> tuple[ElementError, ...]:
    """The constraint of a filter on its own pixels, for each symmetry of the grid.

    Args:
        plan: of the layer.
        filter: [out channels, in channels of a group, k, k].

    Raises:
        ValueError: the filter has another shape.
    """
    if tuple(filter.shape) != plan.filter_shape:
        raise ValueError(f"filter has shape {tuple(filter.shape)}: expected {plan.filter_shape}")
    space = plan.out_type.space
    kernel = np.asarray(filter, np.float64).reshape(*plan.filter_shape[:2], -1)
    found = []
    for g, permutation in zip(grid_symmetries(space), pixel_permutations(space, plan.sampling), strict=True):
        expected = np.einsum(
            "po,oix,ij->pjx",
            plan.out_type.matrix(g),
            kernel[..., permutation],
            plan.in_type.matrix(space.group.inverse(g)),
            optimize=True,
        )
        found.append(_error(g, kernel, expected))
    return tuple(found)


def layer_errors(
    convolve: Convolve,
    in_type: FieldType,
    out_type: FieldType,
    x: Array,
    elements: Sequence[Element] | None = None,
    *,
    stride: int = 1,
    margin: int = 0,
) -> tuple[ElementError, ...]:
    """K(g x) against g K(x) for symmetries of the grid: nothing is interpolated, so only rounding may differ.

    Args:
        convolve: K, a layer from ``in_type`` to ``out_type``.
        in_type, out_type: all fields, not those of one group of channels.
        x: [B, in channels, side, side].
        elements: symmetries of the grid; default all of the group.
        stride, margin: of the layer, margin = 2 padding - dilation (k - 1), see :func:`check_side`.

    Raises:
        ValueError: an element is no symmetry of the grid, the image is not square or has other channels, or the layer's
            outputs are not where turned inputs have theirs.
    """
    _check_input(in_type, x, stride, margin)
    space = in_type.space
    chosen = grid_symmetries(space) if elements is None else elements
    for g in chosen:
        if not _moves_pixels(space.action(g)):
            raise ValueError(f"element {tuple(g)} maps pixels between pixels: take rotation_errors for it")
    y = convolve(x)
    return tuple(_error(g, convolve(transformed(x, in_type, g)), transformed(y, out_type, g)) for g in chosen)


def rotation_errors(
    convolve: Convolve,
    in_type: FieldType,
    out_type: FieldType,
    x: Array,
    elements: Sequence[Element] | None = None,
    *,
    stride: int = 1,
    margin: int = 0,
) -> tuple[ElementError, ...]:
    """K(g x) against g K(x) for any elements, on the central disc whose radius is a quarter of the output's side.

    Args:
        convolve, in_type, out_type, stride, margin: as for :func:`layer_errors`.
        x: [B, in channels, side, side], smooth: see :func:`smooth_input`.
        elements: of the group; default all test elements.

    Raises:
        ValueError: the image is not square or has other channels, or the layer's outputs are not where turned inputs
            have theirs.
    """
    _check_input(in_type, x, stride, margin)
    y = convolve(x)
    disc = central_disc(y.shape[-1])
    return tuple(
        _error(g, convolve(transformed(x, in_type, g))[..., disc], transformed(y, out_type, g)[..., disc])
        for g in (in_type.space.group.test_elements if elements is None else elements)
    )


def original_check(
    convolve: Convolve,
    in_type: FieldType,
    out_type: FieldType,
    image: Array,
    kernel_size: int,
    padding: int = 0,
    elements: Sequence[Element] | None = None,
) -> tuple[Acceptance, ...]:
    """escnn's acceptance: the picture at five times the resolution is turned, averaged, convolved and averaged again.

    The output is turned before its average, too. The picture is resized so that both averages come out even, which
    takes 2 padding off, as escnn's main branch does; release 1.0.11 takes off padding once. Its channels are repeated
    until the input type is full.

    Args:
        convolve: of stride 1 and dilation 1.
        in_type, out_type: all fields of the layer.
        image: [channels, height, width], values around [-0.5, 0.5].
        kernel_size, padding: of the layer.
        elements: of the group; default all test elements.

    Raises:
        ValueError: the image has not three axes.
    """
    if image.ndim != 3:
        raise ValueError(f"image has shape {image.shape}: expected [channels, height, width]")
    side = (SIDE * POOL - 1 + kernel_size - 2 * padding) * POOL
    channels = np.resize(np.arange(len(image)), in_type.size)
    x = resized(image, side)[channels][None]
    y = convolve(_pooled(x))
    disc = central_disc(y.shape[-1] // POOL)
    found = []
    for g in in_type.space.group.test_elements if elements is None else elements:
        a = _pooled(transformed(y, out_type, g))[..., disc]
        b = _pooled(convolve(_pooled(transformed(x, in_type, g))))[..., disc]
        tolerance = TOLERANCE * np.maximum(np.abs(a), np.abs(b)) + TOLERANCE
        found.append(Acceptance(g, float((np.abs(a - b) / tolerance).max())))
    return tuple(found)


def check_side(side: int, stride: int, margin: int = 0) -> None:
    """Whether a strided layer keeps the symmetries of the grid of an image with this side.

    The first and the last output pixel must read mirrored inputs, so side - 1 + margin must be a multiple of the stride
    (arXiv 2004.09691, figure 2).

    Raises:
        ValueError: it does not.
    """
    rest = (side - 1 + margin) % stride
    if rest:
        raise ValueError(
            f"side={side} with stride={stride}: the last {rest} rows and columns are read by no output pixel but the "
            f"first ones are, so not even turns by 90 degrees commute with the layer; take side={side - rest} or "
            f"{side - rest + stride}"
        )


def transformed(x: Array, fields: FieldType, g: Element) -> Array:
    """[g f](x) = rho(g) f(g^-1 x): pixels are moved where g maps the grid to itself, else splines are evaluated.

    Args:
        x: [B, channels, side, side]; 0 outside.
        fields: what the channels are.
        g: an element of the group.
    """
    side, action = x.shape[-1], fields.space.action(g)
    # (x, y) = (column - centre, centre - row), and the action is orthogonal: its transpose is its inverse.
    source = action.T[::-1, ::-1] * np.array([[1, -1], [-1, 1]])
    if _moves_pixels(action):
        twice = 2 * np.indices((side, side)).reshape(2, -1) - (side - 1)
        rows, columns = (np.rint(source).astype(int) @ twice + side - 1) // 2
        moved = x[..., rows, columns].reshape(x.shape)
    else:
        centre = np.full(2, (side - 1) / 2)
        offset = centre - source @ centre
        planes = [
            scipy.ndimage.affine_transform(plane, source, offset, order=SPLINE)
            for plane in np.asarray(x, np.float64).reshape(-1, side, side)
        ]
        moved = np.stack(planes).reshape(x.shape)
    return np.einsum("oc,bchw->bohw", fields.matrix(g), moved, optimize=True).astype(x.dtype)


def smooth_input(channels: int, side: int = SIDE, batch: int = 1, seed: int = 0) -> Matrix:
    """Waves of up to 3 cycles across the image under a Gaussian, [B, channels, side, side]."""
    rng = np.random.default_rng(seed)
    at = np.arange(side) - (side - 1) / 2
    rows, columns = np.meshgrid(at, at, indexing="ij")
    shape = (batch, channels, WAVES)
    cycles, heading, phase = (rng.uniform(0, most, shape) for most in (CYCLES, 2 * math.pi, 2 * math.pi))
    along = np.cos(heading)[..., None, None] * columns + np.sin(heading)[..., None, None] * rows
    waves = np.cos(2 * math.pi * cycles[..., None, None] / side * along + phase[..., None, None])
    envelope = np.exp(-(rows**2 + columns**2) / (2 * (side / 6) ** 2))
    return np.asarray(waves.mean(axis=2) * envelope)


def resized(image: Array, side: int) -> Matrix:
    """A picture [channels, height, width] as [channels, side, side], smoothed before pixels are left out."""
    made = np.asarray(image, np.float64)
    scales = [side / extent for extent in made.shape[1:]]
    smoothing = [max(0.0, (1 / scale - 1) / 2) for scale in scales]
    return scipy.ndimage.zoom(
        scipy.ndimage.gaussian_filter(made, (0, *smoothing)), (1, *scales), order=1, mode="nearest", grid_mode=True
    )


def central_disc(side: int) -> npt.NDArray[np.bool_]:
    """Pixels that are nearer to the centre of the image than a quarter of its side, [side, side]."""
    at = np.arange(side) - (side - 1) / 2
    return np.asarray(at[:, None] ** 2 + at**2 < (side / 4) ** 2)


def _points(sampling: Sampling, seed: int) -> Matrix:
    """Random points [n, 2] where the rings are not small, and the nine points of the unit square."""
    rng = np.random.default_rng(seed)
    radii = [np.abs(rng.normal(ring.radius, ring.sigma, POINTS_PER_RING)) for ring in sampling.rings]
    distances = np.concatenate(radii)
    angles = rng.uniform(0, 2 * math.pi, len(distances))
    square = np.array([(x, y) for y in (1.0, 0.0, -1.0) for x in (-1.0, 0.0, 1.0)])
    return np.concatenate([distances[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1), square])


def _moves_pixels(action: Matrix) -> bool:
    return float(np.abs(np.abs(action) - np.rint(np.abs(action))).max()) < EXACT


def _check_input(fields: FieldType, x: Array, stride: int, margin: int) -> None:
    if x.ndim != 4 or x.shape[1] != fields.size or x.shape[2] != x.shape[3]:
        raise ValueError(f"x has shape {x.shape}: expected [B, {fields.size}, side, side]")
    check_side(x.shape[-1], stride, margin)


def _pooled(x: Array) -> Array:
    """Means of 5 x 5 pixels, [B, C, H, W]."""
    b, c, h, w = x.shape
    return np.asarray(x).reshape(b, c, h // POOL, POOL, w // POOL, POOL).mean(axis=(3, 5))


def _error(g: Element, found: Array, expected: Array) -> ElementError:
    difference = np.asarray(found, np.float64) - np.asarray(expected, np.float64)
    size = float(np.linalg.norm(np.asarray(expected, np.float64)))
    return ElementError(g, _ratio(float(np.linalg.norm(difference)), size), float(np.abs(difference).max(initial=0)))


def _ratio(difference: float, size: float) -> float:
    """0 for equal, also where both are 0; infinite where only the difference is not."""
    if size == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / size
