"""The compiled kernels for NumPy arrays, called through ctypes: one function for each operation of the contract.

Arrays come in checked, C-contiguous and of one real dtype; results are new arrays unless an output is given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli import kernels
from eqconv_cli.backends.block_sparse.arguments import Window
from eqconv_cli.backends.block_sparse.geometry import Pair, paddings
from eqconv_cli.backends.block_sparse.options import Flag, Fused
from eqconv_cli.kernels.doors import missing_kernels

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int32]


def missing(settings: Fused) -> list[str]:
    """Why NumPy cannot have something computed by the compiled kernels; empty when it can."""
    return list(missing_kernels(settings.core or "cpu"))


class ImageSites(NamedTuple):
    """A convolution at output pixels of an image: the image form of ``eqc_sites``."""

    #: (N, H, W) of the input.
    image: tuple[int, int, int]
    #: (N, Hout, Wout).
    grid: tuple[int, int, int]
    kernel: Pair
    strides: Pair
    padding: str
    #: int32 [P], flat positions in the grid.
    pixels: Ints

    def fields(self) -> dict[str, Any]:
        """What the struct says about the sites."""
        (images, height, width), (_, out_height, out_width) = self.image, self.grid
        front = [
            paddings(n, k, s, self.padding)[0]
            for n, k, s in zip(self.image[1:], self.kernel, self.strides, strict=True)
        ]
        return {
            "sites": len(self.pixels),
            "taps": self.kernel[0] * self.kernel[1],
            "in_rows": images * height * width,
            "out_rows": images * out_height * out_width,
            "images": images,
            "height": height,
            "width": width,
            "out_height": out_height,
            "out_width": out_width,
            **_pairs("kernel", self.kernel),
            **_pairs("stride", self.strides),
            "pad_height": front[0],
            "pad_width": front[1],
            **_pairs("dilation", (1, 1)),
            "site": self.pixels,
        }


class TableSites(NamedTuple):
    """A convolution by a table of neighbours: the table form of ``eqc_sites``."""

    in_rows: int
    #: int32 [M_out, taps].
    table: Ints
    #: int32 [in_rows, taps], or None to have it made for a backward pass.
    inverse: Ints | None = None

    def fields(self) -> dict[str, Any]:
        """What the struct says about the sites."""
        rows, taps = self.table.shape
        return {"sites": rows, "taps": taps, "in_rows": self.in_rows, "out_rows": rows, "table": self.table}


def mask_blocks(
    mask: Array, bcount: Pair, at: Window, tol: float, avgpool: bool, on_empty: str, settings: Fused
) -> Ints:
    """Rows (image, i, j) of the active windows of a mask [N, H, W], float or bool; int32 [B, 3]."""
    flags = Flag.AVERAGE * avgpool + Flag.FIRST * (on_empty == "first")
    return _mask("mask_blocks", mask, bcount, at, tol, flags, 3, settings)


def mask_pixels(mask: Array, grid: Pair, at: Window, tol: float, settings: Fused) -> Ints:
    """Flat positions, in the grid of windows, of the active windows of a mask [N, H, W]; int32 [P]."""
    return _mask("mask_pixels", mask, grid, at, tol, 0, 1, settings).reshape(-1)


def _mask(
    operation: str, mask: Array, grid: Pair, at: Window, tol: float, flags: int, columns: int, settings: Fused
) -> Ints:
    images, height, width = mask.shape
    found, count = np.empty((images * grid[0] * grid[1], columns), np.int32), np.empty(1, np.int32)
    given = {"bytes": mask.view(np.uint8)} if mask.dtype == bool else {"mask": mask}
    fields = {
        "images": images,
        "height": height,
        "width": width,
        "grid_height": grid[0],
        "grid_width": grid[1],
        **_window(at),
        "tolerance": float(tol),
        "index": found,
        "count": count,
        **given,
    }
    _call(operation, np.dtype(np.float32) if mask.dtype == bool else mask.dtype, fields, flags, settings)
    return found[: count[0]].copy()


def block_gather(x: Array, rows: Ints, at: Window, transpose: bool, settings: Fused, owned: bool = False) -> Array:
    """The windows of the rows; with ``owned`` 0 at pixels that a later row covers, too."""
    channels = x.shape[3]
    shape = (len(rows), channels, *at.size) if transpose else (len(rows), *at.size, channels)
    blocks = np.empty(shape, x.dtype)
    flags = Flag.TRANSPOSE * transpose + Flag.OWNED * owned
    _call("block_gather", x.dtype, {**_blocks(x.shape, rows, at), "x": x, "blocks": blocks}, flags, settings)
    return blocks


def block_scatter(
    blocks: Array | None,
    rows: Ints,
    base: Array | None,
    y: Array,
    at: Window,
    add: bool,
    transpose: bool,
    settings: Fused,
) -> Array:
    """Write or add blocks to the base into ``y``, which may be the base; no blocks and no base stand for zeros."""
    flags = Flag.TRANSPOSE * transpose + Flag.ADD * add
    fields = {**_blocks(y.shape, rows, at), "blocks_in": blocks, "base": base, "y": y}
    _call("block_scatter", y.dtype, fields, flags, settings)
    return y


def block_pixels(grid: tuple[int, int, int], rows: Ints, at: Window, settings: Fused) -> Ints:
    """Flat positions that at least one window of the rows covers, ascending; int32 [P]."""
    pixels, count = np.empty(int(np.prod(grid)), np.int32), np.empty(1, np.int32)
    fields = {**_blocks((*grid, 1), rows, at), "pixels": pixels, "pixel_count": count}
    _call("block_pixels", np.dtype(np.float32), fields, 0, settings)
    return pixels[: count[0]].copy()


def site_forward(
    x: Array, w: Array, bias: Array | None, sites: ImageSites | TableSites, relu: bool, y: Array, settings: Fused
) -> Array:
    """The convolution at the sites, written to rows of ``y``; the other rows stay.

    Args:
        x: [in_rows, C], any leading shape.
        w: [taps, C, K], any leading shape.
        bias: [K] or None.
        sites: where.
        relu: whether to return max(y, 0).
        y: [out_rows, K], any leading shape.
        settings: of the kernels.
    """
    fields = {**sites.fields(), "channels": w.shape[-2], "filters": w.shape[-1], "x": x, "w": w, "bias": bias, "y": y}
    _call("site_forward", x.dtype, fields, Flag.RELU * relu, settings)
    return y


def site_backward(
    dy: Array, x: Array, w: Array, y: Array | None, sites: ImageSites | TableSites, settings: Fused
) -> tuple[Array, Array, Array]:
    """Gradients of x, w and the bias; ``y`` is the result when it went through ReLU."""
    dx, dw, db = np.empty_like(x), np.empty_like(w), np.empty(w.shape[-1], w.dtype)
    fields = {
        **sites.fields(),
        "channels": w.shape[-2],
        "filters": w.shape[-1],
        "x": x,
        "w": w,
        "y": y,
        "dy": dy,
        "dx": dx,
        "dw": dw,
        "db": db,
    }
    if isinstance(sites, TableSites):
        fields["inverse"] = sites.inverse
    _call("site_backward", x.dtype, fields, Flag.RELU * (y is not None), settings)
    return dx, dw, db


def residual_forward(
    x: Array, pixels: Ints, folded: dict[str, Array], bottleneck: int, original: bool, y: Array, settings: Fused
) -> Array:
    """The residual unit at the pixels, written to ``y``, which is not x; the other pixels stay.

    Args:
        x: [N, H, W, C].
        pixels: int32 [P], ascending.
        folded: ``w1``, ``w2``, ``w3`` and the normalisations as ``scale1``, ``shift1`` and so on.
        bottleneck: M.
        original: the border as SBNet has it.
        y: [N, H, W, C].
        settings: of the kernels.
    """
    images, height, width, channels = x.shape
    fields = {
        "images": images,
        "height": height,
        "width": width,
        "channels": channels,
        "bottleneck": bottleneck,
        "sites": len(pixels),
        "site": pixels,
        "x": x,
        **folded,
        "y": y,
    }
    _call("residual_forward", x.dtype, fields, Flag.ORIGINAL * original, settings)
    return y


def _call(operation: str, dtype: np.dtype[Any], fields: dict[str, Any], flags: int, settings: Fused) -> None:
    general = {"flags": flags + settings.processor_flags, "threads": settings.threads}
    kernels.core(settings.core or "cpu").call(operation, dtype, {**fields, **general})


def _blocks(shape: tuple[int, ...], rows: Ints, at: Window) -> dict[str, Any]:
    images, height, width, channels = shape
    sizes = {"images": images, "height": height, "width": width, "channels": channels, "rows": len(rows)}
    return {**sizes, **_window(at), "index": rows}


def _window(at: Window) -> dict[str, int]:
    return {**_pairs("window", at.size), **_pairs("stride", at.stride), **_pairs("offset", at.offset)}


def _pairs(name: str, pair: Pair) -> dict[str, int]:
    return {f"{name}_height": pair[0], f"{name}_width": pair[1]}
