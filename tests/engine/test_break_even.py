from __future__ import annotations

import pytest

from eqconv_cli.engine.break_even import BreakEven, break_evens
from eqconv_cli.events import Row


def row(sparsity: float, ratio: float | None, variant: str = "v", **changes: object) -> Row:
    fields: dict[str, object] = {"series": "p", "baseline": "dense", "ratio": ratio, "facts": {"sparsity": sparsity}}
    fields |= changes
    return Row("f", "p", variant, "a", "numpy", "cpu", "float32", "forward", "pass", **fields)  # type: ignore[arg-type]


def one(*rows: Row) -> BreakEven:
    (found,) = break_evens(rows)
    return found


def test_the_crossing_is_linear_between_two_sparsities() -> None:
    found = one(row(0.9, 0.5), row(0.5, 1.5), row(0.7, 1.1))
    assert found.sparsity == pytest.approx(0.7 + 0.2 * 0.1 / 0.6)
    assert (found.sparsities, found.ratios) == ((0.5, 0.9), (1.5, 0.5))


def test_faster_or_slower_everywhere_has_no_crossing() -> None:
    assert one(row(0.5, 0.9), row(0.9, 0.5)).sparsity is None
    assert one(row(0.5, 1.9), row(0.9, 1.5)).sparsity is None
    assert one(row(0.5, 0.9), row(0.9, 1.5)).sparsity is None


def test_only_the_last_crossing_counts() -> None:
    assert one(row(0.1, 0.9), row(0.2, 1.1), row(0.3, 0.9)).sparsity == pytest.approx(0.25)
    assert one(row(0.1, 1.2), row(0.2, 1.0), row(0.3, 0.5)).sparsity == pytest.approx(0.2)


def test_the_best_of_several_block_sizes_counts() -> None:
    assert one(row(0.5, 1.5), row(0.5, 1.1), row(0.9, 2.0), row(0.9, 0.9)).ratios == (1.1, 0.9)


def test_what_is_no_sweep_is_left_out() -> None:
    assert break_evens([row(0.5, 1.5)]) == []
    assert break_evens([row(0.5, 1.5), row(0.9, 1.5, series=None)]) == []
    assert break_evens([row(0.5, 1.0, "dense"), row(0.9, 1.0, "dense")]) == []
    assert break_evens([row(0.5, 1.5), row(0.9, 0.5, baseline="another")]) == []
    assert break_evens([row(0.5, 1.5), row(0.9, None)]) == []
