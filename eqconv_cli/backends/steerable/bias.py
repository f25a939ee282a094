"""The bias of a steerable layer: a group leaves only trivial irreps alone, so there is one number for each of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable.fields import FieldType
from eqconv_cli.maths.planar_groups import Matrix
from eqconv_cli.maths.representations import Representation

Integers = npt.NDArray[np.int64]


class BiasMap(NamedTuple):
    """expanded[c] = sum over l of values[l, c] · bias[positions[l, c]].

    L is the most trivial irreps that a field has: a gather, so that a wide layer keeps L numbers a channel instead of
    a matrix.
    """

    #: [L, channels].
    positions: Integers
    #: [L, channels], 0 where a channel has fewer.
    values: Matrix
    #: Parameters: one for each trivial irrep, in the order of the fields and then of their irreps.
    parameters: int

    def matrix(self) -> Matrix:
        """The same as a matrix, [channels, parameters]."""
        made = np.zeros((self.values.shape[1], self.parameters))
        for values, positions in zip(self.values, self.positions, strict=True):
            made[np.arange(len(values)), positions] += values
        return made


def bias_map(fields: FieldType) -> BiasMap:
    """How the parameters of the bias become a number for each channel; without trivial irreps L is 0."""
    columns = {name: _trivial_columns(field) for name, (field, _) in fields.by_name.items()}
    slots = max(len(found) for found in columns.values())
    positions, values = np.zeros((slots, fields.size), np.int64), np.zeros((slots, fields.size))
    count = 0
    for field, start in zip(fields.representations, fields.starts, strict=False):
        for slot, column in enumerate(columns[field.name]):
            positions[slot, start : start + field.size] = count
            values[slot, start : start + field.size] = field.change_of_basis[:, column]
            count += 1
    return BiasMap(positions, values, count)


def _trivial_columns(field: Representation) -> list[int]:
    trivial = field.group.trivial_irrep.id
    return [offset for label, offset in zip(field.irreps, field.offsets, strict=True) if label == trivial]
