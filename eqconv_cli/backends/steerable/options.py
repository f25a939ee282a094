"""Settings of the compiled kernels of this family, and the flags of their contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from eqconv_cli.kernels.doors import Settings


class Flag:
    """``eqc_st_flags`` of ``cuda/steerable/steerable.h``, but for those of every family."""

    DIRECT: Final = 1


@dataclass(frozen=True)
class Fused(Settings):
    """Where and with what the compiled algorithms compute; tests and benchmarks compare them.

    Raises:
        ValueError: a setting is unknown.
    """
