"""What the doors of all frameworks and families have in common: is the core there, and where does it compute?"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

from eqconv_cli import kernels
from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels import bindings

#: Flags that every family's operations understand (``cuda/common/contract.h``).
PROCESSOR_FLAGS = {"best": 0, "avx512": 64, "avx2": 16, "portable": 32}


@dataclass(frozen=True)
class Settings:
    """Where and with what the compiled kernels compute; tests and benchmarks compare them.

    Raises:
        ValueError: a setting is unknown.
    """

    #: On the CPU: the best that there are, or none beyond these. "avx512" leaves out the matrix unit (AMX).
    instructions: Literal["best", "avx512", "avx2", "portable"] = "best"
    #: None computes where the data is; "emulated" runs the CUDA kernels on the CPU.
    core: Literal["emulated"] | None = None
    #: Threads on the CPU; 0 takes as many as the framework does.
    threads: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("instructions", self.instructions, tuple(PROCESSOR_FLAGS)),
            ("core", self.core, (None, "emulated")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown: allowed: {', '.join(map(repr, allowed))}")
        if self.threads < 0:
            raise ValueError(f"threads={self.threads} is not allowed: 0 or more is needed")

    @property
    def processor_flags(self) -> int:
        """What an operation is told about the instructions."""
        return PROCESSOR_FLAGS[self.instructions]


S = TypeVar("S", bound=Settings)


def settings_on(kind: type[S], device: str, settings: Mapping[str, Any]) -> S:
    """The settings for a device as commands name it: "cpu", "cuda" or "emulated"."""
    return kind(core="emulated" if device == "emulated" else None, **settings)


@cache
def missing_kernels(*targets: str) -> tuple[str, ...]:
    """Why one of these artefacts cannot be used, each reason with its remedy; looked up once in a process."""
    return tuple(reason for target in targets for reason in kernels.missing(target))


def operators_path(target: str, framework: str) -> str:
    """Where a framework's library of operators is.

    Raises:
        Unavailable: it is not built.
    """
    reasons = missing_kernels(target)
    if reasons:
        raise Unavailable(f"version='fused' in {framework}", reasons)
    return str(kernels.built(target))


def open_core(path: str, place: str) -> None:
    """Put the core of a place ("cpu", "cuda" or "emulated") behind the operators in the library of this path.

    Raises:
        Unavailable: the core is not built, or does not load.
    """
    reasons = list(missing_kernels(place))
    if not reasons and (failure := bindings.open_core(ctypes.CDLL(path), place)):
        reasons = [failure]
    if reasons:
        raise Unavailable(f"version='fused' on {place}", reasons)
