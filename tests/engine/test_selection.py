"""What ``bench`` takes when problems are asked for by facet or by swept parameter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eqconv_cli.catalog import Parameter
from eqconv_cli.engine.selection import Filters, Sweep, for_bench
from eqconv_cli.errors import UsageError
from tests.engine import fake


def names(filters: Filters) -> list[str]:
    selections = for_bench([fake.FAMILY, fake.TWO], filters, None)
    return [problem.name for selection in selections for problem in selection.problems if selection.family is fake.TWO]


def sweep(option: str, *values: Parameter) -> Sweep:
    return Sweep(option, option.removeprefix("--").replace("-", "_"), values)


def test_bench_problems_are_taken_where_there_are_some() -> None:
    assert names(Filters()) == ["small", "a"]
    assert names(Filters(facets={"test": "conv"})) == ["a"]
    assert names(Filters(facets={"test": "res"})) == ["c"]
    assert names(Filters(facets={"test": "conv", "arch": "v3"})) == ["b"]
    assert names(Filters(problems=("b", "c"), facets={"arch": "v3"})) == ["b", "c"]
    assert names(Filters(sweeps=(sweep("--sparsity", 0.9),))) == ["small[sparsity=0.9]", "a[sparsity=0.9]"]


def test_a_family_without_the_facet_is_left_out() -> None:
    (chosen,) = for_bench([fake.FAMILY, fake.TWO], Filters(facets={"test": "conv"}), None)
    assert (chosen.family.name, chosen.operation.name) == ("two", "pick")


def test_sweeps_take_the_problems_that_have_the_parameter_and_multiply() -> None:
    sweeps = (sweep("--sparsity", 0.5, 0.9), sweep("--block-size", "auto", 4), sweep("--mask", "noise"))
    assert names(Filters(sweeps=sweeps)) == [
        f"a[sparsity={s},block_size={b},mask=noise]" for s in (0.5, 0.9) for b in ("auto", 4)
    ]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (Filters(facets={"test": "rse"}), r"--test 'rse' is unknown: did you mean res\? allowed: conv, res"),
        (Filters(facets={"arch": "v9"}), "--arch 'v9' is unknown: .*allowed: v2, v3"),
        (Filters(facets={"test": "res", "arch": "v2"}), "--test res --arch v2: no problem of fake, two is all of it"),
        (Filters(sweeps=(sweep("--mask", "blob"),)), "--mask 'blob' is unknown: allowed: corner, noise"),
        (
            Filters(problems=("small",), sweeps=(sweep("--sparsity", 0.5), sweep("--block-size", 4))),
            "--block-size 4: none of the chosen problems of fake, two has a block_size",
        ),
        (Filters(settings={"mask": "blob"}), "--set mask 'blob' is unknown: allowed: corner, noise"),
    ],
)
def test_what_no_problem_is_is_refused(filters: Filters, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        names(filters)


def test_no_family_with_the_facet_is_an_error() -> None:
    with pytest.raises(UsageError, match="--test 'conv' is unknown"):
        for_bench([fake.FAMILY], Filters(facets={"test": "conv"}), None)


def test_published_speed_ups_are_of_the_published_parameters() -> None:
    problem = fake.TWO.problems[1]
    assert problem.with_parameters(sparsity=0.75).published
    assert not problem.with_parameters(sparsity=0.9).published
    assert not problem.with_parameters(sparsity=0.9).with_parameters(sparsity=0.75).published


def test_the_name_of_a_sweep() -> None:
    changed = fake.TWO.problems[1].with_parameters(sparsity=0.9, mask="noise", block_size=4)
    assert changed.name == "a[sparsity=0.9,mask=noise,block_size=4]"
    assert changed.name_without("sparsity", "block_size") == "a[mask=noise]"
    assert changed.name_without("sparsity", "block_size", "mask") == "a"


def test_a_case_may_leave_the_baseline_to_the_operation() -> None:
    (case,) = fake.FAMILY.cases
    family = replace(fake.FAMILY, cases=(replace(case, baseline=""),))
    (chosen,) = for_bench([family], Filters(), "published")
    assert chosen.operation.baseline == "good@numpy"
