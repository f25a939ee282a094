"""The oracle against numbers that were printed elsewhere, closed forms and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from eqconv_cli.backends.feature_steered.reference import reference, reference_gradients
from tests.feature_steered.support import FLOATS, PARAMETERS, random_problem, tied

PROBLEMS = {
    "plain": random_problem(0),
    "padded": random_problem(1, batch=(3,), edges=60, sizes=[7, 0, 4]),
    "bipartite": {**random_problem(2, batch=(2,), centres=4, sources=6, edges=25), "data_out": np.ones((2, 4, 3)) / 3},
    "fewer centres": random_problem(3, centres=5, sources=7),
    "two batch dimensions": random_problem(4, batch=(2, 2), centres=3, edges=25),
}


@pytest.fixture(params=PROBLEMS.values(), ids=PROBLEMS)
def inputs(request):
    return request.param


def gradients(inputs, seed=1):
    g = np.random.default_rng(seed).normal(size=reference(inputs)["output"].shape)
    return g, reference_gradients(inputs, {"output": g})


def preset(u, v, c, w, b):
    pairs = np.stack(np.meshgrid(range(3), range(3), indexing="ij"), axis=-1).reshape(-1, 2)
    return {
        "data": np.array([[1.0], [2.0], [3.0]]),
        "indices": pairs,
        "values": np.full(9, 1 / 3),
        "dense_shape": np.array([3, 3]),
        "var_u": np.array([u]),
        "var_v": np.array([v]),
        "var_c": np.array(c),
        "var_w": np.array(w).reshape(-1, 1, 1),
        "var_b": np.array([b]),
    }


@pytest.mark.parametrize(
    ("inputs", "printed"),
    [
        (preset([0.5], [1.3], [-0.7], [0.8], 3.0), [4.6, 4.6, 4.6]),
        (
            preset([0.5, 0.2], [0.3, 0.4], [-0.7, 0.15], [0.8, 1.1], 3.0),
            [5.011706928844621, 4.971030281984818, 4.927388658982911],
        ),
    ],
    ids=["M=1", "M=2"],
)
def test_numbers_of_the_published_tests(inputs, printed):
    np.testing.assert_allclose(reference(inputs)["output"][:, 0], printed, rtol=1e-14)


def dense_rows(inputs):
    """N as a dense array; duplicates added up."""
    dense = np.zeros(tuple(inputs["dense_shape"]))
    np.add.at(dense, tuple(inputs["indices"].T), inputs["values"])
    return dense


def kept(inputs):
    rows = inputs["dense_shape"][-2]
    sizes = inputs.get("sizes", np.full(inputs["data"].shape[:-2], rows))
    return (np.arange(rows) < np.asarray(sizes)[..., None])[..., None]


def test_one_weight_matrix_is_a_plain_graph_convolution(inputs):
    one = {**inputs, **{name: inputs[name][..., :1] for name in ("var_u", "var_v", "var_c")}}
    one["var_w"] = inputs["var_w"][:1]
    expected = dense_rows(inputs) @ inputs["data"] @ one["var_w"][0] + inputs["var_b"]
    np.testing.assert_allclose(reference(one)["output"], np.where(kept(inputs), expected, 0.0), atol=1e-13)


def test_without_u_and_v_the_matrices_collapse(inputs):
    flat = {**inputs, "var_u": 0 * inputs["var_u"], "var_v": 0 * inputs["var_v"]}
    matrix = np.tensordot(softmax(inputs["var_c"]), inputs["var_w"], 1)
    expected = dense_rows(inputs) @ inputs["data"] @ matrix + inputs["var_b"]
    np.testing.assert_allclose(reference(flat)["output"], np.where(kept(inputs), expected, 0.0), atol=1e-13)


def test_self_edges_of_the_translation_invariant_form_do_not_see_u():
    inputs = tied(random_problem(5, edges=7))
    inputs["indices"], inputs["values"] = np.repeat(np.arange(7), 2).reshape(-1, 2), np.ones(7)
    matrix = np.tensordot(softmax(inputs["var_c"]), inputs["var_w"], 1)
    np.testing.assert_allclose(reference(inputs)["output"], inputs["data"] @ matrix + inputs["var_b"], atol=1e-13)


def test_logits_of_one_edge_by_hand():
    """Two vertices, one edge 0 <- 1: which of x_i, x_j goes to u, v and the sum shows."""
    inputs = {
        "data": np.array([[2.0], [3.0]]),
        "indices": np.array([[0, 1]]),
        "values": np.array([5.0]),
        "dense_shape": np.array([2, 2]),
        "var_u": np.array([[1.0, 0.0]]),
        "var_v": np.array([[0.0, 0.5]]),
        "var_c": np.array([0.25, 0.0]),
        "var_w": np.array([[[1.0]], [[10.0]]]),
        "var_b": np.array([7.0]),
    }
    q = 1 / (1 + np.exp(1.5 - 2.25))
    expected = [[7 + 5 * 3 * (q + 10 * (1 - q))], [7.0]]
    np.testing.assert_allclose(reference(inputs)["output"], expected, rtol=1e-14)


def test_gradients_by_central_differences(inputs):
    g, exact = gradients(inputs)
    assert set(exact) == set(FLOATS) & set(inputs)

    def objective(name, array):
        return float((g * reference({**inputs, name: array})["output"]).sum())

    step = 1e-5
    for name, gradient in exact.items():
        assert gradient.shape == inputs[name].shape
        numeric = np.zeros_like(gradient)
        for at in np.ndindex(*gradient.shape):
            ahead, behind = inputs[name].copy(), inputs[name].copy()
            ahead[at] += step
            behind[at] -= step
            numeric[at] = (objective(name, ahead) - objective(name, behind)) / (2 * step)
        scale = np.abs(numeric).max()
        assert scale > 0
        assert np.abs(gradient - numeric).max() <= 1e-6 * scale, name


def test_euler_identities(inputs):
    g, d = gradients(inputs)
    y = reference(inputs)["output"]
    by_output = (g * np.where(kept(inputs), y - inputs["var_b"], 0.0)).sum()
    np.testing.assert_allclose((inputs["values"] * d["values"]).sum(), by_output, rtol=1e-11)
    np.testing.assert_allclose((inputs["var_w"] * d["var_w"]).sum(), by_output, rtol=1e-11)
    np.testing.assert_allclose(d["var_b"], np.where(kept(inputs), g, 0).reshape(-1, g.shape[-1]).sum(0), atol=1e-12)


def test_gauge_sums_vanish(inputs):
    _, d = gradients(inputs)
    for name in ("var_u", "var_v", "var_c"):
        assert np.abs(d[name]).max() > 1e-2
        np.testing.assert_allclose(d[name].sum(-1), 0.0, atol=1e-12)


def test_padding_is_zero_in_values_and_gradients():
    inputs = PROBLEMS["padded"]
    _, d = gradients(inputs)
    outside = ~kept(inputs)[..., 0]
    assert (reference(inputs)["output"][outside] == 0).all()
    assert (d["data"][outside] == 0).all()


def test_large_logits_stay_finite():
    inputs = random_problem(6)
    inputs["var_u"] = inputs["var_u"] * 1e4
    assert np.isfinite(reference(inputs)["output"]).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients(inputs)[1].values())


def test_inputs_are_left_as_they_are(inputs):
    before = {name: array.copy() for name, array in inputs.items()}
    gradients(inputs)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, before[name])


def test_parameters_have_gradients_of_their_shape_without_any_edge():
    inputs = random_problem(7, edges=0)
    _, d = gradients(inputs)
    np.testing.assert_array_equal(reference(inputs)["output"], np.broadcast_to(inputs["var_b"], (7, 4)))
    for name in PARAMETERS[:-1]:
        assert d[name].shape == inputs[name].shape and (d[name] == 0).all()
