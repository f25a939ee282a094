"""The published benchmarks of the feature-steered family, as cases of ``eqconv bench``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.feature_steered import meshes, stacks
from eqconv_cli.backends.feature_steered.graphs import uniform_random
from eqconv_cli.backends.feature_steered.problems import on_mesh
from eqconv_cli.backends.feature_steered.variants import VARIANTS, variant
from eqconv_cli.backends.packaged_data import missing_file
from eqconv_cli.catalog import Case, Problem, Variant

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
PUBLISHED: dict[str, dict[str, Any]] = {
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
#: Automatic differentiation of the factored form (v2, v3) sums p·g and p·ḡ over the neighbours apart and subtracts
#: then, where v1 subtracts edge by edge. With these all-positive inputs the sums are up to 46 times the gradient of the
#: features that remains (density 0.25; 37, 28, 10 at 0.05, 0.02, 0.005), and so is the rounding; 4 is what it takes.
_FACTORED: dict[str, Any] = {
    "tolerance_factor": 4.0,
    "tolerance_why": "the factored form subtracts sums over the neighbours that are up to 46 times their difference",
}
_THIRTEEN = {
    name: replace(
        variant("tensorflow", softmax="raw", **options), **(_FACTORED if name.startswith(("v2", "v3")) else {})
    )
    for name, options in PUBLISHED.items()
}

_BY_NAME = {v.name: v for v in VARIANTS}
#: What there is since, beside the thirteen.
_SINCE = (
    _BY_NAME["v1+unsorted+last+xla@tensorflow"],
    replace(_BY_NAME["v3+last@torch"], **_FACTORED),
    *(_BY_NAME[f"fused@{framework}"] for framework in ("numpy", "torch", "tensorflow")),
)

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
            tiny={"batch": 1, "vertices": 20},
        ),
    ),
    variants=(*_THIRTEEN.values(), *_SINCE),
    baseline=_THIRTEEN["v1_p2d"].name,
    passes=("forward", "forward+backward"),
)


def _stack_variant(layers: int, **options: Any) -> Variant:
    """A variant of the operator as every convolution of a stack. Rounding errors of successive layers add up."""
    return replace(
        variant("tensorflow", **options),
        prepare="eqconv_cli.backends.feature_steered.tensorflow_stacks:prepare",
        slow=False,
        tolerance_factor=float(layers),
        tolerance_why=f"the rounding errors of {layers} successive layers add up",
    )


_NINE = {
    name: _stack_variant(len(stacks.MODEL), softmax="raw", **options)
    for name, options in PUBLISHED.items()
    if not name.endswith("bad")
}

PR101_MODEL = Case(
    name="pr101-model",
    title="mesh segmentation, one Adam step: 8 meshes, M 8 (--set matrices=64 for the other published size)",
    source="tensorflow/graphics pull request #101, feature_steered_model_benchmark",
    problems=(
        Problem(
            "pr101-model",
            stacks.segmentation_batch,
            {"batch": 8, "matrices": 8},
            "eight poses of a real mesh instead of a dancer sequence that is not redistributable",
            missing=partial(missing_file, "pymeshlab", "tests/sample_meshes/cow.obj"),
            tiny={"batch": 1},
        ),
    ),
    variants=tuple(_NINE.values()),
    baseline=_NINE["v1_p2d"].name,
    passes=("forward+backward",),
    reference="eqconv_cli.backends.feature_steered.stacks:reference",
    reference_gradients="eqconv_cli.backends.feature_steered.stacks:reference_gradients",
    differentiable=stacks.parameter_names(stacks.MODEL),
    gradient_jumps=True,
    costed=False,
)

_LAYERS = 10
_STACK = (
    _stack_variant(_LAYERS, algorithm="gather_sum"),
    _stack_variant(_LAYERS, algorithm="v1", order="last", segment_sum="sorted", fold=False),
    _stack_variant(_LAYERS, algorithm="sparse_matmul", order="last", fold=False),
    _stack_variant(_LAYERS, algorithm="gather_sum", mode="xla"),
)

PR155 = Case(
    name="pr155",
    title="layer stack: V 100,000, 10 V random pairs, 3 input channels, 10 layers, M 8, D 32",
    source="tensorflow/graphics pull request #155, graph_convolution_benchmark",
    problems=(
        Problem(
            "pr155",
            stacks.stack_inputs,
            {"vertices": 100_000, "degree": 10, "layers": _LAYERS, "outputs": 32, "matrices": 8},
            "random pairs with replacement, ReLU after each layer",
            tiny={"vertices": 200},
        ),
    ),
    variants=_STACK,
    baseline=_STACK[0].name,
    reference="eqconv_cli.backends.feature_steered.stacks:reference",
    reference_gradients="eqconv_cli.backends.feature_steered.stacks:reference_gradients",
    differentiable=stacks.parameter_names(stacks.layer_stack(_LAYERS, 32)),
    gradient_jumps=True,
    costed=False,
)


def _door(framework: str, option: str, needs: tuple[str, ...]) -> Variant:
    """A compiled operator without the Python around it."""
    return Variant(
        algorithm="fused",
        framework=framework,
        prepare=f"eqconv_cli.backends.feature_steered.{framework}_doors:prepare",
        options=(option,),
        needs=needs,
        gradient=False,
        why_no_gradient="a door of the forward pass",
        source="cuda/bindings",
    )


_DOORS = (
    _door("numpy", "bare", ("cpu",)),
    _door("torch", "door", ("torch", "cpu")),
    _door("tensorflow", "door", ("tensorflow", "cpu")),
)

OVERHEAD = Case(
    name="overhead",
    title="what a call costs before it computes: a graph of 10 vertices",
    source="eqconv",
    problems=(
        Problem(
            "overhead",
            partial(on_mesh, meshes.grid_mesh),
            {"n": 2, "m": 5, "channels": 4, "outputs": 4, "matrices": 2},
            "a strip of 10 vertices",
        ),
    ),
    variants=(*_DOORS, *(_BY_NAME[f"fused@{framework}"] for framework in ("numpy", "torch", "tensorflow"))),
    baseline=_DOORS[0].name,
    passes=("forward",),
    costed=False,
)

CASES = (PR101, PR101_MODEL, PR155, OVERHEAD)
