"""Points as sites: one rule for the voxels, and the same sites in every framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

import eqconv_cli.numpy
import eqconv_cli.tensorflow
import eqconv_cli.torch
from eqconv_cli.backends.block_sparse.voxels import voxels

pytestmark = pytest.mark.tensorflow
FRAMEWORKS: dict[str, tuple[Any, Any]] = {
    "numpy": (eqconv_cli.numpy, np.asarray),
    "torch": (eqconv_cli.torch, torch.from_numpy),
    "tensorflow": (eqconv_cli.tensorflow, tf.constant),
}
RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(40, 3)).round(1)
FEATS = RNG.normal(size=(40, 2))
SAMPLES = RNG.integers(0, 3, 40)


def in_each(points: Any, voxel: Any, feats: Any = None, batch: Any = None, **options: Any) -> dict[str, Any]:
    """The sites by framework, as (coords, feats, shape, batch)."""
    made = {}
    for name, (module, convert) in FRAMEWORKS.items():
        arrays = {key: convert(a) for key, a in (("feats", feats), ("batch", batch)) if a is not None}
        sites = module.sites_from_points(convert(points), voxel, **arrays, **options)
        made[name] = (np.asarray(sites.coords), np.asarray(sites.feats), sites.shape, sites.batch)
    return made


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"origin": (-5.0, -4.0, -6.0)},
        {"origin": -5, "shape": (100, 101, 102)},
        {"batch": SAMPLES},
        {"duplicates": "last"},
        {"feats": FEATS},
    ],
)
@pytest.mark.parametrize("voxel", [0.1, (0.3, 0.1, 0.7)])
def test_the_frameworks_agree(voxel: Any, options: dict[str, Any], dtype: Any) -> None:
    made = in_each(POINTS.astype(dtype), voxel, **options)
    coords, feats, shape, batch = made["numpy"]
    for name in ("torch", "tensorflow"):
        np.testing.assert_array_equal(made[name][0], coords, err_msg=name)
        np.testing.assert_allclose(made[name][1], feats, rtol=1e-6, err_msg=name)
        assert made[name][1].dtype == feats.dtype
        assert made[name][2:] == (shape, batch)
    points = POINTS.astype(dtype).astype(np.float64)
    origin = np.asarray(options.get("origin", points.min(0)), np.float64)
    cells = np.floor((points - origin) / np.asarray(voxel)).astype(int)
    assert {tuple(row) for row in coords[:, 1:]} == {tuple(row) for row in cells}
    assert shape == options.get("shape", tuple(cells.max(0) + 1))


def test_voxels_start_at_the_smallest_coordinate() -> None:
    """0.05 and 0.12 are in one voxel of 0.1 from 0.05 on, and in two from 0 on."""
    points = np.array([[0.05], [0.12]])
    assert [len(coords) for coords, *_ in in_each(points, 0.1).values()] == [1, 1, 1]
    assert [len(coords) for coords, *_ in in_each(points, 0.1, origin=0.0).values()] == [2, 2, 2]


@pytest.mark.parametrize(("given", "shape"), [({}, (1, 1)), ({"origin": (0, 1), "shape": (4, 5)}, (4, 5))])
def test_no_points(given: dict[str, Any], shape: tuple[int, ...]) -> None:
    for coords, feats, extents, batch in in_each(np.zeros((0, 2)), 0.5, **given).values():
        assert coords.shape == (0, 3) and feats.shape == (0, 1) and extents == shape and batch == 1


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("points", "options", "error", "message"),
    [
        ([[0.0, 1.0], [3.0, 0.0]], {"shape": (3, 3)}, ValueError, r"points\[1\] is \[3.0, 0.0\], in cell \[3, 0\]"),
        ([[0.0, 1.0]], {"origin": (0, 2)}, ValueError, r"in cell \[0, -1\]: outside the shape"),
        ([[0.0, np.nan]], {}, ValueError, r"points\[0\] is \[0.0, nan\]"),
        ([0.0, 1.0], {}, ValueError, r"points has shape \[2\]"),
        ([[0.0, 1.0]], {"voxel": (1.0, 0.0)}, ValueError, "edges must be above 0"),
        ([[0.0, 1.0]], {"voxel": (1.0, 1.0, 1.0)}, ValueError, "voxel=.*expected one finite number, or 2"),
        ([[0.0, 1.0]], {"origin": (1.0, np.inf)}, ValueError, "origin="),
        ([[0.0, 1.0]], {"shape": (3,)}, ValueError, "points have 2 axes"),
        ([[0.0, 1.0], [1e30, 0.0]], {}, ValueError, "too small"),
        ([[0, 1]], {}, TypeError, "points has dtype int64"),
    ],
)
def test_what_is_not_allowed(
    framework: str, points: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    module, convert = FRAMEWORKS[framework]
    with pytest.raises(error, match=message):
        module.sites_from_points(convert(np.array(points)), **{"voxel": 1.0, **options})


def test_samples_are_checked() -> None:
    with pytest.raises(TypeError, match="batch has dtype float64"):
        voxels(POINTS, 1.0, SAMPLES + 0.5)
    with pytest.raises(ValueError, match=r"batch has shape \[3\]"):
        voxels(POINTS, 1.0, SAMPLES[:3])
