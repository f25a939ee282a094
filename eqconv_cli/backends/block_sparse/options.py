"""Settings of the compiled kernels of this family, and the flags of their contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels.doors import Settings


class Flag:
    """``eqc_block_sparse_flags`` of ``cuda/block_sparse/block_sparse.h``; each operation has its own, from bit 0 on."""

    #: mask_blocks.
    AVERAGE: Final = 1
    FIRST: Final = 2
    #: block_gather and block_scatter.
    TRANSPOSE: Final = 1
    ADD: Final = 2
    OWNED: Final = 4
    #: site_forward and site_backward.
    RELU: Final = 1
    #: residual_forward.
    ORIGINAL: Final = 2


@dataclass(frozen=True)
class Fused(Settings):
    """``version="fused"`` with settings that no application needs; tests and benchmarks compare them.

    Raises:
        ValueError: a setting is unknown.
    """


_DEFAULT = Fused()


def kernels_or(
    version: str | Fused, compositions: Sequence[str], missing: Callable[[Fused], Sequence[str]]
) -> Fused | str:
    """What a version stands for: the settings of the compiled kernels, or the name of a composition.

    Args:
        version: "fused" or settings; "auto" takes the kernels where these inputs can have them, else the first
            composition; or a composition.
        compositions: their names, the usual one first.
        missing: says why these inputs cannot be computed with such settings here; empty when they can.

    Raises:
        ValueError: there is no such version.
        Unavailable: the kernels are asked for and something is missing.
    """
    if isinstance(version, str) and version in compositions:
        return version
    if version == "auto":
        return compositions[0] if missing(_DEFAULT) else _DEFAULT
    if version != "fused" and not isinstance(version, Fused):
        raise ValueError(f"version={version!r} is unknown: allowed: auto, fused, {', '.join(compositions)}")
    settings = version if isinstance(version, Fused) else _DEFAULT
    reasons = missing(settings)
    if reasons:
        raise Unavailable("version='fused'", reasons)
    return settings
