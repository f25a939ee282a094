"""The published algorithms on flat tensors: x [V, C] over all blocks, E edges sorted by row.

Letters: V vertices, C channels, D outputs, M weight matrices, F the width of the sparse part (D in the order "first", C
in the order "last"); a = x·u + c and s = x·v [V, M] are the two halves of the logits l_e = a[i] + s[j]. Every extent
may be unknown while a function is traced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from eqconv_cli.backends.feature_steered.guard import DENOMINATOR_FLOOR
from eqconv_cli.backends.feature_steered.options import Options
from eqconv_cli.backends.feature_steered.tensorflow_sparse import (
    Edges,
    segment_reduction,
    sparse_product,
    take,
)
from eqconv_cli.frameworks.tensorflow_tensors import Extent, extent

#: One summand of Σ_m [rows, D], for m an integer or a scalar tensor.
Term = Callable[[Extent], tf.Tensor]


class Parameters(NamedTuple):
    """u, v [C, M], c [M], W [M, C, D], b [D]."""

    var_u: tf.Tensor
    var_v: tf.Tensor
    var_c: tf.Tensor
    var_w: tf.Tensor
    var_b: tf.Tensor

    @property
    def matrices(self) -> Extent:
        """M, from whichever parameter knows it."""
        known = (self.var_w.shape[0], self.var_c.shape[0], self.var_u.shape[1], self.var_v.shape[1])
        return next((m for m in known if m is not None), extent(self.var_w, 0))


@dataclass(frozen=True)
class Graph:
    """Features of the sources ``x`` [cols, C] and centres ``centre`` [rows, C], weights ``w`` [E] in row order."""

    x: tf.Tensor
    centre: tf.Tensor
    w: tf.Tensor
    edges: Edges


def v1(graph: Graph, p: Parameters, options: Options) -> tf.Tensor:
    """Edge features and one segment sum for each m (the released operator; pull request #101 v1)."""
    q = _assignment(*_logit_halves(graph, p, options), graph.edges, options.softmax)
    reduce = segment_reduction(graph.w, graph.edges, options.segment_sum)
    gathered = None if options.first and not options.on_edges else take(graph.x, graph.edges.col)

    def term(m: Extent) -> tf.Tensor:
        weight = p.var_w[m]
        if options.on_edges:
            return reduce(q[:, m], gathered @ weight)
        if options.first:
            return reduce(q[:, m], take(graph.x @ weight, graph.edges.col))
        return reduce(q[:, m], gathered) @ weight

    return _sum_over_m(term, _bias(p, graph.edges.rows), p.matrices, options.fold)


def v2(graph: Graph, p: Parameters, options: Options) -> tf.Tensor:
    """Factored exponentials and one sparse-dense product of width M·F (pull request #101 v2)."""
    ea, es, a_values, hard = _factored(graph, p, options)
    narrow = tf.einsum("vc,mcd->vmd", graph.x, p.var_w) if options.first else graph.x[:, None, :]
    wide = es[:, :, None] * narrow
    matrices, width = extent(wide, 1), extent(wide, 2)
    flat = tf.reshape(wide, [extent(wide, 0), matrices * width])
    summed = tf.reshape(sparse_product(graph.edges)(a_values, flat), [graph.edges.rows, matrices, width])
    if options.first:
        y = tf.einsum("vm,vmd->vd", ea, summed)
    else:
        y = tf.einsum("vmc,mcd->vd", ea[:, :, None] * summed, p.var_w)
    return y + hard + p.var_b


def v3(graph: Graph, p: Parameters, options: Options) -> tf.Tensor:
    """v2 one m at a time, so that operands have width F (pull request #101 v3)."""
    ea, es, a_values, hard = _factored(graph, p, options)
    product = sparse_product(graph.edges)

    def term(m: Extent) -> tf.Tensor:
        weight = p.var_w[m]
        dense = graph.x @ weight if options.first else graph.x
        summed = ea[:, m, None] * product(a_values, es[:, m, None] * dense)
        return summed if options.first else summed @ weight

    return _sum_over_m(term, _bias(p, graph.edges.rows), p.matrices, options.fold) + hard


def sparse_matmul(graph: Graph, p: Parameters, options: Options) -> tf.Tensor:
    """One sparse matrix with values w·q_m for each m (pull request #155)."""
    q = _assignment(*_logit_halves(graph, p, options), graph.edges, options.softmax)
    product = sparse_product(graph.edges)

    def term(m: Extent) -> tf.Tensor:
        weight, values = p.var_w[m], graph.w * q[:, m]
        if options.first:
            return product(values, graph.x @ weight)
        return product(values, graph.x) @ weight

    return _sum_over_m(term, _bias(p, graph.edges.rows), p.matrices, options.fold)


def pyg(graph: Graph, p: Parameters, options: Options) -> tf.Tensor:
    """PyTorch Geometric's order: logits from feature differences, all M products at every edge [E, M·D].

    (x_i - x_j)·u + x_j·(u + v) + c is the same logit; with v = -u the second term is exactly 0.
    """
    edges = graph.edges
    x_j = take(graph.x, edges.col)
    logits = (take(graph.centre, edges.row) - x_j) @ p.var_u + x_j @ (p.var_u + p.var_v) + p.var_c
    q = _raw_softmax(logits) if options.softmax == "raw" else tf.nn.softmax(logits)
    h = tf.einsum("ec,mcd->emd", x_j, p.var_w)
    message = tf.einsum("em,emd->ed", q, h)
    return segment_reduction(graph.w, edges, options.segment_sum)(tf.ones_like(graph.w), message) + p.var_b


ALGORITHMS = {"v1": v1, "v2": v2, "v3": v3, "sparse_matmul": sparse_matmul, "pyg": pyg}


def _bias(p: Parameters, rows: Extent) -> tf.Tensor:
    """b in every row [rows, D]."""
    return tf.broadcast_to(p.var_b, [rows, extent(p.var_b, 0)])


def _sum_over_m(term: Term, start: tf.Tensor, matrices: Extent, fold: bool) -> tf.Tensor:
    """start + Σ_m term(m): a left fold, or all terms first and one sum."""
    if not isinstance(matrices, int):
        return _traced_sum(term, start, matrices, fold)
    if not fold:
        return tf.add_n([start, *(term(m) for m in range(matrices))])
    y = start
    for m in range(matrices):
        y = y + term(m)
    return y


def _traced_sum(term: Term, start: tf.Tensor, matrices: tf.Tensor, fold: bool) -> tf.Tensor:
    """The same sum when M is known only as the traced function runs."""
    every = tf.range(matrices)
    if not fold:
        return start + tf.reduce_sum(tf.map_fn(term, every, fn_output_signature=start.dtype), axis=0)
    _, y = tf.while_loop(
        lambda m, _: m < matrices,
        lambda m, y: (m + 1, y + term(m)),
        (tf.zeros_like(matrices), start),
        shape_invariants=(matrices.shape, tf.TensorShape([None, start.shape[1]])),
    )
    return y


def _logit_halves(graph: Graph, p: Parameters, options: Options) -> tuple[tf.Tensor, tf.Tensor]:
    """a = x·u + c [rows, M] and s = x·v [cols, M].

    Unless the softmax is "raw", x is centred block by block and (u + v)·x̄ is added to c: the same logits, with rounding
    errors that no longer grow with the offset of the features. x̄ is a constant: any value gives the same result.
    """
    if options.softmax == "raw":
        return graph.centre @ p.var_u + p.var_c, graph.x @ p.var_v
    mean = _block_mean(graph)
    of_row, of_col = graph.edges.block_of_row, graph.edges.block_of_col
    centre_mean = mean if of_row is None else tf.gather(mean, of_row)
    x_mean = mean if of_col is None else tf.gather(mean, of_col)
    a = (graph.centre - centre_mean) @ p.var_u + centre_mean @ (p.var_u + p.var_v) + p.var_c
    return a, (graph.x - x_mean) @ p.var_v


def _block_mean(graph: Graph) -> tf.Tensor:
    """Mean feature of each block [B or 1, C], not differentiated; 0 where it is not finite (or there is no vertex)."""
    x, of_col = tf.stop_gradient(graph.x), graph.edges.block_of_col
    if of_col is None:
        mean = tf.reduce_mean(x, axis=0, keepdims=True)
    else:
        mean = tf.math.unsorted_segment_mean(x, of_col, graph.edges.blocks)
    return tf.where(tf.math.is_finite(mean), mean, tf.zeros_like(mean))


def _raw_softmax(logits: tf.Tensor) -> tf.Tensor:
    """The released operator's: no maximum is subtracted."""
    exponentials = tf.exp(logits)
    return exponentials / tf.reduce_sum(exponentials, axis=1, keepdims=True)


def _assignment(a: tf.Tensor, s: tf.Tensor, edges: Edges, softmax: str) -> tf.Tensor:
    """q [E, M], the softmax of a[i] + s[j] over the weight matrices."""
    if softmax == "raw":
        return _raw_softmax(take(a, edges.row) + take(s, edges.col))
    if softmax == "stable":
        return tf.nn.softmax(take(a, edges.row) + take(s, edges.col))
    product = take(_exponentials(a), edges.row) * take(_exponentials(s), edges.col)
    inverse, hard = _inverse_denominators(tf.reduce_sum(product, axis=1))
    q = inverse[:, None] * product
    exact = tf.nn.softmax(take(a, tf.gather(edges.row, hard)) + take(s, tf.gather(edges.col, hard)))
    return tf.tensor_scatter_nd_update(q, hard[:, None], exact)


def _exponentials(half: tf.Tensor) -> tf.Tensor:
    """exp(half - max_m half), 0 in rows that are not finite: their edges are computed from the logits."""
    largest = tf.reduce_max(half, axis=1, keepdims=True)
    # The maximum cancels in the softmax and is a constant; with a single matrix it makes the gradient exactly 0.
    shifted = half - (largest if half.shape[1] == 1 else tf.stop_gradient(largest))
    finite, zero = tf.math.is_finite(shifted), tf.zeros_like(shifted)
    return tf.where(finite, tf.exp(tf.where(finite, shifted, zero)), zero)


def _inverse_denominators(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """1/Z [E], 0 where Z < τ, and the numbers of the edges where that is so."""
    easy = z >= DENOMINATOR_FLOOR[z.dtype.name]
    inverse = tf.where(easy, 1.0 / tf.where(easy, z, tf.ones_like(z)), tf.zeros_like(z))
    return inverse, tf.where(~easy)[:, 0]


def _factored(graph: Graph, p: Parameters, options: Options) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """ea [rows, M], es [cols, M], the sparse values w/Z [E], and the part of y [rows, D] that edges with Z < τ add.

    With "raw" the form is the published one: w/Z for every edge, infinite where Z underflows.
    """
    a, s = _logit_halves(graph, p, options)
    edges = graph.edges
    if options.softmax == "raw":
        ea, es = (tf.exp(half - tf.stop_gradient(tf.reduce_max(half, axis=1, keepdims=True))) for half in (a, s))
        return ea, es, graph.w / _denominators(ea, es, edges), tf.zeros_like(p.var_b)
    ea, es = _exponentials(a), _exponentials(s)
    inverse, hard = _inverse_denominators(_denominators(ea, es, edges))
    return ea, es, graph.w * inverse, _edges_by_logits(graph, p, a, s, hard)


def _denominators(ea: tf.Tensor, es: tf.Tensor, edges: Edges) -> tf.Tensor:
    """Z_e = Σ_m ea[i_e, m]·es[j_e, m] [E]."""
    return tf.reduce_sum(take(ea, edges.row) * take(es, edges.col), axis=1)


def _edges_by_logits(graph: Graph, p: Parameters, a: tf.Tensor, s: tf.Tensor, subset: tf.Tensor) -> tf.Tensor:
    """Σ over a subset of the edges of w Σ_m q_m W_mᵀ x_j, each with its own maximum [rows, D]."""
    if subset.shape[0] == 0:
        return tf.zeros_like(p.var_b)
    row, col = tf.gather(graph.edges.row, subset), tf.gather(graph.edges.col, subset)
    q = tf.nn.softmax(take(a, row) + take(s, col))
    weighted, x_j = take(graph.w, subset)[:, None] * q, take(graph.x, col)
    start = tf.zeros([extent(x_j, 0), extent(p.var_b, 0)], x_j.dtype)
    terms = _sum_over_m(lambda m: (weighted[:, m, None] * x_j) @ p.var_w[m], start, p.matrices, fold=True)
    return tf.math.unsorted_segment_sum(terms, row, graph.edges.rows)


def guarded_edges(graph: Graph, p: Parameters) -> tf.Tensor:
    """How many edges the guarded softmax computes from their logits because the factored denominator underflows."""
    a, s = _logit_halves(graph, p, Options(False, False, True, "sorted", "guarded"))
    _, hard = _inverse_denominators(_denominators(_exponentials(a), _exponentials(s), graph.edges))
    return tf.size(hard)
