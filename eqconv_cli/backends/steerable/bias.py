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
    """expanded[c] = sum over l of values[l, c] · bias[index[l, c]].

    L is the most trivial irreps that a field has: a gather, so that a wide layer keeps L numbers a channel instead of
    a matrix.
    """

    #: [L, channels].
    index: Integers
    #: [L, channels], 0 where a channel has fewer.
    values: Matrix
    #: Parameters: one for each trivial irrep, in the order of the fields and then of their irreps.
    count: int

    def matrix(self) -> Matrix:
        """The same as a matrix, [channels, count]."""
        made = np.zeros((self.values.shape[1], self.count))
        for values, index in zip(self.values, self.index, strict=True):
            made[np.arange(len(values)), index] += values
        return made


def bias_map(fields: FieldType) -> BiasMap:
    """How the parameters of the bias become a number for each channel; without trivial irreps L is 0."""
    columns = {name: _trivial_columns(field) for name, (field, _) in fields.by_name.items()}
    slots = max(len(found) for found in columns.values())
    index, values = np.zeros((slots, fields.size), np.int64), np.zeros((slots, fields.size))
    count = 0
    for field, start in zip(fields.representations, fields.starts, strict=False):
        for slot, column in enumerate(columns[field.name]):
            index[slot, start : start + field.size] = count
            values[slot, start : start + field.size] = field.change_of_basis[:, column]
            count += 1
    return BiasMap(index, values, count)


def _trivial_columns(field: Representation) -> list[int]:
    trivial = field.group.trivial_irrep.id
    return [offset for label, offset in zip(field.irreps, field.offsets, strict=True) if label == trivial]
