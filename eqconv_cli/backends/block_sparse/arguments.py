"""What is allowed: shapes, windows and options, checked before any work on extents and names alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from eqconv_cli.backends.block_sparse.geometry import Pair, pair

FLOATS = ("float32", "float64")
HALVES = ("float16", "bfloat16")
LAYOUTS = ("NHWC", "NCHW")
ON_EMPTY = ("none", "first")
ACTIVATIONS = (None, "relu")

#: Extents of an array; None where a graph does not know one yet.
Shape = Sequence[int | None]


class Window(NamedTuple):
    """Where blocks lie: window (i, j) starts at ``offset + stride * (i, j)`` and has ``size``."""

    size: Pair
    stride: Pair
    offset: Pair

    @property
    def overlaps(self) -> bool:
        """Whether neighbouring windows share pixels."""
        return any(step < size for step, size in zip(self.stride, self.size, strict=True))


def window(bsize: Any, bstride: Any, boffset: Any) -> Window:
    """The three pairs, checked; raises ValueError."""
    return Window(pair("bsize", bsize, 1), pair("bstride", bstride, 1), pair("boffset", boffset))


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises ValueError naming the option, the value and what is allowed."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown: allowed: {', '.join(map(str, allowed))}")


def check_float(name: str, dtype: str, also: Sequence[str] = ()) -> None:
    """Raises TypeError for a dtype that is not allowed; ``also`` are allowed beside float32 and float64."""
    if dtype not in (*FLOATS, *also):
        raise TypeError(f"{name} has dtype {dtype}: allowed: {', '.join((*FLOATS, *also))}")


def check_same_dtype(name: str, dtype: str, other_name: str, other: str) -> None:
    """Raises TypeError unless both are equal."""
    if dtype != other:
        raise TypeError(f"{name} has dtype {dtype} but {other_name} has dtype {other}: they must be equal")


def check_image(name: str, shape: Shape) -> None:
    """``name`` is [N, H, W, C]; raises ValueError."""
    if len(shape) != 4:
        raise ValueError(f"{name} has shape {text(shape)}: expected rank 4, [N, H, W, C]")


def check_tolerance(tol: float) -> None:
    """Raises ValueError for NaN, which nothing is above."""
    if tol != tol:
        raise ValueError("tol=nan: no value is above it; give a number")


def check_mask(shape: Shape, image: Shape | None = None) -> None:
    """A mask is [N, H, W] or [N, H, W, 1], of the size of the image [N, H, W, ...]; raises ValueError."""
    if len(shape) not in (3, 4):
        raise ValueError(f"mask has shape {text(shape)}: expected [N, H, W] or [N, H, W, 1]")
    if len(shape) == 4 and differ(shape[3], 1):
        raise ValueError(f"mask has {shape[3]} channels: exactly 1 is allowed, [N, H, W, 1]")
    if image is not None and any(differ(a, b) for a, b in zip(shape[:3], image[:3], strict=True)):
        raise ValueError(
            f"mask has shape {text(shape)} but x has {text(image)}: N, H and W must be equal "
            "(resize_mask makes a mask of another size fit)"
        )


def check_index(rows: Shape, counts: Shape, dtype: str) -> None:
    """An index has integer rows [B, 3] and counts [1]; raises TypeError or ValueError."""
    if not dtype.startswith("int"):
        raise TypeError(f"active_block_indices has dtype {dtype}: an integer dtype is needed")
    if len(rows) != 2 or differ(rows[1], 3):
        raise ValueError(f"active_block_indices has shape {text(rows)}: expected [B, 3], (image, row, column)")
    if len(counts) != 1 or differ(counts[0], 1):
        raise ValueError(f"bin_counts has shape {text(counts)}: expected [1]")


def check_range(smallest: Sequence[int], largest_image: int, images: int) -> None:
    """Numbers of an index: none below 0, and images that there are; raises IndexError.

    Args:
        smallest: of each column of the rows.
        largest_image: the largest image number.
        images: N.
    """
    for name, low in zip(("image", "block row", "block column"), smallest, strict=True):
        if low < 0:
            raise IndexError(f"active_block_indices has the {name} {low}: it must be 0 or above")
    if largest_image >= images:
        raise IndexError(f"active_block_indices names image {largest_image} but there are {images}")


def check_blocks(blocks: Shape, rows: Shape, size: Pair, channels: int | None, transpose: bool) -> None:
    """Blocks are [B, h, w, C], or with ``transpose`` [B, C, h, w]; raises ValueError."""
    wanted = (rows[0], channels, *size) if transpose else (rows[0], *size, channels)
    if len(blocks) != 4 or any(differ(a, b) for a, b in zip(blocks, wanted, strict=True)):
        raise ValueError(f"blocks has shape {text(blocks)}: expected {text(wanted)} (B, bsize, channels of ybase)")


def check_scatter(at: Window, add: bool, atomic: bool) -> None:
    """Raises ValueError for sums where windows overlap, unless they are asked for by ``atomic``."""
    if add and not atomic and at.overlaps:
        raise ValueError(
            f"add=True, atomic=False needs windows that do not overlap, but bstride={at.stride} is below "
            f"bsize={at.size}: give atomic=True to sum where they overlap"
        )


def check_kernel(w: Shape, channels: int | None) -> None:
    """A kernel is [kh, kw, C, K] with the image's channels; raises ValueError."""
    if len(w) != 4:
        raise ValueError(f"w has shape {text(w)}: expected rank 4, [kh, kw, C, K]")
    if differ(w[2], channels):
        raise ValueError(f"w has {w[2]} input channels but x has {channels} (expected w of shape [kh, kw, C, K])")
    if 0 in w[:2]:
        raise ValueError(f"w has shape {text(w)}: kh and kw must be at least 1")


def check_site_kernel(w: Shape, channels: int | None, axes: int, groups: int = 1) -> None:
    """A kernel on sites is [k..., C / groups, K] with one extent for each axis; raises ValueError."""
    if groups < 1 or (channels is not None and channels % groups) or (w and w[-1] is not None and w[-1] % groups):
        raise ValueError(f"groups={groups}: at least 1, and it must divide {channels} channels and {w[-1]} filters")
    if len(w) != axes + 2:
        raise ValueError(f"w has shape {text(w)}: expected rank {axes + 2}, [{axes} extents, C / groups, K]")
    if channels is not None and differ(w[-2], channels // groups):
        raise ValueError(f"w has {w[-2]} input channels but feats has {channels} in {groups} groups")
    if 0 in w[:-2]:
        raise ValueError(f"w has shape {text(w)}: every extent must be at least 1")


def check_vector(name: str, shape: Shape, extent: int | None) -> None:
    """Raises ValueError unless ``shape`` is [extent]."""
    if len(shape) != 1 or differ(shape[0], extent):
        raise ValueError(f"{name} has shape {text(shape)}: expected {text([extent])}")


def check_positions(positions: int) -> None:
    """Flat positions are int32; raises ValueError for images with more."""
    if positions >= 2**31:
        raise ValueError(f"the output has {positions} pixels: a list of pixels holds positions below 2^31")


def differ(first: int | None, second: int | None) -> bool:
    """Whether two extents are known and unequal."""
    return first is not None and second is not None and first != second


def text(shape: Shape) -> str:
    """A shape for a message."""
    return "[" + ", ".join("?" if extent is None else str(extent) for extent in shape) + "]"
