"""Draws feature_steered.png: a neighbourhood of a real mesh, its shares of M = 3 weight matrices, and what follows.

Run it from anywhere as ``python docs/images/feature_steered.py``; it needs ``eqconv[plots,data]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Wedge

from eqconv_cli.backends.feature_steered.meshes import mesh_graph
from eqconv_cli.backends.feature_steered.problems import packaged_mesh

Array = npt.NDArray[Any]

COLORS = ("#2a78b5", "#e0762b", "#3f9b52")
INK, FAINT, PAPER = "#222222", "#c4c9cf", "#f4f6f8"
MATRICES = len(COLORS)
#: A vertex with seven neighbours all around it at about the same distance.
CENTRE = 3288
STEEPNESS = 1.5


def main() -> None:
    """Draw the figure beside this file."""
    places, triangles, neighbors = patch()
    shares = assignment(places, neighbors)
    figure = Figure(figsize=(12.4, 4.9), layout=ConstrainedLayoutEngine(wspace=0.06), facecolor="white")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.05, 0.72, 1.25))
    draw_patch(left, places, triangles, neighbors, shares)
    draw_shares(middle, shares)
    draw_flow(right)
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


def patch() -> tuple[Array, Array, Array]:
    """The surroundings of the centre in its tangent plane: places [V, 2], triangles [T, 3], neighbours of vertex 0."""
    vertices, triangles = packaged_mesh("pymeshlab", "tests/sample_meshes/bunny10k_textured.obj")
    pairs, _ = mesh_graph(len(vertices), triangles)

    def around(some: Array) -> Array:
        return np.unique(pairs[np.isin(pairs[:, 0], some), 1])

    ring = around(np.array([CENTRE]))
    near = np.concatenate([[CENTRE], np.setdiff1d(around(around(ring)), [CENTRE])])
    offsets = vertices[near] - vertices[CENTRE]
    inner = offsets[np.isin(near, ring)]
    axes = np.linalg.svd(inner - inner.mean(axis=0))[2][:2]
    places = offsets @ axes.T
    places /= np.linalg.norm(places[np.isin(near, ring)], axis=1).mean() * len(ring) / (len(ring) - 1)
    number = np.full(len(vertices), -1)
    number[near] = np.arange(len(near))
    inside = number[triangles]
    neighbors = number[ring[ring != CENTRE]]
    angle = np.arctan2(*places[neighbors].T[::-1])
    return places, inside[(inside >= 0).all(axis=1)], neighbors[np.argsort(-angle)]


def assignment(places: Array, neighbors: Array) -> Array:
    """q_ijm for the centre itself and then its neighbours [degree + 1, M]: three directions u_m on x_i - x_j."""
    angles = np.deg2rad([90, 210, 330])
    u = STEEPNESS * np.stack([np.cos(angles), np.sin(angles)])
    logits = -np.concatenate([np.zeros((1, 2)), places[neighbors]]) @ u
    exponentials = np.exp(logits)
    shares: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def draw_patch(axes: Axes, places: Array, triangles: Array, neighbors: Array, shares: Array) -> None:
    """The mesh, the edges of the centre in the colour of their largest share, and the shares as pies."""
    axes.set_title("A vertex i and its neighbours j on a mesh", loc="left", fontsize=12, color=INK)
    sides = places[triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)]
    axes.add_collection(LineCollection(list(sides), colors=FAINT, linewidths=0.8, zorder=1))
    for number, (j, q) in enumerate(zip(neighbors, shares[1:], strict=True), start=1):
        axes.plot(*np.stack([places[0], places[j]]).T, color=COLORS[int(q.argmax())], linewidth=3.2, zorder=2)
        draw_pie(axes, places[j], q, radius=0.17)
        x, y = places[j] * (1 + 0.30 / np.linalg.norm(places[j]))
        axes.text(x, y, str(number), ha="center", va="center", fontsize=10, color=INK)
    draw_pie(axes, places[0], shares[0], radius=0.20)
    axes.text(-0.31, -0.06, "i", ha="center", va="center", fontsize=14, style="italic", color=INK)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlim(-1.5, 1.5, auto=True)
    axes.set_ylim(-1.5, 1.5, auto=True)
    axes.set_axis_off()


def draw_pie(axes: Axes, place: Array, q: Array, radius: float) -> None:
    """The shares of one edge as a pie."""
    turns = 90 - 360 * np.concatenate([[0.0], np.cumsum(q)])
    axes.add_patch(Circle(tuple(place), radius * 1.14, color="white", zorder=3))
    for color, start, end in zip(COLORS, turns[:-1], turns[1:], strict=True):
        axes.add_patch(Wedge(tuple(place), radius, end, start, facecolor=color, edgecolor="white", lw=0.6, zorder=4))


def draw_shares(axes: Axes, shares: Array) -> None:
    """The same shares as bars, one row an edge."""
    axes.set_title("softmax over m, edge by edge", loc="left", fontsize=12, color=INK)
    left = np.zeros(len(shares))
    for m, color in enumerate(COLORS):
        axes.barh(np.arange(len(shares)), shares[:, m], left=left, color=color, height=0.66, edgecolor="white")
        left += shares[:, m]
    axes.set_yticks(range(len(shares)), ["i → i", *(f"j = {k}" for k in range(1, len(shares)))], fontsize=10)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=9)
    axes.set_xlabel(r"$q_{ijm}$, the shares of $W_1, W_2, W_3$", fontsize=11)
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_flow(axes: Axes) -> None:
    """From the shares to the output: M weighted sums, M matrices, one sum."""
    axes.set_title("M weighted sums, M matrices, one output", loc="left", fontsize=12, color=INK)
    axes.set(xlim=(0, 10), ylim=(0, 10))
    axes.set_axis_off()
    box(axes, (0.1, 4.1), 1.75, 1.8, "features\n$x_j$", INK)
    for m, (color, y) in enumerate(zip(COLORS, (8.0, 5.0, 2.0), strict=True), start=1):
        arrow(axes, (1.85, 5.0), (2.57, y), color)
        box(axes, (2.6, y - 0.9), 3.15, 1.8, rf"$z_{m} = \sum_j w_{{ij}}\, q_{{ij{m}}}\, x_j$", color)
        arrow(axes, (5.75, y), (6.3, y), color)
        box(axes, (6.35, y - 0.9), 1.35, 1.8, rf"$W_{m}^\top z_{m}$", color)
        arrow(axes, (7.7, y), (8.38, 5.0 + 0.12 * (y - 5.0)), color)
    box(axes, (8.4, 4.1), 1.5, 1.8, "+  b\n$y_i$", INK)
    axes.text(
        5.0, 0.15, r"$y_i = b + \sum_m W_m^\top \sum_{j} w_{ij}\, q_{ijm}\, x_j$", ha="center", fontsize=12, color=INK
    )


def box(axes: Axes, corner: tuple[float, float], width: float, height: float, text: str, color: str) -> None:
    """A rounded box with a text in it."""
    style = "round,pad=0,rounding_size=0.25"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=PAPER, edgecolor=color, lw=1.8))
    x, y = corner[0] + width / 2, corner[1] + height / 2
    axes.text(x, y, text, ha="center", va="center", fontsize=11.5, color=INK, linespacing=1.4)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    """A thin arrow."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=color, lw=1.5, shrinkB=0))


if __name__ == "__main__":
    main()
