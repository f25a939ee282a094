"""Windows, tiles and counts of convolutions on blocks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eqconv_cli.backends.block_sparse.geometry import block_params, block_params_chain, out_extent, paddings
from eqconv_cli.backends.block_sparse.index import BlockIndex


@pytest.mark.parametrize(
    ("size", "ksize", "stride", "padding", "expected"),
    [
        ((5, 6), (2, 3), 1, "SAME", (0, 1, 1, 1)),
        ((5, 6), (2, 3), 2, "SAME", (0, 1, 0, 1)),
        ((5, 6), (2, 3), 1, "VALID", (0, 0, 0, 0)),
    ],
)
def test_sbnets_expected_paddings(
    size: tuple[int, int], ksize: tuple[int, int], stride: int, padding: str, expected: tuple[int, ...]
) -> None:
    """Top, bottom, left, right of its ``calc_padding``."""
    found = [paddings(n, k, stride, padding) for n, k in zip(size, ksize, strict=True)]
    assert (*found[0], *found[1]) == expected


@pytest.mark.parametrize("n", range(3, 24))
def test_tiles_cover_the_output_once_and_windows_reach_all_they_read(n: int) -> None:
    for k, s, extra, padding in itertools.product((1, 2, 3), (1, 2), (0, 1, 2, 5), ("SAME", "VALID")):
        b = k + s * extra
        params = block_params((n, n), (b, b), (k, k), (s, s), padding)
        out, tile, count = params.out_size[0], params.bsize_out[0], params.bcount[0]
        assert out == out_extent(n, k, s, padding) and params.uncovered() == (0, 0)
        assert (count - 1) * tile < out <= count * tile
        front = paddings(n, k, s, padding)[0]
        for block, at in itertools.product(range(count), range(tile)):
            first = (block * tile + at) * s - front
            window = params.boffset[0] + params.bstrides[0] * block
            assert window <= first and first + k <= window + b


@pytest.mark.parametrize(("n", "b", "uncovered"), [(5, 5, 2), (704, 11, 2), (400, 21, 1)])
def test_sbnets_count_leaves_rows_uncovered(n: int, b: int, uncovered: int) -> None:
    params = block_params((n, n), (b, b), (3, 3), coverage="original")
    assert params.uncovered() == (uncovered, uncovered)
    assert block_params((n, n), (b, b), (3, 3)).uncovered() == (0, 0)


def test_sbnets_count_of_a_strided_valid_convolution_is_one_more_than_needed() -> None:
    original = block_params((8, 8), (7, 7), (3, 3), (2, 2), "VALID", "original")
    assert original.bcount == (2, 2) and block_params((8, 8), (7, 7), (3, 3), (2, 2), "VALID").bcount == (1, 1)


def test_a_chains_halo_grows_with_the_first_stride_and_its_offset_layer_by_layer() -> None:
    params = block_params_chain((8, 8), (9, 9), [(1, 1), (3, 3), (1, 1)], (2, 2))
    assert params.bsize_out == (3, 3) and params.boffset == (-2, -2) and params.bstrides == (6, 6)


@pytest.mark.parametrize(("b", "s", "message"), [(2, 1, "nearest size that fits is 3"), (6, 2, "are 5 and 7")])
def test_windows_that_do_not_fit(b: int, s: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block_params((8, 8), (b, b), (3, 3), (s, s))


def test_int16_rows() -> None:
    index = BlockIndex(np.array([[0, 1, 32767]], np.int32), np.array([1], np.int32))
    assert index.as_int16().active_block_indices.dtype == np.int16
    too_far = index._replace(active_block_indices=np.array([[0, 1, 32768]], np.int32))
    with pytest.raises(OverflowError, match="32768"):
        too_far.as_int16()
