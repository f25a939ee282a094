"""Sparse products and segment sums for PyTorch, on the edges of a plan, differentiable any number of times.

Three maps are closed under differentiation: the sparse-dense product A·B, its transpose Aᵀ·G, and the sampled dense
product ⟨G_i, B_j⟩ on the edges. PyTorch's own backward of a sparse product can form a dense [V, V] matrix; this one
never makes anything larger than a chunk of edges.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eqconv_cli.backends.feature_steered.plan import Pattern

# PyTorch announces once that CSR tensors are "in beta"; that is not for the users of this operator to read.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.empty(0, dtype=torch.int64), torch.empty(0), size=(1, 1))

#: Edges handled at once by the sampled product: the gathered factors of a chunk stay in the second-level cache.
_CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Edges:
    """The index arrays of a pattern as tensors on one device. E edges in row order, see :class:`Pattern`."""

    rows: int
    cols: int
    row: Tensor
    col: Tensor
    rowptr: Tensor
    transposed_ptr: Tensor
    transposed_row: Tensor
    transposed_slot: Tensor
    edge_of_slot: Tensor | None
    kept: Tensor | None
    blocks: int
    block_of_row: Tensor | None
    block_of_col: Tensor | None


def edges_of(pattern: Pattern, device: torch.device) -> Edges:
    """The pattern on a device; converted at the first call, then kept with the pattern."""
    key = ("torch", str(device))
    if key not in pattern.copies:
        pattern.copies[key] = _upload(pattern, device)
    edges: Edges = pattern.copies[key]
    return edges


def _upload(pattern: Pattern, device: torch.device) -> Edges:
    def tensor(array: Any) -> Tensor:
        return torch.from_numpy(array).to(device)

    pointer, row, slot = pattern.transposed
    several = pattern.blocks > 1
    return Edges(
        rows=pattern.rows,
        cols=pattern.cols,
        row=tensor(pattern.row),
        col=tensor(pattern.col),
        rowptr=tensor(pattern.rowptr),
        transposed_ptr=tensor(pointer),
        transposed_row=tensor(row),
        transposed_slot=tensor(slot),
        edge_of_slot=None if pattern.edge_of_slot is None else tensor(pattern.edge_of_slot),
        kept=None if pattern.kept is None else tensor(pattern.kept),
        blocks=pattern.blocks,
        block_of_row=tensor(pattern.block_of_row) if several else None,
        block_of_col=tensor(pattern.block_of_col) if several else None,
    )


def _csr_product(pointer: Tensor, index: Tensor, values: Tensor, cols: int, dense: Tensor) -> Tensor:
    if index.numel() == 0 or dense.shape[1] == 0:
        return dense.new_zeros(pointer.numel() - 1, dense.shape[1])
    matrix = torch.sparse_csr_tensor(pointer, index, values, size=(pointer.numel() - 1, cols), check_invariants=False)
    product: Tensor = matrix @ dense
    return product


class _Product(torch.autograd.Function):
    """A·B with A = (values on the edges), B [cols, F]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, dense: Tensor, edges: Edges) -> Tensor:
        ctx.save_for_backward(values, dense)
        ctx.edges = edges
        return _csr_product(edges.rowptr, edges.col, values, edges.cols, dense)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, dense = ctx.saved_tensors
        (g,) = cotangents
        by_values = _Sampled.apply(g, dense, ctx.edges) if ctx.needs_input_grad[0] else None
        by_dense = _TransposedProduct.apply(values, g, ctx.edges) if ctx.needs_input_grad[1] else None
        return by_values, by_dense, None


class _TransposedProduct(torch.autograd.Function):
    """Aᵀ·G with A = (values on the edges), G [rows, F]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, dense: Tensor, edges: Edges) -> Tensor:
        ctx.save_for_backward(values, dense)
        ctx.edges = edges
        by_column = values[edges.transposed_slot]
        return _csr_product(edges.transposed_ptr, edges.transposed_row, by_column, edges.rows, dense)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, dense = ctx.saved_tensors
        (h,) = cotangents
        by_values = _Sampled.apply(dense, h, ctx.edges) if ctx.needs_input_grad[0] else None
        by_dense = _Product.apply(values, h, ctx.edges) if ctx.needs_input_grad[1] else None
        return by_values, by_dense, None


class _Sampled(torch.autograd.Function):
    """⟨G[row], B[col]⟩ [E] on the edges, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, by_row: Tensor, by_col: Tensor, edges: Edges) -> Tensor:
        ctx.save_for_backward(by_row, by_col)
        ctx.edges = edges
        chunk = max(1, _CHUNK_ELEMENTS // max(1, by_row.shape[1]))
        out = by_row.new_empty(edges.row.numel())
        for start in range(0, edges.row.numel(), chunk):
            part = slice(start, start + chunk)
            out[part] = (by_row[edges.row[part]] * by_col[edges.col[part]]).sum(1)
        return out

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        by_row, by_col = ctx.saved_tensors
        (h,) = cotangents
        d_row = _Product.apply(h, by_col, ctx.edges) if ctx.needs_input_grad[0] else None
        d_col = _TransposedProduct.apply(h, by_row, ctx.edges) if ctx.needs_input_grad[1] else None
        return d_row, d_col, None


class _SortedSum(torch.autograd.Function):
    """Sums of consecutive runs of ``terms`` [E, F], one for each row."""

    @staticmethod
    def forward(ctx: Any, terms: Tensor, edges: Edges) -> Tensor:
        ctx.edges = edges
        if terms.numel() == 0:
            return terms.new_zeros(edges.rows, terms.shape[1])
        return torch.segment_reduce(terms, "sum", offsets=edges.rowptr.long(), initial=0)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        return cotangents[0][ctx.edges.row], None


def sparse_product(values: Tensor, dense: Tensor, edges: Edges) -> Tensor:
    """A·B [rows, F] for A with ``values`` [E] on the edges and B = ``dense`` [cols, F]."""
    product: Tensor = _Product.apply(values, dense, edges)
    return product


def weighted_segment_sum(q: Tensor, w: Tensor, terms: Tensor, edges: Edges, impl: str) -> Tensor:
    """Σ_{e in row i} w_e q_e terms_e [rows, F], by one of three reductions.

    Args:
        q, w: [E] assignment to one weight matrix, weight of the edge.
        terms: [E, F].
        impl: "partition2d": product with a sparse [rows, E] matrix that holds w; "sorted": sums of consecutive runs;
            "unsorted": scatter-add.
    """
    if impl == "partition2d":
        return sparse_product(w, q[:, None] * terms, _partition(edges))
    weighted = (q * w)[:, None] * terms
    if impl == "sorted":
        summed: Tensor = _SortedSum.apply(weighted, edges)
        return summed
    return weighted.new_zeros(edges.rows, terms.shape[1]).index_add(0, edges.row, weighted)


def _partition(edges: Edges) -> Edges:
    """The [rows, E] matrix whose row i has an entry for each of its edges."""
    count = edges.row.numel()
    each = torch.arange(count, dtype=edges.row.dtype, device=edges.row.device)
    pointer = torch.arange(count + 1, dtype=edges.rowptr.dtype, device=edges.row.device)
    return replace(
        edges,
        cols=count,
        col=each,
        transposed_ptr=pointer,
        transposed_row=edges.row,
        transposed_slot=each,
    )
