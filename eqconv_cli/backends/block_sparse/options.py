"""Settings of the compiled kernels of this family, and the flags of their contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
