"""The family's checks pass with the oracle as the variant, and fail with a fault that each is there for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from eqconv_cli.backends.block_sparse import FAMILY, reference
from eqconv_cli.backends.block_sparse.invariants import CHECKS
from eqconv_cli.engine.comparison import compare, is_discrete
from tests.block_sparse.support import problem, reference_of

Compute = Callable[[Mapping[str, Any]], dict[str, Any]]
PROBLEMS = [p for p in FAMILY.problems if "invariants" in p.traits]


def passed(check: str, operation: str, compute: Compute, inputs: Mapping[str, Any]) -> list[bool]:
    record = next(c for c in CHECKS[operation] if c.name == check)
    pairs = record.run(compute, inputs, 0)
    limit = 1e-12 if record.tolerance is None else record.tolerance
    return [compare("", p.actual, p.expected, limit, p.floor).passed for p in pairs]


@pytest.mark.parametrize("given", PROBLEMS, ids=lambda given: given.name)
def test_the_oracle_passes(given: Any) -> None:
    function, _ = reference_of(given.operation)
    inputs = given.arrays(0)
    for check in CHECKS[given.operation]:
        assert all(passed(check.name, given.operation, function, inputs)), check.name


def test_every_operation_has_a_problem_with_its_checks_and_each_says_something() -> None:
    assert {p.operation for p in PROBLEMS} == {operation.name for operation in FAMILY.operations}
    spoken = {
        (p.operation, check.name)
        for p in PROBLEMS
        for check in CHECKS[p.operation]
        if passed(check.name, p.operation, reference_of(p.operation)[0], p.arrays(0))
    }
    assert spoken == {(name, check.name) for name, checks in CHECKS.items() for check in checks}


def _first_row_wins(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Blocks written in the wrong order."""
    return reference.scatter({**inputs, "index": inputs["index"][::-1], "blocks": inputs["blocks"][::-1]})


def _one_pixel_too_many(inputs: Mapping[str, Any]) -> dict[str, Any]:
    y = reference.scatter(inputs)["y"]
    y[0, -1, -1] += 1e-9
    return {"y": y}


def _one_block_short(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return reference.convolution({**inputs, "index": inputs["index"][:-1]})


def _next_pixel(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"y": np.roll(reference.masked(inputs)["y"], 1, 2)}


def _always_dense(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return reference.residual({**inputs, "border": np.array("dense")})


def _row_numbers(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A result that depends on where a block stands in the list."""
    y = reference.residual(inputs)["y"]
    return {"y": y + inputs["index"][0].sum()}


def _zeroed_base(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return reference.scatter({**inputs, "ybase": np.zeros_like(inputs["ybase"])})


@pytest.mark.parametrize(
    ("check", "name", "fault"),
    [
        ("E3", "scatter", _zeroed_base),
        ("E4", "scatter", _zeroed_base),
        ("E5", "scatter-sums", _one_pixel_too_many),
        ("E8", "blocks-same", _one_block_short),
        ("E9", "blocks-same", _one_block_short),
        ("E9", "pixels-same", _next_pixel),
        ("E10", "unit-original", _always_dense),
        ("E13", "unit-blocks", _row_numbers),
        ("E13", "blocks-same", _one_block_short),
    ],
)
def test_a_fault_fails(check: str, name: str, fault: Compute) -> None:
    given = problem(name)
    assert not all(passed(check, given.operation, fault, given.arrays(0)))


def test_the_wrong_winner_fails_by_value() -> None:
    inputs = problem("scatter").arrays(0)
    assert np.abs(_first_row_wins(inputs)["y"] - reference.scatter(inputs)["y"]).max() > 0.1


def test_one_bit_between_two_runs_fails() -> None:
    inputs = problem("gather").arrays(0)
    calls: list[int] = []

    def compute(given: Mapping[str, Any]) -> dict[str, Any]:
        calls.append(0)
        blocks = reference.gather(given)["blocks"]
        return {"blocks": np.where(blocks == 0, -0.0, blocks) if len(calls) == 2 else blocks}

    assert not all(passed("E14", "gather", compute, inputs))
    assert is_discrete(np.zeros(1, np.int64))
