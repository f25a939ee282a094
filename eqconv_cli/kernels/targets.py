"""What can be built: one record a target. A new family is a new folder in ``cuda/``; nothing here names one.

A rule compiles every source that matches; ``{root}`` in its flags is the folder of the sources, ``{framework}`` the
folder of the installed framework, and ``{cxx11_abi}`` which std::string TensorFlow was built with.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from eqconv_cli.errors import unknown
from eqconv_cli.kernels import toolchain

#: Folders of ``cuda/`` that are not a family.
_COMMON, _BINDINGS, _EMULATION = "common", "bindings", "emulation"

_WARNINGS = ("-Wall", "-Wextra")
#: NaN and infinity must go through as IEEE 754 says, so there is no -ffast-math.
_OPTIMISED = ("-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno", *_WARNINGS)
_SHARED = ("-shared", "-pthread")
#: What is missing is found by the linker, not by the first user.
_COMPLETE = "-Wl,--no-undefined"
#: The helper threads of ``common/parallel.cpp`` stay in its code after the last user has closed the library.
_STAYING = "-Wl,-z,nodelete"


@dataclass(frozen=True)
class Rule:
    """How some of the sources are compiled."""

    #: Glob below the root.
    sources: str
    flags: tuple[str, ...]
    #: Folders whose files the glob does not mean.
    without: tuple[str, ...] = (_BINDINGS, _EMULATION)
    #: What tells this object file from others of the same source.
    suffix: str = ""
    #: A text that a source has when the rule is for it.
    containing: str = ""


@dataclass(frozen=True)
class Target:
    """One shared library: what it is made of, what with, and what it is for."""

    name: str
    #: What messages call it.
    noun: str
    #: "c++" or "nvcc".
    tool: str
    rules: tuple[Rule, ...]
    link: tuple[str, ...]
    #: What a user has with it and has not without it.
    enables: str
    #: Folders of ``cuda/`` that its sources never include from.
    foreign: tuple[str, ...] = (_BINDINGS, _EMULATION)
    framework: str | None = None
    #: Frameworks and devices of the variants that show that it works.
    smoke: tuple[tuple[str, str], ...] = (("numpy", "cpu"),)
    #: Memory that one compiler takes.
    job_bytes: int = 600_000_000

    @property
    def library(self) -> str:
        """The name of the file."""
        return f"libeqconv_{self.name}.so"

    @property
    def for_this_cpu(self) -> bool:
        """Whether the library runs only on processors like the one it was built on."""
        return any("-march=native" in rule.flags for rule in self.rules)


def _cpu_rules(machine: str) -> tuple[Rule, ...]:
    """On x86-64 every kernel three times, to be chosen when it runs, and a fourth time those that name AMX; elsewhere
    once, for the processor at hand.
    """
    kernels, kernels_without = "*/*.cpp", (_COMMON, _BINDINGS, _EMULATION)
    if machine.lower() not in ("x86_64", "amd64"):
        flags = (*_OPTIMISED, "-march=native")
        return (
            Rule("common/*.cpp", flags),
            Rule(kernels, (*flags, "-DEQC_ISA_PORTABLE"), kernels_without, "portable"),
        )
    avx2 = ("-mavx2", "-mfma", "-mf16c")
    avx512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
    amx = ("-mamx-tile", "-mamx-bf16")
    return (
        Rule("common/*.cpp", _OPTIMISED),
        Rule(kernels, (*_OPTIMISED, "-DEQC_ISA_AMX", *avx2, *avx512, *amx), kernels_without, "amx", "_AMX"),
        Rule(kernels, (*_OPTIMISED, "-DEQC_ISA_AVX512", *avx2, *avx512), kernels_without, "avx512"),
        Rule(kernels, (*_OPTIMISED, "-DEQC_ISA_AVX2", *avx2), kernels_without, "avx2"),
        Rule(kernels, (*_OPTIMISED, "-DEQC_ISA_PORTABLE"), kernels_without, "portable"),
    )


#: Compiling for the emulated device favours a short build: it computes small problems only.
_EMULATED = ("-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-I{root}/emulation", "-DEQC_EMULATED")

_ALL = (
    Target(
        name="cpu",
        noun="core for the CPU",
        tool="c++",
        rules=_cpu_rules(platform.machine()),
        link=(*_SHARED, _COMPLETE, _STAYING),
        enables="the fused variants on the CPU",
    ),
    Target(
        name="emulated",
        noun="core of the emulated device",
        tool="c++",
        rules=(Rule("*/*.cu", ("-x", "c++", *_EMULATED)), Rule("emulation/*.cpp", _EMULATED, without=())),
        link=(*_SHARED, _COMPLETE),
        enables="--device emulated: the CUDA kernels checked without a GPU",
        foreign=(_BINDINGS,),
        smoke=(("numpy", "emulated"),),
    ),
    Target(
        name="torch",
        noun="library of PyTorch operators",
        tool="c++",
        rules=(
            Rule(
                "bindings/torch*.cpp",
                (
                    *_OPTIMISED,
                    "-DTORCH_TARGET_VERSION=0x020a000000000000",
                    "-isystem{framework}/include",
                    "-isystem{framework}/include/torch/csrc/api/include",
                ),
                without=(),
            ),
        ),
        link=(*_SHARED, _COMPLETE, "-L{framework}/lib", "-ltorch_cpu", "-lc10", "-ldl"),
        enables="the fused variants in PyTorch",
        foreign=(_EMULATION,),
        framework="torch",
        smoke=(("torch", "cpu"),),
    ),
    Target(
        name="tensorflow",
        noun="library of TensorFlow operators",
        tool="c++",
        rules=(
            Rule(
                "bindings/tensorflow*.cc",
                (
                    *_OPTIMISED,
                    "-isystem{framework}/include",
                    "-D_GLIBCXX_USE_CXX11_ABI={cxx11_abi}",
                    "-DEIGEN_MAX_ALIGN_BYTES=64",
                ),
                without=(),
            ),
        ),
        link=(*_SHARED, "-L{framework}", f"-l:{toolchain.TENSORFLOW_LIBRARY}", "-ldl"),
        enables="the fused variants in TensorFlow",
        foreign=(_EMULATION,),
        framework="tensorflow",
        smoke=(("tensorflow", "cpu"),),
        job_bytes=1_200_000_000,
    ),
    Target(
        name="cuda",
        noun="core for NVIDIA GPUs",
        tool="nvcc",
        rules=(
            Rule("*/*.cu", ("-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra", "-Xptxas=-v")),
        ),
        # The runtime inside is the library's own: a framework's must not take its place.
        link=("--shared", "-cudart", "static", "-Xlinker=--exclude-libs,ALL"),
        enables="the fused variants on --device cuda",
        smoke=(("torch", "cuda"), ("tensorflow", "cuda")),
        job_bytes=1_500_000_000,
    ),
)

NAMES = tuple(target.name for target in _ALL)


def target(name: str) -> Target:
    """The record of this name; raises UsageError for one that there is not."""
    for record in _ALL:
        if record.name == name:
            return record
    raise unknown("--target", name, NAMES)
