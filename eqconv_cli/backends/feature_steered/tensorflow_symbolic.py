"""Planning inside a traced function: what :func:`build_pattern` does with NumPy, done with TensorFlow operations.

What is wrong with indices or sizes shows only as the traced function runs, as ``tf.errors.InvalidArgumentError``.
XLA compiles the planning of neighbours without sizes; it leaves the assertions out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from eqconv_cli.backends.feature_steered import arguments
from eqconv_cli.backends.feature_steered.plan import Coo, Csr, OutsideSizes
from eqconv_cli.backends.feature_steered.tensorflow_sparse import Edges
from eqconv_cli.frameworks.tensorflow_tensors import Extent, extent


@dataclass(frozen=True, eq=False)
class SymbolicPattern:
    """The indices of a block-diagonal neighbourhood matrix as symbolic tensors, valid inside one traced function."""

    #: Static shape [A1, ..., An, Vo, Vi] of the neighbourhood matrix; None = unknown.
    dense_shape: tuple[int | None, ...]
    sizes: tf.Tensor | None
    edges: Edges


def symbolic_coo(neighbors: Coo) -> tf.SparseTensor:
    """A sparse tensor of the parts; raises TypeError when indices are not integers."""
    indices = _integer("neighbors.indices", neighbors.indices)
    return tf.SparseTensor(indices, neighbors.values, _integer("neighbors.dense_shape", neighbors.dense_shape))


def symbolic_csr(neighbors: Csr) -> tf.SparseTensor:
    """A sparse tensor with the row of each entry written out; raises TypeError when indices are not integers."""
    indptr, columns = _integer("neighbors.indptr", neighbors.indptr), _integer("neighbors.indices", neighbors.indices)
    counts = indptr[1:] - indptr[:-1]
    edges = tf.shape(columns, out_type=tf.int64)[0]
    sound = [
        tf.debugging.assert_equal(indptr[0], tf.zeros_like(edges), "neighbors.indptr does not start at 0"),
        tf.debugging.assert_equal(indptr[-1], edges, "neighbors.indptr does not end at the number of entries"),
        tf.debugging.assert_non_negative(counts, "neighbors.indptr decreases"),
    ]
    with tf.control_dependencies(sound):
        counts = tf.identity(counts)
    row = tf.repeat(tf.range(tf.size(counts, out_type=tf.int64)), counts)
    rows = extent(counts, 0)
    shape = [rows, rows if neighbors.columns is None else neighbors.columns]
    return tf.SparseTensor(tf.stack([row, columns], axis=1), neighbors.values, shape)


def _integer(name: str, array: Any) -> tf.Tensor:
    tensor = tf.convert_to_tensor(array)
    if not tensor.dtype.is_integer:
        raise TypeError(f"{name} has dtype {tensor.dtype.name}: an integer dtype is needed")
    return tf.cast(tensor, tf.int64)


def build_symbolic_pattern(
    neighbors: tf.SparseTensor, sizes: tf.Tensor | None, outside_sizes: OutsideSizes
) -> SymbolicPattern:
    """Sort the edges of a batch of sparse matrices into one block-diagonal pattern.

    Args:
        neighbors: [A1, ..., An, Vo, Vi] of known rank, entries in any order.
        sizes: integer [A1, ..., An], or None.
        outside_sizes: "error" or "drop".

    Raises:
        TypeError, ValueError: what the static shapes and dtypes show to be wrong.
        tf.errors.InvalidArgumentError: as the function runs: an index beyond its axis, sizes out of [0, V], an entry
            outside sizes.
    """
    if outside_sizes not in ("error", "drop"):
        raise ValueError(f"outside_sizes={outside_sizes!r} is unknown: allowed: error, drop")
    rank = neighbors.shape.rank
    if rank is None or rank < 2:
        raise ValueError(f"neighbors has shape {neighbors.shape}: a known rank of 2 or more is needed")
    known = tuple(neighbors.shape.as_list())
    extents = tuple(neighbors.dense_shape[k] if n is None else n for k, n in enumerate(known))
    indices = _checked_indices(neighbors)
    batch, (centres, sources) = extents[:-2], extents[-2:]
    blocks, block = _blocks(batch, indices)
    row, col, edge = indices[:, -2], indices[:, -1], None
    if sizes is None:
        row, col = row + block * centres, col + block * sources
        rows, cols, kept = blocks * centres, blocks * sources, None
        counts = (tf.fill([blocks], tf.cast(centres, tf.int64)), tf.fill([blocks], tf.cast(sources, tf.int64)))
    else:
        arguments.check_sizes(
            arguments.Operand(tuple(sizes.shape.as_list()), sizes.dtype.name), arguments.Operand(known, "int64")
        )
        size = _checked_sizes(sizes, batch, centres, sources)
        row, col, edge = _inside(row, col, tf.gather(size, block), outside_sizes)
        start = tf.gather(tf.cumsum(size, exclusive=True), block if edge is None else tf.gather(block, edge))
        row, col = row + start, col + start
        rows = cols = tf.reduce_sum(size)
        kept = tf.where(tf.reshape(tf.sequence_mask(size, sources), [-1]))[:, 0]
        counts = (size, size)
    order = _row_order(row)
    several = len(batch) > 0
    every = tf.range(tf.cast(blocks, tf.int64))
    edges = Edges(
        extents=extents,
        rows=rows,
        cols=cols,
        row=tf.gather(row, order),
        col=tf.gather(col, order),
        edge_of_slot=order if edge is None else tf.gather(edge, order),
        kept=kept,
        blocks=blocks,
        block_of_row=tf.repeat(every, counts[0]) if several else None,
        block_of_col=tf.repeat(every, counts[1]) if several else None,
    )
    return SymbolicPattern(known, sizes, edges)


def _blocks(batch: tuple[Extent, ...], indices: tf.Tensor) -> tuple[Extent, tf.Tensor]:
    """The number of blocks, and the block of each edge."""
    blocks: Extent = 1
    block = tf.zeros_like(indices[:, 0])
    for axis, length in enumerate(batch):
        blocks, block = blocks * length, block * length + indices[:, axis]
    return blocks, block


def _checked_indices(neighbors: tf.SparseTensor) -> tf.Tensor:
    bounds = [
        tf.debugging.assert_non_negative(neighbors.indices, "neighbors: an index is negative"),
        tf.debugging.assert_less(
            neighbors.indices, neighbors.dense_shape[None, :], "neighbors: an index is beyond its axis"
        ),
        tf.debugging.assert_equal(
            tf.shape(neighbors.values)[0], tf.shape(neighbors.indices)[0], "neighbors needs one value for each index"
        ),
    ]
    with tf.control_dependencies(bounds):
        return tf.identity(neighbors.indices)


def _checked_sizes(sizes: tf.Tensor, batch: tuple[Extent, ...], centres: Extent, sources: Extent) -> tf.Tensor:
    """The sizes of all blocks [B]."""
    size = tf.cast(sizes, tf.int64)
    centres, sources = tf.cast(centres, tf.int64), tf.cast(sources, tf.int64)
    sound = [
        tf.debugging.assert_equal(centres, sources, "sizes needs square neighbourhoods"),
        tf.debugging.assert_non_negative(size, "sizes is negative"),
        tf.debugging.assert_less_equal(size, sources, "sizes is larger than the number of vertices"),
    ]
    if batch:
        wanted = tf.stack([tf.cast(length, tf.int64) for length in batch])
        shape = tf.shape(size, out_type=tf.int64)
        sound.append(tf.debugging.assert_equal(shape, wanted, "sizes does not have the batch dimensions of neighbors"))
    else:
        sound.append(
            tf.debugging.assert_equal(size, sources, "sizes of data without batch dimensions must be its vertices")
        )
    with tf.control_dependencies(sound):
        size = tf.identity(size)
    return tf.reshape(size, [-1])


def _inside(
    row: tf.Tensor, col: tf.Tensor, size: tf.Tensor, outside_sizes: OutsideSizes
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """Rows and columns inside the size [E] of their block, and which edges these are (None: all of them)."""
    inside = (row < size) & (col < size)
    if outside_sizes == "drop":
        edge = tf.where(inside)[:, 0]
        return tf.gather(row, edge), tf.gather(col, edge), edge
    message = "neighbors has an entry outside sizes; plan it with outside_sizes='drop' to leave such entries out"
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(inside), [message])]):
        return tf.identity(row), tf.identity(col), None


def _row_order(row: tf.Tensor) -> tf.Tensor:
    """The stable order by row [E]; canonical sparse tensors are in it already, and a sort costs much."""
    return tf.cond(
        tf.reduce_all(row[1:] >= row[:-1]),
        lambda: tf.range(tf.size(row, out_type=tf.int64)),
        lambda: tf.cast(tf.argsort(row, stable=True), tf.int64),
    )


def symbolic_mean_neighborhood(
    edge_index: tf.Tensor, num_sources: Extent, num_targets: Extent, add_self_loops: bool, dtype: tf.DType
) -> tf.SparseTensor:
    """What :func:`mean_neighborhood` does, where the edge list [2, E] or a number of vertices is symbolic.

    Raises:
        TypeError: ``edge_index`` is not of an integer dtype.
        tf.errors.InvalidArgumentError: as the function runs: self loops are wanted of targets that no source matches.
    """
    source, target = tf.unstack(_integer("edge_index", edge_index), num=2)
    if add_self_loops:
        message = "add_self_loops=True: there are more targets than sources"
        few = tf.debugging.assert_less_equal(tf.cast(num_targets, tf.int64), tf.cast(num_sources, tf.int64), message)
        with tf.control_dependencies([few]):
            target = tf.identity(target)
        others = tf.where(source != target)[:, 0]
        each = tf.range(tf.cast(num_targets, tf.int64))
        source = tf.concat([tf.gather(source, others), each], axis=0)
        target = tf.concat([tf.gather(target, others), each], axis=0)
    incoming = tf.math.unsorted_segment_sum(tf.ones_like(target), target, num_targets)
    weights = 1.0 / tf.cast(tf.gather(incoming, target), dtype)
    return tf.SparseTensor(tf.stack([target, source], axis=1), weights, [num_targets, num_sources])
