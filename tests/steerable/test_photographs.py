"""Layers on photographs that installed packages carry: what is measured there is not smooth by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eqconv_cli.backends.packaged_data import packaged_file
from eqconv_cli.backends.pictures import picture
from eqconv_cli.backends.steerable.equivariance import layer_errors, original_check, resized, rotation_errors
from eqconv_cli.backends.steerable.fields import Space
from eqconv_cli.backends.steerable.initialisation import generalised_he
from eqconv_cli.backends.steerable.plan import Plan, make_plan
from tests.steerable.support_kernels import Array, broken, filter_of, layer

#: A portrait in Matplotlib's samples, and the two photographs of scikit-learn.
PHOTOGRAPHS = {
    "portrait": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "temple": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}
LAYERS = (
    ("C8", math.pi / 2, "regular", 5),
    ("D8", math.pi / 2, "regular", 5),
    ("SO2", 0.0, "irrep:0+irrep:1+irrep:2", 7),
    ("O2", 0.4, "irrep:0,0+irrep:1,1+irrep:1,2", 7),
)
layers = pytest.mark.parametrize(("group", "axis", "out_fields", "k"), LAYERS)


@pytest.fixture(params=PHOTOGRAPHS)
def photograph(request: pytest.FixtureRequest) -> Array:
    """The middle square as [3, side, side], from -0.5 to 0.5."""
    pytest.importorskip("PIL")
    path = packaged_file(*PHOTOGRAPHS[request.param])
    if path is None:
        pytest.skip(f"{PHOTOGRAPHS[request.param][1]} is not installed")
    image = picture(path)
    least = min(image.shape[:2])
    top, left = ((extent - least) // 2 for extent in image.shape[:2])
    return image[top : top + least, left : left + least].transpose(2, 0, 1) - 0.5


def lifting(group: str, axis: float, out_fields: str, k: int) -> Plan:
    space = Space.of(group, axis)
    return make_plan(space.trivial_fields(3), space.fields(out_fields), k)


def filter_for(plan: Plan) -> Array:
    return filter_of(plan, generalised_he(plan, np.random.default_rng(0)))


@layers
def test_turns_by_90_degrees_change_nothing(
    photograph: Array, group: str, axis: float, out_fields: str, k: int
) -> None:
    plan = lifting(group, axis, out_fields, k)
    x = resized(photograph, 65)[None]
    for stride in (1, 2):
        convolve = layer(filter_for(plan), stride, padding=k // 2)
        errors = layer_errors(convolve, plan.in_type, plan.out_type, x, stride=stride)
        assert len(errors) >= 4 and max(error.relative for error in errors) < 1e-13
        single = layer_errors(convolve, plan.in_type, plan.out_type, x.astype(np.float32), stride=stride)
        assert max(error.relative for error in single) < 1e-6


@layers
def test_other_turns_change_little(photograph: Array, group: str, axis: float, out_fields: str, k: int) -> None:
    plan = lifting(group, axis, out_fields, k)
    x = resized(photograph, 65)[None]
    every = plan.out_type.space.group.test_elements
    elements = every if plan.out_type.space.group.is_finite else every[::6]
    plain = np.random.default_rng(0).normal(size=plan.filter_shape)
    sound, spoilt, other = (
        max(
            error.relative
            for error in rotation_errors(layer(filter, padding=k // 2), plan.in_type, plan.out_type, x, elements)
        )
        for filter in (filter_for(plan), filter_for(broken(plan)), plain)
    )
    assert sound < 0.06 and spoilt > 0.12 and other > 1


@pytest.mark.slow
@pytest.mark.parametrize(("group", "k"), [("C8", 5), ("C16", 7), ("D8", 5)])
def test_escnn_would_accept_it(photograph: Array, group: str, k: int) -> None:
    plan = lifting(group, math.pi / 2, "regular", k)
    elements = plan.out_type.space.group.elements[1:4]
    accepted = original_check(
        layer(filter_for(plan), padding=k // 2), plan.in_type, plan.out_type, photograph, k, k // 2, elements
    )
    assert all(result.worst < 0.5 for result in accepted)
    plain = np.random.default_rng(0).normal(size=plan.filter_shape) / np.sqrt(3 * k * k)
    refused = original_check(layer(plain, padding=k // 2), plan.in_type, plan.out_type, photograph, k, k // 2, elements)
    assert not any(result.passed for result in refused)
