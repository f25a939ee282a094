"""Initial weights: unit variance, closed form against a count weight by weight, orthogonal centres."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from eqconv_cli.backends.steerable.basis import Attributes
from eqconv_cli.backends.steerable.bias import bias_map
from eqconv_cli.backends.steerable.fields import FieldType, Space
from eqconv_cli.backends.steerable.initialisation import delta_orthogonal, generalised_he, he_standard_deviations
from eqconv_cli.backends.steerable.plan import Plan, make_plan
from eqconv_cli.maths.representations import direct_sum, trivial
from tests.steerable.support_layers import dense_filter

FIELDS = {
    "C4": ("regular+irrep:1+2*trivial+irrep:1", "irrep:1+regular+quotient:2"),
    "D4": ("irrep:1,1+quotient:0,1+trivial", "quotient:2+irrep:1,1+irrep:0,2+irrep:1,1"),
    "SO2": ("irrep:1+irrep:0+irrep:2+irrep:1", "irrep:2+irrep:0+irrep:3"),
    "O2": ("irrep:1,1+irrep:0,0+irrep:1,2", "irrep:1,0+irrep:1,2+irrep:1,1+irrep:0,0"),
}


def make(group: str, size: int = 5, **options: object) -> Plan:
    space = Space.of(group)
    given, out = FIELDS[group]
    return make_plan(space.fields(given), space.fields(out), size, **options)  # type: ignore[arg-type]


def by_counting(plan: Plan) -> np.ndarray:
    """The deviations as QUVA-Lab/e2cnn ``nn/init.py`` finds them: a record for each weight."""
    records = []
    for pair in plan.pairs:
        for out_field in pair.out_fields:
            for _ in pair.in_fields:
                records += [((out_field, e.oo), e.in_irrep) for e in pair.basis.elements]
    counts = Counter(records)
    kinds = Counter(position for position, _ in counts)
    return np.array([1 / np.sqrt(kinds[position] * counts[position, kind]) for position, kind in records])


def spread(plan: Plan) -> np.ndarray:
    parts = zip(plan.pairs, he_standard_deviations(plan), strict=True)
    return np.concatenate([np.broadcast_to(found, pair.shape).ravel() for pair, found in parts])


@pytest.mark.parametrize("group", FIELDS)
def test_deviations_are_those_of_a_count_weight_by_weight(group: str) -> None:
    np.testing.assert_allclose(spread(make(group)), by_counting(make(group)), rtol=1e-14)


def test_deviations_with_a_filtered_basis() -> None:
    def unlike(element: Attributes) -> bool:
        return element.ii != 1 or element.oo == 0

    plan = make("D4", basis_filter=unlike)
    np.testing.assert_allclose(spread(plan), by_counting(plan), rtol=1e-14)


def test_he_draws_with_these_deviations() -> None:
    plan = make("C4")
    drawn = generalised_he(plan, np.random.default_rng(5))
    np.testing.assert_allclose(drawn, np.random.default_rng(5).standard_normal(plan.weights_size) * by_counting(plan))


@pytest.mark.parametrize("group", FIELDS)
def test_unit_variance(group: str) -> None:
    """The check of e2cnn's ``test_he_init.py``: 1000 draws, batches of 10, here at one pixel of the output."""
    plan = make(group, 7, sigma=[0.01, 0.6, 0.6, 0.6], frequencies_cutoff=lambda r: 3 * r)
    rng = np.random.default_rng(0)
    outputs = np.empty((1000, 10, plan.out_type.size))
    for number in range(1000):
        x = rng.standard_normal((10, plan.in_type.size * plan.sampling.pixels))
        filter = dense_filter(plan, generalised_he(plan, rng))
        outputs[number] = x @ filter.reshape(len(filter), -1).T
    assert abs(outputs.mean()) < 0.05
    assert abs(outputs.std() - 1) < 0.1
    # A field's irreps each have unit variance, and so has each channel of these orthogonal fields on the average.
    for start, end in zip(plan.out_type.starts, plan.out_type.starts[1:], strict=False):
        assert abs(outputs[..., start:end].std() - 1) < 0.1


def centre_and_rest(filter: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    half = filter.shape[-1] // 2
    rest = filter.copy()
    rest[:, :, half, half] = 0
    return filter[:, :, half, half], rest


@pytest.mark.parametrize(
    ("group", "given", "out"),
    [
        ("C8", "2*regular", "3*regular"),
        ("C4", "regular+irrep:1+trivial", "regular+2*irrep:1+quotient:2+trivial"),
        ("D4", "regular+irrep:1,1", "irrep:1,1+2*regular"),
        ("O2", "irrep:1,1+irrep:0,0+irrep:1,2", "2*irrep:1,1+irrep:1,2+irrep:0,0"),
        ("C1", "3*trivial", "3*trivial"),
    ],
)
def test_delta_orthogonal(group: str, given: str, out: str) -> None:
    space = Space.of(group)
    plan = make_plan(space.fields(given), space.fields(out), 7)
    centre, rest = centre_and_rest(dense_filter(plan, delta_orthogonal(plan, np.random.default_rng(1))))
    squares = centre.T @ centre
    np.testing.assert_allclose(squares, np.eye(plan.in_type.size) * squares[0, 0], atol=5e-7)
    assert squares[0, 0] > 0.5
    assert np.abs(rest).max() < 1e-7


def test_delta_orthogonal_in_groups() -> None:
    space = Space.of("C8")
    plan = make_plan(space.regular_fields(4), space.regular_fields(6), 3, groups=2)
    filter = dense_filter(plan, delta_orthogonal(plan, np.random.default_rng(1), groups=2))
    for half in np.split(filter, 2):
        centre, _ = centre_and_rest(half)
        np.testing.assert_allclose(centre.T @ centre, np.eye(16), atol=1e-12)


def test_delta_orthogonal_refuses() -> None:
    rng, space = np.random.default_rng(0), Space.of("C4")
    regular = space.regular_fields(1)
    with pytest.raises(ValueError, match="irrep 0 have 0 elements at radius 0"):
        delta_orthogonal(make_plan(regular, regular, 4), rng)
    with pytest.raises(ValueError, match="irrep 0 have 0 or 1 elements at radius 0"):
        mixed = FieldType(space, (trivial(space.group), direct_sum(space.fields("irrep:1+trivial").representations)))
        delta_orthogonal(make_plan(mixed, mixed, 3, basis_filter=lambda e: e.in_irrep != (0,) or e.ii == 0), rng)
    with pytest.raises(ValueError, match="irrep_1 and irrep_0 share no irrep"):
        delta_orthogonal(make_plan(space.fields("irrep:1"), space.fields("trivial"), 3), rng)


def test_one_generator_one_result() -> None:
    plan = make("C4")
    for scheme in (generalised_he, delta_orthogonal):
        first, again = (scheme(plan, np.random.default_rng(3)) for _ in range(2))
        np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("group", FIELDS)
def test_a_bias_is_left_alone_by_the_group(group: str) -> None:
    space = Space.of(group)
    fields = space.fields(FIELDS[group][1] + "+trivial")
    matrix = bias_map(fields).matrix()
    trivial = space.group.trivial_irrep.id
    assert matrix.shape == (fields.size, sum(field.irreps.count(trivial) for field in fields.representations))
    assert np.linalg.matrix_rank(matrix) == matrix.shape[1]
    for g in space.group.test_elements:
        np.testing.assert_allclose(fields.matrix(g) @ matrix, matrix, atol=1e-12)


def test_a_field_with_two_trivial_irreps_has_two_numbers() -> None:
    space = Space.of("C4")
    doubled = FieldType(
        space, (direct_sum(space.fields("trivial+irrep:1+trivial").representations), trivial(space.group))
    )
    expected = np.zeros((5, 3))
    expected[[0, 3, 4], [0, 1, 2]] = 1
    np.testing.assert_array_equal(bias_map(doubled).matrix(), expected)
