from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eqconv_cli.engine import memory
from tests.engine import fake

needs_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="this system keeps no resettable high-water mark"
)


@needs_linux
@pytest.mark.parametrize("megabytes", [32, 128])
def test_a_known_allocation_is_seen(megabytes: int) -> None:
    peak = memory.resident_peak(lambda: np.ones(megabytes * 2**17).sum())
    assert peak == pytest.approx(megabytes * 2**20, rel=0.1)


@needs_linux
def test_an_allocation_that_reuses_freed_memory_is_seen() -> None:
    # Small pieces stay with the process when they are freed, and a large one may then be made of them.
    pieces = [np.ones(2**13) for _ in range(1024)]
    del pieces
    again: list[np.ndarray] = []
    peak = memory.resident_peak(lambda: again.extend(np.ones(2**13) for _ in range(1024)))
    assert peak == pytest.approx(64 * 2**20, rel=0.1)


@needs_linux
def test_the_mark_is_reset() -> None:
    memory.resident_peak(lambda: np.ones(64 * 2**17).sum())
    assert memory.resident_peak(lambda: None) < 4 * 2**20


REQUEST = memory.Request(
    "feature_steered", "convolution", None, "grid", {}, "v1+sorted+last@numpy", "float32", "cpu", 0, False
)


@needs_linux
def test_a_fresh_process_measures_a_real_variant() -> None:
    measured = memory.measure(REQUEST)
    assert measured.source == memory.RESIDENT
    # q [E, M], the gathered x [E, C] and a weighted copy of it are alive together: E = 62,242, M = 8, C = 16.
    assert measured.peak_bytes is not None
    assert 62_242 * 4 * (8 + 2 * 16) < measured.peak_bytes < 62_242 * 4 * (8 + 2 * 16) * 4


def test_a_process_that_fails_says_why() -> None:
    measured = memory.measure(dataclasses.replace(REQUEST, problem="nowhere"))
    assert measured.peak_bytes is None
    assert measured.source.startswith("not measured: exit code 1")


def test_why_is_the_exception_and_not_the_advice_after_it() -> None:
    text = "Traceback (most recent call last):\n  File\ntorch._dynamo.exc.InternalError: it broke\n\nSet VERBOSE=1\n"
    assert memory._why(text) == "torch._dynamo.exc.InternalError: it broke"
    assert memory._why("killed\n") == "killed"
    assert memory._why("") == "no message"


@needs_linux
def test_greedy_variant_through_a_plugin_file(tmp_path: Path) -> None:
    plugin = tmp_path / "greedy_plugin.py"
    plugin.write_text(
        "import numpy as np\n"
        "from dataclasses import replace\n"
        "from eqconv_cli.backends.feature_steered.variants import CLOSED_FORM\n"
        "def prepare(inputs, dtype, device):\n"
        "    run = CLOSED_FORM.bind(inputs, dtype, device)\n"
        "    right = run.run\n"
        "    def greedy():\n"
        "        np.ones(64 * 2**17).sum()\n"
        "        return right()\n"
        "    run.run = greedy\n"
        "    return run\n"
        "VARIANTS = {'feature_steered': [replace(CLOSED_FORM, algorithm='greedy', arguments={}, "
        "prepare='greedy_plugin:prepare')]}\n"
    )
    request = dataclasses.replace(REQUEST, variant="greedy@numpy", problem="ragged", plugin=str(plugin))
    measured = memory.measure(request)
    assert measured.peak_bytes == pytest.approx(64 * 2**20, rel=0.1), measured.source


def test_the_answer_is_one_line_of_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eqconv_cli.engine.memory"],
        input=json.dumps(dataclasses.asdict(dataclasses.replace(REQUEST, problem="ragged"))),
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(json.loads(done.stdout)) == {"peak_bytes", "source"}


def test_fake_greedy_runs() -> None:
    assert fake.GREEDY.bind(fake.make(0, 3, 0.5), "float64", "cpu").run()["y"].shape == (3,)
