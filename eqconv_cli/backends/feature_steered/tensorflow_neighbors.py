"""Neighbourhood matrices in every accepted form, planned by NumPy or, if symbolic, by the traced function."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from eqconv_cli.backends.feature_steered.plan import (
    Coo,
    Csr,
    IntArray,
    NeighborhoodPlan,
    OutsideSizes,
    Pattern,
    build_pattern,
    coordinates,
)
from eqconv_cli.backends.feature_steered.tensorflow_sparse import Edges, edges_of
from eqconv_cli.backends.feature_steered.tensorflow_symbolic import (
    build_symbolic_pattern,
    symbolic_coo,
    symbolic_csr,
)
from eqconv_cli.frameworks.tensorflow_tensors import is_symbolic

_SPARSE = "a tf.SparseTensor (tf.sparse.from_dense(neighbors)), or a SciPy sparse matrix"


def plan_neighborhood(neighbors: Any, sizes: Any = None, *, outside_sizes: OutsideSizes = "error") -> NeighborhoodPlan:
    """Bring a neighbourhood matrix into row order once, for any number of calls.

    Indices whose values are known are planned at once, also while a function is traced. Symbolic ones are planned by
    the traced function; such a plan is valid inside it only.

    Args:
        neighbors: as for :func:`feature_steered_convolution`; a plan is returned as it is.
        sizes: integer [A1, ..., An] or None.
        outside_sizes: "error", or "drop" to leave out entries beyond ``sizes``.

    Returns:
        A plan that keeps ``values`` as they are, so gradients reach them.

    Raises:
        TypeError, ValueError, IndexError, tf.errors.InvalidArgumentError: see :func:`feature_steered_convolution`.
    """
    if isinstance(neighbors, NeighborhoodPlan):
        _check_same_sizes(neighbors.pattern, sizes)
        return neighbors
    if is_symbolic(sizes, *_index_parts(neighbors)):
        sparse = _symbolic_tensor(neighbors)
        size_tensor = None if sizes is None else tf.convert_to_tensor(sizes)
        return NeighborhoodPlan(build_symbolic_pattern(sparse, size_tensor, outside_sizes), sparse.values)
    if isinstance(neighbors, tf.SparseTensor):
        neighbors = Coo(neighbors.indices, neighbors.values, neighbors.dense_shape)
    indices, values, dense_shape = coordinates(neighbors, _integers, tf.convert_to_tensor, _SPARSE)
    if values.shape.rank != 1 or values.shape[0] not in (None, indices.shape[0]):
        raise ValueError(f"neighbors has {indices.shape[0]} indices but values of shape {values.shape}")
    size_array = None if sizes is None else _integers("sizes", sizes)
    return NeighborhoodPlan(build_pattern(indices, dense_shape, size_array, outside_sizes), values)


def planned_edges(plan: NeighborhoodPlan, device: str) -> Edges:
    """The index tensors of a plan, on a device unless they are symbolic."""
    if isinstance(plan.pattern, Pattern):
        return edges_of(plan.pattern, device)
    edges: Edges = plan.pattern.edges
    return edges


def _check_same_sizes(pattern: Any, sizes: Any) -> None:
    if sizes is None:
        return
    if isinstance(pattern, Pattern) and not is_symbolic(sizes):
        pattern.check_same_sizes(_integers("sizes", sizes))
        return
    shape = pattern.dense_shape if isinstance(pattern, Pattern) else pattern.edges.extents
    planned = tf.fill(shape[:-2], shape[-1]) if pattern.sizes is None else pattern.sizes
    tf.debugging.assert_equal(
        tf.cast(sizes, tf.int64), tf.cast(planned, tf.int64), "sizes differs from what neighbors was planned with"
    )


def _index_parts(neighbors: Any) -> tuple[Any, ...]:
    """The arrays that make up the pattern."""
    if isinstance(neighbors, tf.SparseTensor):
        return neighbors.indices, neighbors.dense_shape
    if isinstance(neighbors, Csr) or (isinstance(neighbors, tuple) and len(neighbors) == 4):
        return neighbors[0], neighbors[1]
    if isinstance(neighbors, tuple) and len(neighbors) == 3:
        # Which of the two layouts a plain tuple has does not matter here: weights are floating-point in both.
        return tuple(part for part in neighbors if tf.as_dtype(getattr(part, "dtype", tf.int64)).is_integer)
    return ()


def _symbolic_tensor(neighbors: Any) -> tf.SparseTensor:
    """A sparse tensor of neighbours of which at least the sizes are symbolic."""
    if isinstance(neighbors, tf.SparseTensor):
        return neighbors
    if isinstance(neighbors, tuple) and len(neighbors) in (3, 4):
        first = tf.convert_to_tensor(neighbors[0])
        if isinstance(neighbors, Csr) or (not isinstance(neighbors, Coo) and first.shape.rank == 1):
            return symbolic_csr(Csr(*neighbors))
        return symbolic_coo(Coo(*neighbors))
    return symbolic_coo(Coo(*coordinates(neighbors, _integers, tf.convert_to_tensor, _SPARSE)))


def _integers(name: str, array: Any) -> IntArray:
    converted = array.numpy() if tf.is_tensor(array) else array
    integers: IntArray = np.asarray(converted)
    if not np.issubdtype(integers.dtype, np.integer):
        raise TypeError(f"{name} has dtype {integers.dtype}: an integer dtype is needed")
    return integers
