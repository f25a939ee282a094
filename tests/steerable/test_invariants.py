"""The family's checks pass with the oracle as the variant, and fail with a fault that each is there for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from eqconv_cli.backends.steerable import FAMILY, reference
from eqconv_cli.backends.steerable.invariants import CHECKS
from eqconv_cli.engine.comparison import compare
from tests.steerable.support import operation_of, problem, with_arrays

Compute = Callable[[Mapping[str, Any]], dict[str, Any]]
PROBLEMS = [p for p in FAMILY.problems if {"invariants", "verify"} <= p.traits]


def passed(check: str, operation: str, compute: Compute, inputs: Mapping[str, Any]) -> list[bool]:
    record = next(c for c in CHECKS[operation] if c.name == check)
    pairs = record.run(compute, inputs, 0)
    limit = 1e-12 if record.tolerance is None else record.tolerance
    return [compare("", p.actual, p.expected, limit, p.floor).passed for p in pairs]


@pytest.mark.parametrize("given", PROBLEMS, ids=lambda given: given.name)
def test_the_oracle_passes(given: Any) -> None:
    operation, function, _ = operation_of(given)
    for check in operation.checks:
        assert all(passed(check.name, operation.name, function, given.arrays(0))), check.name


def test_equivariance_is_of_every_grid_symmetry_and_of_no_other_image() -> None:
    counts = {"c8-regular": 3, "d4-mixed": 7, "flip-diagonal": 1, "o2-irreps": 7, "layer-c4": 3, "layer-d4-strided": 7}
    for name, count in counts.items():
        operation, function, _ = operation_of(problem(name))
        assert len(passed("equivariance", operation.name, function, problem(name).arrays(0))) == count, name
    # Neither an image that is no square, nor one whose last rows a stride leaves out.
    inputs = problem("layer-c8-groups").arrays(0)
    assert passed("equivariance", "layer", reference.layer, inputs) == []
    assert passed("equivariance", "layer", reference.layer, with_arrays(inputs, stride=2)) == []


def _one_number_off(inputs: Mapping[str, Any]) -> dict[str, Any]:
    filter = reference.expansion(inputs)["filter"]
    filter[0, 0, 0, 1] += 1e-9
    return {"filter": filter}


def _squared(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return reference.expansion({**inputs, "weights": inputs["weights"] + 1e-9 * inputs["weights"] ** 2})


@pytest.mark.parametrize("name", ["c8-regular", "d4-mixed", "flip-diagonal", "o2-irreps"])
def test_a_broken_filter_fails(name: str) -> None:
    inputs = problem(name).arrays(0)
    assert not any(passed("equivariance", "expansion", _one_number_off, inputs))
    assert not all(passed("adjoint", "expansion", _one_number_off, inputs))
    assert not all(passed("linear", "expansion", _squared, inputs))


@pytest.mark.parametrize("name", ["layer-c4", "layer-d4-strided", "layer-so2", "layer-o2-k4"])
def test_a_broken_kernel_in_a_layer_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One element of the basis, of one weight, is noise."""
    inputs = problem(name).arrays(0)
    assert all(passed("equivariance", "layer", reference.layer, inputs))
    sound = reference.sampled_elements

    def broken(pair: Any, plan: Any) -> np.ndarray:
        made = sound(pair, plan)
        made[-1] = np.random.default_rng(0).normal(size=made[-1].shape)
        return made

    monkeypatch.setattr(reference, "sampled_elements", broken)
    assert not any(passed("equivariance", "layer", reference.layer, inputs))


def test_runs_that_differ_in_a_bit_fail() -> None:
    calls = iter(range(2))

    def drifting(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"filter": reference.expansion(inputs)["filter"] * (1 + 2e-16 * next(calls))}

    assert not all(passed("twice", "expansion", drifting, problem("c8-regular").arrays(0)))
