"""Groups of rotations and reflections of the plane that fix the origin, and their real irreducible representations.

Weiler, Cesa, "General E(2)-Equivariant Steerable CNNs", arXiv 1911.08251; the order of elements and of irreps is that
of QUVA-Lab/e2cnn. An element (flip, angle) means "reflect if flip, then rotate by angle".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
IrrepId = tuple[int, ...]

#: Angles at which representations of the continuous groups are tested.
TEST_ANGLES = 52
#: Frequencies up to which the irreps of a continuous group are listed, unless more are asked for.
LISTED_FREQUENCY = 3

ALLOWED_NAMES = "C1, C2, C3, ..., D1, D2, D3, ..., SO(2) or SO2, O(2) or O2, flip, trivial"


class Element(NamedTuple):
    """Reflect if ``flip``, then rotate by ``angle`` (radians, counter-clockwise)."""

    flip: int
    angle: float


@dataclass(frozen=True)
class Group:
    """A subgroup of O(2): so many rotations (0: all of them), and reflections or not."""

    rotations: int
    flips: bool

    def __post_init__(self) -> None:
        if isinstance(self.rotations, bool) or not isinstance(self.rotations, int) or self.rotations < 0:
            raise ValueError(f"rotations={self.rotations!r}: an integer is needed, 1 or more, or 0 for all rotations")

    @property
    def name(self) -> str:
        """C1, C8, Flip, D4, SO(2), O(2)."""
        if self.rotations == 0:
            return "O(2)" if self.flips else "SO(2)"
        if self.rotations == 1 and self.flips:
            return "Flip"
        return f"{'D' if self.flips else 'C'}{self.rotations}"

    @property
    def is_finite(self) -> bool:
        """Whether it has finitely many elements."""
        return self.rotations > 0

    @property
    def order(self) -> int:
        """The number of elements.

        Raises:
            ValueError: the group is continuous.
        """
        return len(self.elements)

    @property
    def step(self) -> float:
        """The smallest rotation of a finite group."""
        return 2 * math.pi / self.rotations

    @cached_property
    def elements(self) -> tuple[Element, ...]:
        """All elements of a finite group: rotations first, then those with a reflection.

        Raises:
            ValueError: the group is continuous.
        """
        if not self.is_finite:
            raise ValueError(f"{self.name} is continuous: its elements cannot be listed")
        return tuple(Element(s, a * self.step) for s in range(1 + self.flips) for a in range(self.rotations))

    @cached_property
    def test_elements(self) -> tuple[Element, ...]:
        """All elements of a finite group, 52 angles (and as many with a reflection) of a continuous one."""
        if self.is_finite:
            return self.elements
        angles = [2 * math.pi * i / TEST_ANGLES for i in range(TEST_ANGLES)]
        return tuple(Element(s, t) for s in range(1 + self.flips) for t in angles)

    def product(self, g: Element, h: Element) -> Element:
        """First h, then g."""
        return Element(g.flip ^ h.flip, (g.angle + (-h.angle if g.flip else h.angle)) % (2 * math.pi))

    def inverse(self, g: Element) -> Element:
        """What undoes g; a reflection undoes itself."""
        return g if g.flip else Element(0, -g.angle % (2 * math.pi))

    def index(self, g: Element) -> int:
        """The position of an element in ``elements``.

        Raises:
            ValueError: the group has no such element.
        """
        a = round(g.angle / self.step)
        if abs(a * self.step - g.angle) > 1e-9 or g.flip > self.flips:
            raise ValueError(f"{self.name} has no element (flip, angle) = {tuple(g)}")
        return g.flip * self.rotations + a % self.rotations

    def irreps(self, most: int | None = None) -> tuple[Irrep, ...]:
        """The irreps in order; of a continuous group those with frequencies up to ``most`` (3)."""
        last = self.rotations // 2 if self.is_finite else LISTED_FREQUENCY if most is None else most
        return tuple(Irrep(self, label) for label in self._labels(last))

    def _labels(self, last: int) -> list[IrrepId]:
        if not self.flips:
            return [(k,) for k in range(last + 1)]
        if self.rotations == 1:
            return [(0,), (1,)]
        labels: list[IrrepId] = [(0, 0), *((1, k) for k in range(last + 1))]
        return [*labels, (0, last)] if self.is_finite and self.rotations % 2 == 0 else labels

    def irrep(self, *label: int) -> Irrep:
        """The irrep with this id.

        Raises:
            ValueError: there is none; the message lists those that there are.
        """
        found = tuple(label)
        if found not in self._labels(self.rotations // 2 if self.is_finite else max(0, found[-1] if found else 0)):
            known = ", ".join(",".join(map(str, irrep.id)) for irrep in self.irreps())
            more = "" if self.is_finite else ", ..."
            raise ValueError(f"irrep {','.join(map(str, found))} of {self.name} is unknown: allowed: {known}{more}")
        return Irrep(self, found)

    @property
    def trivial_irrep(self) -> Irrep:
        """Every element is 1."""
        return self.irreps(0)[0]

    def action(self, g: Element, axis: float = math.pi / 2) -> Matrix:
        """How an element moves points (x right, y up); ``axis`` is the angle of the mirror line of (1, 0)."""
        return rotation(g.angle) @ (rotation(2 * axis) @ np.diag([1.0, -1.0]) if g.flip else np.eye(2))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Irrep:
    """A real irreducible representation."""

    group: Group
    id: IrrepId

    @property
    def name(self) -> str:
        """``irrep_1`` or ``irrep_1,1``."""
        return f"irrep_{','.join(map(str, self.id))}"

    @property
    def frequency(self) -> int:
        """Turns of the matrix in one turn of the plane."""
        return 0 if self.group.flips and self.group.rotations == 1 else self.id[-1]

    @property
    def flip_sign(self) -> int:
        """1 where a reflection counts, else 0; always 0 without reflections."""
        return self.id[0] if self.group.flips else 0

    @property
    def half(self) -> bool:
        """Frequency N / 2: rotations alternate between 1 and -1."""
        return self.group.is_finite and 2 * self.frequency == self.group.rotations

    @property
    def size(self) -> int:
        """1 or 2."""
        return 1 if self.frequency == 0 or self.half else 2

    @property
    def is_complex(self) -> bool:
        """Whether rotations of the plane commute with it: then two numbers, not one, describe what commutes with it."""
        return self.size == 2 and not self.group.flips

    def matrices(self, elements: Sequence[Element]) -> Matrix:
        """[n, size, size]; entries of one-dimensional irreps are exactly 1 or -1."""
        flips = np.array([g.flip for g in elements])
        angles = np.array([g.angle for g in elements])
        if self.size == 1:
            turns = np.rint(angles / self.group.step).astype(int) if self.half else 0 * flips
            return np.where((turns + self.flip_sign * flips) % 2, -1.0, 1.0)[:, None, None]
        cos, sin = np.cos(self.frequency * angles), np.sin(self.frequency * angles)
        sign = 1.0 - 2 * flips
        return np.stack([np.stack([cos, -sign * sin], -1), np.stack([sin, sign * cos], -1)], -2)

    def __call__(self, g: Element) -> Matrix:
        """The matrix of an element."""
        made: Matrix = self.matrices([g])[0]
        return made

    def __str__(self) -> str:
        return self.name


def rotation(angle: float) -> Matrix:
    """The rotation of the plane by an angle."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def cyclic(n: int) -> Group:
    """C_N: N rotations."""
    return _finite("C", n, flips=False)


def dihedral(n: int) -> Group:
    """D_N: N rotations and N reflections; D_1 is Flip."""
    return _finite("D", n, flips=True)


def so2() -> Group:
    """SO(2): all rotations."""
    return Group(0, False)


def o2() -> Group:
    """O(2): all rotations and reflections."""
    return Group(0, True)


def flip() -> Group:
    """One reflection."""
    return Group(1, True)


def trivial_group() -> Group:
    """C1."""
    return Group(1, False)


def _finite(letter: str, n: int, flips: bool) -> Group:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"{letter}{n!r}: the number of rotations must be an integer, 1 or more")
    return Group(n, flips)


@lru_cache(maxsize=256)
def parse_group(text: str) -> Group:
    """The group of this name, in any case.

    Raises:
        ValueError: there is no such group; the message lists the names.
    """
    word = text.strip().lower().replace(" ", "")
    named = {"so(2)": so2(), "so2": so2(), "o(2)": o2(), "o2": o2(), "flip": flip(), "trivial": trivial_group()}
    if word in named:
        return named[word]
    match = re.fullmatch(r"([cd])_?(\d{1,6})", word)
    if match is None or int(match[2]) < 1:
        raise ValueError(f"group {text!r} is unknown: allowed: {ALLOWED_NAMES}")
    return Group(int(match[2]), match[1] == "d")


class Subgroup(NamedTuple):
    """A subgroup that is a group of its own, and how its elements are elements of the larger one."""

    group: Group
    #: The angle of the reflection (1, 0) of the subgroup in the larger group.
    twist: float
    id: Any

    def embed(self, h: Element) -> Element:
        """An element of the subgroup as one of the larger group."""
        return Element(h.flip, (h.angle + h.flip * self.twist) % (2 * math.pi))

    def moved_axis(self, axis: float) -> float:
        """The mirror line of the subgroup's reflection (1, 0), where that of the larger group is ``axis``."""
        return axis + self.twist / 2


def subgroup(group: Group, label: Any) -> Subgroup:
    """A subgroup by its id, as QUVA-Lab/e2cnn names them.

    C_N and SO(2): M, the rotations of C_M. D_N: (None, M) for C_M, (q, M) for the D_M with the reflection r^q f, where
    0 <= q < N / M. O(2): (None, -1) for SO(2), (None, M) for C_M, (theta, M) for the D_M whose reflection is turned by
    theta.

    Raises:
        ValueError: it is not a subgroup.
    """
    if not group.flips:
        if isinstance(label, bool) or not isinstance(label, int):
            raise _no_subgroup(group, label, "the number of rotations, an integer")
        _check_divides(group, label, label)
        return Subgroup(Group(label, False), 0.0, label)
    if not (isinstance(label, tuple) and len(label) == 2):
        raise _no_subgroup(group, label, "(None, M) or (q, M)")
    twist, m = label
    if not group.is_finite and twist is None and m == -1:
        return Subgroup(so2(), 0.0, label)
    _check_divides(group, m, label)
    if twist is None:
        return Subgroup(Group(m, False), 0.0, label)
    if not group.is_finite:
        return Subgroup(Group(m, True), float(twist), label)
    if isinstance(twist, bool) or not isinstance(twist, int) or not 0 <= twist < group.rotations // m:
        raise _no_subgroup(group, label, f"q an integer from 0 to {group.rotations // m - 1}")
    return Subgroup(Group(m, True), twist * group.step, label)


def _check_divides(group: Group, m: Any, label: Any) -> None:
    if isinstance(m, bool) or not isinstance(m, int) or m < 1 or (group.is_finite and group.rotations % m):
        divisors = [n for n in range(1, group.rotations + 1) if group.rotations % n == 0]
        allowed = f"M one of {', '.join(map(str, divisors))}" if group.is_finite else "M an integer, 1 or more"
        raise _no_subgroup(group, label, allowed)


def _no_subgroup(group: Group, label: Any, allowed: str) -> ValueError:
    return ValueError(f"{label!r} names no subgroup of {group.name}: allowed: {allowed}")
