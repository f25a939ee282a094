"""The oracle: feature-steered convolution and its gradients in float64, as the formulas stand in the paper.

Verma, Boyer, Verbeek, "FeaStNet: Feature-Steered Graph Convolutions for 3D Shape Analysis", CVPR 2018, section 3.
One centre after the other, no reordering, no factored exponentials. Letters: x features [V, C], w weights of the
edges, u, v [C, M], c [M], W [M, C, D], b [D]; i a centre, j its neighbours, m a weight matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Arrays = Mapping[str, npt.NDArray[np.generic]]


def reference(inputs: Arrays) -> dict[str, Array]:
    """y_i = b + Σ_m W_mᵀ Σ_{j∈N(i)} w_ij q_ijm x_j with q_ij = softmax_m(u_m·x_i + v_m·x_j + c_m).

    Args:
        inputs: ``data`` [A1..An, Vi, C], optional ``data_out`` [A1..An, Vo, C] (the centres' own features), ``indices``
            [E, n+2], ``values`` [E], ``dense_shape`` [n+2], optional ``sizes`` [A1..An], ``var_u``, ``var_v`` [C, M],
            ``var_c`` [M], ``var_w`` [M, C, D], ``var_b`` [D].

    Returns:
        ``output`` [A1..An, Vo, D]; rows beyond ``sizes`` are 0.
    """
    x, centre, y, p = _unpack(inputs)
    for block, i, edges, j in _neighborhoods(inputs):
        q = _assignment(centre[block, i], x[block, j], p)
        z = np.einsum("e,em,ec->mc", p["values"][edges], q, x[block, j])
        y[block, i] = p["var_b"] + np.einsum("mc,mcd->d", z, p["var_w"])
    return {"output": y.reshape(*inputs["data"].shape[:-2], *y.shape[1:])}


def reference_gradients(inputs: Arrays, cotangents: Mapping[str, Array]) -> dict[str, Array]:
    """The gradients of ⟨G, y⟩ in closed form: softmax Jacobian by hand, one centre after the other.

    Args:
        inputs: as for :func:`reference`.
        cotangents: ``output``: G = ∂L/∂y [A1..An, Vo, D].

    Returns:
        Gradients of ``data``, ``data_out`` (when given), ``values``, ``var_u``, ``var_v``, ``var_c``, ``var_w``,
        ``var_b``, each in the shape of its input.
    """
    x, centre, y, p = _unpack(inputs)
    G = np.asarray(cotangents["output"], np.float64).reshape(y.shape)
    dx, dcentre = np.zeros_like(x), np.zeros_like(centre)
    d = {name: np.zeros_like(array) for name, array in p.items()}
    for block, i, edges, j in _neighborhoods(inputs):
        xi, xj, w, g_i = centre[block, i], x[block, j], p["values"][edges], G[block, i]
        q = _assignment(xi, xj, p)
        z = np.einsum("e,em,ec->mc", w, q, xj)
        d["var_b"] += g_i
        d["var_w"] += np.einsum("mc,d->mcd", z, g_i)
        dz = np.einsum("mcd,d->mc", p["var_w"], g_i)
        dq_over_w = np.einsum("mc,ec->em", dz, xj)
        mean = np.einsum("em,em->e", q, dq_over_w)
        np.add.at(d["values"], edges, mean)
        dl = w[:, None] * q * (dq_over_w - mean[:, None])
        d["var_c"] += dl.sum(0)
        d["var_u"] += np.outer(xi, dl.sum(0))
        d["var_v"] += np.einsum("ec,em->cm", xj, dl)
        dcentre[block, i] += p["var_u"] @ dl.sum(0)
        np.add.at(dx[block], j, np.einsum("e,em,mc->ec", w, q, dz) + dl @ p["var_v"].T)
    if "data_out" in inputs:
        d["data_out"] = dcentre.reshape(inputs["data_out"].shape)
    else:
        dx += dcentre
    d["data"] = dx.reshape(inputs["data"].shape)
    return d


def _assignment(xi: Array, xj: Array, p: Mapping[str, Array]) -> Array:
    """q [edges of i, M]."""
    logits = xi @ p["var_u"] + xj @ p["var_v"] + p["var_c"]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    q: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return q


def _unpack(inputs: Arrays) -> tuple[Array, Array, Array, dict[str, Array]]:
    """Features [B, Vi, C], centre features [B, ., C], zeroed output [B, Vo, D], and the other arrays, in float64."""
    names = ("values", "var_u", "var_v", "var_c", "var_w", "var_b")
    p = {name: np.asarray(inputs[name], np.float64) for name in names}
    data = np.asarray(inputs["data"], np.float64)
    blocks = int(np.prod(data.shape[:-2], dtype=np.int64))
    x = data.reshape(blocks, *data.shape[-2:])
    centre = x
    if "data_out" in inputs:
        data_out = np.asarray(inputs["data_out"], np.float64)
        centre = data_out.reshape(blocks, *data_out.shape[-2:])
    y = np.zeros((blocks, int(inputs["dense_shape"][-2]), p["var_b"].shape[0]))
    return x, centre, y, p


def _neighborhoods(
    inputs: Arrays,
) -> Iterator[tuple[int, int, npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Every kept centre as (block, i, its edges, its neighbours), in order."""
    shape = tuple(int(extent) for extent in inputs["dense_shape"])
    indices = inputs["indices"].astype(np.intp)
    blocks, rows = int(np.prod(shape[:-2], dtype=np.int64)), shape[-2]
    sizes = np.full(blocks, rows) if "sizes" not in inputs else inputs["sizes"].reshape(-1).astype(np.intp)
    block = np.ravel_multi_index(tuple(indices[:, :-2].T), shape[:-2]) if shape[:-2] else 0
    centre = block * rows + indices[:, -2]
    order = np.argsort(centre, kind="stable")
    start = np.searchsorted(centre[order], np.arange(blocks * rows + 1))
    for k in range(blocks):
        for i in range(int(sizes[k])):
            edges = order[start[k * rows + i] : start[k * rows + i + 1]]
            yield k, i, edges, indices[edges, -1]
