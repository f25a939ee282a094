"""Convolutions on sites in TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.backends.block_sparse import reference, tensorflow_site_patterns
from eqconv_cli.tensorflow import (
    Sites,
    sites_from_mask,
    sites_from_points,
    sparse_conv,
    sparse_inverse_conv,
    subm_conv,
    to_dense,
)
from tests.block_sparse.support_tensorflow import FUSED, arrays, built, check, close

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


def traced_sites(given, version, duplicates="error"):
    """Three convolutions of sites that are symbolic, and the gradients."""

    @tf.function(
        autograph=False,
        input_signature=[tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([None, 4], tf.float64)],
    )
    def traced(coords, feats):
        with tf.GradientTape() as tape:
            tape.watch([feats, w])
            sites = Sites.make(coords, feats, given["shape"].tolist(), duplicates=duplicates)
            made = subm_conv(sites, w, dilation=2, version=version)
            smaller = sparse_conv(made, w, stride=2, padding=1, version=version)
            back = sparse_inverse_conv(smaller, w, made, version=version)
            loss = tf.reduce_sum(tf.sin(back.feats)) + tf.reduce_sum(to_dense(back))
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, [feats, w])]
        return sites.coords, smaller.coords, back.coords, back.feats, *gradients

    w = tf.constant(np.random.default_rng(3).normal(size=(*[3] * len(given["shape"]), 4, 4)))
    return traced


@built
@VERSIONS
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_coordinates_unknown_while_tracing(shape, version):
    given = some_sites(shape)
    traced, empty = traced_sites(given, version), np.zeros((0, 1 + len(shape)), np.int64)
    known = traced_sites(given, "dense").python_function
    for coords, feats in ((given["coords"], given["feats"]), (empty, np.zeros((0, 4)))):
        found, wanted = (run(tf.constant(coords, tf.int64), tf.constant(feats)) for run in (traced, known))
        for mine, its in zip(found, wanted, strict=True):
            close(mine.numpy(), its.numpy(), 1e-9)


@built
@pytest.mark.parametrize("duplicates", ["first", "last", "sum", "mean"])
def test_sites_that_are_repeated_while_tracing(duplicates):
    given, chosen = some_sites((6, 7)), RNG.integers(0, 12, 30)
    coords, feats = tf.constant(given["coords"][chosen], tf.int64), tf.constant(given["feats"][chosen])
    run = traced_sites(given, "fused", duplicates)
    for mine, its in zip(run(coords, feats), run.python_function(coords, feats), strict=True):
        close(mine.numpy(), its.numpy(), 1e-9)


@built
@pytest.mark.parametrize(
    ("coords", "words"),
    [([[0, 1, 1], [0, 1, 1]], "more than once"), ([[0, 6, 1]] * 2, "outside"), ([[0, -1, 1]] * 2, "below 0")],
)
def test_symbolic_coordinates_that_are_not_allowed(coords, words):
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        traced_sites(some_sites((6, 7)), "fused")(coords, np.ones((2, 4)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="one row for each"):
        traced_sites(some_sites((6, 7)), "fused")([[0, 1, 1]], np.ones((2, 4)))


@built
def test_a_mask_unknown_while_tracing():
    @tf.function(
        autograph=False,
        input_signature=[tf.TensorSpec([None, 4, 5, 3], tf.float64), tf.TensorSpec([None] * 3, tf.bool)],
    )
    def traced(x, mask):
        return to_dense(sites_from_mask(x, mask))

    x, mask = RNG.normal(size=(2, 4, 5, 3)), RNG.random((2, 4, 5)) < 0.4
    np.testing.assert_array_equal(traced(x, mask), x * mask[..., None])


def test_symbolic_coordinates_need_the_kernels(monkeypatch):
    monkeypatch.setattr(tensorflow_site_patterns, "missing_operators", lambda settings, device: ["not built"])
    with pytest.raises(ValueError, match=r"coords is symbolic.*not built"):
        traced_sites(some_sites((6, 7)), "table").get_concrete_function()


@VERSIONS
def test_no_site_is_reached(version):
    sites, w = Sites.make([[0, 1], [0, 3]], np.ones((2, 2)), (4,)), np.ones((1, 2, 2))
    smaller = sparse_conv(sites, w, stride=2, version=version)
    assert smaller.feats.shape == (0, 2)
    assert not sparse_inverse_conv(smaller, w, sites, version=version).feats.numpy().any()


def test_images_points_and_duplicates():
    x, mask = RNG.normal(size=(2, 4, 5, 3)), RNG.random((2, 4, 5)) < 0.4
    np.testing.assert_array_equal(to_dense(sites_from_mask(x, mask)), x * mask[..., None])
    coords, feats = [[0, 1], [0, 0], [0, 1]], np.array([[1.0], [2.0], [5.0]])
    wanted = {"first": [1, 2], "last": [5, 2], "sum": [6, 2], "mean": [3, 2]}
    for duplicates, values in wanted.items():
        assert Sites.make(coords, feats, (2,), duplicates=duplicates).feats.numpy()[:, 0].tolist() == values
    points = sites_from_points(np.array([[0.1, 0.2], [0.3, 0.1], [2.5, 1.2]]), 1.0, feats)
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
