"""What the tests of the compiled kernels share: problems of odd shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from eqconv_cli.backends.feature_steered import problems
from tests.feature_steered.support import (
    TOLERANCE,
    Arrays,
    assert_close,
    assert_gradients,
    oracle,
    random_problem,
    rounded,
    tied,
)

#: ``run(inputs, cotangent, **options)`` gives the output and, for a cotangent, the gradients.
Run = Callable[..., tuple[np.ndarray, Arrays]]


def star(leaves: int) -> Arrays:
    """A vertex with ``leaves`` neighbours and as many vertices with one; the rows of a kernel's longest sums."""
    inputs = random_problem(3, centres=leaves + 1, edges=2 * leaves, channels=3, outputs=5, matrices=3)
    outer, centre = np.arange(1, leaves + 1), np.zeros(leaves, int)
    inputs["indices"] = np.stack([np.concatenate([centre, outer]), np.concatenate([outer, centre])], axis=1)
    inputs["values"] = inputs["values"] / leaves
    return inputs


def isolated() -> Arrays:
    """Half of the vertices, the last ones among them, have no neighbour and are nobody's."""
    inputs = random_problem(4, centres=20, edges=60)
    inputs["indices"] = inputs["indices"] % 10
    return inputs


def duplicates() -> Arrays:
    """Every edge four times, each time with another weight."""
    inputs = random_problem(5, centres=9, edges=40)
    inputs["indices"] = np.tile(inputs["indices"][:10], (4, 1))
    return inputs


SHAPES = [
    *((c, d, m) for c in (1, 3, 16, 33) for d in (1, 5, 32) for m in (1, 2, 9)),
    *((17, 64, 8), (64, 17, 8), (64, 3, 4), (5, 7, 33), (8, 130, 2), (130, 8, 3)),
]

PROBLEMS: dict[str, Callable[[], Arrays]] = {
    "ragged": partial(problems.ragged, 0, 5, 7, 3),
    "bipartite": partial(problems.bipartite, 1, 4, 6, 3),
    "fewer centres": partial(random_problem, 2, batch=(2,), centres=4, sources=9, edges=40),
    "more centres": lambda: {
        **random_problem(2, centres=9, sources=4, edges=40),
        "data_out": np.random.default_rng(0).normal(size=(9, 3)),
    },
    "batch": partial(random_problem, 6, batch=(2, 3), centres=8, edges=90),
    "many chunks": partial(random_problem, 7, centres=5000, edges=20_000, channels=4, outputs=3),
    # Products of the matrix unit that end in the middle of a tile in all three directions.
    "several tiles": partial(random_problem, 12, centres=150, edges=900, channels=40, outputs=70, matrices=9),
    "star": partial(star, 5000),
    "isolated": isolated,
    "duplicates": duplicates,
    "no edge": partial(random_problem, 8, edges=0),
    "no vertex": partial(random_problem, 9, centres=0, edges=0),
    "empty blocks": partial(random_problem, 9, batch=(3,), centres=5, edges=40, sizes=(0, 0, 0)),
    "sorted": lambda: _sorted(random_problem(10, centres=40, edges=200)),
    "hard": partial(problems.hard_logits, 2, 4, 6, 5),
    "harder": lambda: _scaled(problems.hard_logits(2, 4, 6, 5), 30),
}


def _sorted(inputs: Arrays) -> Arrays:
    inputs["indices"] = inputs["indices"][np.lexsort(inputs["indices"].T[::-1])]
    return inputs


def _scaled(inputs: Arrays, scale: float) -> Arrays:
    """Logits so large that exponentials fail in float64, too."""
    return {**inputs, "var_u": scale * inputs["var_u"], "var_v": scale * inputs["var_v"]}


@cache
def instance(problem: str, dtype: str) -> tuple[Arrays, np.ndarray, np.ndarray, Arrays]:
    """Inputs, expected output, a cotangent and the expected gradients."""
    inputs = rounded(PROBLEMS[problem](), dtype)
    return inputs, *oracle(inputs)


def check(run: Run, instance: tuple[Arrays, np.ndarray, np.ndarray, Arrays], dtype: str, **options: Any) -> None:
    """Output, all gradients and dtypes of a run against the oracle; the inputs stay as they are."""
    inputs, expected, g, gradients = instance
    before = {name: array.copy() for name, array in inputs.items()}
    output, found = run(inputs, g, **options)
    assert output.dtype == dtype
    assert_close(output, expected, TOLERANCE[dtype])
    # The softmax of one logit is constant: what is left of its gradients is the rounding of terms of order 1.
    assert_gradients(found, gradients, TOLERANCE[dtype], floor=1e-3 if inputs["var_c"].size > 1 else 1.0)
    for name, array in inputs.items():
        np.testing.assert_array_equal(array, before[name])


def shaped(channels: int, outputs: int, matrices: int) -> Arrays:
    """A graph with a layer of this size."""
    return random_problem(11, centres=30, edges=150, channels=channels, outputs=outputs, matrices=matrices)


def after_relu(
    inputs: Arrays, output: np.ndarray, g: np.ndarray, oracle_gradients: Callable[..., Arrays]
) -> tuple[np.ndarray, Arrays]:
    """What an activation makes of the expected output and gradients."""
    passed = np.where(output > 0, g, 0.0).astype(g.dtype)
    return np.maximum(output, 0), oracle_gradients(inputs, {"output": passed.astype(np.float64)})


def offset(distance: float) -> Arrays:
    """Features far from the origin, see :func:`problems.offset`."""
    return rounded(problems.offset(0, 16, 8, 8, distance), "float32")


def apart() -> Arrays:
    """Three blocks far from each other."""
    inputs = tied(random_problem(0, batch=(3,), centres=20, edges=200, channels=8, outputs=4, matrices=4))
    inputs["data"] = 0.01 * inputs["data"] + np.array([-300.0, 0.0, 300.0])[:, None, None]
    return rounded(inputs, "float32")
