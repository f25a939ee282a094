"""What the layers of all frameworks have in common: the numbers of a convolution, and the size of its output."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from eqconv_cli.backends.steerable.fields import FieldType

#: What is beyond the border: 0, the image mirrored at its last pixels, its last pixels, or its other side.
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

Pair = tuple[int, int]


def both(name: str, value: Any, least: int) -> Pair:
    """One integer for both axes, or (height, width); raises ValueError for anything else or below ``least``."""
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, Integral) or n < least for n in pair):
        raise ValueError(f"{name}={value!r}: one integer or (height, width) is needed, {least} or more")
    return int(pair[0]), int(pair[1])


def check_padding_mode(padding_mode: str) -> None:
    """Raises ValueError for a mode that there is not."""
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode={padding_mode!r}: allowed: {', '.join(PADDING_MODES)}")


def check_channels(shape: Sequence[Any], axis: int, fields: FieldType) -> None:
    """Raises ValueError unless images of this shape have four axes, and on ``axis`` the channels of the fields."""
    layout = "[B, C, H, W]" if axis == 1 else "[B, H, W, C]"
    if len(shape) != 4 or shape[axis] != fields.size:
        raise ValueError(
            f"x has shape {tuple(shape)}: expected {layout} with C={fields.size}, the channels of in_type ({fields})"
        )


def output_side(side: int, kernel_size: int, padding: int, stride: int, dilation: int) -> int:
    """The pixels along one axis of the output.

    Raises:
        ValueError: the kernel is larger than the padded image.
    """
    room = side + 2 * padding - dilation * (kernel_size - 1) - 1
    if room < 0:
        raise ValueError(
            f"a side of {side} pixels with padding {padding} is smaller than the kernel: kernel_size={kernel_size}, "
            f"dilation={dilation}"
        )
    return room // stride + 1
