"""Convolutions on sites in TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.backends.block_sparse import reference
from eqconv_cli.tensorflow import (
    Sites,
    sites_from_mask,
    sites_from_points,
    sparse_conv,
    sparse_inverse_conv,
    subm_conv,
    to_dense,
)
from tests.block_sparse.support_tensorflow import FUSED, arrays, check, close

pytestmark = pytest.mark.tensorflow
RNG = np.random.default_rng(0)
SHAPES = [(9,), (6, 7), (4, 5, 3), (3, 3, 4, 3)]
VERSIONS = pytest.mark.parametrize("version", ["table", "rulebook", "dense", FUSED])


def some_sites(shape, channels=4):
    coords = RNG.permutation(np.argwhere(RNG.random((2, *shape)) < 0.3)).astype(np.int32)
    return arrays(coords=coords, feats=RNG.normal(size=(len(coords), channels)), shape=shape, batch=2)


@VERSIONS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dilation", "groups"), [(1, 1), (2, 2)])
def test_submanifold(shape, dilation, groups, version):
    size = (3, 2, 3, 2)[: len(shape)]
    inputs = {**some_sites(shape), **arrays(dilation=[dilation] * len(shape), groups=groups)}
    inputs |= {"w": RNG.normal(size=(*size, 4 // groups, 6)), "bias": RNG.normal(size=6)}
    check("submanifold", inputs, version, "function" if groups == 1 else "eager")


@VERSIONS
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(2, 1, 1), (1, 0, 1), (2, 2, 2)])
def test_strided(shape, stride, padding, dilation, inverse, version):
    axes = len(shape)
    inputs = {**some_sites(shape), "w": RNG.normal(size=(*[2] * axes, 4, 5)), "bias": RNG.normal(size=5)}
    inputs |= arrays(stride=[stride] * axes, padding=[padding] * axes, dilation=[dilation] * axes, inverse=False)
    if inverse:
        rows = len(reference.strided(inputs)["feats"])
        inputs |= {"feats": RNG.normal(size=(rows, 4)), "inverse": np.array(True)}
    check("strided", inputs, version)


@VERSIONS
def test_no_site(version):
    sites = Sites.make(np.zeros((0, 3), np.int32), np.zeros((0, 2)), (4, 5), 1)
    w = RNG.normal(size=(3, 3, 2, 7))
    assert subm_conv(sites, w, version=version).feats.shape == (0, 7)
    assert sparse_conv(sites, w, stride=2, padding=1, version=version).feats.shape == (0, 7)


@VERSIONS
def test_features_unknown_while_tracing(version):
    given = some_sites((6, 7))
    sites, w = Sites.make(given["coords"], given["feats"], (6, 7)), tf.constant(RNG.normal(size=(3, 3, 4, 4)))

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None], tf.float64)])
    def traced(feats):
        made = subm_conv(sites.with_feats(tf.ensure_shape(feats, [None, 4])), w, version=version)
        smaller = sparse_conv(made, w, stride=2, version=version)
        return sparse_inverse_conv(smaller, w, made, version=version).feats

    made = subm_conv(sites, w, version="dense")
    wanted = sparse_inverse_conv(sparse_conv(made, w, stride=2, version="dense"), w, made, version="dense")
    close(traced(given["feats"]).numpy(), wanted.feats.numpy(), 1e-10)


def test_images_points_and_duplicates():
    x, mask = RNG.normal(size=(2, 4, 5, 3)), RNG.random((2, 4, 5)) < 0.4
    np.testing.assert_array_equal(to_dense(sites_from_mask(x, mask)), x * mask[..., None])
    coords, feats = [[0, 1], [0, 0], [0, 1]], np.array([[1.0], [2.0], [5.0]])
    wanted = {"first": [1, 2], "last": [5, 2], "sum": [6, 2], "mean": [3, 2]}
    for duplicates, values in wanted.items():
        assert Sites.make(coords, feats, (2,), duplicates=duplicates).feats.numpy()[:, 0].tolist() == values
    points = sites_from_points([[0.1, 0.2], [0.3, 0.1], [2.5, 1.2]], 1.0, feats)
    assert points.coords.numpy().tolist() == [[0, 0, 0], [0, 2, 1]]
    assert points.feats.numpy().tolist() == [[1.5], [5.0]]
    transposed = np.asfortranarray(np.argwhere(mask))
    np.testing.assert_array_equal(Sites.make(transposed, x[mask], (4, 5)).coords, transposed)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("more than once", lambda s, w: Sites.make([[0, 1], [0, 1]], np.ones((2, 1)), (2,))),
        ("outside", lambda s, w: Sites.make([[0, 2]], np.ones((1, 1)), (2,))),
        ("whole numbers", lambda s, w: Sites.make([[0.0, 1.0]], np.ones((1, 1)), (2,))),
        ("feats has shape", lambda s, w: Sites.make([[0, 1]], np.ones((2, 1)), (2,))),
        ("kernel extents", lambda s, w: subm_conv(s, w[0])),
        ("input channels", lambda s, w: subm_conv(s, w[:, :, :1])),
        ("groups", lambda s, w: subm_conv(s, w, groups=3)),
        ("bias has shape", lambda s, w: subm_conv(s, w, bias=np.ones(7))),
        ("stride", lambda s, w: sparse_conv(s, w, stride=0)),
        ("paired", lambda s, w: sparse_inverse_conv(s, w, s)),
        ("version", lambda s, w: subm_conv(s, w, version="other")),
    ],
)
def test_errors(words, call):
    given = some_sites((6, 7))
    with pytest.raises(ValueError, match=words):
        call(Sites.make(given["coords"], given["feats"], (6, 7)), RNG.normal(size=(3, 3, 4, 4)))
