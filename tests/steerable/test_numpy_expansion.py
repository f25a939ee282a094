"""Every algorithm gives the filter of the formula, and its transposed pipeline the gradient."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eqconv_cli import kernels
from eqconv_cli.backends.steerable import arguments, numpy_expansion
from eqconv_cli.backends.steerable.arguments import ALGORITHMS, COMPILED, COMPOSITIONS
from eqconv_cli.backends.steerable.basis import forget_bases
from eqconv_cli.backends.steerable.fields import FieldType, Space
from eqconv_cli.backends.steerable.numpy_expansion import expand, expand_backward
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.backends.steerable.plan import Plan
from eqconv_cli.errors import Unavailable
from eqconv_cli.maths.planar_groups import parse_group
from eqconv_cli.maths.representations import change_basis, induced, irrep, regular
from tests.steerable.support import EVERY, Oracle, plan_for, quiet_plan

HERE = ALGORITHMS if not kernels.missing("cpu") else COMPOSITIONS
EXACT = {"float32": 2e-6, "float64": 2e-14}

#: Group, in fields, out fields, kernel size, axis, options.
LAYERS: tuple[tuple[str, str, str, int, float, dict[str, Any]], ...] = (
    ("C1", "2*trivial", "3*trivial", 3, 0.0, {}),
    ("C4", "regular", "2*regular", 3, 0.0, {}),
    ("C4", "regular+irrep:1+regular+irrep:1", "2*irrep:1+2*irrep:1", 3, 0.0, {"groups": 2, "dilation": 2}),
    ("C8", "regular+2*irrep:1+quotient:2+regular", "regular+trivial+regular", 5, 0.0, {}),
    ("C8", "2*regular", "irrep:0+irrep:4+irrep:3", 1, 0.0, {}),
    ("C8", "regular", "regular", 2, 0.0, {"rings": [0.7], "sigma": 0.5, "frequencies_cutoff": 2}),
    ("C5", "regular+irrep:2", "regular", 6, 0.0, {}),
    ("C6", "regular", "quotient:3", 7, 0.0, {"frequencies_cutoff": lambda r: 3 * r, "maximum_offset": 1}),
    ("flip", "regular+irrep:1", "irrep:0+2*regular", 7, np.pi / 4, {}),
    ("D2", "regular+quotient:0,1", "regular", 4, np.pi / 2, {}),
    ("D4", "regular+irrep:1,1+quotient:0,1+regular", "quotient:2+regular+irrep:1,0+quotient:2", 5, np.pi / 4, {}),
    ("D4", "regular", "regular+irrep:1,1", 3, 0.3, {}),
    ("D8", "regular", "regular+irrep:0,4", 5, np.pi / 2, {}),
    ("SO(2)", "irrep:0+irrep:1+irrep:2+irrep:1", "irrep:1+irrep:3+irrep:0", 7, 0.0, {}),
    ("O(2)", "irrep:0,0+irrep:1,0+irrep:1,1+irrep:1,2", "irrep:1,1+irrep:0,0+irrep:1,0", 5, 0.4, {}),
)
NAMES = [f"{group}-k{k}" for group, _, _, k, _, _ in LAYERS]


@pytest.fixture(scope="module")
def layers() -> list[tuple[Plan, Oracle]]:
    plans = [plan_for(group, a, b, k, axis, **options) for group, a, b, k, axis, options in LAYERS]
    return [(plan, Oracle(plan)) for plan in plans]


@pytest.mark.parametrize("algorithm", EVERY)
@pytest.mark.parametrize("number", range(len(LAYERS)), ids=NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_filter_and_gradient_are_those_of_the_formula(
    layers: list[tuple[Plan, Oracle]], number: int, algorithm: str, dtype: str
) -> None:
    plan, oracle = layers[number]
    rng = np.random.default_rng(number)
    weights = rng.normal(size=plan.weights_size).astype(dtype)
    grad = rng.normal(size=plan.filter_shape).astype(dtype)
    made, back = expand(plan, weights, algorithm=algorithm), expand_backward(plan, grad, algorithm=algorithm)
    assert made.shape == plan.filter_shape and made.dtype == dtype and back.dtype == dtype
    wanted, gradient = oracle.expand(weights), oracle.transposed(grad)
    np.testing.assert_allclose(made, wanted, rtol=0, atol=EXACT[dtype] * max(1, np.abs(wanted).max()))
    np.testing.assert_allclose(back, gradient, rtol=0, atol=EXACT[dtype] * max(1, np.abs(gradient).max()))
    forward = (made.astype(np.float64) * grad).sum() / np.linalg.norm(grad)
    assert forward == pytest.approx(
        (back.astype(np.float64) * weights).sum() / np.linalg.norm(grad), abs=10 * EXACT[dtype]
    )


#: QUVA-Lab/e2cnn test/nn/test_basisexpansion_bk.py: groups, with irreps up to frequency 4, k=7.
ORIGINALS = {
    "C8": ("C8", np.pi / 2, True),
    "D8": ("D8", np.pi / 2, True),
    "SO(2)": ("SO(2)", np.pi / 2, False),
    "O(2)": ("O(2)", np.pi / 2, False),
    "Flip": ("flip", np.pi / 4, True),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_cases_of_e2cnn(name: str, order: str) -> None:
    word, axis, finite = ORIGINALS[name]
    group, rng = parse_group(word), np.random.default_rng(3)
    fields = [irrep(group, *psi.id) for psi in group.irreps(4)]
    fields += [regular(group)] * 2 if finite else fields[:2]
    fields.sort(key=lambda field: field.name)
    space = Space(group, axis)
    types = []
    for _ in range(2):
        kept = [fields[i] for i in rng.permutation(len(fields))] if order == "shuffled" else list(fields)
        types.append(FieldType(space, tuple(kept)))
    plan = quiet_plan(types[0], types[1], 7)
    oracle = Oracle(plan)
    ones = np.eye(plan.weights_size)[rng.choice(plan.weights_size, min(20, plan.weights_size), replace=False)]
    for weights in (*ones, *rng.normal(size=(20, plan.weights_size))):
        wanted = oracle.expand(weights)
        for algorithm in HERE:
            np.testing.assert_allclose(expand(plan, weights, algorithm=algorithm), wanted, rtol=0, atol=1e-13)


#: Fields to choose from.
MENU = {
    "C1": ["trivial"],
    "C4": ["regular", "irrep:1", "irrep:2", "quotient:2"],
    "C3": ["regular", "irrep:0", "irrep:1"],
    "flip": ["regular", "irrep:0", "irrep:1"],
    "D3": ["regular", "irrep:1,1", "irrep:1,0", "quotient:0,1", "quotient:1"],
    "SO(2)": ["irrep:0", "irrep:1", "irrep:3"],
    "O(2)": ["irrep:0,0", "irrep:1,0", "irrep:1,2"],
}
layer_words = st.sampled_from(sorted(MENU)).flatmap(
    lambda group: st.tuples(st.just(group), *[st.lists(st.sampled_from(MENU[group]), min_size=1, max_size=5)] * 2)
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layer_words, st.sampled_from([1, 3, 4, 5]), st.floats(0, 3), st.integers(0, 2**31))
def test_random_mixes_of_fields(words: tuple[str, list[str], list[str]], k: int, axis: float, seed: int) -> None:
    group, inside, outside = words
    try:
        plan = plan_for(group, "+".join(inside), "+".join(outside), k, axis)
    except ValueError as error:
        assert "no kernel" in str(error)
        return
    rng = np.random.default_rng(seed)
    weights, grad = rng.normal(size=plan.weights_size), rng.normal(size=plan.filter_shape)
    oracle = Oracle(plan)
    wanted, gradient = oracle.expand(weights), oracle.transposed(grad)
    for algorithm in HERE:
        np.testing.assert_allclose(expand(plan, weights, algorithm=algorithm), wanted, rtol=0, atol=1e-12)
        np.testing.assert_allclose(expand_backward(plan, grad, algorithm=algorithm), gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("algorithm", EVERY)
def test_coordinates_that_are_not_orthogonal(algorithm: str) -> None:
    """Q^-1 is no transpose, and the grid's symmetries do more than permute channels."""
    group = parse_group("C4")
    rng = np.random.default_rng(0)
    skew = change_basis(regular(group), rng.normal(size=(4, 4)) + 3 * np.eye(4), "skew")
    space = Space(group)
    fields = FieldType(space, (skew, regular(group), skew))
    plan = quiet_plan(fields, FieldType(space, (skew, induced(group, 2, (1,)))), 3)
    weights, grad = rng.normal(size=plan.weights_size), rng.normal(size=plan.filter_shape)
    oracle = Oracle(plan)
    np.testing.assert_allclose(expand(plan, weights, algorithm=algorithm), oracle.expand(weights), atol=1e-12)
    np.testing.assert_allclose(expand_backward(plan, grad, algorithm=algorithm), oracle.transposed(grad), atol=1e-12)


@pytest.mark.parametrize("algorithm", EVERY)
def test_every_number_of_out_is_written(algorithm: str) -> None:
    plan = plan_for("SO(2)", "irrep:0+irrep:9+irrep:0", "irrep:0+irrep:1", 3)
    weights = np.random.default_rng(0).normal(size=plan.weights_size)
    wanted = expand(plan, weights, algorithm=algorithm)
    # No kernel of frequencies up to 2 takes frequency 9 to 0 or 1.
    assert not wanted[:, 1:3].any() and wanted[:, 0].any() and wanted[:, 3].any()
    out = np.full(plan.filter_shape, np.nan)
    assert expand(plan, weights, algorithm=algorithm, out=out) is out
    assert np.array_equal(out, wanted)


@pytest.mark.parametrize("algorithm", EVERY)
def test_strided_arrays_are_read_as_they_are(algorithm: str) -> None:
    plan = plan_for("C4", "regular+irrep:1", "2*regular", 3)
    rng = np.random.default_rng(0)
    weights, grad = (
        rng.normal(size=2 * plan.weights_size)[::2],
        rng.normal(size=plan.filter_shape).astype("f", order="F"),
    )
    assert np.array_equal(expand(plan, weights, algorithm=algorithm), expand(plan, weights.copy(), algorithm=algorithm))
    contiguous = np.ascontiguousarray(grad)
    assert np.array_equal(
        expand_backward(plan, grad, algorithm=algorithm), expand_backward(plan, contiguous, algorithm=algorithm)
    )


def test_constants_live_as_long_as_the_plan() -> None:
    forget_bases()
    plan = plan_for("C3", "regular", "regular", 3)
    for algorithm in COMPOSITIONS:
        expand(plan, np.zeros(plan.weights_size), algorithm=algorithm)
    basis = weakref.ref(plan.pairs[0].basis)
    forget_bases()
    del plan
    gc.collect()
    assert basis() is None


def test_arguments_are_checked() -> None:
    plan = plan_for("C4", "regular", "regular", 3)
    weights, grad = np.zeros(plan.weights_size), np.zeros(plan.filter_shape)
    with pytest.raises(
        ValueError, match=r"weights has shape \(23,\): expected \(24,\), regular -> regular: 1 x 1 x 24"
    ):
        expand(plan, weights[1:])
    with pytest.raises(TypeError, match="weights has dtype int64: allowed: float32, float64"):
        expand(plan, weights.astype(int))
    with pytest.raises(ValueError, match="algorithm='fast' is unknown: allowed: auto, dense, "):
        expand(plan, weights, algorithm="fast")
    with pytest.raises(ValueError, match="only fused, fused_orbit, fused_direct have them"):
        expand(plan, weights, algorithm="dense", settings=Fused())
    with pytest.raises(ValueError, match=r"out has shape \(1,\): expected \(4, 4, 3, 3\)"):
        expand(plan, weights, out=np.zeros(1))
    with pytest.raises(TypeError, match="out has dtype float32 but weights has dtype float64"):
        expand(plan, weights, out=grad.astype("f"))
    with pytest.raises(ValueError, match="out must be C-contiguous"):
        expand(plan, weights, out=np.zeros(plan.filter_shape, order="F"))
    with pytest.raises(ValueError, match=r"grad_filter has shape \(4, 4, 9\)"):
        expand_backward(plan, grad.reshape(4, 4, 9))
    with pytest.raises(TypeError, match="grad_filter has dtype float16"):
        expand_backward(plan, grad.astype("float16"))


def test_auto_and_missing_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments.choose("auto", None, lambda how: []) == ("fused_orbit", Fused())
    assert arguments.choose("auto", None, lambda how: ["no core"]) == ("harmonic", None)
    with pytest.raises(Unavailable, match="no core"):
        arguments.choose("auto", Fused(threads=1), lambda how: ["no core"])
    monkeypatch.setattr(numpy_expansion.numpy_fused, "missing", lambda settings, device: ["no core"])
    plan = plan_for("C4", "regular", "regular", 3)
    weights = np.ones(plan.weights_size)
    assert np.array_equal(expand(plan, weights), expand(plan, weights, algorithm="harmonic"))
    for algorithm in COMPILED:
        with pytest.raises(Unavailable, match=f"algorithm='{algorithm}': no core"):
            expand(plan, weights, algorithm=algorithm)
