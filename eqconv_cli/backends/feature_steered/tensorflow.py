"""Feature-steered convolution in TensorFlow: every published algorithm as a composition of tensor operations.

Verma, Boyer, Verbeek, CVPR 2018 (the operator); tensorflow/graphics pull requests #101 (v1, v2, v3) and #155
(sparse_matmul, gather_sum); pyg-team/pytorch_geometric ``FeaStConv`` (pyg). All are differentiable by the tape, also
twice. Besides them there are the compiled kernels ("fused"), differentiable once. Inside, features are flat: x [V, C]
over all blocks, E edges in row order.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import tensorflow as tf

from eqconv_cli.backends.feature_steered import arguments, cost_model, tensorflow_fused
from eqconv_cli.backends.feature_steered.options import Fused, fused_settings, resolve
from eqconv_cli.backends.feature_steered.tensorflow_algorithms import ALGORITHMS, Graph, Parameters
from eqconv_cli.backends.feature_steered.tensorflow_neighbors import plan_neighborhood, planned_edges
from eqconv_cli.backends.feature_steered.tensorflow_sparse import Edges, take
from eqconv_cli.frameworks.tensorflow_tensors import extent, is_symbolic

__all__ = ["feature_steered_convolution", "plan_neighborhood"]


def feature_steered_convolution(
    data: Any,
    neighbors: Any,
    sizes: Any,
    var_u: Any,
    var_v: Any,
    var_c: Any,
    var_w: Any,
    var_b: Any,
    *,
    version: str | Fused = "auto",
    transform_data_first: bool | Literal["edges"] | None = None,
    memory_efficient: bool = True,
    segment_sum_impl: str = "sorted",
    softmax: str = "stable",
    activation: str | None = None,
    validate: str = "cheap",
) -> tf.Tensor:
    """Feature-steered graph convolution: y_i = b + Σ_m W_mᵀ Σ_{j∈N(i)} w_ij softmax_m(u_m·x_i + v_m·x_j + c_m) x_j.

    V vertices, C input channels, D output channels, M weight matrices, A1..An batch dimensions (n >= 0). Works eagerly
    and in ``tf.function``, where every extent may be unknown but the ranks. XLA (``jit_compile=True``) compiles
    versions "v1" and "pyg" with ``segment_sum_impl="unsorted"`` and a softmax that is not "guarded", when neighbors are
    planned outside or come without sizes; TensorFlow gives it no kernel for the other reductions.

    Args:
        data: [A1, ..., An, V, C] float32 or float64. For centres with features of their own, a pair
            (data [.., Vi, C], centre data [.., Vo, C]).
        neighbors: the sparse matrix [A1, ..., An, Vo, Vi] of weights w: a ``tf.SparseTensor``,
            ``(indices [E, n+2], values [E], dense_shape)``, ``(indptr, indices, values)``, a SciPy sparse matrix, or a
            plan from :func:`plan_neighborhood` (converted already). Only stored entries count, stored zeros too.
        sizes: integer [A1, ..., An], vertices in each block, or None. Rows beyond are ignored and come out as 0.
        var_u, var_v: [C, M].
        var_c: [M].
        var_w: [M, C, D].
        var_b: [D].
        version: the algorithm: "v1", "v2", "v3", "gather_sum", "sparse_matmul", "pyg"; "fused" for the compiled kernels
            (``eqconv build-kernels``; first derivatives only; not under XLA); "auto" takes those where they are built,
            else what the cost model says.
        transform_data_first: multiply by W before (True) or after (False) the sum over the neighbours; None takes the
            narrower side (for "fused" what its cost model says); "edges" is v1's published order, which multiplies at
            every edge.
        memory_efficient: v1, v3, sparse_matmul: add up over m one by one instead of keeping all M terms.
        segment_sum_impl: v1, pyg: "partition2d", "sorted" or "unsorted".
        softmax: "stable" subtracts each edge's maximum; "guarded" factors the exponentials and recomputes the edges
            where that loses digits; "raw" is the released operator's plain exponential (v2, v3: the published
            factored form), which overflows for large logits. v2, v3 and fused are factored, so "stable" means "guarded"
            there; fused has no "raw".
        activation: None, or "relu" to return max(y, 0); fused applies it as it writes y.
        validate: "none", "cheap" (shapes, dtypes, indices when a plan is built) or "full" (also that every value is
            finite).

    Returns:
        [A1, ..., An, Vo, D].

    Raises:
        TypeError: a dtype is not allowed or differs from that of ``data``.
        ValueError: a shape or an option does not fit; an entry outside ``sizes``; dense ``neighbors``.
        IndexError: an edge names a vertex that is not there.
        tf.errors.InvalidArgumentError: the same faults where only the run of a traced function shows them.
        Unavailable: version is "fused" and the kernels are not built for this device, or XLA is compiling.

    Example:
        >>> import tensorflow as tf
        >>> x = tf.constant([[1.0], [2.0], [3.0]])
        >>> thirds = tf.sparse.from_dense(tf.fill([3, 3], 1 / 3))
        >>> y = feature_steered_convolution(
        ...     x, thirds, None, [[0.5]], [[1.3]], [-0.7], [[[0.8]]], [3.0]
        ... )
        >>> [round(float(row), 4) for row in y[:, 0]]
        [4.6, 4.6, 4.6]
    """
    arguments.check_choices(version, transform_data_first, segment_sum_impl, softmax, validate, activation)
    x, centre = (_tensor(part) for part in data) if isinstance(data, tuple) else (_tensor(data), None)
    parameters = Parameters(*(_tensor(p) for p in (var_u, var_v, var_c, var_w, var_b)))
    if validate != "none":
        _check_shapes(x, parameters)
    plan = plan_neighborhood(neighbors, sizes)
    edges = planned_edges(plan, x.device)
    if validate != "none":
        arguments.check_neighbors(
            arguments.Operand(plan.pattern.dense_shape, plan.values.dtype.name),
            _operand("data", x),
            None if centre is None else _operand("data's centre part", centre),
        )
        checks = _extent_checks(x, centre, parameters, edges)
        if validate == "full":
            checks += _finite_checks(x, centre, plan.values, parameters)
        if checks:
            with tf.control_dependencies(checks):
                x, parameters = tf.identity(x), Parameters(*(tf.identity(p) for p in parameters))
    flat = _flatten(x, edges)
    centres = _flat_centres(x, centre, flat, edges)
    size = _sizes(edges, parameters)
    fused = fused_settings(
        version, softmax, lambda settings: tensorflow_fused.missing(settings, x.device, plan.pattern)
    )
    if fused is not None:
        own = None if centres is flat else centres
        flags = fused.flags(transform_data_first, activation, size)
        y = tensorflow_fused.convolve(flat, own, plan.values, parameters, plan.pattern, fused, flags)
        return _unflatten(y, edges)
    version, options = resolve(
        str(version),
        transform_data_first,
        memory_efficient,
        segment_sum_impl,
        softmax,
        size,
        "tensorflow",
        training=True,
    )
    w = plan.values if edges.edge_of_slot is None else take(plan.values, edges.edge_of_slot)
    y = ALGORITHMS[version](Graph(flat, centres, w, edges), parameters, options)
    return _unflatten(y if activation is None else tf.nn.relu(y), edges)


def _tensor(array: Any) -> tf.Tensor:
    # Converting a tensor costs as much as a few operations of a small graph, and does nothing.
    return array if isinstance(array, tf.Tensor) else tf.convert_to_tensor(array)


def _sizes(edges: Edges, p: Parameters) -> cost_model.Sizes:
    """What is known of the sizes while a function is traced; unknown extents count as 1."""

    def known(length: Any) -> int:
        return length if isinstance(length, int) else 1

    # Without operations: an extent that is unknown is not needed here.
    extents = (edges.cols, edges.row.shape[0], *p.var_w.shape.as_list())
    vertices, count, matrices, channels, outputs = (known(length) for length in extents)
    return cost_model.Sizes(vertices, count, channels, outputs, matrices)


def _flatten(x: tf.Tensor, edges: Edges) -> tf.Tensor:
    """The kept vertices of all blocks [cols, C]."""
    # In eager mode an operation that does nothing costs as much as a small graph.
    flat = x if _is_matrix(x) else tf.reshape(x, [edges.blocks * edges.extents[-1], extent(x, -1)])
    return flat if edges.kept is None else take(flat, edges.kept)


def _flat_centres(x: tf.Tensor, centre: tf.Tensor | None, flat: tf.Tensor, edges: Edges) -> tf.Tensor:
    """The centres' features [rows, C]: their own, or the first Vo rows of each block."""
    rows, cols = edges.extents[-2:]
    if centre is None:
        if edges.kept is not None or rows is cols or (isinstance(rows, int) and rows == cols):
            return flat
        centre = x[..., :rows, :]
    return tf.reshape(centre, [edges.rows, extent(x, -1)])


def _unflatten(y: tf.Tensor, edges: Edges) -> tf.Tensor:
    """[rows, D] to [A1, ..., An, Vo, D], rows beyond ``sizes`` 0."""
    outputs = extent(y, 1)
    if edges.kept is not None:
        shape = tf.stack([tf.cast(n, edges.kept.dtype) for n in (edges.blocks * edges.extents[-2], outputs)])
        y = tf.scatter_nd(edges.kept[:, None], y, shape)
    if len(edges.extents) == 2 and _is_matrix(y):
        return y
    return tf.reshape(y, [*edges.extents[:-1], outputs])


def _is_matrix(tensor: tf.Tensor) -> bool:
    """Whether the tensor is known to have two dimensions of known length."""
    return tensor.shape.rank == 2 and tensor.shape.is_fully_defined()


# Checks.


def _operand(name: str, tensor: tf.Tensor) -> arguments.Operand:
    if tensor.shape.rank is None:
        raise ValueError(f"{name} has unknown rank: the number of its dimensions must be known")
    return arguments.Operand(tuple(tensor.shape.as_list()), tensor.dtype.name)


def _check_shapes(x: tf.Tensor, parameters: Parameters) -> None:
    operand = _operand("data", x)
    arguments.check_data("data", operand)
    arguments.check_parameters(operand, *(_operand(name, p) for name, p in parameters._asdict().items()))


def _extent_checks(x: tf.Tensor, centre: tf.Tensor | None, p: Parameters, edges: Edges) -> list[Any]:
    """Assertions on the extents that are unknown while a function is traced."""
    batch, (centres, sources) = edges.extents[:-2], edges.extents[-2:]
    channels, matrices, outputs = extent(x, -1), p.matrices, extent(p.var_w, 2)
    wanted = {
        "data": (x, (*batch, sources, channels)),
        "var_u": (p.var_u, (channels, matrices)),
        "var_v": (p.var_v, (channels, matrices)),
        "var_c": (p.var_c, (matrices,)),
        "var_w": (p.var_w, (matrices, channels, outputs)),
        "var_b": (p.var_b, (outputs,)),
    }
    if centre is not None:
        wanted["data's centre part"] = (centre, (*batch, centres, channels))
    checks = [
        tf.debugging.assert_equal(
            tf.shape(tensor, out_type=tf.int64),
            tf.stack([tf.cast(length, tf.int64) for length in lengths]),
            f"{name} does not have the shape that data, neighbors and the parameters have in common",
        )
        for name, (tensor, lengths) in wanted.items()
        if not (tensor.shape.is_fully_defined() and all(isinstance(length, int) for length in lengths))
    ]
    if centre is None and not (isinstance(centres, int) and isinstance(sources, int)):
        message = "neighbors has more rows than data has vertices; give data as a pair (data, centre data)"
        checks.append(tf.debugging.assert_less_equal(tf.cast(centres, tf.int64), tf.cast(sources, tf.int64), message))
    return checks


def _finite_checks(x: tf.Tensor, centre: tf.Tensor | None, values: tf.Tensor, parameters: Parameters) -> list[Any]:
    """Raise for values that are not finite, or assert it of symbolic ones."""
    named = {"data": x, "neighbors.values": values, **parameters._asdict()}
    if centre is not None:
        named["data's centre part"] = centre
    checks = []
    for name, tensor in named.items():
        if is_symbolic(tensor):
            checks.append(tf.debugging.assert_all_finite(tensor, f"{name}: validate='full' wants finite values"))
            continue
        array = tensor.numpy()
        bad = ~np.isfinite(array)
        if bad.any():
            where = [int(k) for k in np.argwhere(bad)[0]]
            raise ValueError(f"{name} is {array[tuple(where)]} at {where}: validate='full' wants finite values")
    return checks
