"""The compiled expansion for NumPy arrays."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest

from eqconv_cli import kernels
from eqconv_cli.backends.steerable import numpy_fused
from eqconv_cli.backends.steerable.options import Flag, Fused
from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels import contract, doors, library, sources
from tests.steerable.support_doors import assert_close, example, with_size
from tests.support import needs

built = needs("cpu")
DTYPES = ["float32", "float64"]
SHAPE = (6, 7, 9)


@built
@pytest.mark.parametrize("instructions", ["best", "avx2", "portable"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direct", [False, True])
def test_values(direct, dtype, instructions):
    packed, weights, filter, cotangent, gradient = example(direct, dtype)
    settings = Fused(instructions=instructions)
    assert_close(numpy_fused.expand(packed, weights, settings), filter, dtype)
    assert_close(numpy_fused.expand_transposed(packed, cotangent, settings), gradient, dtype)


@built
def test_a_given_output_is_written_and_returned():
    packed, weights, filter, *_ = example(False, "float64")
    out = np.full(filter.shape, np.nan)
    assert numpy_fused.expand(packed, weights, Fused(), out) is out
    assert_close(out, filter, "float64")


@built
def test_both_dtypes_of_one_layer_and_tables_that_go_with_it():
    packed, weights, filter, *_ = example(False, "float64")
    known = len(numpy_fused._known)
    for dtype in ("float64", "float32", "float64"):
        assert_close(numpy_fused.expand(packed, weights.astype(dtype), Fused()), filter, dtype)
    assert len(numpy_fused._known) == known + 1
    del packed
    gc.collect()
    assert len(numpy_fused._known) == known


@built
def test_the_number_of_threads_changes_no_bit():
    packed, weights, _, cotangent, _ = example(False, "float32")
    for threads in (2, 3):
        one, other = Fused(threads=1), Fused(threads=threads)
        np.testing.assert_array_equal(
            numpy_fused.expand(packed, weights, other), numpy_fused.expand(packed, weights, one)
        )
        np.testing.assert_array_equal(
            numpy_fused.expand_transposed(packed, cotangent, other),
            numpy_fused.expand_transposed(packed, cotangent, one),
        )


@pytest.mark.parametrize(
    ("weights", "out", "error", "message"),
    [
        (np.zeros(3), None, ValueError, r"weights has shape \(3,\): expected \("),
        (np.zeros((1, 3)), None, ValueError, r"weights has shape \(1, 3\)"),
        (np.zeros(3, np.float16), None, TypeError, "weights has dtype float16: allowed: float32, float64"),
        (None, np.zeros(SHAPE, np.float32), TypeError, "out has dtype float32: allowed: float64"),
        (None, np.zeros((6, 7, 3, 3)), ValueError, r"out has shape \(6, 7, 3, 3\): expected \(6, 7, 9\)"),
    ],
)
def test_arrays_are_checked(weights, out, error, message):
    packed, good, *_ = example(False, "float64")
    with pytest.raises(error, match=message):
        numpy_fused.expand(packed, good if weights is None else weights, Fused(), out)


def test_the_filter_is_checked():
    packed = example(False, "float64").packed
    with pytest.raises(ValueError, match=r"filter has shape \(6, 7, 8\): expected \(6, 7, 9\)"):
        numpy_fused.expand_transposed(packed, np.zeros((6, 7, 8)), Fused())


@built
@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("out_fields", 5, "packed.words has shape"),
        ("table_size", 300, "packed.words has shape"),
        ("permutations", 4, "packed.words has shape"),
        ("harmonics", 6, "packed.reals has shape"),
        ("values_size", 1, "packed.reals has shape"),
        ("types", 1000, "packed.table_size is .*: 1000 types have more numbers"),
        ("types", -1, "packed has sizes below 0: {'types': -1}"),
    ],
)
def test_tables_are_as_long_as_their_sizes_say(name, size, message):
    packed, weights, *_ = example(False, "float64")
    with pytest.raises(ValueError, match=message):
        numpy_fused.expand(with_size(packed, name, size), weights, Fused())


@built
def test_strides_are_refused():
    packed, weights, *_ = example(False, "float64")
    with pytest.raises(ValueError, match="weights has strides"):
        numpy_fused.expand(packed, np.repeat(weights, 2)[::2], Fused())


def test_sizes_are_those_of_the_struct():
    packed = example(True, "float64").packed
    operation = contract.operations(sources.root())["expand_forward"]
    names = [name for name, field in operation.fields.items() if not field.is_pointer]
    assert names == [*numpy_fused._SIZES, "flags", "threads"]
    assert packed.sizes == tuple(getattr(packed, name) for name in numpy_fused._SIZES)


def test_flags_are_those_of_the_header():
    header = (sources.root() / "steerable" / "steerable.h").read_text()
    assert f"EQC_ST_DIRECT = {Flag.DIRECT}" in header


def test_missing_kernels_are_named(monkeypatch):
    monkeypatch.setattr(kernels, "missing", lambda target: [f"{target} is not built"])
    monkeypatch.setattr(kernels, "built", lambda target: None)
    doors.missing_kernels.cache_clear()
    library.load.cache_clear()
    packed, weights, *_ = example(True, "float32")
    try:
        assert numpy_fused.missing(Fused(), "cpu") == ["cpu is not built"]
        assert numpy_fused.missing(Fused(core="emulated"), "emulated") == ["emulated is not built"]
        assert numpy_fused.missing(Fused(), "cuda") == ["NumPy arrays are on the cpu, not on cuda"]
        with pytest.raises(Unavailable, match="cpu is not built"):
            numpy_fused.expand(packed, weights, Fused())
    finally:
        doors.missing_kernels.cache_clear()
        library.load.cache_clear()


def test_settings_are_checked():
    with pytest.raises(ValueError, match="instructions='sse' is unknown"):
        replace(Fused(), instructions="sse")
