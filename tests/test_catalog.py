from __future__ import annotations

from pathlib import Path

import pytest

from eqconv_cli import catalog
from eqconv_cli.catalog import Family, Operation, Problem, Variant
from eqconv_cli.errors import UsageError

FAMILIES = [catalog.family(name) for name in catalog.family_names()]


def test_every_folder_of_backends_is_a_family() -> None:
    folders = Path(catalog.__file__).parent / "backends"
    assert set(catalog.family_names()) == {file.parent.name for file in folders.glob("*/__init__.py")}
    assert [family.name for family in FAMILIES] == list(catalog.family_names())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_are_unique_and_the_baselines_exist(family: catalog.Family) -> None:
    assert len({operation.name for operation in family.operations}) == len(family.operations)
    for operation in family.operations:
        mine = {v.name: v for v in family.variants if family.operation_of(v) is operation}
        assert len(mine) == sum(family.operation_of(v) is operation for v in family.variants)
        assert mine[operation.baseline].headline
        assert 2 <= sum(variant.headline for variant in mine.values()) <= 24
        assert any(family.operation_of(problem) is operation for problem in family.problems)
    assert len({problem.name for problem in family.problems}) == len(family.problems)
    for case in family.cases:
        assert case.baseline in ["", *(variant.name for variant in case.variants)]
        assert len({(variant.operation, variant.name) for variant in case.variants}) == len(case.variants)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_there_is_real_data_and_something_for_each_command(family: catalog.Family) -> None:
    traits = {trait for problem in family.problems for trait in problem.traits}
    assert {"real", "quick", "verify", "bench"} <= traits
    assert any({"real", "verify"} <= problem.traits for problem in family.problems)


def test_a_variant_is_named_by_algorithm_options_and_framework() -> None:
    assert Variant("v1", "torch", "x:y", ("sorted", "fold")).name == "v1+sorted+fold@torch"
    assert Variant("v2", "numpy", "x:y").name == "v2@numpy"


def test_a_problem_shows_its_changed_parameters() -> None:
    problem = Problem("random", lambda seed, n, m: {}, {"n": 3, "m": 4})
    changed = problem.with_parameters(n=5).with_parameters(m=6)
    assert changed.name == "random[n=5,m=6]"
    assert changed.parameters == {"n": 5, "m": 6}
    assert problem.with_parameters(n=5).with_parameters(n=7).name == "random[n=7]"
    with pytest.raises(UsageError, match=r"--set 'k' is unknown: allowed: m, n"):
        problem.with_parameters(k=1)


def test_an_operation_is_found_by_its_name_and_the_first_without_one() -> None:
    first, second = Operation("a", "", "", "", ""), Operation("b", "", "", "", "")
    family = Family("f", "", "", (first, second), (), ())
    assert family.operation_of(Variant("v", "numpy", "x:y")) is first
    assert family.operation_of(Variant("v", "numpy", "x:y", operation="b")) is second
    assert family.operation_of(Problem("p", dict, operation="b")) is second


def test_unknown_family_lists_the_close_matches() -> None:
    with pytest.raises(UsageError, match="did you mean feature_steered"):
        catalog.family("feature_stered")


def test_plugins(tmp_path: Path) -> None:
    good = tmp_path / "good_plugin.py"
    good.write_text(
        "from eqconv_cli.catalog import Variant\n"
        "VARIANTS = {'feature_steered': [Variant('mine', 'numpy', 'good_plugin:prepare')]}\n"
    )
    assert [v.name for v in catalog.plugin_variants(str(good))["feature_steered"]] == ["mine@numpy"]
    for content, message in (
        ("x = 1", "has no VARIANTS"),
        ("1 / 0", "ZeroDivisionError"),
        ("VARIANTS = {'nothing': []}", "names the family"),
    ):
        bad = tmp_path / "bad_plugin.py"
        bad.write_text(content)
        with pytest.raises(UsageError, match=message):
            catalog.plugin_variants(str(bad))
    with pytest.raises(UsageError, match="cannot be imported"):
        catalog.plugin_variants("no.such.module")
