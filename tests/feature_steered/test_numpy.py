from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from eqconv_cli.backends.feature_steered.reference import reference, reference_gradients
from eqconv_cli.numpy import (
    Coo,
    Csr,
    feature_steered_convolution,
    feature_steered_convolution_gradients,
    plan_neighborhood,
)

Array = np.ndarray
PARAMETERS = ("var_u", "var_v", "var_c", "var_w", "var_b")
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def layer(rng: np.random.Generator, channels: int, outputs: int, matrices: int) -> dict[str, Array]:
    shapes = ((channels, matrices), (channels, matrices), (matrices,), (matrices, channels, outputs), (outputs,))
    return {name: rng.normal(size=shape) for name, shape in zip(PARAMETERS, shapes, strict=True)}


def ragged(seed: int, dtype: str = "float64", channels: int = 3, outputs: int = 5, matrices: int = 4) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    block = rng.choice([0, 2], 40)
    indices = np.column_stack([block, *(rng.integers(0, np.where(block == 0, 6, 4)) for _ in range(2))])
    indices[5] = indices[6]
    inputs = {
        "data": rng.normal(size=(3, 7, channels)),
        "indices": indices,
        "values": rng.normal(size=40),
        "dense_shape": np.array([3, 7, 7]),
        "sizes": np.array([7, 0, 4]),
        **layer(rng, channels, outputs, matrices),
    }
    return {name: a.astype(dtype) if a.dtype == np.float64 else a for name, a in inputs.items()}


def call(inputs: dict[str, Any], **options: Any) -> Array:
    matrix = (inputs["indices"], inputs["values"], inputs["dense_shape"])
    parameters = (inputs[name] for name in PARAMETERS)
    return feature_steered_convolution(inputs["data"], matrix, inputs.get("sizes"), *parameters, **options)


def error(actual: Array, expected: Array, floor: float = 1.0) -> float:
    return float(np.abs(actual - expected).max(initial=0) / max(floor, np.abs(expected).max(initial=0)))


GRID = [
    {
        "version": version,
        "transform_data_first": first,
        "memory_efficient": fold,
        "segment_sum_impl": impl,
        "softmax": s,
    }
    for version in ("v1", "v2", "v3", "sparse_matmul", "pyg", "gather_sum", "auto")
    for first, fold, s in itertools.product((None, True, False), (True, False), ("stable", "guarded", "raw"))
    for impl in (("partition2d", "sorted", "unsorted") if version in ("v1", "pyg") else ("sorted",))
] + [
    {"version": "v1", "transform_data_first": "edges", "segment_sum_impl": impl}
    for impl in ("partition2d", "sorted", "unsorted")
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_option_equals_the_reference(dtype: str) -> None:
    for (c, d, m), options in itertools.product(((3, 5, 4), (5, 2, 1), (1, 1, 2)), GRID):
        inputs = ragged(1, dtype, c, d, m)
        y = call(inputs, **options)
        assert y.dtype == dtype
        assert error(y, reference(inputs)["output"]) <= TOLERANCE[dtype], options


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(3))
def test_closed_form_gradients_equal_the_reference(dtype: str, seed: int) -> None:
    inputs = ragged(seed, dtype)
    g = np.random.default_rng(seed).normal(size=(3, 7, 5)).astype(dtype)
    expected = reference_gradients(inputs, {"output": g})
    matrix = (inputs["indices"], inputs["values"], inputs["dense_shape"])
    actual = feature_steered_convolution_gradients(
        g, inputs["data"], matrix, inputs["sizes"], *(inputs[name] for name in PARAMETERS)
    )
    assert set(actual) == set(expected)
    for name, gradient in actual.items():
        assert gradient.dtype == dtype
        assert error(gradient, expected[name], 1e-3) <= TOLERANCE[dtype], name


def test_gradients_of_a_bipartite_pair() -> None:
    rng = np.random.default_rng(0)
    inputs = {
        "data": rng.normal(size=(2, 6, 3)),
        "data_out": rng.normal(size=(2, 9, 3)),
        "indices": np.column_stack([rng.integers(0, n, 30) for n in (2, 9, 6)]),
        "values": rng.normal(size=30),
        "dense_shape": np.array([2, 9, 6]),
        **layer(rng, 3, 4, 2),
    }
    g = rng.normal(size=(2, 9, 4))
    matrix = Coo(inputs["indices"], inputs["values"], inputs["dense_shape"])
    pair = (inputs["data"], inputs["data_out"])
    parameters = [inputs[name] for name in PARAMETERS]
    assert error(feature_steered_convolution(pair, matrix, None, *parameters), reference(inputs)["output"]) < 1e-12
    actual = feature_steered_convolution_gradients(g, pair, matrix, None, *parameters)
    expected = reference_gradients(inputs, {"output": g})
    assert set(actual) == set(expected)
    assert max(error(actual[name], expected[name], 1e-3) for name in expected) < 1e-12


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(0, 30))
def test_random_graphs(seed: int, vertices: int, edges: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = {
        "data": rng.normal(size=(vertices, 2)),
        "indices": rng.integers(0, vertices, (edges, 2)),
        "values": rng.normal(size=edges),
        "dense_shape": np.array([vertices, vertices]),
        **layer(rng, 2, 3, 2),
    }
    expected = reference(inputs)["output"]
    for version in ("v1", "v2", "v3", "sparse_matmul", "pyg"):
        assert error(call(inputs, version=version), expected) < 1e-12


def test_every_form_of_neighbors_gives_the_same() -> None:
    rng = np.random.default_rng(2)
    dense = rng.normal(size=(6, 6)) * (rng.random((6, 6)) < 0.4)
    x, parameters = rng.normal(size=(6, 3)), tuple(layer(rng, 3, 2, 2).values())
    csr = scipy.sparse.csr_array(dense)
    coo = csr.tocoo()
    indices = np.stack(coo.coords, axis=1)
    forms = [
        csr,
        coo,
        scipy.sparse.csc_matrix(dense),
        (indices, coo.data, (6, 6)),
        Coo(indices.astype(np.int32), coo.data, [6, 6]),
        (csr.indptr, csr.indices, csr.data),
        Csr(csr.indptr, csr.indices, csr.data, 6),
        plan_neighborhood(csr),
    ]
    results = [feature_steered_convolution(x, form, None, *parameters) for form in forms]
    assert max(error(y, results[0]) for y in results) < 1e-13


def test_hard_logits_need_more_than_plain_exponentials() -> None:
    inputs = ragged(3, "float32")
    inputs["var_u"] *= 300
    inputs["var_v"] = -inputs["var_u"]
    with np.errstate(all="ignore"):
        for version in ("v1", "v2", "v3"):
            assert np.isnan(call(inputs, version=version, softmax="raw")).any()
    for version, softmax in itertools.product(("v1", "v2", "v3"), ("stable", "guarded")):
        assert np.isfinite(call(inputs, version=version, softmax=softmax)).all()


@pytest.mark.parametrize(
    ("change", "error_type", "message"),
    [
        ({"data": np.zeros((3, 7, 3), int)}, TypeError, "data has dtype int64: allowed: float32, float64"),
        ({"values": np.zeros(40, np.float32)}, TypeError, "values of dtype float32 but data has dtype float64"),
        ({"sizes": np.zeros(3)}, TypeError, "sizes has dtype float64"),
        ({"sizes": np.array([7, 0])}, ValueError, "expected sizes of shape [3]"),
        ({"sizes": np.array([8, 0, 4])}, ValueError, "sizes[0] is 8: allowed: 0 to the 7 vertices"),
        ({"sizes": np.array([7, -1, 4])}, ValueError, "sizes[1] is -1"),
        ({"sizes": np.array([2, 0, 4])}, ValueError, "keeps only 2 vertices (sizes)"),
        ({"var_u": np.zeros((2, 4))}, ValueError, "var_u has 2 rows but data has 3 channels (expected var_u of shape"),
        ({"var_b": np.zeros(4)}, ValueError, "var_b has 4 entries but var_w has 5 output channels"),
        ({"data": np.full((3, 7, 3), np.nan)}, ValueError, "data is nan at [0, 0, 0]: validate='full'"),
    ],
)
def test_bad_input(change: dict[str, Array], error_type: type[Exception], message: str) -> None:
    with pytest.raises(error_type) as caught:
        call({**ragged(0), **change}, validate="full")
    assert message in str(caught.value)


def test_indices_out_of_range_and_dense_neighbours() -> None:
    inputs = ragged(0)
    inputs["indices"] = inputs["indices"].copy()
    inputs["indices"][11, 1] = 7
    with pytest.raises(IndexError, match=r"edge 11 has index 7 on axis 1, outside \[0, 7\)"):
        call(inputs)
    with pytest.raises(ValueError, match="dense ndarray of shape"):
        feature_steered_convolution(np.zeros((7, 3)), np.eye(7), None, *(inputs[n] for n in PARAMETERS))


def test_a_wrong_cotangent_is_refused() -> None:
    inputs = ragged(0)
    matrix = (inputs["indices"], inputs["values"], inputs["dense_shape"])
    with pytest.raises(ValueError, match=r"cotangent has shape \[7, 5\]: expected \[3, 7, 5\]"):
        feature_steered_convolution_gradients(
            np.zeros((7, 5)), inputs["data"], matrix, inputs["sizes"], *(inputs[name] for name in PARAMETERS)
        )
