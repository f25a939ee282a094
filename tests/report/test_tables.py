"""The tables as a person reads them, at a fixed width."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from eqconv_cli.events import Floor, Part, Row, RunFinished
from eqconv_cli.report.bench_table import bench_summary, bench_tables, break_even_table, comparison_table
from eqconv_cli.report.info_table import items_table
from eqconv_cli.report.markdown import markdown
from eqconv_cli.report.units import amount
from eqconv_cli.report.verify_table import check_tables, verify_summary, verify_tables

VALUE = Row("f", "p", "v1+sorted@torch", "v1", "torch", "cpu", "float32", "value", "pass", max_rel=1e-7, tolerance=1e-5)
PARTS = (Part("data", 1e-7, 1e-7, 1e-5, True), Part("var_u", 2e-7, 2e-7, 1e-5, True))
GRADIENT = replace(VALUE, check="gradient", max_rel=2e-7, parts=PARTS)
WRONG = replace(VALUE, variant="v2@torch", status="fail", max_rel=0.5, reason="y[0] is [red]", repeat="eqconv verify f")
SKIP = replace(VALUE, variant="v3@torch", status="skip", max_rel=None, reason="no device")


def words(line: str) -> str:
    return " ".join(line.split())


def shown(*renderables: RenderableType, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    for renderable in renderables:
        console.print(renderable)
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]  # type: ignore[attr-defined]


def test_verify_table() -> None:
    lines = shown(verify_tables([VALUE, GRADIENT, WRONG, SKIP]))
    assert lines[0] == "f · p · cpu"
    assert words(lines[1]) == "variant dtype check error tolerance status largest part, or reason"
    assert [words(line) for line in lines[3:]] == [
        "v1+sorted@torch float32 value 1.0e-07 1e-05 pass",
        "gradient 2.0e-07 1e-05 pass data 1e-07 u 2e-07",
        "v2@torch float32 value 5.0e-01 1e-05 fail y[0] is [red]",
        "v3@torch float32 value skip no device",
    ]


def test_verify_summary() -> None:
    console = Console(file=io.StringIO(), width=120)
    verify_summary([VALUE, WRONG, SKIP], RunFinished({}, 2.0, True), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "closest to its tolerance: v2@torch on p, float32, value: 5.0e-01 of 1e-05" in text
    assert "v2@torch on p, float32, value: y[0] is [red]" in text
    assert "repeat: eqconv verify f" in text
    assert "1 pass, 1 fail, 1 skip in 2.0 s (interrupted; what was done is above)" in text


def test_bench_table_marks_the_fastest_and_shows_skips() -> None:
    timed = replace(
        VALUE, check="forward", median_s=0.002, iqr_s=0.0001, runs=7, ratio=1.0, ratio_low=1.0, ratio_high=1.0,
        baseline="v1+sorted@torch", peak_bytes=3 * 2**20, peak_source="somehow", flops=4e6, ceiling="FMA peak",
        percent_of_ceiling=12.5,
        floors=(Floor("FMA peak", "flop", 4e6, 0.00025), Floor("stream copy", "byte", 3.14e6, 0.0001)),
    )  # fmt: skip
    fast = replace(
        timed, variant="v2@torch", median_s=0.001, ratio=0.5, ratio_low=0.4, ratio_high=0.6, verdict="FASTER"
    )
    skip = replace(SKIP, check="forward")
    lines = shown(bench_tables([timed, fast, skip]), width=160)
    assert lines[0] == "f · p · forward · cpu · float32   (ratio: time / time of v1+sorted@torch)"
    assert lines[1] == "floor 0.250 ms: 0.250 ms by FMA peak (4 Mflop), 0.100 ms by stream copy (3.14 MB)"
    assert [words(line) for line in lines[4:]] == [
        "v1+sorted@torch 2.000 0.100 7 1.000 baseline 3.000 2.000 12.5 FMA peak 1e-07 1e-05 pass",
        "v2@torch * 1.000 0.100 7 0.500 0.400 to 0.600 FASTER 3.000 4.000 12.5 FMA peak 1e-07 1e-05 pass",
        "v3@torch skip no device",
    ]
    console = Console(file=io.StringIO(), width=120)
    bench_summary([timed, fast, skip], RunFinished({}, 1.0), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "peak memory: somehow" in text and "2 of 3 rows verified and timed" in text


def test_bench_table_of_an_operation_with_an_ideal() -> None:
    dense = replace(
        VALUE, variant="dense@torch", check="forward", median_s=0.002, iqr_s=0.0001, runs=7, ratio=1.0, ratio_low=1.0,
        ratio_high=1.0, baseline="dense@torch", ideal=10.0, tolerance=0.0, max_rel=0.0,
        published={"SBNet, GTX 1080 Ti": 3.39, "another": 2.0},
    )  # fmt: skip
    sparse = replace(
        dense, variant="sparse@torch", median_s=0.0005, ratio=0.25, ratio_low=0.2, ratio_high=0.3, verdict="FASTER",
        speed_up=4.0, percent_of_ideal=40.0, stages={"reduce": 5e-5, "gather": 1e-4},
    )  # fmt: skip
    lines = shown(bench_tables([dense, sparse]), width=160)
    assert lines[1] == "ideal speed-up 10.00"
    assert "speed-up % of ideal" in words(lines[2])
    assert [words(line) for line in lines[4:]] == [
        "dense@torch 2.000 0.100 7 1.000 baseline 0e+00 exact pass",
        "sparse@torch * 0.500 0.100 7 0.250 0.200 to 0.300 FASTER 4.00 40 0e+00 exact pass",
        "stages of sparse@torch, µs: reduce 50.00, gather 100.0",
        "published speed-ups: SBNet, GTX 1080 Ti: 3.39; another: 2",
    ]
    assert "| sparse@torch" not in markdown([dense, sparse], "bench")
    assert "| 4.00 | 40 |" in markdown([dense, sparse], "bench")


def test_break_even_table() -> None:
    place = {"family": "f", "series": "p", "check": "forward", "baseline": "dense@torch"}
    crossings = [
        {**place, "variant": "a@torch", "sparsity": 0.4567, "sparsities": (0.1, 0.9), "ratios": (1.5, 0.5)},
        {**place, "variant": "b@torch", "sparsity": None, "sparsities": (0.1, 0.9), "ratios": (0.9, 0.5)},
        {**place, "variant": "c@torch", "sparsity": None, "sparsities": (0.1, 0.9), "ratios": (1.9, 1.5)},
    ]
    lines = [words(line) for line in shown(break_even_table(crossings))]
    assert lines[3:] == [
        "f · p · forward a@torch dense@torch above 0.457",
        "b@torch dense@torch everywhere from 0.1 to 0.9",
        "c@torch dense@torch not at 0.9",
    ]


def test_the_overview_of_checks() -> None:
    checks = [
        {"family": "f", "check": "E1", "statement": "lists are equal", "comparisons": 8, "verdict": "pass",
         "max_rel": 0.0, "tolerance": 0.0},
        {"family": "f", "check": "E7", "statement": "values", "comparisons": 3, "verdict": "fail",
         "max_rel": 2e-5, "tolerance": 1e-5},
        {"family": "f", "check": "E9", "statement": "", "comparisons": 0, "verdict": "not compared",
         "max_rel": None, "tolerance": None},
    ]  # fmt: skip
    lines = [words(line) for line in shown(check_tables(checks))]
    assert lines[0] == "f: checks"
    assert lines[3:] == [
        "E1 lists are equal 8 0.0e+00 exact pass",
        "E7 values 3 2.0e-05 1e-05 fail",
        "E9 0 not compared",
    ]


def test_an_exact_row_that_is_wrong_is_the_closest_to_its_tolerance() -> None:
    console = Console(file=io.StringIO(), width=120)
    exact = replace(VALUE, variant="x@torch", max_rel=1e-9, tolerance=0.0, status="fail", reason="y", repeat="z")
    verify_summary([VALUE, exact, replace(exact, max_rel=0.0, status="pass")], RunFinished({}, 2.0), console)
    assert "closest to its tolerance: x@torch on p, float32, value: 1.0e-09 of exact" in (
        console.file.getvalue()  # type: ignore[attr-defined]
    )


def test_short_times_are_in_microseconds() -> None:
    short = replace(
        VALUE, check="forward", median_s=1.5e-6, iqr_s=2e-8, runs=7, ratio=1.0, ratio_low=1.0, ratio_high=1.0,
        baseline="v1+sorted@torch",
    )  # fmt: skip
    longer = replace(short, variant="v2@torch", median_s=2e-3, ratio=1333.0, verdict="SLOWER")
    lines = shown(bench_tables([short, longer]), width=160)
    assert words(lines[1]).startswith("variant median µs spread µs")
    found = [words(line).split(" 7 ")[0] for line in lines[3:]]
    assert found == ["v1+sorted@torch * 1.500 0.020", "v2@torch 2000 0.020"]
    assert "| variant | median µs | spread µs |" in markdown([short, longer], "bench")
    lines = shown(comparison_table([("a · p", 5e-5, 2e-4, 4.0, 3.9, 4.1, "SLOWER")]))
    assert words(lines[-1]) == "a · p 50.00 200.0 4.000 3.900 to 4.100 SLOWER"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(682e6, "flop", "682 Mflop"), (12.2e6, "byte", "12.2 MB"), (3.21e9, "flop", "3.21 Gflop"), (12, "byte", "12 B")],
)
def test_amounts_have_prefixes(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_comparison_table() -> None:
    lines = shown(comparison_table([("a · p", 0.001, 0.002, 2.0, 1.9, 2.1, "SLOWER")]))
    assert words(lines[-1]) == "a · p 1.000 2.000 2.000 1.900 to 2.100 SLOWER"


def test_info_table() -> None:
    path = "/home/somebody/.cache/eqconv/kernels/cpu/0123456789abcdef-0123456789abcdef/libeqconv_cpu.so"
    items = [
        ("peer", "torch-geometric", None, "comparison of FeaStConv with its original", 'pip install "eqconv[peers]"'),
        ("compiled", "cpu", path, "the fused variants on the CPU", ""),
        ("compiled", "cuda", None, "the fused variants on --device cuda", "pip install nvidia-cuda-nvcc"),
    ]
    lines = shown(items_table(items), width=80)
    assert any("torch-geometric" in line and "missing" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)
    wide = shown(items_table(items), width=160)
    assert words(wide[3]) == "compiled cpu .../libeqconv_cpu.so the fused variants on the CPU"
    assert words(wide[4]) == "cuda missing the fused variants on --device cuda pip install nvidia-cuda-nvcc"
