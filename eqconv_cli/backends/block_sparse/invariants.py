"""Statements that hold whatever computes the operation: the checks E3 to E14 that are no value and no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.block_sparse.geometry import BlockParams, block_params
from eqconv_cli.backends.block_sparse.numpy_ops import pixel_index, reduce_mask
from eqconv_cli.backends.block_sparse.reference import convolution, gather, masked, residual, scatter
from eqconv_cli.catalog import Arrays, Check, Pair

Compute = Callable[[Arrays], Arrays]


def restores(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """Blocks cut out of the base and written back leave it as it is, whatever the windows overlap or leave out."""
    if inputs["add"]:
        return []
    base = inputs["ybase"]
    blocks = gather({**inputs, "x": base})["blocks"].astype(base.dtype)
    return [Pair("", compute({**inputs, "blocks": blocks})["y"], base)]


def keeps_base(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """Pixels outside of all windows keep the base."""
    outside = _windows_over(inputs) == 0
    return [Pair("", compute(inputs)["y"][outside], inputs["ybase"][outside])]


def counts_windows(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """Ones added up are the number of windows over each pixel."""
    ones, zeros = np.ones_like(inputs["blocks"]), np.zeros_like(inputs["ybase"])
    sums = compute({**inputs, "blocks": ones, "ybase": zeros, "add": np.array(True), "atomic": np.array(True)})["y"]
    return [Pair("", sums, np.broadcast_to(_windows_over(inputs)[..., None], sums.shape))]


def covers_dilated_mask(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """Every pixel of the dilated mask is in an active block; all-ones make the whole image the dense convolution."""
    params, images = _params(inputs), inputs["x"].shape[0]
    rng = np.random.default_rng(seed)
    mask = rng.random(inputs["x"].shape[:3]) < 0.1
    found = compute({**inputs, **_marked(inputs, _reduced(mask, params))})["y"]
    dilated = _dilated(mask, inputs)
    everything = compute({**inputs, "index": _reduced(np.ones_like(mask), params)})["y"]
    pixels = np.arange(images * int(np.prod(params.out_size)))
    dense = masked({**inputs, "pixels": pixels})["y"]
    # A base of -1 below a ReLU shows where a value was written.
    return [
        Pair("contained", found[dilated] >= 0, np.ones(found[dilated].shape, bool)),
        Pair("dense", everything, dense),
    ]


def agrees_on_dilated_mask(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """On the dilated mask every route gives the dense convolution: here blocks against listed pixels."""
    params, rng = _params(inputs), np.random.default_rng(seed)
    mask = rng.random(inputs["x"].shape[:3]) < 0.1
    dilated = _dilated(mask, inputs)
    pixels = np.flatnonzero(dilated)
    blocks = compute({**inputs, "index": _reduced(mask, params)})["y"]
    return [Pair("", blocks[dilated], masked({**inputs, "pixels": pixels})["y"][dilated])]


def pixels_agree_with_blocks(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """On the listed pixels the result is that of blocks which hold them."""
    k, s = inputs["w"].shape[:2], inputs["strides"]
    size = [3 * int(step) + extent for extent, step in zip(k, s, strict=True)]
    given = {**inputs, "bsize": np.array(size), "coverage": np.array("full")}
    params = _params(given)
    grid = (inputs["x"].shape[0], *params.out_size)
    wanted = np.zeros(grid, bool)
    wanted.reshape(-1)[inputs["pixels"]] = True
    tile = params.bsize_out
    index = reduce_mask(wanted, params.bcount, bsize=tile, bstride=tile, tol=0.5, version="sliced")
    blocks = convolution({**given, "index": index.active_block_indices})["y"]
    return [Pair("", compute(inputs)["y"][wanted], blocks[wanted])]


def order_of_rows(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """The order of the list changes nothing."""
    order = np.random.default_rng(seed).permutation(len(inputs["index"]))
    shuffled = {**inputs, "index": inputs["index"][order]}
    return [Pair("", compute(shuffled)["y"], compute(inputs)["y"])]


def block_size(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """On the dilated mask the block size changes nothing, and the order of the rows nothing at all."""
    rng = np.random.default_rng(seed)
    mask = rng.random(inputs["x"].shape[:3]) < 0.1
    dilated = _dilated(mask, inputs)
    larger = {**inputs, "bsize": inputs["bsize"] + 2 * inputs["strides"]}
    small, large = (compute({**g, "index": _reduced(mask, _params(g))})["y"][dilated] for g in (inputs, larger))
    order = order_of_rows(compute, inputs, seed)
    return [Pair("size", small, large), *(Pair("order", pair.actual, pair.expected) for pair in order)]


def ring(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """With SBNet's border the unit equals the dense one on covered pixels off the image's edge, and not on it."""
    if str(inputs["border"]) != "original" or str(inputs["bn"]) != "inference":
        return []
    y, dense = compute(inputs)["y"], residual({**inputs, "border": np.array("dense")})["y"]
    inner = (slice(None), slice(1, -1), slice(1, -1))
    edge = np.ones(y.shape[:3], bool)
    edge[inner] = False
    differs = np.abs(y[edge] - dense[edge]).max(initial=0) > 1e-3
    return [Pair("inside", y[inner], dense[inner]), Pair("ring differs", np.array(differs), np.array(True))]


def same_bits(compute: Compute, inputs: Arrays, seed: int) -> Sequence[Pair]:
    """Two runs give the same bits."""
    first, second = compute(inputs), compute(inputs)
    return [Pair(name, _bits(first[name]), _bits(second[name])) for name in first]


_TWICE = Check("E14", same_bits, "two runs give the same bits", own_row=True, tolerance=0.0)
_ORDER = "the order of the rows and, on the dilated mask, the block size change nothing"

#: By operation.
CHECKS: dict[str, tuple[Check, ...]] = {
    "reduce_mask": (_TWICE,),
    "pixel_index": (_TWICE,),
    "gather": (_TWICE,),
    "scatter": (
        Check("E3", restores, "scatter(gather(x), x) = x for any windows", own_row=True, tolerance=0.0),
        Check("E4", keeps_base, "pixels outside of all windows keep the base", own_row=True, tolerance=0.0),
        Check("E5", counts_windows, "ones add up to the number of covering windows", own_row=True, tolerance=0.0),
        _TWICE,
    ),
    "convolution": (
        Check(
            "E8",
            covers_dilated_mask,
            "active blocks contain the dilated mask; with all of them the image is the dense convolution",
            own_row=True,
        ),
        Check("E9", agrees_on_dilated_mask, "all routes agree on the dilated mask", own_row=True),
        Check("E13", block_size, _ORDER, own_row=True),
        _TWICE,
    ),
    "masked": (
        Check("E9", pixels_agree_with_blocks, "all routes agree on the dilated mask", own_row=True),
        _TWICE,
    ),
    "residual": (
        Check(
            "E10",
            ring,
            "border='original' equals the dense unit off the ring along the edge, and differs on it",
            own_row=True,
        ),
        Check("E13", order_of_rows, _ORDER, own_row=True),
        _TWICE,
    ),
    "masked_residual": (_TWICE,),
    "submanifold": (_TWICE,),
    "strided": (_TWICE,),
}


def _windows_over(inputs: Arrays) -> npt.NDArray[np.float64]:
    """The number of windows over each pixel [N, H, W]."""
    images, height, width = inputs["ybase"].shape[:3]
    switches = {"transpose": np.array(False), "add": np.array(True)}
    ones = np.ones((len(inputs["index"]), *inputs["bsize"], 1))
    return scatter({**inputs, **switches, "blocks": ones, "ybase": np.zeros((images, height, width, 1))})["y"][..., 0]


def _params(inputs: Arrays) -> BlockParams:
    size, strides = inputs["bsize"].tolist(), inputs["strides"].tolist()
    padding, coverage = str(inputs["padding"]), str(inputs["coverage"])
    return block_params(inputs["x"].shape, size, inputs["w"].shape, strides, padding, coverage)


def _reduced(mask: npt.NDArray[Any], params: BlockParams) -> npt.NDArray[np.int32]:
    index = reduce_mask(
        mask,
        params.bcount,
        bsize=params.bsize,
        bstride=params.bstrides,
        boffset=params.boffset,
        tol=0.5,
        version="sliced",
    )
    return index.active_block_indices


def _dilated(mask: npt.NDArray[Any], inputs: Arrays) -> npt.NDArray[np.bool_]:
    found = pixel_index(
        mask,
        tol=0.5,
        ksize=inputs["w"].shape[:2],
        strides=inputs["strides"].tolist(),
        padding=str(inputs["padding"]),
        version="sliced",
    )
    dilated = np.zeros(found.grid, bool)
    dilated.reshape(-1)[found.pixels] = True
    return dilated


def _marked(inputs: Arrays, index: npt.NDArray[np.int32]) -> Arrays:
    """Inputs whose every computed value is at least 0 and whose base is below."""
    base = np.full((inputs["x"].shape[0], *_params(inputs).out_size, inputs["w"].shape[3]), -1, inputs["x"].dtype)
    return {"index": index, "base": base, "activation": np.array("relu")}


def _bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Floating-point numbers as whole ones, so that equal means every bit."""
    return array.view(f"i{array.dtype.itemsize}") if array.dtype.kind == "f" else array
