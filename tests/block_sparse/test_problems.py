"""The inputs of the family: complete, reproducible, of the sizes that were published; files of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqconv_cli.backends.block_sparse import FAMILY, masks
from eqconv_cli.backends.block_sparse.problems import elevation, image_file, mask_file
from tests.block_sparse.support import problem, reference_of

SMALL = [p.with_parameters(**p.tiny) if p.tiny else p for p in FAMILY.problems]


@pytest.mark.parametrize("given", SMALL, ids=lambda given: given.name)
def test_inputs_are_reproducible_and_computable(given: Any) -> None:
    assert given.missing() == []
    first, again = given.arrays(3), given.arrays(3)
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    operation = FAMILY.operation_of(given)
    outputs = reference_of(given.operation)[0](first)
    assert all(np.isfinite(output).all() for output in outputs.values())
    if operation.cost:
        assert all(cost.bytes >= 0 and cost.flops >= 0 for cost in operation.cost(first).values())
    if operation.facts:
        assert 0 <= operation.facts(first)["density"] <= 1
    if operation.ideal:
        assert operation.ideal(first) >= 1


def test_every_operation_is_verified_by_default_and_has_real_data_somewhere() -> None:
    for operation in FAMILY.operations:
        mine = [p for p in FAMILY.problems if FAMILY.operation_of(p) is operation]
        assert any("verify" in p.traits for p in mine) and sum("quick" in p.traits for p in mine) == 1
    assert {p.operation for p in FAMILY.problems if "real" in p.traits} == {"masked", "submanifold"}


def test_the_stages_are_the_published_ones() -> None:
    given = problem("res/resnet-v2/conv-3")
    assert given.published == {"SBNet, table 2": 6.27} and given.facets == {"test": "res", "arch": "resnet-v2"}
    assert given.with_parameters(sparsity=0.75).published == {}
    assert problem("res/resnet-50/conv-3").published == {}
    inputs = given.arrays(0)
    assert inputs["x"].shape == (1, 200, 350, 192) and inputs["w2"].shape == (3, 3, 48, 48)
    assert 1 - len(inputs["pixels"]) / (200 * 350) == pytest.approx(0.9, abs=0.005)
    facts = FAMILY.operation_of(given).facts
    assert facts is not None
    assert {name: facts(inputs)[name] for name in "HWCK"} == {"H": 200, "W": 350, "C": 192, "K": 48}


def test_block_sizes_are_taken_or_chosen() -> None:
    given = problem("conv-blocks/resnet-v2/conv-5")
    sizes = {word: given.with_parameters(block_size=word).arrays(0)["bsize"].tolist() for word in ("auto", 9, "7x12")}
    assert sizes[9] == [9, 9] and sizes["7x12"] == [7, 12] and 5 <= sizes["auto"][0] <= 19


def test_the_mask_is_there_where_its_reduction_is_timed() -> None:
    given = problem("conv/resnet-v2/conv-5")
    assert "mask" not in given.arrays(0)
    assert {"mask", "tol", "include_reduce"} <= given.with_parameters(include_reduce=True).arrays(0).keys()


def test_auto_is_explained_where_there_is_a_choice() -> None:
    assert FAMILY.explain is not None
    lines = FAMILY.explain(problem("pixels-same").arrays(0))
    assert [line.split(":")[0] for line in lines] == ["auto@numpy", "auto@torch", "auto@tensorflow"]
    for name in ("sites-grouped", "inverse"):
        lines = FAMILY.explain(problem(name).arrays(0))
        assert [line.split(":")[0] for line in lines] == ["auto@numpy", "auto@torch", "auto@tensorflow"]
    assert FAMILY.explain(problem("gather").arrays(0)) == []


def test_the_terrain_is_a_landscape() -> None:
    heights = elevation()
    assert heights.shape == (344, 403) and heights.min() == 0 and heights.max() == 1
    assert np.abs(np.diff(heights, axis=1)).mean() < 0.02


def test_files_of_the_user(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    mask = masks.make("blobs", np.random.default_rng(0), 1, 40, 50, 0.8)[0]
    path = tmp_path / "mask.png"
    image.fromarray((255 * mask).astype(np.uint8)).save(path)
    found = mask_file(path)
    assert [p.operation for p in found] == ["reduce_mask", "masked", "masked_residual", "submanifold"]
    for given in found:
        inputs = given.arrays(0)
        reference_of(given.operation)[0](inputs)
        if "pixels" in inputs:
            assert np.array_equal(inputs["pixels"], np.flatnonzero(mask))
    colours = image_file(path).arrays(0)
    assert colours["x"].shape == (1, 40, 50, 16)
