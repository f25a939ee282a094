"""Identities of the operator that hold whatever computes it (facts of the formula, see the reference)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.catalog import Arrays, Check, Pair

Compute = Callable[[Arrays], Arrays]


def gauge(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """One vector added to u_m for all m alike, another to v_m, a number to c_m: y stays."""
    rng = np.random.default_rng(seed)
    shifts = {
        "var_u": rng.normal(size=(inputs["var_u"].shape[0], 1)) / 4,
        "var_v": rng.normal(size=(inputs["var_v"].shape[0], 1)) / 4,
        "var_c": rng.normal(size=1) / 4,
    }
    moved = {name: (inputs[name] + shift).astype(inputs[name].dtype) for name, shift in shifts.items()}
    shifted = {**inputs, **moved}
    return [Pair("", compute(shifted)["output"], compute(inputs)["output"])]


def linear_in_weights(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """y(3w) - b = 3 (y(w) - b): the weights never enter the softmax."""
    tripled = {**inputs, "values": inputs["values"] * np.asarray(3, inputs["values"].dtype)}
    kept = _kept(inputs)[..., None]
    b = np.where(kept, inputs["var_b"].astype(np.float64), 0.0)
    once = compute(inputs)["output"].astype(np.float64)
    return [Pair("", compute(tripled)["output"], 3 * (once - b) + b)]


def vertex_order(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """Relabelling the vertices of each block permutes the rows of y."""
    rng = np.random.default_rng(seed)
    batch, vertices = inputs["data"].shape[:-2], inputs["data"].shape[-2]
    permutation = np.empty((*batch, vertices), np.int64)
    for block in np.ndindex(*batch):
        size = int(inputs["sizes"][block]) if "sizes" in inputs else vertices
        permutation[block] = np.concatenate([rng.permutation(size), np.arange(size, vertices)])
    inverse = np.argsort(permutation, axis=-1)
    indices = inputs["indices"].copy()
    blocks = tuple(indices[:, :-2].T)
    for axis in (-2, -1):
        indices[:, axis] = inverse[(*blocks, indices[:, axis])]
    moved = {**inputs, "indices": indices, "data": _take(inputs["data"], permutation)}
    return [Pair("", compute(moved)["output"], _take(compute(inputs)["output"], permutation))]


def edge_order(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """The order of the edges changes nothing."""
    order = np.random.default_rng(seed).permutation(len(inputs["values"]))
    shuffled = {**inputs, "indices": inputs["indices"][order], "values": inputs["values"][order]}
    return [Pair("", compute(shuffled)["output"], compute(inputs)["output"])]


def padding(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """What stands in the padding is not read, and comes out as exactly 0."""
    kept = _kept(inputs)
    if kept.all():
        return []
    noise = np.random.default_rng(seed).normal(size=inputs["data"].shape) * 1e3
    data = np.where(kept[..., None], inputs["data"], noise).astype(inputs["data"].dtype)
    once, again = compute(inputs)["output"], compute({**inputs, "data": data})["output"]
    return [Pair("unread", again, once), Pair("zero", once[~kept], np.zeros_like(once[~kept]), floor=1e-30)]


CHECKS = (
    Check("gauge", gauge, "adding one vector to all u_m (v_m, c_m) changes nothing"),
    Check("linear", linear_in_weights, "y - b is linear in the weights of the edges"),
    Check("vertices", vertex_order, "relabelling the vertices permutes the rows"),
    Check("edges", edge_order, "the order of the edges changes nothing"),
    Check("padding", padding, "padding is not read and comes out as 0"),
)


def _kept(inputs: Arrays) -> npt.NDArray[np.bool_]:
    """Which rows are inside ``sizes`` [A1..An, V]."""
    vertices = inputs["data"].shape[-2]
    if "sizes" not in inputs:
        return np.ones(inputs["data"].shape[:-1], bool)
    kept: npt.NDArray[np.bool_] = np.arange(vertices) < np.asarray(inputs["sizes"])[..., None]
    return kept


def _take(array: npt.NDArray[Any], permutation: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    return np.take_along_axis(array, permutation[..., None], axis=-2)
