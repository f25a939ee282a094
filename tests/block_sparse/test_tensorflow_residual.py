"""The residual unit in TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.backends.block_sparse import reference
from eqconv_cli.backends.block_sparse.tensorflow_residual import KSIZES
from eqconv_cli.backends.block_sparse.tensorflow_runs import prepare
from eqconv_cli.tensorflow import (
    BatchNorm,
    BlockIndex,
    ResidualWeights,
    block_params_chain,
    block_pixels,
    masked_residual_unit,
    residual_unit,
    sparse_residual_unit,
)
from tests.block_sparse.support_tensorflow import FUSED, MODES, address, arrays, built, check, close, own

pytestmark = pytest.mark.tensorflow
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 7, 11, 3))
BORDERS = pytest.mark.parametrize("border", ["dense", "original"])


def norm(channels):
    return np.stack([*RNG.normal(size=(3, channels)), RNG.random(channels) + 0.5])


def unit(activated=True, out=3, project=False):
    made = {"w1": RNG.normal(size=(3, 2)), "w2": RNG.normal(size=(3, 3, 2, 2)), "w3": RNG.normal(size=(2, out))}
    made |= {"bn2": norm(2), "bn3": norm(2)}
    return (
        made | ({"bn1": norm(3)} if activated else {}) | ({"w_project": RNG.normal(size=(3, out))} if project else {})
    )


def weights(arrays_of_unit):
    norms = {name: BatchNorm(*a) for name, a in arrays_of_unit.items() if name.startswith("bn")}
    return ResidualWeights(**{"bn1": None, **arrays_of_unit, **norms})


def problem(border, bn, strides=(1, 1), bsize=(5, 6), repeat=False, **options):
    params = block_params_chain(X.shape, bsize, KSIZES, strides)
    rows = np.argwhere(RNG.random((2, *params.bcount)) < 0.6).astype(np.int32)
    rows = np.concatenate([rows, rows[:1]]) if repeat else rows
    return {"x": X, **arrays(index=rows, bsize=bsize, border=border, bn=bn, strides=strides), **unit(**options)}


@BORDERS
@MODES
@pytest.mark.parametrize("version", ["blocks", "pixels", "dense", FUSED])
@pytest.mark.parametrize("activated", [True, False])
def test_in_blocks(version, activated, border, mode):
    if version == "dense" and border == "original":
        with pytest.raises(ValueError, match="version='dense' has border='dense'"):
            prepare(problem(border, "inference"), "float64", "cpu", operation="residual", version=version).run()
        return
    check("residual", problem(border, "inference", repeat=True, activated=activated), version, mode)


@BORDERS
@MODES
@pytest.mark.parametrize("bn", ["stack", "active"])
def test_statistics_of_the_batch(bn, border, mode):
    check("residual", problem(border, bn), "blocks", mode)


@BORDERS
@pytest.mark.parametrize("bn", ["inference", "stack", "active"])
@pytest.mark.parametrize("project", [True, False])
def test_strides(project, bn, border):
    options = {"project": True, "out": 5} if project else {}
    check("residual", problem(border, bn, (2, 2), (7, 9), **options), "blocks")


@BORDERS
@MODES
@pytest.mark.parametrize("version", ["pixels", "dense", FUSED])
@pytest.mark.parametrize("activated", [True, False])
def test_at_pixels(version, activated, border, mode):
    pixels = np.flatnonzero(RNG.random(X.shape[:3]) < 0.3).astype(np.int32)
    if version == "dense" and border == "original":
        return
    check("masked_residual", {"x": X, **arrays(pixels=pixels, border=border), **unit(activated)}, version, mode)


@pytest.mark.parametrize("version", ["blocks", FUSED])
def test_all_blocks_give_the_dense_unit_and_in_place_writes_it(version):
    params, given = block_params_chain(X.shape, (6, 5), KSIZES), weights(unit())
    rows = np.argwhere(np.ones((2, *params.bcount))).astype(np.int32)
    index = BlockIndex(tf.constant(rows), tf.constant([len(rows)]))
    dense = residual_unit(X, given).numpy()
    close(sparse_residual_unit(X, index, params, given, version=version).numpy(), dense, 1e-12)
    variable = tf.Variable(X)
    assert sparse_residual_unit(variable, index, params, given, in_place=True, version=version) is variable
    close(variable.numpy(), dense, 1e-12)
    original = sparse_residual_unit(X, index, params, given, border="original", version=version).numpy()
    close(original[:, 1:-1, 1:-1], dense[:, 1:-1, 1:-1], 1e-12)
    assert np.abs(original - dense).max() > 1e-3


@built
@MODES
def test_the_kernel_writes_into_the_memory_of_the_variable(mode):
    drawn = unit()
    # So that the last ReLU lets something pass: the unit changes the image.
    drawn["bn3"][1] = 3.0
    params, given = block_params_chain(X.shape, (6, 5), KSIZES), weights(drawn)
    index = BlockIndex(tf.constant([[1, 0, 0], [0, 1, 1]]), tf.constant([2]))
    pixels = block_pixels(index, params, 2)
    wanted = sparse_residual_unit(X, index, params, given, version="blocks").numpy()
    variable = own(X)
    runs = (
        lambda: sparse_residual_unit(variable, index, params, given, in_place=True, version="fused"),
        lambda: masked_residual_unit(variable, pixels, given, out=variable, version="fused"),
        lambda: masked_residual_unit(tf.constant(X), pixels, given, out=variable, version="fused"),
    )
    for change in runs:
        variable.assign(tf.constant(X) + 0)
        before = address(variable)

        def run(change=change):
            assert change() is variable

        (run if mode == "eager" else tf.function(run, autograph=False))()
        assert address(variable) == before
        close(variable.numpy(), wanted, 1e-12)
    old = tf.convert_to_tensor(variable)
    runs[0]()
    close(old.numpy(), wanted, 1e-12)
    assert np.abs(variable.numpy() - wanted).max() > 1e-3


@BORDERS
def test_no_block(border):
    index = BlockIndex(tf.zeros([0, 3], tf.int32), tf.zeros([1], tf.int32))
    params, x = block_params_chain(X.shape, (6, 5), KSIZES), X.astype(np.float32)
    given = weights({name: array.astype(np.float32) for name, array in unit().items()})
    np.testing.assert_array_equal(sparse_residual_unit(x, index, params, given, border=border, version="blocks"), x)


@pytest.mark.parametrize("version", ["dense", "pixels", FUSED])
@MODES
@pytest.mark.parametrize("reduced", [True, False])
def test_pixels_of_a_run_are_listed_or_found_of_its_mask(reduced, mode, version):
    mask = RNG.random(X.shape[:3]) < 0.3
    inputs = {"x": X, **arrays(pixels=np.flatnonzero(mask).astype(np.int32), border="dense"), **unit()}
    found = arrays(mask=mask.astype(np.float64), tol=0.5, include_reduce=True, pixels=np.zeros(0, np.int32))
    given = {**inputs, **found} if reduced else inputs
    run = prepare(given, "float64", "cpu", operation="masked_residual", version=version, mode=mode)
    close(run.run()["y"].numpy(), reference.masked_residual(inputs)["y"], 1e-9)


@MODES
def test_the_dense_unit_at_the_tiles(mode):
    check("residual", problem("dense", "inference", repeat=True), "dense", mode)


def test_errors():
    params, given = block_params_chain(X.shape, (6, 5), KSIZES), weights(unit())
    index = BlockIndex(tf.zeros([0, 3], tf.int32), tf.zeros([1], tf.int32))
    for words, options in (("border", {"border": "other"}), ("bn", {"bn": "other"})):
        with pytest.raises(ValueError, match=words):
            sparse_residual_unit(X, index, params, given, **options)
    with pytest.raises(ValueError, match="bn='stack'"):
        sparse_residual_unit(X, index, params, given, bn="stack", version="fused")
    with pytest.raises(ValueError, match="w2 has shape"):
        residual_unit(X, given._replace(w2=np.ones((3, 3, 2, 3))))
    with pytest.raises(TypeError, match="Variable"):
        sparse_residual_unit(X, index, params, given, in_place=True)
