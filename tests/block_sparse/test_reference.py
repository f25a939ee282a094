"""The oracle against what SBNet's own tests expect, against central differences, and against other definitions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

from eqconv_cli.backends.block_sparse import FAMILY, reference
from eqconv_cli.backends.block_sparse.geometry import block_params
from tests.block_sparse.support import TWO_PIXELS, problem, reference_of, slope, words

EIGHT = np.zeros((1, 8, 8))
EIGHT[0, :5, 5:] = 1
EIGHT[0, 2, 0] = 1
DIFFERENTIABLE = [p.name for p in FAMILY.problems if p.operation not in ("reduce_mask", "pixel_index")]


def ones_convolved(mask: np.ndarray, bsize: int, ksize: int, stride: int, padding: str, coverage: str) -> np.ndarray:
    """The convolution of ones by ones on the blocks of a mask."""
    params = block_params(mask.shape[1:], (bsize, bsize), (ksize, ksize), (stride, stride), padding, coverage)
    at = words(bcount=params.bcount, bsize=params.bsize, bstride=params.bstrides, boffset=params.boffset)
    index = reference.reduce_mask({"mask": mask, **at, **words(tol=0.0, avgpool=False, on_empty="none")})
    layer = words(bsize=params.bsize, strides=(stride, stride), padding=padding, coverage=coverage, activation="none")
    inputs = {"x": np.ones((*mask.shape, 1)), "w": np.ones((ksize, ksize, 1, 1)), **layer}
    return reference.convolution({**inputs, "index": index["active_block_indices"]})["y"][0, ..., 0]


@pytest.mark.parametrize("coverage", ["full", "original"])
@pytest.mark.parametrize(
    ("bsize", "stride", "padding", "expected"),
    [
        (3, 1, "VALID", [[9, 9, 9], [9, 9, 9], [9, 0, 0]]),
        (3, 1, "SAME", [[0, 6, 6, 6, 0], [6, 9, 9, 9, 0], [6, 9, 9, 9, 0], [6, 9, 0, 0, 0], [0, 0, 0, 0, 0]]),
        (4, 1, "SAME", [[4, 6, 6, 6, 0], [6, 9, 9, 9, 0], [6, 9, 9, 9, 0], [6, 9, 9, 9, 0], [0, 0, 0, 0, 0]]),
        (5, 2, "SAME", [[4, 6, 0], [6, 9, 0], [0, 0, 0]]),
    ],
)
def test_sbnets_expected_convolutions(
    bsize: int, stride: int, padding: str, expected: list[list[int]], coverage: str
) -> None:
    assert ones_convolved(TWO_PIXELS, bsize, 3, stride, padding, coverage).tolist() == expected


@pytest.mark.parametrize("coverage", ["full", "original"])
def test_sbnets_expected_even_kernel(coverage: str) -> None:
    expected = np.zeros((7, 7))
    expected[:4] = 4
    expected[4:, 4:] = 4
    assert np.array_equal(ones_convolved(EIGHT, 5, 2, 1, "VALID", coverage), expected)


@pytest.mark.parametrize("name", [n for n in DIFFERENTIABLE if "/" not in n and n not in ("terrain", "scan")])
def test_gradients_are_the_slopes(name: str) -> None:
    """In a random direction of each input, within what central differences can tell."""
    given = problem(name)
    function, gradients = reference_of(given.operation)
    assert gradients is not None
    inputs, rng = given.arrays(5), np.random.default_rng(1)
    outputs = {n: a for n, a in function(inputs).items() if a.dtype.kind == "f"}
    cotangents = {n: rng.normal(size=a.shape) for n, a in outputs.items()}
    found = gradients(inputs, cotangents)
    record = next(operation for operation in FAMILY.operations if operation.name == given.operation)
    for key in record.differentiable:
        if key not in inputs:
            continue
        direction = rng.normal(size=inputs[key].shape)
        measured = slope(function, inputs, cotangents, key, direction)
        scale = float(np.abs(found[key] * direction).sum()) + 1e-9
        assert abs(measured - float((found[key] * direction).sum())) <= 1e-6 * scale, key


def test_statistics_have_no_use_for_given_ones() -> None:
    for name in ("unit-stack", "unit-active"):
        inputs = problem(name).arrays(0)
        dy = {"y": np.random.default_rng(0).normal(size=inputs["x"].shape)}
        found = reference.residual_gradients(inputs, dy)
        assert all(not found[bn][2:].any() and found[bn][:2].any() for bn in ("bn1", "bn2", "bn3"))


def test_a_masked_convolution_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 9, 8, 2)), rng.normal(size=(3, 3, 2, 1))
    layer = words(strides=(1, 1), padding="SAME", activation="none")
    y = reference.masked({"x": x, "w": w, "pixels": np.arange(72), **layer})["y"][0, ..., 0]
    expected = sum(scipy.signal.correlate2d(x[0, ..., c], w[..., c, 0], "same") for c in range(2))
    np.testing.assert_allclose(y, expected, atol=1e-13)


def test_submanifold_values_are_those_of_the_zero_filled_image() -> None:
    inputs = problem("sites-2d").arrays(3)
    image = np.zeros((int(inputs["batch"]), *inputs["shape"], inputs["feats"].shape[1]))
    image[tuple(inputs["coords"].T)] = inputs["feats"]
    layer = words(strides=(1, 1), padding="SAME", activation="none")
    pixels = np.arange(int(np.prod(image.shape[:3])))
    dense = reference.masked({"x": image, "w": inputs["w"], "bias": inputs["bias"], "pixels": pixels, **layer})["y"]
    np.testing.assert_allclose(reference.submanifold(inputs)["feats"], dense[tuple(inputs["coords"].T)], atol=1e-13)


def test_strided_sites_are_where_the_occupancy_convolves_to_something() -> None:
    inputs = problem("strided-2d").arrays(3)
    occupied = np.zeros((int(inputs["batch"]), *(int(n) + 2 for n in inputs["shape"])))
    occupied[inputs["coords"][:, 0], inputs["coords"][:, 1] + 1, inputs["coords"][:, 2] + 1] = 1
    windows = np.lib.stride_tricks.sliding_window_view(occupied, (3, 3), (1, 2))[:, ::2, ::2].sum((3, 4))
    assert np.array_equal(reference.strided(inputs)["coords"], np.argwhere(windows > 0))


def test_the_border_as_in_sbnet_differs_in_the_ring_only() -> None:
    inputs = problem("unit-original").arrays(0)
    y, dense = (reference.residual({**inputs, "border": np.array(b)})["y"] for b in ("original", "dense"))
    apart = np.abs(y - dense)
    assert apart[:, 1:-1, 1:-1].max() == 0 and apart.max() > 1e-3


@pytest.mark.parametrize("operation", ["reduce_mask", "pixel_index"])
def test_what_is_equal_to_the_tolerance_is_inactive_and_nan_is_nothing(operation: str) -> None:
    mask = np.array([[[0.5, np.nan], [0.0, 0.0]]])
    given = words(bcount=(1, 1), bsize=(2, 2), bstride=(2, 2), boffset=(0, 0), avgpool=False, on_empty="none")
    given |= words(ksize=(1, 1), strides=(1, 1), padding="SAME")
    function, _ = reference_of(operation)
    counts = [
        int(next(a for n, a in function({"mask": mask, **given, **words(tol=tol)}).items() if "count" in n)[0])
        for tol in (0.5, 0.49)
    ]
    assert counts == [0, 1]
    if operation == "reduce_mask":
        averaged = {"mask": mask, **given, **words(tol=-9.0, avgpool=True)}
        assert reference.reduce_mask(averaged)["bin_counts"].tolist() == [0]


def test_an_average_divides_by_the_whole_window() -> None:
    """A 4x4 window over nine ones at the corner has the mean 9 / 16."""
    at = words(bcount=(1, 1), bsize=(4, 4), bstride=(4, 4), boffset=(-1, -1), avgpool=True, on_empty="none")
    for tol, active in ((0.5625, 0), (0.5624, 1)):
        found = reference.reduce_mask({"mask": np.ones((1, 3, 3)), **at, **words(tol=tol)})
        assert found["bin_counts"].tolist() == [active]
