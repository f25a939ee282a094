"""Points in space as cells of a grid, the same ones in every framework. Plain NumPy in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.block_sparse import arguments
from eqconv_cli.backends.block_sparse.site_patterns import checked_shape


class Voxels(NamedTuple):
    """The cell of each point."""

    #: int64 [P, 1 + D], (sample, cell...).
    coords: npt.NDArray[np.int64]
    #: Spatial extents.
    shape: tuple[int, ...]


def voxels(
    points: npt.NDArray[Any],
    voxel: float | Sequence[float],
    batch: Any = None,
    origin: float | Sequence[float] | None = None,
    shape: Sequence[int] | None = None,
) -> Voxels:
    """floor((point - origin) / voxel) of each point, computed in float64.

    Args:
        points: [P, D] real positions, 1 to 4 axes.
        voxel: edge of a voxel, one number or D.
        batch: integers [P], the sample of each point; None: all are of sample 0.
        origin: the corner of cell 0, one number or D; None: the smallest coordinate along each axis, 0 without points.
        shape: spatial extents; None: as far as the points reach, 1 without points.

    Raises:
        TypeError: points or batch are not numbers of the right kind.
        ValueError: an argument is not allowed; a point is not finite, or its cell is outside the shape.
    """
    arguments.check_float("points", str(points.dtype))
    if points.ndim != 2 or not 1 <= points.shape[1] <= 4:
        raise ValueError(f"points has shape {arguments.text(points.shape)}: expected [P, D] with D of 1 to 4")
    count, axes = points.shape
    place = np.asarray(points, np.float64)
    if not np.isfinite(place).all():
        row = int(np.flatnonzero(~np.isfinite(place).all(1))[0])
        raise ValueError(f"points[{row}] is {place[row].tolist()}: finite numbers are needed")
    edge = _per_axis("voxel", voxel, axes)
    if not (edge > 0).all():
        raise ValueError(f"voxel={voxel!r}: edges must be above 0")
    if origin is not None:
        corner = _per_axis("origin", origin, axes)
    else:
        corner = place.min(0) if count else np.zeros(axes)
    steps = np.floor((place - corner) / edge)
    if np.abs(steps).max(initial=0) >= 2**31 - 1:
        raise ValueError(f"voxel={voxel!r} is too small: points are {np.abs(steps).max():.0f} cells from the origin")
    cells = steps.astype(np.int64)
    extents = tuple((cells.max(0, initial=0) + 1).tolist()) if shape is None else checked_shape(shape)
    if len(extents) != axes:
        raise ValueError(f"shape={shape!r}: points have {axes} axes")
    outside = np.any((cells < 0) | (cells >= np.array(extents)), axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"points[{row}] is {place[row].tolist()}, in cell {cells[row].tolist()}: outside the shape {extents} "
            f"from the origin {corner.tolist()}"
        )
    return Voxels(np.column_stack([_samples(batch, count), cells]), extents)


def _per_axis(name: str, value: Any, axes: int) -> npt.NDArray[np.float64]:
    """One finite number for each axis; raises ValueError."""
    numbers = np.asarray(value, np.float64)
    if numbers.shape not in ((), (1,), (axes,)) or not np.isfinite(numbers).all():
        raise ValueError(f"{name}={value!r}: expected one finite number, or {axes}")
    return np.broadcast_to(numbers, (axes,))


def _samples(batch: Any, count: int) -> npt.NDArray[np.int64]:
    if batch is None:
        return np.zeros(count, np.int64)
    numbers = np.asarray(batch)
    if numbers.size and not np.issubdtype(numbers.dtype, np.integer):
        raise TypeError(f"batch has dtype {numbers.dtype}: whole numbers are needed")
    if numbers.shape != (count,):
        raise ValueError(f"batch has shape {arguments.text(numbers.shape)}: expected [{count}], one for a point")
    return numbers.astype(np.int64)
