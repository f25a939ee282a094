"""Identities of the operator on random graphs; they hold whatever the numbers are, so no oracle is needed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.feature_steered.support import assert_close, run_torch, tied

VERSIONS = ("v1", "v2", "v3", "gather_sum", "sparse_matmul", "pyg")
TOLERANCE = 1e-11

versions = pytest.mark.parametrize("version", VERSIONS)
few = settings(max_examples=20, deadline=None)


@st.composite
def graphs(draw):
    """Blocks of 0 to 6 vertices with 0 to 12 edges each: duplicates, isolated vertices and empty blocks occur."""
    blocks, vertices = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    sizes = np.array(draw(st.lists(st.integers(0, vertices), min_size=blocks, max_size=blocks)))
    edges = []
    for block, size in enumerate(sizes.tolist()):
        vertex = st.integers(0, max(0, size - 1))
        pairs = draw(st.lists(st.tuples(vertex, vertex), max_size=12)) if size else []
        edges += [(block, *pair) for pair in pairs]
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    channels, outputs, matrices = (draw(st.integers(1, 4)) for _ in range(3))
    return {
        "data": rng.normal(size=(blocks, vertices, channels)),
        "indices": rng.permutation(np.array(edges, np.int64).reshape(-1, 3)),
        "values": rng.normal(size=len(edges)),
        "dense_shape": np.array([blocks, vertices, vertices]),
        "sizes": sizes,
        "var_u": rng.normal(size=(channels, matrices)),
        "var_v": rng.normal(size=(channels, matrices)),
        "var_c": rng.normal(size=matrices),
        "var_w": rng.normal(size=(matrices, channels, outputs)),
        "var_b": rng.normal(size=outputs),
    }


def output(inputs, version, **changes):
    return run_torch({**inputs, **changes}, version=version)[0]


def inside(inputs):
    return (np.arange(inputs["data"].shape[1]) < inputs["sizes"][:, None])[..., None]


@versions
@given(graphs())
@few
def test_linear_in_the_weights_of_the_edges(version, inputs):
    w = inputs["values"]
    other = np.cos(np.arange(len(w)))
    y = [output(inputs, version, values=values) for values in (w, other, 2 * w - 3 * other)]
    bias = np.where(inside(inputs), inputs["var_b"], 0.0)
    assert_close(y[2], 2 * y[0] - 3 * y[1] + 2 * bias, TOLERANCE)


@versions
@given(graphs())
@few
def test_linear_in_the_weight_matrices(version, inputs):
    w = inputs["var_w"]
    other = np.cos(np.arange(w.size)).reshape(w.shape)
    y = [output(inputs, version, var_w=matrices) for matrices in (w, other, 2 * w - 3 * other)]
    bias = np.where(inside(inputs), inputs["var_b"], 0.0)
    assert_close(y[2], 2 * y[0] - 3 * y[1] + 2 * bias, TOLERANCE)


@versions
@given(graphs())
@few
def test_affine_in_the_bias(version, inputs):
    shift = np.arange(1.0, 1 + len(inputs["var_b"]))
    moved = output(inputs, version, var_b=inputs["var_b"] + shift)
    assert_close(moved, output(inputs, version) + np.where(inside(inputs), shift, 0.0), TOLERANCE)


@versions
@pytest.mark.parametrize("name", ["var_u", "var_v", "var_c"])
@given(graphs())
@few
def test_gauge(name, version, inputs):
    """One vector added to all columns of u, of v, or one number to c."""
    shift = np.cos(np.arange(inputs[name].shape[0]))[:, None] if name != "var_c" else 1.7
    assert_close(output(inputs, version, **{name: inputs[name] + shift}), output(inputs, version), TOLERANCE)


@versions
@given(graphs())
@few
def test_the_assignment_of_the_tied_form_is_translation_invariant(version, inputs):
    """q stays when one vector is added to every x.

    A channel of ones that the logits do not see, and matrices that see no other channel, make y a sum of q alone.
    """
    tall = tied({**inputs, "var_u": np.vstack([inputs["var_u"], 0 * inputs["var_u"][:1]])})
    ones = np.ones_like(inputs["data"][..., :1])
    matrices, channels, outputs = inputs["var_w"].shape
    tall["var_w"] = np.concatenate([np.zeros((matrices, channels, outputs)), inputs["var_w"][:, :1]], axis=1)
    y = [
        output({**tall, "data": np.concatenate([inputs["data"] + shift, ones], axis=-1)}, version)
        for shift in (0.0, np.linspace(-2.0, 3.0, channels))
    ]
    assert_close(y[1], y[0], TOLERANCE)


@versions
@given(graphs(), st.randoms(use_true_random=False))
@few
def test_relabelling_the_vertices_permutes_the_rows(version, inputs, random):
    moved = {**inputs, "data": inputs["data"].copy(), "indices": inputs["indices"].copy()}
    expected = output(inputs, version)
    for block, size in enumerate(inputs["sizes"].tolist()):
        new = np.array(random.sample(range(size), size), int)
        mine = inputs["indices"][:, 0] == block
        moved["indices"][mine, 1:] = new[inputs["indices"][mine, 1:]]
        for array, source in ((moved["data"], inputs["data"]), (expected, expected.copy())):
            array[block, new] = source[block, :size]
    assert_close(output(moved, version), expected, TOLERANCE)


@versions
@given(graphs(), st.randoms(use_true_random=False))
@few
def test_the_order_of_the_edges_does_not_matter(version, inputs, random):
    order = np.array(random.sample(range(len(inputs["values"])), len(inputs["values"])), int)
    moved = output(inputs, version, indices=inputs["indices"][order], values=inputs["values"][order])
    assert_close(moved, output(inputs, version), TOLERANCE)


@versions
@given(graphs())
@few
def test_blocks_do_not_see_each_other(version, inputs):
    expected = output(inputs, version)
    for block in range(len(inputs["sizes"])):
        mine = inputs["indices"][:, 0] == block
        size = int(inputs["sizes"][block])
        alone = {name: array for name, array in inputs.items() if name != "sizes"}
        alone |= {
            "data": inputs["data"][block, :size],
            "indices": inputs["indices"][mine, 1:],
            "values": inputs["values"][mine],
            "dense_shape": np.array([size, size]),
        }
        assert_close(output(alone, version), expected[block, :size], TOLERANCE)


@versions
@given(graphs())
@few
def test_euler_identities_of_the_gradients(version, inputs):
    y = output(inputs, version)
    g = np.cos(np.arange(y.size)).reshape(y.shape)
    _, d = run_torch(inputs, g, version=version)
    by_output = (g * np.where(inside(inputs), y - inputs["var_b"], 0.0)).sum()
    scale = 1 + np.abs(g * y).sum()
    for name in ("values", "var_w"):
        assert abs((inputs[name] * d.get(name, 0.0)).sum() - by_output) <= TOLERANCE * scale
    for name in ("var_u", "var_v", "var_c"):
        assert np.abs(np.sum(d.get(name, 0.0), axis=-1)).max() <= TOLERANCE * scale
