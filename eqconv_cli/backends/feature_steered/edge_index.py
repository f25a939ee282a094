"""Lists of directed edges, as PyTorch Geometric writes graphs, turned into weighted neighbourhoods."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.feature_steered.plan import IntArray

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]


def mean_neighborhood(
    edge_index: IntArray, num_sources: int, num_targets: int, add_self_loops: bool
) -> tuple[Indices, Weights]:
    """The neighbourhood matrix whose rows average over the incoming edges.

    Args:
        edge_index: integer [2, E]: row 0 the sources j, row 1 the targets i. Any order; duplicates count each time.
        num_sources: vertices that edges may start from.
        num_targets: vertices that edges may end in.
        add_self_loops: remove every edge i → i of the list, then add one for each target.

    Returns:
        indices [E', 2] as (target, source), and weights [E']: one over the number of edges into the target. The edges
        of the list that stay come first, in their order.

    Raises:
        TypeError: ``edge_index`` is not of an integer dtype.
        ValueError: ``edge_index`` is not of shape [2, E]; self loops are wanted of targets that no source matches.
        IndexError: an edge names a vertex that is not there.
    """
    if not np.issubdtype(edge_index.dtype, np.integer):
        raise TypeError(f"edge_index has dtype {edge_index.dtype}: an integer dtype is needed")
    if edge_index.ndim != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index has shape {list(edge_index.shape)}: expected [2, E], (sources, targets)")
    if add_self_loops and num_targets > num_sources:
        raise ValueError(
            f"add_self_loops=True gives each of the {num_targets} targets an edge from the source of its number, but "
            f"there are {num_sources} sources: allowed: at most {num_sources} targets, or add_self_loops=False"
        )
    _check_bounds(edge_index, (num_sources, num_targets))
    source, target = edge_index.astype(np.int64)
    if add_self_loops:
        others = source != target
        each = np.arange(num_targets)
        source, target = np.concatenate([source[others], each]), np.concatenate([target[others], each])
    incoming = np.bincount(target, minlength=num_targets)
    return np.stack([target, source], axis=1), 1.0 / incoming[target]


def _check_bounds(edge_index: IntArray, extents: tuple[int, int]) -> None:
    bad = (edge_index < 0) | (edge_index >= np.array(extents)[:, None])
    if bad.any():
        edge = int(np.argmax(bad.any(axis=0)))
        axis = int(np.argmax(bad[:, edge]))
        role = ("source", "target")[axis]
        raise IndexError(
            f"edge_index: edge {edge} has {role} {edge_index[axis, edge]}, outside [0, {extents[axis]}) of the {role}s"
        )
