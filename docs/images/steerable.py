"""Draws steerable.png: kernels of a basis, a filter that weights make of them, and an output that turns with its input.

Run it from anywhere as ``python docs/images/steerable.py``; it needs ``eqconv[plots]``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from eqconv_cli.backends.steerable.basis import build_basis
from eqconv_cli.backends.steerable.equivariance import smooth_input, transformed
from eqconv_cli.backends.steerable.fields import Space
from eqconv_cli.backends.steerable.numpy_expansion import expand
from eqconv_cli.backends.steerable.plan import make_plan
from eqconv_cli.maths.planar_groups import Element
from eqconv_cli.maths.representations import regular, trivial

Array = npt.NDArray[Any]

SIZE, SEED = 9, 5
INK, ARROWS = "#222222", "#1f5f99"
COLOURS = "RdBu_r"
SIDE, EVERY, TURN = 41, 4, math.radians(50)
#: Arrows for the axes' width, were an output as large as it can be.
ARROW = 2.0


def main() -> None:
    """Draw the figure beside this file."""
    figure = Figure(figsize=(12.4, 4.0), facecolor="white")
    first, second, third = figure.subfigures(1, 3, width_ratios=(1.0, 0.95, 1.75))
    draw_basis(first)
    draw_filter(second)
    draw_turn(third)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


def draw_basis(figure: SubFigure) -> None:
    """The kernels of the outer rings that the first of eight channels has, for a scalar input."""
    figure.suptitle("Kernels of the basis", x=0.04, ha="left", fontsize=12, color=INK)
    space = Space.of("C8")
    basis = build_basis(space, trivial(space.group), regular(space.group), SIZE)
    chosen = [e for e in basis.elements if e.ring in (1, 2, 3) and e.gamma == 0][:9]
    for number, element in enumerate(chosen):
        axes = figure.add_axes((0.04 + 0.31 * (number % 3), 0.62 - 0.29 * (number // 3), 0.28, 0.26))
        show(axes, basis.dense[element.idx, 0, 0].reshape(SIZE, SIZE))


def draw_filter(figure: SubFigure) -> None:
    """The eight channels of one field: one kernel and its turns."""
    figure.suptitle("Random weights: a filter to C8", x=0.04, ha="left", fontsize=12, color=INK)
    space = Space.of("C8")
    plan = make_plan(space.trivial_fields(1), space.regular_fields(1), SIZE)
    kernels = expand(plan, np.random.default_rng(SEED).normal(size=plan.weights_size))
    for number, kernel in enumerate(kernels[:, 0]):
        x, y = (0.47 + 0.36 * math.cos(number * math.pi / 4), 0.44 + 0.33 * math.sin(number * math.pi / 4))
        show(figure.add_axes((x - 0.1, y - 0.1, 0.2, 0.2)), kernel, np.abs(kernels).max())


def draw_turn(figure: SubFigure) -> None:
    """A vector field made of a scalar one, and what comes of the turned input."""
    figure.suptitle("SO(2): turn the input, and the vectors turn with it", x=0.02, ha="left", fontsize=12, color=INK)
    space = Space.of("SO(2)")
    plan = make_plan(space.trivial_fields(1), space.fields("irrep:1"), SIZE)
    weights = np.random.default_rng(SEED).normal(size=plan.weights_size)
    kernels = expand(plan, weights)[:, 0]
    x = smooth_input(1, SIDE, seed=SEED)
    limit = None
    for number, image in enumerate((x, transformed(x, plan.in_type, Element(0, TURN)))):
        axes = figure.add_axes((0.02 + 0.49 * number, 0.06, 0.47, 0.82))
        limit = np.abs(image).max() if limit is None else limit
        show(axes, image[0, 0], limit)
        vectors(axes, image[0, 0], kernels)


def vectors(axes: Axes, image: Array, kernels: Array) -> None:
    """The vector field as arrows, y up."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, SIZE // 2), (SIZE, SIZE))
    field = np.einsum("hwij,oij->ohw", windows, kernels)
    at = np.arange(EVERY // 2, SIDE, EVERY)
    columns, rows = np.meshgrid(at, at)
    longest = np.hypot(*kernels.reshape(2, -1)).sum() * np.abs(image).max()
    u, v = field[0][rows, columns], field[1][rows, columns]
    axes.quiver(columns, rows, u, v, color=ARROWS, pivot="mid", width=0.006, scale=longest / ARROW)


def show(axes: Axes, image: Array, most: float | None = None) -> None:
    """White at 0."""
    limit = np.abs(image).max() if most is None else most
    axes.imshow(image, cmap=COLOURS, vmin=-limit, vmax=limit)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#c4c9cf")


if __name__ == "__main__":
    main()
