"""Draws block_sparse.png: one mask, and what blocks, listed pixels and submanifold sites compute and read of an image.

Run it from anywhere as ``python docs/images/block_sparse.py``; it needs ``eqconv[plots]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from eqconv_cli.backends.block_sparse import masks
from eqconv_cli.backends.block_sparse.geometry import Pair, block_params
from eqconv_cli.numpy import reduce_mask

Array = npt.NDArray[Any]

HEIGHT, WIDTH, SPARSITY, SEED = 21, 30, 0.86, 5
BLOCK, KERNEL = 7, 3
PAPER, READ, COMPUTED, MASK, INK = "#f4f6f8", "#cfe0ef", "#7fb0d8", "#1f5f99", "#222222"
OUTLINE = "#e0762b"


def main() -> None:
    """Draw the figure beside this file."""
    mask = masks.blobs(np.random.default_rng(SEED), HEIGHT, WIDTH, SPARSITY) > 0
    figure = Figure(figsize=(12.4, 3.9), layout="constrained", facecolor="white")
    first, second, third = figure.subplots(1, 3)
    draw_blocks(first, mask)
    draw_pixels(second, mask)
    draw_sites(third, mask)
    figure.legend(
        handles=[
            Patch(color=MASK, label="mask"),
            Patch(color=COMPUTED, label="computed beside the mask"),
            Patch(color=READ, label="only read"),
            Patch(facecolor=PAPER, edgecolor="#c4c9cf", label="not touched"),
        ],
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=10,
    )
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=130)


def draw_blocks(axes: Axes, mask: Array) -> None:
    """The tiles of the active blocks, and the window that one of them reads."""
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
    _, i, j = rows[len(rows) // 2]
    outline(axes, params.boffset[0] + tile * i, params.boffset[1] + tile * j, BLOCK, OUTLINE, 2.2)


def draw_pixels(axes: Axes, mask: Array) -> None:
    """The listed pixels and their surroundings, and the window of one of them."""
    shade(axes, mask, mask, dilated(mask), f"Masked pixels: {mask.sum()} of {mask.size}")
    h, w = np.argwhere(mask)[mask.sum() // 2]
    outline(axes, h - 1, w - 1, KERNEL, OUTLINE, 2.2)


def draw_sites(axes: Axes, mask: Array) -> None:
    """The sites alone, and the neighbours that one of them has among them."""
    shade(axes, mask, mask, mask, f"Submanifold sites: {mask.sum()}, the rest counts as 0")
    edge = next((h, w) for h, w in np.argwhere(mask) if 3 <= mask[h - 1 : h + 2, w - 1 : w + 2].sum() <= 6)
    for h in range(edge[0] - 1, edge[0] + 2):
        for w in range(edge[1] - 1, edge[1] + 2):
            if mask[h, w]:
                outline(axes, h, w, 1, OUTLINE, 2.2)


def covered(size: Pair, stride: Pair, offset: Pair, at: Pair) -> list[slice]:
    """The part of a window that is inside the image."""
    starts = [o + s * k for o, s, k in zip(offset, stride, at, strict=True)]
    return [slice(max(start, 0), start + extent) for start, extent in zip(starts, size, strict=True)]


def dilated(mask: Array) -> Array:
    """The mask and its eight neighbours."""
    padded = np.pad(mask, 1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (KERNEL, KERNEL))
    grown: Array = windows.any(axis=(2, 3))
    return grown


def shade(axes: Axes, mask: Array, computed: Array, read: Array, title: str) -> None:
    """One colour a pixel: untouched, read, computed, mask."""
    level = np.maximum.reduce([read * 1, computed * 2, mask * 3])
    axes.imshow(level, cmap=ListedColormap([PAPER, READ, COMPUTED, MASK]), vmin=0, vmax=3, aspect="equal")
    axes.set_title(title, loc="left", fontsize=12, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#c4c9cf")


def outline(axes: Axes, h: int, w: int, size: int, color: str, width: float) -> None:
    """A square of pixels, from the pixel (h, w) on."""
    axes.add_patch(Rectangle((w - 0.5, h - 0.5), size, size, fill=False, edgecolor=color, linewidth=width))


if __name__ == "__main__":
    main()
