"""What a study of a basis of steerable kernels tells the outside: frozen records, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `eqconv --help` does without NumPy
    import numpy as np


@dataclass(frozen=True)
class BasisRequest:
    """Which basis: names and expressions as users write them; ``None`` leaves a choice to the defaults of e2cnn."""

    group: str
    in_fields: str = "regular"
    out_fields: str = "regular"
    kernel_size: int = 5
    rings: tuple[float, ...] | None = None
    sigma: tuple[float, ...] | None = None
    cutoff: float | None = None
    maximum_offset: int | None = None
    axis_degrees: float = 90.0
    dilation: int = 1
    #: Of the points and weights at which equivariance is measured.
    seed: int = 0
    #: Count what the change of basis leaves different from 0 however large the basis is.
    count_all: bool = False


@dataclass(frozen=True)
class GroupElement:
    """Reflect if ``flip``, then rotate."""

    flip: int
    degrees: float


@dataclass(frozen=True)
class IrrepUse:
    """An irrep and how often each representation holds it."""

    name: str
    size: int
    #: "real" or "complex": what commutes with it.
    type: str
    frequency: int
    in_count: int
    out_count: int


@dataclass(frozen=True)
class RingUse:
    """A ring and what is on it."""

    radius: float
    sigma: float
    cutoff: float
    #: |mu| of the elements that are there, ascending.
    frequencies: tuple[int, ...]
    elements: int


@dataclass(frozen=True)
class Costs:
    """What expanding a filter takes: multiplications and additions for each number of the filter.

    The names are the sections of the specification's table: 9a, the product with the dense basis; 9b, irreps and then
    the change of basis; 9c, harmonics; 9e, one pixel of each orbit of the grid's symmetries. ``products`` are the
    changes of basis as dense products, 0 for representations that are sums of irreps already.
    """

    dense: float
    fill: float
    irreps: float
    harmonic: float
    harmonic_orbit: float
    #: The share of ``irreps`` that are products with Q, and of ``harmonic`` and ``harmonic_orbit``, were no Q skipped.
    irreps_products: float
    harmonic_products: float
    packed: float
    csr: float
    #: Whether both changes of basis are the identity.
    no_change_of_basis: bool


@dataclass(frozen=True)
class Form:
    """How a set of algorithms stores the basis, and what they spend."""

    algorithms: tuple[str, ...]
    #: Floating-point numbers and integers that are kept.
    numbers: int
    integers: int
    flops: float

    @property
    def bytes(self) -> int:
        """Of float32 numbers and int32 integers."""
        return 4 * (self.numbers + self.integers)


@dataclass(frozen=True)
class Densities:
    """Shares of the numbers of the dense basis."""

    #: In the coordinates of the irreps: inside the blocks of the elements, and different from 0.
    blocks: float
    exact: float
    #: Different from 0 after the change of basis; None where the basis is too large to count for a look.
    dense: float | None


@dataclass(frozen=True)
class EquivarianceError:
    """How far kernels are from commuting with an element."""

    element: GroupElement
    #: The worst kernel of the basis, as a function of the plane, relative to its largest value; None: not looked at.
    continuous: float | None
    #: A convolution of a smooth field with a random kernel of the basis, in the middle of the output.
    grid: float
    #: Whether the element maps the grid of pixels to itself, so that ``grid`` is rounding.
    exact: bool


@dataclass(frozen=True)
class Filters:
    """Kernels of one element of the basis, chosen among those of a ring and a frequency."""

    ring: int
    radius: float
    frequency: int
    #: The number of elements on this ring with this frequency, and which of all elements is shown.
    elements: int
    index: int
    in_irrep: str
    out_irrep: str
    #: (out channel, in channel) of each kernel.
    channels: tuple[tuple[int, int], ...]
    #: Kernels side by side in each line, where their places in a block matter; None: one line.
    columns: int | None
    #: [kernels, k, k].
    kernels: np.ndarray


@dataclass(frozen=True)
class BasisStudy:
    """A basis, described."""

    request: BasisRequest
    group: str
    #: None for a continuous group, whose elements are samples.
    order: int | None
    group_elements: tuple[GroupElement, ...]
    #: None without reflections.
    axis_degrees: float | None
    in_name: str
    out_name: str
    in_size: int
    out_size: int
    irreps: tuple[IrrepUse, ...]
    kernel_size: int
    dilation: int
    dimension: int
    #: H, functions of the grid that all elements are made of.
    harmonics: int
    #: L, the most elements that any pair of irreps has.
    slices: int
    rings: tuple[RingUse, ...]
    densities: Densities
    costs: Costs
    forms: tuple[Form, ...]
    errors: tuple[EquivarianceError, ...]
    #: What ``errors`` may be: of all continuous ones, and of those on the grid that are exact.
    tolerance: float
    #: Attributes of each element, by name.
    elements: tuple[Mapping[str, Any], ...]
    filters: tuple[Filters, ...]
    #: Warnings about the choice.
    notes: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all errors that must be rounding are."""
        exact = [error.grid for error in self.errors if error.exact]
        return all(error <= self.tolerance for error in (*exact, *(e.continuous or 0.0 for e in self.errors)))
