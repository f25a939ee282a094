"""Submanifold and strided sparse convolution on a set of active sites, in PyTorch.

Graham, van der Maaten, "Submanifold Sparse Convolutional Networks" (arXiv 1706.01307); facebookresearch/SparseConvNet;
traveller59/spconv ``docs/USAGE.md``. What lies outside the sites counts as 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from eqconv_cli.backends.block_sparse import arguments, cost_model, site_patterns, torch_fused
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.site_patterns import Kernel, Rulebook, SitePattern
from eqconv_cli.backends.block_sparse.torch_arguments import check_like, check_real, widened
from eqconv_cli.backends.block_sparse.voxels import voxels
from eqconv_cli.kernels.torch_doors import constant, missing_operators

#: Versions beside "fused" and "auto".
COMPOSITIONS = ("table", "rulebook", "dense")


_numbers = itertools.count()
_patterns: WeakValueDictionary[str, DevicePattern] = WeakValueDictionary()


class Neighbours:
    """Which input site is behind which tap of which output site, on one device.

    Attributes:
        kernel: extents.
        out: the output sites' pattern.
        table: int32 [M_out, taps], the input row or -1.
        inverse: int32 [M_in, taps], the output row that reads input row i at tap t, or -1.
    """

    def __init__(self, source: DevicePattern, out: DevicePattern, kernel: Kernel, table: Tensor | None) -> None:
        self.source, self.out, self.kernel = source, out, kernel
        self._table = table

    @cached_property
    def table(self) -> Tensor:
        """See above; made at the first use."""
        if self._table is not None:
            return self._table
        return self._of_host("table")

    @cached_property
    def inverse(self) -> Tensor:
        """See above; made at the first use."""
        if self._table is None:
            return self._of_host("inverse")
        made = self.table.new_full((self.source.sites + 1, self.kernel.taps), -1)
        rows = torch.where(self.table >= 0, self.table, self.source.sites).long()
        numbers = torch.arange(self.out.sites, dtype=torch.int32, device=made.device)[:, None]
        return made.scatter_(0, rows, numbers.expand_as(self.table).contiguous())[:-1].contiguous()

    @property
    def rulebook(self) -> Rulebook:
        """The same in host memory."""
        host = self.source.host
        size, stride, padding, dilation = self.kernel
        if self.out is self.source:
            return host.submanifold(size, dilation)
        return host.strided(size, stride, padding, dilation)

    def _of_host(self, what: Any) -> Tensor:
        rulebook = self.rulebook
        device = self.source.coords.device
        made: Tensor = rulebook.converted(what, ("torch", device), lambda array: _tensor(array).to(device))
        return made


class DevicePattern:
    """The sites of one set on one device; everything that depends on the sites alone is kept here.

    On the CPU the tables are those of :class:`SitePattern`, which NumPy makes. On a GPU the compiled kernels make them
    where they are built: a submanifold table then never waits for the device.
    """

    def __init__(self, coords: Tensor, shape: tuple[int, ...], batch: int, host: SitePattern | None = None) -> None:
        self.coords, self.shape, self.batch = coords, shape, batch
        #: A name, for compilers: they take a text for a constant, but not an object that they have made themselves.
        self.name = f"pattern {next(_numbers)}"
        _patterns[self.name] = self
        self._host = host
        self._made: dict[tuple[str, Kernel], Neighbours] = {}

    @property
    def sites(self) -> int:
        """M."""
        return len(self.coords)

    @property
    def host(self) -> SitePattern:
        """The same sites in host memory."""
        if self._host is None:
            self._host = SitePattern(np.ascontiguousarray(self.coords.cpu().numpy()), self.shape, self.batch)
        return self._host

    def submanifold(self, size: Sequence[int], dilation: Any, settings: Fused | None) -> Neighbours:
        """Neighbours for a convolution from these sites to themselves; the same object every time."""
        kernel = site_patterns.submanifold_kernel(len(self.shape), size, dilation)
        return self._once("submanifold", kernel, settings)

    def strided(
        self, size: Sequence[int], stride: Any, padding: Any, dilation: Any, settings: Fused | None
    ) -> Neighbours:
        """Neighbours for a convolution to all sites that these reach; the same object every time."""
        kernel = site_patterns.kernel(len(self.shape), size, stride, padding, dilation)
        return self._once("strided", kernel, settings)

    def made(self, out: DevicePattern) -> Neighbours | None:
        """The strided neighbours that made ``out`` of these sites, or None."""
        return next((n for (kind, _), n in self._made.items() if kind == "strided" and n.out is out), None)

    def _once(self, kind: str, kernel: Kernel, settings: Fused | None) -> Neighbours:
        found = self._made.get((kind, kernel))
        if found is None:
            found = self._made[kind, kernel] = self._neighbours(kind, kernel, settings)
        return found

    def _neighbours(self, kind: str, kernel: Kernel, settings: Fused | None) -> Neighbours:
        compiled = settings is not None and (self.coords.device.type == "cuda" or settings.core is not None)
        if settings is None or not compiled:
            out = self if kind == "submanifold" else self._strided_host(kernel)
            return Neighbours(self, out, kernel, None)
        out_shape = self.shape if kind == "submanifold" else site_patterns.out_shape(self.shape, kernel)
        geometry = [*self.shape, *out_shape, *kernel.size, *kernel.stride, *kernel.padding, *kernel.dilation]
        out = self
        if kind == "strided":
            coords, count = torch_fused.site_outputs(self.coords, self.batch, geometry, settings)
            out = DevicePattern(coords[: int(count)].contiguous(), out_shape, self.batch)
        table = torch_fused.site_table(self.coords, out.coords, self.batch, geometry, settings)
        return Neighbours(self, out, kernel, table)

    def _strided_host(self, kernel: Kernel) -> DevicePattern:
        host = self.host.strided(kernel.size, kernel.stride, kernel.padding, kernel.dilation).out
        device = self.coords.device
        return DevicePattern(_tensor(host.coords).to(device), host.shape, host.batch, host)


@dataclass(frozen=True, eq=False)
class Sites:
    """Active sites with their features; made by :meth:`make`, :func:`sites_from_mask` or a convolution.

    Sites that one made of the other without a stride share a pattern, and so the tables of neighbours.
    """

    #: (M, C).
    feats: Tensor
    pattern: DevicePattern

    @staticmethod
    def make(
        coords: Any, feats: Tensor, shape: Sequence[int], batch: int | None = None, duplicates: str = "error"
    ) -> Sites:
        """Sites from coordinates, which are checked: that waits for a GPU once.

        Args:
            coords: integers [M, 1 + D], batch first; a tensor or an array of any integer dtype and memory order.
            feats: [M, C] float32 or float64.
            shape: spatial extents, 1 to 4.
            batch: number of samples; None: as many as the largest batch number says, at least 1.
            duplicates: "error", "first", "last", "sum" or "mean", see :func:`make_pattern`.

        Raises:
            TypeError: the features' dtype is not allowed.
            ValueError: an argument is not allowed, or coordinates are not whole numbers, out of range or repeated.
        """
        check_real("feats", feats)
        array = coords.detach().cpu().numpy() if isinstance(coords, Tensor) else np.asarray(coords)
        if feats.dim() != 2 or len(feats) != len(array):
            raise ValueError(f"feats has shape {arguments.text(feats.shape)}: expected [{len(array)}, C], a row a site")
        host, merged = site_patterns.make_pattern(array, shape, batch, duplicates)
        if merged.rows is not None:
            feats = feats.index_select(0, torch.from_numpy(merged.rows).to(feats.device))
        elif merged.group is not None:
            group = torch.from_numpy(merged.group).to(feats.device)
            feats = feats.new_zeros(host.sites, feats.shape[1]).index_add(0, group, feats)
            if merged.share is not None:
                feats = feats / torch.from_numpy(merged.share).to(feats)[:, None]
        pattern = DevicePattern(_tensor(host.coords).to(feats.device), host.shape, host.batch, host)
        return Sites(feats, pattern)

    @property
    def coords(self) -> Tensor:
        """int32 (M, 1 + D), (batch, spatial...)."""
        return self.pattern.coords

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial extents (D,)."""
        return self.pattern.shape

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.pattern.batch

    def with_feats(self, feats: Tensor) -> Sites:
        """The same sites with other features [M, C']; raises ValueError for another number of rows."""
        if feats.dim() != 2 or len(feats) != self.pattern.sites:
            raise ValueError(f"feats has shape {arguments.text(feats.shape)}: expected [{self.pattern.sites}, C]")
        return replace(self, feats=feats)


def sites_from_mask(x: Tensor, mask: Tensor, tol: float = 0.0) -> Sites:
    """The pixels [N, *shape] where the mask is above ``tol``, in raster order, with x's values [N, *shape, C] there.

    Raises:
        TypeError: a dtype is not allowed.
        ValueError: the shapes do not fit, or there are not 1 to 4 spatial axes; ``tol`` is NaN.
    """
    check_real("x", x)
    check_real("mask", mask, ("bool",))
    arguments.check_tolerance(tol)
    plain = mask.squeeze(-1) if mask.dim() == x.dim() and mask.shape[-1] == 1 else mask
    if plain.shape != x.shape[:-1] or not 3 <= x.dim() <= 6:
        shapes = f"mask has shape {arguments.text(mask.shape)} and x {arguments.text(x.shape)}"
        raise ValueError(f"{shapes}: expected [N, *shape] and [N, *shape, C] with 1 to 4 spatial axes")
    coords = (plain.float() > tol).nonzero().int()
    feats = x[tuple(coords.long().unbind(1))]
    return Sites(feats, DevicePattern(coords.contiguous(), tuple(x.shape[1:-1]), x.shape[0]))


def sites_from_points(
    points: Tensor,
    voxel: float | Sequence[float],
    feats: Tensor | None = None,
    *,
    batch: Tensor | None = None,
    origin: float | Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    duplicates: str = "mean",
) -> Sites:
    """The voxels that hold a point, as sites: floor((point - origin) / voxel), in every framework the same.

    Args:
        points: [P, D] coordinates in space, float32 or float64, 1 to 4 axes; on a GPU they are copied to the host once.
        voxel: edge of a voxel, one number or D.
        feats: [P, C]; None: a single 1, of the points' dtype.
        batch: integer [P], the sample of each point; None: one sample.
        origin: the corner of voxel 0, one number or D; None: the smallest coordinate along each axis.
        shape: spatial extents; None: as far as the points reach from the origin.
        duplicates: what to do with points in one voxel, see :meth:`Sites.make`.

    Returns:
        Sites in the order in which voxels first occur. No points give no sites, with a shape of ones unless given.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed; a point is not finite or outside.
    """
    check_real("points", points)
    sample = None if batch is None else batch.detach().cpu().numpy()
    found = voxels(points.detach().cpu().numpy(), voxel, sample, origin, shape)
    values = points.new_ones(len(points), 1) if feats is None else feats
    return Sites.make(found.coords, values, found.shape, duplicates=duplicates)


def to_dense(sites: Sites) -> Tensor:
    """The features in an image of zeros [N, *shape, C]."""
    image = sites.feats.new_zeros(sites.batch, *sites.shape, sites.feats.shape[1])
    return image.index_put(tuple(sites.coords.long().unbind(1)), sites.feats)


def subm_conv(
    sites: Sites,
    w: Tensor,
    *,
    bias: Tensor | None = None,
    dilation: Any = 1,
    groups: int = 1,
    version: str | Fused = "auto",
) -> Sites:
    """Submanifold convolution: the result is at the input's sites, in their order.

    Args:
        sites: the input.
        w: [k..., C / groups, K], one extent for each spatial axis; an even one reaches further back than ahead.
        bias: [K].
        dilation: one number or one for each axis.
        groups: the channels fall into so many groups, each with its own K / groups columns of w.
        version: "table" (windows as rows of a matrix), "rulebook" (one product for each tap), "dense" (on an image of
            zeros), "fused" (compiled: ``eqconv build-kernels``; with groups a call for each), or "auto".

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        Unavailable: version is "fused" and the kernels are not built.
    """
    feats, w, bias = _operands(sites, w, bias, groups)
    how = torch_fused.version_on(version, COMPOSITIONS, feats)
    around = Request(tuple(w.shape[:-2]), 1, 0, dilation, _settings(how, feats), sites.pattern.name)
    how = _composition(version, how, sites.pattern, around, False)
    if groups == 1:
        return sites.with_feats(_convolved(how, feats, w, bias, sites.pattern, around))
    columns = zip(feats.chunk(groups, 1), w.chunk(groups, -1), strict=True)
    made = torch.cat(
        [_convolved(how, x.contiguous(), part.contiguous(), None, sites.pattern, around) for x, part in columns], 1
    )
    return sites.with_feats(made if bias is None else made + bias)


def sparse_conv(
    sites: Sites,
    w: Tensor,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    bias: Tensor | None = None,
    version: str | Fused = "auto",
) -> Sites:
    """Strided sparse convolution: the result is at every site whose window holds an input site, sorted.

    Args:
        sites: the input.
        w: [k..., C, K].
        stride, padding, dilation: one number or one for each axis; the same padding in front and behind.
        bias: [K], added at the result's sites.
        version: as for :func:`subm_conv`.

    Raises:
        TypeError, ValueError, Unavailable: as for :func:`subm_conv`.
    """
    feats, w, bias = _operands(sites, w, bias, 1)
    how = torch_fused.version_on(version, COMPOSITIONS, feats)
    around = Request(tuple(w.shape[:-2]), stride, padding, dilation, _settings(how, feats), None)
    out = _strided(sites.pattern.name, *around)
    how = _composition(version, how, sites.pattern, around, False)
    return Sites(_convolved(how, feats, w, bias, sites.pattern, around._replace(out=out.name)), out)


def sparse_inverse_conv(
    sites: Sites, w: Tensor, paired: Sites, *, bias: Tensor | None = None, version: str | Fused = "auto"
) -> Sites:
    """The strided convolution's pairs the other way round: back to the sites that it was given.

    Args:
        sites: on the sites that ``sparse_conv(paired, ...)`` made.
        w: [k..., C, K] with the kernel size of that convolution.
        paired: the sites that it was given, or others on the same pattern.
        bias: [K].
        version: as for :func:`subm_conv`.

    Raises:
        TypeError, ValueError, Unavailable: as for :func:`subm_conv`; also sites that were not made from ``paired``.
    """
    feats, w, bias = _operands(sites, w, bias, 1)
    size = _kernel_size(paired.pattern.name, sites.pattern.name)
    if size is None:
        raise ValueError("sites were not made by a sparse_conv of paired: give the Sites that it was given")
    if tuple(w.shape[:-2]) != size:
        raise ValueError(f"w has the kernel size {tuple(w.shape[:-2])}: the paired convolution has {size}")
    how = torch_fused.version_on(version, COMPOSITIONS, feats)
    around = Request(size, 1, 0, 1, None, sites.pattern.name)
    how = _composition(version, how, paired.pattern, around, True)
    return paired.with_feats(_convolved(how, feats, w, bias, paired.pattern, around, backwards=True))


# Neighbours. They depend on the sites alone: a compiler need not follow how they are made.


class Request(NamedTuple):
    """Which neighbours of a pattern are meant; all but the last two as for :meth:`DevicePattern.strided`."""

    size: Sequence[int]
    stride: Any
    padding: Any
    dilation: Any
    settings: Fused | None
    #: The name of the output sites' pattern when it is known: of a submanifold convolution the input's.
    out: str | None

    def of(self, pattern: DevicePattern) -> Neighbours:
        """The neighbours."""
        if self.out == pattern.name:
            return pattern.submanifold(self.size, self.dilation, self.settings)
        found = None if self.out is None else pattern.made(_patterns[self.out])
        return found or pattern.strided(self.size, self.stride, self.padding, self.dilation, self.settings)


def _table(feats: Tensor, pattern: DevicePattern, inverse: bool, request: Request) -> Tensor:
    """int32 [M_out, taps], or the inverse [M_in, taps]; ``feats`` tell a compiler the device."""
    if not torch.compiler.is_compiling():
        around = request.of(pattern)
        return around.inverse if inverse else around.table
    dilation = [request.dilation] if isinstance(request.dilation, int) else list(request.dilation)
    core = "" if request.settings is None else request.settings.core or ""
    made: Tensor = _traced_table(
        feats.detach(), pattern.name, inverse, list(request.size), dilation, request.out or "", core
    )
    return made


@torch.library.custom_op("eqconv::site_neighbours", mutates_args=())
def _traced_table(
    feats: Tensor, pattern: str, inverse: bool, size: Sequence[int], dilation: Sequence[int], out: str, core: str
) -> Tensor:
    """What :func:`_table` is inside a compiled function, where the output sites have been made already."""
    settings = _settings(Fused(core="emulated") if core else "table", feats)
    each = tuple(dilation) if len(dilation) > 1 else dilation[0]
    # A copy, for a compiler may write into what an operator made.
    return _table(feats, _patterns[pattern], inverse, Request(tuple(size), 1, 0, each, settings, out)).clone()


@_traced_table.register_fake
def _(
    feats: Tensor, pattern: str, inverse: bool, size: Sequence[int], dilation: Sequence[int], out: str, core: str
) -> Tensor:
    taps = 1
    for extent in size:
        taps *= extent
    return feats.new_empty((_patterns[pattern if inverse else out].sites, taps), dtype=torch.int32)


@constant
def _strided(pattern: str, *request: Any) -> DevicePattern:
    return Request(*request).of(_patterns[pattern]).out


@constant
def _kernel_size(pattern: str, out: str) -> tuple[int, ...] | None:
    """That of the strided convolution that made ``out`` of ``pattern``, if one did."""
    around = _patterns[pattern].made(_patterns[out])
    return None if around is None else around.kernel.size


def _composition(
    version: str | Fused, how: str | Fused, pattern: DevicePattern, around: Request, backwards: bool
) -> str | Fused:
    """What to compute with: without the kernels "auto" is what the cost model says."""
    return how if version != "auto" or isinstance(how, Fused) else _cheapest(pattern.name, backwards, *around)


@constant
def _cheapest(pattern: str, backwards: bool, *request: Any) -> str:
    rulebook = Request(*request).of(_patterns[pattern]).rulebook
    return cost_model.choose_sites(rulebook.sizes(backwards), "torch", fused=False).version


# Ways to compute.


def _convolved(
    how: str | Fused,
    feats: Tensor,
    w: Tensor,
    bias: Tensor | None,
    pattern: DevicePattern,
    around: Request,
    backwards: bool = False,
) -> Tensor:
    """bias + the sum over the taps, [M_out, K]; ``backwards`` swaps input and output sites."""
    if isinstance(how, Fused):
        table = _table(feats, pattern, backwards, around)
        inverse = partial(_table, feats.detach(), pattern, not backwards, around)
        return torch_fused.table_convolution(feats, w, bias, table, inverse, False, how)
    if how == "dense":
        made = _by_image(feats, w, around.of(pattern), backwards)
    else:
        rows = _table(feats, pattern, backwards, around).long()
        made = (_by_table if how == "table" else _by_pairs)(feats, w.flatten(0, -3), rows)
    return made if bias is None else made + bias


def _by_table(feats: Tensor, w: Tensor, table: Tensor) -> Tensor:
    # The row behind the last stands for a missing neighbour.
    rows = torch.nn.functional.pad(feats, (0, 0, 0, 1))
    patches = rows.index_select(0, torch.where(table < 0, len(feats), table).flatten())
    kernel = w.flatten(0, 1)
    return patches.view(len(table), len(kernel)) @ kernel


def _by_pairs(feats: Tensor, w: Tensor, table: Tensor) -> Tensor:
    made = feats.new_zeros(len(table), w.shape[-1])
    for tap, kernel in enumerate(w):
        out = (table[:, tap] >= 0).nonzero().squeeze(1)
        made = made.index_add(0, out, feats.index_select(0, table[out, tap]) @ kernel)
    return made


def _by_image(feats: Tensor, w: Tensor, around: Neighbours, backwards: bool) -> Tensor:
    """A product over every place of the image for each tap, read at the output sites."""
    given, wanted = (around.out, around.source) if backwards else (around.source, around.out)
    image = to_dense(Sites(feats, given))
    made = image.new_zeros(wanted.batch, *wanted.shape, w.shape[-1])
    reach = [range(k) for k in around.kernel.size]
    for tap in np.ndindex(*(len(r) for r in reach)):
        inner, outer = _overlaps(tap, around)
        read, written = (outer, inner) if backwards else (inner, outer)
        made = _added(made, written, image[(slice(None), *read)] @ w[tap])
    return made[tuple(wanted.coords.long().unbind(1))]


def _added(image: Tensor, where: Sequence[slice], values: Tensor) -> Tensor:
    made = image.clone()
    made[(slice(None), *where)] += values
    return made


def _overlaps(tap: Sequence[int], around: Neighbours) -> tuple[list[slice], list[slice]]:
    """The input places that a tap reads inside of the image, and the output places that read them."""
    inner, outer = [], []
    kernel = around.kernel
    for axis, o in enumerate(tap):
        stride, shift = kernel.stride[axis], o * kernel.dilation[axis] - kernel.padding[axis]
        n, out = around.source.shape[axis], around.out.shape[axis]
        first = max(0, -(shift // stride))
        last = min(out - 1, (n - 1 - shift) // stride)
        number = max(0, last - first + 1)
        start = first * stride + shift if number else 0
        inner.append(slice(start, start + (number - 1) * stride + 1 if number else start, stride))
        outer.append(slice(first, first + number) if number else slice(0, 0))
    return inner, outer


# Arguments.


def _operands(sites: Sites, w: Tensor, bias: Tensor | None, groups: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, weights and bias in one dtype; raises TypeError or ValueError."""
    feats, w, bias = widened(sites.feats, w, bias)
    axes, channels = len(sites.shape), feats.shape[1]
    check_like("w", w, "feats", feats)
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups={groups!r}: a whole number of at least 1 is needed")
    if w.dim() != axes + 2 or 0 in w.shape[:-2]:
        raise ValueError(f"w has shape {arguments.text(w.shape)}: expected {axes} extents of at least 1, then C and K")
    if w.shape[-2] * groups != channels or w.shape[-1] % groups:
        raise ValueError(
            f"w has {w.shape[-2]} input and {w.shape[-1]} output channels, feats has {channels}: with groups={groups} "
            f"the first times groups must be feats's and the second a multiple of it"
        )
    if bias is not None:
        check_like("bias", bias, "feats", feats)
        arguments.check_vector("bias", bias.shape, w.shape[-1])
    return feats, w, bias


def _settings(how: str | Fused, feats: Tensor) -> Fused | None:
    """What the tables are made with: a composition on a GPU uses the kernels, too, where they are built."""
    if isinstance(how, Fused):
        return how
    usual = Fused()
    return usual if feats.device.type == "cuda" and not missing_operators(usual, "cuda") else None


def _tensor(array: Any) -> Tensor:
    """The array's memory, or a copy of what is read-only, of which PyTorch would warn."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
