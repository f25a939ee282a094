"""Random layers as the doors take them, with both directions as plain sums in float64."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np

from eqconv_cli.backends.steerable.packed import Packed
from tests.steerable import support_core

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
_WORDS = ("pairs", "out_starts", "in_starts", "table")


class Example(NamedTuple):
    packed: Packed
    weights: np.ndarray
    #: What the weights expand to.
    filter: np.ndarray
    #: A cotangent of the filter.
    cotangent: np.ndarray
    #: What the transposed map makes of it.
    gradient: np.ndarray


def example(direct: bool, dtype: str) -> Example:
    """A layer with pairs without a type, types that several pairs share, and rows with several images."""
    f = support_core.layer(3, 4, 3, pixels=9, harmonics=5, permutations=3, sizes=(1, 2, 3), direct=direct, dtype=dtype)
    permutation = f["permutation"][: f["permutations"]]
    words = np.concatenate([*(np.ravel(f[name]) for name in _WORDS), permutation.ravel()])
    reals = np.concatenate([np.ravel(f["values"]), np.ravel(f["harmonic"][: f["harmonics"]])])
    numbers = {field.name: f[field.name] for field in fields(Packed) if field.name in f}
    packed = Packed(words, reals.astype(float), **numbers, direct=direct)
    found = support_core.expected_filter(f), f["filter"], support_core.expected_weights(f)
    return Example(packed, f["weights"], *found)


def assert_close(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * max(1.0, np.abs(expected).max()))


def with_size(packed: Packed, name: str, size: int) -> Packed:
    """A layer one of whose sizes is wrong."""
    return replace(packed, **{name: size})
