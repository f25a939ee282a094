from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from eqconv_cli import kernels
from eqconv_cli.errors import EqconvError, Unavailable, UsageError
from eqconv_cli.kernels import cache, contract
from eqconv_cli.kernels.library import Core
from tests.kernels import support


@pytest.fixture
def core(tree: Path) -> Core:
    assert support.rows(["cpu"], root=tree)["cpu"].status == "built"
    return kernels.core("cpu")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_call_computes(core: Core, dtype: str) -> None:
    x = np.arange(5, dtype=dtype)
    y = np.full(5, np.nan, dtype)
    order = np.array([4, 3, 2, 1, 0])
    core.call("scale", dtype, {"size": 5, "factor": 0.5, "x": x, "order": order, "y": y})
    assert y.tolist() == [2, 1.5, 1, 0.5, 0]
    core.call("scale", np.dtype(dtype), {"size": np.int64(5), "factor": np.float32(2), "x": x, "order": None, "y": y})
    assert y.tolist() == [0, 2, 4, 6, 8]
    core.call("scale", dtype, {"size": 0, "x": x[:0], "y": y[:0]})


def test_a_prepared_call_computes_again_and_again(core: Core) -> None:
    x, y = np.arange(3.0), np.empty(3)
    prepared = core.prepare("scale", "float64", {"size": 3, "factor": 2.0, "x": x, "y": y})
    assert prepared() == 0 and y.tolist() == [0, 2, 4]
    x += 1
    assert prepared() == 0 and y.tolist() == [2, 4, 6]
    unsupported = core.prepare("scale", "float64", {"size": 3, "flags": 2, "x": x, "y": y})
    assert unsupported() == 2


def test_the_core_is_loaded_once(core: Core) -> None:
    assert kernels.core("cpu") is core


X = np.arange(6, dtype=np.float32)
READ_ONLY = np.zeros(6, np.float32)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": X.astype(np.float64)}, TypeError, "x has dtype float64: allowed: float32"),
        ({"order": np.zeros(6, np.int32)}, TypeError, "order has dtype int32: allowed: int64"),
        ({"x": [1.0, 2.0]}, TypeError, "x is a list: allowed: a NumPy array or None"),
        ({"x": 140_000_000}, TypeError, "x is a int: allowed: a NumPy array or None"),
        ({"x": X[::2]}, ValueError, r"x has strides \(8,\): it must be C-contiguous"),
        ({"x": np.zeros((3, 2), np.float32).T}, ValueError, "it must be C-contiguous"),
        ({"x": np.zeros(29, np.uint8)[1:25].view(np.float32)}, ValueError, "C-contiguous and aligned"),
        ({"y": READ_ONLY}, ValueError, "y is read-only"),
        ({"z": X}, ValueError, "scale has no field 'z': allowed: size, flags, factor, x, order, y"),
        ({"size": 1.0}, TypeError, "size is 1.0: allowed: a whole number"),
        ({"size": True}, TypeError, "size is True: allowed: a whole number"),
        ({"flags": 2**31}, ValueError, "flags is 2147483648: it must fit into 32 bits"),
        ({"size": X}, TypeError, "size is array"),
        ({"factor": "2"}, TypeError, "factor is '2': allowed: a number"),
        ({"x": None}, EqconvError, "scale on cpu: a needed array is missing or a size is impossible"),
        ({"flags": 2}, EqconvError, "scale on cpu: this build of the core does not compute this"),
        ({"flags": 3}, EqconvError, "the emulated device found a fault: thread 7 reads unwritten memory"),
    ],
)
def test_what_is_wrong_is_said(core: Core, changes: dict[str, object], error: type[Exception], message: str) -> None:
    fields = {"size": 6, "factor": 1.0, "x": X, "order": None, "y": np.empty(6, np.float32), **changes}
    with pytest.raises(error, match=message):
        core.call("scale", "float32", fields)  # type: ignore[arg-type]


def test_unknown_names(core: Core) -> None:
    with pytest.raises(ValueError, match="operation 'shear' is unknown: allowed: scale"):
        core.call("shear", "float32", {})
    with pytest.raises(TypeError, match="dtype float16 is unknown: allowed: float32, float64"):
        core.call("scale", "float16", {})
    with pytest.raises(EqconvError, match="has no function eqc_nothing"):
        core.function("eqc_nothing")
    with pytest.raises(UsageError, match=r"device 'tpu' is unknown: .*allowed: cpu, emulated, cuda"):
        kernels.core("tpu")


def test_statuses_of_cuda(core: Core) -> None:
    assert core.status_text(1035) == "CUDA error 35"
    assert core.status_text(9) == "status 9"


def test_memory_of_the_gpu_is_not_numpys(core: Core, tree: Path) -> None:
    on_gpu = Core("cuda", core.path, contract.operations(tree))
    with pytest.raises(EqconvError, match="call it through PyTorch or TensorFlow"):
        on_gpu.call("scale", "float32", {})


def test_bare_functions(core: Core) -> None:
    report = core.function("eqc_emulation_report")
    report.restype = ctypes.c_char_p
    assert report() == b"thread 7 reads unwritten memory"


def test_what_is_not_built_says_how_to_get_it(tree: Path) -> None:
    with pytest.raises(Unavailable, match="core for the CPU is not built: eqconv build-kernels --target cpu"):
        kernels.core("cpu")


def test_a_library_that_does_not_load_says_why(tmp_path: Path, tree: Path) -> None:
    empty = tmp_path / "libempty.so"
    empty.write_bytes(b"")
    with pytest.raises(Unavailable, match=r"it does not load: .*file too short.* build-kernels --target cpu --force"):
        Core("cpu", empty, {})


def test_missing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.missing("cpu") == ["the compiled core for the CPU is not built: eqconv build-kernels --target cpu"]
    row = support.rows(["cpu"], root=tree)["cpu"]
    assert kernels.missing("cpu") == []
    assert str(kernels.built("cpu")) == row.path
    (tree / "scale" / "scale.h").write_text(support.HEADER + "/* changed */\n")
    assert kernels.built("cpu") is None
    assert "is older than its sources" in kernels.missing("cpu")[0]
    with pytest.raises(UsageError, match="--target 'rocm' is unknown: allowed: cpu, emulated"):
        kernels.missing("rocm")
    monkeypatch.setattr(cache, "folder", lambda target: Path("/proc/nowhere"))
    assert kernels.built("cpu") is None
