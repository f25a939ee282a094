"""Neighbourhoods of triangle meshes, and meshes that are made exactly.

A mesh becomes a neighbourhood as in the mesh-segmentation notebook of tensorflow/graphics: the unique directed edges of
its triangles and a self edge for each vertex that occurs in a triangle, with weights 1 / degree (self edge counted).
"""

from __future__ import annotations

import numpy as np

from eqconv_cli.backends.mesh_files import IntArray, Vertices


def mesh_graph(vertices: int, triangles: IntArray) -> tuple[IntArray, Vertices]:
    """The neighbourhood of a triangle mesh with ``vertices`` vertices.

    Returns:
        Indices int64 [E, 2] of (centre, neighbour), sorted, and weights float64 [E], which sum to 1 over each row. A
        vertex in no triangle has no edge.
    """
    corners = triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    used = np.unique(triangles)
    directed = np.concatenate([corners, corners[:, ::-1], np.stack([used, used], axis=1)])
    code = np.unique(directed[:, 0] * np.int64(vertices) + directed[:, 1])
    indices = np.stack([code // vertices, code % vertices], axis=1)
    return indices, row_mean_weights(indices[:, 0], vertices)


def row_mean_weights(row: IntArray, rows: int) -> Vertices:
    """1 / (entries in the row) for each entry [E]."""
    return 1.0 / np.bincount(row, minlength=rows)[row]


def grid_mesh(n: int, m: int) -> tuple[Vertices, IntArray]:
    """A plane grid of n x m vertices, each square cut by one diagonal."""
    i, j = np.meshgrid(np.arange(n), np.arange(m), indexing="ij")
    vertices = np.stack([i, j, np.zeros_like(i)], axis=-1).reshape(-1, 3).astype(np.float64)
    at = (i * m + j)[:-1, :-1].reshape(-1)
    triangles = np.concatenate([np.stack([at, at + 1, at + m], axis=1), np.stack([at + 1, at + m + 1, at + m], axis=1)])
    return vertices, triangles


def icosphere(subdivisions: int) -> tuple[Vertices, IntArray]:
    """The icosahedron with each triangle cut in four ``subdivisions`` times: 10·4^s + 2 vertices on the sphere."""
    golden = (1 + 5**0.5) / 2
    axis = np.array([[-1, golden, 0], [1, golden, 0], [-1, -golden, 0], [1, -golden, 0]], np.float64)
    vertices = np.concatenate([axis, np.roll(axis, 1, axis=1), np.roll(axis, 2, axis=1)])
    distance = np.linalg.norm(vertices[:, None] - vertices[None], axis=-1)
    near = np.isclose(distance, 2.0)
    triangles = np.array(
        [
            (a, b, c)
            for a in range(12)
            for b in range(a + 1, 12)
            for c in range(b + 1, 12)
            if near[a, b] and near[b, c] and near[a, c]
        ],
        np.int64,
    )
    for _ in range(subdivisions):
        edges = np.sort(triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
        unique, middle = np.unique(edges, axis=0, return_inverse=True)
        ab, bc, ca = (len(vertices) + middle.reshape(-1, 3)).T
        vertices = np.concatenate([vertices, vertices[unique].mean(axis=1)])
        a, b, c = triangles.T
        triangles = np.concatenate([np.stack(t, axis=1) for t in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))])
    return vertices / np.linalg.norm(vertices, axis=1, keepdims=True), triangles
