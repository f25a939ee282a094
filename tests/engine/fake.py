"""Families that cost nothing, in NumPy. Their variants are fast, wrong, greedy or broken as a test wants.

``FAMILY`` has one operation, y = 2x. ``TWO`` has a second one, "pick": the active entries of x and where they are,
which must be exact, with all that a record can say: facets, sweeps, stages, checks with rows of their own, a peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eqconv_cli.catalog import Case, Check, Cost, Family, Operation, Pair, Problem, Variant
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

Arrays = Mapping[str, Any]


def make_pick(
    seed: int, n: int, sparsity: float, mask: str, block_size: int | str, include_reduce: bool
) -> dict[str, np.ndarray]:
    """With strings, booleans and integers among the inputs; the mask "corner" is the first entries, "noise" random."""
    rng = np.random.default_rng(seed)
    active = np.zeros(n, bool)
    count = round((1 - sparsity) * n)
    active[:count] = True
    return {
        "x": rng.normal(size=n),
        "mask": active if mask == "corner" else rng.permutation(active),
        "padding": np.array("SAME"),
        "block": np.array(8 if block_size == "auto" else int(block_size)),
    }


def pick(inputs: Arrays) -> dict[str, np.ndarray]:
    assert inputs["padding"] == "SAME"
    return {"values": np.where(inputs["mask"], inputs["x"], 0.0), "indices": np.flatnonzero(inputs["mask"])}


#: The reference by a name that a test may replace without touching the variants.
pick_reference = pick


class PickRun(BoundRun):
    """Picks; ``fault`` says what is wrong, ``seconds`` what it takes: all of it, or in proportion to the density."""

    def __init__(self, inputs: Arrays, fault: str, seconds: float, sparse: bool) -> None:
        self._inputs, self._fault = inputs, fault
        blocks = 1 + 8 / float(inputs["block"])
        self._seconds = seconds * (float(np.mean(inputs["mask"])) * blocks if sparse else 1.0)
        self._runs = 0
        super().__init__(self._pick, {"x": inputs["x"]})

    def _pick(self, arrays: Arrays) -> dict[str, np.ndarray]:
        time.sleep(self._seconds)
        found = {name: array.copy() for name, array in pick({**self._inputs, **arrays}).items()}
        found["values"] = found["values"].astype(arrays["x"].dtype)
        return FAULTS[self._fault](found)

    def stages(self) -> dict[str, float]:
        self._runs += 1
        if self._fault == "stages":
            raise RuntimeError("no stages today")
        return {"reduce": 1e-3 * self._runs, "gather": 2e-3}


def _rounded(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**found, "values": found["values"] * np.asarray(1 + 1e-6, found["values"].dtype)}


_noise = np.random.default_rng(0)

FAULTS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "": lambda found: found,
    "stages": lambda found: found,
    "narrow": lambda found: {**found, "indices": found["indices"].astype(np.int16)},
    "off by one": lambda found: {**found, "indices": found["indices"] + 1},
    "float indices": lambda found: {**found, "indices": found["indices"].astype(np.float64)},
    "unsorted": lambda found: {**found, "indices": found["indices"][::-1].copy()},
    "rounded": _rounded,
    "noise": lambda found: {**found, "values": found["values"] + 1e-9 * _noise.normal()},
}


def prepare_pick(
    inputs: Arrays, dtype: str, device: str, fault: str = "", seconds: float = 0.0, sparse: bool = True
) -> PickRun:
    return PickRun(inputs, fault, seconds, sparse)


def picker(name: str, **arguments: Any) -> Variant:
    return Variant(
        name, "numpy", "tests.engine.fake:prepare_pick", arguments=arguments, operation="pick", gradient=False,
        why_no_gradient="nothing to differentiate", headline=True,
    )  # fmt: skip


def twice(compute: Callable[[Arrays], Arrays], inputs: Arrays, seed: int) -> Sequence[Pair]:
    first, second = compute(inputs), compute(inputs)
    return [Pair(name, first[name], second[name]) for name in first]


def inactive(compute: Callable[[Arrays], Arrays], inputs: Arrays, seed: int) -> Sequence[Pair]:
    values = compute(inputs)["values"]
    return [Pair("", values[~inputs["mask"]], np.zeros(np.count_nonzero(~inputs["mask"])))]


def scaled(compute: Callable[[Arrays], Arrays], inputs: Arrays, seed: int) -> Sequence[Pair]:
    double = compute({**inputs, "x": 2 * inputs["x"]})["values"]
    return [Pair("", double, 2 * compute(inputs)["values"])]


def meaningless(compute: Callable[[Arrays], Arrays], inputs: Arrays, seed: int) -> Sequence[Pair]:
    return []


def density(inputs: Arrays) -> float:
    return float(np.mean(inputs["mask"]))


PICK = Operation(
    name="pick",
    title="The active entries",
    formula="values = x where mask, indices = where mask",
    reference="tests.engine.fake:pick",
    baseline="dense@numpy",
    checks=(
        Check("E14", twice, "two runs give the same bits", own_row=True, tolerance=0.0),
        Check("E2", inactive, "inactive entries are 0", own_row=True),
        Check("E3", meaningless, "holds of other inputs only", own_row=True),
        Check("scaled", scaled, "2 x gives twice the values"),
    ),
    value_check="E1",
    value_title="the list is the reference's",
    exact=True,
    facts=lambda inputs: {"H": 1.0, "W": len(inputs["x"]), "C": 1.0, "K": 2.0, "BH": 1.0, "BW": float(inputs["block"]),
                          "density": density(inputs), "block_sparsity": 0.25},
    ideal=lambda inputs: 1 / density(inputs),
)  # fmt: skip

PICK_PARAMETERS: dict[str, Any] = {
    "n": 1000, "sparsity": 0.75, "mask": "corner", "block_size": "auto", "include_reduce": False,
}  # fmt: skip


def pick_problem(name: str, *traits: str, **facets: str) -> Problem:
    return Problem(
        name,
        make_pick,
        PICK_PARAMETERS,
        traits=frozenset(traits),
        operation="pick",
        facets=facets,
        choices={"mask": ("corner", "noise")},
        published={"somebody, somewhere": 3.39},
    )


def mask_file(path: Path) -> tuple[Problem, ...]:
    def make_from(seed: int) -> dict[str, np.ndarray]:
        mask = np.load(path)
        return {**make_pick(seed, len(mask), 0.5, "corner", "auto", False), "mask": mask}

    return (Problem(f"mask:{path.name}", make_from, operation="pick", traits=frozenset({"invariants"})),)


DENSE, SPARSE = picker("dense", seconds=0.004, sparse=False), picker("sparse", seconds=0.004)
PEER = Variant(
    "peer", "numpy", "nowhere:prepare", operation="pick", peer=True, requires=("no_such_package",), headline=True
)
TWO = Family(
    name="two",
    title="Twice the input, and its active entries",
    paper="none",
    operations=(DOUBLE, PICK),
    problems=(
        PROBLEM,
        pick_problem("a", "verify", "quick", "bench", "invariants", test="conv", arch="v2"),
        pick_problem("b", test="conv", arch="v3"),
        pick_problem("c", test="res", arch="v3"),
    ),
    variants=(GOOD, TWIN, DENSE, SPARSE, PEER),
    file_problems={"mask": mask_file},
)
