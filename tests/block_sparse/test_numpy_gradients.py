"""The gradient functions of NumPy: what they return, and which versions they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from eqconv_cli.backends.block_sparse import numpy_convolution, numpy_residual, numpy_sites, units
from eqconv_cli.numpy import (
    BatchNorm,
    ResidualWeights,
    block_params,
    block_params_chain,
    pixel_index,
    reduce_mask,
    sites_from_mask,
    sparse_conv,
)

RNG = np.random.default_rng(0)
X, W, B = RNG.normal(size=(2, 9, 8, 3)), RNG.normal(size=(3, 3, 3, 4)), RNG.normal(size=4)
MASK = RNG.random((2, 9, 8)) > 0.8
PIXELS = pixel_index(MASK, tol=0.5)
PARAMS = block_params(X.shape, (5, 4), (3, 3))
CHAIN = block_params_chain(X.shape, (5, 4), [(1, 1), (3, 3), (1, 1)])
INDEX, BLOCKS = (
    reduce_mask(MASK, p.bcount, bsize=p.bsize, bstride=p.bstrides, boffset=p.boffset, tol=0.5) for p in (PARAMS, CHAIN)
)
DY = RNG.normal(size=(2, 9, 8, 4))
SITES = sites_from_mask(X, MASK)
SMALLER = sparse_conv(SITES, W[..., :3], stride=2)
END = len(sparse_conv(SITES, W).coords)
Gradients = Callable[..., dict[str, Any]]


def norm(n: int) -> BatchNorm:
    return BatchNorm(*RNG.normal(size=(3, n)), RNG.random(n) + 0.5)


UNIT = ResidualWeights(
    RNG.normal(size=(3, 2)), RNG.normal(size=(3, 3, 2, 2)), RNG.normal(size=(2, 3)), norm(3), norm(2), norm(2)
)


def on_sites(count: int) -> Any:
    return RNG.normal(size=(count, 4))


CONVOLUTIONS: dict[str, tuple[Gradients, tuple[Any, ...], tuple[str, ...]]] = {
    "masked": (
        numpy_convolution.masked_conv2d_gradients, (DY, X, W, PIXELS), numpy_convolution.PIXEL_COMPOSITIONS
    ),
    "blocks": (
        numpy_convolution.sparse_conv2d_gradients, (DY, X, W, INDEX, PARAMS), numpy_convolution.BLOCK_COMPOSITIONS
    ),
    "submanifold": (
        numpy_sites.subm_conv_gradients, (on_sites(MASK.sum()), SITES, W), numpy_sites.COMPOSITIONS
    ),
    "strided": (numpy_sites.sparse_conv_gradients, (on_sites(END), SITES, W), numpy_sites.COMPOSITIONS),
    "inverse": (
        numpy_sites.sparse_inverse_conv_gradients, (on_sites(MASK.sum()), SMALLER, W, SITES), numpy_sites.COMPOSITIONS
    ),
}  # fmt: skip
UNITS: dict[str, tuple[Gradients, tuple[Any, ...], tuple[str, ...]]] = {
    "unit": (
        numpy_residual.sparse_residual_unit_gradients, (DY[..., :3], X, BLOCKS, CHAIN), units.BLOCK_COMPOSITIONS
    ),
    "masked unit": (
        numpy_residual.masked_residual_unit_gradients, (DY[..., :3], X, PIXELS), units.PIXEL_COMPOSITIONS
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_version_of_a_convolution_has_the_same_gradients_of_what_was_given(name: str) -> None:
    gradients, given, versions = CONVOLUTIONS[name]
    without = gradients(*given, version=versions[0])
    found = gradients(*given, bias=B, version=versions[0])
    assert set(found) - set(without) == {"bias"} and {"w"} < set(without)
    for version in (*versions, "auto"):
        again = gradients(*given, bias=B, version=version)
        assert again.keys() == found.keys()
        for key, values in found.items():
            np.testing.assert_allclose(again[key], values, atol=1e-12, err_msg=f"{version}, {key}")
        assert gradients(*given, version=version).keys() == without.keys()
    with pytest.raises(ValueError, match="version='other' is unknown"):
        gradients(*given, version="other")


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("activated", [True, False])
def test_every_version_of_a_unit_has_the_same_gradients_of_what_was_given(name: str, activated: bool) -> None:
    gradients, given, versions = UNITS[name]
    weights = UNIT if activated else UNIT._replace(bn1=None)
    found = gradients(*given, weights, version=versions[0])
    assert set(found) == {"x", "w1", "w2", "w3", "bn2", "bn3", *(["bn1"] if activated else [])}
    for version in (*versions, "auto"):
        again = gradients(*given, weights, version=version)
        assert again.keys() == found.keys()
        for key, values in found.items():
            np.testing.assert_allclose(np.stack(again[key]), np.stack(values), atol=1e-11, err_msg=f"{version}, {key}")
    with pytest.raises(ValueError, match="version='dense' has border='dense'"):
        gradients(*given, weights, border="original", version="dense")
