"""How the weights of a layer become its filter: which basis each pair of fields has, and where its weights are.

The order of the weights is that of QUVA-Lab/e2cnn ``nn/modules/r2_conv/basisexpansion_blocks.py``.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable.basis import Attributes, Harmonic, SteerableBasis, sampled, sampled_basis
from eqconv_cli.backends.steerable.fields import FieldType
from eqconv_cli.backends.steerable.orbits import (
    RowOrbits,
    grid_symmetries,
    pixel_permutations,
    row_orbits,
    single_rows,
)
from eqconv_cli.backends.steerable.packed import Packed
from eqconv_cli.backends.steerable.sampling import Cutoff, Sampling, make_sampling

Integers = npt.NDArray[np.int32]


class PairType(NamedTuple):
    """All pairs of an in field and an out field of two names; they share a basis."""

    in_name: str
    out_name: str
    basis: SteerableBasis
    #: Positions of the fields of these names.
    in_fields: tuple[int, ...]
    out_fields: tuple[int, ...]
    #: The first of their weights, which are [out occurrence][in occurrence][element].
    start: int

    @property
    def weights(self) -> int:
        """How many weights they have."""
        return len(self.in_fields) * len(self.out_fields) * len(self.basis)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(out occurrences, in occurrences, elements)."""
        return len(self.out_fields), len(self.in_fields), len(self.basis)


@dataclass(frozen=True, eq=False)
class Plan:
    """The linear map from the weights of a layer to its filter."""

    #: Of one group of input channels.
    in_type: FieldType
    out_type: FieldType
    sampling: Sampling
    pairs: tuple[PairType, ...]

    def __getstate__(self) -> dict[str, Any]:
        """Without the tables: they are made again when they are asked for."""
        return {field.name: self.__dict__[field.name] for field in dataclasses.fields(self)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """Itself, for nothing in it changes: copies of a layer share its tables."""
        return self

    @property
    def weights_size(self) -> int:
        """The number of weights."""
        return sum(pair.weights for pair in self.pairs)

    @property
    def filter_shape(self) -> tuple[int, int, int, int]:
        """[out channels, in channels of a group, k, k]."""
        return self.out_type.size, self.in_type.size, self.sampling.size, self.sampling.size

    @cached_property
    def fused(self) -> Packed:
        """For the compiled expansion by harmonics."""
        return self._packed(lambda pair: single_rows(pair.basis.in_rep, pair.basis.out_rep))

    @cached_property
    def fused_orbit(self) -> Packed:
        """The same, with one row of each orbit of the grid's symmetries."""
        space = self.out_type.space
        return self._packed(lambda pair: row_orbits(space, pair.basis.in_rep, pair.basis.out_rep))

    @cached_property
    def fused_direct(self) -> Packed:
        """For the compiled expansion by the sampled basis."""
        records, values, at = [], [], 0
        for pair in self.pairs:
            dense = pair.basis.dense
            records.append((dense.shape[1], dense.shape[2], len(dense), 0, 0, 0, 8 * len(self.pairs), at))
            values.append(dense.ravel())
            at += dense.size
        table = np.array(records, np.int32).ravel()
        return self._assembled(table, values, np.zeros((0, self.sampling.pixels), np.int32), (), direct=True)

    def _packed(self, rows_of: Callable[[PairType], RowOrbits]) -> Packed:
        harmonics = tuple(sorted({harmonic for pair in self.pairs for harmonic in pair.basis.harmonics}))
        position = {harmonic: h for h, harmonic in enumerate(harmonics)}
        records, lists, values = [], [], []
        words, reals = 8 * len(self.pairs), 0
        for pair in self.pairs:
            orbits, slots = rows_of(pair), pair.basis.slots
            used, first, counts = np.unique(slots.harmonic, return_index=True, return_counts=True)
            index = np.array([position[pair.basis.harmonics[h]] for h in used], np.int32)
            entries = [np.stack([index, counts, first], 1).ravel(), slots.element, orbits.first, orbits.images.ravel()]
            found = np.ascontiguousarray(slots.values[:, orbits.rows[:, 0], orbits.rows[:, 1]])
            so, si, _ = pair.basis.block_shape
            sizes = (so, si, len(pair.basis), len(orbits.rows), len(used), len(slots.element))
            records.append((*sizes, words, reals))
            lists.append(np.concatenate(entries).astype(np.int32))
            values.append(found.ravel())
            words, reals = words + len(lists[-1]), reals + found.size
        table = np.concatenate([np.array(records, np.int32).ravel(), *lists])
        return self._assembled(table, values, pixel_permutations(self.out_type.space, self.sampling), harmonics, False)

    def _assembled(
        self,
        table: Integers,
        values: Sequence[npt.NDArray[np.float64]],
        permutations: Integers,
        harmonics: Sequence[Harmonic],
        direct: bool,
    ) -> Packed:
        space = self.out_type.space
        harmonic = sampled(space, self.sampling, harmonics, self.sampling.points())
        all_values = np.concatenate([*values, np.zeros(0)])
        starts = [np.array(fields.starts, np.int32) for fields in (self.out_type, self.in_type)]
        return Packed(
            words=np.concatenate([self.pair_table.ravel(), *starts, table, permutations.ravel()]),
            reals=np.concatenate([all_values, harmonic.ravel()]),
            out_fields=len(self.out_type.representations),
            in_fields=len(self.in_type.representations),
            out_channels=self.out_type.size,
            in_channels=self.in_type.size,
            pixels=self.sampling.pixels,
            harmonics=len(harmonics),
            types=len(self.pairs),
            permutations=len(permutations),
            weights_size=self.weights_size,
            table_size=len(table),
            values_size=len(all_values),
            direct=direct,
        )

    @cached_property
    def pair_table(self) -> Integers:
        """The type of each pair of fields, or -1, and its first weight, [out fields, in fields, 2]."""
        table = np.zeros((len(self.out_type.representations), len(self.in_type.representations), 2), np.int32)
        table[..., 0] = -1
        for number, pair in enumerate(self.pairs):
            outs, ins, each = pair.shape
            rows, columns = np.ix_(pair.out_fields, pair.in_fields)
            table[rows, columns, 0] = number
            table[rows, columns, 1] = pair.start + each * np.arange(outs * ins).reshape(outs, ins)
        return table

    @property
    def uses_grid_symmetries(self) -> bool:
        """Whether ``fused_orbit`` computes fewer rows than ``fused``."""
        space, bases = self.out_type.space, [pair.basis for pair in self.pairs]
        return any(
            len(row_orbits(space, basis.in_rep, basis.out_rep).rows) < math.prod(basis.block_shape[:2])
            for basis in bases
        )

    def check_weights(self, shape: Sequence[int]) -> None:
        """Raises ValueError unless ``shape`` is that of the weights."""
        if tuple(shape) != (self.weights_size,):
            table = "; ".join(
                f"{pair.in_name} -> {pair.out_name}: {' x '.join(map(str, pair.shape))}" for pair in self.pairs
            )
            raise ValueError(f"weights has shape {tuple(shape)}: expected ({self.weights_size},), {table}")


def make_plan(
    in_type: FieldType,
    out_type: FieldType,
    kernel_size: int,
    *,
    groups: int = 1,
    dilation: int = 1,
    rings: Sequence[float] | None = None,
    sigma: float | Sequence[float] | None = None,
    frequencies_cutoff: Cutoff = None,
    maximum_offset: int | None = None,
    basis_filter: Callable[[Attributes], bool] | None = None,
    scale_cutoff_with_dilation: bool = False,
    recompute: bool = False,
) -> Plan:
    """The plan of a layer.

    Args:
        in_type, out_type: of one space.
        groups: of the convolution; the basis is for one group of input fields against all output fields.
        recompute: build the bases anew rather than take those that are kept.
        kernel_size, ...: as for :func:`eqconv_cli.backends.steerable.basis.build_basis`.

    Raises:
        TypeError, ValueError: an argument is not allowed, or no kernel commutes with the group on this grid.
    """
    in_type.check_compatible(out_type)
    sampling = make_sampling(kernel_size, dilation, rings, sigma, frequencies_cutoff, scale_cutoff_with_dilation)
    one, _ = in_type.split(groups), out_type.split(groups)
    if sampling.size % 2 == 0 and _beyond_the_grid(out_type):
        warnings.warn(
            f"kernel_size={sampling.size} is even: beyond turns by 90 degrees kernels of odd size are more equivariant",
            stacklevel=2,
        )
    pairs, start = [], 0
    for in_name, (in_rep, in_fields) in one.by_name.items():
        for out_name, (out_rep, out_fields) in out_type.by_name.items():
            basis = sampled_basis(out_type.space, in_rep, out_rep, sampling, maximum_offset, basis_filter, recompute)
            if len(basis):
                pairs.append(PairType(in_name, out_name, basis, in_fields, out_fields, start))
                start += pairs[-1].weights
    if start == 0:
        raise ValueError(_no_kernels(sampling))
    if start >= 2**31:
        raise ValueError(f"the layer has {start} weights: fewer than 2^31 are allowed")
    return Plan(one, out_type, sampling, tuple(pairs))


def _beyond_the_grid(fields: FieldType) -> bool:
    group = fields.space.group
    return not group.is_finite or len(grid_symmetries(fields.space)) < group.order


def _no_kernels(sampling: Sampling) -> str:
    rings = "; ".join(f"r={ring.radius:g}, sigma={ring.sigma:g}, c(r)={ring.cutoff:g}" for ring in sampling.rings)
    message = f"kernel_size={sampling.size}: no kernel of these fields is left on the grid with the rings {rings}"
    if sampling.size == 2:
        message += (
            ". With kernel_size=2 no pixel lies near the only ring (r=0, sigma=0.005): take sigma=0.5, rings=[0.7], "
            "frequencies_cutoff=2"
        )
    return message
