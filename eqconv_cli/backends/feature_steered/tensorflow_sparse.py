"""Edges of a plan as TensorFlow tensors, and the sparse products and segment sums on them.

Extents are Python integers where they are known and scalar tensors in a traced function where they are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

from eqconv_cli.backends.feature_steered.plan import IntArray, Pattern
from eqconv_cli.frameworks.tensorflow_tensors import Extent, device_name, extent


@dataclass(frozen=True)
class Edges:
    """The index arrays of a block-diagonal matrix on one device. E edges in row order, see :class:`Pattern`."""

    #: A1, ..., An, Vo, Vi.
    extents: tuple[Extent, ...]
    rows: Extent
    cols: Extent
    row: tf.Tensor
    col: tf.Tensor
    edge_of_slot: tf.Tensor | None
    kept: tf.Tensor | None
    blocks: Extent
    block_of_row: tf.Tensor | None
    block_of_col: tf.Tensor | None


def edges_of(pattern: Pattern, device: str) -> Edges:
    """The pattern on a device ("" = where TensorFlow puts new tensors); converted at the first call, then kept."""
    found = pattern.copies.get(("tensorflow", device_name(device))) if device else None
    if found is None:
        # Outside any function that is being traced: the tensors outlive it.
        with tf.init_scope():
            name = device_name(device or tf.zeros([]).device)
            key = ("tensorflow", name)
            if key not in pattern.copies:
                with tf.device(name):
                    pattern.copies[key] = _upload(pattern)
            found = pattern.copies[key]
    edges: Edges = found
    return edges


def _upload(pattern: Pattern) -> Edges:
    # TensorFlow keeps int32 tensors in host memory when it computes on a GPU, and would copy them at every use.
    dtype = tf.int64 if tf.config.list_logical_devices("GPU") else tf.as_dtype(pattern.row.dtype)

    def tensor(array: IntArray) -> tf.Tensor:
        return tf.constant(array, dtype)

    several = pattern.blocks > 1
    return Edges(
        extents=pattern.dense_shape,
        rows=pattern.rows,
        cols=pattern.cols,
        row=tensor(pattern.row),
        col=tensor(pattern.col),
        edge_of_slot=None if pattern.edge_of_slot is None else tensor(pattern.edge_of_slot),
        kept=None if pattern.kept is None else tensor(pattern.kept),
        blocks=pattern.blocks,
        block_of_row=tensor(pattern.block_of_row) if several else None,
        block_of_col=tensor(pattern.block_of_col) if several else None,
    )


def take(table: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Rows of a table: ``tf.gather`` whose gradient is a dense tensor at once, not indexed slices."""

    def gather(params: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.math.unsorted_segment_sum(upstream, index, extent(params, 0))

        return tf.gather(params, index), gradient

    return tf.custom_gradient(gather)(table)


def sparse_product(edges: Edges) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The function (values [E], dense [cols, F]) ↦ A·dense [rows, F] for A with these values on the edges."""
    return _product(edges.row, edges.col, edges.rows, edges.cols)


def _product(row: tf.Tensor, col: tf.Tensor, rows: Extent, cols: Extent) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    entries = tf.stack([tf.cast(row, tf.int64), tf.cast(col, tf.int64)], axis=1)
    shape = tf.stack([tf.cast(rows, tf.int64), tf.cast(cols, tf.int64)])

    def product(values: tf.Tensor, dense: tf.Tensor) -> tf.Tensor:
        return tf.sparse.sparse_dense_matmul(tf.SparseTensor(entries, values, shape), dense)

    return product


def segment_reduction(w: tf.Tensor, edges: Edges, impl: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The function (q [E], terms [E, F]) ↦ Σ_{e in row i} w_e q_e terms_e [rows, F], by one of three reductions.

    Args:
        w: [E] weights of the edges.
        edges: the rows.
        impl: "partition2d": product with a sparse [rows, E] matrix that holds w; "sorted": sums of consecutive runs;
            "unsorted": scatter-add.
    """
    if impl == "partition2d":
        count = extent(edges.row, 0)
        product = _product(edges.row, tf.range(count, dtype=tf.int64), edges.rows, count)
        return lambda q, terms: product(w, q[:, None] * terms)
    if impl == "sorted":
        return lambda q, terms: _sorted_sum((q * w)[:, None] * terms, edges)
    return lambda q, terms: tf.math.unsorted_segment_sum((q * w)[:, None] * terms, edges.row, edges.rows)


def _sorted_sum(terms: tf.Tensor, edges: Edges) -> tf.Tensor:
    """Sums of consecutive runs; ``segment_sum`` ends at the last row that has an edge, the others are appended."""
    summed = tf.math.segment_sum(terms, edges.row)
    missing = tf.cast(edges.rows, tf.int64) - tf.shape(summed, out_type=tf.int64)[0]
    padded = tf.pad(summed, [[0, missing], [0, 0]])
    return tf.ensure_shape(padded, [edges.rows if isinstance(edges.rows, int) else None, terms.shape[1]])
