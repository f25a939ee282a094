"""What the TensorFlow operator accepts: edge cases, forms of neighbours, dtypes, and errors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from eqconv_cli.backends.feature_steered import problems
from eqconv_cli.backends.feature_steered.reference import reference
from eqconv_cli.tensorflow import Coo, Csr, NeighborhoodPlan, feature_steered_convolution, plan_neighborhood
from tests.feature_steered.support import PARAMETERS
from tests.feature_steered.support_tensorflow import (
    ALL,
    SMALL,
    as_sparse,
    check,
    convolve,
    on_line,
)

pytestmark = pytest.mark.tensorflow


@ALL
def test_isolated_vertices_get_the_bias(options):
    inputs = on_line(6, indices=[[1, 2], [1, 4], [3, 0]])
    y = convolve(inputs, **options)
    np.testing.assert_array_equal(y[[0, 2, 4, 5]], np.tile(inputs["var_b"], (4, 1)))
    check(inputs, options)


@ALL
def test_no_edges_at_all(options):
    inputs = on_line(4, indices=np.empty((0, 2)))
    np.testing.assert_array_equal(convolve(inputs, **options), np.tile(inputs["var_b"], (4, 1)))
    check(inputs, options)


@ALL
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 4, 3)])
def test_no_vertices(shape, options):
    rng = np.random.default_rng(0)
    inputs = {
        "data": np.empty(shape),
        "indices": np.empty((0, len(shape)), np.int64),
        "values": np.empty(0),
        "dense_shape": np.array([*shape[:-1], shape[-2]]),
        **problems.parameters(rng, 3, 4, 2),
    }
    assert convolve(inputs, **options).shape == (*shape[:-1], 4)
    check(inputs, options)


@ALL
def test_duplicate_edges_count_with_their_own_weights(options):
    check(on_line(3, indices=[[0, 1], [0, 1], [2, 2], [0, 1], [2, 2]]), options)


@ALL
@pytest.mark.parametrize("extents", [(1, 1, 1), (1, 5, 3), (7, 1, 1), (3, 2, 5)])
def test_small_and_odd_extents(extents, options):
    channels, outputs, matrices = extents
    check(on_line(5, channels, outputs, matrices), options)


@ALL
def test_large_degree(options):
    rng = np.random.default_rng(0)
    indices = np.stack([np.repeat([0, 3], [1500, 2]), rng.integers(0, 40, 1502)], axis=1)
    check(on_line(40, indices=rng.permutation(indices)), options, factor=10.0)


@ALL
def test_not_finite_features_reach_the_rows_that_use_them_and_no_others(options):
    inputs = on_line(6, indices=[[0, 1], [1, 0], [2, 3], [3, 2], [4, 3], [2, 2]])
    clean = convolve(inputs, **options)
    for value in (np.nan, np.inf):
        inputs["data"][1] = value
        y = convolve(inputs, **options)
        assert not np.isfinite(y[:2]).any()
        np.testing.assert_allclose(y[2:], clean[2:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
@pytest.mark.parametrize("matrices", [1, 5])
@pytest.mark.parametrize(("float_type", "int_type"), [("float32", "int32"), ("float64", "int64"), ("float64", "int32")])
def test_shapes_and_dtypes(batch, matrices, float_type, int_type):
    rng = np.random.default_rng(0)
    inputs = {
        "data": rng.normal(size=(*batch, 4, 3)),
        "values": rng.normal(size=6),
        **problems.parameters(rng, 3, 2, matrices),
    }
    inputs = {name: array.astype(float_type) for name, array in inputs.items()}
    extents = (*batch, 4, 4)
    inputs["indices"] = np.stack([rng.integers(0, n, 6) for n in extents], axis=1).astype(int_type)
    inputs["dense_shape"] = np.array(extents)
    y = convolve(inputs)
    assert y.shape == (*batch, 4, 2)
    assert y.dtype == float_type
    sizes = np.full(batch, 4, int_type)
    np.testing.assert_allclose(convolve(inputs | {"sizes": sizes}), y, rtol=1e-5)


def test_centres_use_the_first_rows_of_data_when_there_are_fewer():
    inputs = SMALL["bipartite"]()
    del inputs["data_out"]
    check(inputs, {})


def test_all_forms_of_neighbors_agree():
    inputs = on_line(5)
    matrix = scipy.sparse.coo_matrix((inputs["values"], inputs["indices"].T), (5, 5))
    csr = matrix.tocsr()
    parameters = [inputs[name] for name in PARAMETERS]
    expected = reference(inputs)["output"]
    plan = plan_neighborhood(as_sparse(inputs))
    assert isinstance(plan, NeighborhoodPlan)
    forms = [
        as_sparse(inputs),
        Coo(inputs["indices"], inputs["values"], (5, 5)),
        (inputs["indices"], inputs["values"], [5, 5]),
        (tf.constant(inputs["indices"]), tf.constant(inputs["values"]), tf.constant([5, 5])),
        Csr(csr.indptr, csr.indices, csr.data),
        (csr.indptr, csr.indices, csr.data),
        (csr.indptr, csr.indices, csr.data, 5),
        matrix,
        csr,
        plan,
        plan_neighborhood(plan),
    ]
    for form in forms:
        y = feature_steered_convolution(inputs["data"], form, None, *parameters)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_dense_neighbors_are_refused(kind):
    inputs = on_line(5)
    dense = np.eye(5) if kind == "array" else tf.eye(5, dtype=tf.float64)
    with pytest.raises(ValueError, match=r"dense .* of shape \[5, 5\].*SparseTensor"):
        feature_steered_convolution(inputs["data"], dense, None, *(inputs[name] for name in PARAMETERS))
    with pytest.raises(TypeError, match="neighbors is a str"):
        plan_neighborhood("dense")


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("value", [-1, 5])
def test_an_index_that_is_not_there(value, column):
    inputs = on_line(5)
    inputs["indices"][2, column] = value
    with pytest.raises(IndexError, match=rf"edge 2 has index {value} on axis {column}, outside \[0, 5\)"):
        convolve(inputs)


def test_an_entry_outside_sizes():
    inputs = SMALL["ragged"]()
    extra = inputs | {"indices": np.concatenate([inputs["indices"], [[3, 0, 5]]])}
    extra["values"] = np.append(inputs["values"], 2.0)
    with pytest.raises(ValueError, match=r"entry \(0, 5\) of batch element \[3\], which keeps only 1"):
        convolve(extra)
    plan = plan_neighborhood(as_sparse(extra), extra["sizes"], outside_sizes="drop")
    y = feature_steered_convolution(extra["data"], plan, None, *(extra[name] for name in PARAMETERS))
    np.testing.assert_allclose(y, reference(inputs)["output"], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sizes": np.array([12, 0, 9, 1])}, ValueError, r"sizes\[0\] is 12: allowed: 0 to the 11"),
        ({"sizes": np.array([-1, 0, 9, 1])}, ValueError, r"sizes\[0\] is -1"),
        ({"sizes": np.array([11.0, 0, 9, 1])}, TypeError, "sizes has dtype float64"),
        ({"sizes": np.array([11, 9])}, ValueError, r"sizes has shape \[2\].*expected sizes of shape \[4\]"),
        ({"data": np.ones((4, 11, 5), np.int64)}, TypeError, "data has dtype int64"),
        ({"data": np.ones(11)}, ValueError, "data has shape"),
        ({"data": np.ones((11, 5))}, ValueError, "neighbors has rank 3 but data has rank 2"),
        ({"data": np.ones((3, 11, 5))}, ValueError, "batch dimensions"),
        ({"data": np.ones((4, 10, 5))}, ValueError, "neighbors has 11 columns but data has 10 vertices"),
        ({"values": np.ones(91, np.float32)}, TypeError, "values of dtype float32 but data has dtype float64"),
        ({"values": np.ones(90)}, ValueError, "91 indices but values of shape"),
        ({"indices": np.ones((91, 3))}, TypeError, "neighbors.indices has dtype float64"),
        ({"var_u": np.ones((2, 3))}, ValueError, "var_u has 2 rows but data has 5 channels"),
        ({"var_v": np.ones((5, 2))}, ValueError, "var_v is made for 2 weight matrices but var_u for 3"),
        ({"var_c": np.ones(4)}, ValueError, "var_c is made for 4"),
        ({"var_w": np.ones((3, 5))}, ValueError, r"var_w has shape \[3, 5\]: expected \[M, C, D\]"),
        ({"var_b": np.ones(9)}, ValueError, "var_b has 9 entries but var_w has 4"),
        ({"var_b": np.ones(4, np.float32)}, TypeError, "var_b has dtype float32"),
    ],
)
def test_wrong_arguments(change, error, message):
    with pytest.raises(error, match=message):
        convolve(SMALL["ragged"]() | change)


def test_wrong_options():
    inputs = on_line(3)
    for name in ("version", "segment_sum_impl", "softmax", "validate", "transform_data_first"):
        with pytest.raises(ValueError, match=f"{name}='nothing' is unknown: allowed"):
            convolve(inputs, **{name: "nothing"})
    with pytest.raises(ValueError, match="outside_sizes='keep' is unknown"):
        plan_neighborhood(as_sparse(inputs), outside_sizes="keep")


def test_sizes_that_differ_from_the_plan():
    inputs = SMALL["ragged"]()
    plan = plan_neighborhood(as_sparse(inputs), inputs["sizes"])
    assert plan_neighborhood(plan, inputs["sizes"]) is plan
    with pytest.raises(ValueError, match=r"sizes is \[1, 1, 1, 1\] but neighbors was planned with \[11, 0, 9, 1\]"):
        plan_neighborhood(plan, np.ones(4, np.int64))


@pytest.mark.parametrize("name", ["data", "values", "var_w"])
def test_full_validation_names_what_is_not_finite(name):
    inputs = on_line(5)
    convolve(inputs, validate="full")
    inputs[name][(1,) * inputs[name].ndim] = np.nan
    with pytest.raises(ValueError, match=rf"{name} is nan at \[1"):
        convolve(inputs, validate="full")
    convolve(inputs, validate="cheap")
