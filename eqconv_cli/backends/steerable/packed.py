"""What the compiled operations of this family read of a layer, in two arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Packed:
    """The tables of ``eqc_expansion`` (``cuda/steerable/steerable.h``), one after the other, and their sizes."""

    #: int32: pairs, out_starts, in_starts, table, permutation.
    words: npt.NDArray[np.int32]
    #: float64: values, harmonic.
    reals: npt.NDArray[np.float64]
    out_fields: int
    in_fields: int
    out_channels: int
    in_channels: int
    pixels: int
    harmonics: int
    types: int
    permutations: int
    weights_size: int
    table_size: int
    values_size: int
    #: By the sampled basis itself, not by harmonics.
    direct: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes in the order of the contract, out_fields first."""
        return (
            self.out_fields,
            self.in_fields,
            self.out_channels,
            self.in_channels,
            self.pixels,
            self.harmonics,
            self.types,
            self.permutations,
            self.weights_size,
            self.table_size,
            self.values_size,
        )
