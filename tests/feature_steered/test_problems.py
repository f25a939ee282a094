from __future__ import annotations

import numpy as np
import pytest

from eqconv_cli.backends.feature_steered import FAMILY, cost, explain
from eqconv_cli.backends.feature_steered.problems import airfoil

CASES = {case.name: case for case in FAMILY.cases}
#: Problems of the operator itself; those of layer stacks are in test_stacks.
PROBLEMS = (*FAMILY.problems, *CASES["pr101"].problems)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_inputs_are_complete_consistent_and_reproducible(problem: object) -> None:
    assert problem.missing() == []  # type: ignore[attr-defined]
    first, again, other = (problem.arrays(seed) for seed in (3, 3, 4))  # type: ignore[attr-defined]
    matrices, channels, outputs = first["var_w"].shape
    assert first["var_u"].shape == first["var_v"].shape == (channels, matrices)
    assert first["var_c"].shape == (matrices,) and first["var_b"].shape == (outputs,)
    assert first["data"].shape[-1] == channels
    assert first["indices"].shape == (len(first["values"]), len(first["dense_shape"]))
    assert (first["indices"] < first["dense_shape"]).all()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["var_w"], other["var_w"])
    assert all(least.flops > 0 and least.bytes > 0 for least in cost(first).values())
    assert [line.split(":")[0] for line in explain(first)] == ["auto@numpy", "auto@torch", "auto@tensorflow"]


def test_the_airfoil_is_a_triangulation() -> None:
    vertices, triangles = airfoil()
    assert vertices.shape == (4253, 3)
    edges = np.unique(np.sort(triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1), axis=0)
    assert len(edges) == 12289
    # The air around the wing: one hole for each part of the wing, hence V - E + F = 1 - holes.
    assert len(vertices) - len(edges) + len(triangles) <= 1


def test_the_published_case_has_its_edges_and_thirteen_variants() -> None:
    case = CASES["pr101"]
    published = [v for v in case.variants if v.framework == "tensorflow" and "raw" in v.options]
    assert len(published) == 13 and case.variants[:13] == tuple(published)
    inputs = case.problems[0].arrays(123)
    assert inputs["data"].shape == (8, 500, 32)
    assert inputs["var_w"].shape == (8, 32, 32)
    assert len(inputs["values"]) == pytest.approx(502_000, rel=0.01)
    assert all(inputs[name].min() >= 0 and inputs[name].max() < 1 for name in ("data", "var_u", "var_w", "var_b"))


def test_hard_logits_defeat_plain_and_factored_exponentials_in_float32() -> None:
    inputs = next(p for p in FAMILY.problems if p.name == "hard-logits").arrays(0)
    row, col = inputs["indices"].T
    a, s = inputs["data"] @ inputs["var_u"] + inputs["var_c"], inputs["data"] @ inputs["var_v"]
    logits = a[row] + s[col]
    assert (logits.max(1) > 89).any()
    gap = a.max(1)[row] + s.max(1)[col] - logits.max(1)
    assert (gap > 104).any()
