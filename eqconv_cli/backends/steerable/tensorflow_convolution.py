"""The convolution by an expanded filter in TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from eqconv_cli.backends.steerable.convolution import Pair


def convolve(
    image: tf.Tensor, filter: tf.Tensor, stride: Sequence[int], padding: Sequence[int], dilation: int
) -> tf.Tensor:
    """The convolution of an image [B, H, W, I] by a filter [O, I / groups, k, k]: [B, H', W', O].

    Args:
        image: channels last; kernels for channels first are not everywhere.
        filter: as it is expanded.
        stride, padding: (height, width); zeros are put around the image.
        dilation: from tap to tap; what is between them is put into the filter as zeros.

    On the CPU TensorFlow's convolutions have no gradient with a dilation or with groups: groups are convolved one by
    one.
    """
    taps = tf.transpose(filter, [2, 3, 1, 0])
    if dilation > 1:
        size, (inputs, outputs) = filter.shape[2], filter.shape[:2][::-1]
        spread = tf.pad(taps[:, None, :, None], [[0, 0], [0, dilation - 1]] * 2 + [[0, 0]] * 2)
        reach = (size - 1) * dilation + 1
        taps = tf.reshape(spread, [size * dilation, size * dilation, inputs, outputs])[:reach, :reach]
    border = [[0, 0], [padding[0]] * 2, [padding[1]] * 2, [0, 0]]
    groups = image.shape[-1] // filter.shape[1]
    parts = zip(tf.split(image, groups, axis=-1), tf.split(taps, groups, axis=-1), strict=True)
    return tf.concat([tf.nn.conv2d(part, own, [1, *stride, 1], border) for part, own in parts], axis=-1)


def padded(image: tf.Tensor, padding: Pair, padding_mode: str) -> tf.Tensor:
    """An image [B, H, W, C] with what a padding mode other than "zeros" puts around it.

    Raises:
        ValueError: the padding is larger than the image allows.
    """
    if padding_mode == "reflect":
        return tf.pad(image, [[0, 0], [padding[0]] * 2, [padding[1]] * 2, [0, 0]], "REFLECT")
    for axis, width in enumerate(padding, 1):
        if width == 0:
            continue
        if padding_mode == "circular":
            side = image.shape[axis]
            if side is not None and side < width:
                raise ValueError(
                    f"padding={padding}: with padding_mode='circular' a side of {side} pixels allows {side}"
                )
            before, after = _part(image, axis, -width, None), _part(image, axis, 0, width)
        else:
            first, last = _part(image, axis, 0, 1), _part(image, axis, -1, None)
            before, after = tf.repeat(first, width, axis), tf.repeat(last, width, axis)
        image = tf.concat([before, image, after], axis)
    return image


def _part(image: tf.Tensor, axis: int, start: int, end: int | None) -> tf.Tensor:
    return image[:, start:end] if axis == 1 else image[:, :, start:end]
