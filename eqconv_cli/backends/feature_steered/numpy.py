"""Feature-steered convolution in NumPy and SciPy: the published algorithms, and the gradients in closed form.

The same algorithms as in PyTorch, see :mod:`eqconv_cli.backends.feature_steered.torch_algorithms`; here they are plain
array code, useful where no framework is installed and as a second, independent opinion. The compiled kernels ("fused")
are there, too, with their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from eqconv_cli.backends.feature_steered import arguments, cost_model, fused
from eqconv_cli.backends.feature_steered.fused import pack as pack_for_kernels
from eqconv_cli.backends.feature_steered.numpy_algorithms import (
    ALGORITHMS,
    Array,
    Graph,
    Parameters,
    assignment,
    logit_halves,
    sparse_matrix,
)
from eqconv_cli.backends.feature_steered.options import Flag, Fused, fused_settings, resolve
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
from eqconv_cli.kernels.doors import settings_on

Features = Array | tuple[Array, Array]

#: The compiled kernels' names for the gradients, and those of the operator on flat arrays.
_NAMES = {
    "dx": "x",
    "dcentre": "centre",
    "dvalues": "values",
    "du": "var_u",
    "dv": "var_v",
    "dc": "var_c",
    "dw": "var_w",
    "db": "var_b",
}


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
    version: str | Fused = "auto",
    transform_data_first: bool | Literal["edges"] | None = None,
    memory_efficient: bool = True,
    segment_sum_impl: str = "sorted",
    softmax: str = "stable",
    activation: str | None = None,
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
        version: the algorithm: "v1", "v2", "v3", "gather_sum", "sparse_matmul", "pyg"; "fused" for the compiled kernels
            (``eqconv build-kernels``); "auto" takes those where they are built, else what the cost model says.
        transform_data_first: multiply by W before (True) or after (False) the sum over the neighbours; None takes the
            narrower side (for "fused" what its cost model says); "edges" is v1's published order, which multiplies at
            every edge.
        memory_efficient: v1, v3, sparse_matmul: add up over m one by one instead of keeping all M terms.
        segment_sum_impl: v1, pyg: "partition2d", "sorted" or "unsorted".
        softmax: "stable", "guarded" or "raw" (plain exponentials, which overflow for large logits; fused has none).
        activation: None, or "relu" to return max(y, 0); fused applies it as it writes y.
        validate: "none", "cheap" (shapes, dtypes, indices when a plan is built) or "full" (also finite values).

    Returns:
        [A1, ..., An, Vo, D].

    Raises:
        TypeError: a dtype is not allowed or differs from that of ``data``.
        ValueError: a shape or an option does not fit; an entry outside ``sizes``; dense ``neighbors``.
        IndexError: an edge names a vertex that is not there.
        Unavailable: version is "fused" and the kernels are not built.
    """
    arguments.check_choices(version, transform_data_first, segment_sum_impl, softmax, validate, activation)
    p = Parameters(var_u, var_v, var_c, var_w, var_b)
    x, centre, plan = _checked(data, neighbors, sizes, p, validate)
    pattern: Pattern = plan.pattern
    size = _sizes(pattern, p)
    settings = fused_settings(version, softmax, _missing(pattern))
    if settings is not None:
        flags = settings.flags(transform_data_first, activation, size)
        return _unflatten(fused.forward(x, centre, plan.values, p, pattern, settings, flags), pattern)
    version, options = resolve(
        str(version), transform_data_first, memory_efficient, segment_sum_impl, softmax, size, "numpy", training=False
    )
    y = ALGORITHMS[version](_graph(x, centre, plan), p, options)
    return _unflatten(y if activation is None else np.maximum(y, 0), pattern)


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
    version: str | Fused = "auto",
    activation: str | None = None,
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
        version: "closed_form" (array code), "fused" for the compiled kernels, or "auto" for those where they are built.
        activation: None or "relu", as there.
        validate: as there.

    Returns:
        Gradients named ``data``, ``data_out`` (when data is a pair), ``values`` (in the caller's edge order),
        ``var_u``, ``var_v``, ``var_c``, ``var_w``, ``var_b``, each in the shape of its argument.

    Raises:
        ValueError: the cotangent has another shape than the result; else as :func:`feature_steered_convolution`.
    """
    if not isinstance(version, Fused) and version not in ("auto", "closed_form", "fused"):
        raise ValueError(f"version={version!r} is unknown: allowed: auto, closed_form, fused")
    arguments.check_choices("auto", None, "sorted", "stable", validate, activation)
    p = Parameters(var_u, var_v, var_c, var_w, var_b)
    x, centre, plan = _checked(data, neighbors, sizes, p, validate)
    pattern: Pattern = plan.pattern
    expected = (*pattern.dense_shape[:-1], var_b.shape[0])
    if cotangent.shape != expected:
        raise ValueError(f"cotangent has shape {list(cotangent.shape)}: expected {list(expected)}")
    g = _flatten(cotangent, pattern)
    settings = fused_settings(version, "stable", _missing(pattern))
    if settings is None:
        flat = _closed_form(g, _graph(x, centre, plan), p, activation)
    else:
        flags = settings.flags(False, activation, _sizes(pattern, p))
        operands = (x, centre, plan.values, p, pattern, settings, flags)
        y = fused.forward(*operands) if flags & Flag.RELU else None
        flat = {_NAMES[name]: gradient for name, gradient in fused.backward(g, y, *operands).items()}
    parameters = {name: flat[name] for name in ("values", *Parameters._fields)}
    if isinstance(data, tuple):
        shapes = data[0].shape, data[1].shape
        return {"data": flat["x"].reshape(shapes[0]), "data_out": flat["centre"].reshape(shapes[1]), **parameters}
    full = np.zeros_like(data)
    full.reshape(-1, data.shape[-1])[_all_or(pattern.kept)] = flat["x"]
    if "centre" in flat:
        full[..., : pattern.dense_shape[-2], :] += _unflatten(flat["centre"], pattern)
    return {"data": full, **parameters}


def _closed_form(g: Array, graph: Graph, p: Parameters, activation: str | None) -> dict[str, Array]:
    """The gradients of flat features ``x`` and ``centre``, of ``values`` and of the parameters."""
    matrices = len(p.var_w)
    pattern = graph.pattern
    row, col = pattern.row, pattern.col
    q = assignment(*logit_halves(graph, p, "stable"), pattern, "stable")
    weighted = graph.w[:, None] * q
    spread = [sparse_matrix(weighted[:, m], pattern) for m in range(matrices)]
    z = np.stack([matrix @ graph.x for matrix in spread], axis=1)
    if activation == "relu":
        g = np.where(np.einsum("vmc,mcd->vd", z, p.var_w) + p.var_b > 0, g, np.zeros_like(g))
    dz = np.einsum("vd,mcd->vmc", g, p.var_w)
    dq = np.empty_like(q)
    dx = np.zeros_like(graph.x)
    for m, matrix in enumerate(spread):
        dq[:, m] = np.einsum("ec,ec->e", dz[row, m], graph.x[col])
        dx += matrix.T @ dz[:, m]
    by_weight = (q * dq).sum(1)
    dl = weighted * (dq - by_weight[:, None])
    da, ds = np.zeros((pattern.rows, matrices), dl.dtype), np.zeros((pattern.cols, matrices), dl.dtype)
    np.add.at(da, row, dl)
    np.add.at(ds, col, dl)
    values = np.zeros(pattern.given_edges, dl.dtype)
    values[_all_or(pattern.edge_of_slot)] = by_weight
    return {
        "x": dx + ds @ p.var_v.T,
        "centre": da @ p.var_u.T,
        "values": values,
        "var_u": graph.centre.T @ da,
        "var_v": graph.x.T @ ds,
        "var_c": da.sum(0),
        "var_w": np.einsum("vmc,vd->mcd", z, g),
        "var_b": g.sum(0),
    }


def _missing(pattern: Pattern) -> Callable[[Fused], list[str]]:
    return lambda settings: fused.missing(settings, pattern.rows, pattern.cols, pattern.edges)


def _sizes(pattern: Pattern, p: Parameters) -> cost_model.Sizes:
    matrices, channels, outputs = p.var_w.shape
    return cost_model.Sizes(pattern.cols, pattern.edges, channels, outputs, matrices)


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


def prepare(
    inputs: Arrays,
    dtype: str,
    device: str,
    gradients: bool = False,
    fused: Mapping[str, Any] | None = None,
    **options: Any,
) -> BoundRun:
    """The catalog's door: plan once, then call the operator (and, if asked for, its gradients).

    Args:
        inputs: of the problem.
        dtype: "float32" or "float64".
        device: "cpu", or "emulated" for the compiled kernels.
        gradients: whether there is a backward pass.
        fused: settings of the compiled kernels, see :class:`Fused`; None runs the version that the options name.
        **options: keyword options of :func:`feature_steered_convolution`.
    """
    by: str | Fused = "closed_form"
    if fused is not None:
        by = options["version"] = settings_on(Fused, device, fused)
    matrix = (inputs["indices"], inputs["values"], inputs["dense_shape"])
    plan = plan_neighborhood(matrix, inputs.get("sizes"))
    settings = fused_settings(options.get("version", "auto"), options.get("softmax", "stable"), _missing(plan.pattern))
    if settings is not None:
        pack_for_kernels(plan.pattern, settings)
    floats = {name: a for name, a in inputs.items() if np.issubdtype(a.dtype, np.floating)}

    def arguments_of(arrays: Arrays) -> tuple[Any, ...]:
        data = (arrays["data"], arrays["data_out"]) if "data_out" in arrays else arrays["data"]
        parameters = (arrays[name] for name in Parameters._fields)
        return data, plan.with_values(arrays["values"]), None, *parameters

    def forward(arrays: Arrays) -> Arrays:
        return {"output": feature_steered_convolution(*arguments_of(arrays), validate="none", **options)}

    def backward(arrays: Arrays, cotangents: Arrays) -> Arrays:
        operands = arguments_of(arrays)
        # The gradients do not need the outputs. They are computed, and kept until the end, as in the frameworks: the
        # two are timed and measured together.
        outputs = forward(arrays)
        gradients = feature_steered_convolution_gradients(cotangents["output"], *operands, version=by, validate="none")
        del outputs
        return gradients

    return BoundRun(forward, floats, backward if gradients else None)


# Conversion and checks.


def _integers(name: str, array: Any) -> IntArray:
    converted = np.asarray(array)
    if not np.issubdtype(converted.dtype, np.integer):
        raise TypeError(f"{name} has dtype {converted.dtype}: an integer dtype is needed")
    return converted


def _checked(
    data: Features, neighbors: Any, sizes: Any, p: Parameters, validate: str
) -> tuple[Array, Array, NeighborhoodPlan]:
    """Check the arguments as asked for; returns flat features of sources and centres, and the plan."""
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
    return flat, flat_centre, plan


def _graph(x: Array, centre: Array, plan: NeighborhoodPlan) -> Graph:
    return Graph(x, centre, plan.values[_all_or(plan.pattern.edge_of_slot)], plan.pattern)


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
