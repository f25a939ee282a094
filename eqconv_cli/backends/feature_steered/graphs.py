"""Neighbourhoods that are not meshes: random ones, extreme ones, and the user's own from an ``.npz`` file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from eqconv_cli.backends.feature_steered.meshes import row_mean_weights
from eqconv_cli.backends.mesh_files import IntArray, Vertices
from eqconv_cli.errors import UsageError

Arrays = dict[str, npt.NDArray[Any]]


def uniform_random(rng: np.random.Generator, batch: int, vertices: int, density: float) -> Arrays:
    """Blocks where each entry is stored with probability ``density``; self edges always; rows divided by their count.

    The neighbourhoods of tensorflow/graphics pull request #101's single-convolution benchmark.
    """
    stored = rng.random((batch, vertices, vertices)) < density
    stored[:, np.arange(vertices), np.arange(vertices)] = True
    indices = np.argwhere(stored)
    weights = row_mean_weights(indices[:, 0] * vertices + indices[:, 1], batch * vertices)
    return {"indices": indices, "values": weights, "dense_shape": np.array(stored.shape)}


def random_pairs(rng: np.random.Generator, vertices: int, edges: int) -> Arrays:
    """``edges`` pairs drawn with replacement: duplicates and isolated rows occur, order is random.

    The graph of tensorflow/graphics pull request #155's benchmark.
    """
    indices = rng.integers(0, vertices, (edges, 2))
    weights = row_mean_weights(indices[:, 0], vertices)
    return {"indices": indices, "values": weights, "dense_shape": np.array([vertices, vertices])}


def power_law(rng: np.random.Generator, vertices: int, mean_degree: float) -> Arrays:
    """Out-degrees from a Pareto law with exponent 2, so a few rows hold a large share of the edges."""
    raw = rng.pareto(2.0, vertices) + 0.5
    degree = np.clip((raw * mean_degree / raw.mean()).astype(np.int64), 1, vertices)
    row = np.repeat(np.arange(vertices), degree)
    indices = np.stack([row, rng.integers(0, vertices, len(row))], axis=1)
    weights = row_mean_weights(row, vertices)
    return {"indices": indices, "values": weights, "dense_shape": np.array([vertices, vertices])}


def star(vertices: int) -> Arrays:
    """Vertex 0 sees every vertex, every other vertex sees itself and vertex 0: one row of degree V."""
    others = np.arange(1, vertices)
    pairs = [
        np.stack([np.zeros(vertices, np.int64), np.arange(vertices)], axis=1),
        np.stack([others, others], axis=1),
        np.stack([others, np.zeros_like(others)], axis=1),
    ]
    indices = np.concatenate(pairs)
    weights = row_mean_weights(indices[:, 0], vertices)
    return {"indices": indices, "values": weights, "dense_shape": np.array([vertices, vertices])}


def load_graph(path: str | Path) -> Arrays:
    """Read a graph from an ``.npz`` file.

    Two layouts are understood: a matrix written by ``scipy.sparse.save_npz``; or the arrays ``indices`` [E, n+2]
    integer and, optional, ``values`` [E] (default 1 / entries in the row), ``dense_shape`` [n+2] (default: square, as
    large as the largest index of any axis wants), ``sizes`` [A1..An] and ``data`` [A1..An, V, C].

    Raises:
        UsageError: the file is not there, is not such an archive, or an array has the wrong rank or dtype.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"graph {str(path)!r} is not a file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            stored: Arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"graph {str(path)!r} cannot be read as an .npz archive: {error}") from error
    if "format" in stored:
        matrix: Any = scipy.sparse.coo_array(scipy.sparse.load_npz(path))
        pairs = np.stack([np.asarray(axis, np.int64) for axis in matrix.coords], axis=1)
        return {
            "indices": pairs,
            "values": matrix.data.astype(np.float64),
            "dense_shape": np.array(matrix.shape, np.int64),
        }
    return _complete(stored, path)


def _complete(stored: Arrays, path: Path) -> Arrays:
    def refuse(what: str) -> UsageError:
        return UsageError(f"graph {str(path)!r}: {what}")

    if "indices" not in stored:
        raise refuse(f"has no array 'indices': it holds {', '.join(sorted(stored)) or 'nothing'}")
    indices = stored["indices"]
    if indices.ndim != 2 or indices.shape[1] < 2 or not np.issubdtype(indices.dtype, np.integer):
        raise refuse(f"indices is {indices.dtype} of shape {list(indices.shape)}: expected integer [E, n+2]")
    if "dense_shape" in stored:
        shape = stored["dense_shape"].astype(np.int64)
    elif len(indices) == 0:
        raise refuse("has no edges and no array 'dense_shape'")
    else:
        shape = indices.max(axis=0).astype(np.int64) + 1
        shape[-2:] = shape[-2:].max()
    if shape.shape != (indices.shape[1],):
        raise refuse(f"dense_shape has {shape.size} entries but indices has {indices.shape[1]} columns")
    if (indices < 0).any() or (indices >= shape).any():
        raise refuse(f"indices reach from {indices.min()} to {indices.max()}, outside the dense shape {shape.tolist()}")
    if "values" in stored:
        values = stored["values"].astype(np.float64)
    else:
        values = row_mean_weights(_flat_row(indices.astype(np.int64), shape), int(np.prod(shape[:-1])))
    if values.shape != (len(indices),):
        raise refuse(f"values has shape {list(values.shape)}: expected [{len(indices)}]")
    graph = {"indices": indices.astype(np.int64), "values": values, "dense_shape": shape}
    return graph | {name: stored[name] for name in ("sizes", "data") if name in stored}


def _flat_row(indices: IntArray, shape: IntArray) -> IntArray:
    return np.ravel_multi_index(tuple(indices[:, :-1].T), tuple(int(n) for n in shape[:-1]))


def features(rng: np.random.Generator, positions: Vertices, channels: int) -> Vertices:
    """Features [V, channels] of points: the standardised coordinates, then cosines of random projections of them."""
    spread = positions.std()
    standard = (positions - positions.mean(axis=0)) / (spread if spread > 0 else 1.0)
    extra = max(0, channels - positions.shape[1])
    waves = np.cos(standard @ rng.normal(size=(positions.shape[1], extra)) + rng.uniform(0, 2 * np.pi, extra))
    return np.concatenate([standard, waves], axis=1)[:, :channels]
