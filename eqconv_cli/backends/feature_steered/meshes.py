"""Meshes and graphs: read from the user's file or from a package that carries real ones, or made exactly.

A mesh becomes a neighbourhood as in the mesh-segmentation notebook of tensorflow/graphics: the unique directed edges of
its triangles and a self edge for each vertex that occurs in a triangle, with weights 1 / degree (self edge counted).
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.errors import UsageError

Vertices = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MESH_SUFFIXES = (".obj", ".ply", ".off", ".stl", ".gii", ".gii.gz", ".vtk")


def load_mesh(path: str | Path) -> tuple[Vertices, IntArray]:
    """Read a triangle mesh.

    Args:
        path: a file in one of the formats obj, ply, off, stl (trimesh), gii, gii.gz (nibabel) or vtk (meshio; surfaces
            in the legacy POLYDATA form by the package vtk, if it is installed).

    Returns:
        Vertices float64 [V, 3] and triangles int64 [T, 3].

    Raises:
        UsageError: the file is not there, has another suffix, cannot be read, or holds no triangles.
    """
    path = Path(path)
    reader = next((read for suffix, read in _READERS.items() if path.name.lower().endswith(suffix)), None)
    if reader is None:
        raise UsageError(f"mesh {str(path)!r} has an unknown suffix: allowed: {', '.join(MESH_SUFFIXES)}")
    if not path.is_file():
        raise UsageError(f"mesh {str(path)!r} is not a file")
    try:
        vertices, triangles = reader(path)
    except ImportError as error:
        remedy = "vtk" if str(error.name).startswith("vtk") else '"eqconv[data]"'
        raise UsageError(f"mesh {str(path)!r} needs the package {error.name} (pip install {remedy})") from error
    except Exception as error:  # readers raise whatever their parsers raise
        raise UsageError(f"mesh {str(path)!r} cannot be read: {type(error).__name__}: {error}") from error
    vertices, triangles = np.asarray(vertices, np.float64), np.asarray(triangles, np.int64)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.ndim != 2 or len(triangles) == 0:
        raise UsageError(f"mesh {str(path)!r} holds no triangles: a surface mesh is needed")
    if triangles.min() < 0 or triangles.max() >= len(vertices):
        raise UsageError(f"mesh {str(path)!r} names vertex {triangles.max()} but has {len(vertices)} vertices")
    if not np.isfinite(vertices).all():
        raise UsageError(f"mesh {str(path)!r} has coordinates that are not finite")
    return vertices, triangles


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


def packaged_file(package: str, relative: str) -> Path | None:
    """A data file inside an installed package, found without importing it; None when it is not there."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / relative).is_file():
            return Path(location) / relative
    return None


def _read_with_trimesh(path: Path) -> tuple[Any, Any]:
    import trimesh

    # Vertices stay as they are in the file, except in STL, where each triangle repeats its own.
    merge = path.suffix.lower() == ".stl"
    mesh = trimesh.load(path, force="mesh", process=merge)
    return mesh.vertices, mesh.faces


def _read_obj(path: Path) -> tuple[Any, Any]:
    """Geometry only: texture seams would split vertices, and relative texture indices are read by few libraries."""
    import trimesh

    lines, vertices = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        key, *words = line.split() or [""]
        if key == "v":
            vertices += 1
            lines.append(line)
        elif key == "f":
            corners = [int(word.split("/")[0]) for word in words]
            lines.append(" ".join(["f", *(str(k if k > 0 else vertices + 1 + k) for k in corners)]))
    mesh = trimesh.load(io.StringIO("\n".join(lines)), "obj", force="mesh", process=False, maintain_order=True)
    return mesh.vertices, mesh.faces


def _read_gifti(path: Path) -> tuple[Any, Any]:
    import nibabel

    image = nibabel.gifti.GiftiImage.from_filename(str(path))
    return image.agg_data("pointset"), image.agg_data("triangle")


def _read_vtk(path: Path) -> tuple[Any, Any]:
    with path.open("rb") as file:
        polydata = b"DATASET POLYDATA" in file.read(1024).upper()
    if polydata:
        return _read_vtk_polydata(path)
    import meshio

    mesh = meshio.vtk.read(path)
    return mesh.points, mesh.cells_dict.get("triangle", np.empty((0, 3), np.int64))


def _read_vtk_polydata(path: Path) -> tuple[Any, Any]:
    """Legacy surface files, which meshio does not read."""
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkFiltersCore import vtkTriangleFilter
    from vtkmodules.vtkIOLegacy import vtkPolyDataReader

    reader, triangulate = vtkPolyDataReader(), vtkTriangleFilter()
    reader.SetFileName(str(path))
    triangulate.SetInputConnection(reader.GetOutputPort())
    triangulate.PassLinesOff()
    triangulate.PassVertsOff()
    triangulate.Update()
    mesh = triangulate.GetOutput()
    if mesh.GetNumberOfPolys() == 0:
        return np.empty((0, 3)), np.empty((0, 3), np.int64)
    corners = vtk_to_numpy(mesh.GetPolys().GetConnectivityArray()).reshape(-1, 3)
    return vtk_to_numpy(mesh.GetPoints().GetData()), corners


_READERS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    ".obj": _read_obj,
    ".ply": _read_with_trimesh,
    ".off": _read_with_trimesh,
    ".stl": _read_with_trimesh,
    ".gii": _read_gifti,
    ".gii.gz": _read_gifti,
    ".vtk": _read_vtk,
}
