"""What eqconv is timed against: it computes the same at the pixels that are compared, and nothing else is looked at."""

from __future__ import annotations

import numpy as np
import pytest

from eqconv_cli.backends.block_sparse import FAMILY, torch_peers
from eqconv_cli.catalog import Variant
from eqconv_cli.engine.selection import Selection
from eqconv_cli.engine.verify import VerifyPlan, verify
from eqconv_cli.events import Row, RowFinished

PEERS = [v for v in FAMILY.variants if v.peer and not v.requires]
#: spconv's kernels for the CPU add up without a lock: wrong sums come and go with more than one thread.
SMALL = {
    "reduce_mask": "mask-overlap",
    "masked": "pixels-same",
    "masked_residual": "unit-pixels",
    "convolution": "blocks-strided",
    "residual": "unit-blocks",
    "submanifold": "sites-2d",
    "gather": "gather",
    "scatter": "scatter-plain",
}


def rows_of(variant: Variant, problem: str) -> list[Row]:
    chosen = tuple(p for p in FAMILY.problems if p.name == problem)
    assert chosen
    plan = VerifyPlan((Selection(FAMILY, chosen, (variant,)),))
    return [event.row for event in verify(plan) if isinstance(event, RowFinished)]


@pytest.mark.torch
@pytest.mark.parametrize("variant", PEERS, ids=lambda v: f"{v.operation}-{v.name}")
def test_a_peer_is_right(variant: Variant) -> None:
    rows = rows_of(variant, SMALL[variant.operation])
    assert {row.status for row in rows} == {"pass"}
    assert len({row.dtype for row in rows}) == 2


@pytest.mark.torch
def test_only_listed_pixels_are_compared() -> None:
    base = np.full((1, 2, 3, 1), 7.0, np.float32)
    run = torch_peers.ListedRun(lambda t: {"y": t["x"]}, {"x": base}, ("x",), "cpu", np.array([1, 5]), base)
    made = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    assert run.download(run.upload(made)).reshape(-1).tolist() == [7, 1, 7, 7, 7, 5]
    assert (run.inputs()["x"] == base).all()
    run.run()["y"].zero_()
    assert not run.inputs()["x"].any()
    other = np.zeros((1, 3, 2, 1), np.float32)
    assert run.download(run.upload(other)).shape == other.shape
