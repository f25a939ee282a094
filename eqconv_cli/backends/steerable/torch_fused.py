"""The compiled expansion as PyTorch operators: loading, fake kernels, derivatives of any order, and the call."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

from eqconv_cli.backends.steerable.options import Flag, Fused
from eqconv_cli.backends.steerable.packed import Packed
from eqconv_cli.kernels.torch_doors import constant, operator

_FORWARD, _BACKWARD = "expand_forward", "expand_backward"
_NO_VMAP = "version='fused' is not vectorised by torch.vmap: a layer has one vector of weights, [weights_size]"
#: Places of numbers in the sizes.
_FILTER, _WEIGHTS = slice(2, 5), 8


class PackedTensors(NamedTuple):
    """What the operators read of a layer, on one device in one dtype; fields as in :class:`Packed`."""

    words: Tensor
    reals: Tensor
    sizes: tuple[int, ...]
    direct: bool


def upload(packed: Packed, device: torch.device | str, dtype: torch.dtype) -> PackedTensors:
    """The tables of a layer on a device, for weights of this dtype, float32 or float64.

    They outlive an export that traces with fake tensors, and inference mode.
    """
    with _disable_current_modes(), torch.inference_mode(False):
        words = torch.tensor(packed.words, dtype=torch.int32, device=device)
        reals = torch.tensor(packed.reals, dtype=dtype, device=device)
    return PackedTensors(words, reals, packed.sizes, packed.direct)


def expand(packed: PackedTensors, weights: Tensor, settings: Fused) -> Tensor:
    """The filter of the weights; differentiable any number of times, in reverse and in forward mode.

    Args:
        packed: the layer, on the device and in the dtype of the weights.
        weights: [weights_size], float32 or float64; under autocast any real dtype, computed in float32.
        settings: of the kernels.

    Returns:
        [out_channels, in_channels, pixels].

    Raises:
        Unavailable: the kernels are not built.
        RuntimeError: shapes, dtypes or devices do not fit.
        NotImplementedError: under ``torch.vmap``.
    """
    tables, place = _tables(packed, settings), settings.core or weights.device.type
    if torch.compiler.is_compiling():
        _ready(place)
        return cast(Tensor, torch.ops.eqconv.expand_forward.default(weights, *tables))
    return _mapped(*_operators(place), weights, tables)


def expand_transposed(packed: PackedTensors, filter: Tensor, settings: Fused) -> Tensor:
    """The transposed map, [weights_size] for a filter [out_channels, in_channels, pixels]; else as :func:`expand`."""
    tables, place = _tables(packed, settings), settings.core or filter.device.type
    if torch.compiler.is_compiling():
        _ready(place)
        return cast(Tensor, torch.ops.eqconv.expand_backward.default(filter, *tables))
    forward, backward = _operators(place)
    return _mapped(backward, forward, filter, tables)


def _tables(packed: PackedTensors, settings: Fused) -> tuple[Any, ...]:
    flags = Flag.DIRECT * packed.direct + settings.processor_flags
    return packed.words, packed.reals, packed.sizes, flags, settings.threads, settings.core or ""


def _mapped(operator: Any, transposed: Any, real: Tensor, tables: tuple[Any, ...]) -> Tensor:
    """An operator that is linear in ``real``, with its transpose for derivatives."""
    # What is registered for the operator's gradient is Python code that costs more than a small layer, and that
    # transforms (torch.func) do not take.
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return cast(Tensor, _Transformed.apply(operator, transposed, real, tables))
    if (torch.is_grad_enabled() and real.requires_grad) or forward_ad._current_level >= 0:
        return cast(Tensor, _record(operator, transposed, real, tables))
    with torch._C._AutoDispatchBelowAutograd():
        return cast(Tensor, operator(real, *tables))


class _Recorded(torch.autograd.Function):
    """An operator with its derivatives, at a fraction of the cost of those that are registered."""

    @staticmethod
    def forward(ctx: Any, operator: Any, transposed: Any, real: Tensor, tables: tuple[Any, ...]) -> Tensor:
        ctx.operator, ctx.transposed, ctx.tables = operator, transposed, tables
        with torch._C._AutoDispatchBelowAutograd():
            return cast(Tensor, operator(real, *tables))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, _mapped(ctx.transposed, ctx.operator, cotangents[0], ctx.tables), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _mapped(ctx.operator, ctx.transposed, tangents[2], ctx.tables)


#: Without what ``Function.apply`` does for transforms, which takes as long as a small layer.
_record: Any = super(torch.autograd.Function, _Recorded).apply


class _Transformed(torch.autograd.Function):
    """The same as transforms need it, which costs more."""

    backward, jvp = _Recorded.backward, _Recorded.jvp

    @staticmethod
    def forward(operator: Any, transposed: Any, real: Tensor, tables: tuple[Any, ...]) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return cast(Tensor, operator(real, *tables))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operator, ctx.transposed, _, ctx.tables = inputs

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        raise NotImplementedError(_NO_VMAP)


@constant
def _ready(place: str) -> bool:
    _operators(place)
    return True


@cache
def _operators(place: str) -> tuple[Any, Any]:
    """Both operators, which all of PyTorch knows, with the core of a place behind them; raises Unavailable."""
    made = operator(_FORWARD, place), operator(_BACKWARD, place)
    _register()
    return made


# What PyTorch wants to know of an operator.


@cache
def _register() -> None:
    torch.library.register_fake(f"eqconv::{_FORWARD}", lambda w, words, reals, sizes, *_: w.new_empty(sizes[_FILTER]))
    torch.library.register_fake(
        f"eqconv::{_BACKWARD}", lambda filter, words, reals, sizes, *_: filter.new_empty(sizes[_WEIGHTS])
    )
    for name, transposed in ((_FORWARD, _BACKWARD), (_BACKWARD, _FORWARD)):
        gradient = _gradient(getattr(torch.ops.eqconv, transposed).default)
        torch.library.register_autograd(f"eqconv::{name}", gradient, setup_context=_setup_context)
        torch.library.register_vmap(f"eqconv::{name}", _refuse_vmap)
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(f"eqconv::{name}", device, torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, words, reals, *ctx.rest = inputs
    ctx.save_for_backward(words, reals)


def _gradient(transposed: Any) -> Any:
    return lambda ctx, cotangent: (transposed(cotangent, *ctx.saved_tensors, *ctx.rest), *[None] * 6)


def _refuse_vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
    raise NotImplementedError(_NO_VMAP)
