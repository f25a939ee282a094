"""Draws block_sparse.png: one mask, and what blocks, listed pixels and submanifold sites compute and read of an image.

Run it from anywhere as ``python docs/images/block_sparse.py``; it needs ``eqconv[plots]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from eqconv_cli.backends.block_sparse.geometry import block_params
from eqconv_cli.numpy import reduce_mask

Array = npt.NDArray[Any]

HEIGHT, WIDTH, SPARSITY, SMOOTHNESS, SEED = 25, 36, 0.86, 2.2, 7
BLOCK, KERNEL = 7, 3
PAPER, READ, COMPUTED, MASK, INK = "#f4f6f8", "#cfe0ef", "#7fb0d8", "#1f5f99", "#222222"
OUTLINE = "#e0762b"


def main() -> None:
    """Draw the figure beside this file."""
    mask = blobs()
    at = edge_pixel(mask)
    figure = Figure(figsize=(12.4, 3.9), layout="constrained", facecolor="white")
    first, second, third = figure.subplots(1, 3)
    draw_blocks(first, mask, at)
    draw_pixels(second, mask, at)
    draw_sites(third, mask, at)
    figure.legend(
        handles=[
            Patch(color=MASK, label="mask"),
            Patch(color=COMPUTED, label="computed beside the mask"),
            Patch(color=READ, label="only read"),
            Patch(facecolor=PAPER, edgecolor="#c4c9cf", label="not touched"),
            Patch(facecolor="white", edgecolor=OUTLINE, linewidth=2.2, label="read by one block, pixel, site"),
        ],
        loc="outside lower center",
        ncols=5,
        frameon=False,
        fontsize=10,
    )
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


def blobs() -> Array:
    """Connected areas: smoothed noise above its quantile."""
    noise = np.random.default_rng(SEED).normal(size=(HEIGHT, WIDTH))
    smooth = scipy.ndimage.gaussian_filter(noise, SMOOTHNESS)
    return np.asarray(smooth > np.quantile(smooth, SPARSITY))


def draw_blocks(axes: Axes, mask: Array, at: tuple[int, int]) -> None:
    """The tiles of the active blocks, and the window of the one that holds the pixel ``at``."""
    params = block_params((HEIGHT, WIDTH), (BLOCK, BLOCK), (KERNEL, KERNEL))
    index = reduce_mask(
        mask[None], params.bcount, bsize=params.bsize, bstride=params.bstrides, boffset=params.boffset, tol=0.0
    )
    rows = index.active_block_indices
    computed, read = np.zeros_like(mask), np.zeros_like(mask)
    for _, i, j in rows:
        computed[tuple(covered(params.bsize_out, params.bsize_out, (0, 0), (i, j)))] = True
        read[tuple(covered(params.bsize, params.bstrides, params.boffset, (i, j)))] = True
    shade(axes, mask, computed, read, f"Sparse blocks: {len(rows)} of {np.prod(params.bcount)}")
    tile = params.bsize_out[0]
    for i in range(params.bcount[0]):
        for j in range(params.bcount[1]):
            outline(axes, tile * i, tile * j, tile, "#ffffff", 1.6)
    first, second = (o + tile * (p // tile) for o, p in zip(params.boffset, at, strict=True))
    outline(axes, first, second, BLOCK)


def draw_pixels(axes: Axes, mask: Array, at: tuple[int, int]) -> None:
    """The listed pixels and their surroundings, and the window of one of them."""
    shade(axes, mask, mask, dilated(mask), f"Masked pixels: {mask.sum()} of {mask.size}")
    outline(axes, at[0] - 1, at[1] - 1, KERNEL)


def draw_sites(axes: Axes, mask: Array, at: tuple[int, int]) -> None:
    """The sites alone, and those among them that one of them reads."""
    shade(axes, mask, mask, mask, f"Submanifold sites: {mask.sum()}, the rest counts as 0")
    for h, w in np.argwhere(mask):
        if max(abs(h - at[0]), abs(w - at[1])) <= 1:
            outline(axes, h, w, 1)


def edge_pixel(mask: Array) -> tuple[int, int]:
    """A pixel of the mask, away from the image's edge, with some of its eight neighbours in the mask and some not."""
    active = np.argwhere(mask)
    around = [int(mask[h - 1 : h + 2, w - 1 : w + 2].sum()) for h, w in active]
    inside = [
        (int(h), int(w)) for (h, w), n in zip(active, around, strict=True) if 5 <= n <= 6 and BLOCK < h < HEIGHT - BLOCK
    ]
    return inside[len(inside) // 2]


def covered(
    size: tuple[int, int], stride: tuple[int, int], offset: tuple[int, int], at: tuple[int, int]
) -> list[slice]:
    """The part of a window that is inside the image."""
    starts = [o + s * k for o, s, k in zip(offset, stride, at, strict=True)]
    return [slice(max(start, 0), start + extent) for start, extent in zip(starts, size, strict=True)]


def dilated(mask: Array) -> Array:
    """The mask and its eight neighbours."""
    padded = np.pad(mask, 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (KERNEL, KERNEL))
    return np.asarray(windows.any(axis=(2, 3)))


def shade(axes: Axes, mask: Array, computed: Array, read: Array, title: str) -> None:
    """One colour a pixel: untouched, read, computed, mask."""
    level = np.maximum.reduce([read * 1, computed * 2, mask * 3])
    axes.imshow(level, cmap=ListedColormap([PAPER, READ, COMPUTED, MASK]), vmin=0, vmax=3, aspect="equal")
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#c4c9cf")


def outline(axes: Axes, h: int, w: int, size: int, color: str = OUTLINE, width: float = 2.2) -> None:
    """A square of pixels, from the pixel (h, w) on."""
    axes.add_patch(Rectangle((w - 0.5, h - 0.5), size, size, fill=False, edgecolor=color, linewidth=width))


if __name__ == "__main__":
    main()
