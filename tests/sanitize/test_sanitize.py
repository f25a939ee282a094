"""The core for the CPU under the sanitizers, which find nothing, except for the faults that are planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from eqconv_cli.kernels import contract
from tests.sanitize.support import CUDA, DRIVERS, SANITIZERS, Build, missing, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Build]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    return {name: Build(name, tmp_path_factory.mktemp(name)) for name in SANITIZERS}


def test_every_operation_has_a_driver() -> None:
    calls = "".join(path.read_text() for path in DRIVERS.values())
    for operation in contract.operations(CUDA):
        for suffix in ("f32", "f64"):
            assert f"eqc_{operation}_{suffix}" in calls


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_clean(builds: dict[str, Build], sanitizer: str, driver: str) -> None:
    done = run(builds[sanitizer].program(driver))
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert done.stdout


#: Arrays of each driver that are made too short.
SHORT = {
    "feature_steered": ["x", "centre", "rowptr", "col", "local", "w", "y", "dx", "dvalues", "dw"],
    "block_sparse": [
        "masks.mask",
        "masks.triples",
        "blocks.index",
        "blocks.y",
        "sites.x",
        "sites.table",
        "sites.dx",
        "neighbours.coords",
        "neighbours.table",
        "residual.w2",
    ],
    "steerable": [
        "harmonics.pairs",
        "harmonics.table",
        "harmonics.permutation",
        "harmonics.values",
        "harmonics.harmonic",
        "harmonics.weights",
        "harmonics.gradients",
        "harmonics.filter",
        "harmonics.filter_in",
        "directly.values",
        "directly.gradients",
        "directly.filter",
        "directly.filter_in",
    ],
}
#: What is reported in each memory. In the heap the fault has other names when a register lies across the end.
MESSAGES = {"heap": "-byte region [", "page": "SEGV on unknown address"}


@pytest.mark.parametrize(("driver", "array"), [(driver, array) for driver in SHORT for array in SHORT[driver]])
@pytest.mark.parametrize("memory", MESSAGES)
def test_an_array_that_ends_too_early_is_seen(builds: dict[str, Build], driver: str, array: str, memory: str) -> None:
    done = run(builds["address"].program(driver), array, memory)
    assert done.returncode != 0
    assert MESSAGES[memory] in done.stderr
    assert str(CUDA) in done.stderr


@pytest.mark.parametrize("driver", ["feature_steered", "block_sparse", "parallel"])
def test_a_race_is_seen(builds: dict[str, Build], driver: str, tmp_path: Path) -> None:
    """Sums that do not wait for their turn."""
    build = builds["thread"]
    source = (CUDA / "common" / "parallel.cpp").read_text()
    waits = "void Turnstile::wait_for(int64_t item) {\n"
    assert source.count(waits) == 1
    planted = tmp_path / "parallel.cpp"
    planted.write_text(source.replace(waits, waits + "    if (item >= 0) return;\n"))
    build.compile(planted, ["-std=c++17"], "planted.o")
    done = run(build.program(driver, {"parallel-.o": "planted.o"}))
    assert done.returncode != 0
    assert "ThreadSanitizer: data race" in done.stderr
