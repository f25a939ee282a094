"""The residual unit at a list of pixels on compact rows, and the gradient of the compiled one by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from eqconv_cli.backends.block_sparse.options import Flag
from eqconv_cli.backends.block_sparse.tensorflow_inputs import Frame
from eqconv_cli.backends.block_sparse.tensorflow_neighbours import of_pixels, rows_of
from eqconv_cli.frameworks.tensorflow_tensors import extent


def branch(x: tf.Tensor, pixels: tf.Tensor, unit: Sequence[tf.Tensor | None], original: bool) -> tf.Tensor:
    """What the unit adds to x at the listed pixels; nothing is computed for other pixels but the neighbours it reads.

    Args:
        x: [N, H, W, C].
        pixels: int64 [P], ascending flat positions.
        unit: scale1, shift1 (or None), w1 [C, M], scale2, shift2, w2 [3, 3, M, M], scale3, shift3, w3 [M, C].
        original: outside the image the input of the 3x3 convolution is what x = 0 gives, not 0.

    Returns:
        [P, C].
    """
    scale1, shift1, w1, scale2, shift2, w2, scale3, shift3, w3 = unit
    size = extent(x, 1), extent(x, 2)
    at = Frame((extent(x, 0), *size), size, (3, 3), (1, 1), (1, 1))
    flat, inside = of_pixels(pixels, at)
    read = tf.sort(tf.unique(tf.boolean_mask(flat, inside))[0])
    rows = tf.gather(rows_of(x), read)
    # One row more than there are pixels stands for all that is outside of the image.
    if original:
        rows = tf.concat([rows, tf.zeros([1, tf.shape(rows)[1]], rows.dtype)], axis=0)
    if scale1 is not None:
        rows = tf.nn.relu(rows * scale1 + shift1)
    h2 = tf.nn.relu((rows @ w1) * scale2 + shift2)
    if not original:
        h2 = tf.concat([h2, tf.zeros([1, tf.shape(h2)[1]], h2.dtype)], axis=0)
    taps = tf.where(inside, _places(read, flat), tf.size(read, tf.int64))
    narrow = extent(h2, 1)
    patches = tf.reshape(tf.gather(h2, taps), [-1, 9 * narrow])
    h3 = patches @ tf.reshape(w2, [9 * narrow, narrow])
    return tf.nn.relu(h3 * scale3 + shift3) @ w3


def _places(ordered: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Where each of the values is in an ascending list that has them."""
    found = tf.searchsorted(ordered, tf.reshape(values, [-1]), out_type=tf.int64)
    return tf.reshape(found, tf.shape(values))


def gradient(op: Any, dy: tf.Tensor) -> list[tf.Tensor | None]:
    """The gradient of ``EqconvResidualForward``: what the forward pass did not keep is computed again."""
    x, _, site, count, *unit = op.inputs
    original = bool(op.get_attr("flags") & Flag.ORIGINAL)
    pixels = tf.cast(site[: count[0]], tf.int64)
    given = [tensor if op.get_attr("activated") or k > 1 else None for k, tensor in enumerate(unit)]
    leaves = [x, *(tensor for tensor in given if tensor is not None)]
    listed = tf.gather(rows_of(dy), pixels)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(leaves)
        made = branch(x, pixels, given, original)
    dx, *rest = tape.gradient(made, leaves, output_gradients=listed)
    # x itself is added at the listed pixels; elsewhere the result is the base.
    dx = tf.tensor_scatter_nd_add(rows_of(tf.convert_to_tensor(dx)), pixels[:, None], listed)
    dbase = tf.tensor_scatter_nd_update(rows_of(dy), pixels[:, None], tf.zeros_like(listed))
    found = iter(rest)
    unit_gradients = [None if tensor is None else next(found) for tensor in given]
    shape = tf.shape(x)
    return [tf.reshape(dx, shape), tf.reshape(dbase, shape), None, None, *unit_gradients]
