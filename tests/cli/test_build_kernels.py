"""``eqconv build-kernels`` as a user meets it, on a small tree of sources."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from eqconv_cli import kernels
from eqconv_cli.app import app
from eqconv_cli.engine import build as engine
from eqconv_cli.events import KernelUse, TargetRow
from eqconv_cli.kernels import cache, sources, toolchain
from eqconv_cli.report.build_table import build_tables
from eqconv_cli.report.console import out_console
from tests.kernels import support


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = support.make_tree(tmp_path / "sources")
    monkeypatch.setattr(sources, "root", lambda: root)
    monkeypatch.setenv("EQCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return root


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["build-kernels", *arguments])


def test_built_then_cached(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    result = run("--target", "cpu,emulated", "--json", str(path))
    assert result.exit_code == 0, result.output
    assert re.search(r"cpu +built +\d+\.\d +[\d.]+ KiB", result.stdout)
    assert re.search(r"^ cpu: \S+libeqconv_cpu\.so$", result.stdout, re.MULTILINE)
    assert "2 built in" in result.stdout
    assert result.stderr == ""
    report = json.loads(path.read_text())
    assert report["schema"] == "eqconv.report/1"
    assert report["command"] == "build-kernels"
    assert {"version", "options", "machine", "rows", "summary"} <= set(report)
    assert report["options"] == {"target": ["cpu", "emulated"]}
    assert report["summary"]["built"] == 2 and not report["summary"]["interrupted"]
    for row in report["rows"]:
        assert row["status"] == "built"
        assert {"target", "seconds", "size_bytes", "path", "log", "compiler"} <= set(row)
        assert Path(row["path"]).stat().st_size == row["size_bytes"]
    again = run("--target", "cpu,emulated")
    assert again.exit_code == 0
    assert "2 cached in" in again.stdout
    assert "1 built in" in run("--target", "cpu", "--force").stdout


def test_json_to_stdout_is_json_and_nothing_else() -> None:
    result = run("--target", "cpu", "--json", "-")
    assert [row["target"] for row in json.loads(result.stdout)["rows"]] == ["cpu"]
    assert "1 built" in result.stderr


def test_quiet_and_verbose() -> None:
    quiet = run("--target", "cpu", "--quiet")
    assert re.fullmatch(r"1 built in \d+\.\d s\n", quiet.stdout)
    verbose = run("--target", "cpu", "--verbose", "--force")
    assert sum("-DEQC_ISA_PORTABLE" in line for line in verbose.stderr.splitlines()) == 1
    assert "-shared" in verbose.stderr


def test_no_colour_and_no_progress_in_a_pipe(tree: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from eqconv_cli.kernels import sources\n"
        f"sources.root = lambda: Path({str(tree)!r})\n"
        "from eqconv_cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "build-kernels", "--target", "cpu"], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stderr == ""
    assert "1 built" in done.stdout


def test_an_error_is_shown_with_its_line_and_exits_1(tree: Path) -> None:
    (tree / "scale" / "scale.cu").write_text("int broken = [nothing];\n")
    result = run("--target", "cpu,emulated")
    assert result.exit_code == 1
    assert re.search(r"emulated failed: scale/scale.cu: \S+scale.cu:1:\d+: error: ", result.stdout)
    assert re.search(r"the whole log: \S+\.failed\.txt", result.stdout)
    assert "1 built, 1 failed" in result.stdout


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    named = run("--target", "cpu")
    assert named.exit_code == 3
    assert "cpu skipped: no C++ compiler: neither g++ nor clang++ is on the PATH" in named.stdout
    assert "To get it: apt-get install g++" in named.stdout
    everything = run()
    assert everything.exit_code == 0
    assert "5 skipped" in everything.stdout


def test_without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> toolchain.Compiler:
        raise toolchain.Missing("no nvcc", toolchain.NVCC_REMEDY)

    monkeypatch.setattr(toolchain, "nvcc", nowhere)
    named = run("--target", "cpu,cuda")
    assert named.exit_code == 3
    assert "cuda skipped: no nvcc. To get it: pip install nvidia-cuda-nvcc" in named.stdout
    assert "1 built, 1 skipped in" in named.stdout
    assert run().exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "gpu"], "--target 'gpu' is unknown: did you mean cpu? allowed: cpu, emulated, torch"),
        (["--target", ","], "--target ',' names nothing: allowed: cpu, emulated, torch"),
        (["--arch", ","], "--arch ',' names nothing"),
        (["--target", "cuda", "--arch", "sm80"], "--arch 'sm80' is unknown: allowed: sm_ and a number"),
        (["--json", "/no/such/folder/x.json"], "--json '/no/such/folder/x.json': the folder"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert run("--jobs", "0").exit_code == 2


def test_a_check_of_a_core_without_variants_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_variants", lambda framework: [])
    result = run("--target", "cpu", "--check")
    assert result.exit_code == 0, result.output
    assert re.search(r"pass +loads; nothing was computed: no fused variant for numpy", result.stdout)


def test_a_check_of_the_core_for_cuda_without_a_gpu_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "gpus", list)
    built = run("--target", "cpu")
    assert built.exit_code == 0
    row = TargetRow("cuda", "built", path=str(kernels.built("cpu")))
    checked = engine._checked(row)
    assert (checked.check, checked.check_detail) == ("pass", "loads; nothing was computed: there is no NVIDIA GPU here")


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("import os; os.abort()", "ended by SIGABRT"),
        ("raise RuntimeError('planted fault')", "RuntimeError: planted fault"),
        ("pass", "ended with status 0"),
        ("print('{}')", "ended with status 0"),
        ("import time; time.sleep(60)", "did not end in 1 s"),
    ],
)
def test_a_check_that_goes_wrong_exits_1(monkeypatch: pytest.MonkeyPatch, program: str, detail: str) -> None:
    monkeypatch.setattr(engine, "_variants", lambda framework: ["fused@numpy"])
    monkeypatch.setattr(engine, "_SMOKE", program)
    if "sleep" in program:
        monkeypatch.setattr(engine, "_TIMEOUT_S", 1)
    result = run("--target", "cpu", "--check")
    assert result.exit_code == 1
    assert f"cpu: the check failed: {detail}" in result.stdout
    assert "1 built, 1 of 1 checks failed" in result.stdout


def test_a_library_that_does_not_load_fails_its_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(b"\x7fELF")
    engine.load("cpu", str(broken))
    assert json.loads(capsys.readouterr().out)["status"] == "fail"


def test_a_smoke_run_compares_with_the_reference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "_variants", lambda framework: ["v2+last@numpy"])
    engine.smoke("numpy", "cpu")
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "pass"
    assert "comparisons with the reference, largest error" in answer["detail"]
    engine.smoke("numpy", "cuda")
    assert json.loads(capsys.readouterr().out)["status"] == "skip"


def test_an_interrupt_prints_what_was_done_and_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = cache.publish, []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return right(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "publish", interrupted)
    result = run("--target", "cpu,emulated", "--jobs", "1")
    assert result.exit_code == 130
    assert re.search(r"(cpu|emulated) +built", result.stdout)
    assert "1 built in" in result.stdout and "interrupted; what was done is above" in result.stdout
    assert not list(Path(os.environ["EQCONV_CACHE"]).rglob(".unfinished*"))


def test_kernels_have_a_row_each_and_architectures_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    uses = (
        KernelUse("forward<float, 64>", "sm_80", 64, 4096, 0, 0, 0),
        KernelUse("forward<float, 64>", "sm_90", 72, 4096, 16, 8, 12),
        KernelUse("plain", "sm_90", 10, 0, 32, 0, 0),
    )
    row = TargetRow(
        "cuda", "built", seconds=12.34, size_bytes=3 << 20, path="/c/x.so", arch=("sm_80", "sm_90"), kernels=uses
    )
    build_tables([row], out_console(True))
    text = capsys.readouterr().out
    assert re.search(r"cuda +built +12\.3 +3\.0 MiB", text)
    assert re.search(r"kernel +sm_80 +sm_90", text)
    assert re.search(r"forward<float, 64> +64 +72 \+20", text)
    assert re.search(r"plain +10 \+32", text)


def test_eighty_columns_hold_the_tables_and_paths_stay_whole() -> None:
    arch = ("sm_80", "sm_90", "sm_100", "sm_120")
    uses = tuple(KernelUse("weight_gradient<double, 32>", name, 128, 640, 264, 700, 1064) for name in arch)
    path = f"/home/somebody/.cache/eqconv/kernels/cuda/{'0' * 33}/libeqconv_cuda.so"
    found = "12 comparisons with the reference, largest error 2.6e-07"
    rows = [
        TargetRow("cpu", "cached", seconds=11.6, size_bytes=400_000, path="/c/x.so", check="pass", check_detail=found),
        TargetRow("tensorflow", "skipped", "tensorflow is not installed", 'pip install "eqconv[tensorflow]"'),
        TargetRow("cuda", "built", seconds=120.4, size_bytes=8 << 20, path=path, arch=arch, kernels=uses),
    ]
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=80, highlight=False)
    build_tables(rows, console)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert f" cuda: {path}" in lines
    assert all(len(line) <= 80 for line in lines if path not in line)
    assert any(line.split() == ["weight_gradient<double,", "32>", *["128", "+1764"] * 4] for line in lines)
    (row,) = (line for line in lines if line.startswith(" cpu") and "cached" in line)
    assert "12 comparisons with the" in row
