from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eqconv_cli import kernels
from eqconv_cli.errors import UsageError
from eqconv_cli.events import CompileStarted, Note, RunFinished, RunStarted, TargetFinished, UnitFinished
from eqconv_cli.kernels import builder, cache, sources, targets
from tests.kernels import support


def leftovers(own_cache: Path) -> list[Path]:
    return [path for path in own_cache.rglob("*") if path.name.startswith(".unfinished") or path.suffix == ".o"]


def test_a_build_tells_every_step(tree: Path, own_cache: Path) -> None:
    events = list(kernels.build(["cpu", "emulated"]))
    started = [event for event in events if isinstance(event, CompileStarted)]
    assert events[0] == RunStarted(8)
    assert len(started) == 8 == sum(isinstance(event, UnitFinished) for event in events)
    assert {event.label for event in started} >= {
        "cpu: common/common.cpp",
        "cpu: scale/scale.cpp (portable)",
        "cpu: link",
        "emulated: scale/scale.cu",
        "emulated: emulation/emulation.cpp",
    }
    assert {event.row.target: event.row.status for event in events if isinstance(event, TargetFinished)} == {
        "cpu": "built",
        "emulated": "built",
    }
    assert isinstance(events[-1], RunFinished)
    assert events[-1].counts == {"built": 2} and not events[-1].interrupted
    assert leftovers(own_cache) == []
    for target in ("cpu", "emulated"):
        assert kernels.core(target).function("eqc_scale_f32") is not None


def test_the_matrix_unit_gets_the_sources_that_name_it(tree: Path) -> None:
    amx = next(rule for rule in targets._cpu_rules("x86_64") if rule.suffix == "amx")
    assert sources.of_rule(amx, tree) == []
    (tree / "scale" / "unit.cpp").write_text("EQC_DEFINE_AMX(scale, eqc_scale, eqc::scale)\n")
    assert sources.of_rule(amx, tree) == [tree / "scale" / "unit.cpp"]


def test_the_second_build_calls_no_compiler(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = support.rows(["cpu"])["cpu"]
    events = list(kernels.build(["cpu"]))
    assert not [event for event in events if isinstance(event, CompileStarted)]
    cached = support.rows(["cpu"])["cpu"]
    assert (cached.status, cached.path, cached.seconds) == ("cached", first.path, first.seconds)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert str(kernels.built("cpu")) == first.path


def test_force_compiles_again(tree: Path) -> None:
    first = support.rows(["cpu"])["cpu"]
    assert first.path is not None
    state = Path(first.path).stat().st_ino
    again = support.rows(["cpu"], force=True)["cpu"]
    assert (again.status, again.path) == ("built", first.path)
    assert Path(first.path).stat().st_ino != state


@pytest.mark.parametrize(
    ("changed", "of_cpu", "of_emulated"),
    [
        ("scale/scale.h", True, True),
        ("common/contract.h", True, True),
        ("scale/scale.cpp", True, False),
        ("scale/scale.cu", False, True),
        ("emulation/runtime", False, True),
        ("bindings/torch.cpp", False, False),
    ],
)
def test_what_is_built_depends_on_its_own_sources_and_headers(
    tree: Path, changed: str, of_cpu: bool, of_emulated: bool
) -> None:
    before = {name: sources.key(targets.target(name), tree) for name in ("cpu", "emulated")}
    path = tree / changed
    path.write_text((path.read_text() if path.exists() else "") + "\n// changed\n")
    after = {name: sources.key(targets.target(name), tree) for name in ("cpu", "emulated")}
    assert (before["cpu"] != after["cpu"], before["emulated"] != after["emulated"]) == (of_cpu, of_emulated)


def test_a_new_family_is_a_new_folder(tree: Path) -> None:
    (tree / "other").mkdir()
    source = '#include "../common/contract.h"\n#ifdef EQC_ISA_AVX2\nEQC_API int eqc_other() { return 7; }\n#endif\n'
    (tree / "other" / "other.cpp").write_text(source)
    assert support.rows(["cpu"])["cpu"].status == "built"
    if sources.platform.machine() == "x86_64":
        assert kernels.core("cpu").function("eqc_other")() == 7


def test_another_compiler_makes_another_entry(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = support.rows(["cpu"])["cpu"].path
    wrapper = support.program(tmp_path / "bin" / "my-g++", 'exec g++ "$@"')
    monkeypatch.setenv("CXX", str(wrapper))
    row = support.rows(["cpu"])["cpu"]
    assert row.status == "built" and row.path != first
    assert str(kernels.built("cpu")) == row.path


def test_an_error_names_file_and_line_and_keeps_the_log(tree: Path, own_cache: Path) -> None:
    (tree / "common" / "common.cpp").write_text("int eqc_common() { return 0; }\n\nint broken = nothing;\n")
    row = support.rows(["cpu", "emulated"])
    assert row["emulated"].status == "built"
    failed = row["cpu"]
    assert failed.status == "failed"
    assert re.match(r"common/common.cpp: \S+common.cpp:3:14: error: .nothing. was not declared", failed.reason)
    assert "int broken = nothing;" in failed.reason
    assert failed.log is not None
    assert "-O3" in Path(failed.log).read_text()
    assert leftovers(own_cache) == [] and kernels.built("cpu") is None
    (tree / "common" / "common.cpp").write_text("int eqc_common() { return 0; }\n")
    assert support.rows(["cpu"])["cpu"].status == "built"


def test_a_symbol_that_is_nowhere_is_found_when_linking(tree: Path) -> None:
    (tree / "common" / "common.cpp").write_text("int eqc_nowhere();\nint eqc_common() { return eqc_nowhere(); }\n")
    row = support.rows(["cpu"])["cpu"]
    assert row.status == "failed"
    assert row.reason.startswith("link: ") and "undefined reference to `eqc_nowhere()'" in row.reason


def test_a_compiler_that_says_nothing(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = support.program(tmp_path / "g++", 'test "$1" = --version && echo silent 1.0 && exit 0\nexit 9')
    monkeypatch.setenv("CXX", str(silent))
    row = support.rows(["cpu"])["cpu"]
    assert (row.status, row.compiler) == ("failed", "silent 1.0")
    assert row.reason.endswith("the compiler ended with status 9 and said nothing")


def test_sources_that_change_meanwhile_make_no_entry(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f'case "$*" in *-shared*) echo "// new" >> {tree}/scale/scale.h;; esac\nexec g++ "$@"'
    monkeypatch.setenv("CXX", str(support.program(tmp_path / "g++", script)))
    row = support.rows(["cpu"])["cpu"]
    assert (row.status, row.reason) == ("failed", "the sources changed while they were compiled: run it again")
    assert kernels.built("cpu") is None


def test_a_cache_that_cannot_be_written(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQCONV_CACHE", "/proc/nowhere")
    row = support.rows(["cpu"])["cpu"]
    assert row.status == "failed"
    assert row.reason.startswith("the cache /proc/nowhere/kernels/cpu cannot be written")


def test_without_a_compiler_targets_are_skipped(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    row = support.rows(["cpu"])["cpu"]
    assert (row.status, row.remedy) == ("skipped", "apt-get install g++")
    assert row.reason == "no C++ compiler: neither g++ nor clang++ is on the PATH"


def test_a_target_without_sources_is_skipped(tree: Path) -> None:
    assert support.rows(["tensorflow"])["tensorflow"].status == "skipped"


NVCC = """
case "$1" in
  --version) echo "Cuda compilation tools, release 99.1, V99.1.0"; exit;;
  --list-gpu-code) printf 'sm_80\\nsm_90\\nsm_100\\n'; exit;;
esac
case " $* " in *" -c "*) cat <<'END'
ptxas info    : Compiling entry function '_Z4copyPf' for 'sm_90'
ptxas info    : Function properties for _Z4copyPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 128 bytes smem
END
esac
while [ $# -gt 1 ]; do shift; [ "$last" = -o ] && echo made > "$1"; last=$1; done
"""


@pytest.fixture
def fake_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    return support.program(tmp_path / "cuda" / "bin" / "nvcc", NVCC)


def test_cuda_is_built_for_the_known_architectures(tree: Path, fake_nvcc: Path) -> None:
    events = list(kernels.build(["cuda"]))
    (note,) = [event.text for event in events if isinstance(event, Note)]
    assert note.endswith("release 99.1, V99.1.0 does not know sm_120: left out")
    (row,) = [event.row for event in events if isinstance(event, TargetFinished)]
    assert (row.status, row.arch) == ("built", ("sm_80", "sm_90", "sm_100"))
    assert [(use.kernel, use.arch, use.registers, use.shared_bytes) for use in row.kernels] == [
        ("copy", "sm_90", 8, 128)
    ]
    command = next(event.command for event in events if isinstance(event, CompileStarted))
    assert command[0] == str(fake_nvcc)
    assert command[3:7] == (
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    )
    cached = support.rows(["cuda"])["cuda"]
    assert (cached.status, cached.kernels) == ("cached", row.kernels)
    other = support.rows(["cuda"], arch=["sm_90a"])["cuda"]
    assert (other.status, other.arch) == ("built", ("sm_90a",))


def test_wrong_targets_and_architectures(tree: Path, fake_nvcc: Path) -> None:
    with pytest.raises(UsageError, match="--target 'rocm' is unknown: allowed: cpu, emulated"):
        support.rows(["rocm"])
    for wrong in ("80", "sm80", "compute_80", "sm_80a", "sm_9"):
        with pytest.raises(UsageError, match=f"--arch '{wrong}' is unknown: allowed: sm_ and a number"):
            support.rows(["cuda"], arch=[wrong])
    with pytest.raises(UsageError, match=r"--arch 'sm_75' is unknown to .*99.1.*: allowed: sm_80, sm_90, sm_100"):
        support.rows(["cuda"], arch=["sm_75"])


def build_in_a_process(root: str, results: object) -> None:
    row = support.rows(["cpu", "emulated"], root=Path(root))
    results.put([(name, row[name].status, row[name].path) for name in sorted(row)])  # type: ignore[attr-defined]


def test_two_builds_at_once_both_succeed(tree: Path, own_cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=build_in_a_process, args=(str(tree), results)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    for target in range(2):
        assert sorted(answer[target][1] for answer in answers) == ["built", "cached", "cached"]
        assert len({answer[target][2] for answer in answers}) == 1
    assert leftovers(own_cache) == []


def test_a_build_waits_for_another_ones_lock(tree: Path) -> None:
    lock = cache.Lock("cpu")
    assert lock.acquire() is None
    events = []
    for event in kernels.build(["cpu"]):
        events.append(event)
        if isinstance(event, Note):
            lock.release()
    (note,) = [event.text for event in events if isinstance(event, Note)]
    assert note == f"cpu: waiting for the build of process {os.getpid()}"
    assert [event.row.status for event in events if isinstance(event, TargetFinished)] == ["built"]


SLOW = 'test "$1" = --version && echo slow 1.0 && exit 0\nsleep 600 &\necho $! >> {pids}\nwait'


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_an_interrupt_stops_the_compilers_and_leaves_nothing(tree: Path, own_cache: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    slow = support.program(tmp_path / "slow-g++", SLOW.format(pids=pids))
    code = (
        "import signal, sys; from pathlib import Path; from eqconv_cli.kernels import builder\n"
        # A shell that runs the tests in the background has it ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"events = list(builder.build(['cpu', 'emulated'], jobs=2, root=Path({str(tree)!r})))\n"
        "print(events[-1].interrupted, events[-1].counts)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "CXX": str(slow)}
    )
    for _ in range(600):
        if pids.exists() and len(pids.read_text().split()) == 2:
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert output == "True {}\n"
    assert leftovers(own_cache) == []
    assert [pid for pid in pids.read_text().split() if alive(int(pid))] == []


def test_leaving_early_stops_the_build(tree: Path, own_cache: Path) -> None:
    events = kernels.build(["cpu"], jobs=1)
    for event in events:
        if isinstance(event, CompileStarted):
            break
    events.close()
    assert leftovers(own_cache) == []
    lock = cache.Lock("cpu")
    assert lock.acquire() is None
    lock.release()


def test_the_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = targets.target("cpu")
    monkeypatch.setattr(builder.os, "sched_getaffinity", lambda pid: range(16), raising=False)
    monkeypatch.setattr(builder, "_available_bytes", lambda: 64 << 30)
    assert builder._default_jobs([cpu]) == 16
    monkeypatch.setenv("MAX_JOBS", "3")
    assert builder._default_jobs([cpu]) == 3
    monkeypatch.setenv("MAX_JOBS", "many")
    assert builder._default_jobs([cpu]) == 16
    monkeypatch.setattr(builder, "_available_bytes", lambda: 4 * cpu.job_bytes)
    assert builder._default_jobs([cpu]) == 4
    monkeypatch.setattr(builder, "_available_bytes", lambda: 0)
    assert builder._default_jobs([cpu]) == 1


def test_other_processors_get_one_object_for_the_processor_at_hand() -> None:
    rules = targets._cpu_rules("aarch64")
    assert [rule.suffix for rule in rules] == ["", "portable"]
    assert all("-march=native" in rule.flags for rule in rules)
    assert [rule.suffix for rule in targets._cpu_rules("x86_64")] == ["", "amx", "avx512", "avx2", "portable"]


@pytest.mark.slow
def test_the_real_core_for_the_cpu_is_built_and_loads(own_cache: Path) -> None:
    row = support.rows(["cpu"])["cpu"]
    assert row.status == "built", row.reason
    assert row.warnings == 0, Path(row.log or "").read_text()
    core = kernels.core("cpu")
    for name in core._operations:
        for dtype in ("f32", "f64"):
            core.function(f"eqc_{name}_{dtype}")
            core.function(f"eqc_{name}_{dtype}_workspace")
