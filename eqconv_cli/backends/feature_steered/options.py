"""The options of the operator with their defaults filled in, the same for every framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Literal

from eqconv_cli.backends.feature_steered.cost_model import Sizes, choose, fused_first, transform_first
from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels.doors import Settings


class Flag(IntFlag):
    """``eqc_feature_steered_flags`` of ``cuda/feature_steered/feature_steered.h``, but for those of every family."""

    RELU = 1
    FIRST = 2
    STABLE = 4
    DETERMINISTIC = 8


#: As plain numbers: to ask an enumeration takes longer than to add them up.
_RELU, _FIRST, _STABLE, _DETERMINISTIC = (int(flag) for flag in Flag)


@dataclass(frozen=True)
class Fused(Settings):
    """``version="fused"`` with settings that no application needs; tests and benchmarks compare them.

    Raises:
        ValueError: a setting is unknown.
    """

    #: Every edge's softmax from its own logits, instead of the guarded factored form.
    edge_softmax: bool = False
    #: On a GPU, gradients that are the same bit for bit in every run, without asking the framework for determinism. On
    #: the CPU they always are.
    deterministic: bool = False

    def flags(self, transform_data_first: Any, activation: str | None, sizes: Sizes) -> int:
        """What the compiled operation is told, a sum of :class:`Flag`."""
        first = fused_first(sizes) if transform_data_first is None else transform_data_first
        return (
            _RELU * (activation == "relu")
            + _FIRST * first
            + _STABLE * self.edge_softmax
            + _DETERMINISTIC * self.deterministic
            + self.processor_flags
        )


_DEFAULT = Fused()


@dataclass(frozen=True)
class Options:
    """How an algorithm is to be run; names as in :func:`feature_steered_convolution`."""

    #: Multiply by W before the sum over the neighbours, and whether that happens at every edge (v1 as published).
    first: bool
    on_edges: bool
    #: Add up over m one by one.
    fold: bool
    segment_sum: str
    softmax: str


def fused_settings(version: str | Fused, softmax: str, missing: Callable[[Fused], Sequence[str]]) -> Fused | None:
    """The settings of the compiled kernels where they are asked for, or "auto" can have them; else None.

    Args:
        version: as in :func:`feature_steered_convolution`.
        softmax: as there; the kernels have no "raw" one.
        missing: says why these inputs cannot be computed with such settings here; empty when they can.

    Raises:
        Unavailable: they are asked for and something is missing.
    """
    if version == "auto":
        return _DEFAULT if softmax != "raw" and not missing(_DEFAULT) else None
    if isinstance(version, str) and version != "fused":
        return None
    settings = version if isinstance(version, Fused) else _DEFAULT
    reasons = missing(settings)
    if reasons:
        raise Unavailable("version='fused'", reasons)
    return settings


def resolve(
    version: str,
    transform_data_first: Any,
    memory_efficient: bool,
    segment_sum_impl: str,
    softmax: str,
    sizes: Sizes,
    framework: Literal["numpy", "torch", "tensorflow"],
    *,
    training: bool,
    compiled: bool = False,
) -> tuple[str, Options]:
    """The composite algorithm and its options: "auto" becomes the cost model's choice, None the narrower side.

    ``gather_sum`` is v1 with fixed options (order "last", unsorted, stable), whatever the options say.
    """
    if version == "gather_sum":
        return "v1", Options(False, False, memory_efficient, "unsorted", "stable")
    first = transform_first(sizes) if transform_data_first is None else bool(transform_data_first)
    if version == "auto":
        version = choose(sizes, framework, training, compiled).version
    return version, Options(first, transform_data_first == "edges", memory_efficient, segment_sum_impl, softmax)
