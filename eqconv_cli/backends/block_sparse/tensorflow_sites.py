"""Convolutions on sets of active sites in TensorFlow: submanifold, strided, and the inverse of a strided one.

Graham, van der Maaten, "Submanifold Sparse Convolutional Networks", arXiv 1706.01307; facebookresearch/SparseConvNet
``SCN/Metadata``; traveller59/spconv. 1 to 4 spatial axes. Features need not be known when a function is traced,
and with the compiled kernels coordinates need not be either. Gradients by the tape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import tensorflow as tf

from eqconv_cli.backends.block_sparse import arguments, cost_model, tensorflow_fused
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.site_patterns import Kernel, Rulebook, SitePattern, make_pattern
from eqconv_cli.backends.block_sparse.tensorflow_inputs import image, plain_mask, real, static
from eqconv_cli.backends.block_sparse.tensorflow_neighbours import take_or_zero
from eqconv_cli.backends.block_sparse.tensorflow_ops import how_of
from eqconv_cli.backends.block_sparse.tensorflow_site_patterns import (
    TracedPattern,
    TracedRulebook,
    make_traced_pattern,
)
from eqconv_cli.backends.block_sparse.voxels import voxels
from eqconv_cli.frameworks.tensorflow_tensors import Extent, extent, is_symbolic

COMPOSITIONS = ("table", "rulebook", "dense")
AnyRulebook = Rulebook | TracedRulebook


class Sites:
    """Active sites with their features; rulebooks are kept with the coordinates and shared by all features on them.

    Attributes:
        pattern: the coordinates, in host memory, or symbolic in a traced function.
        feats: [M, C] float32 or float64.
    """

    def __init__(self, pattern: SitePattern | TracedPattern, feats: tf.Tensor) -> None:
        self.pattern, self.feats = pattern, feats

    @classmethod
    def make(
        cls, coords: Any, feats: Any, shape: Sequence[int], batch: int | None = None, duplicates: str = "error"
    ) -> Sites:
        """Sites from coordinates as a user has them.

        Args:
            coords: integers [M, 1 + D], batch first; symbolic in a traced function where the kernels are built.
            feats: [M, C] float32 or float64.
            shape: spatial extents, 1 to 4.
            batch: number of samples; None: as many as the largest batch number says.
            duplicates: what to do with sites that occur more than once: "error", "first", "last", "sum", "mean".

        Raises:
            TypeError: a dtype of the features is not allowed.
            ValueError: an argument is not allowed; coordinates are not whole numbers, out of range or, unless allowed,
                repeated; they are symbolic and the kernels are not built.
            tf.errors.InvalidArgumentError: as a traced function runs: symbolic coordinates are out of range or
                repeated.
        """
        tensor = real("feats", feats)
        known = static("feats", tensor)
        if is_symbolic(coords):
            if len(known) != 2:
                raise ValueError(f"feats has shape {arguments.text(known)}: expected [M, C] with the rows of coords")
            return cls(*make_traced_pattern(coords, tensor, shape, batch, duplicates))
        rows = np.asarray(coords)
        if len(known) != 2 or arguments.differ(known[0], len(rows)):
            raise ValueError(
                f"feats has shape {arguments.text(known)}: expected [M, C] with the {len(rows)} rows of coords"
            )
        pattern, merged = make_pattern(rows, shape, batch, duplicates)
        if merged.rows is not None:
            tensor = tf.gather(tensor, merged.rows)
        if merged.group is not None:
            tensor = tf.math.unsorted_segment_sum(tensor, merged.group, pattern.sites)
        if merged.share is not None:
            tensor /= tf.constant(merged.share[:, None], tensor.dtype)
        return cls(pattern, tensor)

    def with_feats(self, feats: Any) -> Sites:
        """Other features [M, C] on the same sites; raises TypeError or ValueError."""
        tensor = real("feats", feats)
        known, sites = static("feats", tensor), self.pattern.sites
        if is_symbolic(sites):
            sites = None
        if len(known) != 2 or arguments.differ(known[0], sites):
            raise ValueError(f"feats has shape {arguments.text(known)}: expected [M, C] with the {sites or ''} sites")
        return Sites(self.pattern, tensor)

    @property
    def coords(self) -> tf.Tensor:
        """int32 [M, 1 + D], batch first."""
        return tf.convert_to_tensor(self.pattern.coords)

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial extents."""
        return self.pattern.shape

    @property
    def batch(self) -> Extent:
        """Number of samples."""
        return self.pattern.batch


def sites_from_mask(x: Any, mask: Any, tol: float = 0.0) -> Sites:
    """The pixels of an image where a mask is above ``tol``.

    Args:
        x: [N, H, W, C] float32 or float64.
        mask: [N, H, W] or [N, H, W, 1]; symbolic in a traced function where the kernels are built.
        tol: a value equal to it does not count.

    Raises:
        TypeError, ValueError: a dtype or a shape is not allowed; height or width is unknown; ``tol`` is NaN; the mask
            is symbolic and the kernels are not built.
    """
    arguments.check_tolerance(tol)
    plain = image("x", x)
    active = tf.cast(plain_mask(mask, plain), tf.float32) > tol
    if None in plain.shape[1:3]:
        raise ValueError(f"x has shape {arguments.text(static('x', plain))}: height and width must be known")
    coords = tf.where(active) if is_symbolic(active) else np.argwhere(active.numpy())
    return Sites.make(coords, tf.gather_nd(plain, coords), plain.shape[1:3], extent(plain, 0))


def sites_from_points(
    points: Any,
    voxel: float | Sequence[float],
    feats: Any = None,
    *,
    batch: Any = None,
    origin: float | Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
    duplicates: str = "mean",
) -> Sites:
    """The voxels that hold a point, as sites: floor((point - origin) / voxel), in every framework the same.

    Args:
        points: [P, D] coordinates in space, float32 or float64, 1 to 4 axes; known when a function is traced.
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
    tensor = real("points", points)
    if is_symbolic(tensor):
        raise ValueError("points is symbolic: give positions that are known when the function is traced")
    array = tensor.numpy()
    found = voxels(array, voxel, batch, origin, shape)
    values = tf.ones([len(array), 1], array.dtype) if feats is None else feats
    return Sites.make(found.coords, values, found.shape, duplicates=duplicates)


def to_dense(sites: Sites) -> tf.Tensor:
    """The image [N, *shape, C] that is 0 where there is no site."""
    shape = [sites.batch, *sites.shape, extent(sites.feats, 1)]
    return tf.tensor_scatter_nd_update(tf.zeros(shape, sites.feats.dtype), sites.coords, sites.feats)


def subm_conv(
    sites: Sites, w: Any, *, bias: Any = None, dilation: Any = 1, groups: int = 1, version: str | Fused = "auto"
) -> Sites:
    """Submanifold convolution: from the sites to the same sites; what is no site counts as 0.

    Args:
        sites: the input.
        w: [k..., C / groups, K]; an even extent starts k // 2 before the site.
        bias: [K] or None.
        dilation: one number or one for each axis.
        groups: of channels, each with its own K / groups filters.
        version: "dense" convolves the dense image; "rulebook" gathers, multiplies and adds up tap by tap; "table"
            gathers all neighbours at once; "fused" is the compiled kernel; "auto" takes that where it is built, else
            what :func:`cost_model.choose_sites` finds cheapest.

    Returns:
        Sites with features [M, K].

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        Unavailable: version is "fused" and the kernels are not built.
    """
    kernel, bias = _operands(sites, w, bias, groups)
    rulebook = sites.pattern.submanifold(kernel.shape[:-2], dilation)
    return _computed(sites, kernel, bias, rulebook, False, groups, version)


def sparse_conv(
    sites: Sites,
    w: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    bias: Any = None,
    version: str | Fused = "auto",
) -> Sites:
    """Strided sparse convolution: to every site with an input site in its window.

    Args:
        sites: the input.
        w: [k..., C, K].
        stride, padding, dilation: one number or one for each axis.
        bias: [K] or None; added at the output sites only.
        version: as for :func:`subm_conv`.

    Returns:
        Sites in raster order, of extents (n + 2 p - d (k - 1) - 1) // s + 1.

    Raises:
        TypeError, ValueError, Unavailable: as for :func:`subm_conv`; also a kernel wider than the padded extent.
    """
    kernel, bias = _operands(sites, w, bias, 1)
    rulebook = sites.pattern.strided(kernel.shape[:-2], stride, padding, dilation)
    return _computed(sites, kernel, bias, rulebook, False, 1, version)


def sparse_inverse_conv(
    sites: Sites, w: Any, paired: Sites, *, bias: Any = None, version: str | Fused = "auto"
) -> Sites:
    """The inverse of a strided convolution: from the sites that it made back to the sites that it was given.

    Args:
        sites: what :func:`sparse_conv` returned, possibly with other features.
        w: [k..., C, K] with the k of that convolution; input and output of every tap are exchanged.
        paired: the sites that it was given.
        bias: [K] or None.
        version: as for :func:`subm_conv`.

    Returns:
        Sites with features [M, K] on the coordinates of ``paired``.

    Raises:
        TypeError, ValueError, Unavailable: as for :func:`subm_conv`; also sites that no convolution of ``paired`` made.
    """
    kernel, bias = _operands(sites, w, bias, 1)
    rulebook = paired.pattern.made(sites.pattern)
    if rulebook is None:
        raise ValueError("paired is not what a sparse_conv was given that made these sites: give its input")
    if tuple(kernel.shape[:-2]) != rulebook.kernel.size:
        raise ValueError(
            f"w has shape {arguments.text(static('w', kernel))}: the paired convolution has a kernel of "
            f"{rulebook.kernel.size}"
        )
    return _computed(sites, kernel, bias, rulebook, True, 1, version)


# What they share.


def _operands(sites: Sites, w: Any, bias: Any, groups: int) -> tuple[tf.Tensor, tf.Tensor | None]:
    kernel = real("w", w, sites.feats, "feats")
    shape, channels = static("w", kernel), sites.feats.shape[1]
    if len(shape) != len(sites.shape) + 2:
        raise ValueError(
            f"w has shape {arguments.text(shape)}: expected {len(sites.shape)} kernel extents, then [C / groups, K]"
        )
    if None in shape[:-2] or 0 in shape[:-2]:
        raise ValueError(f"w has shape {arguments.text(shape)}: kernel extents must be known and at least 1")
    if groups < 1 or (channels or 0) % groups or (shape[-1] or 0) % groups:
        raise ValueError(f"groups={groups}: must divide the {channels} channels and the {shape[-1]} filters")
    if channels is not None and arguments.differ(shape[-2], channels // groups):
        raise ValueError(f"w has {shape[-2]} input channels: expected {channels // groups}, feats has {channels}")
    if bias is not None:
        bias = real("bias", bias, sites.feats, "feats")
        arguments.check_vector("bias", static("bias", bias), shape[-1])
    return kernel, bias


def _computed(
    sites: Sites,
    kernel: tf.Tensor,
    bias: tf.Tensor | None,
    rulebook: AnyRulebook,
    inverse: bool,
    groups: int,
    version: str | Fused,
) -> Sites:
    out = rulebook.source if inverse else rulebook.out
    how = how_of(version, sites.feats, COMPOSITIONS)
    if version == "auto" and isinstance(rulebook, Rulebook) and not isinstance(how, Fused):
        how = cost_model.choose_sites(rulebook.sizes(inverse), "tensorflow", fused=False).version
    parts = []
    for feats, filters in zip(_split(sites.feats, groups), _split(kernel, groups), strict=True):
        if isinstance(how, Fused):
            table, back = _tables(rulebook, inverse, feats)
            parts.append(tensorflow_fused.table_convolution(feats, filters, None, table, back, how))
        else:
            parts.append(_ROUTES[how](feats, filters, rulebook, inverse))
    made = parts[0] if groups == 1 else tf.concat(parts, axis=1)
    return Sites(out, made if bias is None else made + bias)


def _split(tensor: tf.Tensor, groups: int) -> list[tf.Tensor]:
    return [tensor] if groups == 1 else tf.split(tensor, groups, axis=-1)


def _names(inverse: bool) -> tuple[str, str]:
    """Which of a rulebook's tables names the neighbours, and which who reads a row."""
    return ("inverse", "table") if inverse else ("table", "inverse")


def _tables(rulebook: AnyRulebook, inverse: bool, like: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
    """The neighbours of every output row, and who reads every input row if that is known."""
    if isinstance(rulebook, TracedRulebook) and not inverse:
        return rulebook.table, None
    table, back = (_table(rulebook, name, like) for name in _names(inverse))
    return table, back


def _table(rulebook: AnyRulebook, name: Any, like: tf.Tensor) -> tf.Tensor:
    """A table of the rulebook as a tensor, made once for each device."""
    if isinstance(rulebook, TracedRulebook):
        return getattr(rulebook, name)
    device = like.device or ""

    def convert(table: Any) -> tf.Tensor:
        # Outside any function that is being traced: the tensor outlives it.
        with tf.init_scope(), tf.device(device or None):
            return tf.constant(table)

    return rulebook.converted(name, ("tensorflow", device), convert)


# The routes.


def _by_table(feats: tf.Tensor, kernel: tf.Tensor, rulebook: AnyRulebook, inverse: bool) -> tf.Tensor:
    table = _table(rulebook, _names(inverse)[0], feats)
    matrix = tf.reshape(kernel, [-1, extent(kernel, -1)])
    if feats.shape[0] in (0, None):
        # Even where nothing is taken there must be a row to take.
        feats = tf.pad(feats, [[0, 1], [0, 0]])
    neighbours = take_or_zero(feats, tf.maximum(table, 0), table >= 0)
    return tf.reshape(neighbours, [-1, extent(matrix, 0)]) @ matrix


def _by_rulebook(feats: tf.Tensor, kernel: tf.Tensor, rulebook: AnyRulebook, inverse: bool) -> tf.Tensor:
    out = rulebook.source if inverse else rulebook.out
    made = tf.zeros([out.sites, extent(kernel, -1)], feats.dtype)
    matrices = tf.reshape(kernel, [rulebook.kernel.taps, *kernel.shape[-2:]])
    for tap, (rows, outputs) in enumerate(rulebook.pairs):
        read, written = (outputs, rows) if inverse else (rows, outputs)
        made = tf.tensor_scatter_nd_add(made, written[:, None], tf.gather(feats, read) @ matrices[tap])
    return made


def _by_dense(feats: tf.Tensor, kernel: tf.Tensor, rulebook: AnyRulebook, inverse: bool) -> tf.Tensor:
    k = rulebook.kernel
    if not inverse:
        y = _convolved(to_dense(Sites(rulebook.source, feats)), kernel, k, rulebook)
        return tf.gather_nd(y, rulebook.out.coords)
    # The inverse is the transpose of the convolution that has input and output channels exchanged.
    shape = [rulebook.source.batch, *rulebook.source.shape, extent(kernel, -1)]
    axes = range(kernel.shape.rank)
    swapped = tf.transpose(kernel, [*axes[:-2], axes[-1], axes[-2]])
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        image_x = tf.zeros(shape, feats.dtype)
        tape.watch(image_x)
        y = _convolved(image_x, swapped, k, rulebook)
    back = tape.gradient(y, image_x, output_gradients=to_dense(Sites(rulebook.out, feats)))
    return tf.gather_nd(back, rulebook.source.coords)


def _convolved(x: tf.Tensor, kernel: tf.Tensor, k: Kernel, rulebook: AnyRulebook) -> tf.Tensor:
    """The dense convolution of [N, *shape, C], by TensorFlow's own where it has one, else tap by tap."""
    out = rulebook.out.shape
    behind = [
        max((n - 1) * s + d * (size - 1) + 1 - length - p, 0)
        for n, s, d, size, length, p in zip(
            out, k.stride, k.dilation, k.size, rulebook.source.shape, k.padding, strict=True
        )
    ]
    padded = tf.pad(x, [[0, 0], *zip(k.padding, behind, strict=True), [0, 0]])
    # No gradient on the CPU for dilated kernels, and no convolution over four axes.
    if len(out) <= 3 and set(k.dilation) == {1}:
        # The eager gradient of three axes needs the layout by its name.
        layout = ("NWC", "NHWC", "NDHWC")[len(out) - 1]
        y = tf.nn.convolution(padded, kernel, strides=k.stride, padding="VALID", data_format=layout)
        return y[(slice(None), *(slice(0, n) for n in out))]
    matrices = tf.reshape(kernel, [k.taps, *kernel.shape[-2:]])
    made = None
    for tap, at in enumerate(product(*map(range, k.size))):
        window = [
            slice(place * d, place * d + (n - 1) * s + 1, s)
            for place, d, n, s in zip(at, k.dilation, out, k.stride, strict=True)
        ]
        term = tf.linalg.matmul(padded[(slice(None), *window)], matrices[tap])
        made = term if made is None else made + term
    return made


_ROUTES: dict[str, Callable[[tf.Tensor, tf.Tensor, AnyRulebook, bool], tf.Tensor]] = {
    "table": _by_table,
    "rulebook": _by_rulebook,
    "dense": _by_dense,
}
