"""What flows through a steerable network: fields of channels that a group of the plane moves and mixes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eqconv_cli.maths.planar_groups import Element, Group, Matrix, parse_group
from eqconv_cli.maths.representations import Representation, parse_fields, regular, trivial


@dataclass(frozen=True)
class Space:
    """The plane with a group acting on it."""

    group: Group
    #: The mirror line of the reflection (1, 0): its angle against the x axis; the vertical line mirrors left and right.
    axis: float = math.pi / 2

    def __post_init__(self) -> None:
        if not math.isfinite(self.axis):
            raise ValueError(f"axis={self.axis}: a finite angle is needed")

    @staticmethod
    def of(name: str, axis: float = math.pi / 2) -> Space:
        """By the group's name; raises ValueError for an unknown one."""
        return Space(parse_group(name), axis)

    def action(self, g: Element) -> Matrix:
        """How an element moves points (x right, y up)."""
        return self.group.action(g, self.axis)

    def fields(self, expression: str) -> FieldType:
        """The fields of an expression such as ``2*regular+irrep:1``; raises ValueError."""
        return FieldType(self, parse_fields(expression, self.group))

    def regular_fields(self, count: int) -> FieldType:
        """So many regular fields; raises ValueError for a continuous group."""
        return FieldType(self, (regular(self.group),) * count)

    def trivial_fields(self, count: int) -> FieldType:
        """So many channels that nothing changes, such as the colours of a picture."""
        return FieldType(self, (trivial(self.group),) * count)


@dataclass(frozen=True, eq=False)
class FieldType:
    """An ordered list of fields; channels follow one another field by field.

    Raises:
        ValueError: there are no fields, one is of another group, or two of one name are not the same.
    """

    space: Space
    representations: tuple[Representation, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "representations", tuple(self.representations))
        if not self.representations:
            raise ValueError("representations=(): at least one field is needed")
        named: dict[str, Representation] = {}
        for position, field in enumerate(self.representations):
            if field.group != self.space.group:
                raise ValueError(
                    f"field {position} ({field.name}) is of {field.group.name}: the space has {self.space.group.name}"
                )
            other = named.setdefault(field.name, field)
            if other is not field and not other.same_as(field):
                raise ValueError(f"two different representations have the name {field.name!r}: each needs its own")

    @property
    def size(self) -> int:
        """The number of channels."""
        return sum(field.size for field in self.representations)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first channel of each field, and the number of channels."""
        starts = [0]
        for field in self.representations:
            starts.append(starts[-1] + field.size)
        return tuple(starts)

    @cached_property
    def by_name(self) -> dict[str, tuple[Representation, tuple[int, ...]]]:
        """Each representation and the positions of its fields, by name in ascending order."""
        positions: dict[str, list[int]] = {}
        for position, field in enumerate(self.representations):
            positions.setdefault(field.name, []).append(position)
        return {name: (self.representations[found[0]], tuple(found)) for name, found in sorted(positions.items())}

    def matrix(self, g: Element) -> Matrix:
        """How an element mixes the channels, [size, size]."""
        made = np.zeros((self.size, self.size))
        for start, end, field in zip(self.starts, self.starts[1:], self.representations, strict=False):
            made[start:end, start:end] = field(g)
        return made

    def split(self, groups: int) -> FieldType:
        """The fields of the first of ``groups`` equal groups.

        Raises:
            ValueError: the fields are not so many repetitions of the same list.
        """
        count = len(self.representations)
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or count % groups:
            raise ValueError(f"groups={groups!r}: it must divide the {count} fields")
        each = count // groups
        for position, field in enumerate(self.representations):
            if field.name != self.representations[position % each].name:
                raise ValueError(
                    f"groups={groups}: field {position} ({field.name}) is not field {position % each} "
                    f"({self.representations[position % each].name}) again: the groups of fields must be equal"
                )
        return FieldType(self.space, self.representations[:each])

    def check_compatible(self, other: FieldType) -> None:
        """Raises ValueError unless both live on the same space."""
        if self.space.group != other.space.group:
            raise ValueError(
                f"in_type is of {self.space.group.name} and out_type of {other.space.group.name}: one group is needed"
            )
        if self.space.group.flips and self.space.axis != other.space.axis:
            raise ValueError(
                f"in_type has axis={self.space.axis} and out_type axis={other.space.axis}: they must be equal"
            )

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, FieldType):
            return NotImplemented
        return (
            self.space == other.space
            and len(self.representations) == len(other.representations)
            and all(
                a is b or (a.name == b.name and a.same_as(b))
                for a, b in zip(self.representations, other.representations, strict=True)
            )
        )

    def __hash__(self) -> int:
        return hash((self.space, tuple(field.name for field in self.representations)))

    def __str__(self) -> str:
        counts: list[tuple[str, int]] = []
        for field in self.representations:
            if counts and counts[-1][0] == field.name:
                counts[-1] = (field.name, counts[-1][1] + 1)
            else:
                counts.append((field.name, 1))
        return " + ".join(name if count == 1 else f"{count} {name}" for name, count in counts)


def concatenated(types: Sequence[FieldType]) -> FieldType:
    """The fields of several types, one after the other; raises ValueError for different spaces."""
    for other in types[1:]:
        types[0].check_compatible(other)
    return FieldType(types[0].space, tuple(field for found in types for field in found.representations))
