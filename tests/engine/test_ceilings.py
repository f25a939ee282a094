from __future__ import annotations

import pytest

from eqconv_cli import kernels
from eqconv_cli.catalog import Cost
from eqconv_cli.engine import ceilings
from eqconv_cli.engine.ceilings import Ceiling, Ceilings
from eqconv_cli.errors import Unavailable
from eqconv_cli.events import Floor

LIMITS = Ceilings(
    (
        Ceiling("FMA peak", "flop", 100.0),
        Ceiling("numpy GEMM", "flop", 80.0),
        Ceiling("stream copy", "byte", 8.0, "plain stores"),
        Ceiling("numpy copy", "byte", 10.0),
    )
)


def test_the_longer_floor_comes_first_at_the_highest_rate() -> None:
    by_flops, by_bytes = Floor("FMA peak", "flop", 1000.0, 10.0), Floor("numpy copy", "byte", 10.0, 1.0)
    assert LIMITS.floors(Cost(flops=1000.0, bytes=10.0)) == (by_flops, by_bytes)
    assert [floor.ceiling for floor in LIMITS.floors(Cost(flops=100.0, bytes=100.0))] == ["numpy copy", "FMA peak"]


def test_a_ceiling_reads_as_a_rate() -> None:
    assert str(Ceiling("FMA peak", "flop", 123.4e9)) == "FMA peak 123 GFLOP/s"
    assert str(Ceiling("stream copy", "byte", 12.34e9, "plain stores")) == "stream copy 12.3 GB/s (plain stores)"


def test_numpy_is_measured_where_the_core_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_built(device: str) -> None:
        raise Unavailable(f"the core for {device}", ["it is not built"])

    monkeypatch.setattr(kernels, "core", not_built)
    measured = ceilings.measure("float32").measured
    assert [(ceiling.name, ceiling.unit) for ceiling in measured] == [("numpy copy", "byte"), ("numpy GEMM", "flop")]
    assert all(1e8 < ceiling.rate < 1e15 for ceiling in measured)


@pytest.mark.skipif(bool(kernels.missing("cpu")), reason="the core for the CPU is not built")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_probes_are_measured_where_it_is(dtype: str) -> None:
    measured = {ceiling.name: ceiling for ceiling in ceilings.measure(dtype, threads=1).measured}
    assert list(measured) == ["stream copy", "FMA peak", "numpy copy", "numpy GEMM"]
    assert all(1e8 < ceiling.rate < 1e15 for ceiling in measured.values())
    assert measured["stream copy"].remark in ("plain stores", "non-temporal stores")
