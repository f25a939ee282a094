"""SBNet's operators under their own names, called as its README calls them."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli.tensorflow import sbnet_module
from tests.block_sparse.support_tensorflow import built

pytestmark = [pytest.mark.tensorflow, built]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 7, 9, 3)).astype(np.float32)
MASK = (RNG.random((2, 7, 9, 1)) < 0.2).astype(np.float32)
SIZES = {"bsize": [3, 3], "boffset": [-1, 0], "bstride": [3, 3]}
DYNAMIC = {f"dynamic_{name}": numbers for name, numbers in SIZES.items()}


def chain(x, mask, bcount, sizes, add, transpose):
    """Reduce, gather and scatter with the operators' positional and named arguments."""
    sbnet = sbnet_module()
    indices = sbnet.reduce_mask(mask, bcount, tol=0.5, avgpool=False, **sizes)
    stack = sbnet.sparse_gather(x, indices.bin_counts, indices.active_block_indices, transpose=transpose, **sizes)
    y = sbnet.sparse_scatter(
        2 * stack,
        indices.bin_counts,
        indices.active_block_indices,
        x,
        add=add,
        atomic=False,
        transpose=transpose,
        **sizes,
    )
    return indices.active_block_indices, indices.bin_counts, stack, y


def expected(add, transpose):
    rows, blocks, y = [], [], X.copy()
    padded = np.pad(X, ((0, 0), (1, 3), (0, 3), (0, 0)))
    for n, i, j in np.ndindex(2, 3, 3):
        window = slice(max(3 * i - 1, 0), 3 * i + 2), slice(3 * j, 3 * j + 3)
        if (MASK[n][window] > 0.5).any():
            rows.append((n, i, j))
            blocks.append(padded[n, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3])
            y[n][window] = (3 if add else 2) * X[n][window]
    stack = np.stack(blocks)
    return np.array(rows), np.array([len(rows)]), stack.transpose(0, 3, 1, 2) if transpose else stack, y


@pytest.mark.parametrize("how", ["eager", "function", "session"])
@pytest.mark.parametrize("sizes", [SIZES, DYNAMIC], ids=["bsize", "dynamic_bsize"])
@pytest.mark.parametrize(("add", "transpose"), [(False, False), (True, False), (False, True), (True, True)])
def test_the_chain_of_the_readme(how, sizes, add, transpose):
    if how == "session":
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            x, mask = (tf.compat.v1.placeholder(tf.float32, [None] * 4) for _ in range(2))
            made = chain(x, mask, tf.constant([3, 3], dtype=tf.int32), sizes, add, transpose)
            found = session.run(made, {x: X, mask: MASK})
    else:
        function = tf.function(chain) if how == "function" else chain
        found = function(tf.constant(X), tf.constant(MASK), tf.constant([3, 3], dtype=tf.int32), sizes, add, transpose)
    assert found[0].dtype == (np.int16 if how == "session" else tf.int16)
    for mine, wanted in zip(found, expected(add, transpose), strict=True):
        np.testing.assert_array_equal(mine, wanted)


def test_an_empty_mask_gives_the_first_block():
    indices = sbnet_module().reduce_mask(0 * MASK, dynamic_bcount=[3, 3], tol=0.5, **DYNAMIC)
    assert indices.active_block_indices.numpy().tolist() == [[0, 0, 0]]
    assert indices.bin_counts.numpy().tolist() == [1]


def test_scatter_into_a_variable_of_each_kind():
    sbnet, blocks = sbnet_module(), np.ones((1, 3, 3, 3), np.float32)
    rows, count = np.array([[0, 1, 1]], np.int16), np.array([1], np.int32)
    wanted = X.copy()
    wanted[0, 2:5, 3:6] = 1
    variable = tf.Variable(X)
    before = variable.read_value()
    y = sbnet.sparse_scatter_var(blocks, count, rows, variable, add=False, **SIZES)
    for value, should in ((variable, wanted), (y, wanted), (before, X)):
        np.testing.assert_array_equal(value, should)
    held = y
    sbnet.sparse_scatter_var(blocks, count, rows, variable, add=True, **SIZES)
    np.testing.assert_array_equal(held, wanted)
    np.testing.assert_array_equal(variable.numpy()[0, 2:5, 3:6], 2)
    for resource in (True, False):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            graph_variable = tf.compat.v1.Variable(X, use_resource=resource)
            session.run(tf.compat.v1.global_variables_initializer())
            scatter = sbnet.sparse_scatter_var(blocks, count, rows, graph_variable, add=False, **SIZES)
            np.testing.assert_array_equal(session.run(scatter), wanted)
            np.testing.assert_array_equal(session.run(graph_variable), wanted)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("transpose", [False, True])
def test_gradients_where_blocks_overlap(add, transpose):
    sbnet = sbnet_module()
    rows, count = np.array([[0, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]], np.int16), np.array([4], np.int32)
    sizes = {"bsize": [3, 2], "bstride": [2, 1], "boffset": [-1, 0]}
    x, base = tf.constant(X.astype(np.float64)), tf.constant(RNG.normal(size=X.shape))

    def function(x, base):
        stack = sbnet.sparse_gather(x, count, rows, transpose=transpose, **sizes)
        flags = {"add": add, "atomic": True, "transpose": transpose}
        return sbnet.sparse_scatter(stack * stack, count, rows, base, **flags, **sizes)

    analytic, numeric = tf.test.compute_gradient(function, [x, base])
    for mine, its in zip(analytic, numeric, strict=True):
        np.testing.assert_allclose(mine, its, rtol=0, atol=1e-7)


def test_what_is_wrong_is_refused():
    sbnet, one = sbnet_module(), np.array([1], np.int32)
    with pytest.raises(TypeError, match="bsize is missing"):
        sbnet.sparse_gather(X, one, np.zeros((1, 3), np.int16), bstride=[3, 3])
    with pytest.raises(TypeError, match="size is no argument"):
        sbnet.sparse_gather(X, one, np.zeros((1, 3), np.int16), size=[3, 3], **SIZES)
    for rows, counts in (([[2, 0, 0]], [1]), ([[0, -1, 0]], [1]), ([[0, 0, 0]], [2])):
        with pytest.raises(tf.errors.InvalidArgumentError):
            sbnet.sparse_gather(X, np.array(counts, np.int32), np.array(rows, np.int16), **SIZES)
    stack, row = np.ones((1, 3, 3, 2), np.float32), np.zeros((1, 3), np.int16)
    with pytest.raises(tf.errors.InvalidArgumentError, match="blocks has shape"):
        sbnet.sparse_scatter(stack, one, row, X, add=False, **SIZES)
    with pytest.raises(tf.errors.InvalidArgumentError, match="atomic"):
        sbnet.sparse_scatter(X, one, row, X, add=True, bsize=[3, 3], bstride=[2, 3])
