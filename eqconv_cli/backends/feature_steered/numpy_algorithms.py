"""The published algorithms on flat arrays: x [V, C] over all blocks, E edges sorted by row.

Letters as in :mod:`eqconv_cli.backends.feature_steered.torch_algorithms`: a = x·u + c and s = x·v [V, M] are the two
halves of the logits l_e = a[i] + s[j]; F is the width of the sparse part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse

from eqconv_cli.backends.feature_steered.guard import DENOMINATOR_FLOOR
from eqconv_cli.backends.feature_steered.options import Options
from eqconv_cli.backends.feature_steered.plan import Pattern

Array = npt.NDArray[np.floating[Any]]


class Parameters(NamedTuple):
    """u, v [C, M], c [M], W [M, C, D], b [D]."""

    var_u: Array
    var_v: Array
    var_c: Array
    var_w: Array
    var_b: Array


@dataclass(frozen=True)
class Graph:
    """Features of sources ``x`` [cols, C] and centres ``centre`` [rows, C], weights ``w`` [E] in row order."""

    x: Array
    centre: Array
    w: Array
    pattern: Pattern


def v1(graph: Graph, p: Parameters, options: Options) -> Array:
    """Edge features and one segment sum for each m (the released operator; pull request #101 v1)."""
    q = assignment(*logit_halves(graph, p, options.softmax), graph.pattern, options.softmax)
    col = graph.pattern.col
    at_vertices = options.first and not options.on_edges
    gathered = graph.x[:0] if at_vertices else graph.x[col]

    def term(m: int) -> Array:
        weight = p.var_w[m]
        if at_vertices:
            terms = (graph.x @ weight)[col]
        else:
            terms = gathered @ weight if options.on_edges else gathered
        summed = weighted_segment_sum(q[:, m], graph.w, terms, graph.pattern, options.segment_sum)
        return summed if options.first else summed @ weight

    return _sum_over_m(term, p, graph.pattern.rows, options.fold)


def v2(graph: Graph, p: Parameters, options: Options) -> Array:
    """Factored exponentials and one sparse-dense product of width M·F (pull request #101 v2)."""
    ea, es, a_values, hard = _factored(graph, p, options)
    matrices, channels, outputs = p.var_w.shape
    matrix = sparse_matrix(a_values, graph.pattern)
    if options.first:
        h = graph.x @ p.var_w.transpose(1, 0, 2).reshape(channels, matrices * outputs)
        s: Array = matrix @ (es[:, :, None] * h.reshape(-1, matrices, outputs)).reshape(len(h), -1)
        y: Array = np.einsum("vm,vmd->vd", ea, s.reshape(-1, matrices, outputs))
    else:
        wide = (es[:, :, None] * graph.x[:, None, :]).reshape(len(graph.x), -1)
        s = np.asarray(matrix @ wide).reshape(-1, matrices, channels)
        y = (ea[:, :, None] * s).reshape(len(s), -1) @ p.var_w.reshape(matrices * channels, outputs)
    return y + hard + p.var_b


def v3(graph: Graph, p: Parameters, options: Options) -> Array:
    """v2 one m at a time, so that operands have width F (pull request #101 v3)."""
    ea, es, a_values, hard = _factored(graph, p, options)
    matrix = sparse_matrix(a_values, graph.pattern)

    def term(m: int) -> Array:
        weight = p.var_w[m]
        dense = graph.x @ weight if options.first else graph.x
        summed: Array = ea[:, m, None] * (matrix @ (es[:, m, None] * dense))
        return summed if options.first else summed @ weight

    return _sum_over_m(term, p, graph.pattern.rows, options.fold) + hard


def sparse_matmul(graph: Graph, p: Parameters, options: Options) -> Array:
    """One sparse matrix with values w·q_m for each m (pull request #155)."""
    q = assignment(*logit_halves(graph, p, options.softmax), graph.pattern, options.softmax)

    def term(m: int) -> Array:
        weight, matrix = p.var_w[m], sparse_matrix(graph.w * q[:, m], graph.pattern)
        product: Array = matrix @ (graph.x @ weight) if options.first else (matrix @ graph.x) @ weight
        return product

    return _sum_over_m(term, p, graph.pattern.rows, options.fold)


def pyg(graph: Graph, p: Parameters, options: Options) -> Array:
    """PyTorch Geometric's order: logits from feature differences, all M products at every edge [E, M·D]."""
    row, col = graph.pattern.row, graph.pattern.col
    x_j = graph.x[col]
    logits = (graph.centre[row] - x_j) @ p.var_u + x_j @ (p.var_u + p.var_v) + p.var_c
    q = _softmax(logits, shifted=options.softmax != "raw")
    matrices, channels, outputs = p.var_w.shape
    h = (x_j @ p.var_w.transpose(1, 0, 2).reshape(channels, -1)).reshape(-1, matrices, outputs)
    message = np.einsum("em,emd->ed", q, h)
    return weighted_segment_sum(np.ones_like(graph.w), graph.w, message, graph.pattern, options.segment_sum) + p.var_b


ALGORITHMS = {"v1": v1, "v2": v2, "v3": v3, "sparse_matmul": sparse_matmul, "pyg": pyg}


def sparse_matrix(values: Array, pattern: Pattern) -> scipy.sparse.csr_array:
    """A [rows, cols] with ``values`` [E] on the edges."""
    return scipy.sparse.csr_array((values, pattern.col, pattern.rowptr), shape=(pattern.rows, pattern.cols))


def weighted_segment_sum(q: Array, w: Array, terms: Array, pattern: Pattern, impl: str) -> Array:
    """Σ_{e in row i} w_e q_e terms_e [rows, F]; ``impl`` as in :func:`feature_steered_convolution`."""
    if impl == "partition2d":
        count = pattern.edges
        each = np.arange(count, dtype=pattern.col.dtype)
        partition = scipy.sparse.csr_array((w, each, pattern.rowptr), shape=(pattern.rows, count))
        return np.asarray(partition @ (q[:, None] * terms))
    weighted = (q * w)[:, None] * terms
    out = np.zeros((pattern.rows, terms.shape[1]), terms.dtype)
    if impl == "unsorted":
        np.add.at(out, pattern.row, weighted)
        return out
    # reduceat sums from each start to the next, so rows without an edge are left out.
    filled = np.flatnonzero(np.diff(pattern.rowptr))
    if len(filled):
        out[filled] = np.add.reduceat(weighted, pattern.rowptr[filled], axis=0)
    return out


def _sum_over_m(term: Callable[[int], Array], p: Parameters, rows: int, fold: bool) -> Array:
    """b + Σ_m term(m) [rows, D]: a left fold, or all terms first and one sum."""
    matrices = p.var_w.shape[0]
    if not fold:
        total: Array = np.sum([term(m) for m in range(matrices)], axis=0) + p.var_b
        return total
    y = np.tile(p.var_b, (rows, 1))
    for m in range(matrices):
        y += term(m)
    return y


def logit_halves(graph: Graph, p: Parameters, softmax: str) -> tuple[Array, Array]:
    """a = x·u + c [rows, M] and s = x·v [cols, M]; unless "raw" x is centred block by block, which changes no logit."""
    if softmax == "raw":
        return graph.centre @ p.var_u + p.var_c, graph.x @ p.var_v
    mean = _block_mean(graph)
    centre_mean, x_mean = mean[graph.pattern.block_of_row], mean[graph.pattern.block_of_col]
    a = (graph.centre - centre_mean) @ p.var_u + centre_mean @ (p.var_u + p.var_v) + p.var_c
    return a, (graph.x - x_mean) @ p.var_v


def _block_mean(graph: Graph) -> Array:
    """Mean feature of each block [B, C]; 0 where it is not finite or there is no vertex."""
    total = np.zeros((graph.pattern.blocks, graph.x.shape[1]), graph.x.dtype)
    np.add.at(total, graph.pattern.block_of_col, graph.x)
    counts = np.bincount(graph.pattern.block_of_col, minlength=len(total)).astype(total.dtype)
    mean = total / np.maximum(counts, 1)[:, None]
    return np.where(np.isfinite(mean), mean, np.zeros_like(mean))


def assignment(a: Array, s: Array, pattern: Pattern, softmax: str) -> Array:
    """q [E, M], the softmax of a[i] + s[j] over the weight matrices."""
    row, col = pattern.row, pattern.col
    if softmax != "guarded":
        return _softmax(a[row] + s[col], shifted=softmax == "stable")
    ea, es = _exponentials(a), _exponentials(s)
    product = ea[row] * es[col]
    z = product.sum(1)
    easy = z >= DENOMINATOR_FLOOR[str(z.dtype)]
    q: Array = product / np.where(easy, z, np.ones_like(z))[:, None]
    hard = np.flatnonzero(~easy)
    q[hard] = _softmax(a[row[hard]] + s[col[hard]])
    return q


def _softmax(logits: Array, shifted: bool = True) -> Array:
    exponentials = np.exp(logits - logits.max(1, keepdims=True) if shifted else logits)
    q: Array = exponentials / exponentials.sum(1, keepdims=True)
    return q


def _exponentials(half: Array) -> Array:
    """exp(half - max_m half), 0 in rows that are not finite: their edges are computed from the logits."""
    shifted = half - half.max(1, keepdims=True)
    return np.where(np.isfinite(shifted), np.exp(shifted), np.zeros_like(shifted))


def _factored(graph: Graph, p: Parameters, options: Options) -> tuple[Array, Array, Array, Array]:
    """ea [rows, M], es [cols, M], the sparse values w/Z [E], and the part of y [rows, D] that edges with Z < τ add."""
    a, s = logit_halves(graph, p, options.softmax)
    row, col = graph.pattern.row, graph.pattern.col
    nothing = np.zeros((), a.dtype)
    if options.softmax == "raw":
        ea, es = np.exp(a - a.max(1, keepdims=True)), np.exp(s - s.max(1, keepdims=True))
        return ea, es, graph.w / (ea[row] * es[col]).sum(1), nothing
    ea, es = _exponentials(a), _exponentials(s)
    z = (ea[row] * es[col]).sum(1)
    easy = z >= DENOMINATOR_FLOOR[str(z.dtype)]
    a_values = np.where(easy, graph.w / np.where(easy, z, np.ones_like(z)), np.zeros_like(z))
    hard = np.flatnonzero(~easy)
    if len(hard) == 0:
        return ea, es, a_values, nothing
    q = _softmax(a[row[hard]] + s[col[hard]])
    y = np.zeros((graph.pattern.rows, p.var_w.shape[2]), a.dtype)
    np.add.at(y, row[hard], graph.w[hard, None] * np.einsum("em,ec,mcd->ed", q, graph.x[col[hard]], p.var_w))
    return ea, es, a_values, y
