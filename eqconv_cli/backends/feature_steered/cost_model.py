"""What each way of computing costs, and the choice that ``version="auto"`` makes from it.

Letters: V vertices, E edges, C input channels, D output channels, M weight matrices, d = E / V the mean degree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Elements of v2's operand [V, M·F] up to which one wide product and its backward pass beat M narrow ones.
WIDE_OPERAND = 1 << 24
#: Floating-point operations in the time that a byte takes from the cache where features and products lie.
FLOPS_PER_BYTE = 16.0


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
    """Floating-point operations of the forward pass: logits, sparse part in the narrower order, dense part."""
    logits = 4.0 * sizes.vertices * sizes.channels * sizes.matrices
    sparse = 2.0 * sizes.edges * sizes.matrices * min(sizes.channels, sizes.outputs)
    dense = 2.0 * sizes.vertices * sizes.matrices * sizes.channels * sizes.outputs
    return logits + sparse + dense


def minimal_bytes(sizes: Sizes, itemsize: int) -> float:
    """Bytes that a forward pass must move when nothing is moved twice: x, y, both logit tables, edges."""
    per_vertex = sizes.channels + sizes.outputs + 2 * sizes.matrices
    return float(sizes.vertices * per_vertex * itemsize + sizes.edges * (4 + itemsize))


def backward_flops(sizes: Sizes) -> float:
    """Floating-point operations that a backward pass adds when it recomputes nothing: twice those of the forward pass.

    Every product of the forward pass has two in the backward pass, one for each of its factors: dW and dz (order
    "first": dW and dx) in the dense part, dx and the weights' gradients in the sparse part, and for the logits the
    gradients of u, of v and of x on either side.
    """
    return 2.0 * flops(sizes)


def minimal_backward_bytes(sizes: Sizes, itemsize: int) -> float:
    """Bytes that a backward pass must move when it moves nothing twice.

    They are x, dy, dx, the gradients of both logit tables, and of each edge its index, its weight and the gradient of
    that.
    """
    per_vertex = 2 * sizes.channels + sizes.outputs + 2 * sizes.matrices
    return float(sizes.vertices * per_vertex * itemsize + sizes.edges * (4 + 2 * itemsize))


def transform_first(sizes: Sizes) -> bool:
    """The narrower side goes through the sparse part: first iff D < C."""
    return sizes.outputs < sizes.channels


def fused_first(sizes: Sizes) -> bool:
    """Whether the compiled kernels do better to multiply by W before the sum; only for C much larger than D.

    Flops and gathered bytes of an edge in either order, in float32; "first" also writes and reads products [V, M·D].
    """
    degree = max(1.0, sizes.edges / max(1, sizes.vertices))
    m, c, d = float(sizes.matrices), float(sizes.channels), float(sizes.outputs)
    last = 2 * m * c / FLOPS_PER_BYTE + 4 * c
    return last > 2 * m * d / FLOPS_PER_BYTE + 4 * m * d + 8 * m * d / degree


def choose(
    sizes: Sizes,
    framework: Literal["numpy", "torch", "tensorflow"],
    training: bool,
    compiled: bool = False,
    fused: bool = False,
) -> Choice:
    """The algorithm for a call, from the orders measured on the CPU (``benchmarks/``).

    Args:
        sizes: of the call.
        framework: whose arrays.
        training: whether a backward pass follows.
        compiled: whether PyTorch's compiler is tracing, which follows v1 only.
        fused: whether the compiled kernels are built.
    """
    if fused:
        first = fused_first(sizes)
        order = f"order {'first: C is much larger than D' if first else 'last'}"
        return Choice("fused", first, f"the compiled kernels are built; {order}")
    first = transform_first(sizes)
    order = f"order {'first' if first else 'last'}: D={sizes.outputs} {'<' if first else '>='} C={sizes.channels}"
    if framework == "tensorflow":
        return Choice("v1", first, f"sorted segment sums are TensorFlow's fastest reduction; {order}")
    if framework == "numpy":
        return Choice("v3", first, f"SciPy's CSR product on operands [V, F] that stay in the cache; {order}")
    if compiled:
        return Choice("v1", first, f"the compiler follows it and fuses its edge-wise part; {order}")
    if not training:
        return Choice("v3", first, f"PyTorch's CSR product on operands [V, F] that stay in the cache; {order}")
    wide = sizes.vertices * sizes.matrices * min(sizes.channels, sizes.outputs)
    if wide <= WIDE_OPERAND:
        return Choice("v2", first, f"one wide sparse product, V*M*F = {wide:,} <= {WIDE_OPERAND:,}; {order}")
    return Choice(
        "sparse_matmul", first, f"V*M*F = {wide:,} > {WIDE_OPERAND:,}: v2's wide operand leaves the cache; {order}"
    )
