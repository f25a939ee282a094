"""What each way of computing costs, and the choice that ``version="auto"`` makes from it.

Letters: V vertices, E edges, C input channels, D output channels, M weight matrices, d = E / V the mean degree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Sizes:
    """The sizes of one operator call."""

    vertices: int
    edges: int
    channels: int
    outputs: int
    matrices: int


@dataclass(frozen=True)
class Choice:
    """What "auto" takes, with the sentence that says why."""

    version: str
    transform_data_first: bool
    reason: str


def flops(sizes: Sizes) -> float:
    """Floating-point operations of the forward pass: logits, sparse part in the order "last", dense part."""
    logits = 4.0 * sizes.vertices * sizes.channels * sizes.matrices
    sparse = 2.0 * sizes.edges * sizes.matrices * sizes.channels
    dense = 2.0 * sizes.vertices * sizes.matrices * sizes.channels * sizes.outputs
    return logits + sparse + dense


def minimal_bytes(sizes: Sizes, itemsize: int) -> float:
    """Bytes that a forward pass must move when nothing is moved twice: x, y, both logit tables, edges."""
    per_vertex = sizes.channels + sizes.outputs + 2 * sizes.matrices
    return float(sizes.vertices * per_vertex * itemsize + sizes.edges * (4 + itemsize))


def transform_first(sizes: Sizes) -> bool:
    """The narrower side goes through the sparse part: first iff D < C."""
    return sizes.outputs < sizes.channels


def choose(sizes: Sizes, framework: Literal["numpy", "torch", "tensorflow"], training: bool) -> Choice:
    """The algorithm for a call, from measured orders of the composite algorithms.

    PyTorch and SciPy have a fast CSR product, which v3 uses on operands [V, F] that stay in the cache. TensorFlow's
    sparse product is slow on the CPU; its sorted segment sum is the best it has. ``training`` weighs the backward pass.
    """
    first = transform_first(sizes)
    order = f"order {'first' if first else 'last'}: D={sizes.outputs} {'<' if first else '>='} C={sizes.channels}"
    if framework == "tensorflow":
        return Choice("v1", first, f"sorted segment sums are TensorFlow's fastest reduction; {order}")
    library = "SciPy's" if framework == "numpy" else "PyTorch's"
    tail = "; the backward pass reuses the transposed CSR pattern" if training else ""
    return Choice("v3", first, f"{library} CSR product on narrow operands{tail}; {order}")
