"""Triangle meshes from files of the usual formats."""

from __future__ import annotations

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
