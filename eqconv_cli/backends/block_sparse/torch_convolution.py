"""Convolution where it is worth it, in PyTorch: on blocks of an image, or at a list of its pixels.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018; uber-research/sbnet ``benchmark/sparse_conv_lib.py``. Padding is
TensorFlow's: for a stride above 1 it is not the same in front and behind, as PyTorch's ``padding=1`` would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from eqconv_cli.backends.block_sparse import arguments, cost_model, torch_fused, torch_neighbours
from eqconv_cli.backends.block_sparse.geometry import (
    PADDINGS,
    BlockParams,
    Pair,
    block_params,
    check_padding,
    paddings,
    strides_pair,
)
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.torch_arguments import (
    Rows,
    block_rows,
    check_like,
    check_real,
    counting,
    dtype_name,
    kernel_hwio,
    pixel_rows,
    widened,
)
from eqconv_cli.backends.block_sparse.torch_ops import (
    block_pixels,
    out_grid,
    pixel_index,
    rows_at,
    sparse_gather,
    sparse_scatter,
    sparse_scatter_var,
)

#: Versions of :func:`sparse_conv2d` and :func:`masked_conv2d` beside "fused" and "auto"; the first is "auto"'s without
#: the kernels.
BLOCK_COMPOSITIONS = ("blocks",)
PIXEL_COMPOSITIONS = ("matmul", "dense", "blocks", "upsample", "rulebook")


class Call(NamedTuple):
    """A convolution with its arguments checked."""

    x: Tensor
    #: [kh, kw, C, K].
    w: Tensor
    bias: Tensor | None
    relu: bool
    strides: Pair
    padding: str
    #: (N, Hout, Wout).
    grid: tuple[int, int, int]
    #: Padding in front.
    front: Pair

    @property
    def ksize(self) -> Pair:
        """(kh, kw)."""
        return self.w.shape[0], self.w.shape[1]

    @property
    def size(self) -> Pair:
        """(H, W)."""
        return self.x.shape[1], self.x.shape[2]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the result."""
        return (*self.grid, self.w.shape[3])

    @property
    def geometry(self) -> list[int]:
        """As the compiled operation takes it; dilation 1."""
        return [*self.grid[1:], *self.ksize, *self.strides, *self.front, 1, 1]

    def finish(self, rows: Tensor) -> Tensor:
        """Bias and activation on [..., K]."""
        rows = rows if self.bias is None else rows + self.bias
        return rows.relu() if self.relu else rows


def dense_conv2d(
    x: Tensor,
    w: Tensor,
    *,
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    bias: Tensor | None = None,
    activation: str | None = None,
    w_layout: str = "HWIO",
) -> Tensor:
    """The convolution of the whole image; arguments and errors as for :func:`masked_conv2d`."""
    return _dense(_call(x, w, strides, padding, bias, activation, w_layout))


def sparse_conv2d(
    x: Tensor,
    w: Tensor,
    index: BlockIndex,
    params: BlockParams,
    *,
    base: str | Tensor = "zeros",
    strides: Sequence[int] = (1, 1),
    bias: Tensor | None = None,
    activation: str | None = None,
    out: Tensor | None = None,
    w_layout: str = "HWIO",
    version: str | Fused = "auto",
) -> Tensor:
    """A convolution on the active blocks: their output tiles are the dense convolution's, the rest is the base.

    Args:
        x: [N, H, W, C] float32 or float64.
        w: [kh, kw, C, K], or with ``w_layout="OIHW"`` PyTorch's [K, C, kh, kw].
        index: the active blocks, see :func:`reduce_mask`.
        params: from :func:`block_params` for this image, kernel and strides; it tells the padding, too.
        base: "zeros", "input" (x itself: SBNet's; needs K = C and an output like x), or [N, Hout, Wout, K].
        strides: two numbers or TensorFlow's four.
        bias: [K].
        activation: None or "relu"; with the bias applied to what is computed, not to the base.
        out: written in place, at the active tiles only, and returned; then there is no base.
        w_layout: of ``w``.
        version: "blocks" (gather, dense convolution of the stack, scatter), "fused" (compiled, no stack: ``eqconv
            build-kernels``), or "auto".

    Returns:
        [N, Hout, Wout, K].

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: a row of the index in host memory is out of range.
        Unavailable: version is "fused" and the kernels are not built.
    """
    x, w, bias = widened(x, w, bias)
    arguments.check_image("x", x.shape)
    w = kernel_hwio(w, w_layout, x.shape[3])
    call = _call(x, w, strides, _padding_of(x, w, params, strides), bias, activation, "HWIO")
    start = _base(call, base, out)
    how = torch_fused.version_on(version, BLOCK_COMPOSITIONS, x)
    if isinstance(how, Fused):
        pixels = block_pixels(index, params, call.grid[0], how)
        return _fused(call, pixel_rows(pixels, call.grid, x.device), start, out, how)
    return _on_blocks(call, index, params, start, out)


def sparse_conv2d_matmul(
    x: Tensor,
    w: Tensor,
    mask: Tensor,
    *,
    tol: float,
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    base: str | Tensor = "zeros",
    bias: Tensor | None = None,
    activation: str | None = None,
    w_layout: str = "HWIO",
) -> Tensor:
    """Blocks of the kernel's size: one output pixel each, its window one row of a matrix (im2col).

    Computed where the window holds a mask value above ``tol``. Other arguments and errors as for
    :func:`masked_conv2d` and :func:`pixel_index`.
    """
    kernel = kernel_hwio(w, w_layout, x.shape[-1])
    arguments.check_mask(mask.shape, x.shape)
    pixels = pixel_index(mask, tol=tol, ksize=kernel.shape[:2], strides=strides, padding=padding)
    options: dict[str, Any] = {
        "strides": strides,
        "padding": padding,
        "base": base,
        "bias": bias,
        "activation": activation,
    }
    return masked_conv2d(x, kernel, pixels, **options, version="matmul")


def mask_conv2d(
    x: Tensor,
    w: Tensor,
    mask: Tensor,
    *,
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    w_layout: str = "HWIO",
) -> Tensor:
    """The dense convolution times the largest mask value in each window: what the sparse ones are compared with.

    Args:
        x, w, strides, padding, w_layout: as for :func:`masked_conv2d`.
        mask: [N, H, W] or [N, H, W, 1] of x's size, float32, float64 or bool.

    Raises:
        TypeError, ValueError: as there.
    """
    arguments.check_mask(mask.shape, x.shape)
    check_real("mask", mask, ("bool",))
    call = _call(x, w, strides, padding, None, None, w_layout)
    plain = mask.reshape(mask.shape[0], 1, *mask.shape[1:3]).to(x.dtype)
    around = functional.pad(plain, _pads(call), value=float("-inf"))
    largest = functional.max_pool2d(around, call.ksize, call.strides)
    return _dense(call) * largest.permute(0, 2, 3, 1)


def convert_mask_to_indices(
    mask: Tensor,
    bsize: Sequence[int],
    ksize: Sequence[int],
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    tol: float = 0.0,
) -> Tensor:
    """Active blocks of a convolution as pooling finds them: int64 [B, 3], (image, i, j).

    Equal to the rows of :func:`reduce_mask` with the geometry of ``block_params``; the slow route of SBNet, kept to
    compare with. :func:`upsample_indices` makes the blocks' pixels of them.

    Args:
        mask: as for :func:`reduce_mask`, of the size of the convolution's input.
        bsize, ksize, strides, padding: as for :func:`block_params`.
        tol: a value equal to it is inactive.

    Raises:
        TypeError, ValueError: as for :func:`reduce_mask` and :func:`block_params`.
    """
    check_real("mask", mask, ("bool",))
    arguments.check_mask(mask.shape)
    arguments.check_tolerance(tol)
    params = block_params(mask.shape[1:3], bsize, ksize, strides, padding)
    pads = []
    for axis in (1, 0):
        front = -params.boffset[axis]
        reach = params.bstrides[axis] * (params.bcount[axis] - 1) + params.bsize[axis]
        pads += [front, max(0, reach - front - mask.shape[1 + axis])]
    above = (mask.detach().reshape(mask.shape[0], 1, *mask.shape[1:3]).float() > tol).float()
    pooled = functional.max_pool2d(functional.pad(above, pads), params.bsize, params.bstrides)
    return pooled[:, 0, : params.bcount[0], : params.bcount[1]].nonzero()


def upsample_indices(indices: Tensor, bsize: Sequence[int], bstride: Sequence[int]) -> Tensor:
    """All pixels of the blocks, int64 [B, h, w, 3], (image, row, column) in the padded image.

    Args:
        indices: integers [B, 3], as from :func:`convert_mask_to_indices`.
        bsize, bstride: of the windows; the padded image starts at the first window.

    Raises:
        TypeError, ValueError: a dtype, a shape or a size is not allowed.
    """
    at = arguments.window(bsize, bstride, (0, 0))
    arguments.check_index(indices.shape, (1,), dtype_name(indices))
    image, row, column = indices.long()[:, :, None, None].unbind(1)
    height, width = (torch.arange(n, device=indices.device) for n in at.size)
    pixels = (image, row * at.stride[0] + height[:, None], column * at.stride[1] + width)
    return torch.stack(torch.broadcast_tensors(*pixels), -1)


def masked_conv2d(
    x: Tensor,
    w: Tensor,
    pixels: PixelIndex,
    *,
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    base: str | Tensor = "zeros",
    bias: Tensor | None = None,
    activation: str | None = None,
    out: Tensor | None = None,
    w_layout: str = "HWIO",
    version: str | Fused = "auto",
) -> Tensor:
    """The convolution exactly at the listed output pixels; elsewhere the base.

    Args:
        x: [N, H, W, C] float32 or float64.
        w: [kh, kw, C, K], or with ``w_layout="OIHW"`` PyTorch's [K, C, kh, kw].
        pixels: of the output, see :func:`pixel_index` and :func:`block_pixels`.
        strides: two numbers or TensorFlow's four.
        padding: "SAME" or "VALID", as TensorFlow defines them.
        base: "zeros", "input" (x itself; needs K = C and an output of the input's size), or [N, Hout, Wout, K].
        bias: [K].
        activation: None or "relu"; with the bias applied to what is computed, not to the base.
        out: written in place, at the listed pixels only, and returned; then there is no base.
        w_layout: of ``w``.
        version: "dense" (everywhere, then chosen), "matmul" (windows as rows of a matrix), "blocks" (tiles that hold a
            listed pixel), "upsample" (windows as a stack of images), "rulebook" (one product for each tap), "fused"
            (compiled, nothing in between: ``eqconv build-kernels``), or "auto".

    Returns:
        [N, Hout, Wout, K].

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: a position in host memory is out of range.
        Unavailable: version is "fused" and the kernels are not built.
    """
    call = _call(x, w, strides, padding, bias, activation, w_layout)
    x = call.x
    start = _base(call, base, out)
    listed = pixel_rows(pixels, call.grid, x.device)
    how = torch_fused.version_on(version, PIXEL_COMPOSITIONS, x)
    if isinstance(how, Fused):
        return _fused(call, listed, start, out, how)
    positions = counting(listed)
    if version == "auto":
        how = cost_model.choose(_sizes(call, positions), "torch", fused=False).version
    return _put(call, positions, _COMPUTE[how](call, positions), start, out)


# Ways to compute the listed pixels: rows [P, K].


def _by_dense(call: Call, positions: Tensor) -> Tensor:
    return _dense(call).reshape(-1, call.w.shape[3]).index_select(0, positions)


def _by_matmul(call: Call, positions: Tensor) -> Tensor:
    flat, inside = _neighbours(call, positions)
    patches = rows_at(call.x.reshape(-1, call.x.shape[3]), flat, inside)
    return call.finish(patches.flatten(1) @ call.w.flatten(0, 2))


def _by_upsampling(call: Call, positions: Tensor) -> Tensor:
    indices = torch.stack(torch_neighbours.split(positions, *call.grid[1:]), 1)
    # In an image with the padding around it a window starts at the stride times its position.
    around = functional.pad(call.x, (0, 0, *_pads(call)))
    n, h, w = upsample_indices(indices, call.ksize, call.strides).unbind(-1)
    stack = around[n, h, w].permute(0, 3, 1, 2)
    return call.finish(functional.conv2d(stack, _oihw(call.w)).flatten(1))


def _by_rulebook(call: Call, positions: Tensor) -> Tensor:
    flat, inside = _neighbours(call, positions)
    rows = call.x.reshape(-1, call.x.shape[3])
    made = rows.new_zeros(len(positions), call.w.shape[3])
    for tap, kernel in enumerate(call.w.flatten(0, 1)):
        outputs = inside[:, tap].nonzero().squeeze(1)
        made = made.index_add(0, outputs, rows.index_select(0, flat[outputs, tap]) @ kernel)
    return call.finish(made)


def _by_blocks(call: Call, positions: Tensor) -> Tensor:
    size = [cost_model.TILE * s + k - s for k, s in zip(call.ksize, call.strides, strict=True)]
    params = block_params(call.size, size, call.ksize, call.strides, call.padding)
    tiles = _tiles_of(call, positions).unique()
    rows = torch.stack(torch_neighbours.split(tiles, *params.bcount), 1).int()
    index = BlockIndex(rows, torch.tensor([len(rows)], dtype=torch.int32))
    zeros = call.x.new_zeros(call.shape)
    made = _on_blocks(call, index, params, zeros, None)
    return made.reshape(-1, call.w.shape[3]).index_select(0, positions)


_COMPUTE = {
    "dense": _by_dense,
    "matmul": _by_matmul,
    "blocks": _by_blocks,
    "upsample": _by_upsampling,
    "rulebook": _by_rulebook,
}


# Parts.


def _dense(call: Call) -> Tensor:
    """Bias included in the convolution; NHWC in and out is channels_last to PyTorch, so nothing is converted."""
    left, right, top, bottom = _pads(call)
    image, pads = call.x.permute(0, 3, 1, 2), (0, 0)
    if 0 in call.shape:
        return call.x.new_zeros(call.shape) + call.x.sum() * 0 + call.w.sum() * 0
    if (top, left) == (bottom, right):
        pads = (top, left)
    else:
        image = functional.pad(call.x, (0, 0, left, right, top, bottom)).permute(0, 3, 1, 2)
    made = functional.conv2d(image, _oihw(call.w), call.bias, call.strides, pads)
    return (made.relu() if call.relu else made).permute(0, 2, 3, 1)


def _on_blocks(call: Call, index: BlockIndex, params: BlockParams, start: Tensor | None, out: Tensor | None) -> Tensor:
    """Gather, one convolution of the stack, scatter."""
    rows = block_rows(index, call.grid[0], call.x.device)
    index = BlockIndex(rows.rows, rows.number)
    stack = sparse_gather(call.x, index, bsize=params.bsize, bstride=params.bstrides, boffset=params.boffset)
    tiles = convolved_blocks(stack, call.w, call.strides, call.bias, call.relu)
    tile: dict[str, Any] = {"bsize": params.bsize_out, "bstride": params.bsize_out, "add": False}
    if out is not None:
        return sparse_scatter_var(tiles, index, out, **tile)
    return sparse_scatter(tiles, index, _image(call, start), **tile)


def convolved_blocks(
    stack: Tensor, w: Tensor, strides: Sequence[int], bias: Tensor | None = None, relu: bool = False
) -> Tensor:
    """The tiles [B, h', w', K] of windows [B, h, w, C] by a kernel [kh, kw, C, K], no padding."""
    made = functional.conv2d(stack.permute(0, 3, 1, 2), _oihw(w), bias, tuple(strides))
    return (made.relu() if relu else made).permute(0, 2, 3, 1)


def _fused(call: Call, listed: Rows, start: Tensor | None, out: Tensor | None, settings: Fused) -> Tensor:
    if out is not None and out.is_contiguous() and not torch.compiler.is_compiling():
        where = (listed.rows, listed.number, call.geometry, call.relu, settings)
        return torch_fused.image_convolution_(out, call.x, call.w, call.bias, *where)
    where = (listed.rows, listed.number, call.geometry, call.relu, settings)
    made = torch_fused.image_convolution(call.x, call.w, call.bias, start if out is None else out, *where)
    return made if out is None else out.copy_(made)


def _put(call: Call, positions: Tensor, rows: Tensor, start: Tensor | None, out: Tensor | None) -> Tensor:
    """The rows at their positions of the base, or of ``out`` in place."""
    if out is None:
        base = _image(call, start)
        return base.reshape(-1, call.w.shape[3]).index_copy(0, positions, rows).view(call.shape)
    if out.is_contiguous():
        out.view(-1, call.w.shape[3]).index_copy_(0, positions, rows)
        return out
    image, row, column = torch_neighbours.split(positions, *call.grid[1:])
    return out.index_put_((image, row, column), rows)


def _sizes(call: Call, positions: Tensor) -> cost_model.Sizes:
    """What there is to compute, for the cost model."""
    outputs = call.grid[0] * call.grid[1] * call.grid[2]
    return cost_model.sizes(len(positions), len(_tiles_of(call, positions).unique()), outputs, call.w.shape)


def _tiles_of(call: Call, positions: Tensor) -> Tensor:
    """The number, in raster order, of the tile of each position."""
    height, width = (-(-n // cost_model.TILE) for n in call.grid[1:])
    image, row, column = torch_neighbours.split(positions, *call.grid[1:])
    return (image * height + row // cost_model.TILE) * width + column // cost_model.TILE


def _image(call: Call, start: Tensor | None) -> Tensor:
    return call.x.new_zeros(call.shape) if start is None else start


def _neighbours(call: Call, positions: Tensor) -> tuple[Tensor, Tensor]:
    out_size = (call.grid[1], call.grid[2])
    return torch_neighbours.of_pixels(positions, out_size, call.size, call.ksize, call.strides, call.front)


def _pads(call: Call) -> tuple[int, int, int, int]:
    """Left, right, top, bottom."""
    top, bottom = paddings(call.size[0], call.ksize[0], call.strides[0], call.padding)
    left, right = paddings(call.size[1], call.ksize[1], call.strides[1], call.padding)
    return left, right, top, bottom


def _oihw(w: Tensor) -> Tensor:
    return w.permute(3, 2, 0, 1)


# Arguments.


def _call(
    x: Tensor,
    w: Tensor,
    strides: Sequence[int],
    padding: str,
    bias: Tensor | None,
    activation: str | None,
    w_layout: str,
) -> Call:
    x, w, bias = widened(x, w, bias)
    check_real("x", x)
    arguments.check_image("x", x.shape)
    check_like("w", w, "x", x)
    kernel = kernel_hwio(w, w_layout, x.shape[3])
    arguments.check_choice("activation", activation, arguments.ACTIVATIONS)
    if bias is not None:
        check_like("bias", bias, "x", x)
        arguments.check_vector("bias", bias.shape, kernel.shape[3])
    placed = _placed if torch.compiler.is_compiling() else _placed_before
    step, grid, front = placed(x.shape, (kernel.shape[0], kernel.shape[1]), tuple(strides), padding)
    return Call(x, kernel, bias, activation == "relu", step, padding, grid, front)


def _placed(
    image: tuple[int, ...], ksize: tuple[int, int], strides: tuple[int, ...], padding: str
) -> tuple[Pair, tuple[int, int, int], Pair]:
    """The strides, (N, Hout, Wout) and the padding in front."""
    check_padding(padding)
    step = strides_pair("strides", strides)
    return step, *out_grid(image, ksize, step, padding)


#: A network convolves the same shapes again and again, and a small image takes no longer than to work this out.
_placed_before = lru_cache(maxsize=4096)(_placed)


def _base(call: Call, base: str | Tensor, out: Tensor | None) -> Tensor | None:
    """The result where nothing is computed; None for zeros, or with ``out``, which is checked."""
    if out is not None:
        if isinstance(base, Tensor) or base != "zeros":
            raise ValueError("base and out are both given: what out holds is the base")
        check_like("out", out, "x", call.x)
        if tuple(out.shape) != call.shape:
            raise ValueError(f"out has shape {arguments.text(out.shape)}: expected {arguments.text(call.shape)}")
        return None
    if isinstance(base, Tensor):
        check_like("base", base, "x", call.x)
        if tuple(base.shape) != call.shape:
            raise ValueError(f"base has shape {arguments.text(base.shape)}: expected {arguments.text(call.shape)}")
        return base
    arguments.check_choice("base", base, ("zeros", "input"))
    if base == "zeros":
        return None
    if tuple(call.x.shape) != call.shape:
        raise ValueError(
            f"base='input' needs an output like x, {arguments.text(call.x.shape)}: it is {arguments.text(call.shape)}"
        )
    return call.x


def _padding_of(x: Tensor, w: Tensor, params: BlockParams, strides: Sequence[int]) -> str:
    """The padding that the geometry was made for; raises ValueError when it does not belong to this convolution."""
    arguments.check_image("x", x.shape)
    for padding in PADDINGS:
        made = block_params(x.shape, params.bsize, w.shape, strides, padding)
        if made._replace(bcount=params.bcount) == params:
            return padding
    raise ValueError(
        f"params={params} does not belong to an image {arguments.text(x.shape)}, a kernel {arguments.text(w.shape)} "
        f"and strides {tuple(strides)}: make it by block_params with these"
    )
