"""The published benchmarks of the feature-steered family, as cases of ``eqconv bench``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.feature_steered.graphs import uniform_random
from eqconv_cli.backends.feature_steered.variants import variant
from eqconv_cli.catalog import Case, Problem

Arrays = dict[str, npt.NDArray[Any]]


def single_convolution(
    seed: int, batch: int, vertices: int, channels: int, outputs: int, matrices: int, sparsity: float
) -> Arrays:
    """Pull request #101's inputs: everything uniform in [0, 1); the published "sparsity" flag is 1 - ``sparsity``."""
    rng = np.random.default_rng(seed)
    graph = uniform_random(rng, batch, vertices, 1 - sparsity)
    shapes = {
        "data": (batch, vertices, channels),
        "var_u": (channels, matrices),
        "var_v": (channels, matrices),
        "var_c": (matrices,),
        "var_w": (matrices, channels, outputs),
        "var_b": (outputs,),
    }
    return {**graph, **{name: rng.random(shape) for name, shape in shapes.items()}}


#: The thirteen variants by their published names. "bad" is the order that is not the default (C = D: "last"), in v1 on
#: the edges as published; "mem" folds. The published exponentials are plain.
PUBLISHED = {
    "v1_p2d": {"algorithm": "v1", "order": "last", "segment_sum": "partition2d", "fold": False},
    "v1_p2d_bad": {"algorithm": "v1", "order": "edges", "segment_sum": "partition2d", "fold": False},
    "v1_sorted": {"algorithm": "v1", "order": "last", "segment_sum": "sorted", "fold": False},
    "v1_unsorted": {"algorithm": "v1", "order": "last", "segment_sum": "unsorted", "fold": False},
    "v1_p2d_mem": {"algorithm": "v1", "order": "last", "segment_sum": "partition2d"},
    "v1_sorted_mem": {"algorithm": "v1", "order": "last", "segment_sum": "sorted"},
    "v1_unsorted_mem": {"algorithm": "v1", "order": "last", "segment_sum": "unsorted"},
    "v2": {"algorithm": "v2", "order": "last"},
    "v2_bad": {"algorithm": "v2", "order": "first"},
    "v3": {"algorithm": "v3", "order": "last", "fold": False},
    "v3_mem": {"algorithm": "v3", "order": "last"},
    "v3_bad": {"algorithm": "v3", "order": "first", "fold": False},
    "v3_mem_bad": {"algorithm": "v3", "order": "first"},
}
_THIRTEEN = {name: variant("tensorflow", softmax="raw", **options) for name, options in PUBLISHED.items()}  # type: ignore[arg-type]

PR101 = Case(
    name="pr101",
    title="single convolution: batch 8, V 500, C = D = 32, M 8, random neighbours",
    source="tensorflow/graphics pull request #101, feature_steered_conv_benchmark",
    problems=(
        Problem(
            "pr101",
            single_convolution,
            {"batch": 8, "vertices": 500, "channels": 32, "outputs": 32, "matrices": 8, "sparsity": 0.75},
            "uniform random inputs and neighbours",
        ),
    ),
    variants=tuple(_THIRTEEN.values()),
    baseline=_THIRTEEN["v1_p2d"].name,
    passes=("forward", "forward+backward"),
)

CASES = (PR101,)
