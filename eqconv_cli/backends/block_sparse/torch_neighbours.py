"""Positions of pixels and their neighbours in images, as index tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from eqconv_cli.backends.block_sparse.arguments import Window
from eqconv_cli.backends.block_sparse.geometry import Pair
from eqconv_cli.backends.block_sparse.torch_arguments import Rows


def split(pixels: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """(image, row, column) of flat positions in images of this size."""
    image, rest = pixels // (height * width), pixels % (height * width)
    return image, rest // width, rest % width


def of_pixels(
    pixels: Tensor, out_size: Pair, size: Pair, ksize: Pair, strides: Pair, front: Pair
) -> tuple[Tensor, Tensor]:
    """The input pixel at every tap of the listed output pixels.

    Args:
        pixels: int64 [P], flat positions in the output.
        out_size: height and width of the output.
        size: of the input.
        ksize, strides: of the convolution.
        front: its padding in front of the image.

    Returns:
        int64 [P, taps], flat positions in the input, 0 where there is none; and bool [P, taps], where there is one.
    """
    image, row, column = split(pixels, *out_size)
    taps = [torch.arange(k, device=pixels.device) for k in ksize]
    h = (row * strides[0] - front[0])[:, None] + taps[0]
    w = (column * strides[1] - front[1])[:, None] + taps[1]
    inside = ((h >= 0) & (h < size[0]))[:, :, None] & ((w >= 0) & (w < size[1]))[:, None, :]
    flat = ((image * size[0])[:, None] + h)[:, :, None] * size[1] + w[:, None, :]
    return torch.where(inside, flat, 0).flatten(1), inside.flatten(1)


def of_blocks(blocks: Rows, at: Window, size: Pair) -> tuple[Tensor, Tensor]:
    """The pixels of every window of a list of blocks.

    Returns:
        int64 [B, h, w], flat positions in images of ``size``, 0 where there is no pixel; and bool [B, h, w], where
        there is one: inside the image, in a row that counts.
    """
    image, row, column = blocks.rows.long().unbind(1)
    device = image.device
    h = (row * at.stride[0] + at.offset[0])[:, None] + torch.arange(at.size[0], device=device)
    w = (column * at.stride[1] + at.offset[1])[:, None] + torch.arange(at.size[1], device=device)
    rows_in, columns_in = (h >= 0) & (h < size[0]), (w >= 0) & (w < size[1])
    if not blocks.whole:
        rows_in = rows_in & (torch.arange(len(image), device=device) < blocks.number)[:, None]
    inside = rows_in[:, :, None] & columns_in[:, None, :]
    flat = ((image * size[0])[:, None] + h)[:, :, None] * size[1] + w[:, None, :]
    return torch.where(inside, flat, 0), inside


def touched(pixels: Tensor, images: int, size: Pair) -> tuple[Tensor, Tensor]:
    """The pixels that 3x3 windows about the listed ones see.

    Args:
        pixels: int64 [P], flat positions.
        images: N.
        size: height and width.

    Returns:
        Flat positions int64 [R], ascending, and the row among them at each tap int64 [P, 9]; R is outside the image.
    """
    flat, inside = of_pixels(pixels, size, size, (3, 3), (1, 1), (1, 1))
    seen = torch.zeros(images * size[0] * size[1], dtype=torch.bool, device=pixels.device)
    seen[flat[inside]] = True
    positions = seen.nonzero().squeeze(1)
    row_of = torch.zeros(len(seen), dtype=torch.long, device=pixels.device)
    row_of[positions] = torch.arange(len(positions), device=pixels.device)
    outside = len(positions)
    return positions, torch.where(inside, row_of[flat], outside) if len(seen) else flat
