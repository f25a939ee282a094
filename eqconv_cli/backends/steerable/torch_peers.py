"""Weights of layers of QUVA-Lab/e2cnn 0.2 and QUVA-Lab/escnn 1.0 for the layer of this library.

What is read of a peer: ``in_type`` and ``out_type``, ``weights``, ``bias`` and ``bias_expansion``, and of its
``basisexpansion`` the pairs of names, the ranges of their weights and the sampled bases. e2cnn has the same elements in
the same order; escnn has another basis of the same kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from eqconv_cli.backends.steerable.bias import bias_map
from eqconv_cli.backends.steerable.fields import FieldType
from eqconv_cli.backends.steerable.plan import PairType
from eqconv_cli.backends.steerable.torch_layers import R2Conv
from eqconv_cli.maths.planar_groups import Matrix

#: What float32 may be off: bases have entries of about 1.
_SAME, _SPANNED = 1e-6, 1e-4


def load_peer_weights(layer: R2Conv, peer: nn.Module) -> R2Conv:
    """Give a layer the filter and the bias of an ``R2Conv`` of e2cnn or escnn.

    Args:
        layer: with the same fields and the same kernel size, rings, frequencies and dilation as the peer.
        peer: its module, with the blocks expansion that both libraries take by default.

    Returns:
        ``layer``, whose weights and bias have changed.

    Raises:
        TypeError: something of the peer cannot be read.
        ValueError: fields, pairs of names, or the kernels of a pair are others; nothing has changed then.
    """
    _check_fields("in_type", layer.in_type, _read(peer, "in_type"))
    _check_fields("out_type", layer.out_type, _read(peer, "out_type"))
    blocks = _blocks(peer)
    mine = {(pair.in_name, pair.out_name): pair for pair in layer.plan.pairs}
    if set(blocks) != set(mine):
        raise ValueError(
            f"peer has kernels for the pairs {_listed(sorted(set(blocks) - set(mine)))} that this layer has not, and "
            f"none for {_listed(sorted(set(mine) - set(blocks)))}: give both the same kernel size, rings and cut-off"
        )
    weights = np.concatenate([_converted(mine[names], blocks[names]).ravel() for names in sorted(mine)])
    bias = _converted_bias(layer, peer)
    with torch.no_grad():
        layer.weights.copy_(torch.from_numpy(weights))
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(torch.from_numpy(bias))
    return layer


class _Block(NamedTuple):
    """All pairs of fields of two names."""

    #: Flat.
    weights: Matrix
    #: [d, so, si, S].
    basis: Matrix


def _read(owner: Any, name: str) -> Any:
    if not hasattr(owner, name):
        raise TypeError(
            f"peer: {type(owner).__name__} has no {name}: an R2Conv of e2cnn 0.2 or escnn 1.0 with the blocks "
            "expansion is needed"
        )
    return getattr(owner, name)


def _array(tensor: Any) -> Matrix:
    made: Matrix = tensor.detach().cpu().double().numpy()
    return made


def _blocks(peer: nn.Module) -> dict[tuple[str, str], _Block]:
    weights, expansion = _array(_read(peer, "weights")), _read(peer, "basisexpansion")
    ranges = _read(expansion, "_weights_ranges")
    made = {}
    for names in _read(expansion, "_representations_pairs"):
        basis = _read(_read(expansion, f"block_expansion_{names}"), "sampled_basis")
        made[tuple(names)] = _Block(weights[slice(*ranges[names])], _array(basis))
    return made


def _check_fields(name: str, mine: FieldType, other: Any) -> None:
    found, wanted = [r.name for r in _read(other, "representations")], [r.name for r in mine.representations]
    if found != wanted:
        raise ValueError(f"peer: {name} has the fields {', '.join(found)}: this layer has {', '.join(wanted)}")


def _listed(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{a} -> {b}" for a, b in pairs) or "(none)"


def _converted(pair: PairType, block: _Block) -> Matrix:
    """The peer's kernels of a pair in the coordinates of this layer, [out occurrences, in occurrences, d]."""
    name, dense = f"{pair.in_name} -> {pair.out_name}", pair.basis.dense
    if block.basis.shape != dense.shape or block.weights.size != pair.weights:
        raise ValueError(
            f"peer: the pair {name} has a basis of shape {block.basis.shape} and {block.weights.size} weights: this "
            f"layer has {dense.shape} and {pair.weights}"
        )
    weights = block.weights.reshape(pair.shape)
    if np.abs(block.basis - dense).max() < _SAME:
        return weights
    mine, theirs = dense.reshape(len(dense), -1), block.basis.reshape(len(dense), -1)
    coordinates = np.linalg.lstsq(mine.T, theirs.T)[0]
    error = np.abs(coordinates.T @ mine - theirs).max()
    if error > _SPANNED:
        raise ValueError(
            f"peer: the kernels of the pair {name} are not those of this layer: they differ by {error:.1e}; group, "
            "axis, rings, sigma, cut-off, dilation and representations must be the same"
        )
    return weights @ coordinates.T


def _converted_bias(layer: R2Conv, peer: nn.Module) -> Matrix | None:
    theirs = _read(peer, "bias")
    if (theirs is None) != (layer.bias is None):
        has, lacks = ("this layer", "peer") if theirs is None else ("peer", "this layer")
        raise ValueError(f"{has} has a bias and {lacks} has none")
    if theirs is None:
        return None
    expanded = _array(_read(peer, "bias_expansion")) @ _array(theirs)
    matrix = bias_map(layer.out_type).matrix()
    made = np.linalg.lstsq(matrix, expanded)[0].astype(np.float64)
    if np.abs(matrix @ made - expanded).max() > _SPANNED * max(1.0, np.abs(expanded).max()):
        raise ValueError("peer: its bias cannot be written with the trivial irreps of this layer's out_type")
    return made
