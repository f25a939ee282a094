"""Sites whose coordinates are known only when a traced function runs: what ``site_patterns`` does, by the kernels.

The axes and the extents are known. What is wrong with coordinates shows as the function runs, as
``tf.errors.InvalidArgumentError``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import tensorflow as tf

from eqconv_cli.backends.block_sparse import arguments, tensorflow_fused
from eqconv_cli.backends.block_sparse.geometry import integer
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.site_patterns import (
    DUPLICATES,
    Kernel,
    checked_shape,
    kernel,
    out_shape,
    submanifold_kernel,
)
from eqconv_cli.backends.block_sparse.tensorflow_inputs import static
from eqconv_cli.frameworks.tensorflow_tensors import Extent, extent, is_symbolic
from eqconv_cli.kernels.tensorflow_doors import missing_operators


class TracedPattern:
    """Active sites without their features; unique and in range. Rulebooks are kept with it.

    Attributes:
        coords: int32 [M, 1 + D], (batch, spatial...).
        shape: spatial extents (D,).
        batch: number of samples.
    """

    def __init__(self, coords: tf.Tensor, shape: tuple[int, ...], batch: Extent) -> None:
        self.coords, self.shape, self.batch = coords, shape, batch
        self._rulebooks: dict[Any, TracedRulebook] = {}

    @property
    def sites(self) -> Extent:
        """M."""
        return extent(self.coords, 0)

    def submanifold(self, size: Sequence[int], dilation: Any = 1) -> TracedRulebook:
        """As :meth:`SitePattern.submanifold`."""
        k = submanifold_kernel(len(self.shape), size, dilation)
        return self._rulebook("submanifold", k, lambda: self)

    def strided(self, size: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> TracedRulebook:
        """As :meth:`SitePattern.strided`."""
        k = kernel(len(self.shape), size, stride, padding, dilation)

        def outputs() -> TracedPattern:
            shape = out_shape(self.shape, k)
            numbers = _geometry(self.shape, shape, k)
            return TracedPattern(
                tensorflow_fused.site_outputs(self.coords, self.batch, numbers, Fused()), shape, self.batch
            )

        return self._rulebook("strided", k, outputs)

    def made(self, out: object) -> TracedRulebook | None:
        """As :meth:`SitePattern.made`."""
        return next((r for (kind, *_), r in self._rulebooks.items() if kind == "strided" and r.out is out), None)

    def _rulebook(self, kind: str, k: Kernel, out: Callable[[], TracedPattern]) -> TracedRulebook:
        # A tensor that was made in a branch or a loop is of no use outside.
        key = (kind, k, tf.compat.v1.get_default_graph())
        if key not in self._rulebooks:
            self._rulebooks[key] = TracedRulebook(self, out(), k)
        return self._rulebooks[key]


class TracedRulebook:
    """Which input site is behind which tap of which output site.

    Attributes:
        source: the input sites.
        out: the output sites, of a submanifold convolution the same object.
        kernel: extents.
        table: int32 [M_out, taps], the input row or -1. Within one tap no row occurs twice.
    """

    def __init__(self, source: TracedPattern, out: TracedPattern, k: Kernel) -> None:
        self.source, self.out, self.kernel = source, out, k
        numbers = _geometry(source.shape, out.shape, k)
        table = tensorflow_fused.site_table(source.coords, out.coords, source.batch, numbers, Fused())
        self.table = tf.ensure_shape(table, [None, k.taps])

    @property
    def inverse(self) -> tf.Tensor:
        """int32 [M_in, taps]: the output row that reads input row i at tap t, or -1."""
        joined = tf.where(self.table >= 0)
        rows = tf.cast(tf.gather_nd(self.table, joined), tf.int64)
        nothing = tf.fill([self.source.sites, self.kernel.taps], -1)
        places = tf.stack([rows, joined[:, 1]], axis=1)
        return tf.tensor_scatter_nd_update(nothing, places, tf.cast(joined[:, 0], tf.int32))

    @property
    def pairs(self) -> list[tuple[tf.Tensor, tf.Tensor]]:
        """For each tap the input rows and the output rows that it joins, output rows ascending."""
        columns = tf.unstack(self.table, num=self.kernel.taps, axis=1)
        outputs = [tf.where(column >= 0)[:, 0] for column in columns]
        return [(tf.gather(column, out), out) for column, out in zip(columns, outputs, strict=True)]


def _geometry(shape: Sequence[int], out: Sequence[int], k: Kernel) -> list[int]:
    return [*shape, *out, *k.size, *k.stride, *k.padding, *k.dilation]


def make_traced_pattern(
    coords: Any, feats: tf.Tensor, shape: Sequence[int], batch: Extent | None, duplicates: str
) -> tuple[TracedPattern, tf.Tensor]:
    """A pattern and its features, see :meth:`Sites.make`.

    Raises:
        ValueError: an argument is not allowed; the kernels are not built, or XLA compiles the function.
        tf.errors.InvalidArgumentError: as the function runs: coordinates are out of range or, unless allowed, repeated.
    """
    if duplicates not in DUPLICATES:
        raise ValueError(f"duplicates={duplicates!r} is unknown: allowed: {', '.join(DUPLICATES)}")
    rows, extents = tf.convert_to_tensor(coords), checked_shape(shape)
    reasons = missing_operators(Fused(), rows.device)
    if reasons:
        raise ValueError(
            "coords is symbolic: give the sites as an array that is known when the function is traced, or let the "
            f"compiled kernels find them ({'; '.join(reasons)})"
        )
    if not rows.dtype.is_integer:
        raise ValueError(f"coords has dtype {rows.dtype.name}: whole numbers are needed")
    known = static("coords", rows)
    if len(known) != 2 or arguments.differ(known[1], 1 + len(extents)):
        raise ValueError(
            f"coords has shape {arguments.text(known)}: expected [M, {1 + len(extents)}], the batch and "
            f"{len(extents)} axes"
        )
    wide = tf.cast(rows, tf.int64)
    if batch is None:
        samples = tf.maximum(tf.reduce_max(wide[:, 0]) + 1, 1)
    else:
        samples = tf.cast(batch, tf.int64) if is_symbolic(batch) else integer(batch)
    limits = tf.stack([tf.cast(length, tf.int64) for length in (samples, *extents)])
    sound = [
        tf.debugging.assert_non_negative(wide, "coords has a number below 0"),
        tf.debugging.assert_less(wide, limits, "coords is outside batch and shape"),
        tf.debugging.assert_equal(tf.shape(feats)[0], tf.shape(rows)[0], "feats needs one row for each row of coords"),
    ]
    places = wide[:, 0]
    for axis, length in enumerate(extents, 1):
        places = places * length + wide[:, axis]
    unique, group = tf.unique(places, tf.int64)
    if duplicates == "error":
        sound.append(tf.debugging.assert_equal(tf.size(unique), tf.size(places), "coords has a site more than once"))
    with tf.control_dependencies(sound):
        plain = tf.ensure_shape(tf.cast(rows, tf.int32), [None, 1 + len(extents)])
        plain, feats = tf.identity(plain), tf.identity(feats)
    if duplicates == "error":
        return TracedPattern(plain, extents, samples), feats
    merged = _Merged(group, tf.size(unique, tf.int64))
    return TracedPattern(tf.gather(plain, merged.first), extents, samples), merged.of(feats, duplicates)


class _Merged:
    """What becomes of features when sites that occur more than once become one, which stays where it occurs first."""

    def __init__(self, group: tf.Tensor, groups: tf.Tensor) -> None:
        self._group, self._groups, self._every = group, groups, tf.range(tf.size(group, tf.int64))

    @cached_property
    def first(self) -> tf.Tensor:
        """The first row of each group."""
        return tf.math.unsorted_segment_min(self._every, self._group, self._groups)

    def of(self, feats: tf.Tensor, duplicates: str) -> tf.Tensor:
        if duplicates == "first":
            return tf.gather(feats, self.first)
        if duplicates == "last":
            return tf.gather(feats, tf.math.unsorted_segment_max(self._every, self._group, self._groups))
        summed = tf.math.unsorted_segment_sum(feats, self._group, self._groups)
        if duplicates == "sum":
            return summed
        ones = tf.ones_like(self._group, feats.dtype)
        return summed / tf.math.unsorted_segment_sum(ones, self._group, self._groups)[:, None]
