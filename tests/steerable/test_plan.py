"""A layer's plan: fields, the order of its weights, and the tables of the compiled expansion."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqconv_cli.backends.steerable.equivariance import grid_errors
from eqconv_cli.backends.steerable.fields import FieldType, Space, concatenated
from eqconv_cli.backends.steerable.orbits import grid_symmetries
from eqconv_cli.backends.steerable.plan import Plan, make_plan
from eqconv_cli.maths.planar_groups import parse_group
from eqconv_cli.maths.representations import change_basis, irrep, regular
from tests.steerable.support_kernels import filter_of, filter_of_tables

#: (group, axis, in fields, out fields, k)
LAYERS = (
    ("C8", 0.0, "regular+2*irrep:1+quotient:2", "2*regular+trivial", 5),
    ("D4", math.pi / 4, "regular+irrep:1,1+quotient:0,1", "quotient:2+regular", 3),
    ("D4", 0.3, "regular", "regular", 4),
    ("SO2", 0.0, "irrep:0+irrep:1+irrep:2+irrep:1", "irrep:1+irrep:3+irrep:0", 7),
    ("O2", 0.4, "irrep:0,0+irrep:1,0+irrep:1,1+irrep:1,2", "irrep:1,1+irrep:0,0+irrep:1,0", 5),
    ("flip", math.pi / 2, "regular+irrep:1", "regular", 3),
    ("C1", 0.0, "2*trivial", "trivial", 3),
    ("D8", math.pi / 2, "regular", "regular", 5),
    ("C4", 0.0, "regular", "trivial+regular+trivial", 1),
)
layers = pytest.mark.parametrize(("group", "axis", "in_fields", "out_fields", "k"), LAYERS)


def plan_of(group: str, axis: float, in_fields: str, out_fields: str, k: int, **options: Any) -> Plan:
    space = Space.of(group, axis)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_plan(space.fields(in_fields), space.fields(out_fields), k, **options)


def check_tables(plan: Plan, rng: np.random.Generator) -> None:
    """All tables give the filter of the formula, and it is equivariant on its grid."""
    weights = rng.normal(size=plan.weights_size)
    expected = filter_of(plan, weights)
    for packed in (plan.fused, plan.fused_orbit, plan.fused_direct):
        assert packed.weights_size == plan.weights_size
        made = filter_of_tables(packed, weights).reshape(plan.filter_shape)
        assert np.abs(made - expected).max() < 1e-12 * max(1, np.abs(expected).max())
    assert max(e.relative for e in grid_errors(plan, expected)) < 1e-13


@layers
def test_the_tables_give_the_filter(group: str, axis: float, in_fields: str, out_fields: str, k: int) -> None:
    check_tables(plan_of(group, axis, in_fields, out_fields, k), np.random.default_rng(0))


@layers
def test_tables_are_as_the_contract_says(group: str, axis: float, in_fields: str, out_fields: str, k: int) -> None:
    plan = plan_of(group, axis, in_fields, out_fields, k)
    for packed in (plan.fused, plan.fused_orbit, plan.fused_direct):
        assert packed.sizes == (
            len(plan.out_type.representations),
            len(plan.in_type.representations),
            plan.out_type.size,
            plan.in_type.size,
            k * k,
            packed.harmonics,
            len(plan.pairs),
            packed.permutations,
            plan.weights_size,
            packed.table_size,
            packed.values_size,
        )
        assert packed.direct == (packed is plan.fused_direct)
        # The first permutation is the identity.
        permutation = packed.words[len(packed.words) - packed.permutations * packed.pixels :]
        assert packed.direct or np.array_equal(permutation[: packed.pixels], np.arange(k * k))
    assert plan.fused_direct.harmonics == plan.fused_direct.permutations == 0
    assert plan.fused_orbit.values_size <= plan.fused.values_size
    assert plan.uses_grid_symmetries == (plan.fused_orbit.values_size < plan.fused.values_size)


@layers
def test_weights_are_ordered_by_names_then_occurrences_then_elements(
    group: str, axis: float, in_fields: str, out_fields: str, k: int
) -> None:
    plan = plan_of(group, axis, in_fields, out_fields, k)
    names = [(pair.in_name, pair.out_name) for pair in plan.pairs]
    assert names == sorted(names) and all(len(pair.basis) for pair in plan.pairs)
    at = 0
    for pair in plan.pairs:
        assert pair.start == at
        for out_field in pair.out_fields:
            assert plan.out_type.representations[out_field].name == pair.out_name
            for in_field in pair.in_fields:
                assert plan.in_type.representations[in_field].name == pair.in_name
                number, first = plan.pair_table[out_field, in_field]
                assert plan.pairs[number] is pair and first == at
                at += len(pair.basis)
    assert at == plan.weights_size
    without = plan.pair_table[..., 0] < 0
    paired = {(o, i) for pair in plan.pairs for o in pair.out_fields for i in pair.in_fields}
    assert without.sum() == without.size - len(paired)


def test_a_weight_reaches_its_own_block_alone() -> None:
    plan = plan_of("C8", 0.0, "regular+irrep:1+regular", "irrep:2+regular+irrep:2", 3)
    for weight in (0, plan.weights_size // 2, plan.weights_size - 1):
        made = filter_of(plan, np.eye(plan.weights_size)[weight])
        hit = [
            (o, i)
            for o in range(3)
            for i in range(3)
            if made[
                plan.out_type.starts[o] : plan.out_type.starts[o + 1],
                plan.in_type.starts[i] : plan.in_type.starts[i + 1],
            ].any()
        ]
        starts = plan.pair_table[..., 1]
        assert len(hit) == 1 and starts[hit[0]] <= weight < starts[hit[0]] + len(
            plan.pairs[plan.pair_table[(*hit[0], 0)]].basis
        )


def test_pairs_without_kernels_have_no_weights() -> None:
    plan = plan_of("O2", 0.0, "irrep:0,0+irrep:1,0", "irrep:1,0+irrep:1,1", 3)
    assert [(pair.in_name, pair.out_name) for pair in plan.pairs] == [
        ("irrep_0,0", "irrep_1,1"),
        ("irrep_1,0", "irrep_1,0"),
        ("irrep_1,0", "irrep_1,1"),
    ]
    assert plan.pair_table[0, 0, 0] == -1
    assert not filter_of_tables(plan.fused, np.ones(plan.weights_size))[0, 0].any()


def test_groups_of_channels_share_the_plan_of_one_group() -> None:
    space = Space.of("C4")
    plan = make_plan(space.fields("4*regular"), space.fields("2*regular"), 3, groups=2)
    assert plan.in_type == space.regular_fields(2) and plan.filter_shape == (8, 8, 3, 3)
    assert plan.weights_size == 2 * 2 * 24
    mixed = space.fields("regular+trivial+regular+trivial")
    assert make_plan(mixed, mixed, 3, groups=2).in_type == space.fields("regular+trivial")
    with pytest.raises(ValueError, match="groups=3: it must divide the 4 fields"):
        make_plan(space.regular_fields(4), space.regular_fields(4), 3, groups=3)
    with pytest.raises(ValueError, match="groups=0: it must divide the 4 fields"):
        make_plan(space.regular_fields(4), space.regular_fields(4), 3, groups=0)
    with pytest.raises(ValueError, match="groups=2: it must divide the 1 fields"):
        make_plan(space.regular_fields(2), space.regular_fields(1), 3, groups=2)
    with pytest.raises(
        ValueError, match=r"groups=2: field 2 \(regular\) is not field 0 \(irrep_0\) again: the groups of fields must"
    ):
        make_plan(space.fields("2*trivial+2*regular"), space.regular_fields(2), 3, groups=2)


def test_another_axis_is_another_filter() -> None:
    weights = np.random.default_rng(0).normal(size=88)
    made = [filter_of(plan_of("D4", axis, "regular", "regular", 5), weights) for axis in (math.pi / 2, 0.3)]
    assert np.abs(made[0] - made[1]).max() > 0.1


def test_weights_of_a_wrong_length_show_where_they_belong() -> None:
    plan = plan_of("C8", 0.0, "regular+trivial", "2*regular", 3)
    plan.check_weights((plan.weights_size,))
    for shape in ((95,), (1, plan.weights_size), ()):
        with pytest.raises(ValueError) as caught:
            plan.check_weights(shape)
        assert str(caught.value) == (
            f"weights has shape {shape}: expected (108,), irrep_0 -> regular: 2 x 1 x 6; regular -> regular: 2 x 1 x 48"
        )


@pytest.mark.parametrize(
    ("k", "options", "rings"),
    [
        (2, {}, "r=0, sigma=0.005, c(r)=0"),
        (4, {"rings": [0]}, "r=0, sigma=0.005, c(r)=0"),
        (3, {"basis_filter": lambda attributes: False}, "r=0, sigma=0.005, c(r)=0; r=1, sigma=0.4, c(r)=2"),
        (3, {"frequencies_cutoff": lambda r: -1}, "r=0, sigma=0.005, c(r)=-1; r=1, sigma=0.4, c(r)=-1"),
    ],
)
def test_a_layer_without_kernels_is_refused_early(k: int, options: dict[str, Any], rings: str) -> None:
    with pytest.raises(ValueError) as caught:
        plan_of("C8", 0.0, "regular", "regular", k, **options)
    message = f"kernel_size={k}: no kernel of these fields is left on the grid with the rings {rings}"
    hint = (
        ". With kernel_size=2 no pixel lies near the only ring (r=0, sigma=0.005): take sigma=0.5, rings=[0.7], "
        "frequencies_cutoff=2"
    )
    assert str(caught.value) == message + (hint if k == 2 else "")


def test_the_hint_for_two_pixels_works() -> None:
    plan = plan_of("C8", 0.0, "regular", "regular", 2, sigma=0.5, rings=[0.7], frequencies_cutoff=2)
    assert plan.weights_size == 24
    check_tables(plan, np.random.default_rng(0))


def test_fields_of_two_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="in_type is of C4 and out_type of C8: one group is needed"):
        make_plan(Space.of("C4").regular_fields(1), Space.of("C8").regular_fields(1), 3)
    with pytest.raises(ValueError, match=r"in_type has axis=0\.1 and out_type axis=0\.2: they must be equal"):
        make_plan(Space.of("D4", 0.1).regular_fields(1), Space.of("D4", 0.2).regular_fields(1), 3)
    # Without reflections the axis means nothing.
    assert make_plan(Space.of("C4", 0.1).regular_fields(1), Space.of("C4", 0.2).regular_fields(1), 3).weights_size == 24


def test_even_sizes_warn_where_turns_are_smaller_than_90_degrees() -> None:
    for group in ("C8", "D8", "SO2", "C3"):
        fields = Space.of(group).fields("irrep:1" if group in ("SO2", "C3") else "regular")
        with pytest.warns(UserWarning, match="kernel_size=4 is even: beyond turns by 90 degrees"):
            make_plan(fields, fields, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for group, k in (("C4", 4), ("D4", 4), ("C2", 4), ("flip", 4), ("C8", 5)):
            make_plan(Space.of(group).regular_fields(1), Space.of(group).regular_fields(1), k)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_size": 0}, ValueError, "kernel_size=0: an integer is needed"),
        ({"kernel_size": (3, 3)}, ValueError, "kernels that are not square are not supported"),
        ({"sigma": -1}, ValueError, r"sigma=-1\.0: every sigma must be above 0"),
        ({"rings": [9]}, ValueError, r"rings has the radius 9\.0: allowed"),
        ({"frequencies_cutoff": "x"}, TypeError, "frequencies_cutoff='x'"),
        ({"maximum_offset": -1}, ValueError, "maximum_offset=-1: an integer is needed"),
    ],
)
def test_options_of_the_basis_are_checked(options: dict[str, Any], error: type[Exception], message: str) -> None:
    fields = Space.of("C4").regular_fields(1)
    with pytest.raises(error, match=message):
        make_plan(fields, fields, **{"kernel_size": 3, **options})


def test_types_of_fields() -> None:
    space = Space.of("C8")
    fields = space.fields("2*regular+irrep:1+regular")
    assert fields.size == 26 and fields.starts == (0, 8, 16, 18, 26) and str(fields) == "2 regular + irrep_1 + regular"
    assert {name: found for name, (_, found) in fields.by_name.items()} == {"irrep_1": (2,), "regular": (0, 1, 3)}
    assert fields == concatenated([space.regular_fields(2), space.fields("irrep:1+regular")])
    assert hash(fields) == hash(space.fields("2*regular+irrep:1+regular"))
    assert fields != space.fields("3*regular+irrep:1") and fields != Space.of("C8", 0.3).fields("2*regular+irrep:1")
    assert fields != "2 regular + irrep_1 + regular"
    assert space.trivial_fields(3).size == 3
    for g in space.group.elements:
        blocks = [rep(g) for rep in fields.representations]
        at = 0
        whole = fields.matrix(g)
        for block in blocks:
            end = at + len(block)
            assert np.array_equal(whole[at:end, at:end], block)
            whole[at:end, at:end] = 0
            at = end
        assert not whole.any()


def test_types_of_fields_are_checked() -> None:
    space, group = Space.of("C8"), parse_group("C8")
    with pytest.raises(ValueError, match=r"representations=\(\): at least one field is needed"):
        FieldType(space, ())
    with pytest.raises(ValueError, match=r"field 1 \(regular\) is of C4: the space has C8"):
        FieldType(space, (regular(group), regular(parse_group("C4"))))
    other = change_basis(regular(group), 2 * np.eye(8), "regular")
    with pytest.raises(ValueError, match="two different representations have the name 'regular': each needs its own"):
        FieldType(space, (regular(group), other))
    assert FieldType(space, (regular(group), change_basis(regular(group), np.eye(8), "regular"))).size == 16
    with pytest.raises(ValueError, match="axis=nan: a finite angle is needed"):
        Space(group, math.nan)
    with pytest.raises(ValueError, match="one group is needed"):
        concatenated([space.regular_fields(1), Space.of("C4").regular_fields(1)])


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, int]:
    """Lists of irreps, regular and turned representations in any order, on any axis."""
    group = parse_group(draw(st.sampled_from(["C1", "flip", "C3", "C4", "C8", "D3", "D4", "SO2", "O2"])))
    choices = [irrep(group, *psi.id) for psi in group.irreps()]
    if group.is_finite:
        choices.append(regular(group))
    size = choices[-1].size
    turned = np.linalg.qr(np.random.default_rng(draw(st.integers(0, 99))).normal(size=(size, size)))[0]
    choices.append(change_basis(choices[-1], turned, "turned"))
    space = Space(group, draw(st.sampled_from([math.pi / 2, 0.0, math.pi / 4, 0.7])))
    in_type, out_type = (
        FieldType(space, tuple(draw(st.lists(st.sampled_from(choices), min_size=1, max_size=4)))) for _ in range(2)
    )
    # A trivial field on both sides, so that something is left.
    trivial = space.trivial_fields(1)
    k = draw(st.sampled_from([1, 3, 4, 5]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make_plan(
            concatenated([in_type, trivial]),
            concatenated([trivial, out_type]),
            k,
            dilation=draw(st.sampled_from([1, 2])),
            maximum_offset=draw(st.sampled_from([None, 0, 1])),
        )
    return made, draw(st.integers(0, 2**16))


@given(plans())
@settings(max_examples=60, deadline=None)
def test_tables_of_any_layer(case: tuple[Plan, int]) -> None:
    plan, seed = case
    check_tables(plan, np.random.default_rng(seed))
    assert len(grid_symmetries(plan.out_type.space)) == plan.fused.permutations
