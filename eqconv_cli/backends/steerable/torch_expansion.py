"""The weights of a steerable convolution become its filter, on tensors of PyTorch.

Weiler, Cesa, arXiv 1911.08251, eq. 4. "dense" is that of QUVA-Lab/e2cnn, ``basisexpansion_singleblock.py`` and
``basisexpansion_blocks.py`` of ``nn/modules/r2_conv``; the other compositions answer its issue 12.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from eqconv_cli.backends.steerable import arguments, tables, torch_fused
from eqconv_cli.backends.steerable.arguments import ALGORITHMS
from eqconv_cli.backends.steerable.constants import (
    Compressed,
    Dense,
    Harmonics,
    IrrepsLoop,
    IrrepsVec,
    Layer,
    Orbit,
    PackedSlices,
    Place,
    Recombination,
    converted,
    layer_constants,
)
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.backends.steerable.plan import Plan
from eqconv_cli.kernels.torch_doors import constant, missing_operators

__all__ = ["ALGORITHMS", "expand", "expand_backward"]

_FLOATS = (torch.float32, torch.float64)
#: The blocks of a pair type as [T, outs, ins, so, si, S]: T is the number of harmonics, or else 1, or S is 1.
Blocks = Tensor


def expand(plan: Plan, weights: Tensor, *, algorithm: str = "auto", settings: Fused | None = None) -> Tensor:
    """The filter of the weights; linear in them, differentiable any number of times.

    All algorithms give the same filter. Under autocast it is computed in the dtype of the weights as well.

    Args:
        plan: of the layer.
        weights: [plan.weights_size], float32 or float64.
        algorithm: "auto" (the compiled kernels where they are there), or one of :data:`ALGORITHMS`.
        settings: of the compiled kernels, with "fused", "fused_orbit" and "fused_direct".

    Returns:
        [out channels, in channels of a group, k, k] in the dtype and on the device of the weights.

    Raises:
        TypeError, ValueError: an argument is not as it must be.
        Unavailable: compiled kernels are asked for and are not built.
    """
    dtype, device = weights.dtype, weights.device
    if dtype not in _FLOATS:
        raise TypeError(f"weights has dtype {dtype}: allowed: float32, float64")
    # A compiler traces the choice once, and warns of a cache.
    choose = _chosen if torch.compiler.is_compiling() else _known_choice
    name, how = choose(algorithm, settings, device.type)
    if how is not None:
        packed, weights_size, filter_shape = _compiled(plan, name, dtype, device)
        _check_weights(plan, weights, weights_size)
        return torch_fused.expand(packed, weights, how).view(filter_shape)
    layer = _layer(plan, name, dtype, device)
    _check_weights(plan, weights, layer.weights_size)
    if torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            return _COMPOSITIONS[name](layer, weights).view(layer.filter_shape)
    return _COMPOSITIONS[name](layer, weights).view(layer.filter_shape)


def expand_backward(
    plan: Plan, grad_filter: Tensor, *, algorithm: str = "auto", settings: Fused | None = None
) -> Tensor:
    """The transposed map: the gradient of the weights for that of the filter; differentiable any number of times.

    Args:
        plan: of the layer.
        grad_filter: [out channels, in channels of a group, k, k], float32 or float64.
        algorithm, settings: whose derivative is taken, see :func:`expand`.

    Returns:
        [plan.weights_size].

    Raises:
        TypeError, ValueError: an argument is not as it must be.
        Unavailable: compiled kernels are asked for and are not built.
    """
    if tuple(grad_filter.shape) != plan.filter_shape:
        raise ValueError(f"grad_filter has shape {tuple(grad_filter.shape)}: expected {plan.filter_shape}")
    if grad_filter.dtype not in _FLOATS:
        raise TypeError(f"grad_filter has dtype {grad_filter.dtype}: allowed: float32, float64")
    choose = _chosen if torch.compiler.is_compiling() else _known_choice
    name, how = choose(algorithm, settings, grad_filter.device.type)
    if how is not None:
        packed = _compiled(plan, name, grad_filter.dtype, grad_filter.device).packed
        return torch_fused.expand_transposed(packed, grad_filter.flatten(2), how)
    further = torch.is_grad_enabled() and grad_filter.requires_grad
    with torch.enable_grad():
        weights = grad_filter.new_zeros(plan.weights_size, requires_grad=True)
        made = expand(plan, weights, algorithm=name)
    return torch.autograd.grad(made, weights, grad_filter, create_graph=further)[0]


def _chosen(algorithm: str, settings: Fused | None, device_type: str) -> tuple[str, Fused | None]:
    return arguments.choose(algorithm, settings, lambda wanted: missing_operators(wanted, device_type))


_known_choice = cache(_chosen)


class _Compiled(NamedTuple):
    """What a compiled algorithm needs of a plan."""

    packed: torch_fused.PackedTensors
    weights_size: int
    filter_shape: tuple[int, int, int, int]


@constant
def _compiled(plan: Plan, name: str, dtype: torch.dtype, device: torch.device) -> _Compiled:
    def make() -> _Compiled:
        packed = torch_fused.upload(getattr(plan, name), device, dtype)
        return _Compiled(packed, plan.weights_size, plan.filter_shape)

    return tables.kept(plan, ("torch", name, dtype, device), make)


@constant
def _layer(plan: Plan, name: str, dtype: torch.dtype, device: torch.device) -> Layer:
    return tables.kept(
        plan, ("torch", name, dtype, device), lambda: _uploaded(layer_constants(plan, name), dtype, device)
    )


def _uploaded(layer: Layer, dtype: torch.dtype, device: torch.device) -> Layer:
    """The constants as tensors, which outlive an export that traces with fake tensors, and inference mode."""

    def upload(array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=dtype if array.dtype == np.float64 else torch.int64, device=device)

    with _disable_current_modes(), torch.inference_mode(False):
        return cast(Layer, converted(layer, upload))


def _check_weights(plan: Plan, weights: Tensor, size: int) -> None:
    if weights.ndim != 1 or weights.shape[0] != size:
        plan.check_weights(weights.shape)


# The compositions: from the weights of the layer to [out channels, in channels, S].


def _by_pairs(blocks: Callable[[Any, Place, Tensor], Blocks]) -> Callable[[Layer, Tensor], Tensor]:
    """A composition that makes the blocks of one pair type after the other, [outs, ins, so, si, S], from [K, d]."""

    def composition(layer: Layer, weights: Tensor) -> Tensor:
        made = [
            blocks(data, place, weights[place.start : place.end].reshape(-1, place.elements)).unsqueeze(0)
            for data, place in zip(layer.data, layer.places, strict=True)
        ]
        return _assembled(layer, made)[0]

    return composition


def _assembled(layer: Layer, blocks: Sequence[Blocks]) -> Tensor:
    """The blocks of all pair types where they belong, [T, out channels, in channels, S]."""
    out_channels, in_channels = layer.filter_shape[:2]
    lead, trail = blocks[0].shape[0], blocks[0].shape[-1]
    if layer.whole:
        ordered = blocks[0].transpose(2, 3).contiguous()
        return ordered.view(lead, out_channels, in_channels, trail)
    made = blocks[0].new_zeros(lead, out_channels, in_channels, trail)
    for place, block in zip(layer.places, blocks, strict=True):
        ordered = block.transpose(2, 3)
        if place.rows is not None and place.columns is not None:
            target = made[:, slice(*place.rows), slice(*place.columns)]
            target.view(ordered.shape).copy_(ordered)
        else:
            rows, columns = place.row_index[:, None], place.column_index
            made[:, rows, columns] = ordered.reshape(lead, len(rows), len(columns), trail)
    return made


def _blocks(made: Tensor, place: Place) -> Blocks:
    return made.view(place.outs, place.ins, place.so, place.si, -1)


def _dense(data: Dense, place: Place, weights: Tensor) -> Blocks:
    return _blocks(weights @ data.basis, place)


def _irreps_loop(data: IrrepsLoop, place: Place, weights: Tensor) -> Blocks:
    pixels = data.pairs[0].values.shape[-1]
    made = weights.new_zeros(place.so, place.si, len(weights), pixels)
    for pair in data.pairs:
        block = torch.einsum("kb,boip->oikp", weights.index_select(1, pair.ids), pair.values)
        made[slice(*pair.rows), slice(*pair.columns)] = block
    return _recombined(data.change, made, place)


def _irreps_vec(data: IrrepsVec, place: Place, weights: Tensor) -> Blocks:
    made = torch.bmm(weights.expand(len(data.padded), -1, -1), data.padded)
    return _recombined(data.change, made, place)


def _packed_slices(data: PackedSlices, place: Place, weights: Tensor) -> Blocks:
    gathered = weights.index_select(1, data.ids).view(len(weights), *data.values.shape[:2])
    return _recombined(data.change, torch.bmm(gathered.transpose(0, 1), data.values), place)


def _recombined(change: Recombination, made: Tensor, place: Place) -> Blocks:
    """Q_out x Q_in^-1 for x [so · si, K, S]."""
    if change.out is not None:
        made = change.out @ made.reshape(place.so, -1)
    if change.inverse is not None:
        made = change.inverse @ made.reshape(place.so, place.si, -1)
    return made.reshape(place.so, place.si, place.outs, place.ins, -1).permute(2, 3, 0, 1, 4)


def _compressed(data: Compressed, place: Place, weights: Tensor) -> Blocks:
    count, size = place.elements, len(data.transposed_starts) - 1
    basis = (data.starts, data.columns, data.values, (count, size))
    transposed = (data.transposed_starts, data.transposed_columns, data.transposed_values, (size, count))
    made = _Linear.apply(weights.t(), lambda given: _sparse(*transposed) @ given, lambda given: _sparse(*basis) @ given)
    # [so · si, S, K]
    apart = made.view(place.so * place.si, -1, len(weights)).transpose(1, 2)
    return _recombined(data.change, apart, place)


# PyTorch announces once that CSR tensors are "in beta"; that is not for the users of this algorithm to read.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int64), torch.empty(0), size=(1, 1))


def _sparse(starts: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(starts, columns, values, size=size, check_invariants=False)


def _orbit(data: Orbit, place: Place, weights: Tensor) -> Blocks:
    made = (weights @ data.basis).index_select(1, data.index)
    return _blocks(made if data.sign is None else made * data.sign, place)


def _harmonic(layer: Layer, weights: Tensor) -> Tensor:
    assert layer.harmonic is not None
    coefficients = _assembled(
        layer,
        [
            _coefficients(data, place, weights[place.start : place.end].reshape(-1, place.elements))
            for data, place in zip(layer.data, layer.places, strict=True)
        ],
    )
    return coefficients.view(len(layer.harmonic), -1).t() @ layer.harmonic


def _coefficients(data: Harmonics, place: Place, weights: Tensor) -> Blocks:
    """Of the harmonics, in the coordinates of the representations, [H, outs, ins, so, si, 1]."""
    gathered = weights.index_select(1, data.ids).view(len(weights), *data.values.shape[:2])
    made = torch.bmm(gathered.transpose(0, 1), data.values)
    return made.view(len(made), place.outs, place.ins, place.so, place.si, 1)


def _dense_direct(layer: Layer, weights: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        # A compiler lays out results itself, and cannot trace those that are given.
        return _by_pairs(_by_rows)(layer, weights)
    made = _Linear.apply(weights, lambda given: _direct(layer, given), lambda given: _direct_transposed(layer, given))
    return cast(Tensor, made)


def _by_rows(data: Dense, place: Place, weights: Tensor) -> Blocks:
    return _blocks(torch.einsum("kb,obq->koq", weights, data.basis), place)


def _direct(layer: Layer, weights: Tensor) -> Tensor:
    """One product for each out field, written where it belongs if the in fields follow one another."""
    out_channels, in_channels, k, _ = layer.filter_shape
    make = weights.new_empty if layer.whole else weights.new_zeros
    made = make((out_channels, in_channels, k * k))
    for data, place in zip(layer.data, layer.places, strict=True):
        given = weights[place.start : place.end].reshape(place.outs, 1, place.ins, place.elements)
        for field, rows in enumerate(place.out_starts):
            factors = given[field].expand(place.so, -1, -1), data.basis
            target = made[rows : rows + place.so]
            if place.columns is None:
                target[:, place.column_index] = torch.bmm(*factors).view(place.so, -1, k * k)
            else:
                fields = target[:, slice(*place.columns)].unflatten(1, (place.ins, place.si)).flatten(2)
                torch.bmm(*factors, out=fields)
    return made


def _direct_transposed(layer: Layer, filter: Tensor) -> Tensor:
    made = filter.new_empty(layer.weights_size)
    filter = filter.contiguous()
    for data, place in zip(layer.data, layer.places, strict=True):
        target = made[place.start : place.end].view(place.outs, place.ins, place.elements)
        transposed = data.basis.transpose(1, 2)
        for field, rows in enumerate(place.out_starts):
            given = filter[rows : rows + place.so]
            selected = given[:, place.column_index] if place.columns is None else given[:, slice(*place.columns)]
            fields = selected.unflatten(1, (place.ins, place.si)).flatten(2)
            torch.addbmm(target[field], fields, transposed, beta=0, out=target[field])
    return made


class _Linear(torch.autograd.Function):
    """A linear map given with its transpose, of which neither is recorded."""

    @staticmethod
    def forward(real: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> Tensor:
        return there(real)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.there, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        return cast(Tensor, _Linear.apply(cotangents[0], ctx.back, ctx.there)), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return cast(Tensor, _Linear.apply(tangents[0], ctx.there, ctx.back))


_COMPOSITIONS: dict[str, Callable[[Layer, Tensor], Tensor]] = {
    "dense": _by_pairs(_dense),
    "dense_direct": _dense_direct,
    "irreps_loop": _by_pairs(_irreps_loop),
    "irreps_vec": _by_pairs(_irreps_vec),
    "packed": _by_pairs(_packed_slices),
    "csr": _by_pairs(_compressed),
    "harmonic": _harmonic,
    "orbit": _by_pairs(_orbit),
}
