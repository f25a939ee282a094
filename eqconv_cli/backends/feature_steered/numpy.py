"""Feature-steered convolution in NumPy and SciPy: the published algorithms, and the gradients in closed form.

The same algorithms as in PyTorch, see :mod:`eqconv_cli.backends.feature_steered.torch_algorithms`; here they are plain
array code, useful where no framework is installed and as a second, independent opinion.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from eqconv_cli.backends.feature_steered import arguments, cost_model
from eqconv_cli.backends.feature_steered.numpy_algorithms import (
    ALGORITHMS,
    Array,
    Graph,
    Parameters,
    assignment,
    logit_halves,
    sparse_matrix,
)
from eqconv_cli.backends.feature_steered.options import resolve
from eqconv_cli.backends.feature_steered.plan import (
    IntArray,
    NeighborhoodPlan,
    OutsideSizes,
    Pattern,
    build_pattern,
    coordinates,
)
from eqconv_cli.catalog import Arrays
from eqconv_cli.frameworks.numpy import BoundRun

Features = Array | tuple[Array, Array]


def feature_steered_convolution(
    data: Features,
    neighbors: Any,
    sizes: Any,
    var_u: Array,
    var_v: Array,
    var_c: Array,
    var_w: Array,
    var_b: Array,
    *,
    version: str = "auto",
    transform_data_first: bool | Literal["edges"] | None = None,
    memory_efficient: bool = True,
    segment_sum_impl: str = "sorted",
    softmax: str = "stable",
    validate: str = "cheap",
) -> Array:
    """Feature-steered graph convolution: y_i = b + Σ_m W_mᵀ Σ_{j∈N(i)} w_ij softmax_m(u_m·x_i + v_m·x_j + c_m) x_j.

    V vertices, C input channels, D output channels, M weight matrices, A1..An batch dimensions (n >= 0).

    Args:
        data: [A1, ..., An, V, C] float32 or float64. For centres with features of their own, a pair
            (data [.., Vi, C], centre data [.., Vo, C]).
        neighbors: the sparse matrix [A1, ..., An, Vo, Vi] of weights w: a SciPy sparse matrix, ``(indices [E, n+2],
            values [E], dense_shape)``, ``(indptr, indices, values)``, or a plan from :func:`plan_neighborhood`.
        sizes: integer [A1, ..., An], vertices in each block, or None. Rows beyond are ignored and come out as 0.
        var_u: [C, M].
        var_v: [C, M].
        var_c: [M].
        var_w: [M, C, D].
        var_b: [D].
        version: the algorithm: "v1", "v2", "v3", "gather_sum", "sparse_matmul", "pyg", or "auto" by the cost model.
        transform_data_first: multiply by W before (True) or after (False) the sum over the neighbours; None takes the
            narrower side; "edges" is v1's published order, which multiplies at every edge.
        memory_efficient: v1, v3, sparse_matmul: add up over m one by one instead of keeping all M terms.
        segment_sum_impl: v1, pyg: "partition2d", "sorted" or "unsorted".
        softmax: "stable", "guarded" or "raw" (plain exponentials, which overflow for large logits).
        validate: "none", "cheap" (shapes, dtypes, indices when a plan is built) or "full" (also finite values).

    Returns:
        [A1, ..., An, Vo, D].

    Raises:
        TypeError: a dtype is not allowed or differs from that of ``data``.
        ValueError: a shape or an option does not fit; an entry outside ``sizes``; dense ``neighbors``.
        IndexError: an edge names a vertex that is not there.
    """
    arguments.check_choices(version, transform_data_first, segment_sum_impl, softmax, validate)
    p = Parameters(var_u, var_v, var_c, var_w, var_b)
    graph = _graph(data, neighbors, sizes, p, validate)
    pattern = graph.pattern
    size = cost_model.Sizes(pattern.cols, pattern.edges, var_w.shape[1], var_w.shape[2], var_w.shape[0])
    version, options = resolve(
        version, transform_data_first, memory_efficient, segment_sum_impl, softmax, size, "numpy", training=False
    )
    return _unflatten(ALGORITHMS[version](graph, p, options), pattern)


def feature_steered_convolution_gradients(
    cotangent: Array,
    data: Features,
    neighbors: Any,
    sizes: Any,
    var_u: Array,
    var_v: Array,
    var_c: Array,
    var_w: Array,
    var_b: Array,
    *,
    validate: str = "cheap",
) -> dict[str, Array]:
    """The gradients of ⟨cotangent, feature_steered_convolution(...)⟩ in closed form.

    Args:
        cotangent: G = ∂L/∂y [A1, ..., An, Vo, D]; rows beyond ``sizes`` are not read.
        data: as for :func:`feature_steered_convolution`, like all the others.
        neighbors: as there.
        sizes: as there.
        var_u: [C, M].
        var_v: [C, M].
        var_c: [M].
        var_w: [M, C, D].
        var_b: [D].
        validate: as there.

    Returns:
        Gradients named ``data``, ``data_out`` (when data is a pair), ``values`` (in the caller's edge order),
        ``var_u``, ``var_v``, ``var_c``, ``var_w``, ``var_b``, each in the shape of its argument.

    Raises:
        ValueError: the cotangent has another shape than the result; else as :func:`feature_steered_convolution`.
    """
    p = Parameters(var_u, var_v, var_c, var_w, var_b)
    graph = _graph(data, neighbors, sizes, p, validate)
    pattern = graph.pattern
    expected = (*pattern.dense_shape[:-1], var_b.shape[0])
    if cotangent.shape != expected:
        raise ValueError(f"cotangent has shape {list(cotangent.shape)}: expected {list(expected)}")
    g = _flatten(cotangent, pattern)
    matrices, channels, _ = var_w.shape
    row, col = pattern.row, pattern.col
    q = assignment(*logit_halves(graph, p, "stable"), pattern, "stable")
    weighted = graph.w[:, None] * q
    dz = np.einsum("vd,mcd->vmc", g, var_w)
    z = np.empty_like(dz)
    dq = np.empty_like(q)
    dx = np.zeros_like(graph.x)
    for m in range(matrices):
        matrix = sparse_matrix(weighted[:, m], pattern)
        z[:, m] = matrix @ graph.x
        dq[:, m] = np.einsum("ec,ec->e", dz[row, m], graph.x[col])
        dx += matrix.T @ dz[:, m]
    by_weight = (q * dq).sum(1)
    dl = weighted * (dq - by_weight[:, None])
    da, ds = np.zeros((pattern.rows, matrices), dl.dtype), np.zeros((pattern.cols, matrices), dl.dtype)
    np.add.at(da, row, dl)
    np.add.at(ds, col, dl)
    dx += ds @ var_v.T
    dcentre = da @ var_u.T
    values = np.zeros(pattern.given_edges, dl.dtype)
    values[_all_or(pattern.edge_of_slot)] = by_weight
    x = data[0] if isinstance(data, tuple) else data
    gradients = {
        "values": values,
        "var_u": graph.centre.T @ da,
        "var_v": graph.x.T @ ds,
        "var_c": da.sum(0),
        "var_w": np.einsum("vmc,vd->mcd", z, g),
        "var_b": g.sum(0),
    }
    if isinstance(data, tuple):
        return {"data": dx.reshape(x.shape), "data_out": dcentre.reshape(data[1].shape), **gradients}
    full = np.zeros_like(x)
    flat = full.reshape(-1, channels)
    flat[_all_or(pattern.kept)] = dx
    full[..., : pattern.dense_shape[-2], :] += _unflatten(dcentre, pattern)
    return {"data": full, **gradients}


def plan_neighborhood(neighbors: Any, sizes: Any = None, *, outside_sizes: OutsideSizes = "error") -> NeighborhoodPlan:
    """Bring a neighbourhood matrix into row order once, for any number of calls.

    Args:
        neighbors: as for :func:`feature_steered_convolution`; a plan is returned as it is.
        sizes: integer [A1, ..., An] or None.
        outside_sizes: "error", or "drop" to leave out entries beyond ``sizes``.

    Raises:
        TypeError, ValueError, IndexError: see :func:`feature_steered_convolution`.
    """
    size_array = None if sizes is None else _integers("sizes", sizes)
    if isinstance(neighbors, NeighborhoodPlan):
        neighbors.pattern.check_same_sizes(size_array)
        return neighbors
    indices, values, shape = coordinates(neighbors, _integers, np.asarray, "a SciPy sparse matrix")
    if indices.shape[0] != values.shape[0]:
        raise ValueError(f"neighbors has {indices.shape[0]} indices but {values.shape[0]} values")
    return NeighborhoodPlan(build_pattern(indices, shape, size_array, outside_sizes), values)


def prepare(inputs: Arrays, dtype: str, device: str, gradients: bool = False, **options: Any) -> BoundRun:
    """The catalog's door: plan once, then call the operator (and, if asked for, its closed-form gradients)."""
    matrix = (inputs["indices"], inputs["values"], inputs["dense_shape"])
    plan = plan_neighborhood(matrix, inputs.get("sizes"))
    floats = {name: a for name, a in inputs.items() if np.issubdtype(a.dtype, np.floating)}

    def arguments_of(arrays: Arrays) -> tuple[Any, ...]:
        data = (arrays["data"], arrays["data_out"]) if "data_out" in arrays else arrays["data"]
        parameters = (arrays[name] for name in Parameters._fields)
        return data, plan.with_values(arrays["values"]), None, *parameters

    def forward(arrays: Arrays) -> Arrays:
        return {"output": feature_steered_convolution(*arguments_of(arrays), validate="none", **options)}

    def backward(arrays: Arrays, cotangents: Arrays) -> Arrays:
        return feature_steered_convolution_gradients(cotangents["output"], *arguments_of(arrays), validate="none")

    return BoundRun(forward, floats, backward if gradients else None)


# Conversion and checks.


def _integers(name: str, array: Any) -> IntArray:
    converted = np.asarray(array)
    if not np.issubdtype(converted.dtype, np.integer):
        raise TypeError(f"{name} has dtype {converted.dtype}: an integer dtype is needed")
    return converted


def _graph(data: Features, neighbors: Any, sizes: Any, p: Parameters, validate: str) -> Graph:
    """Check the arguments as asked for and flatten them."""
    x, centre = data if isinstance(data, tuple) else (data, None)
    named = {"data": x, **p._asdict()} if centre is None else {"data": x, "data's centre part": centre, **p._asdict()}
    for name, array in named.items():
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} is a {type(array).__name__}: expected a NumPy array")
    if validate != "none":
        arguments.check_data("data", _operand(x))
        arguments.check_parameters(_operand(x), *(_operand(array) for array in p))
        if sizes is not None:
            arguments.check_sizes(_operand(np.asarray(sizes)), _operand(x))
    plan = plan_neighborhood(neighbors, sizes)
    pattern: Pattern = plan.pattern
    if validate != "none":
        matrix = arguments.Operand(pattern.dense_shape, str(plan.values.dtype))
        arguments.check_neighbors(matrix, _operand(x), None if centre is None else _operand(centre))
    if validate == "full":
        for name, array in {**named, "neighbors.values": plan.values}.items():
            _check_finite(name, array)
    flat = _flatten(x, pattern)
    if centre is not None:
        flat_centre = centre.reshape(-1, centre.shape[-1])
    else:
        rows, cols = pattern.dense_shape[-2:]
        flat_centre = flat if rows == cols else x[..., :rows, :].reshape(-1, x.shape[-1])
    return Graph(flat, flat_centre, plan.values[_all_or(pattern.edge_of_slot)], pattern)


def _check_finite(name: str, array: Array) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(int(k) for k in np.argwhere(bad)[0])
        raise ValueError(f"{name} is {array[where]} at {list(where)}: validate='full' wants finite values")


def _operand(array: Any) -> arguments.Operand:
    return arguments.Operand(array.shape, str(array.dtype))


def _all_or(index: IntArray | None) -> Any:
    return slice(None) if index is None else index


def _flatten(array: Array, pattern: Pattern) -> Array:
    """[A1, ..., An, V, F] to the kept rows [rows, F]."""
    flat: Array = array.reshape(-1, array.shape[-1])
    return flat[_all_or(pattern.kept)]


def _unflatten(y: Array, pattern: Pattern) -> Array:
    """[rows, F] to [A1, ..., An, Vo, F], rows beyond ``sizes`` 0."""
    padded = y
    if pattern.kept is not None:
        padded = np.zeros((pattern.blocks * pattern.dense_shape[-2], y.shape[1]), y.dtype)
        padded[pattern.kept] = y
    return padded.reshape(*pattern.dense_shape[:-1], y.shape[1])
