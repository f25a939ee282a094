"""The compiled kernels as PyTorch operators: loading, fake kernels, gradients, autocast, and the call itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from eqconv_cli.backends.feature_steered import schedule
from eqconv_cli.backends.feature_steered.fused import GRADIENTS, SECOND_ORDER
from eqconv_cli.backends.feature_steered.options import Flag, Fused
from eqconv_cli.backends.feature_steered.plan import Pattern
from eqconv_cli.kernels.torch_doors import constant, missing_operators, operator

_FORWARD = "eqconv::feature_steered_forward"
_BACKWARD = "eqconv::feature_steered_backward"
_NO_FORWARD_MODE = (
    "version='fused' has no forward-mode derivative, and neither have the others: use reverse mode (backward)"
)
_NO_VMAP = "version='fused' is not vectorised by torch.vmap: give data its batch dimensions [A1, ..., An, V, C] instead"

#: Plain numbers, for the arithmetic of enumerations takes longer than a small graph.
_RELU, _DETERMINISTIC = int(Flag.RELU), int(Flag.DETERMINISTIC)


@dataclass(frozen=True)
class PackedTensor:
    """A packed pattern on one device; ``sizes`` as in :class:`Packed`."""

    words: Tensor
    sizes: tuple[int, int, int, int, int]
    parts: int


def upload(pattern: Pattern, device: torch.device, settings: Fused) -> None:
    """Keep a pattern on a device as the kernels take it for both passes, so that the first call need not make it."""
    _packed(pattern, device, schedule.parts_for(settings.core or device.type, True, settings.deterministic))


@constant
def missing(settings: Fused, device_type: str, rows: int, cols: int, edges: int) -> list[str]:
    """Why the compiled kernels cannot compute this on such a device; empty when they can."""
    return [*missing_operators(settings, device_type), *schedule.too_large(rows, cols, edges)]


def convolve(
    x: Tensor,
    centre: Tensor | None,
    values: Tensor,
    parameters: Sequence[Tensor],
    pattern: Pattern,
    settings: Fused,
    flags: int,
) -> Tensor:
    """The result [rows, D], differentiable once.

    Args:
        x: features of the sources [cols, C].
        centre: features of the centres [rows, C]; None when centre i is column i.
        values: weights of the edges in the caller's order.
        parameters: u, v, c, W, b.
        pattern: the plan's.
        settings: where and how to compute.
        flags: what to compute.

    Raises:
        Unavailable: the kernels are not built.
        RuntimeError: shapes, dtypes or devices do not fit.
    """
    inputs = (x, values, *parameters) if centre is None else (x, centre, values, *parameters)
    training = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    if x.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        flags |= _DETERMINISTIC
    place = settings.core or x.device.type
    parts = schedule.parts_for(place, training, flags & _DETERMINISTIC != 0)
    if torch.compiler.is_compiling():
        words, sizes = _words(pattern, x.device, place, parts), _sizes(pattern, x.device, place, parts)
        operator = torch.ops.eqconv.feature_steered_forward.default
        return operator(x, centre, values, *parameters, words, *sizes, flags, settings.threads, settings.core or "")
    operator = _operator(place)
    arguments = _arguments(x, centre, values, parameters, _packed(pattern, x.device, parts), settings, flags)
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in inputs):
        raise NotImplementedError(_NO_FORWARD_MODE)
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return cast(Tensor, operator(*arguments))
    # What is registered for the operator's gradient is Python code that costs more than a small graph, the more when
    # something is recorded. Outside compilers and transforms it is not needed.
    if training:
        return cast(Tensor, _Recorded.apply(operator, *arguments))
    with torch._C._AutoDispatchBelowAutograd():
        return cast(Tensor, operator(*arguments))


def _arguments(
    x: Tensor,
    centre: Tensor | None,
    values: Tensor,
    parameters: Sequence[Tensor],
    packed: PackedTensor,
    settings: Fused,
    flags: int,
) -> tuple[Any, ...]:
    sizes = (*packed.sizes, flags, settings.threads, settings.core or "")
    return (x, centre, values, *parameters, packed.words, *sizes)


def door(
    x: Tensor, values: Tensor, parameters: Sequence[Tensor], pattern: Pattern, settings: Fused
) -> tuple[Any, tuple[Any, ...]]:
    """The forward operator and the arguments that :func:`convolve` would call it with, for measurements.

    Args:
        x: features [V, C], of sources and centres.
        values, parameters, pattern, settings: as for :func:`convolve`.
    """
    place = settings.core or x.device.type
    packed = _packed(pattern, x.device, schedule.parts_for(place, False, settings.deterministic))
    return _operator(place), _arguments(x, None, values, parameters, packed, settings, 0)


class _Recorded(torch.autograd.Function):
    """The operator with its registered gradient, at a fraction of the cost."""

    @staticmethod
    def forward(ctx: Any, operator: Any, *arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            y = cast(Tensor, operator(*arguments))
        _setup_context(ctx, arguments, y)
        return y

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *_gradients(ctx, cotangents[0], ctx.needs_input_grad[1:]))


def _packed(pattern: Pattern, device: torch.device, parts: int) -> PackedTensor:
    key = ("torch fused", device)
    found: PackedTensor | None = pattern.copies.get(key)
    if found is not None and not parts & ~found.parts:
        return found

    def upload(made: schedule.Packed) -> PackedTensor:
        # The tensor outlives an export that traces with fake tensors, and inference mode.
        with _disable_current_modes(), torch.inference_mode(False):
            return PackedTensor(torch.from_numpy(made.words).to(device), made.sizes, made.parts)

    return schedule.packed(pattern, key, parts, upload)


@constant
def _words(pattern: Pattern, device: torch.device, place: str, parts: int) -> Tensor:
    _operator(place)
    return _packed(pattern, device, parts).words


@constant
def _sizes(pattern: Pattern, device: torch.device, place: str, parts: int) -> tuple[int, ...]:
    return _packed(pattern, device, parts).sizes


@cache
def _operator(place: str) -> Any:
    """The forward operator, which all of PyTorch knows, with the core of a place behind it; raises Unavailable."""
    made = operator("feature_steered_forward", place)
    _register()
    return made


@cache
def _register() -> None:
    torch.library.register_fake(_FORWARD, _fake_forward)
    torch.library.register_fake(_BACKWARD, _fake_backward)
    torch.library.register_autograd(_FORWARD, _backward, setup_context=_setup_context)
    torch.library.register_autograd(_BACKWARD, _refuse_second_order)
    for name in (_FORWARD, _BACKWARD):
        torch.library.register_vmap(name, _refuse_vmap)
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(name, device, torch.float32)


def _fake_forward(x: Tensor, centre: Tensor | None, values: Tensor, *rest: Any) -> Tensor:
    _, _, _, w, _, _, rows = rest[:7]
    return x.new_empty(rows, w.shape[2])


def _fake_backward(dy: Tensor, y: Tensor | None, x: Tensor, centre: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    values, u, v, c, w = rest[:5]
    wanted = rest[-4]
    like = (x, x if centre is None else centre, values, u, v, c, w)
    shapes = [*(t.shape for t in like), (w.shape[2],)]
    return tuple(x.new_empty(shape if wanted >> bit & 1 else (0,)) for bit, shape in enumerate(shapes))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, centre, values, u, v, c, w, _, words, *numbers = inputs
    ctx.sizes, (ctx.flags, ctx.threads, ctx.core) = numbers[:5], numbers[5:]
    ctx.save_for_backward(x, centre, values, u, v, c, w, words, output if ctx.flags & _RELU else None)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, dy, ctx.needs_input_grad)


def _gradients(ctx: Any, dy: Tensor, needs_input_grad: Sequence[bool]) -> tuple[Tensor | None, ...]:
    *tensors, words, y = ctx.saved_tensors
    needed = needs_input_grad[: len(GRADIENTS)]
    wanted = sum(1 << bit for bit, need in enumerate(needed) if need)
    operator = torch.ops.eqconv.feature_steered_backward.default
    arguments = (dy, y, *tensors, words, *ctx.sizes, wanted, ctx.flags, ctx.threads, ctx.core)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        gradients = operator(*arguments)
    else:
        with torch._C._AutoDispatchBelowAutograd():
            gradients = operator(*arguments)
    rest = len(needs_input_grad) - len(needed)
    return (*(g if need else None for g, need in zip(gradients, needed, strict=True)), *[None] * rest)


def _refuse_second_order(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(SECOND_ORDER)


def _refuse_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    raise NotImplementedError(_NO_VMAP)
