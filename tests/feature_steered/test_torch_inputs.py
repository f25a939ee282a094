"""What the PyTorch operator accepts: every form of neighbourhood, batches, sizes, empty and extreme graphs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch

from eqconv_cli.backends.feature_steered.problems import ragged
from eqconv_cli.backends.feature_steered.torch_runs import prepare
from eqconv_cli.torch import Coo, Csr, NeighborhoodPlan, feature_steered_convolution, plan_neighborhood
from tests.feature_steered.support import (
    FLOATS,
    PARAMETERS,
    assert_close,
    assert_gradients,
    oracle,
    random_problem,
    run_torch,
    tied,
)

VERSIONS = ("auto", "v1", "v2", "v3", "gather_sum", "sparse_matmul", "pyg")


def convolve(inputs, neighbors, sizes=None, **options):
    data = torch.from_numpy(inputs["data"])
    return feature_steered_convolution(
        data, neighbors, sizes, *(torch.from_numpy(inputs[name]) for name in PARAMETERS), **options
    )


def in_row_order(inputs):
    """The same graph with its edges sorted, so that CSR holds them in the same order."""
    order = np.lexsort(inputs["indices"].T[::-1])
    return {**inputs, "indices": inputs["indices"][order], "values": inputs["values"][order]}


# Forms of neighbourhoods.


def coo_tensor(inputs, values, coalesced=False):
    shape = tuple(inputs["dense_shape"].tolist())
    return torch.sparse_coo_tensor(
        torch.from_numpy(inputs["indices"].T.copy()), values, shape, is_coalesced=coalesced, check_invariants=False
    )


def pointer(inputs):
    rows = int(inputs["dense_shape"][-2])
    return np.concatenate([[0], np.cumsum(np.bincount(inputs["indices"][:, -2], minlength=rows))])


def csr_tensor(inputs, values):
    shape = tuple(inputs["dense_shape"].tolist())
    columns = torch.from_numpy(inputs["indices"][:, 1].copy())
    return torch.sparse_csr_tensor(torch.from_numpy(pointer(inputs)), columns, values, shape, check_invariants=False)


FORMS = {
    "Coo": lambda p, w: Coo(p["indices"], w, p["dense_shape"]),
    "tuple of tensors": lambda p, w: (torch.from_numpy(p["indices"]), w, torch.Size(p["dense_shape"].tolist())),
    "tuple with int32 indices": lambda p, w: (p["indices"].astype(np.int32), w, tuple(p["dense_shape"])),
    "Csr": lambda p, w: Csr(pointer(p), p["indices"][:, 1], w, int(p["dense_shape"][1])),
    "tuple with 32-bit indptr": lambda p, w: (
        torch.from_numpy(pointer(p)).int(), torch.from_numpy(p["indices"][:, 1]), w, int(p["dense_shape"][1])
    ),
    "plan": lambda p, w: plan_neighborhood(Coo(p["indices"], w, p["dense_shape"])),
    "uncoalesced COO tensor": coo_tensor,
    "COO tensor": lambda p, w: coo_tensor(p, w, coalesced=True),
    "CSR tensor": csr_tensor,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sources", [6, 9])
def test_forms_of_neighbourhoods_agree_and_lead_the_gradient_to_the_weights(form, sources):
    inputs = in_row_order(random_problem(0, centres=6, sources=sources, edges=40))
    if form in ("COO tensor", "CSR tensor"):  # these hold an entry once
        _, first = np.unique(inputs["indices"], axis=0, return_index=True)
        inputs = {**inputs, "indices": inputs["indices"][first], "values": inputs["values"][first]}
    expected, g, gradients = oracle(inputs)
    weights = torch.from_numpy(inputs["values"]).requires_grad_()
    output = convolve(inputs, FORMS[form](inputs, weights))
    assert_close(output.detach().numpy(), expected, 1e-12)
    output.backward(torch.from_numpy(g))
    assert_gradients({"values": weights.grad.numpy()}, {"values": gradients["values"]}, 1e-12)


@pytest.mark.parametrize("form", ["coo_matrix", "csr_matrix", "csc_matrix", "coo_array", "csr_array", "lil_array"])
def test_scipy_matrices(form):
    inputs = random_problem(1, edges=25)
    dense = scipy.sparse.coo_matrix((inputs["values"], inputs["indices"].T), shape=tuple(inputs["dense_shape"]))
    matrix = getattr(scipy.sparse, form)(dense)
    assert_close(convolve(inputs, matrix).numpy(), oracle(inputs)[0], 1e-12)


def test_batched_csr_tensors_hold_equally_many_entries_a_block():
    inputs = random_problem(2, batch=(2, 2), centres=4, edges=0)
    pairs = np.stack([np.sort(np.random.default_rng(block).choice(16, 5, replace=False)) for block in range(4)])
    rows, columns = np.divmod(pairs, 4)
    block = np.stack(np.unravel_index(np.repeat(np.arange(4), 5), (2, 2)), axis=1)
    inputs["indices"] = np.column_stack([block, rows.reshape(-1), columns.reshape(-1)])
    inputs["values"] = np.random.default_rng(9).normal(size=20)
    pointers = np.stack([np.concatenate([[0], np.cumsum(np.bincount(row, minlength=4))]) for row in rows])
    weights = torch.from_numpy(inputs["values"]).requires_grad_()
    matrix = torch.sparse_csr_tensor(
        torch.from_numpy(pointers).reshape(2, 2, 5),
        torch.from_numpy(columns).reshape(2, 2, 5),
        weights.reshape(2, 2, 5),
        (2, 2, 4, 4),
    )
    expected, g, gradients = oracle(inputs)
    output = convolve(inputs, matrix)
    assert_close(output.detach().numpy(), expected, 1e-12)
    output.backward(torch.from_numpy(g))
    assert_gradients({"values": weights.grad.numpy()}, {"values": gradients["values"]}, 1e-12)


def test_a_plan_serves_many_calls_and_other_weights():
    inputs = random_problem(3)
    plan = plan_neighborhood((inputs["indices"], torch.from_numpy(inputs["values"]), inputs["dense_shape"]))
    assert plan_neighborhood(plan) is plan
    for factor in (1.0, -2.0):
        weighted = {**inputs, "values": factor * inputs["values"]}
        output = convolve(inputs, plan.with_values(factor * plan.values))
        assert_close(output.numpy(), oracle(weighted)[0], 1e-12)


def test_a_plan_knows_its_sizes():
    inputs = random_problem(4, batch=(2,), sizes=[7, 3])
    neighbors = (inputs["indices"], torch.from_numpy(inputs["values"]), inputs["dense_shape"])
    plan = plan_neighborhood(neighbors, inputs["sizes"])
    for sizes in (None, inputs["sizes"], torch.tensor([7, 3]), [7, 3]):
        assert_close(convolve(inputs, plan, sizes).numpy(), oracle(inputs)[0], 1e-12)
    with pytest.raises(ValueError, match=r"sizes is \[7, 4\] but neighbors was planned with \[7, 3\]"):
        convolve(inputs, plan, torch.tensor([7, 4]))
    with pytest.raises(ValueError, match=r"sizes is \[7, 3\] but neighbors was planned with \[7, 7\]"):
        convolve(inputs, plan_neighborhood(neighbors, [7, 7]), [7, 3])


def test_entries_outside_sizes_are_refused_or_dropped_with_gradient_zero():
    inputs = random_problem(5, batch=(2,), edges=60)
    weights = torch.from_numpy(inputs["values"]).requires_grad_()
    neighbors, sizes = Coo(inputs["indices"], weights, inputs["dense_shape"]), np.array([4, 6])
    with pytest.raises(ValueError, match=r"which keeps only \d vertices \(sizes\)"):
        convolve(inputs, neighbors, sizes)
    inside = (inputs["indices"][:, 1:] < sizes[inputs["indices"][:, 0], None]).all(1)
    filtered = {**inputs, "sizes": sizes, "indices": inputs["indices"][inside], "values": inputs["values"][inside]}
    expected, g, gradients = oracle(filtered)
    output = convolve(inputs, plan_neighborhood(neighbors, sizes, outside_sizes="drop"))
    assert_close(output.detach().numpy(), expected, 1e-12)
    output.backward(torch.from_numpy(g))
    assert (weights.grad[torch.from_numpy(~inside)] == 0).all()
    assert_close(weights.grad[torch.from_numpy(inside)].numpy(), gradients["values"], 1e-12)


@pytest.mark.parametrize(
    ("neighbors", "kind", "text"),
    [
        (torch.eye(7), ValueError, "neighbors is a dense .* must be sparse.*to_sparse"),
        (np.eye(7), ValueError, "neighbors is a dense .* must be sparse"),
        ([[0, 1]], TypeError, "neighbors is a list: expected"),
        ("graph", TypeError, "neighbors is a str: expected"),
        ((np.zeros((2, 2)), torch.ones(2), (7, 7)), TypeError, "neighbors.indices has dtype float64"),
        ((np.zeros((2, 2), int), torch.ones(3).double(), (7, 7)), ValueError, "2 indices but 3 values"),
        ((np.array([0, 2]), np.zeros(3, int), torch.ones(3)), ValueError, "runs from 0 to 2: expected 0 to the 3"),
        ((np.array([[0, 7]]), torch.ones(1).double(), (7, 7)), IndexError, "edge 0 has index 7 on axis 1, outside"),
    ],
)
def test_what_is_no_neighbourhood(neighbors, kind, text):
    with pytest.raises(kind, match=text):
        convolve(random_problem(6), neighbors)


# Extreme graphs.


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "inputs",
    [
        random_problem(0, edges=0),
        random_problem(1, centres=0, edges=0),
        random_problem(2, batch=(0,), edges=0),
        random_problem(3, batch=(2, 0, 3), edges=0),
        random_problem(4, batch=(3,), sizes=[0, 0, 0]),
        random_problem(5, centres=0, sources=4, edges=0),
        random_problem(6, centres=1, edges=5),
        random_problem(7, batch=(4,), centres=1, edges=9, matrices=5),
    ],
    ids=["no edges", "V=0", "no blocks", "no blocks, rank 3", "sizes 0", "no centres", "V=1", "blocks of V=1"],
)
def test_empty_and_tiny_graphs(inputs, version):
    expected, g, gradients = oracle(inputs)
    output, found = run_torch(inputs, g, version=version)
    assert_close(output, expected, 1e-12)
    for name, gradient in gradients.items():
        assert_close(found.get(name, np.zeros_like(gradient)), gradient, 1e-12)


@pytest.mark.parametrize("version", VERSIONS)
def test_isolated_vertices_give_exactly_the_bias(version):
    inputs = random_problem(8, centres=9)
    keep = ((inputs["indices"] != 0) & (inputs["indices"] < 6)).all(1)
    inputs["indices"], inputs["values"] = inputs["indices"][keep], inputs["values"][keep]
    output, gradients = run_torch(inputs, np.ones((9, 4)), version=version)
    isolated = [0, 6, 7, 8]
    np.testing.assert_array_equal(output[isolated], np.broadcast_to(inputs["var_b"], (4, 4)))
    assert (gradients["data"][isolated] == 0).all()


@pytest.mark.parametrize("version", VERSIONS)
def test_padding_is_exactly_zero_and_never_read(version):
    inputs = ragged(0, channels=3, outputs=4, matrices=2)
    padding = np.arange(11) >= inputs["sizes"][:, None]
    inputs["data"][padding] = np.nan
    g = np.ones((4, 11, 4))
    g[padding] = np.nan
    output, gradients = run_torch(inputs, g, version=version)
    assert (output[padding] == 0).all() and np.isfinite(output).all()
    assert (gradients["data"][padding] == 0).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_edges_that_occur_twice_both_count(version):
    inputs = random_problem(9, edges=12)
    twice = {**inputs, "indices": np.repeat(inputs["indices"], 2, 0), "values": np.repeat(inputs["values"], 2)}
    twice["values"][::2] *= 3
    once = {**inputs, "values": 4 * inputs["values"]}
    expected, g, gradients = oracle(once)
    output, found = run_torch(twice, g, version=version)
    assert_close(output, expected, 1e-12)
    assert_close(found["values"], np.repeat(gradients["values"], 2), 1e-12)


# The cases of the published tests.


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
@pytest.mark.parametrize("matrices", [1, 2, 5])
def test_self_edges_only(version, batch, matrices):
    inputs = tied(random_problem(10, batch=batch, edges=0, matrices=matrices))
    places = np.stack(np.indices((*batch, 7)), axis=-1).reshape(-1, len(batch) + 1)
    inputs["indices"], inputs["values"] = places[:, [*range(len(batch) + 1), -1]], np.ones(len(places))
    q = np.exp(inputs["var_c"]) / np.exp(inputs["var_c"]).sum()
    expected = inputs["data"] @ np.tensordot(q, inputs["var_w"], 1) + inputs["var_b"]
    assert_close(run_torch(inputs, version=version)[0], expected, 1e-12)
    inputs["var_w"] = 0 * inputs["var_w"]
    bias = np.broadcast_to(inputs["var_b"], (*batch, 7, 4))
    np.testing.assert_array_equal(run_torch(inputs, version=version)[0], bias)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("invariant", [False, True])
def test_a_constant_signal_stays_constant(version, invariant):
    inputs = random_problem(11, batch=(3,), edges=80, sizes=[7, 2, 5])
    block = inputs["indices"][:, 0] * 7 + inputs["indices"][:, 1]
    inputs["values"] = 1.0 / np.bincount(block, minlength=21)[block]
    inputs["data"] = np.broadcast_to(np.array([0.3, -1.0, 2.0]), inputs["data"].shape).copy()
    output = run_torch(tied(inputs) if invariant else inputs, version=version)[0]
    rows = output[tuple(np.unique(inputs["indices"][:, :2], axis=0).T)]
    assert_close(rows, np.broadcast_to(rows[0], rows.shape), 1e-12)


@pytest.mark.parametrize("version", VERSIONS)
def test_zero_weight_matrices_give_the_bias_inside_and_zero_in_the_padding(version):
    inputs = random_problem(12, batch=(3,), sizes=[7, 0, 4])
    inputs["var_w"] = 0 * inputs["var_w"]
    inside = (np.arange(7) < inputs["sizes"][:, None])[..., None]
    np.testing.assert_array_equal(run_torch(inputs, version=version)[0], np.where(inside, inputs["var_b"], 0.0))


# Compilation.


def test_the_compiled_v1_gives_the_same_values_and_gradients():
    for seed in range(2):
        inputs = ragged(seed, channels=3, outputs=2, matrices=2)
        expected, g, gradients = oracle(inputs)
        output, found = run_torch(inputs, g, compiled=True, version="v1", segment_sum_impl="unsorted")
        assert_close(output, expected, 1e-12)
        assert_gradients(found, gradients, 1e-12)


def test_each_prepared_run_compiles_for_its_own_shapes(monkeypatch):
    """More shapes than the limit of recompilations of one function."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiler(function, backend="eager", **options))
    for channels in range(1, 2 + torch._dynamo.config.recompile_limit):
        inputs = random_problem(channels, channels=channels)
        output, _ = run_torch(inputs, compiled=True, version="v1", segment_sum_impl="unsorted")
        assert_close(output, oracle(inputs)[0], 1e-12)


def test_a_prepared_run_converts_and_plans_once(monkeypatch):
    inputs = ragged(0, channels=3, outputs=2, matrices=2)
    run = prepare(inputs, "float32", "cpu")
    assert {str(array.dtype) for array in run.inputs().values()} == {"float32"}
    assert set(run.inputs()) == set(FLOATS) - {"data_out"}
    monkeypatch.setattr(np, "argsort", None)
    assert isinstance(run.run()["output"], torch.Tensor)


def test_the_plan_is_public():
    inputs = random_problem(13)
    plan = plan_neighborhood(Coo(inputs["indices"], torch.from_numpy(inputs["values"]), inputs["dense_shape"]))
    assert isinstance(plan, NeighborhoodPlan)
