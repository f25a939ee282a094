"""The geometry of a convolution on blocks: window sizes, strides, offsets and counts, one axis at a time.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018, section 3, and uber-research/sbnet ``benchmark/sparse_conv_lib.py``;
the padding rules are TensorFlow's. Plain integers: no framework, no arrays.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Pair = tuple[int, int]
Padding = Literal["SAME", "VALID"]
Coverage = Literal["full", "original"]

PADDINGS = ("SAME", "VALID")
COVERAGES = ("full", "original")


class BlockParams(NamedTuple):
    """How blocks lie over the input and the output of a convolution; all pairs are (height, width).

    Block (i, j) reads the window of ``bsize`` at ``boffset + bstrides * (i, j)`` of the input and writes the tile of
    ``bsize_out`` at ``bsize_out * (i, j)`` of the output.
    """

    bsize: Pair
    bsize_out: Pair
    boffset: Pair
    bcount: Pair
    bstrides: Pair
    #: Size of the convolution's output.
    out_size: Pair

    def uncovered(self) -> Pair:
        """Rows and columns at the far end of the output that no block writes; (0, 0) with full coverage."""
        tiles = zip(self.bcount, self.bsize_out, self.out_size, strict=True)
        rows, columns = (max(0, out - count * size) for count, size, out in tiles)
        return rows, columns


def pair(name: str, value: Any, least: int | None = None) -> Pair:
    """``value`` as two integers (height, width).

    Args:
        name: of the argument, for messages.
        value: a sequence of two integers, each a Python int or an array of one integer.
        least: the smallest that is allowed.

    Raises:
        ValueError: not two integers, or one is below ``least``.
    """
    try:
        first, second = (integer(entry) for entry in value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r}: expected two integers (height, width)") from None
    if least is not None and min(first, second) < least:
        raise ValueError(f"{name}={(first, second)}: both must be at least {least}")
    return first, second


def integer(value: Any) -> int:
    """A Python int from an int or an array of one integer; raises TypeError for anything else."""
    if isinstance(value, bool):
        raise TypeError("a truth value is not a size")
    try:
        return operator.index(value)
    except TypeError:
        if isinstance(value, float | str) or not hasattr(value, "item"):
            if hasattr(value, "numpy"):
                return integer(value.numpy())
            raise
        return operator.index(value.item())


def image_size(in_size: Sequence[Any]) -> Pair:
    """(H, W) from (N, H, W, C) or (H, W); raises ValueError for any other length."""
    if len(in_size) not in (2, 4):
        raise ValueError(f"in_size={tuple(in_size)}: expected (N, H, W, C) or (H, W)")
    return pair("in_size", in_size if len(in_size) == 2 else in_size[1:3], 1)


def check_padding(padding: str) -> None:
    """Raises ValueError for a padding that there is not."""
    if padding not in PADDINGS:
        raise ValueError(f"padding={padding!r} is unknown: allowed: {', '.join(PADDINGS)}")


def both(name: str, value: int | Sequence[int]) -> Pair:
    """One number for both axes, or (height, width); raises ValueError."""
    return pair(name, (value, value), 1) if isinstance(value, int) else strides_pair(name, value)


def strides_pair(name: str, value: Sequence[Any]) -> Pair:
    """(height, width) from two numbers, or from TensorFlow's four with 1 for batch and channels.

    Raises:
        ValueError: another length, a number below 1, or a stride over batch or channels.
    """
    if len(value) == 4:
        if integer(value[0]) != 1 or integer(value[3]) != 1:
            raise ValueError(f"{name}={tuple(value)}: the first and the last of four must be 1 (batch, channels)")
        value = value[1:3]
    return pair(name, value, 1)


def kernel_pair(ksize: Sequence[Any]) -> Pair:
    """(kh, kw) from two numbers, or from the shape (kh, kw, C, K) of a kernel; raises ValueError."""
    if len(ksize) not in (2, 4):
        raise ValueError(f"ksize={tuple(ksize)}: expected (kh, kw) or (kh, kw, C, K)")
    return pair("ksize", ksize[:2], 1)


def out_extent(n: int, k: int, s: int, padding: str) -> int:
    """Extent of a convolution's output along an axis of extent ``n``."""
    return -(-n // s) if padding == "SAME" else max(0, -(-(n - k + 1) // s))


def output_grid(
    shape: Sequence[int], ksize: Sequence[int], strides: Sequence[int], padding: str
) -> tuple[int, int, int]:
    """(N, Hout, Wout) of a convolution of an image [N, H, W, ...]."""
    height, width = (out_extent(n, k, s, padding) for n, k, s in zip(shape[1:3], ksize, strides, strict=True))
    return shape[0], height, width


def paddings(n: int, k: int, s: int, padding: str) -> Pair:
    """Zeros in front of and behind an axis of extent ``n``; what is odd goes behind."""
    if padding == "VALID":
        return 0, 0
    total = max((out_extent(n, k, s, padding) - 1) * s + k - n, 0)
    return total // 2, total - total // 2


def block_params(
    in_size: Sequence[Any],
    bsize: Sequence[Any],
    ksize: Sequence[Any],
    strides: Sequence[Any] = (1, 1),
    padding: str = "SAME",
    coverage: str = "full",
) -> BlockParams:
    """Where the blocks of a convolution lie.

    Args:
        in_size: (N, H, W, C) or (H, W) of the input.
        bsize: size of the window that a block reads.
        ksize: (kh, kw), or the kernel's shape (kh, kw, C, K).
        strides: of the convolution, two numbers or TensorFlow's four.
        padding: "SAME" or "VALID", as TensorFlow defines them.
        coverage: "full": the blocks' tiles cover the whole output; "original": SBNet's count, which leaves up to
            ksize - 1 rows or columns at the far end of the output without a block for some sizes.

    Raises:
        ValueError: an argument is not allowed; a window is smaller than the kernel, or larger by something that the
            stride does not divide; with coverage="original" the last window starts outside the image.
    """
    return block_params_chain(in_size, bsize, [ksize], strides, padding, coverage)


def block_params_chain(
    in_size: Sequence[Any],
    bsize: Sequence[Any],
    ksizes: Sequence[Sequence[Any]],
    strides: Sequence[Any] = (1, 1),
    padding: str = "SAME",
    coverage: str = "full",
) -> BlockParams:
    """Where the blocks lie when several convolutions follow each other between one gather and one scatter.

    The first has the strides, all others stride 1: together they are one convolution with the kernel
    k_1 + s * sum_{l>1} (k_l - 1), whose padding in front is that of the layers, one after the other.

    Args, Raises: as for :func:`block_params`, with one ``ksize`` for each convolution.
    """
    size, block = image_size(in_size), pair("bsize", bsize, 1)
    kernels = [kernel_pair(ksize) for ksize in ksizes]
    if not kernels:
        raise ValueError("ksizes=[]: at least one convolution is needed")
    step = strides_pair("strides", strides)
    check_padding(padding)
    if coverage not in COVERAGES:
        raise ValueError(f"coverage={coverage!r} is unknown: allowed: {', '.join(COVERAGES)}")
    height, width = (
        _axis(size[axis], block[axis], [kernel[axis] for kernel in kernels], step[axis], padding, coverage, name)
        for axis, name in enumerate(("height", "width"))
    )
    return BlockParams(*zip(height, width, strict=True))


def _axis(
    n: int, b: int, kernels: Sequence[int], s: int, padding: str, coverage: str, name: str
) -> tuple[int, int, int, int, int, int]:
    """(bsize, bsize_out, boffset, bcount, bstride, out) along one axis."""
    first, rest = kernels[0], kernels[1:]
    k = first + s * sum(later - 1 for later in rest)
    if b < k or (b - k) % s != 0:
        raise ValueError(_impossible(b, k, s, name))
    front, behind = paddings(n, first, s, padding)
    out = out_extent(n, first, s, padding)
    for later in rest:
        extra = paddings(out, later, 1, padding)
        front, behind = front + s * extra[0], behind + s * extra[1]
        out = out_extent(out, later, 1, padding)
    b_out = (b - k) // s + 1
    stride = s * b_out
    if coverage == "full":
        count = -(-out // b_out)
    else:
        count = max(0, -(-(n + front + behind + (b - n) % stride - b + 1) // stride))
        if count and -front + stride * (count - 1) >= n:
            raise ValueError(
                f"bsize={b} ({name}): with coverage='original' the last of {count} blocks starts at "
                f"{-front + stride * (count - 1)}, outside an image of {n}"
            )
    return b, b_out, -front, count, stride, out


def _impossible(b: int, k: int, s: int, name: str) -> str:
    if b < k:
        return f"bsize={b} ({name}) is smaller than the kernel's {k}: the nearest size that fits is {k}"
    below = b - (b - k) % s
    return (
        f"bsize={b} ({name}): bsize - {k} must be a multiple of the stride {s}: the nearest sizes that fit are "
        f"{below} and {below + s}"
    )


def covering_windows(bsize: int, bstride: int) -> int:
    """The most windows of one axis that can cover a pixel."""
    return -(-bsize // bstride)
