"""A problem made concrete: inputs rounded to the dtype of the run, and what the float64 reference says about them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.catalog import Arrays, Operation, Problem, load

FLOAT_DTYPES = ("float32", "float64")


class Instance:
    """One problem of an operation, seed and dtype.

    Attributes:
        inputs: read-only arrays by name, the floating-point ones rounded to ``dtype``; integers, booleans and strings
            as they are. The oracle works in float64 on these very numbers.
    """

    def __init__(self, operation: Operation, problem: Problem, dtype: str, seed: int) -> None:
        self.operation, self.problem, self.dtype, self.seed = operation, problem, dtype, seed
        self.inputs: Arrays = {name: _frozen(array, dtype) for name, array in problem.arrays(seed).items()}

    def fresh_inputs(self) -> Arrays:
        """Writable copies: whatever a variant does to them is its own affair, until they are compared."""
        return {name: array.copy() for name, array in self.inputs.items()}

    @cached_property
    def outputs(self) -> Arrays:
        """The reference outputs: float64, or integers and booleans."""
        with np.errstate(all="ignore"):
            result: Arrays = load(self.operation.reference)(self.inputs)
        return result

    @cached_property
    def cotangents(self) -> Arrays:
        """Normal random ∂L/∂output, rounded to the dtype; never ones, which would hide a transposed product.

        Only of the floating-point outputs: the others have no derivative.
        """
        rng = np.random.default_rng([self.seed, 1])
        return {
            name: _frozen(rng.normal(size=output.shape), self.dtype)
            for name, output in sorted(self.outputs.items())
            if output.dtype.kind == "f"
        }

    @cached_property
    def gradients(self) -> Arrays:
        """The reference gradients of Σ⟨cotangent, output⟩ with respect to the differentiable inputs, float64.

        Raises:
            ValueError: the operation has no gradient.
        """
        if self.operation.reference_gradients is None:
            raise ValueError(f"{self.operation.name} has no gradient")
        with np.errstate(all="ignore"):
            result: Arrays = load(self.operation.reference_gradients)(self.inputs, self.cotangents)
        return {name: result[name] for name in self.operation.differentiable if name in self.inputs}


def _frozen(array: npt.ArrayLike, dtype: str) -> npt.NDArray[Any]:
    given = np.asarray(array)
    frozen = np.array(given, dtype=dtype if np.issubdtype(given.dtype, np.floating) else given.dtype)
    frozen.flags.writeable = False
    return frozen
