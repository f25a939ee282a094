"""The CUDA kernels of the expansion of steerable kernels, run by the emulated device, against plain sums in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eqconv_cli import kernels
from eqconv_cli.errors import EqconvError
from tests.steerable import support_core as core
from tests.steerable.support_core import Arrays, backward, forward

pytestmark = pytest.mark.skipif(bool(kernels.missing("emulated")), reason="; ".join(kernels.missing("emulated")))

TOLERANCE = {"float32": 2e-6, "float64": 4e-15}
LAYERS: dict[str, dict[str, Any]] = {
    "ragged": {},
    "no type": {"without": 1.0},
    "many small fields": {"out_fields": 3, "in_fields": 40, "sizes": (1, 2), "without": 0.1},
    "full tiles": {"out_fields": 265, "in_fields": 33, "sizes": (1, 2, 3, 4), "pixels": 2, "harmonics": 2},
    "one pair": {"out_fields": 1, "in_fields": 1, "without": 0.0},
    "empty fields": {"sizes": (0, 3, 1)},
    "rows for a block": {"out_fields": 2, "in_fields": 3, "sizes": (8, 17), "without": 0.0},
    "one pixel": {"pixels": 1, "permutations": 1},
    "nine pixels": {"pixels": 9, "harmonics": 6, "permutations": 8},
    "sixteen pixels": {"pixels": 16, "harmonics": 5, "permutations": 8},
    "seventeen pixels": {"pixels": 17, "harmonics": 5},
    "thirty-two pixels": {"pixels": 32, "harmonics": 16},
    "eighty-one pixels": {"pixels": 81, "harmonics": 31, "permutations": 8, "sizes": (2, 3)},
    "chunks of pixels": {"pixels": 289, "harmonics": 9, "out_fields": 3, "in_fields": 2, "sizes": (2, 3)},
    "chunks of harmonics": {"pixels": 9, "harmonics": 150, "out_fields": 2, "in_fields": 3, "sizes": (1, 4)},
    "chunks of both": {"pixels": 140, "harmonics": 80, "out_fields": 2, "in_fields": 2, "sizes": (1, 3)},
}
layers = pytest.mark.parametrize("name", LAYERS)
both_ways = pytest.mark.parametrize("direct", [False, True], ids=["harmonics", "direct"])
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


def made(name: str, direct: bool, dtype: str = "float32") -> Arrays:
    return core.layer(sum(map(ord, name)), direct=direct, dtype=dtype, **LAYERS[name])


def with_elements(f: Arrays, elements: int, ascending: bool) -> Arrays:
    """The same layer, by harmonics, where every type has this many elements, ascending within a harmonic or not."""
    rng = np.random.default_rng(elements)
    table, pairs = f["table"].copy(), f["pairs"].copy()
    for record in table[: f["types"] * core.RECORD].reshape(-1, core.RECORD):
        record[2] = elements
        used, at = record[4], record[6]
        for _, slots, first in table[at : at + 3 * used].reshape(-1, 3):
            chosen = rng.choice(elements, slots, replace=not ascending)
            table[at + 3 * used + first :][:slots] = np.sort(chosen) if ascending else chosen
    typed = pairs[..., 0] >= 0
    pairs[typed, 1] = elements * rng.permutation(typed.sum())
    weights = rng.standard_normal(elements * typed.sum()).astype(f["weights"].dtype)
    return {**f, "table": table, "pairs": pairs, "weights": weights, "weights_size": len(weights)}


def assert_near(actual: np.ndarray, expected: np.ndarray) -> None:
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[actual.dtype.name] * scale)


@layers
@both_ways
@both_dtypes
def test_filter(name: str, direct: bool, dtype: str) -> None:
    f = made(name, direct, dtype)
    assert_near(forward("emulated", f), core.expected_filter(f))


@layers
@both_ways
@both_dtypes
def test_weights(name: str, direct: bool, dtype: str) -> None:
    f = made(name, direct, dtype)
    assert_near(backward("emulated", f), core.expected_weights(f))


@pytest.mark.parametrize("name", ["rows for a block", "nine pixels", "chunks of harmonics"])
@pytest.mark.parametrize("elements", [23, 300, 600, 1100])
@pytest.mark.parametrize("ascending", [True, False], ids=["ascending", "repeated"])
def test_many_elements(name: str, elements: int, ascending: bool) -> None:
    f = with_elements(made(name, False), elements, ascending)
    assert_near(forward("emulated", f), core.expected_filter(f))
    assert_near(backward("emulated", f), core.expected_weights(f))


@pytest.mark.parametrize("name", ["ragged", "full tiles"])
def test_weights_without_a_harmonic_have_no_effect(name: str) -> None:
    f = made(name, False)
    records = f["table"][: f["types"] * core.RECORD].reshape(-1, core.RECORD)
    records[:, 6] += 3 * records[:, 4] + records[:, 5]
    records[:, 4:6] = 0
    assert not forward("emulated", f).any()
    assert not backward("emulated", f).any()


@both_ways
def test_one_map_is_the_transpose_of_the_other(direct: bool) -> None:
    f = core.layer(5, direct=direct, dtype="float64")
    there = float(np.vdot(forward("emulated", f), f["filter"]))
    back = float(np.vdot(f["weights"], backward("emulated", f)))
    assert there == pytest.approx(back, rel=1e-12)


@pytest.mark.parametrize(
    "sizes",
    [
        {"out_fields": 0},
        {"in_fields": 0},
        {"out_fields": 0, "in_fields": 0},
        {"pixels": 0},
        {"sizes": (0,)},
        {"without": 1.0},
    ],
)
@both_ways
def test_nothing_to_do(sizes: dict[str, Any], direct: bool) -> None:
    f = core.layer(3, direct=direct, **sizes)
    np.testing.assert_array_equal(forward("emulated", f), core.expected_filter(f))
    np.testing.assert_array_equal(backward("emulated", f), core.expected_weights(f))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": -1}, "impossible"),
        ({"weights": None}, "impossible"),
        ({"pairs": None}, "impossible"),
        ({"permutations": 0}, "impossible"),
        ({"harmonic": None}, "impossible"),
        ({"out_channels": 2**40}, "does not compute"),
        ({"harmonics": 2**40}, "does not compute"),
    ],
)
def test_bad_arguments(change: Arrays, message: str) -> None:
    f = {**core.layer(11), **change}
    for operation in ("expand_forward", "expand_backward"):
        with pytest.raises(EqconvError, match=message):
            kernels.core("emulated").call(operation, np.float32, f)


@pytest.mark.parametrize("operation", ["expand_forward", "expand_backward"])
def test_a_list_beyond_its_array_is_a_fault(operation: str) -> None:
    f = core.layer(11)
    with pytest.raises(EqconvError, match="of a view of"):
        kernels.core("emulated").call(operation, np.float32, {**f, "values_size": f["values_size"] // 2})
