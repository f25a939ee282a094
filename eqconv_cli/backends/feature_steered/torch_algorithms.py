"""The published algorithms on flat tensors: x [V, C] over all blocks, E edges sorted by row.

Letters: V vertices, C channels, D outputs, M weight matrices, F the width of the sparse part (D in the order "first", C
in the order "last"); a = x·u + c and s = x·v [V, M] are the two halves of the logits l_e = a[i] + s[j].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eqconv_cli.backends.feature_steered.guard import DENOMINATOR_FLOOR
from eqconv_cli.backends.feature_steered.options import Options
from eqconv_cli.backends.feature_steered.torch_sparse import Edges, sparse_product, weighted_segment_sum


class Parameters(NamedTuple):
    """u, v [C, M], c [M], W [M, C, D], b [D]."""

    var_u: Tensor
    var_v: Tensor
    var_c: Tensor
    var_w: Tensor
    var_b: Tensor


@dataclass(frozen=True)
class Graph:
    """Features of the sources ``x`` [cols, C] and centres ``centre`` [rows, C], weights ``w`` [E] in row order."""

    x: Tensor
    centre: Tensor
    w: Tensor
    edges: Edges


def v1(graph: Graph, p: Parameters, options: Options) -> Tensor:
    """Edge features and one segment sum for each m (the released operator; pull request #101 v1)."""
    q = _assignment(*_logit_halves(graph, p, options), graph.edges, options.softmax)
    at_vertices = options.first and not options.on_edges
    gathered = graph.x.new_empty(0) if at_vertices else graph.x[graph.edges.col]

    def term(m: int) -> Tensor:
        weight, q_m = p.var_w[m], q[:, m]
        if at_vertices:
            terms = (graph.x @ weight)[graph.edges.col]
        else:
            terms = gathered @ weight if options.on_edges else gathered
        summed = weighted_segment_sum(q_m, graph.w, terms, graph.edges, options.segment_sum)
        return summed if options.first or options.on_edges else summed @ weight

    return _sum_over_m(term, p, graph.edges.rows, options.fold)


def v2(graph: Graph, p: Parameters, options: Options) -> Tensor:
    """Factored exponentials and one sparse-dense product of width M·F (pull request #101 v2)."""
    ea, es, a_values, hard = _factored(graph, p, options)
    channels, outputs = p.var_w.shape[1:]
    matrices = p.var_w.shape[0]
    if options.first:
        h = torch.einsum("vc,mcd->vmd", graph.x, p.var_w)
        s = sparse_product(a_values, (es[:, :, None] * h).flatten(1), graph.edges)
        y = torch.einsum("vm,vmd->vd", ea, s.unflatten(1, (matrices, outputs)))
    else:
        wide = (es[:, :, None] * graph.x[:, None, :]).flatten(1)
        s = sparse_product(a_values, wide, graph.edges).unflatten(1, (matrices, channels))
        y = (ea[:, :, None] * s).flatten(1) @ p.var_w.flatten(0, 1)
    return y + hard + p.var_b


def v3(graph: Graph, p: Parameters, options: Options) -> Tensor:
    """v2 one m at a time, so that operands have width F (pull request #101 v3)."""
    ea, es, a_values, hard = _factored(graph, p, options)

    def term(m: int) -> Tensor:
        weight = p.var_w[m]
        dense = graph.x @ weight if options.first else graph.x
        summed = ea[:, m, None] * sparse_product(a_values, es[:, m, None] * dense, graph.edges)
        return summed if options.first else summed @ weight

    return _sum_over_m(term, p, graph.edges.rows, options.fold) + hard


def sparse_matmul(graph: Graph, p: Parameters, options: Options) -> Tensor:
    """One sparse matrix with values w·q_m for each m (pull request #155)."""
    q = _assignment(*_logit_halves(graph, p, options), graph.edges, options.softmax)

    def term(m: int) -> Tensor:
        weight, values = p.var_w[m], graph.w * q[:, m]
        if options.first:
            return sparse_product(values, graph.x @ weight, graph.edges)
        return sparse_product(values, graph.x, graph.edges) @ weight

    return _sum_over_m(term, p, graph.edges.rows, options.fold)


def pyg(graph: Graph, p: Parameters, options: Options) -> Tensor:
    """PyTorch Geometric's order: logits from feature differences, all M products at every edge [E, M·D].

    (x_i - x_j)·u + x_j·(u + v) + c is the same logit; with v = -u the second term is exactly 0.
    """
    edges = graph.edges
    x_j = graph.x[edges.col]
    logits = (graph.centre[edges.row] - x_j) @ p.var_u + x_j @ (p.var_u + p.var_v) + p.var_c
    if options.softmax == "raw":
        exponentials = logits.exp()
        q = exponentials / exponentials.sum(1, keepdim=True)
    else:
        q = logits.softmax(1)
    h = (x_j @ p.var_w.permute(1, 0, 2).flatten(1)).unflatten(1, (p.var_w.shape[0], p.var_w.shape[2]))
    message = torch.einsum("em,emd->ed", q, h)
    ones = torch.ones_like(graph.w)
    return weighted_segment_sum(ones, graph.w, message, edges, options.segment_sum) + p.var_b


ALGORITHMS = {"v1": v1, "v2": v2, "v3": v3, "sparse_matmul": sparse_matmul, "pyg": pyg}


def _sum_over_m(term: Callable[[int], Tensor], p: Parameters, rows: int, fold: bool) -> Tensor:
    """b + Σ_m term(m) [rows, D]: a left fold, or all terms first and one sum."""
    matrices = p.var_w.shape[0]
    if fold:
        y = p.var_b.expand(rows, -1)
        for m in range(matrices):
            y = y + term(m)
        return y
    return torch.stack([term(m) for m in range(matrices)]).sum(0) + p.var_b


def _logit_halves(graph: Graph, p: Parameters, options: Options) -> tuple[Tensor, Tensor]:
    """a = x·u + c [rows, M] and s = x·v [cols, M].

    Unless the softmax is "raw", x is centred block by block and (u + v)·x̄ is added to c: the same logits, with rounding
    errors that no longer grow with the offset of the features. x̄ is a constant: any value gives the same result.
    """
    if options.softmax == "raw":
        return graph.centre @ p.var_u + p.var_c, graph.x @ p.var_v
    mean = _block_mean(graph)
    of_row, of_col = graph.edges.block_of_row, graph.edges.block_of_col
    centre_mean = mean if of_row is None else mean[of_row]
    x_mean = mean if of_col is None else mean[of_col]
    a = (graph.centre - centre_mean) @ p.var_u + centre_mean @ (p.var_u + p.var_v) + p.var_c
    return a, (graph.x - x_mean) @ p.var_v


def _block_mean(graph: Graph) -> Tensor:
    """Mean feature of each block [B or 1, C], not differentiated; 0 where it is not finite (or there is no vertex)."""
    x, of_col = graph.x.detach(), graph.edges.block_of_col
    if of_col is None:
        mean = x.mean(0, keepdim=True)
    else:
        blocks = graph.edges.blocks
        counts = torch.bincount(of_col, minlength=blocks).to(x.dtype)
        mean = x.new_zeros(blocks, x.shape[1]).index_add(0, of_col, x) / counts[:, None]
    return torch.where(mean.isfinite(), mean, 0.0)


def _assignment(a: Tensor, s: Tensor, edges: Edges, softmax: str) -> Tensor:
    """q [E, M], the softmax of a[i] + s[j] over the weight matrices."""
    if softmax == "raw":
        exponentials = (a[edges.row] + s[edges.col]).exp()
        return exponentials / exponentials.sum(1, keepdim=True)
    if softmax == "stable":
        return (a[edges.row] + s[edges.col]).softmax(1)
    ea, es = _exponentials(a), _exponentials(s)
    product = ea[edges.row] * es[edges.col]
    z = product.sum(1)
    easy = z >= DENOMINATOR_FLOOR[str(z.dtype).removeprefix("torch.")]
    q = torch.where(easy, 1.0 / torch.where(easy, z, 1.0), 0.0)[:, None] * product
    hard = torch.nonzero(~easy)[:, 0]
    if hard.numel() == 0:
        return q
    exact = (a[edges.row[hard]] + s[edges.col[hard]]).softmax(1)
    return q.index_copy(0, hard, exact)


def _exponentials(half: Tensor) -> Tensor:
    """exp(half - max_m half), 0 in rows that are not finite: their edges are computed from the logits."""
    largest = half.amax(1, keepdim=True)
    # The maximum cancels in the softmax and is a constant; with a single matrix it makes the gradient exactly 0.
    shifted = half - (largest.detach() if half.shape[1] > 1 else largest)
    finite = shifted.isfinite()
    return torch.where(finite, torch.where(finite, shifted, 0.0).exp(), 0.0)


def _factored(graph: Graph, p: Parameters, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ea [rows, M], es [cols, M], the sparse values w/Z [E], and the part of y [rows, D] that edges with Z < τ add.

    With "raw" the form is the published one: w/Z for every edge, infinite where Z underflows.
    """
    a, s = _logit_halves(graph, p, options)
    edges = graph.edges
    if options.softmax == "raw":
        ea, es = (a - a.amax(1, keepdim=True)).exp(), (s - s.amax(1, keepdim=True)).exp()
        return ea, es, graph.w / _denominators(ea, es, edges), p.var_b.new_zeros(())
    ea, es = _exponentials(a), _exponentials(s)
    z = _denominators(ea, es, edges)
    easy = z >= DENOMINATOR_FLOOR[str(z.dtype).removeprefix("torch.")]
    a_values = torch.where(easy, graph.w / torch.where(easy, z, 1.0), 0.0)
    hard = torch.nonzero(~easy)[:, 0]
    if hard.numel() == 0:
        return ea, es, a_values, p.var_b.new_zeros(())
    return ea, es, a_values, _edges_by_logits(graph, p, a, s, hard)


def _denominators(ea: Tensor, es: Tensor, edges: Edges) -> Tensor:
    """Z_e = Σ_m ea[i_e, m]·es[j_e, m] [E], without a table of size [E, M] alive for longer than the sum."""
    return (ea[edges.row] * es[edges.col]).sum(1)


def _edges_by_logits(graph: Graph, p: Parameters, a: Tensor, s: Tensor, subset: Tensor) -> Tensor:
    """Σ over a subset of the edges of w Σ_m q_m W_mᵀ x_j, each with its own maximum [rows, D]."""
    row, col = graph.edges.row[subset], graph.edges.col[subset]
    q = (a[row] + s[col]).softmax(1)
    weighted, x_j = graph.w[subset, None] * q, graph.x[col]
    y = graph.x.new_zeros(graph.edges.rows, p.var_w.shape[2])
    for m in range(p.var_w.shape[0]):
        y = y.index_add(0, row, (weighted[:, m, None] * x_j) @ p.var_w[m])
    return y


def guarded_edges(graph: Graph, p: Parameters) -> int:
    """How many edges the guarded softmax computes from their logits because the factored denominator underflows."""
    a, s = _logit_halves(graph, p, Options(False, False, True, "sorted", "guarded"))
    z = _denominators(_exponentials(a), _exponentials(s), graph.edges)
    return int((~(z >= DENOMINATOR_FLOOR[str(z.dtype).removeprefix("torch.")])).sum())
