"""The weights of a steerable convolution become its filter, on tensors of TensorFlow.

Weiler, Cesa, arXiv 1911.08251, eq. 4. "dense" is that of QUVA-Lab/e2cnn, ``basisexpansion_singleblock.py`` and
``basisexpansion_blocks.py`` of ``nn/modules/r2_conv``; the other compositions answer its issue 12.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import tensorflow as tf

from eqconv_cli.backends.steerable import arguments, tables, tensorflow_fused
from eqconv_cli.backends.steerable.arguments import ALGORITHMS
from eqconv_cli.backends.steerable.constants import (
    Assembly,
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
    assembly,
    converted,
    layer_constants,
)
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.backends.steerable.plan import Plan
from eqconv_cli.frameworks.tensorflow_tensors import device_name
from eqconv_cli.kernels.tensorflow_doors import missing_operators

__all__ = ["ALGORITHMS", "expand", "expand_backward"]


class _Sparse(NamedTuple):
    """The padded basis, transposed, [so · si · S, elements]: places [n, 2] and values."""

    indices: Any
    values: Any
    size: tuple[int, int]
    change: Recombination


class _Constants(NamedTuple):
    layer: Layer
    #: None where the blocks of one pair type are the filter.
    assembly: Assembly | None


def expand(plan: Plan, weights: tf.Tensor, *, algorithm: str = "auto", settings: Fused | None = None) -> tf.Tensor:
    """The filter of the weights; linear in them, differentiable any number of times.

    All algorithms give the same filter.

    Args:
        plan: of the layer.
        weights: [plan.weights_size], float32 or float64, a tensor or a variable.
        algorithm: "auto" (the compiled kernels where they are there), or one of :data:`ALGORITHMS`.
        settings: of the compiled kernels, with "fused", "fused_orbit" and "fused_direct".

    Returns:
        [out channels, in channels of a group, k, k] in the dtype of the weights.

    Raises:
        TypeError, ValueError: an argument is not as it must be.
        Unavailable: compiled kernels are asked for and are not built.
    """
    weights = _checked(plan, tf.convert_to_tensor(weights))
    name, how = arguments.choose(algorithm, settings, lambda wanted: missing_operators(wanted, weights.device))
    if how is not None:
        packed = _packed(plan, name, weights)
        return tf.reshape(tensorflow_fused.expand(packed, weights, how), plan.filter_shape)
    return tf.reshape(_COMPOSITIONS[name](_constants(plan, name, weights), weights), plan.filter_shape)


def expand_backward(
    plan: Plan, grad_filter: tf.Tensor, *, algorithm: str = "auto", settings: Fused | None = None
) -> tf.Tensor:
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
    grad_filter = tf.convert_to_tensor(grad_filter)
    arguments.check_float("grad_filter", grad_filter.dtype.name)
    if grad_filter.shape.rank is not None:
        arguments.check_filter("grad_filter", grad_filter.shape.as_list(), plan)
    grad_filter = tf.ensure_shape(grad_filter, plan.filter_shape)
    name, how = arguments.choose(algorithm, settings, lambda wanted: missing_operators(wanted, grad_filter.device))
    if how is not None:
        flat = tf.reshape(grad_filter, [*plan.filter_shape[:2], -1])
        return tensorflow_fused.expand_transposed(_packed(plan, name, grad_filter), flat, how)
    weights = tf.zeros([plan.weights_size], grad_filter.dtype)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        made = expand(plan, weights, algorithm=name)
    return tape.gradient(made, weights, output_gradients=grad_filter)


def _checked(plan: Plan, weights: tf.Tensor) -> tf.Tensor:
    """The weights, whose length is known even where that of the given ones is not while tracing."""
    arguments.check_float("weights", weights.dtype.name)
    wanted = [plan.weights_size]
    if not weights.shape.is_compatible_with(wanted):
        plan.check_weights(weights.shape.as_list())
    return weights if weights.shape.is_fully_defined() else tf.ensure_shape(weights, wanted)


def _packed(plan: Plan, name: str, weights: tf.Tensor) -> tensorflow_fused.PackedTensors:
    device = _device(weights)
    return tables.kept(
        plan,
        ("tensorflow", name, weights.dtype, device),
        lambda: tensorflow_fused.upload(getattr(plan, name), device, weights.dtype),
    )


def _constants(plan: Plan, name: str, weights: tf.Tensor) -> _Constants:
    device = _device(weights)

    def make() -> _Constants:
        layer = layer_constants(plan, name)
        if name == "csr":
            layer = layer._replace(data=tuple(_sparse(data) for data in layer.data))
        return _uploaded(_Constants(layer, None if layer.whole else assembly(plan)), device, weights.dtype)

    return tables.kept(plan, ("tensorflow", name, weights.dtype, device), make)


def _sparse(data: Compressed) -> _Sparse:
    rows = np.repeat(np.arange(len(data.transposed_starts) - 1), np.diff(data.transposed_starts))
    indices = np.stack([rows, data.transposed_columns], 1)
    size = len(data.transposed_starts) - 1, len(data.starts) - 1
    return _Sparse(indices, data.transposed_values, size, data.change)


def _device(weights: tf.Tensor) -> str:
    """Where the weights are; while tracing that may not be known, and is what TensorFlow prefers."""
    if weights.device:
        return device_name(weights.device)
    return "/GPU:0" if tf.config.list_logical_devices("GPU") else "/CPU:0"


def _uploaded(constants: _Constants, device: str, dtype: tf.DType) -> _Constants:
    """The constants as tensors, which outlive a function that is traced."""

    def upload(array: np.ndarray) -> tf.Tensor:
        return tf.constant(array, dtype if array.dtype == np.float64 else tf.int64)

    with tf.init_scope(), tf.device(device):
        return cast(_Constants, converted(constants, upload))


# The compositions: from the weights of the layer to [out channels · in channels, S].


def _by_pairs(blocks: Callable[[Any, Place, tf.Tensor], tf.Tensor]) -> Callable[[_Constants, tf.Tensor], tf.Tensor]:
    """A composition of functions that make the blocks of one pair type from their weights [K, d].

    They are in the order of the filter, [outs, so, ins, si, S], or with harmonics in the place of S.
    """

    def composition(constants: _Constants, weights: tf.Tensor) -> tf.Tensor:
        layer = constants.layer
        made = [
            blocks(data, place, tf.reshape(weights[place.start : place.end], [-1, place.elements]))
            for data, place in zip(layer.data, layer.places, strict=True)
        ]
        return _assembled(constants.assembly, made)

    return composition


def _assembled(assembly: Assembly | None, blocks: Sequence[tf.Tensor]) -> tf.Tensor:
    """The blocks of all pair types where they belong, [out channels · in channels, T]."""
    rows = [tf.reshape(block, [-1, block.shape[-1]]) for block in blocks]
    if assembly is None:
        return rows[0]
    if not assembly.covers:
        rows.append(tf.zeros_like(rows[0][:1]))
    return _moved(tf.concat(rows, 0), assembly.source, assembly.positions)


def _moved(rows: tf.Tensor, there: tf.Tensor, back: tf.Tensor) -> tf.Tensor:
    """Rows in another order; a scatter, which is the gradient of a gather, would be slower than the gather back."""

    def move(given: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return tf.gather(given, there), lambda cotangent: _moved(cotangent, back, there)

    return tf.custom_gradient(move)(rows)


def _ordered(made: tf.Tensor, place: Place) -> tf.Tensor:
    """tf.Tensor from [K, so · si · S]."""
    blocks = tf.reshape(made, [place.outs, place.ins, place.so, -1])
    sizes = [place.outs, place.so, place.ins, place.si, made.shape[-1] // (place.so * place.si)]
    return tf.reshape(tf.transpose(blocks, [0, 2, 1, 3]), sizes)


def _dense(data: Dense, place: Place, weights: tf.Tensor) -> tf.Tensor:
    return _ordered(weights @ data.basis, place)


def _dense_direct(data: Dense, place: Place, weights: tf.Tensor) -> tf.Tensor:
    """A product for each out field and row, whose results lie as in the filter."""
    # TensorFlow 2.21 overwrites memory when it broadcasts one matrix against several axes of them (its issue 117700).
    several = [place.outs, 1, place.ins, place.elements]
    made = weights @ data.basis[0] if place.so == 1 else tf.reshape(weights, several) @ data.basis[None]
    return tf.reshape(made, [place.outs, place.so, place.ins, place.si, made.shape[-1] // place.si])


def _irreps_loop(data: IrrepsLoop, place: Place, weights: tf.Tensor) -> tf.Tensor:
    pixels = data.pairs[0].values.shape[-1]
    made = tf.zeros([place.so, place.si, place.outs * place.ins, pixels], weights.dtype)
    for pair in data.pairs:
        block = tf.einsum("kb,boip->oikp", tf.gather(weights, pair.ids, axis=1), pair.values)
        (top, bottom), (left, right) = pair.rows, pair.columns
        made += tf.pad(block, [[top, place.so - bottom], [left, place.si - right], [0, 0], [0, 0]])
    return _recombined(data.change, made, place)


def _irreps_vec(data: IrrepsVec, place: Place, weights: tf.Tensor) -> tf.Tensor:
    return _recombined(data.change, weights[None] @ data.padded, place)


def _packed_slices(data: PackedSlices, place: Place, weights: tf.Tensor) -> tf.Tensor:
    return _recombined(data.change, _selected(data, weights) @ data.values, place)


def _selected(data: PackedSlices | Harmonics, weights: tf.Tensor) -> tf.Tensor:
    """The weights of the elements in each matrix of ``values`` [n, m, ...], as [n, K, m]."""
    number, each = data.values.shape[:2]
    return tf.transpose(tf.reshape(tf.gather(tf.transpose(weights), data.ids), [number, each, -1]), [0, 2, 1])


def _recombined(change: Recombination, made: tf.Tensor, place: Place) -> tf.Tensor:
    """Q_out x Q_in^-1 for x [so · si, K, S]."""
    pixels = made.shape[-1]
    if change.out is not None:
        made = change.out @ tf.reshape(made, [place.so, -1])
    if change.inverse is not None:
        made = change.inverse[None] @ tf.reshape(made, [place.so, place.si, -1])
    made = tf.reshape(made, [place.so, place.si, place.outs, place.ins, pixels])
    return tf.transpose(made, [2, 0, 3, 1, 4])


def _compressed(data: _Sparse, place: Place, weights: tf.Tensor) -> tf.Tensor:
    basis = tf.SparseTensor(data.indices, data.values, data.size)
    made = _sparse_product(basis, tf.transpose(weights), adjoint=False)
    # [so · si, S, K]
    apart = tf.reshape(made, [place.so * place.si, -1, place.outs * place.ins])
    return _recombined(data.change, tf.transpose(apart, [0, 2, 1]), place)


def _sparse_product(basis: tf.SparseTensor, dense: tf.Tensor, adjoint: bool) -> tf.Tensor:
    """A constant matrix, or its transpose, times a dense one; TensorFlow's own gradient is also one of the constant."""

    def product(given: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        made = tf.sparse.sparse_dense_matmul(basis, given, adjoint_a=adjoint)
        return made, lambda cotangent: _sparse_product(basis, cotangent, not adjoint)

    return tf.custom_gradient(product)(dense)


def _orbit(data: Orbit, place: Place, weights: tf.Tensor) -> tf.Tensor:
    made = tf.gather(weights @ data.basis, data.index, axis=1)
    return _ordered(made if data.sign is None else made * data.sign, place)


def _harmonic(constants: _Constants, weights: tf.Tensor) -> tf.Tensor:
    return _by_pairs(_coefficients)(constants, weights) @ constants.layer.harmonic


def _coefficients(data: Harmonics, place: Place, weights: tf.Tensor) -> tf.Tensor:
    """Of the harmonics, in the coordinates of the representations."""
    made = _selected(data, weights) @ data.values
    made = tf.reshape(made, [made.shape[0], place.outs, place.ins, place.so, place.si])
    return tf.transpose(made, [1, 3, 2, 4, 0])


_COMPOSITIONS: dict[str, Callable[[_Constants, tf.Tensor], tf.Tensor]] = {
    "dense": _by_pairs(_dense),
    "dense_direct": _by_pairs(_dense_direct),
    "irreps_loop": _by_pairs(_irreps_loop),
    "irreps_vec": _by_pairs(_irreps_vec),
    "packed": _by_pairs(_packed_slices),
    "csr": _by_pairs(_compressed),
    "harmonic": _harmonic,
    "orbit": _by_pairs(_orbit),
}
