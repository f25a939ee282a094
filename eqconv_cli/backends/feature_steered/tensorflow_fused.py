"""The compiled kernels as TensorFlow operators: loading, patterns as tensors, the gradient, and the call itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import tensorflow as tf

from eqconv_cli.backends.feature_steered import schedule
from eqconv_cli.backends.feature_steered.fused import GRADIENTS, SECOND_ORDER
from eqconv_cli.backends.feature_steered.options import Flag, Fused
from eqconv_cli.backends.feature_steered.plan import Pattern
from eqconv_cli.backends.feature_steered.schedule import CHUNKS, EDGE_OF_SLOT, TOUCHED
from eqconv_cli.backends.feature_steered.tensorflow_sparse import Edges
from eqconv_cli.backends.feature_steered.tensorflow_symbolic import SymbolicPattern
from eqconv_cli.frameworks.tensorflow_tensors import device_name
from eqconv_cli.kernels.tensorflow_doors import gradient_of, library, missing_operators, operators, place_of


@dataclass(frozen=True)
class PackedTensors:
    """A packed pattern: its words [n] int64, and rows, edges, chunks, touched [4] int64 in host memory."""

    words: tf.Tensor
    layout: tf.Tensor
    parts: int


def upload(pattern: Pattern, device: str, settings: Fused) -> None:
    """Keep a pattern on a device as the kernels take it for both passes, so that the first call need not make it."""
    _packed(pattern, device, schedule.parts_for(place_of(settings, device), True, settings.deterministic))


def missing(settings: Fused, device: str, pattern: Pattern | SymbolicPattern) -> list[str]:
    """Why the compiled kernels cannot compute this on such a device; empty when they can."""
    reasons = missing_operators(settings, device)
    if isinstance(pattern, Pattern):
        reasons += schedule.too_large(pattern.rows, pattern.cols, pattern.edges)
    return reasons


def convolve(
    x: tf.Tensor,
    centre: tf.Tensor | None,
    values: tf.Tensor,
    parameters: Sequence[tf.Tensor],
    pattern: Pattern | SymbolicPattern,
    settings: Fused,
    flags: int,
) -> tf.Tensor:
    """The result [rows, D], differentiable once.

    Args:
        x: features of the sources [cols, C].
        centre: features of the centres [rows, C]; None when centre i is column i.
        values: weights of the edges in the caller's order.
        parameters: u, v, c, W, b.
        pattern: the plan's.
        settings: where and how to compute.
        flags: what to compute.

    Raises:
        Unavailable: the kernels are not built.
        tf.errors.InvalidArgumentError: shapes or dtypes do not fit.
    """
    place = place_of(settings, x.device)
    if place == "cuda" and _wants_determinism():
        flags |= Flag.DETERMINISTIC
    if isinstance(pattern, Pattern):
        # Whether a gradient follows is not known here, so that what it needs is packed, too.
        parts = schedule.parts_for(place, True, flags & Flag.DETERMINISTIC != 0)
        name = device_name(x.device) if x.device else "/GPU:0" if place == "cuda" else "/CPU:0"
        packed = _packed(pattern, name, parts)
    else:
        packed = pack_symbolic(pattern.edges, schedule.parts_for(place, False, False))
    return _call(operators(place), x, centre, values, parameters, packed, settings, flags)


def _call(
    operators: Any,
    x: tf.Tensor,
    centre: tf.Tensor | None,
    values: tf.Tensor,
    parameters: Sequence[tf.Tensor],
    packed: PackedTensors,
    settings: Fused,
    flags: int,
) -> tf.Tensor:
    return operators.eqconv_feature_steered_forward(
        x,
        x if centre is None else centre,
        values,
        *parameters,
        packed.words,
        packed.layout,
        tied=centre is None,
        parts=packed.parts,
        flags=flags,
        threads=settings.threads,
        core=settings.core or "",
    )


def door(
    x: tf.Tensor, values: tf.Tensor, parameters: Sequence[tf.Tensor], pattern: Pattern, settings: Fused
) -> Callable[[], tf.Tensor]:
    """The operator that :func:`convolve` calls, with its arguments prepared, for measurements.

    Args:
        x: features [V, C], of sources and centres.
        values, parameters, pattern, settings: as for :func:`convolve`.
    """
    place = place_of(settings, x.device)
    packed = _packed(pattern, device_name(x.device), schedule.parts_for(place, True, settings.deterministic))
    return partial(_call, operators(place), x, None, values, parameters, packed, settings, 0)


def _wants_determinism() -> bool:
    from tensorflow.python.framework import config  # there is no public question to this public setting

    return bool(config.is_op_determinism_enabled())


def _packed(pattern: Pattern, name: str, parts: int) -> PackedTensors:
    """The packed pattern on the device of this name."""

    def upload(made: schedule.Packed) -> PackedTensors:
        # Outside any function that is being traced: the tensors outlive it.
        with tf.init_scope():
            with tf.device(name):
                words = tf.constant(made.words)
            with tf.device("/CPU:0"):
                return PackedTensors(words, tf.constant(made.sizes[:4], tf.int64), made.parts)

    return schedule.packed(pattern, ("tensorflow fused", name), parts, upload)


@gradient_of("EqconvFeatureSteeredForward")
def _gradient(op: Any, dy: tf.Tensor) -> list[tf.Tensor | None]:
    """The gradients of x, centre, values, u, v, c, w, b, and none of the pattern's two tensors."""
    *tensors, _, words, layout = op.inputs
    tied, parts, flags = op.get_attr("tied"), op.get_attr("parts"), op.get_attr("flags")
    core = op.get_attr("core")
    if parts & CHUNKS and not parts & TOUCHED:
        words, layout, parts = _with_touched(words, layout, parts, tf.shape(tensors[0], tf.int64)[0])
    # An eager tape knows which inputs nobody differentiates; a traced function does not.
    skipped = (getattr(op, "skip_input_indices", None) or ()) if tf.executing_eagerly() else ()
    needed = [k not in skipped and not (tied and k == 1) for k in range(len(GRADIENTS))]
    gradients = library().eqconv_feature_steered_backward(
        dy,
        op.outputs[0],
        *tensors,
        words,
        layout,
        wanted=sum(1 << bit for bit, need in enumerate(needed) if need),
        tied=tied,
        parts=parts,
        flags=flags,
        threads=op.get_attr("threads"),
        core=core.decode() if isinstance(core, bytes) else core,
    )
    return [*(g if need else None for g, need in zip(gradients, needed, strict=True)), None, None]


@gradient_of("EqconvFeatureSteeredBackward")
def _refuse_second_order(op: Any, *cotangents: tf.Tensor) -> list[tf.Tensor | None]:
    raise NotImplementedError(SECOND_ORDER)


# Packing inside a traced function: what :func:`schedule.pack` does with NumPy, done with TensorFlow operations.


def pack_symbolic(edges: Edges, parts: int) -> PackedTensors:
    """A pattern whose indices have values only when the traced function runs.

    Args:
        edges: the pattern.
        parts: CHUNKS or 0; what gradients need is added when they are asked for.
    """
    rows = tf.cast(edges.rows, tf.int64)
    row = tf.cast(edges.row, tf.int64)
    rowptr = tf.searchsorted(row, tf.range(rows + 1), out_type=tf.int64)
    sections = [rowptr, tf.cast(edges.col, tf.int32)]
    chunks = tf.zeros([], tf.int64)
    if edges.edge_of_slot is not None:
        parts |= EDGE_OF_SLOT
        sections.append(tf.cast(edges.edge_of_slot, tf.int64))
    if parts & CHUNKS:
        sections.append(_cut_rows(rowptr))
        chunks = tf.size(sections[-1], tf.int64) - 1
    layout = tf.stack([rows, tf.size(row, tf.int64), chunks, tf.zeros_like(chunks)])
    return PackedTensors(tf.concat([_section(section) for section in sections], axis=0), layout, parts)


def _cut_rows(rowptr: tf.Tensor) -> tf.Tensor:
    """As :func:`schedule.cut_rows`."""
    rows = tf.size(rowptr, tf.int64) - 1
    total = schedule.ROW_COST * rows + rowptr[-1]
    shared, smallest = -(-total // schedule.WANTED_CHUNKS), -(-schedule.SMALLEST_CHUNK * total // tf.maximum(rows, 1))
    unit = tf.clip_by_value(tf.maximum(shared, smallest), 1, schedule.CHUNK_COST)
    bins = (schedule.ROW_COST * tf.range(rows) + rowptr[:-1]) // unit
    differs = tf.concat([tf.ones_like(bins[:1], tf.bool), bins[1:] != bins[:-1]], axis=0)
    first = tf.where(differs | (rowptr[1:] - rowptr[:-1] >= unit))[:, 0]
    return tf.concat([first, rows[None]], axis=0)


def _with_touched(words: tf.Tensor, layout: tf.Tensor, parts: int, cols: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, int]:
    """A packed pattern with the lists that :func:`schedule.named_columns` makes added at its end."""
    rows, edges, chunks, _ = tf.unstack(layout, num=4)
    place = tf.zeros([], tf.int64)

    def take(length: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
        nonlocal place
        count = _section_words(length * dtype.size)
        section = words[place : place + count]
        place += count
        return (section if dtype == tf.int64 else tf.reshape(tf.bitcast(section, dtype), [-1]))[:length]

    rowptr, col = take(rows + 1, tf.int64), tf.cast(take(edges, tf.int32), tf.int64)
    if parts & EDGE_OF_SLOT:
        take(edges, tf.int64)
    chunk_rows = take(chunks + 1, tf.int64)
    pointer = tf.gather(rowptr, chunk_rows)
    counts = pointer[1:] - pointer[:-1]
    keys = tf.repeat(tf.range(chunks) * cols, counts) + col
    own = tf.repeat(tf.range(chunks) * cols, chunk_rows[1:] - chunk_rows[:-1]) + tf.range(rows)
    own = own[: rows * tf.cast(rows == cols, tf.int64)]
    named = tf.unique(tf.sort(tf.concat([keys, own], axis=0))).y
    start = tf.searchsorted(named, tf.range(chunks + 1) * cols, out_type=tf.int64)
    local = tf.searchsorted(named, keys, out_type=tf.int64) - tf.repeat(start[:-1], counts)
    columns = named % tf.maximum(cols, 1)
    lists = [start, tf.cast(columns, tf.int32), tf.cast(local, tf.int32)]
    layout = tf.stack([rows, edges, chunks, tf.size(named, tf.int64)])
    return tf.concat([words, *(_section(section) for section in lists)], axis=0), layout, parts | TOUCHED


def _section_words(size: Any) -> Any:
    """int64 words that a section of so many bytes takes."""
    return -(-size // (8 * schedule.SECTION)) * schedule.SECTION


def _section(array: tf.Tensor) -> tf.Tensor:
    """An array padded to whole sections, as int64 words."""
    length = tf.size(array, tf.int64)
    padding = _section_words(length * array.dtype.size) * (8 // array.dtype.size) - length
    padded = tf.pad(array, [[0, padding]])
    return padded if array.dtype == tf.int64 else tf.bitcast(tf.reshape(padded, [-1, 2]), tf.int64)
