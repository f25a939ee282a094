"""Tensors as the TensorFlow functions of this family take them: shapes and dtypes checked, extents known or symbolic.

What has a value now is checked now and raises Python's exceptions; what has one only when a traced function runs is
checked then and raises ``tf.errors.InvalidArgumentError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from eqconv_cli.backends.block_sparse import arguments, geometry
from eqconv_cli.backends.block_sparse.arguments import Window
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.frameworks.tensorflow_tensors import Extent, extent, is_symbolic


class Listed(NamedTuple):
    """A list of blocks or pixels: the first ``count[0]`` entries count."""

    #: int32 [B, 3] or [P].
    entries: tf.Tensor
    #: int32 [1].
    count: tf.Tensor
    #: Whether all entries are known to count.
    whole: bool


def static(name: str, tensor: tf.Tensor) -> tuple[int | None, ...]:
    """The shape as far as it is known; raises ValueError for an unknown rank."""
    if tensor.shape.rank is None:
        raise ValueError(f"{name} has unknown rank: the number of its dimensions must be known")
    return tuple(tensor.shape.as_list())


def real(name: str, array: Any, like: tf.Tensor | None = None, like_name: str = "x") -> tf.Tensor:
    """A tensor of float32 or float64; raises TypeError, also for a dtype other than that of ``like``."""
    tensor = array if isinstance(array, tf.Tensor) else tf.convert_to_tensor(array)
    arguments.check_float(name, tensor.dtype.name)
    if like is not None:
        arguments.check_same_dtype(name, tensor.dtype.name, like_name, like.dtype.name)
    return tensor


def image(name: str, x: Any, layout: str = "NHWC") -> tf.Tensor:
    """An image [N, H, W, C]; raises TypeError or ValueError."""
    arguments.check_choice("layout", layout, arguments.LAYOUTS)
    tensor = real(name, x)
    arguments.check_image(name, static(name, tensor))
    return tf.transpose(tensor, [0, 2, 3, 1]) if layout == "NCHW" else tensor


def variable(name: str, given: Any) -> Any:
    """The ``tf.Variable`` [N, H, W, C] to write into, also behind a Keras variable; raises TypeError or ValueError."""
    if not hasattr(given, "assign"):
        raise TypeError(f"{name} is a {type(given).__name__}: a tf.Variable is needed, it is written in place")
    plain = given.value if type(given).__module__.startswith("keras") else given
    arguments.check_float(name, plain.dtype.name)
    arguments.check_image(name, static(name, plain))
    return plain


def plain_mask(mask: Any, like: tf.Tensor | None = None) -> tf.Tensor:
    """A mask [N, H, W], float or bool, of the size of the image ``like``; raises TypeError or ValueError."""
    tensor = tf.convert_to_tensor(mask)
    if tensor.dtype != tf.bool:
        arguments.check_float("mask", tensor.dtype.name, ("bool",))
    arguments.check_mask(static("mask", tensor), None if like is None else static("x", like))
    return tensor if tensor.shape.rank == 3 else tf.squeeze(tensor, 3)


def pair(name: str, value: Any, least: int | None = None) -> tuple[Extent, Extent]:
    """(height, width): two numbers, checked, or two scalar tensors where they are symbolic."""
    if is_symbolic(value):
        arguments.check_vector(name, static(name, value), 2)
        first, second = tf.unstack(tf.cast(value, tf.int32), num=2)
        return first, second
    if isinstance(value, (list, tuple)) and len(value) == 2 and is_symbolic(*value):
        first, second = (tf.cast(entry, tf.int32) for entry in value)
        return first, second
    return geometry.pair(name, value, least)


def window(bsize: Any, bstride: Any, boffset: Any) -> Window:
    """The three pairs, checked as far as they are known; raises ValueError."""
    return Window(pair("bsize", bsize, 1), pair("bstride", bstride, 1), pair("boffset", boffset))


def check_scatter(at: Window, add: bool, atomic: bool) -> None:
    """As :func:`arguments.check_scatter`, where sizes and strides are known."""
    if not is_symbolic(*at.size, *at.stride):
        arguments.check_scatter(at, add, atomic)


def on_host(numbers: Sequence[Extent]) -> tf.Tensor:
    """int32 in host memory, where the kernels read sizes."""
    with tf.device("/CPU:0"):
        if is_symbolic(*numbers):
            return tf.stack([tf.cast(number, tf.int32) for number in numbers])
        return tf.constant([int(number) for number in numbers], tf.int32)


def block_rows(index: BlockIndex, images: Extent) -> Listed:
    """The list of blocks.

    Raises:
        TypeError, ValueError: dtype or shape is not that of an index.
        IndexError: a row is out of range, or more rows count than there are.
    """
    rows, count = (tf.convert_to_tensor(part) for part in index)
    arguments.check_index(
        static("active_block_indices", rows), static("bin_counts", count), rows.dtype.name.removeprefix("u")
    )
    whole = _counts_all("bin_counts", "active_block_indices", rows, count)
    if _readable(rows, count):
        listed = rows.numpy()[: int(count[0])]
        if len(listed):
            arguments.check_range(listed.min(axis=0).tolist(), int(listed[:, 0].max()), int(images))
    return Listed(tf.cast(rows, tf.int32), tf.cast(count, tf.int32), whole)


def pixel_rows(pixels: PixelIndex, grid: Sequence[Extent]) -> Listed:
    """The list of output pixels of a convolution with the output (N, Hout, Wout).

    Raises:
        TypeError: the positions are not integers.
        ValueError: the list is not one-dimensional, or was made for another output.
        IndexError: a position is out of range, or more count than there are.
    """
    positions, count = tf.convert_to_tensor(pixels.pixels), tf.convert_to_tensor(pixels.count)
    if not positions.dtype.is_integer:
        raise TypeError(f"pixels has dtype {positions.dtype.name}: an integer dtype is needed")
    arguments.check_vector("pixels", static("pixels", positions), None)
    arguments.check_vector("count", static("count", count), 1)
    if not is_symbolic(*grid):
        if not is_symbolic(*pixels.grid) and tuple(pixels.grid) != tuple(grid):
            raise ValueError(
                f"pixels is a list for an output of (N, H, W) = {tuple(pixels.grid)}: this one is {tuple(grid)}"
            )
        arguments.check_positions(int(np.prod(grid, dtype=object)))
    whole = _counts_all("count", "pixels", positions, count)
    if _readable(positions, count):
        listed = positions.numpy()[: int(count[0])]
        most = int(np.prod(grid, dtype=object))
        if len(listed) and not 0 <= int(listed.min()) <= int(listed.max()) < most:
            raise IndexError(f"pixels has positions from {listed.min()} to {listed.max()}: allowed: 0 to {most - 1}")
    return Listed(tf.cast(positions, tf.int32), tf.cast(count, tf.int32), whole)


def counting(listed: Listed) -> tf.Tensor:
    """The entries that count, int64."""
    return tf.cast(listed.entries if listed.whole else listed.entries[: listed.count[0]], tf.int64)


def _readable(*tensors: tf.Tensor) -> bool:
    """Whether values can be looked at without waiting for anything."""
    return not is_symbolic(*tensors) and all("CPU" in (tensor.device or "CPU") for tensor in tensors)


def _counts_all(count_name: str, name: str, entries: tf.Tensor, count: tf.Tensor) -> bool:
    if not _readable(count):
        return False
    counted, there = int(count[0]), entries.shape[0]
    if there is not None and not 0 <= counted <= there:
        raise IndexError(f"{count_name} is {counted} but {name} has {there} rows")
    return there is not None and counted == there


# Geometry of a convolution on images whose size may be symbolic.


def out_extent(n: Extent, k: int, s: int, padding: str) -> Extent:
    """As :func:`geometry.out_extent`."""
    if isinstance(n, int):
        return geometry.out_extent(n, k, s, padding)
    return -(-n // s) if padding == "SAME" else tf.maximum(0, -(-(n - k + 1) // s))


def front_padding(n: Extent, k: int, s: int, padding: str) -> Extent:
    """Zeros in front of an axis."""
    if isinstance(n, int) or padding == "VALID":
        return 0 if padding == "VALID" else geometry.paddings(n, k, s, padding)[0]
    return tf.maximum((out_extent(n, k, s, padding) - 1) * s + k - n, 0) // 2


class Frame(NamedTuple):
    """Where the output pixels of a convolution read their input."""

    #: (N, Hout, Wout).
    grid: tuple[Extent, Extent, Extent]
    #: (H, W) of the input.
    size: tuple[Extent, Extent]
    ksize: geometry.Pair
    strides: geometry.Pair
    #: Zeros in front of the image.
    front: tuple[Extent, Extent]


def frame(x: tf.Tensor, ksize: Sequence[Any], strides: Sequence[Any], padding: str) -> Frame:
    """The frame of a convolution of ``x`` [N, H, W, ...]; raises ValueError."""
    geometry.check_padding(padding)
    kernel, step = geometry.kernel_pair(ksize), geometry.strides_pair("strides", strides)
    size = extent(x, 1), extent(x, 2)
    out = [out_extent(n, k, s, padding) for n, k, s in zip(size, kernel, step, strict=True)]
    front = [front_padding(n, k, s, padding) for n, k, s in zip(size, kernel, step, strict=True)]
    return Frame((extent(x, 0), out[0], out[1]), size, kernel, step, (front[0], front[1]))


def block_params(
    x: tf.Tensor,
    bsize: Sequence[Any],
    ksizes: Sequence[Sequence[Any]],
    strides: Sequence[Any],
    padding: str = "SAME",
    coverage: str = "full",
) -> geometry.BlockParams:
    """The coverage of ``x`` by blocks, see :func:`geometry.block_params_chain`; of tensors for an unknown size.

    Raises:
        ValueError: see there; also coverage="original" of an unknown size.
    """
    size = extent(x, 1), extent(x, 2)
    if not is_symbolic(*size):
        return geometry.block_params_chain(size, bsize, ksizes, strides, padding, coverage)
    if coverage != "full":
        raise ValueError(f"coverage={coverage!r}: the height and width of x must be known when a function is traced")
    # Everything but offset, count and size of the output is the same for every size of the image.
    block = geometry.pair("bsize", bsize, 1)
    any_size = geometry.block_params_chain(block, block, ksizes, strides, padding)
    step = geometry.strides_pair("strides", strides)
    offset, count, out = [], [], []
    for axis, n in enumerate(size):
        first, *rest = (geometry.kernel_pair(ksize)[axis] for ksize in ksizes)
        front, length = front_padding(n, first, step[axis], padding), out_extent(n, first, step[axis], padding)
        for later in rest:
            front += step[axis] * front_padding(length, later, 1, padding)
            length = out_extent(length, later, 1, padding)
        offset.append(-front)
        count.append(-(-length // any_size.bsize_out[axis]))
        out.append(length)
    return any_size._replace(boffset=tuple(offset), bcount=tuple(count), out_size=tuple(out))
