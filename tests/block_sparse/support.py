"""What the tests of the block-sparse family share: random cases, central differences, the versions that there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from eqconv_cli import kernels
from eqconv_cli.backends.block_sparse import FAMILY
from eqconv_cli.catalog import Problem, load

#: The mask of SBNet's own tests, 5 x 5 with ones at (1, 2) and (2, 0).
TWO_PIXELS = np.zeros((1, 5, 5))
TWO_PIXELS[0, [1, 2], [2, 0]] = 1

FUSED = pytest.param("fused", marks=pytest.mark.skipif(bool(kernels.missing("cpu")), reason="core not built"))


def words(**values: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in values.items()}


@dataclass(frozen=True)
class Geometry:
    """Windows over a batch of images."""

    shape: tuple[int, int, int, int]
    bsize: tuple[int, int]
    bstride: tuple[int, int]
    boffset: tuple[int, int]

    @property
    def window(self) -> dict[str, Any]:
        return {"bsize": self.bsize, "bstride": self.bstride, "boffset": self.boffset}

    @property
    def bcount(self) -> tuple[int, int]:
        """The count of SBNet's own tests."""
        down, right = (
            1 + (n - o - 1) // s for n, o, s in zip(self.shape[1:3], self.boffset, self.bstride, strict=True)
        )
        return down, right


#: Of SBNet's tests/test_sparse_blocks.py: base cases, uneven sizes and offsets, gaps, overlaps; and windows outside.
GEOMETRIES = (
    Geometry((1, 2, 3, 2), (2, 3), (3, 4), (-1, -2)),
    Geometry((1, 5, 5, 1), (3, 3), (1, 1), (-1, -2)),
    Geometry((1, 2, 2, 1), (1, 1), (1, 1), (-1, -2)),
    Geometry((3, 2, 2, 1), (1, 1), (1, 1), (0, 0)),
    Geometry((1, 3, 3, 1), (2, 2), (1, 1), (0, 0)),
    Geometry((2, 13, 12, 1), (2, 3), (1, 2), (-1, -2)),
    Geometry((1, 8, 10, 7), (3, 4), (4, 5), (-1, -2)),
    Geometry((1, 5, 5, 1), (3, 2), (3, 2), (1, 0)),
    Geometry((1, 5, 3, 1), (2, 3), (2, 3), (-3, 2)),
    Geometry((2, 7, 11, 3), (16, 16), (5, 4), (-6, -2)),
    Geometry((7, 6, 5, 2), (4, 5), (7, 6), (-6, -2)),
)


def problem(name: str) -> Problem:
    return next(found for found in FAMILY.problems if found.name == name)


def reference_of(operation: str) -> tuple[Callable[..., Any], Callable[..., Any] | None]:
    record = next(found for found in FAMILY.operations if found.name == operation)
    return load(record.reference), load(record.reference_gradients) if record.reference_gradients else None


def slope(
    function: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    inputs: Mapping[str, Any],
    cotangents: Mapping[str, Any],
    name: str,
    direction: np.ndarray,
    step: float = 1e-5,
) -> float:
    """The central difference of Σ⟨cotangent, output⟩ along a direction of one input."""

    def value(shift: float) -> float:
        outputs = function({**inputs, name: inputs[name] + shift * direction})
        return sum(float((cotangents[key] * outputs[key]).sum()) for key in cotangents)

    return (value(step) - value(-step)) / (2 * step)
