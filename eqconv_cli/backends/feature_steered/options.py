"""The options of the operator with their defaults filled in, the same for every framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from eqconv_cli.backends.feature_steered.cost_model import Sizes, choose, transform_first


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
    """The algorithm and its options: "auto" becomes the cost model's choice, None the narrower side.

    ``gather_sum`` is v1 with fixed options (order "last", unsorted, stable), whatever the options say.
    """
    if version == "gather_sum":
        return "v1", Options(False, False, memory_efficient, "unsorted", "stable")
    first = transform_first(sizes) if transform_data_first is None else bool(transform_data_first)
    if version == "auto":
        version = choose(sizes, framework, training, compiled).version
    return version, Options(first, transform_data_first == "edges", memory_efficient, segment_sum_impl, softmax)
