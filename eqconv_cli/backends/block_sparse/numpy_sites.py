"""Convolutions on sets of active sites in NumPy: submanifold, strided and inverse, with one to four spatial axes.

Graham, van der Maaten, "Submanifold Sparse Convolutional Networks" (arXiv 1706.01307).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.block_sparse import arguments, cost_model, numpy_fused
from eqconv_cli.backends.block_sparse.options import Fused, kernels_or
from eqconv_cli.backends.block_sparse.site_patterns import Kernel, Merged, Rulebook, SitePattern, make_pattern
from eqconv_cli.backends.block_sparse.voxels import voxels

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int32]

#: "table" gathers all neighbours of a site into one row, "rulebook" goes tap by tap, "dense" fills a whole grid.
COMPOSITIONS = ("rulebook", "table", "dense")


@dataclass(frozen=True)
class Sites:
    """Active sites and their features.

    Attributes:
        pattern: the sites; all features on the same sites share it, and with it the rulebooks.
        feats: [M, C].
    """

    pattern: SitePattern
    feats: Array

    @classmethod
    def make(
        cls, coords: Array, feats: Array, shape: Sequence[int], batch: int | None = None, duplicates: str = "error"
    ) -> Sites:
        """Sites from coordinates.

        Args:
            coords: integers [M, 1 + D], (batch, spatial...); any integer dtype and memory order.
            feats: [M, C] float32 or float64.
            shape: spatial extents, D = 1 to 4 of them.
            batch: number of samples; None: as many as the largest batch number says.
            duplicates: what to do with a site that is there more than once: "error", or keep the "first" or "last"
                features, or their "sum" or "mean".

        Raises:
            TypeError: a dtype of features that is not allowed.
            ValueError: coordinates are not whole numbers, out of range or repeated; not as many features as sites.
        """
        arguments.check_float("feats", str(feats.dtype))
        if feats.ndim != 2 or len(feats) != len(coords):
            raise ValueError(
                f"feats has shape {arguments.text(feats.shape)}: expected [{len(coords)}, C], as coords has"
            )
        pattern, merged = make_pattern(coords, shape, batch, duplicates)
        return cls(pattern, _merged(feats, merged, pattern.sites))

    @property
    def coords(self) -> Ints:
        """int32 [M, 1 + D], (batch, spatial...)."""
        return self.pattern.coords

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial extents."""
        return self.pattern.shape

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.pattern.batch

    def with_feats(self, feats: Array) -> Sites:
        """Other features [M, C'] on the same sites."""
        if feats.ndim != 2 or len(feats) != self.pattern.sites:
            raise ValueError(f"feats has shape {arguments.text(feats.shape)}: expected [{self.pattern.sites}, C]")
        return Sites(self.pattern, feats)


def sites_from_mask(x: Array, mask: Array, tol: float = 0.0) -> Sites:
    """The pixels whose mask is above ``tol``, as sites.

    Args:
        x: [N, *spatial, C], 1 to 4 spatial axes.
        mask: [N, *spatial] or [N, *spatial, 1], float32, float64 or bool.
        tol: a value equal to it does not count.

    Raises:
        TypeError, ValueError: a dtype or a shape is not allowed.
    """
    arguments.check_tolerance(tol)
    if mask.dtype != bool:
        arguments.check_float("mask", str(mask.dtype), ("bool",))
    if mask.shape not in (x.shape[:-1], (*x.shape[:-1], 1)):
        raise ValueError(f"mask has shape {arguments.text(mask.shape)} but x has {arguments.text(x.shape)}")
    active = mask.reshape(x.shape[:-1]).astype(np.float32) > np.float32(tol)
    return Sites.make(np.argwhere(active), x[active], x.shape[1:-1], x.shape[0])


def sites_from_points(
    points: Array,
    voxel: float | Sequence[float],
    feats: Array | None = None,
    *,
    batch: Array | None = None,
    origin: float | Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    duplicates: str = "mean",
) -> Sites:
    """The voxels that hold a point, as sites: floor((point - origin) / voxel), in every framework the same.

    Args:
        points: [P, D] coordinates in space, float32 or float64, 1 to 4 axes; any memory order.
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
    found = voxels(points, voxel, batch, origin, shape)
    values = np.ones((len(points), 1), points.dtype) if feats is None else feats
    return Sites.make(found.coords, values, found.shape, duplicates=duplicates)


def to_dense(sites: Sites) -> Array:
    """The features as an image [N, *shape, C], 0 where there is no site."""
    return _grid(sites.pattern, sites.feats)


def subm_conv(
    sites: Sites,
    w: Array,
    *,
    bias: Array | None = None,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    version: str | Fused = "auto",
) -> Sites:
    """Submanifold convolution: the dense convolution of the zero-filled image, at the active sites only.

    Args:
        sites: M sites with C features.
        w: [k..., C / groups, K]; an even extent's window starts k // 2 before the site.
        bias: [K] or None.
        dilation: one number or D.
        groups: channels and filters in as many independent parts.
        version: "rulebook", "table", "dense", "fused" (``eqconv build-kernels``), or "auto".

    Returns:
        The same sites with K features.

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        Unavailable: version is "fused" and the kernels are not built.
    """
    _check(sites, w, bias, groups)
    book = sites.pattern.submanifold(w.shape[:-2], dilation)
    return sites.with_feats(_convolved(sites.feats, w, bias, groups, Direction(book, False), version))


def subm_conv_gradients(
    dy: Array,
    sites: Sites,
    w: Array,
    *,
    bias: Array | None = None,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    version: str | Fused = "auto",
) -> dict[str, Array]:
    """The gradients of ``feats``, ``w`` and, if it is given, ``bias`` from those of the result's features [M, K].

    Args, Raises: as for :func:`subm_conv`. Every composition has the same gradient, which is computed tap by tap.
    """
    _check(sites, w, bias, groups)
    book = sites.pattern.submanifold(w.shape[:-2], dilation)
    return _gradients(dy, sites.feats, w, bias, groups, Direction(book, False), version)


def sparse_conv(
    sites: Sites,
    w: Array,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    bias: Array | None = None,
    version: str | Fused = "auto",
) -> Sites:
    """Strided sparse convolution: active is every output whose window holds an active input.

    Args:
        sites: M sites with C features.
        w: [k..., C, K].
        stride, padding, dilation: one number or D; padding on both ends of each axis.
        bias: [K] or None, added at active outputs.
        version: as for :func:`subm_conv`.

    Returns:
        The active outputs, sorted by sample and position, with K features; their pattern is the same object every time.

    Raises:
        TypeError, ValueError, Unavailable: as for :func:`subm_conv`; also a kernel that does not fit the padded extent.
    """
    _check(sites, w, bias, 1)
    book = sites.pattern.strided(w.shape[:-2], stride, padding, dilation)
    return Sites(book.out, _convolved(sites.feats, w, bias, 1, Direction(book, False), version))


def sparse_conv_gradients(
    dy: Array,
    sites: Sites,
    w: Array,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    bias: Array | None = None,
    version: str | Fused = "auto",
) -> dict[str, Array]:
    """The gradients as of :func:`subm_conv_gradients`; args as for the convolution."""
    _check(sites, w, bias, 1)
    book = sites.pattern.strided(w.shape[:-2], stride, padding, dilation)
    return _gradients(dy, sites.feats, w, bias, 1, Direction(book, False), version)


def sparse_inverse_conv(
    sites: Sites, w: Array, paired: Sites, *, bias: Array | None = None, version: str | Fused = "auto"
) -> Sites:
    """From the outputs of a strided convolution back to its inputs' sites, along the same pairs.

    Args:
        sites: M_out sites that ``sparse_conv`` made, with C features.
        w: [k..., C, K], the kernel's extents as in that convolution.
        paired: the sites that it was given.
        bias: [K] or None.
        version: as for :func:`subm_conv`.

    Returns:
        The sites of ``paired`` with K features.

    Raises:
        TypeError, ValueError, Unavailable: as for :func:`subm_conv`; also sites that no convolution made of ``paired``.
    """
    _check(sites, w, bias, 1)
    back = Direction(_paired(sites, w, paired), True)
    return Sites(paired.pattern, _convolved(sites.feats, w, bias, 1, back, version))


def sparse_inverse_conv_gradients(
    dy: Array, sites: Sites, w: Array, paired: Sites, *, bias: Array | None = None, version: str | Fused = "auto"
) -> dict[str, Array]:
    """The gradients as of :func:`subm_conv_gradients`; args as for the convolution."""
    _check(sites, w, bias, 1)
    return _gradients(dy, sites.feats, w, bias, 1, Direction(_paired(sites, w, paired), True), version)


# Both directions along a rulebook.


@dataclass(frozen=True)
class Direction:
    """A rulebook read from its input sites to its output sites, or back."""

    book: Rulebook
    back: bool

    @property
    def source(self) -> SitePattern:
        """Where the features come from."""
        return self.book.out if self.back else self.book.source

    @property
    def target(self) -> SitePattern:
        """Where they go."""
        return self.book.source if self.back else self.book.out

    @property
    def table(self) -> Ints:
        """int32 [target sites, taps], the row of the source or -1."""
        return self.book.inverse if self.back else self.book.table

    @property
    def inverse(self) -> Ints:
        """int32 [source sites, taps], the row of the target or -1."""
        return self.book.table if self.back else self.book.inverse

    @property
    def pairs(self) -> list[tuple[Ints, Ints]]:
        """For each tap the rows of the source and of the target."""
        return [(out, rows) if self.back else (rows, out) for rows, out in self.book.pairs]


def _convolved(feats: Array, w: Array, bias: Array | None, groups: int, way: Direction, version: str | Fused) -> Array:
    """bias + Σ_taps feats w, [target sites, K]."""
    how = kernels_or(version, COMPOSITIONS, numpy_fused.missing)
    if version == "auto" and not isinstance(how, Fused):
        how = cost_model.choose_sites(way.book.sizes(way.back), "numpy", fused=False).version
    x, taps = np.ascontiguousarray(feats), np.ascontiguousarray(w).reshape(-1, *w.shape[-2:])
    parts = []
    for channels, columns in _groups(w, groups):
        part, kernel = np.ascontiguousarray(x[:, channels]), np.ascontiguousarray(taps[..., columns])
        if isinstance(how, Fused):
            offset = None if bias is None else np.ascontiguousarray(bias[columns])
            sites = numpy_fused.TableSites(len(x), way.table)
            y = np.empty((way.target.sites, kernel.shape[2]), x.dtype)
            parts.append(numpy_fused.site_forward(part, kernel, offset, sites, False, y, how))
        else:
            y = _ROUTES[how](part, kernel, way)
            parts.append(y if bias is None else y + bias[columns])
    return parts[0] if groups == 1 else np.concatenate(parts, 1)


def _gradients(
    dy: Array, feats: Array, w: Array, bias: Array | None, groups: int, way: Direction, version: str | Fused
) -> dict[str, Array]:
    arguments.check_same_dtype("dy", str(dy.dtype), "feats", str(feats.dtype))
    if dy.shape != (way.target.sites, w.shape[-1]):
        raise ValueError(
            f"dy has shape {arguments.text(dy.shape)}: expected {arguments.text((way.target.sites, w.shape[-1]))}"
        )
    how = kernels_or(version, COMPOSITIONS, numpy_fused.missing)
    taps = np.ascontiguousarray(w).reshape(-1, *w.shape[-2:])
    dx, dw = np.zeros_like(feats), np.zeros_like(taps)
    for channels, columns in _groups(w, groups):
        part, g = np.ascontiguousarray(feats[:, channels]), np.ascontiguousarray(dy[:, columns])
        kernel = np.ascontiguousarray(taps[..., columns])
        if isinstance(how, Fused):
            sites = numpy_fused.TableSites(len(part), way.table, way.inverse)
            dx[:, channels], dw[..., columns], _ = numpy_fused.site_backward(g, part, kernel, None, sites, how)
        else:
            for tap, (rows, out) in enumerate(way.pairs):
                dx[rows, channels] += g[out] @ kernel[tap].T
                dw[tap][:, columns] = part[rows].T @ g[out]
    found = {"feats": dx, "w": dw.reshape(w.shape)}
    return found if bias is None else {**found, "bias": dy.sum(0)}


def _by_rulebook(x: Array, taps: Array, way: Direction) -> Array:
    y = np.zeros((way.target.sites, taps.shape[2]), x.dtype)
    for (rows, out), tap in zip(way.pairs, taps, strict=True):
        y[out] += x[rows] @ tap
    return y


def _by_table(x: Array, taps: Array, way: Direction) -> Array:
    # The row behind the last stands for a site that there is not.
    padded = np.concatenate([x, np.zeros((1, x.shape[1]), x.dtype)])
    return padded[way.table].reshape(way.target.sites, taps.shape[0] * taps.shape[1]) @ taps.reshape(-1, taps.shape[2])


def _by_grid(x: Array, taps: Array, way: Direction) -> Array:
    k = way.book.kernel
    fine, coarse = way.book.source.shape, way.book.out.shape
    around = [
        (p, (n - 1) * s + (size - 1) * d + 1)
        for p, n, s, size, d in zip(k.padding, coarse, k.stride, k.size, k.dilation, strict=True)
    ]
    # As large as the padded image and as the windows' reach, whichever is more.
    extents = [max(reach, p + n) for (p, reach), n in zip(around, fine, strict=True)]
    inner = (slice(None), *(slice(p, p + n) for (p, _), n in zip(around, fine, strict=True)))
    padded = np.zeros((way.book.source.batch, *extents, taps.shape[2] if way.back else x.shape[1]), x.dtype)
    windows = [_window(padded, offset, k, coarse) for offset in k.offsets().tolist()]
    if way.back:
        dense = _grid(way.source, x)
        for view, tap in zip(windows, taps, strict=True):
            view += dense @ tap
        return padded[inner][tuple(way.target.coords.T)]
    padded[inner] = _grid(way.source, x)
    dense = np.zeros((way.target.batch, *coarse, taps.shape[2]), x.dtype)
    for view, tap in zip(windows, taps, strict=True):
        dense += view @ tap
    return dense[tuple(way.target.coords.T)]


_ROUTES: dict[str, Callable[[Array, Array, Direction], Array]] = {
    "rulebook": _by_rulebook,
    "table": _by_table,
    "dense": _by_grid,
}


def _window(padded: Array, offset: Sequence[int], k: Kernel, out: Sequence[int]) -> Array:
    """What a tap sees from each output: a view."""
    spans = (slice(o, o + s * (n - 1) + 1, s) for o, s, n in zip(offset, k.stride, out, strict=True))
    return padded[(slice(None), *spans)]


def _grid(pattern: SitePattern, feats: Array) -> Array:
    dense = np.zeros((pattern.batch, *pattern.shape, feats.shape[1]), feats.dtype)
    dense[tuple(pattern.coords.T)] = feats
    return dense


def _groups(w: Array, groups: int) -> list[tuple[slice, slice]]:
    """The input channels and the output columns of each group."""
    channels, columns = w.shape[-2], w.shape[-1] // groups
    return [(slice(g * channels, (g + 1) * channels), slice(g * columns, (g + 1) * columns)) for g in range(groups)]


def _merged(feats: Array, merged: Merged, sites: int) -> Array:
    """Features of the unique sites."""
    if merged.rows is not None:
        return feats[merged.rows]
    if merged.group is None:
        return np.ascontiguousarray(feats)
    total = np.zeros((sites, feats.shape[1]), feats.dtype)
    np.add.at(total, merged.group, feats)
    return total if merged.share is None else total / merged.share[:, None].astype(feats.dtype)


def _check(sites: Sites, w: Array, bias: Array | None, groups: int) -> None:
    channels = sites.feats.shape[1]
    arguments.check_site_kernel(w.shape, channels, len(sites.shape), groups)
    arguments.check_same_dtype("w", str(w.dtype), "feats", str(sites.feats.dtype))
    if bias is not None:
        arguments.check_vector("bias", bias.shape, w.shape[-1])
        arguments.check_same_dtype("bias", str(bias.dtype), "feats", str(sites.feats.dtype))


def _paired(sites: Sites, w: Array, paired: Sites) -> Rulebook:
    book = paired.pattern.made(sites.pattern)
    if book is None:
        raise ValueError("paired are not the sites that sparse_conv made these sites of: the two have no rulebook")
    if book.kernel.size != w.shape[:-2]:
        raise ValueError(f"w has the extents {w.shape[:-2]} but the paired convolution has {book.kernel.size}")
    return book
