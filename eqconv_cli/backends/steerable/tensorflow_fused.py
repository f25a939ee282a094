"""The compiled expansion as TensorFlow operators: loading, derivatives of any order, and the call."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from eqconv_cli.backends.steerable.options import Flag, Fused
from eqconv_cli.backends.steerable.packed import Packed
from eqconv_cli.kernels.tensorflow_doors import gradient_of, library, operators, place_of

_ATTRIBUTES = ("sizes", "flags", "threads", "core")


class PackedTensors(NamedTuple):
    """What the operators read of a layer, on one device in one dtype; fields as in ``Packed``."""

    words: tf.Tensor
    reals: tf.Tensor
    sizes: tuple[int, ...]
    direct: bool


def upload(packed: Packed, device: str, dtype: tf.DType) -> PackedTensors:
    """The tables of a layer on a device, for weights of this dtype, float32 or float64.

    Also in a traced function they are tensors with values, which outlive it.
    """
    with tf.init_scope(), tf.device(device):
        words, reals = tf.constant(packed.words, tf.int32), tf.constant(packed.reals, dtype)
    return PackedTensors(words, reals, packed.sizes, packed.direct)


def expand(packed: PackedTensors, weights: tf.Tensor, settings: Fused) -> tf.Tensor:
    """The filter of the weights; differentiable any number of times.

    Args:
        packed: the layer, on the device and in the dtype of the weights.
        weights: [weights_size], float32 or float64.
        settings: of the kernels.

    Returns:
        [out_channels, in_channels, pixels].

    Raises:
        Unavailable: the kernels are not built.
        tf.errors.InvalidArgumentError: shapes or dtypes do not fit; ValueError while tracing.
    """
    return operators(place_of(settings, weights.device)).eqconv_expand_forward(weights, **_tables(packed, settings))


def expand_transposed(packed: PackedTensors, filter: tf.Tensor, settings: Fused) -> tf.Tensor:
    """The transposed map, [weights_size] for a filter [out_channels, in_channels, pixels]; else as :func:`expand`."""
    return operators(place_of(settings, filter.device)).eqconv_expand_backward(filter, **_tables(packed, settings))


def _tables(packed: PackedTensors, settings: Fused) -> dict[str, Any]:
    return {
        "words": packed.words,
        "reals": packed.reals,
        "sizes": packed.sizes,
        "flags": Flag.DIRECT * packed.direct + settings.processor_flags,
        "threads": settings.threads,
        "core": settings.core or "",
    }


@gradient_of("EqconvExpandForward")
def _forward_gradient(op: Any, cotangent: tf.Tensor) -> list[tf.Tensor | None]:
    return [_transposed(library().eqconv_expand_backward, op, cotangent), None, None]


@gradient_of("EqconvExpandBackward")
def _backward_gradient(op: Any, cotangent: tf.Tensor) -> list[tf.Tensor | None]:
    return [_transposed(library().eqconv_expand_forward, op, cotangent), None, None]


def _transposed(operator: Any, op: Any, cotangent: tf.Tensor) -> tf.Tensor:
    _, words, reals = op.inputs
    return operator(cotangent, words, reals, **{name: op.get_attr(name) for name in _ATTRIBUTES})
