"""Sets of active sites, and which site is whose neighbour: what all convolutions on the same sites share.

Graham, van der Maaten, "Submanifold Sparse Convolutional Networks" (arXiv 1706.01307); facebookresearch/SparseConvNet
``SCN/Metadata``. Plain NumPy in host memory: the frameworks convert the tables and keep them with the rulebook.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.block_sparse.cost_model import SiteSizes
from eqconv_cli.backends.block_sparse.geometry import integer

Ints = npt.NDArray[np.int32]
Keys = npt.NDArray[np.int64]
Duplicates = Literal["error", "first", "last", "sum", "mean"]

DUPLICATES = ("error", "first", "last", "sum", "mean")
#: Up to this many places a map of all of them is quicker than a search, and takes 64 MiB at most.
_MAPPED_PLACES = 2**24
_MOST_ROWS = 2**31 - 1


class Kernel(NamedTuple):
    """Extents of a sparse convolution along each spatial axis."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def taps(self) -> int:
        """Number of kernel positions."""
        return int(np.prod(self.size))

    def offsets(self) -> Keys:
        """The position of every tap, dilated [taps, D]; the last axis runs fastest."""
        positions = np.indices(self.size).reshape(len(self.size), -1).T
        return (positions * np.array(self.dilation)).astype(np.int64)


def kernel(
    axes: int,
    size: Sequence[int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
) -> Kernel:
    """The extents checked; one number counts for every axis.

    Args:
        axes: D.
        size: of the kernel, D numbers.
        stride, padding, dilation: one number or D.

    Raises:
        ValueError: not D numbers, or one is below what is allowed (0 for padding, else 1).
    """
    return Kernel(
        per_axis("the kernel's size", axes, size, 1),
        per_axis("stride", axes, stride, 1),
        per_axis("padding", axes, padding, 0),
        per_axis("dilation", axes, dilation, 1),
    )


def submanifold_kernel(axes: int, size: Sequence[int], dilation: Any = 1) -> Kernel:
    """The kernel whose window starts size // 2 before the site; an even size reaches further back than ahead."""
    plain = kernel(axes, size, dilation=dilation)
    return plain._replace(padding=tuple(k // 2 * d for k, d in zip(plain.size, plain.dilation, strict=True)))


def per_axis(name: str, axes: int, value: Any, least: int) -> tuple[int, ...]:
    """``value`` for each axis; raises ValueError naming the argument."""
    try:
        numbers = tuple(integer(entry) for entry in value) if np.ndim(value) else (integer(value),) * axes
    except TypeError:
        raise ValueError(f"{name}={value!r}: expected one whole number, or {axes}") from None
    if len(numbers) != axes:
        raise ValueError(f"{name}={value!r}: {len(numbers)} numbers for sites with {axes} spatial axes")
    if any(number < least for number in numbers):
        raise ValueError(f"{name}={numbers}: every number must be at least {least}")
    return numbers


def out_shape(shape: Sequence[int], k: Kernel) -> tuple[int, ...]:
    """Extents of the sites that a strided convolution makes.

    Raises:
        ValueError: the kernel does not fit into the padded extent.
    """
    spans = [dilation * (size - 1) + 1 for size, dilation in zip(k.size, k.dilation, strict=True)]
    rooms = [n + 2 * p for n, p in zip(shape, k.padding, strict=True)]
    if any(span > room for span, room in zip(spans, rooms, strict=True)):
        raise ValueError(f"the kernel spans {tuple(spans)} but shape + 2 * padding is only {tuple(rooms)}")
    return tuple((room - span) // s + 1 for room, span, s in zip(rooms, spans, k.stride, strict=True))


class SitePattern:
    """Active sites without their features; unique and in range. Rulebooks are kept with it.

    Attributes:
        coords: int32 [M, 1 + D], (batch, spatial...), read-only.
        shape: spatial extents (D,), 1 to 4 of them.
        batch: number of samples.
    """

    def __init__(self, coords: Ints, shape: tuple[int, ...], batch: int) -> None:
        self.coords, self.shape, self.batch = coords, shape, batch
        coords.flags.writeable = False
        self._rulebooks: dict[tuple[str, Kernel], Rulebook] = {}
        self._converted: dict[Hashable, Any] = {}

    @property
    def axes(self) -> int:
        """D."""
        return len(self.shape)

    @property
    def sites(self) -> int:
        """M."""
        return len(self.coords)

    @cached_property
    def find(self) -> Callable[[Keys], Ints]:
        """The row of the site at each of the places (their numbers, see :func:`places`); -1 where there is none."""
        keys = places(self.coords.astype(np.int64), self.shape)
        every = self.batch * int(np.prod(self.shape))
        if every <= _MAPPED_PLACES:
            row_of = np.full(every, -1, np.int32)
            row_of[keys] = np.arange(len(keys), dtype=np.int32)
            return row_of.__getitem__
        order = np.argsort(keys).astype(np.int32)
        ordered = keys[order]

        def search(wanted: Keys) -> Ints:
            if not len(ordered):
                return np.full(wanted.shape, -1, np.int32)
            at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
            return np.where(ordered[at] == wanted, order[at], np.int32(-1))

        return search

    def submanifold(self, size: Sequence[int], dilation: Any = 1) -> Rulebook:
        """The rulebook of a convolution from these sites to themselves; the same object every time."""
        k = submanifold_kernel(self.axes, size, dilation)
        return self._rulebook("submanifold", k, lambda: self)

    def strided(self, size: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Rulebook:
        """The rulebook of a convolution from these sites to all that they reach; the same object every time."""
        k = kernel(self.axes, size, stride, padding, dilation)
        return self._rulebook("strided", k, lambda: strided_outputs(self, k))

    def made(self, out: object) -> Rulebook | None:
        """The strided rulebook that made ``out`` of these sites, or None."""
        return next((r for (kind, _), r in self._rulebooks.items() if kind == "strided" and r.out is out), None)

    def converted(self, place: Hashable, convert: Callable[[Ints], Any]) -> Any:
        """``convert(coords)``, made once for each place: a framework's array on a device."""
        return _once(self._converted, place, lambda: convert(self.coords))

    def _rulebook(self, kind: str, k: Kernel, out: Callable[[], SitePattern]) -> Rulebook:
        if (kind, k) not in self._rulebooks:
            self._rulebooks[kind, k] = Rulebook(self, out(), k)
        return self._rulebooks[kind, k]


class Rulebook:
    """Which input site is behind which tap of which output site.

    Attributes:
        source: the input sites.
        out: the output sites, of a submanifold convolution the same object.
        kernel: extents.
        table: int32 [M_out, taps], the input row or -1. Within one tap no row occurs twice.
    """

    def __init__(self, source: SitePattern, out: SitePattern, k: Kernel) -> None:
        self.source, self.out, self.kernel = source, out, k
        self.table = neighbour_table(source, out.coords, k)
        self._converted: dict[Hashable, Any] = {}

    @cached_property
    def inverse(self) -> Ints:
        """int32 [M_in, taps]: the output row that reads input row i at tap t, or -1."""
        made = np.full((self.source.sites, self.kernel.taps), -1, np.int32)
        out, tap = np.nonzero(self.table >= 0)
        made[self.table[out, tap], tap] = out
        made.flags.writeable = False
        return made

    @cached_property
    def pairs(self) -> tuple[tuple[Ints, Ints], ...]:
        """For each tap the input rows and the output rows that it joins, output rows ascending."""
        columns = (np.flatnonzero(column >= 0).astype(np.int32) for column in self.table.T)
        return tuple((self.table[out, tap], out) for tap, out in enumerate(columns))

    @cached_property
    def pair_count(self) -> int:
        """How many pairs there are over all taps: the multiplications of a channel with a channel."""
        return int(np.count_nonzero(self.table >= 0))

    def sizes(self, back: bool) -> SiteSizes:
        """What the cost model looks at; ``back``: of the convolution from ``out`` to ``source``."""
        target = self.source if back else self.out
        places = self.out.batch * int(np.prod(self.out.shape))
        return SiteSizes(target.sites, self.pair_count, places, self.kernel.taps)

    def converted(self, what: Literal["table", "inverse"], place: Hashable, convert: Callable[[Ints], Any]) -> Any:
        """``convert(table or inverse)``, made once for each place: a framework's array on a device."""
        return _once(self._converted, (what, place), lambda: convert(getattr(self, what)))


def _once(kept: dict[Hashable, Any], key: Hashable, make: Callable[[], Any]) -> Any:
    if key not in kept:
        kept[key] = make()
    return kept[key]


def neighbour_table(source: SitePattern, out_coords: Ints, k: Kernel) -> Ints:
    """For each output row and tap the input row at ``out * stride - padding + tap * dilation``, or -1.

    Args:
        source: the input sites.
        out_coords: int32 [M_out, 1 + D].
        k: extents; one number for each axis.

    Returns:
        int32 [M_out, taps], read-only.
    """
    batch, first = out_coords[:, 0], out_coords[:, 1:].astype(np.int64) * k.stride - np.array(k.padding, np.int64)
    table = np.empty((len(out_coords), k.taps), np.int32)
    for tap, offset in enumerate(k.offsets()):
        at = first + offset
        inside = np.all((at >= 0) & (at < source.shape), axis=1)
        wanted = places(np.column_stack([batch, np.where(inside[:, None], at, 0)]), source.shape)
        table[:, tap] = np.where(inside, source.find(wanted), -1)
    table.flags.writeable = False
    return table


def strided_outputs(source: SitePattern, k: Kernel) -> SitePattern:
    """All sites with an input site in their window, sorted by batch and position."""
    shape = out_shape(source.shape, k)
    batch, at = source.coords[:, :1].astype(np.int64), source.coords[:, 1:].astype(np.int64) + k.padding
    found = []
    for offset in k.offsets():
        site, beyond = np.divmod(at - offset, k.stride)
        reached = np.all((beyond == 0) & (site >= 0) & (site < shape), axis=1)
        found.append(np.unique(places(np.column_stack([batch, site])[reached], shape)))
    numbers = np.unique(np.concatenate(found))
    coords = np.stack(np.unravel_index(numbers, (source.batch, *shape)), axis=1).astype(np.int32)
    return SitePattern(np.ascontiguousarray(coords), shape, source.batch)


def places(coords: npt.NDArray[Any], shape: Sequence[int]) -> Keys:
    """The number of each coordinate row in raster order, int64."""
    number = coords[:, 0].astype(np.int64)
    for axis, extent in enumerate(shape, 1):
        number = number * extent + coords[:, axis]
    return number


class Merged(NamedTuple):
    """What becomes of features when sites that occur more than once become one.

    ``rows`` picks the features to keep, or with ``group`` all rows of one number are added up (and, for a mean, divided
    by ``share``).
    """

    rows: Keys | None
    group: Keys | None
    share: npt.NDArray[np.float64] | None


def make_pattern(
    coords: Any, shape: Sequence[int], batch: int | None = None, duplicates: str = "error"
) -> tuple[SitePattern, Merged]:
    """A pattern from coordinates as a user has them.

    Args:
        coords: integers [M, 1 + D], batch first; any integer dtype and memory order.
        shape: spatial extents, 1 to 4.
        batch: number of samples; None: as many as the largest batch number says, at least 1.
        duplicates: what to do with sites that occur more than once: "error", or keep the features of the "first" or
            "last", or their "sum" or "mean" (the modes of SparseConvNet's InputLayer). The site stays where it occurs
            first.

    Returns:
        The pattern, and how features follow.

    Raises:
        ValueError: an argument is not allowed, or coordinates are not whole numbers, out of range or, unless allowed,
            repeated.
    """
    if duplicates not in DUPLICATES:
        raise ValueError(f"duplicates={duplicates!r} is unknown: allowed: {', '.join(DUPLICATES)}")
    array, extents = np.asarray(coords), checked_shape(shape)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"coords has dtype {array.dtype}: whole numbers are needed")
    if array.ndim != 2 or array.shape[1] != 1 + len(extents):
        raise ValueError(
            f"coords has shape {list(array.shape)}: expected [M, {1 + len(extents)}], the batch and {len(extents)} axes"
        )
    samples = int(array[:, 0].max(initial=0)) + 1 if batch is None else integer(batch)
    if samples * int(np.prod(extents, dtype=object)) >= 2**63 or len(array) > _MOST_ROWS:
        raise ValueError(f"{len(array)} sites in batch * shape = {samples} * {extents}: rows are int32, places int64")
    limits = np.array([samples, *extents])
    outside = np.any((array < 0) | (array >= limits), axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(f"coords[{row}] is {array[row].tolist()}: outside batch and shape {limits.tolist()}")
    plain = np.array(array, np.int32, order="C")
    unique, first, group, count = np.unique(
        places(plain, extents), return_index=True, return_inverse=True, return_counts=True
    )
    if len(unique) == len(plain):
        return SitePattern(plain, extents, samples), Merged(None, None, None)
    if duplicates == "error":
        row = int(first[count > 1][0])
        raise ValueError(
            f"coords has {plain[row].tolist()} more than once: give each site once, or choose duplicates= out of "
            f"{', '.join(DUPLICATES[1:])}"
        )
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    group = rank[group.reshape(-1)]
    pattern = SitePattern(np.ascontiguousarray(plain[first[order]]), extents, samples)
    if duplicates in ("sum", "mean"):
        return pattern, Merged(None, group, count[order].astype(np.float64) if duplicates == "mean" else None)
    rows = first[order] if duplicates == "first" else _last_rows(group, len(order))
    return pattern, Merged(rows.astype(np.int64), None, None)


def checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Spatial extents; raises ValueError unless they are 1 to 4 numbers of at least 1."""
    if not np.ndim(shape) or not 1 <= len(shape) <= 4:
        raise ValueError(f"shape={shape!r}: 1 to 4 spatial extents are needed")
    return per_axis("shape", len(shape), shape, 1)


def _last_rows(group: Keys, groups: int) -> Keys:
    """The last row of each group; the later of two writes to one place stays."""
    last = np.empty(groups, np.int64)
    last[group] = np.arange(len(group))
    return last
