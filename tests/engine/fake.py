"""A family that costs nothing: y = 2x, in NumPy. Its variants are fast, wrong, greedy or broken as a test wants."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from eqconv_cli.catalog import Case, Cost, Family, Operation, Problem, Variant
from eqconv_cli.frameworks.numpy import BoundRun

PREPARE = "tests.engine.fake:prepare"


def make(seed: int, n: int, sparsity: float) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=n)}


def reference(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {"y": 2.0 * np.asarray(inputs["x"], np.float64)}


def gradients(inputs: Mapping[str, Any], cotangents: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {"x": 2.0 * np.asarray(cotangents["y"], np.float64)}


def prepare(
    inputs: Mapping[str, Any],
    dtype: str,
    device: str,
    factor: float = 2.0,
    megabytes: int = 0,
    sleep: float = 0,
    identity: bool = False,
    interrupt: bool = False,
) -> BoundRun:
    def forward(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if interrupt:
            raise KeyboardInterrupt
        if sleep:
            time.sleep(sleep)
        if megabytes:
            np.ones(megabytes * 2**17).sum()
        if identity:
            return {"y": arrays["x"]}
        return {"y": (factor * arrays["x"]).astype(dtype)}

    def backward(arrays: Mapping[str, Any], cotangents: Mapping[str, Any]) -> dict[str, np.ndarray]:
        forward(arrays)
        return {"x": (factor * cotangents["y"]).astype(dtype)}

    return BoundRun(forward, {"x": inputs["x"]}, backward)


def variant(name: str, gradient: bool = True, **arguments: Any) -> Variant:
    return Variant(
        name, "numpy", PREPARE, arguments=arguments, gradient=gradient, why_no_gradient="values only", headline=True
    )


GOOD, TWIN, SLOW = variant("good"), variant("twin"), variant("slow", sleep=0.004)
WRONG, FORWARD_ONLY = variant("wrong", factor=2.1), variant("forward", gradient=False)
GREEDY = variant("greedy", megabytes=64)
PROBLEM = Problem("small", make, {"n": 1000, "sparsity": 0.5}, traits=frozenset({"verify", "quick", "bench", "tiny"}))

DOUBLE = Operation(
    name="double",
    title="Twice the input",
    formula="y = 2 x",
    reference="tests.engine.fake:reference",
    reference_gradients="tests.engine.fake:gradients",
    differentiable=("x",),
    baseline=GOOD.name,
    cost=lambda inputs: {"forward": Cost(flops=float(inputs["x"].size), bytes=8.0 * inputs["x"].size)},
)

FAMILY = Family(
    name="fake",
    title="Twice the input",
    paper="none",
    operations=(DOUBLE,),
    problems=(PROBLEM,),
    variants=(GOOD, TWIN, SLOW, FORWARD_ONLY),
    cases=(Case("published", "a case", "nowhere", (PROBLEM,), (SLOW, GOOD), SLOW.name, passes=("forward",)),),
    explain=lambda inputs: [f"auto: good, because n={inputs['x'].size}"],
)
