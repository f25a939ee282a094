"""Plans that the expansions of PyTorch and TensorFlow are compared on, in order of size."""

from __future__ import annotations

from functools import cache

import numpy as np

from eqconv_cli.backends.steerable.fields import FieldType, Space
from eqconv_cli.backends.steerable.plan import Plan
from eqconv_cli.maths.planar_groups import parse_group
from eqconv_cli.maths.representations import change_basis, regular
from tests.steerable.support import plan_for, quiet_plan
from tests.steerable.support_layers import dense_filter

TOLERANCE = {"float32": 2e-6, "float64": 1e-13}

#: Group, in fields, out fields, kernel size, axis: one pair type and several, in order and mixed, with pairs of fields
#: that have no kernels, with and without symmetries of the grid, and with an element of all.
_WORDS = {
    "single-element": ("C4", "trivial", "trivial", 1, 0.0),
    "trivial-group": ("C1", "2*trivial", "3*trivial", 3, 0.0),
    "missing-pairs": ("SO(2)", "irrep:0+irrep:9+irrep:0", "irrep:0+irrep:1", 3, 0.0),
    "mirror": ("flip", "regular+irrep:1", "irrep:0+2*regular", 3, np.pi / 4),
    "continuous-mirror": ("O(2)", "irrep:0,0+irrep:1,0+irrep:1,1+irrep:1,2", "irrep:1,1+irrep:0,0+irrep:1,0", 5, 0.4),
    "continuous": ("SO(2)", "irrep:0+irrep:1+irrep:2+irrep:1", "irrep:1+irrep:3+irrep:0", 7, 0.0),
    "one-type": ("C4", "2*regular", "3*regular", 3, 0.0),
    "even": ("D4", "regular", "regular+irrep:1,1", 4, 0.3),
    "signs": ("D4", "regular+irrep:1,1+quotient:0,1+irrep:1,1", "quotient:2+regular", 3, np.pi / 4),
    "mixed": ("C8", "regular+2*irrep:1+quotient:2+regular", "regular+trivial+regular", 5, 0.0),
}
NAMES = (*_WORDS, "not-orthogonal")
#: Small enough for numerical derivatives.
SMALL = ("single-element", "missing-pairs", "mirror", "continuous-mirror")


@cache
def plan(name: str) -> Plan:
    """The plan of this name."""
    if name != "not-orthogonal":
        return plan_for(*_WORDS[name])
    group = parse_group("C4")
    skew = change_basis(regular(group), np.random.default_rng(0).normal(size=(4, 4)) + 3 * np.eye(4), "skew")
    fields = FieldType(Space(group), (skew, regular(group), skew))
    return quiet_plan(fields, FieldType(fields.space, (regular(group), skew)), 3)


@cache
def example(name: str, dtype: str) -> tuple[np.ndarray, ...]:
    """Weights, their filter, a gradient of the filter, and the one of the weights: plain sums in float64."""
    layer, rng = plan(name), np.random.default_rng(NAMES.index(name))
    weights = rng.normal(size=layer.weights_size).astype(dtype)
    cotangent = rng.normal(size=layer.filter_shape).astype(dtype)
    gradient = [(dense_filter(layer, one) * cotangent).sum() for one in np.eye(layer.weights_size)]
    return weights, dense_filter(layer, weights.astype(float)), cotangent, np.array(gradient)


def assert_close(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    assert found.dtype == dtype and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * max(1.0, np.abs(expected).max()))
