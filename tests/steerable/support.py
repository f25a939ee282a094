"""What the tests of the steerable family share: plans of field expressions, and the reference of one plan."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from eqconv_cli import kernels
from eqconv_cli.backends.steerable import FAMILY, reference
from eqconv_cli.backends.steerable.arguments import COMPILED, COMPOSITIONS
from eqconv_cli.backends.steerable.fields import FieldType, Space
from eqconv_cli.backends.steerable.plan import Plan, make_plan
from eqconv_cli.catalog import Problem, load

COMPILED_HERE = pytest.mark.skipif(bool(kernels.missing("cpu")), reason="core not built")
#: Every algorithm, those without which the core is needed marked.
EVERY = (*COMPOSITIONS, *(pytest.param(name, marks=COMPILED_HERE) for name in COMPILED))


def problem(name: str) -> Problem:
    """The family's problem of this name."""
    (found,) = (p for p in FAMILY.problems if p.name == name)
    return found


def operation_of(given: Problem) -> Any:
    """The operation, and its reference as functions: outputs, gradients."""
    operation = FAMILY.operation_of(given)
    assert operation.reference_gradients is not None
    return operation, load(operation.reference), load(operation.reference_gradients)


def quiet_plan(in_type: FieldType, out_type: FieldType, kernel_size: int, **options: Any) -> Plan:
    """A plan without the warning about even kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_plan(in_type, out_type, kernel_size, **options)


def plan_for(group: str, given: str, out: str, kernel_size: int, axis: float = np.pi / 2, **options: Any) -> Plan:
    """A plan of field expressions."""
    space = Space.of(group, axis)
    return quiet_plan(space.fields(given), space.fields(out), kernel_size, **options)


class Oracle:
    """The reference of one plan, whose elements are sampled once."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._blocks = plan, list(reference.blocks(plan))

    def expand(self, weights: np.ndarray) -> np.ndarray:
        made = np.zeros(self._plan.filter_shape)
        for rows, columns, at, elements in self._blocks:
            made[rows, columns] = np.tensordot(weights[at].astype(np.float64), elements, 1)
        return made

    def transposed(self, filter: np.ndarray) -> np.ndarray:
        made = np.zeros(self._plan.weights_size)
        for rows, columns, at, elements in self._blocks:
            made[at] = np.tensordot(elements, filter[rows, columns].astype(np.float64), 4)
        return made


def with_arrays(inputs: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Inputs with some arrays replaced."""
    return {**inputs, **{name: np.asarray(value) for name, value in changes.items()}}
