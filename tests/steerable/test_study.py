"""What ``eqconv basis`` shows is true of the basis."""

from __future__ import annotations

import numpy as np
import pytest

from eqconv_cli.backends.steerable import study as studies
from eqconv_cli.backends.steerable.basis import SteerableBasis
from eqconv_cli.backends.steerable.study import arrays, kernel_of, plan_of, random_filter, study
from eqconv_cli.errors import UsageError
from eqconv_cli.studies import BasisRequest

IRREPS = "irrep:0+irrep:1+irrep:2"


def test_c8() -> None:
    made = study(BasisRequest("c8"))
    assert (made.group, made.order, made.dimension, made.harmonics, made.slices) == ("C8", 8, 88, 11, 10)
    assert [round(g.degrees) for g in made.group_elements] == [0, 45, 90, 135, 180, 225, 270, 315]
    assert made.axis_degrees is None
    assert [(i.name, i.size, i.type, i.frequency, i.in_count, i.out_count) for i in made.irreps] == [
        ("irrep_0", 1, "real", 0, 1, 1),
        ("irrep_1", 2, "complex", 1, 1, 1),
        ("irrep_2", 2, "complex", 2, 1, 1),
        ("irrep_3", 2, "complex", 3, 1, 1),
        ("irrep_4", 1, "real", 4, 1, 1),
    ]
    assert [(r.radius, r.frequencies, r.elements) for r in made.rings] == [
        (0.0, (0,), 8), (1.0, (0, 1, 2), 40), (2.0, (0, 1, 2), 40),
    ]  # fmt: skip
    assert made.passed and not made.notes


def test_errors_are_exact_on_the_grid_only_for_its_symmetries() -> None:
    made = study(BasisRequest("C8"))
    assert [error.exact for error in made.errors] == [True, False] * 4
    for error in made.errors:
        assert error.continuous is not None and error.continuous < 1e-13
        assert (error.grid < 1e-13) == error.exact
        assert error.grid < 0.02


@pytest.mark.parametrize(("group", "exact"), [("SO2", 4), ("O2", 8), ("D3", 2), ("flip", 2)])
def test_every_test_element_has_its_error(group: str, exact: int) -> None:
    fields = IRREPS if group == "SO2" else "trivial"
    made = study(BasisRequest(group, fields, fields))
    assert made.passed and len(made.errors) == len(made.group_elements)
    assert sum(error.exact for error in made.errors) == exact


def test_a_broken_basis_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    build = studies.plan_of

    def broken(request: BasisRequest) -> object:
        plan = build(request)
        basis = plan.pairs[0].basis
        coupling = basis.coupling._replace(factor=basis.coupling.factor.copy())
        coupling.factor[7] *= -1
        wrong = SteerableBasis(
            basis.space, basis.in_rep, basis.out_rep, basis.sampling, basis.elements, coupling, basis.harmonics
        )
        object.__setattr__(plan, "pairs", (plan.pairs[0]._replace(basis=wrong),))
        return plan

    monkeypatch.setattr(studies, "plan_of", broken)
    made = study(BasisRequest("C4"))
    assert not made.passed
    assert max(error.continuous or 0 for error in made.errors) > 0.1
    assert max(error.grid for error in made.errors if error.exact) > 1e-3


def test_continuous_errors_stop_where_they_cost_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "_ALL_ELEMENTS", 1)
    assert [error.continuous is None for error in study(BasisRequest("C4")).errors] == [True, False, True, True]
    flipped = study(BasisRequest("D4")).errors
    generators = [(e.element.flip, e.element.degrees) for e in flipped if e.continuous is not None]
    assert generators == [(0, 90), (1, 0)]
    monkeypatch.setattr(studies, "_GENERATORS", 1)
    assert all(error.continuous is None for error in study(BasisRequest("C4")).errors)
    assert study(BasisRequest("C4")).passed


def test_filters_are_kernels_of_the_basis() -> None:
    request = BasisRequest("C8")
    basis = plan_of(request).pairs[0].basis
    made = study(request)
    assert [(f.radius, f.frequency, f.elements) for f in made.filters] == [
        (0, 0, 8), (1, 0, 8), (1, 1, 16), (1, 2, 16), (2, 0, 8), (2, 1, 16), (2, 2, 16),
    ]  # fmt: skip
    for filters in made.filters:
        assert filters.channels == tuple((o, 0) for o in range(8))
        np.testing.assert_allclose(filters.kernels.reshape(8, 25), basis.dense[filters.index][:, 0], atol=1e-14)


def test_filters_of_irreps_are_blocks() -> None:
    made = study(BasisRequest("SO(2)", IRREPS, IRREPS, 3))
    (first,) = (f for f in made.filters if f.radius == 1 and f.frequency == 1)
    assert first.columns == 2 and first.channels == ((3, 1), (3, 2), (4, 1), (4, 2))
    assert (first.in_irrep, first.out_irrep) == ("1", "2")


@pytest.mark.parametrize("element", [0, 17, 43])
def test_one_kernel_without_the_others(element: int) -> None:
    basis = plan_of(BasisRequest("C4")).pairs[0].basis
    np.testing.assert_allclose(kernel_of(basis, element), basis.dense[element], atol=1e-14)


def test_a_random_filter_is_in_the_span() -> None:
    basis = plan_of(BasisRequest("C4", kernel_size=3)).pairs[0].basis
    made = random_filter(basis, 3)
    assert np.abs(made).max() == 1
    rest = np.linalg.lstsq(basis.dense.reshape(len(basis), -1).T, made.ravel(), rcond=None)[1]
    assert rest.max() < 1e-24


def test_arrays_describe_the_basis() -> None:
    request = BasisRequest("D4", "quotient:0,1", "regular", axis_degrees=45)
    made, basis = arrays(request), plan_of(request).pairs[0].basis
    assert made["dense"].shape == (44, 8, 4, 5, 5)
    assert all(len(made[name]) == 44 for name in ("ring", "frequency", "in_irrep", "gamma", "norm", "shape"))
    assert made["axis"] == pytest.approx(np.pi / 4)
    assert list(made["ring_radius"]) == [0, 1, 2]
    assert [tuple(map(int, label.split(","))) for label in made["out_irreps"]] == list(basis.out_rep.irreps)
    # The change of basis in the file is the one that the kernels have.
    q, inverse = made["out_change_of_basis"], np.linalg.inv(made["in_change_of_basis"])
    again = np.einsum("po,doix,ij->dpjx", q, basis.padded, inverse)
    np.testing.assert_allclose(made["dense"].reshape(again.shape), again, atol=1e-14)


def test_a_sum_is_one_representation() -> None:
    made = study(BasisRequest("C4", "2*regular+trivial", "regular", 3))
    assert (made.in_name, made.in_size, made.out_size) == ("2 regular + irrep_0", 9, 4)
    assert [i.in_count for i in made.irreps] == [3, 2, 2]


def test_rings_sigma_cutoff_offset_and_dilation_arrive() -> None:
    assert study(BasisRequest("C8", kernel_size=7, cutoff=3, maximum_offset=0)).dimension == 170
    wide = study(BasisRequest("C8", kernel_size=3, dilation=2))
    assert (wide.dimension, wide.dilation) == (64, 2)
    small = study(BasisRequest("C8", kernel_size=2, rings=(0.7,), sigma=(0.5,), cutoff=2))
    assert (small.dimension, small.rings[0].sigma) == (24, 0.5)
    assert small.notes == (
        "--kernel-size 2 is even: beyond turns by 90 degrees kernels of odd size are more equivariant",
    )


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (BasisRequest("X9"), "--group 'X9' is unknown: allowed: C1, C2, .*, D1, .*SO.2.*, O.2.*, flip, trivial"),
        (BasisRequest("SO2"), "--in: regular needs a finite group: .*take irreps"),
        (BasisRequest("C8", out_fields="irrep:7"), "--out: irrep 7 of C8 is unknown: allowed: 0, 1, 2, 3, 4"),
        (BasisRequest("C8", "quotient:3"), "--in: 3 names no subgroup of C8: allowed: M one of 1, 2, 4, 8"),
        (BasisRequest("C8", "some"), "--in 'some' is not understood at 'some': allowed: regular"),
        (BasisRequest("C8", kernel_size=0), "--kernel-size 0: an integer is needed"),
        (BasisRequest("C8", kernel_size=103), "--kernel-size 103: allowed: 1 to 101"),
        (BasisRequest("C999"), "--in and --out have 999 and 999 channels: allowed for .*: a product of at most 167772"),
        (BasisRequest("C200", kernel_size=7), "--kernel-size 7: 3600 kernels of 200 x 200 channels: allowed: 3355 "),
        (BasisRequest("C8", rings=(0, 9)), "--rings has the radius 9.0: allowed"),
        (BasisRequest("C8", sigma=(0,)), "--sigma 0.0: every sigma"),
        (BasisRequest("C8", sigma=(1, 2)), "--sigma has 2 numbers: expected one, or 3"),
        (BasisRequest("C8", cutoff=float("nan")), "--cutoff nan"),
        (BasisRequest("C8", maximum_offset=-1), "--max-offset -1"),
        (BasisRequest("C8", dilation=0), "--dilation 0"),
        (BasisRequest("D4", axis_degrees=float("inf")), "--axis inf"),
        (
            BasisRequest("C8", kernel_size=2),
            r"--kernel-size 2: no kernel .* rings r=0, sigma=0.005, c.r.=0. With --kernel-size 2 no pixel .*: "
            r"take --sigma 0.5 --rings 0.7 --cutoff 2$",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_option(wanted: BasisRequest, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        study(wanted)
