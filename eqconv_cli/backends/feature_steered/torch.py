"""Feature-steered convolution in PyTorch: every published algorithm as a composition of tensor operations.

Verma, Boyer, Verbeek, CVPR 2018 (the operator); tensorflow/graphics pull requests #101 (v1, v2, v3) and #155
(sparse_matmul, gather_sum); pyg-team/pytorch_geometric ``FeaStConv`` (pyg). All are differentiable by autograd, also
twice. Besides them there are the compiled kernels ("fused"), differentiable once. Inside, features are flat: x [V, C]
over all blocks, E edges in row order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from eqconv_cli.backends.feature_steered import arguments, cost_model, torch_fused
from eqconv_cli.backends.feature_steered.options import Fused, fused_settings, resolve
from eqconv_cli.backends.feature_steered.plan import (
    IntArray,
    NeighborhoodPlan,
    OutsideSizes,
    Pattern,
    build_pattern,
    coordinates,
    csr_rows,
)
from eqconv_cli.backends.feature_steered.torch_algorithms import ALGORITHMS, Graph, Parameters
from eqconv_cli.backends.feature_steered.torch_sparse import Edges, edges_of

#: PyTorch's own forms of a sparse matrix, for error texts.
_SPARSE = "a torch.sparse_coo or sparse_csr tensor (neighbors.to_sparse()), a SciPy sparse matrix"


def feature_steered_convolution(
    data: Tensor | tuple[Tensor, Tensor],
    neighbors: Any,
    sizes: Any,
    var_u: Tensor,
    var_v: Tensor,
    var_c: Tensor,
    var_w: Tensor,
    var_b: Tensor,
    *,
    version: str | Fused = "auto",
    transform_data_first: bool | Literal["edges"] | None = None,
    memory_efficient: bool = True,
    segment_sum_impl: str = "sorted",
    softmax: str = "stable",
    activation: str | None = None,
    validate: str = "cheap",
) -> Tensor:
    """Feature-steered graph convolution: y_i = b + Σ_m W_mᵀ Σ_{j∈N(i)} w_ij softmax_m(u_m·x_i + v_m·x_j + c_m) x_j.

    V vertices, C input channels, D output channels, M weight matrices, A1..An batch dimensions (n >= 0).

    Args:
        data: [A1, ..., An, V, C] float32 or float64. For centres with features of their own, a pair
            (data [.., Vi, C], centre data [.., Vo, C]).
        neighbors: the sparse matrix [A1, ..., An, Vo, Vi] of weights w: ``torch.sparse_coo`` or ``sparse_csr`` tensor,
            ``(indices [E, n+2], values [E], dense_shape)``, ``(indptr, indices, values)``, a SciPy sparse matrix, or a
            plan from :func:`plan_neighborhood` (converted already). Only stored entries count, stored zeros too.
        sizes: integer [A1, ..., An], vertices in each block, or None. Rows beyond are ignored and come out as 0.
        var_u, var_v: [C, M].
        var_c: [M].
        var_w: [M, C, D].
        var_b: [D].
        version: the algorithm: "v1", "v2", "v3", "gather_sum", "sparse_matmul", "pyg"; "fused" for the compiled kernels
            (``eqconv build-kernels``; first derivatives only; under autocast they compute in float32); "auto" takes
            those where they are built, else what the cost model says.
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
        Unavailable: version is "fused" and the kernels are not built for this device.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
        >>> thirds = torch.full((3, 3), 1 / 3, dtype=torch.float64).to_sparse()
        >>> one = lambda value, *shape: torch.full(shape, value, dtype=torch.float64)
        >>> feature_steered_convolution(
        ...     x, thirds, None, one(0.5, 1, 1), one(1.3, 1, 1), one(-0.7, 1), one(0.8, 1, 1, 1), one(3.0, 1)
        ... )[:, 0]
        tensor([4.6000, 4.6000, 4.6000], dtype=torch.float64)
    """
    arguments.check_choices(version, transform_data_first, segment_sum_impl, softmax, validate, activation)
    x, centre = data if isinstance(data, tuple) else (data, None)
    parameters = Parameters(var_u, var_v, var_c, var_w, var_b)
    _check_places(x, centre, parameters)
    plan = plan_neighborhood(neighbors, sizes)
    pattern: Pattern = plan.pattern
    extents = (pattern.rows, pattern.cols, pattern.edges)
    fused = fused_settings(version, softmax, lambda settings: torch_fused.missing(settings, x.device.type, *extents))
    if fused is not None and torch.is_autocast_enabled(x.device.type):
        x, centre = _widened(x), None if centre is None else _widened(centre)
        parameters = Parameters(*(_widened(p) for p in parameters))
        plan = plan.with_values(_widened(plan.values))
    if validate != "none":
        arguments.check_data("data", _operand(x))
        arguments.check_parameters(_operand(x), *(_operand(p) for p in parameters))
        _check_neighbors(plan, x, centre)
        if validate == "full":
            _check_finite(x, centre, plan.values, parameters)
    edges = edges_of(pattern, x.device)
    flat = _flatten(x, edges)
    centres = _flat_centres(x, centre, flat, pattern)
    size = _sizes(edges, parameters)
    if fused is not None:
        own = None if centres is flat else centres
        flags = fused.flags(transform_data_first, activation, size)
        y = torch_fused.convolve(flat, own, plan.values, parameters, pattern, fused, flags)
        return _unflatten(y, pattern, edges)
    version, options = resolve(
        str(version),
        transform_data_first,
        memory_efficient,
        segment_sum_impl,
        softmax,
        size,
        "torch",
        training=torch.is_grad_enabled() and any(t.requires_grad for t in (x, plan.values, *parameters)),
        compiled=torch.compiler.is_compiling(),
    )
    w = plan.values if edges.edge_of_slot is None else plan.values[edges.edge_of_slot]
    y = ALGORITHMS[version](Graph(flat, centres, w, edges), parameters, options)
    return _unflatten(y if activation is None else torch.relu(y), pattern, edges)


def plan_neighborhood(neighbors: Any, sizes: Any = None, *, outside_sizes: OutsideSizes = "error") -> NeighborhoodPlan:
    """Bring a neighbourhood matrix into row order once, for any number of calls.

    Args:
        neighbors: as for :func:`feature_steered_convolution`; a plan is returned as it is.
        sizes: integer [A1, ..., An] or None.
        outside_sizes: "error", or "drop" to leave out entries beyond ``sizes``.

    Returns:
        A plan that keeps ``values`` as they are, so gradients reach them.

    Raises:
        TypeError, ValueError, IndexError: see :func:`feature_steered_convolution`.
    """
    size_array = None if sizes is None else _integers("sizes", sizes)
    if isinstance(neighbors, NeighborhoodPlan):
        neighbors.pattern.check_same_sizes(size_array)
        return neighbors
    if isinstance(neighbors, Tensor) and neighbors.layout in (torch.sparse_coo, torch.sparse_csr):
        indices, values, dense_shape = _tensor_coordinates(neighbors)
    else:
        indices, values, dense_shape = coordinates(neighbors, _integers, torch.as_tensor, _SPARSE)
    if indices.shape[0] != values.shape[0]:
        raise ValueError(f"neighbors has {indices.shape[0]} indices but {values.shape[0]} values")
    plan = NeighborhoodPlan(build_pattern(indices, dense_shape, size_array, outside_sizes), values)
    # Uploaded here and not at the first call, which a compiler may be tracing.
    edges_of(plan.pattern, values.device)
    return plan


def _sizes(edges: Edges, parameters: Parameters) -> cost_model.Sizes:
    matrices, channels, outputs = parameters.var_w.shape
    return cost_model.Sizes(edges.cols, edges.row.numel(), channels, outputs, matrices)


def _flatten(x: Tensor, edges: Edges) -> Tensor:
    """The kept vertices of all blocks [cols, C]."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if edges.kept is None else flat[edges.kept]


def _flat_centres(x: Tensor, centre: Tensor | None, flat: Tensor, pattern: Pattern) -> Tensor:
    """The centres' features [rows, C]: their own, or the first Vo rows of each block."""
    if centre is not None:
        return centre.reshape(-1, centre.shape[-1])
    rows, cols = pattern.dense_shape[-2:]
    return flat if rows == cols else x[..., :rows, :].reshape(-1, x.shape[-1])


def _unflatten(y: Tensor, pattern: Pattern, edges: Edges) -> Tensor:
    """[rows, D] to [A1, ..., An, Vo, D], rows beyond ``sizes`` 0."""
    if edges.kept is not None:
        padded = y.new_zeros(edges.blocks * pattern.dense_shape[-2], y.shape[1])
        y = padded.index_copy(0, edges.kept, y)
    return y.reshape(*pattern.dense_shape[:-1], y.shape[1])


# Conversion and checks.


def _integers(name: str, array: Any) -> IntArray:
    converted = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    if not np.issubdtype(converted.dtype, np.integer):
        raise TypeError(f"{name} has dtype {converted.dtype}: an integer dtype is needed")
    return converted


def _tensor_coordinates(neighbors: Tensor) -> tuple[IntArray, Tensor, Sequence[int]]:
    """Indices [E, n+2], values [E] and dense shape of a sparse tensor."""
    if neighbors.layout == torch.sparse_coo:
        # An uncoalesced tensor gives no differentiable values. Duplicates of one entry have the same softmax, so adding
        # up their weights first changes neither the result nor any gradient.
        if not neighbors.is_coalesced() and neighbors.requires_grad:
            neighbors = neighbors.coalesce()
        differentiable = neighbors.is_coalesced()
        indices = neighbors.indices() if differentiable else neighbors._indices()
        values = neighbors.values() if differentiable else neighbors._values()
        return indices.detach().cpu().numpy().T, values, tuple(neighbors.shape)
    return _csr_coordinates(neighbors)


def _csr_coordinates(neighbors: Tensor) -> tuple[IntArray, Tensor, Sequence[int]]:
    """Batched CSR tensors hold equally many entries in each block."""
    shape = tuple(neighbors.shape)
    pointers = neighbors.crow_indices().detach().cpu().numpy().reshape(-1, shape[-2] + 1)
    columns = neighbors.col_indices().detach().cpu().numpy().reshape(len(pointers), -1)
    rows = np.stack([csr_rows(pointer, columns.shape[1]) for pointer in pointers])
    block = np.repeat(np.arange(len(pointers)), columns.shape[1])
    batch = np.stack(np.unravel_index(block, shape[:-2]), axis=1) if shape[:-2] else np.empty((len(block), 0), int)
    indices = np.concatenate([batch, rows.reshape(-1, 1), columns.reshape(-1, 1)], axis=1).astype(np.int64)
    return indices, neighbors.values().reshape(-1), shape


def _operand(tensor: Tensor) -> arguments.Operand:
    return arguments.Operand(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _check_places(x: Tensor, centre: Tensor | None, parameters: Parameters) -> None:
    named = {"data": x, **parameters._asdict()}
    if centre is not None:
        named["data's centre part"] = centre
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}: expected a torch.Tensor")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} but data is on {x.device}: they must be equal")


def _widened(tensor: Tensor) -> Tensor:
    """As autocast gives it to an operator that computes in float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _check_neighbors(plan: NeighborhoodPlan, x: Tensor, centre: Tensor | None) -> None:
    dtype = str(plan.values.dtype).removeprefix("torch.")
    arguments.check_neighbors(
        arguments.Operand(plan.pattern.dense_shape, dtype),
        _operand(x),
        None if centre is None else _operand(centre),
    )
    if plan.values.device != x.device:
        raise ValueError(f"neighbors has values on {plan.values.device} but data is on {x.device}")


def _check_finite(x: Tensor, centre: Tensor | None, values: Tensor, parameters: Parameters) -> None:
    named = {"data": x, "neighbors.values": values, **parameters._asdict()}
    if centre is not None:
        named["data's centre part"] = centre
    for name, tensor in named.items():
        bad = ~torch.isfinite(tensor)
        if bool(bad.any()):
            where = torch.nonzero(bad)[0].tolist()
            raise ValueError(f"{name} is {tensor[tuple(where)].item()} at {where}: validate='full' wants finite values")
