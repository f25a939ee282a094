"""Images of more than 2^31 elements: the memory is promised by the system, and only the pages that are read exist."""

from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from eqconv_cli.numpy import (
    BlockIndex,
    PixelIndex,
    block_params,
    masked_conv2d,
    sparse_gather,
    sparse_scatter_var,
)
from tests.support import needs

SIDE, CHANNELS = 20_000, 6
assert SIDE * SIDE < 2**31 < SIDE * SIDE * CHANNELS
LAST = SIDE - 1
#: Linux's number; Python's module has the name since 3.12.
MAP_NORESERVE = 0x4000

pytestmark = [needs("cpu"), pytest.mark.skipif(sys.platform != "linux", reason="needs memory that is only promised")]


def promised(channels: int) -> np.ndarray:
    """[1, SIDE, SIDE, channels] of zeros that nothing has touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = mmap.mmap(-1, 4 * SIDE * SIDE * channels, flags=flags)
    return np.frombuffer(memory, np.float32).reshape(1, SIDE, SIDE, channels)


@pytest.fixture
def image() -> np.ndarray:
    return promised(CHANNELS)


def test_gather_and_scatter_at_the_far_end(image: np.ndarray) -> None:
    far = np.random.default_rng(0).normal(size=(4, 4, CHANNELS)).astype(np.float32)
    image[0, -4:, -4:] = far
    tile = SIDE // 4 - 1
    index = BlockIndex(np.array([[0, tile, tile]], np.int32), np.array([1], np.int32))
    blocks = sparse_gather(image, index, bsize=(4, 4), bstride=(4, 4), version="fused")
    np.testing.assert_array_equal(blocks[0], far)
    sparse_scatter_var(blocks + 1, index, image, bsize=(4, 4), bstride=(4, 4), add=False, version="fused")
    np.testing.assert_array_equal(image[0, -4:, -4:], far + 1)
    assert not image[0, :4].any()


def test_convolution_at_the_last_pixel(image: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    near = rng.normal(size=(2, 2, CHANNELS)).astype(np.float32)
    image[0, -2:, -2:] = near
    w = rng.normal(size=(3, 3, CHANNELS, 5)).astype(np.float32)
    out = promised(5)
    pixels = PixelIndex(np.array([LAST * SIDE + LAST], np.int32), np.array([1], np.int32), (1, SIDE, SIDE))
    masked_conv2d(image, w, pixels, out=out, version="fused")
    expected = np.einsum("hwc,hwck->k", near.astype(np.float64), w[:2, :2])
    np.testing.assert_allclose(out[0, LAST, LAST], expected, rtol=1e-5, atol=1e-5)
    assert not out[0, LAST, LAST - 1].any()


def test_more_positions_than_a_list_can_name() -> None:
    params = block_params((1, 50_000, 50_000, 1), (4, 4), (3, 3))
    assert params.bcount == (25_000, 25_000)
    wide = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (1, 50_000, 50_000, 1), (0, 0, 0, 0))
    pixels = PixelIndex(np.zeros(1, np.int32), np.array([1], np.int32), (1, 50_000, 50_000))
    with pytest.raises(ValueError, match="the output has 2500000000 pixels: a list of pixels holds positions below 2"):
        masked_conv2d(wide, np.zeros((3, 3, 1, 1), np.float32), pixels)
