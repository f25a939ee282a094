"""Convolutions of an image at some of its pixels, in NumPy: on blocks, on lists of pixels, and dense for comparison.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018, section 3.2; uber-research/sbnet ``benchmark/sparse_conv_lib.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.block_sparse import arguments, cost_model, numpy_fused
from eqconv_cli.backends.block_sparse.geometry import (
    BlockParams,
    Pair,
    block_params,
    check_padding,
    kernel_pair,
    paddings,
    strides_pair,
)
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.numpy_ops import (
    block_pixels,
    check_plain_image,
    listed_pixels,
    out_grid,
    pixel_index,
    plain_image,
    plain_mask,
    reduce_mask,
    sparse_gather,
    sparse_scatter_var,
)
from eqconv_cli.backends.block_sparse.options import Fused, kernels_or

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int32]

#: "blocks" gathers the blocks, convolves them and scatters them.
BLOCK_COMPOSITIONS = ("blocks",)
#: "dense" computes everything and keeps the listed pixels; "matmul" multiplies the pixels' patches, one row each;
#: "blocks" computes the tiles that hold a listed pixel; "upsample" does that through lists of all their pixels;
#: "rulebook" gathers, multiplies and adds tap by tap.
PIXEL_COMPOSITIONS = ("matmul", "dense", "blocks", "upsample", "rulebook")


class Layer(NamedTuple):
    """A convolution with everything but the choice of its pixels, checked."""

    x: Array
    w: Array
    bias: Array | None
    relu: bool
    strides: Pair
    padding: str
    #: (N, Hout, Wout).
    grid: tuple[int, int, int]

    def finished(self, y: Array) -> Array:
        """Bias and activation, in place."""
        if self.bias is not None:
            y += self.bias
        return np.maximum(y, 0, out=y) if self.relu else y

    def padded(self, value: float = 0.0) -> Array:
        """The image with what the convolution puts around it."""
        around = [
            paddings(n, k, s, self.padding)
            for n, k, s in zip(self.x.shape[1:3], self.w.shape[:2], self.strides, strict=True)
        ]
        return np.pad(self.x, ((0, 0), *around, (0, 0)), constant_values=value) if any(map(any, around)) else self.x


def sparse_conv2d(
    x: Array,
    w: Array,
    index: BlockIndex,
    params: BlockParams,
    *,
    base: str | Array = "zeros",
    strides: Sequence[int] = (1, 1),
    bias: Array | None = None,
    activation: str | None = None,
    out: Array | None = None,
    version: str | Fused = "auto",
) -> Array:
    """The convolution in the tiles of the active blocks, the base elsewhere.

    Args:
        x: [N, H, W, C] float32 or float64.
        w: [kh, kw, C, K].
        index: active blocks, in any order.
        params: geometry, from ``block_params`` for this image, kernel and stride.
        base: values of the other pixels: "zeros", "input" (x itself; needs K = C and an output of the input's size) or
            an array [N, Hout, Wout, K].
        strides: as ``params`` was made with.
        bias: [K] or None.
        activation: None or "relu", both in the tiles only.
        out: an array [N, Hout, Wout, K] to write the tiles to; what is there elsewhere is the base then.
        version: "blocks" (gather, convolve, scatter), "fused" (``eqconv build-kernels``: at once, pixel by pixel), or
            "auto".

    Returns:
        [N, Hout, Wout, K]; ``out`` if it was given.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed; params do not fit the image.
        IndexError: a row names an image that there is not, or a negative number.
        Unavailable: version is "fused" and the kernels are not built.
    """
    layer = _layer(x, w, bias, activation, strides, _padding_of(x, w, params, strides))
    how = kernels_or(version, BLOCK_COMPOSITIONS, numpy_fused.missing)
    y = _destination(layer, base, out)
    if isinstance(how, Fused):
        return _fused_at(layer, listed_pixels(block_pixels(index, params, x.shape[0], how)), y, how)
    blocks = sparse_gather(
        layer.x, index, bsize=params.bsize, bstride=params.bstrides, boffset=params.boffset, version="indexed"
    )
    tiles = layer.finished(valid_conv2d(blocks, layer.w, layer.strides, params.bsize_out))
    tile = params.bsize_out
    return sparse_scatter_var(tiles, index, y, bsize=tile, bstride=tile, add=False, version="indexed")


def sparse_conv2d_gradients(
    dy: Array,
    x: Array,
    w: Array,
    index: BlockIndex,
    params: BlockParams,
    *,
    strides: Sequence[int] = (1, 1),
    bias: Array | None = None,
    activation: str | None = None,
    version: str | Fused = "auto",
) -> dict[str, Array]:
    """The gradients of ``x``, ``w``, ``base`` (an array) and, if it is given, ``bias`` from that of the result.

    Args, Raises: as for :func:`sparse_conv2d`; ``dy`` is [N, Hout, Wout, K]. Every composition has the same gradient.
    """
    padding = _padding_of(x, w, params, strides)
    kernels_or(version, BLOCK_COMPOSITIONS, numpy_fused.missing)
    pixels = block_pixels(index, params, x.shape[0])
    return masked_conv2d_gradients(
        dy, x, w, pixels, strides=strides, padding=padding, bias=bias, activation=activation, version=version
    )


def masked_conv2d(
    x: Array,
    w: Array,
    pixels: PixelIndex,
    *,
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    base: str | Array = "zeros",
    bias: Array | None = None,
    activation: str | None = None,
    out: Array | None = None,
    version: str | Fused = "auto",
) -> Array:
    """The convolution exactly at the listed output pixels, the base elsewhere.

    Args:
        x: [N, H, W, C] float32 or float64.
        w: [kh, kw, C, K].
        pixels: of the output, see :func:`pixel_index` and :func:`block_pixels`.
        strides: two numbers or TensorFlow's four.
        padding: "SAME" or "VALID".
        base, bias, activation, out: as for :func:`sparse_conv2d`, pixel by pixel.
        version: "dense", "matmul", "blocks", "upsample", "rulebook", "fused" (``eqconv build-kernels``), or "auto",
            which takes what :func:`cost_model.choose` says.

    Returns:
        [N, Hout, Wout, K]; ``out`` if it was given.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed; pixels of another grid.
        IndexError: a position outside the grid.
        Unavailable: version is "fused" and the kernels are not built.
    """
    layer = _layer(x, w, bias, activation, strides, padding)
    listed = _pixels_of(pixels, layer)
    how = kernels_or(version, PIXEL_COMPOSITIONS, numpy_fused.missing)
    y = _destination(layer, base, out)
    if isinstance(how, Fused):
        return _fused_at(layer, listed, y, how)
    if version == "auto":
        how = cost_model.choose(sizes_of(layer, listed), "numpy", fused=False).version
    if len(listed):
        y.reshape(-1, y.shape[3])[listed] = _ROUTES[how](layer, listed)
    return y


def masked_conv2d_gradients(
    dy: Array,
    x: Array,
    w: Array,
    pixels: PixelIndex,
    *,
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    bias: Array | None = None,
    activation: str | None = None,
    version: str | Fused = "auto",
) -> dict[str, Array]:
    """The gradients of ``x``, ``w``, ``base`` (an array) and, if it is given, ``bias`` from that of the result.

    Args, Raises: as for :func:`masked_conv2d`; ``dy`` is [N, Hout, Wout, K]. Every composition has the same gradient,
    which is computed from the pixels' patches.
    """
    layer = _layer(x, w, bias, activation, strides, padding)
    listed = _pixels_of(pixels, layer)
    cotangent = plain_image("dy", dy)
    flat = cotangent.reshape(-1, cotangent.shape[3])
    dbase = cotangent.copy()
    dbase.reshape(flat.shape)[listed] = 0
    how = kernels_or(version, PIXEL_COMPOSITIONS, numpy_fused.missing)
    if isinstance(how, Fused):
        y = _fused_at(layer, listed, np.empty_like(cotangent), how) if layer.relu else None
        dx, dw, db = numpy_fused.site_backward(cotangent, layer.x, layer.w, y, _image_sites(layer, listed), how)
        return {"x": dx, "w": dw, "base": dbase, **({} if bias is None else {"bias": db})}
    rows = flat[listed]
    patches = _patches(layer, listed)
    if layer.relu:
        rows = rows * (_matmul(layer, listed) > 0)
    dpatches = (rows @ layer.w.reshape(-1, layer.w.shape[3]).T).reshape(len(rows), w.shape[0] * w.shape[1], x.shape[3])
    dx = np.zeros(x.shape, x.dtype)
    for tap, (inputs, inside) in enumerate(_taps(layer, listed)):
        dx.reshape(-1, x.shape[3])[inputs[inside]] += dpatches[inside, tap]
    found = {"x": dx, "w": (patches.T @ rows).reshape(w.shape), "base": dbase}
    return found if bias is None else {**found, "bias": rows.sum(0)}


def sparse_conv2d_matmul(
    x: Array,
    w: Array,
    mask: Array,
    *,
    tol: float,
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    base: str | Array = "zeros",
    bias: Array | None = None,
    activation: str | None = None,
) -> Array:
    """The convolution where the mask in the kernel's window is above ``tol``: blocks as large as the kernel.

    Each active pixel's patch is a row of one matrix product (im2col).

    Args, Returns, Raises: as for :func:`masked_conv2d`; mask and tol as for :func:`pixel_index`.
    """
    arguments.check_mask(mask.shape, x.shape)
    pixels = pixel_index(mask, tol=tol, ksize=w.shape[:2], strides=strides, padding=padding)
    return masked_conv2d(
        x,
        w,
        pixels,
        strides=strides,
        padding=padding,
        base=base,
        bias=bias,
        activation=activation,
        version="matmul",
    )


def mask_conv2d(x: Array, w: Array, mask: Array, *, strides: Sequence[int] = (1, 1), padding: str = "SAME") -> Array:
    """The dense convolution times the largest mask value in its window: the dense reference of SBNet.

    Args:
        x: [N, H, W, C].
        w: [kh, kw, C, K].
        mask: [N, H, W] or [N, H, W, 1], float32, float64 or bool; what is outside the image is never the largest.
        strides: two numbers or TensorFlow's four.
        padding: "SAME" or "VALID".

    Returns:
        [N, Hout, Wout, K].

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
    """
    layer = _layer(x, w, None, None, strides, padding)
    arguments.check_mask(mask.shape, x.shape)
    values = layer._replace(x=plain_mask(mask).astype(x.dtype)[..., None]).padded(-np.inf)
    largest = np.full((*layer.grid, 1), -np.inf, x.dtype)
    for tap in product(range(w.shape[0]), range(w.shape[1])):
        np.maximum(largest, _shifted(values, tap, layer.strides, layer.grid[1:]), out=largest)
    return dense_conv2d(layer) * largest


def convert_mask_to_indices(
    mask: Array,
    bsize: Sequence[int],
    ksize: Sequence[int],
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    tol: float = 0.0,
) -> Array:
    """Active blocks of a convolution as TensorFlow's pooling finds them: int64 [B, 3], (image, i, j).

    Equal to the rows of :func:`reduce_mask` with the geometry of ``block_params``; the slow route of SBNet, kept to
    compare with. :func:`upsample_indices` makes the blocks' pixels of them.

    Args:
        mask: as for :func:`pixel_index`.
        bsize: size of the windows.
        ksize, strides, padding: of the convolution.
        tol: a value equal to it does not count.

    Raises:
        TypeError, ValueError: as for :func:`reduce_mask` and ``block_params``.
    """
    plain = plain_mask(mask)
    arguments.check_tolerance(tol)
    params = block_params(plain.shape[1:], bsize, ksize, strides, padding)
    padded = _under_windows(plain.astype(np.float32)[..., None], params, -np.inf)[..., 0]
    windows = np.lib.stride_tricks.sliding_window_view(padded, params.bsize, (1, 2))
    pooled = windows[:, :: params.bstrides[0], :: params.bstrides[1]].max((3, 4))
    return np.argwhere(pooled > np.float32(tol))


def upsample_indices(indices: Array, bsize: Sequence[int], bstride: Sequence[int]) -> Array:
    """All pixels of the blocks, int64 [B, h, w, 3], (image, row, column) in the padded image.

    Args:
        indices: integers [B, 3], as from :func:`convert_mask_to_indices`.
        bsize, bstride: of the windows; the padded image starts at the first window.

    Raises:
        ValueError: a shape or a size is not allowed.
    """
    at = arguments.window(bsize, bstride, (0, 0))
    arguments.check_index(indices.shape, (1,), str(indices.dtype))
    centre = indices[:, 1:] * np.array(at.stride) + (np.array(at.size) - 1) // 2
    offsets = [np.arange(size) - (size - 1) // 2 for size in at.size]
    grid = np.stack(np.meshgrid(*offsets, indexing="ij"), -1)
    pixels = centre[:, None, None] + grid
    images = np.broadcast_to(indices[:, None, None, :1], (*pixels.shape[:3], 1))
    return np.concatenate([images, pixels], -1).astype(np.int64)


# Dense convolutions.


def dense_conv2d(layer: Layer) -> Array:
    """The convolution everywhere, without bias and activation [N, Hout, Wout, K]."""
    return valid_conv2d(layer.padded(), layer.w, layer.strides, layer.grid[1:])


def valid_conv2d(x: Array, w: Array, strides: Pair, size: Pair) -> Array:
    """A VALID convolution of x [B, h, w, C] to [B, *size, K]: one product for each tap."""
    y = np.zeros((x.shape[0], *size, w.shape[3]), x.dtype)
    for i, j in product(*map(range, w.shape[:2])):
        y += _shifted(x, (i, j), strides, size) @ w[i, j]
    return y


def valid_conv2d_gradients(dy: Array, x: Array, w: Array, strides: Pair) -> tuple[Array, Array]:
    """The gradients of x and w of :func:`valid_conv2d`."""
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for i, j in product(*map(range, w.shape[:2])):
        _shifted(dx, (i, j), strides, dy.shape[1:3])[...] += dy @ w[i, j].T
        dw[i, j] = np.tensordot(_shifted(x, (i, j), strides, dy.shape[1:3]), dy, ((0, 1, 2), (0, 1, 2)))
    return dx, dw


def _shifted(x: Array, tap: Pair, strides: Pair, size: Sequence[int]) -> Array:
    """What a tap sees, for each output: a view [B, *size, C]."""
    (i, j), (down, right) = tap, strides
    return x[:, i : i + down * (size[0] - 1) + 1 : down, j : j + right * (size[1] - 1) + 1 : right]


# Arguments.


def _layer(
    x: Array, w: Array, bias: Array | None, activation: str | None, strides: Sequence[int], padding: str
) -> Layer:
    check_plain_image("x", x)
    check_padding(padding)
    arguments.check_choice("activation", activation, arguments.ACTIVATIONS)
    arguments.check_kernel(w.shape, x.shape[3])
    arguments.check_same_dtype("w", str(w.dtype), "x", str(x.dtype))
    if bias is not None:
        arguments.check_vector("bias", bias.shape, w.shape[3])
        arguments.check_same_dtype("bias", str(bias.dtype), "x", str(x.dtype))
    step = strides_pair("strides", strides)
    grid = out_grid(x.shape, kernel_pair(w.shape), step, padding)
    contiguous = None if bias is None else np.ascontiguousarray(bias)
    return Layer(
        np.ascontiguousarray(x), np.ascontiguousarray(w), contiguous, activation == "relu", step, padding, grid
    )


def _padding_of(x: Array, w: Array, params: BlockParams, strides: Sequence[int]) -> str:
    """The padding that the geometry was made for; raises ValueError when it does not belong to this convolution."""
    arguments.check_image("x", x.shape)
    arguments.check_kernel(w.shape, x.shape[3])
    for padding in ("SAME", "VALID"):
        made = block_params(x.shape, params.bsize, w.shape, strides, padding)
        if made._replace(bcount=params.bcount) == params:
            return padding
    raise ValueError(
        f"params={params} does not belong to an image {arguments.text(x.shape)}, a kernel {arguments.text(w.shape)} "
        f"and strides {tuple(strides)}: make it by block_params with these"
    )


def _pixels_of(pixels: PixelIndex, layer: Layer) -> Ints:
    if tuple(pixels.grid) != layer.grid:
        raise ValueError(f"pixels has the grid {tuple(pixels.grid)} but the output has {layer.grid} (N, Hout, Wout)")
    return listed_pixels(pixels)


def _destination(layer: Layer, base: str | Array, out: Array | None) -> Array:
    """The array to write the computed pixels to."""
    shape = (*layer.grid, layer.w.shape[3])
    if out is not None:
        if not (isinstance(base, str) and base == "zeros"):
            raise ValueError("out= is the base itself: leave base= out")
        _check_values("out", out, shape, layer)
        if not out.flags.c_contiguous or not out.flags.writeable or np.may_share_memory(out, layer.x):
            raise ValueError("out must be contiguous, writable, and not share memory with x")
        return out
    if not isinstance(base, str):
        _check_values("base", base, shape, layer)
        return np.array(base, order="C")
    arguments.check_choice("base", base, ("zeros", "input"))
    if base == "zeros":
        return np.zeros(shape, layer.x.dtype)
    if layer.x.shape != shape:
        raise ValueError(
            f"base='input' needs an output as large as x, {arguments.text(layer.x.shape)}, but it has "
            f"{arguments.text(shape)}: K = C, strides (1, 1) and padding SAME are needed"
        )
    return layer.x.copy()


def _check_values(name: str, array: Array, shape: tuple[int, ...], layer: Layer) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {arguments.text(array.shape)}: expected {arguments.text(shape)}")
    arguments.check_same_dtype(name, str(array.dtype), "x", str(layer.x.dtype))


# Routes to the listed pixels: each returns their values [P, K].


def _fused_at(layer: Layer, listed: Ints, y: Array, settings: Fused) -> Array:
    sites = _image_sites(layer, listed)
    return numpy_fused.site_forward(layer.x, layer.w, layer.bias, sites, layer.relu, y, settings)


def _image_sites(layer: Layer, listed: Ints) -> numpy_fused.ImageSites:
    images, height, width, _ = layer.x.shape
    kernel = kernel_pair(layer.w.shape)
    return numpy_fused.ImageSites((images, height, width), layer.grid, kernel, layer.strides, layer.padding, listed)


def _dense(layer: Layer, listed: Ints) -> Array:
    return layer.finished(dense_conv2d(layer).reshape(-1, layer.w.shape[3])[listed])


def _matmul(layer: Layer, listed: Ints) -> Array:
    return layer.finished(_patches(layer, listed) @ layer.w.reshape(-1, layer.w.shape[3]))


def _rulebook(layer: Layer, listed: Ints) -> Array:
    y = np.zeros((len(listed), layer.w.shape[3]), layer.x.dtype)
    flat = layer.x.reshape(-1, layer.x.shape[3])
    for (inputs, inside), matrix in zip(_taps(layer, listed), layer.w.reshape(-1, *layer.w.shape[2:]), strict=True):
        y[inside] += flat[inputs[inside]] @ matrix
    return layer.finished(y)


def _blocks(layer: Layer, listed: Ints) -> Array:
    index, params = _tiles(layer, listed)
    y = sparse_conv2d(layer.x, layer.w, index, params, strides=layer.strides, version="blocks")
    return layer.finished(y.reshape(-1, y.shape[3])[listed])


def _upsample(layer: Layer, listed: Ints) -> Array:
    """The blocks' pixels listed one by one, gathered, convolved and written to their places."""
    index, params = _tiles(layer, listed)
    room = _under_windows(layer.x, params, 0.0)
    n, h, w = np.moveaxis(upsample_indices(index.active_block_indices, params.bsize, params.bstrides), -1, 0)
    tiles = valid_conv2d(room[n, h, w], layer.w, layer.strides, params.bsize_out)
    grid = [count * size for count, size in zip(params.bcount, params.bsize_out, strict=True)]
    y = np.zeros((len(room), *grid, layer.w.shape[3]), layer.x.dtype)
    n, h, w = np.moveaxis(upsample_indices(index.active_block_indices, params.bsize_out, params.bsize_out), -1, 0)
    y[n, h, w] = tiles
    n, h, w = np.unravel_index(listed, layer.grid)
    return layer.finished(y[n, h, w])


_ROUTES: dict[str, Callable[[Layer, Ints], Array]] = {
    "dense": _dense,
    "matmul": _matmul,
    "rulebook": _rulebook,
    "blocks": _blocks,
    "upsample": _upsample,
}


def _tiles(layer: Layer, listed: Ints) -> tuple[BlockIndex, BlockParams]:
    """The tiles of 8 by 8 outputs that hold a listed pixel."""
    block = [s * (cost_model.TILE - 1) + k for s, k in zip(layer.strides, layer.w.shape[:2], strict=True)]
    params = block_params(layer.x.shape, block, layer.w.shape, layer.strides, layer.padding)
    wanted = np.zeros(layer.grid, bool)
    wanted.reshape(-1)[listed] = True
    index = reduce_mask(
        wanted, params.bcount, bsize=params.bsize_out, bstride=params.bsize_out, tol=0.5, version="indexed"
    )
    return index, params


def _under_windows(x: Array, params: BlockParams, value: float) -> Array:
    """The area [N, h, w, C] from the first window's start to the last one's end, with ``value`` outside the image."""
    extents = [s * (n - 1) + b for s, n, b in zip(params.bstrides, params.bcount, params.bsize, strict=True)]
    room = np.full((x.shape[0], *extents, x.shape[3]), value, x.dtype)
    inner = room[:, -params.boffset[0] :, -params.boffset[1] :][:, : x.shape[1], : x.shape[2]]
    inner[...] = x[:, : inner.shape[1], : inner.shape[2]]
    return room


def sizes_of(layer: Layer, listed: Ints) -> cost_model.Sizes:
    """What the cost model looks at."""
    tiles = cost_model.tiles_of(listed, layer.grid)
    return cost_model.sizes(len(listed), tiles, int(np.prod(layer.grid)), layer.w.shape)


def _taps(layer: Layer, listed: Ints) -> list[tuple[Array, Array]]:
    """For each tap the input position of each listed pixel, 0 where it is outside, and whether it is inside."""
    _, height, width, _ = layer.x.shape
    n, h, w = np.unravel_index(listed, layer.grid)
    front = [
        paddings(extent, k, s, layer.padding)[0]
        for extent, k, s in zip((height, width), layer.w.shape[:2], layer.strides, strict=True)
    ]
    found = []
    for i, j in product(*map(range, layer.w.shape[:2])):
        row, column = h * layer.strides[0] - front[0] + i, w * layer.strides[1] - front[1] + j
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        found.append((np.where(inside, (n * height + row) * width + column, 0), inside))
    return found


def _patches(layer: Layer, listed: Ints) -> Array:
    """One row [kh * kw * C] for each listed pixel, 0 outside the image."""
    flat = layer.x.reshape(-1, layer.x.shape[3])
    rows = np.zeros((len(listed), layer.w.shape[0] * layer.w.shape[1], layer.x.shape[3]), layer.x.dtype)
    for tap, (inputs, inside) in enumerate(_taps(layer, listed)):
        rows[inside, tap] = flat[inputs[inside]]
    return rows.reshape(len(listed), rows.shape[1] * rows.shape[2])
