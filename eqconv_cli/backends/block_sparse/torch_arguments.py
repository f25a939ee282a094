"""Tensors as the PyTorch functions of this family take them: shapes and dtypes checked, lists brought to int32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from eqconv_cli.backends.block_sparse import arguments
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex

W_LAYOUTS = ("HWIO", "OIHW")

_HALVES = (torch.float16, torch.bfloat16)


class Rows(NamedTuple):
    """A list of blocks: the first ``number[0]`` rows count."""

    #: int32 [B, 3].
    rows: Tensor
    #: How many count: int32 [1], on the device of the rows.
    number: Tensor
    #: Whether all rows count, for sure.
    whole: bool


def dtype_name(tensor: Tensor) -> str:
    """The dtype as messages and ``arguments`` have it."""
    return str(tensor.dtype).removeprefix("torch.")


def check_real(name: str, tensor: Tensor, also: Sequence[str] = ()) -> None:
    """Raises TypeError unless the dtype is float32, float64 or one of ``also``."""
    arguments.check_float(name, dtype_name(tensor), also)


def check_like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises TypeError for another dtype and ValueError for another device than that of ``other``."""
    if tensor.dtype != other.dtype:
        arguments.check_same_dtype(name, dtype_name(tensor), other_name, dtype_name(other))
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device} but {other_name} is on {other.device}")


def widened(*tensors: Tensor | None) -> tuple[Any, ...]:
    """The tensors, under autocast with those of half precision as float32: there is no kernel for less."""
    if not any(t is not None and t.dtype in _HALVES for t in tensors):
        return tensors
    if not torch.is_autocast_enabled(next(t for t in tensors if t is not None).device.type):
        return tensors
    return tuple(t.float() if t is not None and t.dtype in _HALVES else t for t in tensors)


def block_rows(index: BlockIndex, images: int, device: torch.device) -> Rows:
    """The list of blocks on a device.

    Rows in host memory are checked; of rows on a GPU, which to look at would make the caller wait, the kernels ignore
    those that name no image.

    Raises:
        TypeError, ValueError: dtype or shape is not that of an index.
        IndexError: a row is out of range, or more rows count than there are.
    """
    rows, count = (torch.as_tensor(part) for part in index)
    arguments.check_index(rows.shape, count.shape, dtype_name(rows))
    rows, whole = _counted("bin_counts", count, "active_block_indices", rows)
    if len(rows) and _readable(rows):
        arguments.check_range(rows.amin(0).tolist(), int(rows[:, 0].amax()), images)
    return Rows(rows.to(device, torch.int32), count.to(device, torch.int32), whole)


def pixel_rows(pixels: PixelIndex, grid: tuple[int, int, int], device: torch.device) -> Rows:
    """The list of output pixels on a device; as for :func:`block_rows`.

    Raises:
        TypeError: the positions are not integers.
        ValueError: the list is not one-dimensional, or was made for another output.
        IndexError: a position is out of range, or more count than there are.
    """
    positions, count, _ = pixels
    if not (isinstance(positions, Tensor) and isinstance(count, Tensor)):
        positions, count = torch.as_tensor(positions), torch.as_tensor(count)
    rows, whole = _looked_at(positions, count, pixels.grid, grid)
    return Rows(_int32(rows, device), _int32(count, device), whole)


@dataclass(frozen=True, slots=True)
class _LookedAt:
    """What was found when a list of pixels was looked at, and of what."""

    count: Tensor
    versions: tuple[int, int]
    grid: tuple[int, int, int]
    number: int


#: Lists of pixels that were looked at and found right: a network takes the same one in layer after layer.
_LOOKED_AT = WeakTensorKeyDictionary()


def _looked_at(positions: Tensor, count: Tensor, made_for: Any, grid: tuple[int, int, int]) -> tuple[Tensor, bool]:
    """The positions that count, as of :func:`_counted`, checked."""
    if not (_readable(positions) and _readable(count)) or positions.is_inference() or count.is_inference():
        return _checked_pixels(positions, count, made_for, grid)
    seen, versions = _LOOKED_AT.get(positions), (positions._version, count._version)
    if seen is None or seen.count is not count or seen.versions != versions or not seen.grid == grid == made_for:
        rows, _ = _checked_pixels(positions, count, made_for, grid)
        # Not the rows: as a view they would keep the list alive.
        _LOOKED_AT[positions] = seen = _LookedAt(count, versions, grid, len(rows))
    return positions if seen.number == len(positions) else positions[: seen.number], True


def _checked_pixels(positions: Tensor, count: Tensor, made_for: Any, grid: tuple[int, int, int]) -> tuple[Tensor, bool]:
    if not dtype_name(positions).startswith("int"):
        raise TypeError(f"pixels has dtype {dtype_name(positions)}: an integer dtype is needed")
    if positions.dim() != 1 or tuple(count.shape) != (1,):
        shapes = f"{arguments.text(positions.shape)} and {arguments.text(count.shape)}"
        raise ValueError(f"pixels and count have shapes {shapes}: expected [P] and [1]")
    if tuple(made_for) != grid:
        raise ValueError(f"pixels is a list for an output of (N, H, W) = {tuple(made_for)}: this one is {grid}")
    arguments.check_positions(grid[0] * grid[1] * grid[2])
    rows, whole = _counted("count", count, "pixels", positions)
    if len(rows) and _readable(rows):
        low, high = (int(bound) for bound in torch.aminmax(rows))
        most = grid[0] * grid[1] * grid[2] - 1
        if low < 0 or high > most:
            raise IndexError(f"pixels has positions from {low} to {high}: allowed: 0 to {most}")
    return rows, whole


def _counted(count_name: str, count: Tensor, name: str, entries: Tensor) -> tuple[Tensor, bool]:
    """The entries without those behind the count, where it can be read without waiting, and whether that was done."""
    if not _readable(count):
        return entries, False
    number = int(count[0])
    if not 0 <= number <= len(entries):
        raise IndexError(f"{count_name} is {number} but {name} has {len(entries)} rows")
    return entries[:number], True


def _int32(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there; one that is there already costs nothing."""
    there = tensor.dtype is torch.int32 and tensor.device == device
    return tensor if there else tensor.to(device, torch.int32)


def _readable(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def counting(rows: Rows) -> Tensor:
    """The entries that count, int64; waits for a GPU unless all do."""
    entries = rows.rows if rows.whole else rows.rows[: int(rows.number)]
    return entries.long()


def channels_last(name: str, x: Tensor, layout: str) -> Tensor:
    """An image as [N, H, W, C]; raises ValueError."""
    arguments.check_choice("layout", layout, arguments.LAYOUTS)
    arguments.check_image(name, x.shape)
    return x.permute(0, 2, 3, 1) if layout == "NCHW" else x


def kernel_hwio(w: Tensor, layout: str, channels: int) -> Tensor:
    """A kernel as [kh, kw, C, K]; raises ValueError."""
    arguments.check_choice("w_layout", layout, W_LAYOUTS)
    if layout == "OIHW":
        if w.dim() != 4:
            raise ValueError(f"w has shape {arguments.text(w.shape)}: expected rank 4, [K, C, kh, kw]")
        w = w.permute(2, 3, 1, 0)
    arguments.check_kernel(w.shape, channels)
    return w
