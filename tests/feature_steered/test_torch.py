"""Every PyTorch variant against the float64 oracle: values, gradients, second derivatives, numerics."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
import torch

from eqconv_cli.backends.feature_steered import problems
from eqconv_cli.backends.feature_steered.guard import DENOMINATOR_FLOOR
from eqconv_cli.backends.feature_steered.reference import reference
from eqconv_cli.backends.feature_steered.torch import feature_steered_convolution, plan_neighborhood
from eqconv_cli.backends.feature_steered.torch_algorithms import Graph, Parameters, guarded_edges
from eqconv_cli.backends.feature_steered.torch_sparse import edges_of
from tests.feature_steered.support import (
    FLOATS,
    PARAMETERS,
    TOLERANCE,
    assert_close,
    assert_gradients,
    oracle,
    random_problem,
    rounded,
    run_torch,
    tied,
)


def grid(**axes):
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


SEGMENTS = ("partition2d", "sorted", "unsorted")
ORDERS, FOLDS = (False, True), (False, True)
VARIANTS = [
    *grid(
        version=["v1"],
        transform_data_first=[*ORDERS, "edges"],
        memory_efficient=FOLDS,
        segment_sum_impl=SEGMENTS,
        softmax=["stable", "guarded", "raw"],
    ),
    *grid(version=["v2"], transform_data_first=ORDERS, softmax=["guarded", "raw"]),
    *grid(version=["v3"], transform_data_first=ORDERS, memory_efficient=FOLDS, softmax=["stable", "guarded", "raw"]),
    *grid(
        version=["sparse_matmul"],
        transform_data_first=ORDERS,
        memory_efficient=FOLDS,
        softmax=["stable", "guarded", "raw"],
    ),
    *grid(version=["pyg"], segment_sum_impl=SEGMENTS, softmax=["stable", "raw"]),
    {"version": "gather_sum"},
    {"version": "auto"},
]
#: One of each algorithm and softmax that does not overflow.
SAFE = [
    *grid(version=["v1", "sparse_matmul"], softmax=["stable", "guarded"]),
    *grid(version=["v2", "v3"], softmax=["guarded"]),
    {"version": "pyg"},
    {"version": "gather_sum"},
]
RAW = grid(version=["v1", "v2", "v3", "sparse_matmul", "pyg"], softmax=["raw"])


def name_of(options):
    return "+".join(str(value) for value in options.values())


PROBLEMS = {
    "ragged": lambda: problems.ragged(0, channels=5, outputs=7, matrices=3),
    "wide to narrow": lambda: random_problem(1, batch=(2,), centres=9, edges=70, channels=6, outputs=2, matrices=4),
    "bipartite": lambda: problems.bipartite(0, channels=3, outputs=5, matrices=4),
    "fewer centres": lambda: random_problem(2, batch=(2,), centres=4, sources=9, edges=40),
    "one of everything": lambda: random_problem(3, channels=1, outputs=1, matrices=1),
    "star": lambda: problems._star(0, vertices=1300, channels=3, outputs=2, matrices=2),
}


@cache
def instance(problem, dtype):
    inputs = rounded(PROBLEMS[problem](), dtype)
    return inputs, *oracle(inputs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_variant_equals_the_oracle(problem, options, dtype):
    inputs, expected, g, gradients = instance(problem, dtype)
    before = {name: array.copy() for name, array in inputs.items()}
    output, found = run_torch(inputs, g, **options)
    assert output.dtype == dtype
    assert_close(output, expected, TOLERANCE[dtype])
    # The softmax of one logit is constant: what is left of its gradients is the rounding of terms of order 1.
    assert_gradients(found, gradients, TOLERANCE[dtype], floor=1e-3 if inputs["var_c"].size > 1 else 1.0)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, before[name])


# Numerics.


@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", SAFE, ids=name_of)
def test_hard_logits(options, dtype, scale):
    """Integers keep the logits exact, so what is compared is the softmax alone; 30: float64 exponentials fail too."""
    inputs = problems.hard_logits(0, channels=6, outputs=4, matrices=5)
    for name in ("var_u", "var_v"):
        inputs[name] = inputs[name] * scale
    inputs = rounded(inputs, dtype)
    expected, g, gradients = oracle(inputs)
    output, found = run_torch(inputs, g, **options)
    assert_close(output, expected, TOLERANCE[dtype])
    assert_gradients(found, gradients, TOLERANCE[dtype])


@pytest.mark.parametrize("options", RAW, ids=name_of)
def test_raw_exponentials_fail_at_hard_logits(options):
    inputs = rounded(problems.hard_logits(0, channels=6, outputs=4, matrices=5), "float32")
    assert np.isnan(run_torch(inputs, **options)[0]).any()


@pytest.mark.parametrize("options", SAFE, ids=name_of)
@pytest.mark.parametrize("gap", range(24, 100, 4))
@pytest.mark.parametrize("weight", [1.0, 1e4])
def test_gradients_where_the_factored_denominator_nearly_underflows(options, gap, weight):
    """Edges between opposite vertices have Z = exp(-gap), with a true softmax of order 1."""
    inputs = random_problem(8, centres=8, channels=2, outputs=2)
    side = np.where(np.arange(8) % 2, 1.0, -1.0)[:, None]
    inputs["data"] = side + 0.01 * inputs["data"]
    inputs["var_u"] = np.array([[gap / 4, 0.0], [gap / 4, 0.0]])
    inputs["values"] = weight * inputs["values"]
    inputs = rounded(tied(inputs), "float32")
    expected, g, gradients = oracle(inputs)
    output, found = run_torch(inputs, g, **options)
    assert_close(output, expected, 1e-5)
    assert_gradients(found, gradients, 1e-4)


@pytest.mark.parametrize("distance", [20.0, 80.0, 300.0])
@pytest.mark.parametrize("options", SAFE, ids=name_of)
def test_features_far_from_the_origin(options, distance):
    inputs = rounded(problems.offset(0, channels=16, outputs=8, matrices=8, distance=distance), "float32")
    expected, g, gradients = oracle(inputs)
    output, found = run_torch(inputs, g, **options)
    assert_close(output, expected, 1e-5)
    assert_gradients(found, gradients, 1e-5)


def test_without_centring_an_offset_costs_digits():
    inputs = rounded(problems.offset(0, channels=16, outputs=8, matrices=8, distance=300.0), "float32")
    with pytest.raises(AssertionError, match="is above"):
        assert_close(run_torch(inputs, version="v1", softmax="raw")[0], reference(inputs)["output"], 1e-5)


@pytest.mark.parametrize("options", SAFE, ids=name_of)
def test_blocks_far_from_each_other(options):
    """Each block is centred on its own mean."""
    inputs = tied(random_problem(0, batch=(3,), centres=20, edges=200, channels=8, outputs=4, matrices=4))
    inputs["data"] = 0.01 * inputs["data"] + np.array([-300.0, 0.0, 300.0])[:, None, None]
    inputs = rounded(inputs, "float32")
    assert_close(run_torch(inputs, **options)[0], reference(inputs)["output"], 1e-5)


def test_guarded_edges_are_counted():
    def count(inputs):
        plan = plan_neighborhood(
            (inputs["indices"], torch.from_numpy(inputs["values"]), tuple(inputs["dense_shape"].tolist()))
        )
        edges = edges_of(plan.pattern, torch.device("cpu"))
        x = torch.from_numpy(inputs["data"])
        return guarded_edges(
            Graph(x, x, plan.values, edges), Parameters(*(torch.from_numpy(inputs[n]) for n in PARAMETERS))
        )

    easy, hard = random_problem(0), rounded(problems.hard_logits(0, channels=6, outputs=4, matrices=5), "float32")
    assert count(easy) == 0
    x, u, c = (hard[name].astype(np.float64) for name in ("data", "var_u", "var_c"))
    x = x - x.mean(0)
    a, s = x @ u + c, -x @ u
    i, j = hard["indices"].T
    z = np.exp((a - a.max(1, keepdims=True))[i] + (s - s.max(1, keepdims=True))[j]).sum(1)
    floor = DENOMINATOR_FLOOR["float32"]
    assert 0 < count(hard) == (z < floor).sum() < len(z)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", SAFE, ids=name_of)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_value_that_is_not_finite_touches_only_the_rows_that_use_it(batch, options, bad):
    inputs = random_problem(4, batch=batch, centres=12, edges=40)
    clean = reference(inputs)["output"]
    rows = inputs["indices"][:, :-1]
    victim = inputs["indices"][0]
    inputs["data"][(*victim[:-2], victim[-1], 1)] = bad
    uses = (inputs["indices"][:, -1] == victim[-1]) | (inputs["indices"][:, -2] == victim[-1])
    uses &= (inputs["indices"][:, :-2] == victim[:-2]).all(1)
    touched = np.zeros(clean.shape[:-1], bool)
    touched[tuple(rows[uses].T)] = True
    assert 0 < touched.sum() < touched.size
    output = run_torch(inputs, **options)[0]
    assert not np.isfinite(output[touched]).any()
    assert_close(output[~touched], clean[~touched], 1e-12)


@pytest.mark.parametrize("options", SAFE, ids=name_of)
def test_an_isolated_vertex_that_is_not_finite_gives_the_bias(options):
    inputs = random_problem(5, edges=40, centres=9)
    isolated = 4
    inputs["indices"] = inputs["indices"][(inputs["indices"] != isolated).all(1)]
    inputs["values"] = inputs["values"][: len(inputs["indices"])]
    expected = reference(inputs)["output"]
    inputs["data"][isolated] = np.nan
    output = run_torch(inputs, **options)[0]
    np.testing.assert_array_equal(output[isolated], inputs["var_b"])
    assert_close(output, expected, 1e-12)


# Derivatives of autograd itself.

DIFFERENTIATED = [
    *grid(version=["v1"], segment_sum_impl=SEGMENTS, transform_data_first=[True]),
    *grid(version=["v1"], softmax=["guarded"]),
    *grid(version=["v2", "v3", "sparse_matmul"], transform_data_first=ORDERS),
    {"version": "pyg"},
]


@pytest.mark.parametrize("options", DIFFERENTIATED, ids=name_of)
@pytest.mark.parametrize("padded", [False, True])
def test_first_and_second_derivatives(options, padded):
    inputs = random_problem(6, batch=(2,), centres=4, edges=12, channels=2, outputs=2, sizes=[3, 4] if padded else None)
    plan = plan_neighborhood(
        (inputs["indices"], torch.from_numpy(inputs["values"]), inputs["dense_shape"]), inputs.get("sizes")
    )
    leaves = tuple(torch.from_numpy(inputs[name]).requires_grad_() for name in FLOATS if name in inputs)

    def function(data, values, *parameters):
        return feature_steered_convolution(data, plan.with_values(values), None, *parameters, **options)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize(
    "options", [{"version": "v2"}, {"version": "v3"}, {"softmax": "guarded", "version": "v1"}], ids=name_of
)
def test_second_derivatives_where_edges_are_guarded(options):
    inputs = problems.hard_logits(1, channels=2, outputs=2, matrices=3)
    keep = slice(0, 20)
    inputs["var_u"], inputs["var_v"] = 9 * inputs["var_u"], 9 * inputs["var_v"]
    inputs["indices"], inputs["values"] = inputs["indices"][keep], inputs["values"][keep]
    plan = plan_neighborhood((inputs["indices"], torch.from_numpy(inputs["values"]), inputs["dense_shape"]))
    names = ("data", "values", "var_c", "var_w")
    leaves = tuple(torch.from_numpy(inputs[name]).requires_grad_() for name in names)
    u, v, b = (torch.from_numpy(inputs[name]) for name in ("var_u", "var_v", "var_b"))

    def function(data, values, c, w):
        return feature_steered_convolution(data, plan.with_values(values), None, u, v, c, w, b, **options)

    assert torch.autograd.gradgradcheck(function, leaves, eps=1e-7, atol=1e-4, rtol=1e-3, fast_mode=True)


def test_only_wanted_gradients_are_computed():
    inputs = random_problem(7)
    tensors = {name: torch.from_numpy(inputs[name]) for name in FLOATS if name in inputs}
    tensors["var_c"].requires_grad_()
    neighbors = (inputs["indices"], tensors["values"], inputs["dense_shape"])
    y = feature_steered_convolution(tensors["data"], neighbors, None, *(tensors[name] for name in PARAMETERS))
    y.sum().backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is not None} == {"var_c"}


@pytest.mark.parametrize("options", VARIANTS[::7], ids=name_of)
def test_a_second_run_gives_the_same_bits(options):
    inputs, _, g, _ = instance("ragged", "float32")
    first, again = run_torch(inputs, g, **options), run_torch(inputs, g, **options)
    np.testing.assert_array_equal(first[0], again[0])
    for name in first[1]:
        np.testing.assert_array_equal(first[1][name], again[1][name])
