"""The compiled kernels of this family as PyTorch operators: loading, fake kernels, gradients, and the calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from eqconv_cli.backends.block_sparse import torch_residual_backward
from eqconv_cli.backends.block_sparse.arguments import Window
from eqconv_cli.backends.block_sparse.options import Flag, Fused, kernels_or
from eqconv_cli.kernels.torch_doors import constant, missing_operators, operator

_SECOND_ORDER = "version='fused' has first derivatives only: take another version for derivatives of gradients"
_NO_FORWARD_MODE = "version='fused' has no forward-mode derivative: take version='indexed', or reverse mode (backward)"
_NO_VMAP = "version='fused' is not vectorised by torch.vmap: images have a batch axis, [N, H, W, C]"

_TRANSPOSE, _ADD, _OWNED, _RELU = Flag.TRANSPOSE, Flag.ADD, Flag.OWNED, Flag.RELU
#: Bits of ``wanted`` of site_backward.
_DX, _DW, _DB = 1, 2, 4


def version_on(version: str | Fused, compositions: Sequence[str], tensor: Tensor) -> Fused | str:
    """:func:`kernels_or` for the device of a tensor."""
    return kernels_or(version, compositions, lambda settings: missing_operators(settings, tensor.device.type))


# Lists: no gradients.


def mask_blocks(
    mask: Tensor, grid: tuple[int, int], at: Window, tol: float, average: bool, first: bool, settings: Fused
) -> tuple[Tensor, Tensor]:
    """The active windows: rows int32 [N * grid, 3] of which the first ``count`` int32 [1] count."""
    flags = Flag.AVERAGE * average + Flag.FIRST * first
    return _reduce("mask_blocks", mask, grid, at, tol, flags, settings)


def mask_pixels(mask: Tensor, grid: tuple[int, int], at: Window, tol: float, settings: Fused) -> tuple[Tensor, Tensor]:
    """The flat positions of the active windows: int32 [N * grid] and their number int32 [1]."""
    return _reduce("mask_pixels", mask, grid, at, tol, 0, settings)


def _reduce(
    name: str, mask: Tensor, grid: tuple[int, int], at: Window, tol: float, flags: int, settings: Fused
) -> tuple[Tensor, Tensor]:
    arguments = (mask.detach(), *grid, _numbers(at), tol, flags + settings.processor_flags)
    return cast("tuple[Tensor, Tensor]", _call(name, settings, mask, arguments))


def block_pixels(
    rows: Tensor, count: Tensor, grid: tuple[int, int, int], at: Window, settings: Fused
) -> tuple[Tensor, Tensor]:
    """The flat positions that the windows cover, ascending: int32 [N * H * W] and their number int32 [1]."""
    arguments = (rows, count, list(grid), _numbers(at))
    return cast("tuple[Tensor, Tensor]", _call("block_pixels", settings, rows, arguments))


def site_outputs(coords: Tensor, batch: int, geometry: list[int], settings: Fused) -> tuple[Tensor, Tensor]:
    """The output sites of a strided convolution, sorted, int32 [capacity, 1 + D], and their number int32 [1].

    Args:
        coords: int32 [M, 1 + D].
        batch: number of samples.
        geometry: extents, extents of the output, kernel, strides, padding and dilation, each for every axis.
        settings: where to compute.
    """
    arguments = (coords, None, batch, geometry, settings.processor_flags)
    return cast("tuple[Tensor, Tensor]", _call("site_outputs", settings, coords, arguments))


def site_table(coords: Tensor, out_coords: Tensor, batch: int, geometry: list[int], settings: Fused) -> Tensor:
    """The input row at each tap of each output site, or -1: int32 [M_out, taps]; arguments as above."""
    arguments = (coords, None, out_coords, None, batch, geometry, settings.processor_flags)
    return cast(Tensor, _call("site_table", settings, coords, arguments))


# Blocks.


def block_gather(x: Tensor, rows: Tensor, count: Tensor, at: Window, transpose: bool, settings: Fused) -> Tensor:
    """The windows of x [N, H, W, C] as [B, h, w, C] or, with ``transpose``, [B, C, h, w]; differentiable."""
    flags = _TRANSPOSE * transpose + settings.processor_flags
    return cast(Tensor, _differentiable("block_gather", settings, (x,), (x, rows, count, _numbers(at), flags)))


def block_scatter(
    blocks: Tensor, rows: Tensor, count: Tensor, base: Tensor, at: Window, transpose: bool, add: bool, settings: Fused
) -> Tensor:
    """``base`` with the blocks put in or added; differentiable."""
    flags = _TRANSPOSE * transpose + _ADD * add + settings.processor_flags
    arguments = (blocks, rows, count, base, list(base.shape), _numbers(at), flags)
    return cast(Tensor, _differentiable("block_scatter", settings, (blocks, base), arguments))


def block_scatter_(
    y: Tensor, blocks: Tensor, rows: Tensor, count: Tensor, at: Window, transpose: bool, add: bool, settings: Fused
) -> Tensor:
    """The same in place on ``y``, which is contiguous; returns it. An ordinary in-place operation under autograd."""
    flags = _TRANSPOSE * transpose + _ADD * add + settings.processor_flags
    arguments = (blocks, rows, count, _numbers(at), flags)
    if _recording((y, blocks)):
        return cast(
            Tensor, _ScatterInPlace.apply(_operator("block_scatter_", _place(settings, y)), settings, y, *arguments)
        )
    _call("block_scatter_", settings, y, (y, *arguments))
    return y


# Convolutions at sites.


def image_convolution(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    base: Tensor | None,
    site: Tensor,
    count: Tensor,
    geometry: list[int],
    relu: bool,
    settings: Fused,
) -> Tensor:
    """The convolution of x [N, H, W, C] with w [kh, kw, C, K] at the listed output pixels; elsewhere base, or 0.

    ``geometry``: height and width of the output, the kernel, the strides, the padding in front and the dilation.
    """
    flags = _RELU * relu + settings.processor_flags
    arguments = (x, w, bias, base, site, count, None, geometry, flags)
    return cast(Tensor, _differentiable("site_forward", settings, (x, w, bias, base), arguments))


def image_convolution_(
    y: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    site: Tensor,
    count: Tensor,
    geometry: list[int],
    relu: bool,
    settings: Fused,
) -> Tensor:
    """The same written into the listed pixels of ``y``, which is contiguous; returns it."""
    flags = _RELU * relu + settings.processor_flags
    arguments = (x, w, bias, site, count, geometry, flags)
    if _recording((y, x, w, bias)):
        return cast(
            Tensor, _ConvolutionInPlace.apply(_operator("site_forward_", _place(settings, y)), settings, y, *arguments)
        )
    _call("site_forward_", settings, y, (y, *arguments))
    return y


def table_convolution(
    x: Tensor, w: Tensor, bias: Tensor | None, table: Tensor, inverse: Callable[[], Tensor], relu: bool, settings: Fused
) -> Tensor:
    """The convolution of rows x [M_in, C] with w [k..., C, K] by a table of neighbours [M_out, taps].

    ``inverse`` makes the table [M_in, taps] of who reads a row, which only the gradient of x needs; it is not made
    inside a compiler, where the kernel makes it by itself.
    """
    flags = _RELU * relu + settings.processor_flags
    arguments: tuple[Any, ...] = (x, w, bias, None, None, None, table, [], flags)
    if not torch.compiler.is_compiling() and _recording((x, w, bias)) and x.requires_grad:
        operator = _operator("site_forward", _place(settings, x))
        tail = (settings.threads, settings.core or "")
        return cast(Tensor, _TableConvolution.apply(operator, inverse, *arguments, *tail))
    return cast(Tensor, _differentiable("site_forward", settings, (x, w, bias), arguments))


# The residual unit.


def residual(
    x: Tensor, site: Tensor, count: Tensor, unit: Sequence[Tensor | None], original: bool, settings: Fused
) -> Tensor:
    """The unit at the listed pixels, x elsewhere; differentiable.

    ``unit``: scale1, shift1 (both None without the first normalisation), w1, scale2, shift2, w2, scale3, shift3, w3.
    """
    flags = Flag.ORIGINAL * original + settings.processor_flags
    return cast(Tensor, _differentiable("residual_forward", settings, (x, *unit), (x, site, count, *unit, flags)))


def residual_(
    y: Tensor, x: Tensor, site: Tensor, count: Tensor, unit: Sequence[Tensor | None], original: bool, settings: Fused
) -> Tensor:
    """The same written into the listed pixels of ``y``, which is contiguous and not x; returns it."""
    flags = Flag.ORIGINAL * original + settings.processor_flags
    arguments = (x, site, count, *unit, flags)
    if _recording((y, x, *unit)):
        return cast(
            Tensor, _ResidualInPlace.apply(_operator("residual_forward_", _place(settings, y)), settings, y, *arguments)
        )
    _call("residual_forward_", settings, y, (y, *arguments))
    return y


# Calls.


def _numbers(at: Window) -> list[int]:
    return [*at.size, *at.stride, *at.offset]


def _place(settings: Fused, tensor: Tensor) -> str:
    return settings.core or tensor.device.type


def _recording(reals: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in reals)


def _call(name: str, settings: Fused, tensor: Tensor, arguments: tuple[Any, ...]) -> Any:
    """An operator without a gradient, or one that writes into tensors that need none."""
    arguments = (*arguments, settings.threads, settings.core or "")
    if torch.compiler.is_compiling():
        _ready(_place(settings, tensor))
        return getattr(torch.ops.eqconv, name).default(*arguments)
    return _operator(name, _place(settings, tensor))(*arguments)


def _differentiable(name: str, settings: Fused, reals: Sequence[Tensor | None], arguments: tuple[Any, ...]) -> Any:
    place = settings.core or cast(Tensor, reals[0]).device.type
    arguments = (*arguments, settings.threads, settings.core or "")
    if torch.compiler.is_compiling():
        _ready(place)
        return getattr(torch.ops.eqconv, name).default(*arguments)
    operator = _operator(name, place)
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in reals
    ):
        raise NotImplementedError(_NO_FORWARD_MODE)
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return operator(*arguments)
    # What is registered for the operator's gradient is Python code that costs more than a small image, the more when
    # something is recorded. Outside compilers and transforms it is not needed.
    if _recording(reals):
        return _Recorded.apply(operator, name, *arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


@constant
def _ready(place: str) -> bool:
    _operator("block_gather", place)
    return True


@cache
def _operator(name: str, place: str) -> Any:
    """An operator that all of PyTorch knows, with the core of a place behind it; raises Unavailable."""
    made = operator(name, place)
    _register()
    return made


# Gradients, as the operators have them registered and as the quicker path records them.


class _Recorded(torch.autograd.Function):
    """An operator with its registered gradient, at a fraction of the cost."""

    @staticmethod
    def forward(ctx: Any, operator: Any, name: str, *arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            y = cast(Tensor, operator(*arguments))
        ctx.name = name
        _SETUPS[name](ctx, arguments, y)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *_GRADIENTS[ctx.name](ctx, cotangents[0], ctx.needs_input_grad[2:]))


class _ScatterInPlace(torch.autograd.Function):
    """``block_scatter_``: y is its own base."""

    @staticmethod
    def forward(ctx: Any, operator: Any, settings: Fused, y: Tensor, *arguments: Any) -> Tensor:
        blocks, rows, count, window, flags = arguments
        tail = (settings.threads, settings.core or "")
        with torch._C._AutoDispatchBelowAutograd():
            operator(y, *arguments, *tail)
        ctx.mark_dirty(y)
        _setup_scatter(ctx, (blocks, rows, count, y, list(y.shape), window, flags, *tail), y)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        found = _scatter_gradients(ctx, cotangents[0], (needs[3], False, False, needs[2], *[False] * 5))
        return (None, None, found[3], found[0], None, None, None, None)


class _ConvolutionInPlace(torch.autograd.Function):
    """``site_forward_``: y is its own base."""

    @staticmethod
    def forward(ctx: Any, operator: Any, settings: Fused, y: Tensor, *arguments: Any) -> Tensor:
        x, w, bias, site, count, geometry, flags = arguments
        tail = (settings.threads, settings.core or "")
        with torch._C._AutoDispatchBelowAutograd():
            operator(y, *arguments, *tail)
        ctx.mark_dirty(y)
        _setup_sites(ctx, (x, w, bias, y, site, count, None, geometry, flags, *tail), y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        dx, dw, db, dy, *_ = _site_gradients(ctx, cotangents[0], (*needs[3:6], needs[2], *[False] * 7))
        return (None, None, dy, dx, dw, db, None, None, None, None)


class _TableConvolution(torch.autograd.Function):
    """``site_forward`` by a table whose inverse is made, and kept, only when a gradient is computed."""

    @staticmethod
    def forward(ctx: Any, operator: Any, inverse: Callable[[], Tensor], *arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            y = cast(Tensor, operator(*arguments))
        ctx.inverse = inverse
        _setup_sites(ctx, arguments, y)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *_site_gradients(ctx, cotangents[0], ctx.needs_input_grad[2:], ctx.inverse()))


class _ResidualInPlace(torch.autograd.Function):
    """``residual_forward_``: outside the listed pixels y stays what it was."""

    @staticmethod
    def forward(ctx: Any, operator: Any, settings: Fused, y: Tensor, *arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            operator(y, *arguments, settings.threads, settings.core or "")
        ctx.mark_dirty(y)
        _setup_residual(ctx, (*arguments, settings.threads, settings.core or ""), y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        dy, needs = cotangents[0], ctx.needs_input_grad
        _, site, count, *_ = ctx.saved_tensors
        off = _off_the_list(dy, site, count)
        found = _residual_gradients(ctx, dy - off, needs[3:])
        return (None, None, off if needs[2] else None, *found[: len(needs) - 3])


def _below(operator: Any, *arguments: Any) -> Any:
    """The operator, without what records its gradient where nothing is recorded."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _setup_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, rows, count, ctx.window, ctx.flags, ctx.threads, ctx.core = inputs
    ctx.image = list(x.shape)
    ctx.save_for_backward(rows, count)


def _gather_gradients(ctx: Any, dy: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    rows, count = ctx.saved_tensors
    # Overlapping windows add up, but for those that were 0 where a later row covers, too.
    flags = ctx.flags & ~_OWNED if ctx.flags & _OWNED else ctx.flags | _ADD
    tail = (ctx.window, flags, ctx.threads, ctx.core)
    dx = _below(torch.ops.eqconv.block_scatter.default, dy, rows, count, None, ctx.image, *tail) if needs[0] else None
    return (dx, *[None] * 6)


def _setup_scatter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, rows, count, _, ctx.image, ctx.window, ctx.flags, ctx.threads, ctx.core = inputs
    ctx.save_for_backward(rows, count)


def _scatter_gradients(ctx: Any, dy: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    rows, count = ctx.saved_tensors
    adds = ctx.flags & _ADD
    tail = (ctx.window, ctx.flags & ~_ADD, ctx.threads, ctx.core)
    blocks = base = None
    if needs[0]:
        # Of an overwriting scatter only the row that a pixel belongs to has a gradient there.
        flags = tail[1] if adds else tail[1] | _OWNED
        blocks = _below(torch.ops.eqconv.block_gather.default, dy, rows, count, tail[0], flags, *tail[2:])
    if needs[3]:
        base = dy if adds else _below(torch.ops.eqconv.block_scatter.default, None, rows, count, dy, ctx.image, *tail)
    return (blocks, None, None, base, *[None] * 5)


def _setup_sites(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, _, site, count, table, ctx.geometry, ctx.flags, ctx.threads, ctx.core = inputs
    ctx.save_for_backward(x, w, site, count, table, output if ctx.flags & _RELU else None)


def _site_gradients(
    ctx: Any, dy: Tensor, needs: Sequence[bool], inverse: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    x, w, site, count, table, y = ctx.saved_tensors
    wanted = _DX * needs[0] + _DW * needs[1] + _DB * needs[2]
    dx = dw = db = None
    if wanted:
        lists = (site, count, table, inverse)
        numbers = (ctx.geometry, wanted, ctx.flags, ctx.threads, ctx.core)
        dx, dw, db = _below(torch.ops.eqconv.site_backward.default, dy, y, x, w, *lists, *numbers)
    base = _off_the_list(dy, site, count) if needs[3] else None
    return (*(g if need else None for g, need in zip((dx, dw, db), needs[:3], strict=True)), base, *[None] * 7)


def _off_the_list(dy: Tensor, site: Tensor, count: Tensor | None) -> Tensor:
    """``dy`` [N, H, W, C] with 0 at the listed pixels; never waits for the count."""
    listed = torch.zeros(dy[..., 0].numel() + 1, dtype=torch.bool, device=dy.device)
    positions = site.long()
    if count is not None:
        counts = torch.arange(len(site), device=site.device) < count
        positions = torch.where(counts, positions, dy[..., 0].numel())
    listed[positions] = True
    return dy.masked_fill(listed[:-1].view(*dy.shape[:-1], 1), 0)


def _setup_residual(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.flags, ctx.threads, ctx.core = inputs
    ctx.save_for_backward(*tensors)


def _residual_gradients(ctx: Any, dy: Tensor, needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    x, site, count, *unit = ctx.saved_tensors
    wanted = [bool(need) for need in (needs[0], *needs[3:12])]
    found = _below(torch.ops.eqconv.residual_backward.default, dy, x, site, count, *unit, wanted, ctx.flags)
    gradients = [g if need else None for g, need in zip(found, wanted, strict=True)]
    return (gradients[0], None, None, *gradients[1:], None, None, None)


_SETUPS: dict[str, Callable[..., None]] = {
    "block_gather": _setup_gather,
    "block_scatter": _setup_scatter,
    "site_forward": _setup_sites,
    "residual_forward": _setup_residual,
}
_GRADIENTS: dict[str, Callable[..., tuple[Tensor | None, ...]]] = {
    "block_gather": _gather_gradients,
    "block_scatter": _scatter_gradients,
    "site_forward": _site_gradients,
    "residual_forward": _residual_gradients,
}


# What PyTorch wants to know of an operator.


@cache
def _register() -> None:
    torch_residual_backward.define()
    fakes: dict[str, Callable[..., Any]] = {
        "mask_blocks": lambda mask, *rest: _fake_list(mask, (mask.shape[0] * rest[0] * rest[1], 3)),
        "mask_pixels": lambda mask, *rest: _fake_list(mask, (mask.shape[0] * rest[0] * rest[1],)),
        "block_gather": _fake_gather,
        "block_scatter": lambda blocks, index, count, base, image, *_: (base if blocks is None else blocks).new_empty(
            image
        ),
        "block_scatter_": lambda *_: None,
        "block_pixels": lambda index, count, image, *_: _fake_list(index, (image[0] * image[1] * image[2],)),
        "site_forward": _fake_site_forward,
        "site_forward_": lambda *_: None,
        "site_backward": _fake_site_backward,
        "site_outputs": _fake_site_outputs,
        "site_table": _fake_site_table,
        "residual_forward": lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format),
        "residual_forward_": lambda *_: None,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"eqconv::{name}", fake)
    for name, setup in _SETUPS.items():
        torch.library.register_autograd(f"eqconv::{name}", _registered(name), setup_context=setup)
        torch.library.register_vmap(f"eqconv::{name}", _refuse_vmap)
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(f"eqconv::{name}", device, torch.float32)
    torch.library.register_autograd("eqconv::site_backward", _refuse_second_order)


def _registered(name: str) -> Callable[..., tuple[Tensor | None, ...]]:
    return lambda ctx, dy: _GRADIENTS[name](ctx, dy, ctx.needs_input_grad)


def _fake_list(like: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return like.new_empty(shape, dtype=torch.int32), like.new_empty((1,), dtype=torch.int32)


def _fake_gather(x: Tensor, index: Tensor, count: Tensor | None, window: list[int], flags: int, *_: Any) -> Tensor:
    rows, channels, (height, width) = index.shape[0], x.shape[3], window[:2]
    return x.new_empty((rows, channels, height, width) if flags & _TRANSPOSE else (rows, height, width, channels))


def _fake_site_forward(
    x: Tensor, w: Tensor, bias: Any, base: Any, site: Any, count: Any, table: Any, *rest: Any
) -> Tensor:
    if table is not None:
        return x.new_empty(table.shape[0], w.shape[-1])
    return x.new_empty(x.shape[0], *rest[0][:2], w.shape[-1])


def _fake_site_backward(dy: Tensor, y: Any, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    wanted = rest[-4]
    shapes = ((_DX, x.shape), (_DW, w.shape), (_DB, w.shape[-1:]))
    dx, dw, db = (x.new_empty(shape if wanted & bit else (0,)) for bit, shape in shapes)
    return dx, dw, db


def _fake_site_outputs(coords: Tensor, count: Any, batch: int, geometry: list[int], *_: Any) -> tuple[Tensor, Tensor]:
    axes = coords.shape[1] - 1
    by_sites, by_places, limit = coords.shape[0], batch, 2**31 - 1
    for out, size in zip(geometry[axes : 2 * axes], geometry[2 * axes : 3 * axes], strict=True):
        by_sites, by_places = min(limit, by_sites * min(out, size)), min(limit, by_places * out)
    return _fake_list(coords, (min(by_sites, by_places), 1 + axes))


def _fake_site_table(
    coords: Tensor, count: Any, out_coords: Tensor, out_count: Any, batch: int, geometry: list[int], *_: Any
) -> Tensor:
    axes, taps = coords.shape[1] - 1, 1
    for size in geometry[2 * axes : 3 * axes]:
        taps *= size
    return coords.new_empty(out_coords.shape[0], taps)


def _refuse_second_order(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(_SECOND_ORDER)


def _refuse_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    raise NotImplementedError(_NO_VMAP)
