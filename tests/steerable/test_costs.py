"""What expansions cost: the table of the specification, and its parts counted in another way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eqconv_cli.backends.steerable import costs
from eqconv_cli.backends.steerable.basis import SteerableBasis, build_basis
from eqconv_cli.backends.steerable.fields import Space
from eqconv_cli.backends.steerable.study import plan_of
from eqconv_cli.maths.representations import change_basis, regular
from eqconv_cli.studies import BasisRequest

SO2 = "+".join(f"irrep:{k}" for k in range(4))
O2 = "irrep:0,0+" + "+".join(f"irrep:1,{k}" for k in range(4))
#: Group, fields, k; d, L, H, dense MB; blocks, exact, after Q in percent; 9a, 9b, 9c, 9c+9e.
TABLE = [
    ("C4", "regular", 3, 24, 8, 6, 0.01, 14.6, 6.8, 51, 48, 23, 23, 15),
    ("C4", "regular", 5, 44, 14, 11, 0.07, 14.5, 9.0, 66, 88, 29, 30, 14),
    ("C8", "regular", 3, 48, 6, 6, 0.11, 4.8, 2.2, 55, 96, 37, 34, 26),
    ("C8", "regular", 5, 88, 10, 11, 0.56, 4.8, 3.0, 69, 176, 40, 36, 21),
    ("C8", "regular", 7, 144, 14, 18, 1.81, 4.8, 3.4, 77, 288, 46, 48, 22),
    ("C8", "regular", 9, 248, 20, 31, 5.14, 4.8, 3.6, 78, 496, 56, 75, 29),
    ("C16", "regular", 5, 176, 10, 11, 4.51, 1.4, 0.85, 78, 352, 69, 50, 35),
    ("C16", "regular", 9, 496, 18, 31, 41.1, 1.4, 1.05, 83, 992, 78, 87, 41),
    ("D4", "regular", 5, 88, 7, 11, 0.56, 3.6, 2.3, 66, 176, 38, 36, 20),
    ("D8", "regular", 5, 176, 5, 11, 4.51, 1.2, 0.74, 69, 352, 68, 50, 34),
    ("D8", "regular", 9, 496, 10, 31, 41.1, 1.2, 0.91, 78, 992, 76, 87, 36),
    ("SO2", SO2, 5, 65, 10, 11, 0.32, 6.9, 4.1, None, 130, 37, 35, 19),
    ("O2", O2, 5, 45, 5, 11, 0.29, 4.5, 2.8, None, 90, 36, 36, 20),
]  # fmt: skip


def basis_of(group: str, fields: str, k: int) -> SteerableBasis:
    return plan_of(BasisRequest(group, fields, fields, k)).pairs[0].basis


def printed(value: float, like: float) -> float:
    """The value with as many digits after the point as the table has."""
    return round(value, len(f"{like}".partition(".")[2]))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[2]}")
def test_the_table_of_the_specification(row: tuple[object, ...]) -> None:
    group, fields, k, d, layers, harmonics, megabytes, blocks, exact, after, *flops = row
    basis = basis_of(group, fields, k)  # type: ignore[arg-type]
    density = costs.densities(basis, count_all=False)
    cost = costs.costs(basis, density)
    assert (len(basis), costs.slices(basis), len(basis.harmonics)) == (d, layers, harmonics)
    assert printed(4 * len(basis) * math.prod(basis.block_shape) / 1e6, megabytes) == megabytes  # type: ignore[arg-type]
    assert printed(100 * density.blocks, blocks) == blocks  # type: ignore[arg-type]
    assert printed(100 * density.exact, exact) == exact  # type: ignore[arg-type]
    if after is None:
        assert cost.no_change_of_basis and density.dense == pytest.approx(density.exact, rel=1e-2)
    else:
        assert density.dense is not None and round(100 * density.dense) == after
    # The table counts the products with Q in these columns also where Q is the identity.
    skipped = cost.no_change_of_basis
    irreps = cost.irreps + skipped * cost.irreps_products
    harmonic, orbit = (c + skipped * cost.harmonic_products for c in (cost.harmonic, cost.harmonic_orbit))
    assert [round(c) for c in (cost.dense, irreps, harmonic, orbit)] == flops


@pytest.mark.parametrize(
    ("group", "fields", "expected"),
    # For O(2) the table has 6 in the last place, which is one pixel in four: the turns without the reflections.
    [("SO2", SO2, (9, 22, 7)), ("O2", O2, (4, 22, 5))],
)
def test_what_is_left_without_the_change_of_basis(group: str, fields: str, expected: tuple[int, int, int]) -> None:
    basis = basis_of(group, fields, 5)
    cost = costs.costs(basis, costs.densities(basis, count_all=False))
    assert cost.irreps == cost.fill
    assert tuple(round(c) for c in (cost.fill, cost.harmonic, cost.harmonic_orbit)) == expected


@pytest.mark.parametrize(("group", "k"), [("C4", 3), ("D4", 4), ("C6", 5)])
def test_counted_on_the_arrays(group: str, k: int) -> None:
    basis = basis_of(group, "regular", k)
    assert costs.exact_entries(basis) == int((np.abs(basis.padded) > costs.ZERO).sum())
    assert costs.dense_entries(basis) == int((np.abs(basis.dense) > costs.ZERO_OF_SUMS).sum())
    assert costs.slices(basis) == len(basis.packed[0])


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    basis = basis_of("C4", "regular", 5)
    whole = costs.exact_entries(basis), costs.dense_entries(basis)
    monkeypatch.setattr(costs, "_CHUNK", 1000)
    assert (costs.exact_entries(basis), costs.dense_entries(basis)) == whole


def test_large_bases_are_counted_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    basis = basis_of("C4", "regular", 3)
    monkeypatch.setattr(costs, "COUNTED", 10)
    assert costs.densities(basis, count_all=False).dense is None
    assert costs.densities(basis, count_all=True).dense is not None


def test_orbits_of_pixels() -> None:
    shares = {name: costs.pixel_share(basis_of(name, "regular", 5)) * 25 for name in ("C1", "C2", "C4", "C8", "D4")}
    assert shares == pytest.approx({"C1": 25, "C2": 13, "C4": 7, "C8": 7, "D4": 6})


def test_no_orbits_where_a_change_of_basis_mixes_channels() -> None:
    space = Space.of("C4")
    mixed = change_basis(regular(space.group), np.linalg.qr(np.arange(16.0).reshape(4, 4) ** 2 % 7)[0], "mixed")
    assert costs.pixel_share(build_basis(space, mixed, mixed, 5)) > 7 / 25


def test_forms_say_what_is_stored() -> None:
    plan = plan_of(BasisRequest("C8"))
    basis = plan.pairs[0].basis
    cost = costs.costs(basis, costs.densities(basis, count_all=False))
    forms = {name: form for form in costs.forms(plan, cost) for name in form.algorithms}
    assert forms["dense"].bytes == 4 * basis.dense.size == 563200
    starts, _, values = basis.csr
    assert forms["csr"].integers == len(starts) + int((np.abs(values) > costs.ZERO).sum())
    stored, ids = basis.packed
    both_q = 2 * 64
    assert (forms["packed"].numbers, forms["packed"].integers) == (stored.size + both_q, ids.size)
    # A quarter of the rows (o, i), for all four turns of the grid permute the eight channels.
    assert forms["fused_orbit"].flops == pytest.approx(forms["fused"].flops / 4)
    assert set(forms) == {
        "dense", "dense_direct", "irreps_loop", "irreps_vec", "packed", "csr", "harmonic", "orbit", "fused",
        "fused_orbit", "fused_direct",
    }  # fmt: skip
