"""Positions of pixels, of windows and of neighbours in images, as index tensors."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from eqconv_cli.backends.block_sparse.arguments import Window
from eqconv_cli.backends.block_sparse.tensorflow_inputs import Frame, Listed
from eqconv_cli.frameworks.tensorflow_tensors import Extent


def reach(starts: tf.Tensor, size: Extent, limit: Extent) -> tuple[tf.Tensor, tf.Tensor]:
    """The positions start, start + 1, ... of windows along one axis [.., size] int64, and which are in [0, limit)."""
    at = starts[..., None] + tf.range(tf.cast(size, tf.int64))
    return at, (at >= 0) & (at < tf.cast(limit, tf.int64))


def of_blocks(blocks: Listed, at: Window, size: Sequence[Extent]) -> tuple[tf.Tensor, tf.Tensor]:
    """The pixels of every window of a list of blocks.

    Returns:
        int64 [B, h, w], flat positions in images of ``size``, 0 where there is no pixel; and bool [B, h, w], where
        there is one: inside the image, in a row that counts.
    """
    number, *grid = tf.unstack(tf.cast(blocks.entries, tf.int64), num=3, axis=1)
    if not blocks.whole:
        counts = tf.range(tf.size(number)) < blocks.count
        number = tf.where(counts, number, 0)
    (row, row_in), (column, column_in) = (
        reach(g * tf.cast(step, tf.int64) + tf.cast(first, tf.int64), length, limit)
        for g, step, first, length, limit in zip(grid, at.stride, at.offset, at.size, size, strict=True)
    )
    if not blocks.whole:
        row_in &= counts[:, None]
    inside = row_in[:, :, None] & column_in[:, None, :]
    height, width = (tf.cast(length, tf.int64) for length in size)
    flat = (number[:, None] * height + row)[:, :, None] * width + column[:, None, :]
    return tf.where(inside, flat, 0), inside


def split(positions: tf.Tensor, size: Sequence[Extent]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(image, row, column) of flat positions int64 in images of ``size``."""
    height, width = (tf.cast(length, tf.int64) for length in size)
    return positions // (height * width), positions // width % height, positions % width


def of_pixels(pixels: tf.Tensor, at: Frame) -> tuple[tf.Tensor, tf.Tensor]:
    """The input pixel under every tap of the listed output pixels.

    Args:
        pixels: int64 [P], flat positions in the output.
        at: the convolution.

    Returns:
        int64 [P, taps], flat positions in the input, 0 where there is none; and bool [P, taps], where there is one.
    """
    number, *where = split(pixels, at.grid[1:])
    (row, row_in), (column, column_in) = (
        reach(place * step - tf.cast(front, tf.int64), k, limit)
        for place, step, front, k, limit in zip(where, at.strides, at.front, at.ksize, at.size, strict=True)
    )
    inside = row_in[:, :, None] & column_in[:, None, :]
    height, width = (tf.cast(length, tf.int64) for length in at.size)
    flat = (number[:, None] * height + row)[:, :, None] * width + column[:, None, :]
    taps = at.ksize[0] * at.ksize[1]
    return tf.reshape(tf.where(inside, flat, 0), [-1, taps]), tf.reshape(inside, [-1, taps])


def rows_of(x: tf.Tensor) -> tf.Tensor:
    """An array [..., C] as rows [R, C]."""
    return tf.reshape(x, [-1, x.shape[-1] if x.shape[-1] is not None else tf.shape(x)[-1]])


def take_or_zero(rows: tf.Tensor, flat: tf.Tensor, inside: tf.Tensor) -> tf.Tensor:
    """``rows[flat]``, and 0 where not inside."""
    return tf.where(inside[..., None], tf.gather(rows, flat), tf.zeros([], rows.dtype))


def owners(flat: tf.Tensor, inside: tf.Tensor, pixels: Extent) -> tf.Tensor:
    """The last entry of the flattened ``flat`` that names each pixel, int64 [pixels]; below 0 where none does."""
    entries = tf.reshape(tf.range(tf.size(flat, tf.int64)), tf.shape(flat))
    segment = tf.where(inside, flat, -1)
    return tf.math.unsorted_segment_max(tf.reshape(entries, [-1]), tf.reshape(segment, [-1]), pixels)


def replaced(base: tf.Tensor, positions: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """``base`` [..., K] with rows [P, K] at flat positions [P], each named once."""
    changed = tf.tensor_scatter_nd_update(rows_of(base), positions[:, None], rows)
    return tf.ensure_shape(tf.reshape(changed, tf.shape(base)), base.shape)
