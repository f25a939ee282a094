"""A kernel that reads workspace which no kernel has written is a fault of every emulated run, through every door."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eqconv_cli import errors, kernels
from eqconv_cli.kernels import contract, sources
from eqconv_cli.kernels.library import Core
from tests.emulation import support as emulation
from tests.kernels_cuda.support import STABLE, random_problem

FAULT = "reads element 0 of a view of {} before anything has written it"

#: In a process of its own, for a door keeps the core that it has opened. Prints y, then why y cannot be computed.
PROGRAM = """
import importlib, sys
from pathlib import Path
from eqconv_cli import kernels
from tests.kernels_cuda.support import random_problem

framework, planted = sys.argv[1], Path(sys.argv[2])
built, missing = kernels.built, kernels.missing
kernels.built = lambda target: planted if target == "emulated" else built(target)
kernels.missing = lambda target: [] if target == "emulated" else missing(target)

runs = importlib.import_module(f"eqconv_cli.backends.feature_steered.{framework}_runs")
inputs = random_problem().oracle_inputs()
for stable in (True, False):
    prepared = runs.prepare(inputs, "float32", "emulated", fused={"edge_softmax": stable})
    try:
        print(set(prepared.download(prepared.run()["output"]).ravel().tolist()))
    except Exception as error:
        print(error)
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A core whose forward operation reads workspace that it has not written."""
    if emulation.compiler() is None:
        pytest.skip("no C++ compiler: g++ or clang++ on the PATH, or $CXX")
    folder = tmp_path_factory.mktemp("planted")
    source = Path(__file__).with_name("planted.cu")
    emulation.Kernels(source, emulation.compile_emulator(folder), folder, ["-I", str(sources.root())])
    return folder / "libplanted.so"


def test_through_numpy(planted: Path) -> None:
    problem = random_problem()
    core = Core("emulated", planted, contract.operations(sources.root()))
    y = np.zeros((problem.rows, len(problem.b)), problem.dtype)
    core.call("feature_steered_forward", problem.dtype, {**problem.fields(STABLE), "y": y})
    assert (y == 1).all()
    with pytest.raises(errors.EqconvError, match=FAULT.format(y.size)):
        core.call("feature_steered_forward", problem.dtype, {**problem.fields(0), "y": y})
    core.call("feature_steered_forward", problem.dtype, {**problem.fields(STABLE), "y": y})


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_through_a_framework(planted: Path, framework: str) -> None:
    if reasons := kernels.missing(framework):
        pytest.skip("; ".join(reasons))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, framework, str(planted)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written, unwritten = done.stdout.splitlines()[:2]
    assert written == "{1.0}"
    assert FAULT.format(36) in unwritten
