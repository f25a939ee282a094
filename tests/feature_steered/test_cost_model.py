from __future__ import annotations

import pytest

from eqconv_cli.backends.feature_steered import FAMILY, cost
from eqconv_cli.backends.feature_steered.cost_model import (
    Sizes,
    backward_flops,
    choose,
    flops,
    minimal_backward_bytes,
    minimal_bytes,
    transform_first,
)

MESH = Sizes(vertices=32_492, edges=227_432, channels=32, outputs=32, matrices=8)
WIDE = Sizes(vertices=32_492, edges=227_432, channels=64, outputs=64, matrices=32)


def test_flops_and_bytes_by_hand() -> None:
    tiny = Sizes(vertices=2, edges=3, channels=5, outputs=7, matrices=11)
    assert flops(tiny) == 4 * 2 * 5 * 11 + 2 * 3 * 11 * 5 + 2 * 2 * 11 * 5 * 7
    narrow = Sizes(vertices=2, edges=3, channels=7, outputs=5, matrices=11)
    assert flops(narrow) == 4 * 2 * 7 * 11 + 2 * 3 * 11 * 5 + 2 * 2 * 11 * 7 * 5
    assert minimal_bytes(tiny, 4) == 2 * (5 + 7 + 22) * 4 + 3 * (4 + 4)


def test_flops_and_bytes_of_the_backward_pass_by_hand() -> None:
    tiny = Sizes(vertices=2, edges=3, channels=5, outputs=7, matrices=11)
    dense = 2 * (2 * 2 * 11 * 5 * 7)  # dW, dz
    sparse = 2 * (2 * 3 * 11 * 5)  # dx, and the weights' gradients
    logits = 4 * (2 * 2 * 5 * 11)  # du, dv, and what x gets through either
    assert backward_flops(tiny) == dense + sparse + logits
    assert minimal_backward_bytes(tiny, 8) == 2 * (5 + 7 + 5 + 22) * 8 + 3 * (4 + 8 + 8)


def test_the_cost_of_both_passes_is_more_than_of_one() -> None:
    case = next(case for case in FAMILY.cases if case.name == "overhead")
    inputs = case.problems[0].arrays(0)
    assert len(inputs["data"]) == 10
    costs = cost(inputs)
    assert list(costs) == ["forward", "forward+backward"]
    assert costs["forward+backward"].flops == 3 * costs["forward"].flops
    assert costs["forward+backward"].bytes > 2 * costs["forward"].bytes


def test_the_narrow_side_goes_through_the_sparse_part() -> None:
    assert not transform_first(MESH)
    assert transform_first(Sizes(10, 10, channels=8, outputs=7, matrices=1))


@pytest.mark.parametrize(
    ("sizes", "framework", "training", "compiled", "version"),
    [
        (MESH, "torch", False, False, "v3"),
        (MESH, "torch", True, False, "v2"),
        (WIDE, "torch", True, False, "sparse_matmul"),
        (WIDE, "torch", True, True, "v1"),
        (WIDE, "tensorflow", True, False, "v1"),
        (WIDE, "numpy", False, False, "v3"),
    ],
)
def test_choices(sizes: Sizes, framework: str, training: bool, compiled: bool, version: str) -> None:
    choice = choose(sizes, framework, training, compiled)  # type: ignore[arg-type]
    assert choice.version == version
    assert "order last: D=" in choice.reason
