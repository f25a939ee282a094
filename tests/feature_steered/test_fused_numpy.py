"""The compiled kernels through the NumPy door, and everything that holds for them whatever the door."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from eqconv_cli import kernels
from eqconv_cli.backends.feature_steered import fused, schedule
from eqconv_cli.backends.feature_steered import numpy as operator_module
from eqconv_cli.backends.feature_steered.cost_model import Sizes, choose, fused_first
from eqconv_cli.backends.feature_steered.numpy import prepare
from eqconv_cli.backends.feature_steered.options import Flag, Fused, fused_settings
from eqconv_cli.backends.feature_steered.plan import build_pattern
from eqconv_cli.backends.feature_steered.reference import reference, reference_gradients
from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels import doors
from eqconv_cli.numpy import (
    Coo,
    feature_steered_convolution,
    feature_steered_convolution_gradients,
    plan_neighborhood,
)
from tests.feature_steered.support import PARAMETERS, assert_close, assert_gradients, oracle, random_problem, rounded
from tests.feature_steered.support_fused import (
    PROBLEMS,
    SHAPES,
    after_relu,
    apart,
    check,
    instance,
    offset,
    shaped,
)
from tests.support import needs

built = needs("cpu")

#: Settings that choose other code in the core.
SETTINGS = {
    "best": {},
    "avx512": {"instructions": "avx512"},
    "avx2": {"instructions": "avx2"},
    "portable": {"instructions": "portable"},
    "edge softmax": {"edge_softmax": True},
    "portable edge softmax": {"instructions": "portable", "edge_softmax": True},
}


def run(inputs, g=None, device="cpu", settings=None, **options):
    prepared = prepare(inputs, str(inputs["data"].dtype), device, gradients=True, fused=settings or {}, **options)
    output = prepared.run()["output"]
    return output, {} if g is None else dict(prepared.run_backward({"output": g}))


def call(inputs, **options):
    neighbors = Coo(inputs["indices"], inputs["values"], inputs["dense_shape"])
    parameters = (inputs[name] for name in PARAMETERS)
    return feature_steered_convolution(inputs["data"], neighbors, inputs.get("sizes"), *parameters, **options)


# Against the oracle.


@built
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_problems(problem, settings, dtype):
    check(run, instance(problem, dtype), dtype, settings=settings)


@built
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, first, dtype):
    inputs = rounded(shaped(*shape), dtype)
    check(run, (inputs, *oracle(inputs)), dtype, transform_data_first=first)


@built
@pytest.mark.parametrize("shape", SHAPES[::4], ids=str)
@pytest.mark.parametrize("instructions", ["avx512", "avx2", "portable"])
def test_shapes_with_other_instructions(shape, instructions):
    for dtype in ("float32", "float64"):
        inputs = rounded(shaped(*shape), dtype)
        check(run, (inputs, *oracle(inputs)), dtype, settings={"instructions": instructions})


@built
def test_the_matrix_unit_is_about_as_accurate_as_multiply_adds():
    inputs = rounded(random_problem(13, centres=300, edges=2000, channels=64, outputs=64, matrices=32), "float32")
    expected, g, gradients = oracle(inputs)
    errors = {}
    for instructions in ("best", "avx512"):
        output, found = run(inputs, g, settings={"instructions": instructions})
        errors[instructions] = np.array(
            [np.abs(output - expected).max() / np.abs(expected).max()]
            + [np.abs(found[name] - gradients[name]).max() / np.abs(gradients[name]).max() for name in gradients]
        )
    assert (errors["best"] <= 3 * errors["avx512"]).all() and errors["best"].max() < 1e-6


@built
@pytest.mark.parametrize("problem", ["ragged", "bipartite", "many chunks", "star"])
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_orders(problem, first):
    check(run, instance(problem, "float32"), "float32", transform_data_first=first)


@built
@pytest.mark.parametrize("settings", [{}, {"edge_softmax": True}], ids=["guarded", "edge softmax"])
@pytest.mark.parametrize("distance", [20.0, 80.0, 300.0])
def test_features_far_from_the_origin(distance, settings):
    inputs = offset(distance)
    check(run, (inputs, *oracle(inputs)), "float32", settings=settings)


@built
def test_blocks_far_from_each_other():
    inputs = apart()
    assert_close(run(inputs)[0], reference(inputs)["output"], 1e-5)


@built
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("problem", ["ragged", "bipartite", "no edge"])
def test_relu(problem, dtype):
    inputs, expected, g, _ = instance(problem, dtype)
    expected, gradients = after_relu(inputs, expected, g, reference_gradients)
    output = run(inputs, activation="relu")[0]
    assert_close(output, expected, 1e-5 if dtype == "float32" else 1e-12)
    neighbors = Coo(inputs["indices"], inputs["values"], inputs["dense_shape"])
    data = (inputs["data"], inputs["data_out"]) if "data_out" in inputs else inputs["data"]
    operands = (g, data, neighbors, inputs.get("sizes"), *(inputs[name] for name in PARAMETERS))
    for version in ("fused", "closed_form"):
        found = feature_steered_convolution_gradients(*operands, version=version, activation="relu")
        assert_gradients(found, gradients, 1e-5 if dtype == "float32" else 1e-12)


@built
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_touches_only_the_rows_that_use_it(bad):
    inputs = random_problem(4, centres=12, edges=40)
    clean = reference(inputs)["output"]
    victim = inputs["indices"][0, 1]
    inputs["data"][victim, 1] = bad
    touched = np.zeros(12, bool)
    touched[inputs["indices"][(inputs["indices"] == victim).any(1), 0]] = True
    for settings in SETTINGS.values():
        output = run(inputs, settings=settings)[0]
        assert not np.isfinite(output[touched]).any()
        assert_close(output[~touched], clean[~touched], 1e-12)


@built
def test_an_isolated_vertex_that_is_not_finite_gives_the_bias():
    inputs = random_problem(5, centres=9, edges=40)
    inputs["indices"] = inputs["indices"] % 8
    expected = reference(inputs)["output"]
    inputs["data"][8] = np.nan
    output = run(inputs)[0]
    np.testing.assert_array_equal(output[8], inputs["var_b"])
    assert_close(output, expected, 1e-12)


@built
def test_dropped_edges_have_gradient_zero():
    inputs = random_problem(1, batch=(2,), centres=6, edges=50)
    neighbors, sizes = (inputs["indices"], inputs["values"], inputs["dense_shape"]), np.array([4, 6])
    plan = plan_neighborhood(neighbors, sizes, outside_sizes="drop")
    inside = (inputs["indices"][:, 1:] < sizes[inputs["indices"][:, 0], None]).all(1)
    assert 0 < inside.sum() < len(inside)
    small = {**inputs, "indices": inputs["indices"][inside], "values": inputs["values"][inside], "sizes": sizes}
    expected, g, gradients = oracle(small)
    operands = (inputs["data"], plan, None, *(inputs[name] for name in PARAMETERS))
    assert_close(feature_steered_convolution(*operands, version="fused"), expected, 1e-12)
    found = feature_steered_convolution_gradients(g, *operands, version="fused")
    np.testing.assert_array_equal(found["values"][~inside], 0)
    assert_close(found["values"][inside], gradients["values"], 1e-12)


# The same bits.


@built
@pytest.mark.parametrize("problem", ["ragged", "many chunks", "star", "bipartite"])
@pytest.mark.parametrize("settings", [{}, {"instructions": "avx2"}, {"edge_softmax": True}], ids=str)
def test_the_number_of_threads_and_a_second_run_change_no_bit(problem, settings):
    inputs, _, g, _ = instance(problem, "float32")
    for activation in (None, "relu"):
        results = []
        for threads in (1, 2, 3, 1):
            output, gradients = run(inputs, g, settings={**settings, "threads": threads}, activation=activation)
            results.append({"output": output, **gradients})
        for other in results[1:]:
            for name, array in results[0].items():
                np.testing.assert_array_equal(array, other[name], err_msg=name)


# Arguments.


@built
def test_arrays_that_are_not_contiguous():
    inputs, expected, g, gradients = instance("sorted", "float64")
    strided = {
        name: np.repeat(array, 2, axis=-1)[..., ::2] if array.dtype == np.float64 else array
        for name, array in inputs.items()
    }
    output, found = run(strided, np.asfortranarray(g))
    assert_close(output, expected, 1e-12)
    assert_gradients(found, gradients, 1e-12)


@built
def test_centres_that_share_their_memory_with_the_sources():
    inputs, expected, g, gradients = instance("sorted", "float64")
    neighbors = Coo(inputs["indices"], inputs["values"], inputs["dense_shape"])
    data, parameters = (inputs["data"], inputs["data"][:]), [inputs[name] for name in PARAMETERS]
    assert_close(feature_steered_convolution(data, neighbors, None, *parameters, version="fused"), expected, 1e-12)
    found = feature_steered_convolution_gradients(g, data, neighbors, None, *parameters, version="fused")
    assert_close(found["data"] + found["data_out"], gradients["data"], 1e-12)


def test_options_that_are_refused():
    inputs = random_problem(0)
    with pytest.raises(ValueError, match="softmax='raw' is a published form that version='fused' does not compute"):
        call(inputs, version="fused", softmax="raw")
    with pytest.raises(ValueError, match="transform_data_first='edges' is the published order of version='v1' only"):
        call(inputs, version="fused", transform_data_first="edges")
    with pytest.raises(ValueError, match="activation='tanh' is unknown: allowed: None, relu"):
        call(inputs, activation="tanh")
    with pytest.raises(ValueError, match="instructions='sse' is unknown: allowed: 'best', 'avx512', 'avx2'"):
        Fused(instructions="sse")
    with pytest.raises(ValueError, match="threads=-1"):
        Fused(threads=-1)
    g = np.zeros((7, 4))
    operands = (inputs["data"], Coo(inputs["indices"], inputs["values"], inputs["dense_shape"]), None)
    with pytest.raises(ValueError, match="version='v2' is unknown: allowed: auto, closed_form, fused"):
        feature_steered_convolution_gradients(g, *operands, *(inputs[name] for name in PARAMETERS), version="v2")


@pytest.mark.parametrize("dtype", ["float16", "int64"])
def test_dtypes_that_are_refused(dtype):
    inputs = random_problem(0)
    inputs["data"] = inputs["data"].astype(dtype)
    with pytest.raises(TypeError, match=f"data has dtype {dtype}: allowed: float32, float64"):
        call(inputs, version="auto")


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "sparse_matmul", "pyg", "gather_sum"])
def test_the_other_versions_have_the_activation_too(version):
    inputs, expected, _, _ = instance("ragged", "float64")
    assert_close(call(inputs, version=version, activation="relu"), np.maximum(expected, 0), 1e-12)


# What is missing.


@pytest.fixture
def nothing_built(monkeypatch):
    doors.missing_kernels.cache_clear()
    monkeypatch.setattr(kernels, "missing", lambda target: [f"{target} is not built: eqconv build-kernels"])
    yield
    doors.missing_kernels.cache_clear()


def test_without_kernels_auto_takes_another_version_and_fused_says_what_to_do(nothing_built, monkeypatch):
    inputs, expected, _, _ = instance("ragged", "float64")
    assert_close(call(inputs, version="auto"), expected, 1e-12)
    with pytest.raises(Unavailable, match="version='fused': cpu is not built: eqconv build-kernels"):
        call(inputs, version="fused")
    with pytest.raises(Unavailable, match="version='fused': emulated is not built"):
        call(inputs, version=Fused(core="emulated"))


def test_what_is_missing_is_looked_up_once(nothing_built, monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "missing", lambda target: asked.append(target) or ["nothing"])
    inputs = instance("ragged", "float64")[0]
    for _ in range(3):
        call(inputs, version="auto")
    assert asked == ["cpu"]


def test_auto_takes_the_kernels_that_are_built_unless_raw_is_asked_for():
    assert fused_settings("auto", "stable", lambda settings: []) == Fused()
    assert fused_settings("auto", "raw", lambda settings: []) is None
    assert fused_settings("auto", "stable", lambda settings: ["no"]) is None
    assert fused_settings("v2", "stable", lambda settings: []) is None
    assert choose(Sizes(10, 70, 8, 8, 4), "torch", training=True, fused=True).version == "fused"


@built
def test_auto_is_fused_where_the_core_is_built():
    inputs = instance("ragged", "float32")[0]
    np.testing.assert_array_equal(call(inputs, version="auto"), call(inputs, version="fused"))


def test_the_order_of_the_kernels():
    assert not fused_first(Sizes(1000, 7000, channels=64, outputs=32, matrices=8))
    assert fused_first(Sizes(1000, 7000, channels=4096, outputs=8, matrices=8))


@pytest.mark.parametrize("vertices", [2**31 - 1, 2**31])
def test_patterns_beyond_32_bits(vertices):
    assert bool(schedule.too_large(vertices, 5, 5)) == (vertices > 2**31 - 1)


# The core itself.


@built
def test_a_missing_array_is_reported():
    from eqconv_cli.errors import EqconvError

    with pytest.raises(EqconvError, match="needed array is missing"):
        kernels.core("cpu").call(fused.FORWARD, "float32", {"rows": 1, "cols": 1, "channels": 1, "outputs": 1})


def test_flags_are_those_of_the_header():
    header = (Path(__file__).parents[2] / "cuda/feature_steered/feature_steered.h").read_text()
    numbers = dict(re.findall(r"EQC_FS_(\w+) = (\d+)", header))
    assert {flag.name: str(flag.value) for flag in Flag} == numbers
    contract = (Path(__file__).parents[2] / "cuda/common/contract.h").read_text()
    for name in ("avx512", "avx2", "portable"):
        assert f"EQC_{name.upper()} = {doors.PROCESSOR_FLAGS[name]}" in contract
    sections = (Path(__file__).parents[2] / "cuda/bindings/feature_steered_pattern.h").read_text()
    for name in ("EDGE_OF_SLOT", "CHUNKS", "TOUCHED", "TRANSPOSED"):
        assert f"{name} = {getattr(schedule, name)}" in sections


# The schedule.


@pytest.mark.parametrize("problem", [name for name in PROBLEMS if name not in ("harder", "hard")])
def test_packed_pattern(problem):
    inputs = PROBLEMS[problem]()
    pattern = build_pattern(inputs["indices"], inputs["dense_shape"], inputs.get("sizes"))
    packed = schedule.pack(pattern, schedule.TOUCHED | schedule.TRANSPOSED)
    found = packed.arrays
    assert packed.words.ctypes.data % 8 == 0 and packed.words.dtype == np.int64
    np.testing.assert_array_equal(found["rowptr"], pattern.rowptr)
    np.testing.assert_array_equal(found["col"], pattern.col)
    assert ("edge_of_slot" in found) == (pattern.edge_of_slot is not None)
    if pattern.edge_of_slot is not None:
        np.testing.assert_array_equal(found["edge_of_slot"], pattern.edge_of_slot)
    for name, expected in zip(("colptr", "row_of_position", "slot_of_position"), pattern.transposed, strict=True):
        np.testing.assert_array_equal(found[name], expected)
    chunks = found["chunk_rows"]
    assert chunks[0] == 0 and chunks[-1] == pattern.rows and (np.diff(chunks) > 0).all()
    for k in range(len(chunks) - 1):
        slots = slice(*pattern.rowptr[chunks[k : k + 2]])
        named = found["touched"][slice(*found["touched_start"][k : k + 2])]
        own = np.arange(*chunks[k : k + 2]) if pattern.rows == pattern.cols else []
        np.testing.assert_array_equal(named, np.union1d(pattern.col[slots], own))
        np.testing.assert_array_equal(named[found["local"][slots]], pattern.col[slots])


def test_rows_are_cut_evenly():
    degree = np.full(50_000, 7)
    chunks = schedule.cut_rows(np.append(0, np.cumsum(degree)))
    assert np.diff(chunks)[:-1].max() <= 4096
    assert (7 * np.diff(chunks)).max() <= 32768
    few = schedule.cut_rows(np.append(0, np.cumsum(np.full(2000, 7))))
    assert 15 <= len(few) - 1 <= 17
    assert len(schedule.cut_rows(np.append(0, np.cumsum(np.full(60, 7))))) - 1 == 1
    np.testing.assert_array_equal(schedule.cut_rows(np.zeros(1, int)), [0])


def test_a_long_row_is_a_chunk_of_its_own():
    degree = np.full(3000, 5)
    degree[1234] = 40_000
    chunks = schedule.cut_rows(np.append(0, np.cumsum(degree)))
    assert {1234, 1235} <= set(chunks.tolist())


def test_a_pattern_keeps_what_was_packed_and_adds_what_a_gradient_needs():
    pattern = build_pattern(np.array([[0, 1], [1, 0]]), (2, 2))
    first = schedule.packed(pattern, "test", schedule.CHUNKS, lambda made: made)
    assert schedule.packed(pattern, "test", schedule.CHUNKS, lambda made: made) is first
    assert "touched" not in first.arrays
    both = schedule.packed(pattern, "test", schedule.TOUCHED, lambda made: made)
    assert {"chunk_rows", "touched"} <= set(both.arrays)
    assert schedule.packed(pattern, "test", schedule.CHUNKS, lambda made: made) is both


def test_the_module_has_no_framework():
    assert not {"torch", "tensorflow"} & set(vars(operator_module))
