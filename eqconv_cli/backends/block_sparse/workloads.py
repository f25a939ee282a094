"""The benchmark's problems: the stages of two residual networks at 400 x 700, as SBNet's authors timed them.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018, tables 1 and 2; uber-research/sbnet ``benchmark/tf_conv_dims.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.block_sparse import masks
from eqconv_cli.backends.block_sparse.geometry import BlockParams, Pair, block_params_chain
from eqconv_cli.backends.block_sparse.numpy_ops import reduce_mask
from eqconv_cli.catalog import Parameter, Problem

Arrays = dict[str, npt.NDArray[Any]]

#: Height and width of each stage, and the block sizes that SBNet's benchmark tries there.
STAGES = {
    "conv-2": ((400, 700), range(11, 33, 2)),
    "conv-3": ((200, 350), range(7, 25, 2)),
    "conv-4": ((100, 175), range(5, 21, 2)),
    "conv-5": ((50, 88), range(5, 21, 2)),
}
#: Channels of the unit and of its bottleneck at each stage.
ARCHITECTURES = {
    "resnet-v2": ((96, 24), (192, 48), (256, 64), (384, 96)),
    "resnet-50": ((256, 64), (512, 128), (1024, 256), (2048, 512)),
}
#: Speed-ups over dense convolution on a GeForce GTX 1080 Ti (TensorFlow 1.2.1, cuDNN 6) at a sparsity of 0.9.
PUBLISHED = {
    "conv": ("SBNet, table 1", (3.39, 2.47, 1.34, 0.88)),
    "res": ("SBNet, table 2", (8.22, 6.27, 3.73, 1.64)),
    "subm": ("submanifold, SBNet's table 1", (0.40, 0.75, 0.28, 0.13)),
}
#: Kinds of masks that have a sparsity.
MASKS = ("topleft", "blobs", "noise", "rings")
_THRESHOLD = 0.05


def _words(**values: Any) -> Arrays:
    return {name: np.asarray(value) for name, value in values.items()}


def conv(seed: int, height: int, width: int, channels: int, mask: str, sparsity: float, include_reduce: bool) -> Arrays:
    """One 3x3 convolution at the mask's pixels, zeros elsewhere."""
    rng = np.random.default_rng(seed)
    active = masks.make(mask, rng, 1, height, width, sparsity)
    return {
        "x": rng.normal(size=(1, height, width, channels)),
        "w": rng.normal(size=(3, 3, channels, channels)) / (9 * channels) ** 0.5,
        **_listed(active, include_reduce),
        **_words(strides=(1, 1), padding="SAME", activation="none"),
    }


def res(
    seed: int,
    height: int,
    width: int,
    channels: int,
    bottleneck: int,
    mask: str,
    sparsity: float,
    include_reduce: bool,
) -> Arrays:
    """One residual unit at the mask's pixels, x elsewhere."""
    rng = np.random.default_rng(seed)
    active = masks.make(mask, rng, 1, height, width, sparsity)
    return {
        "x": rng.normal(size=(1, height, width, channels)),
        **_unit(rng, channels, bottleneck),
        **_listed(active, include_reduce),
        **_words(border="dense"),
    }


def conv_blocks(
    seed: int, height: int, width: int, channels: int, mask: str, sparsity: float, block_size: str | int
) -> Arrays:
    """One 3x3 convolution on the blocks whose mean is above 0.05, zeros elsewhere: SBNet's protocol."""
    rng = np.random.default_rng(seed)
    active = masks.make(mask, rng, 1, height, width, sparsity)
    params, index = _best(active, block_size, [(3, 3)])
    return {
        "x": rng.normal(size=(1, height, width, channels)),
        "w": rng.normal(size=(3, 3, channels, channels)) / (9 * channels) ** 0.5,
        "index": index,
        "mask": active,
        **_words(bsize=params.bsize, strides=(1, 1), padding="SAME", coverage="full", activation="none"),
        **_words(tol=_THRESHOLD, avgpool=True),
    }


def res_blocks(
    seed: int,
    height: int,
    width: int,
    channels: int,
    bottleneck: int,
    mask: str,
    sparsity: float,
    block_size: str | int,
) -> Arrays:
    """One residual unit on the blocks whose mean is above 0.05, x elsewhere, with given statistics."""
    rng = np.random.default_rng(seed)
    active = masks.make(mask, rng, 1, height, width, sparsity)
    params, index = _best(active, block_size, [(1, 1), (3, 3), (1, 1)])
    return {
        "x": rng.normal(size=(1, height, width, channels)),
        **_unit(rng, channels, bottleneck),
        "index": index,
        **_words(bsize=params.bsize, strides=(1, 1), border="dense", bn="inference"),
    }


def subm(seed: int, height: int, width: int, channels: int, mask: str, sparsity: float) -> Arrays:
    """One 3x3 submanifold convolution at the mask's pixels."""
    rng = np.random.default_rng(seed)
    coords = np.argwhere(masks.make(mask, rng, 1, height, width, sparsity)).astype(np.int32)
    return {
        "coords": coords,
        "feats": rng.normal(size=(len(coords), channels)),
        "w": rng.normal(size=(3, 3, channels, channels)) / (9 * channels) ** 0.5,
        **_words(shape=(height, width), batch=1, dilation=(1, 1), groups=1),
    }


def reduction(
    seed: int, height: int, width: int, mask: str, sparsity: float, block_size: str | int, avgpool: bool
) -> Arrays:
    """The active blocks of a mask: those whose mean, or largest value, is above 0.05."""
    active = masks.make(mask, np.random.default_rng(seed), 1, height, width, sparsity)
    params, _ = _best(active, block_size, [(3, 3)])
    geometry = _words(bcount=params.bcount, bsize=params.bsize, bstride=params.bstrides, boffset=params.boffset)
    return {"mask": active, **geometry, **_words(tol=_THRESHOLD, avgpool=avgpool, on_empty="none")}


def gathering(
    seed: int, height: int, width: int, channels: int, mask: str, sparsity: float, block_size: str | int
) -> Arrays:
    """The windows of the active blocks, with their halo."""
    rng = np.random.default_rng(seed)
    params, index = _best(masks.make(mask, rng, 1, height, width, sparsity), block_size, [(3, 3)])
    geometry = _words(bsize=params.bsize, bstride=params.bstrides, boffset=params.boffset)
    x = rng.normal(size=(1, height, width, channels))
    return {"x": x, "index": index, **geometry, **_words(transpose=False)}


def scattering(
    seed: int, height: int, width: int, channels: int, mask: str, sparsity: float, block_size: str | int
) -> Arrays:
    """The active blocks' tiles written into an image."""
    rng = np.random.default_rng(seed)
    params, index = _best(masks.make(mask, rng, 1, height, width, sparsity), block_size, [(3, 3)])
    tile = params.bsize_out
    return {
        "blocks": rng.normal(size=(len(index), *tile, channels)),
        "ybase": rng.normal(size=(1, height, width, channels)),
        "index": index,
        **_words(bsize=tile, bstride=tile, boffset=(0, 0), transpose=False, add=False, atomic=False),
    }


def _listed(active: npt.NDArray[np.float64], include_reduce: bool) -> Arrays:
    """The mask's pixels; with the mask itself where finding them is to be timed."""
    pixels = np.flatnonzero(active).astype(np.int32)
    if not include_reduce:
        return {"pixels": pixels}
    return {"pixels": pixels, "mask": active, **_words(tol=0.5, include_reduce=True)}


def _unit(rng: np.random.Generator, channels: int, bottleneck: int) -> Arrays:
    def norm(features: int) -> npt.NDArray[np.float64]:
        return np.stack([np.ones(features), *rng.normal(size=(2, features)) / 4, rng.uniform(0.5, 1.5, features)])

    return {
        "w1": rng.normal(size=(channels, bottleneck)) / channels**0.5,
        "w2": rng.normal(size=(3, 3, bottleneck, bottleneck)) / (9 * bottleneck) ** 0.5,
        "w3": rng.normal(size=(bottleneck, channels)) / bottleneck**0.5,
        "bn1": norm(channels),
        "bn2": norm(bottleneck),
        "bn3": norm(bottleneck),
    }


def _best(
    active: npt.NDArray[np.float64], block_size: str | int, kernels: list[Pair]
) -> tuple[BlockParams, npt.NDArray[np.int32]]:
    """Geometry and active blocks; "auto" takes the size that reads the fewest pixels, halo and all."""
    stage = min(STAGES.values(), key=lambda known: abs(known[0][0] - active.shape[1]))
    sizes = [(b, b) for b in stage[1]] if block_size == "auto" else [_size(block_size)]
    found = []
    for size in sizes:
        made = block_params_chain(active.shape[1:], size, kernels)
        index = reduce_mask(
            active,
            made.bcount,
            bsize=made.bsize,
            bstride=made.bstrides,
            boffset=made.boffset,
            tol=_THRESHOLD,
            avgpool=True,
            version="indexed",
        )
        found.append((made, index.active_block_indices))
    return min(found, key=lambda pair: len(pair[1]) * pair[0].bsize[0] * pair[0].bsize[1])


def _size(text: str | int) -> Pair:
    """(18, 18) of 18 or "18", (16, 18) of "16x18"; raises ValueError for anything else."""
    numbers = [int(word) for word in str(text).split("x")]
    if not 1 <= len(numbers) <= 2:
        raise ValueError(f"block_size={text!r}: auto, a number or HEIGHTxWIDTH is needed")
    return numbers[0], numbers[-1]


def _workloads() -> Iterator[Problem]:
    for architecture, layers in ARCHITECTURES.items():
        for number, (stage, ((height, width), _)) in enumerate(STAGES.items()):
            channels, bottleneck = layers[number]
            size: dict[str, Parameter] = {"height": height, "width": width}
            masked: dict[str, Parameter] = {"mask": "topleft", "sparsity": 0.9}
            inner: dict[str, Parameter] = {"channels": bottleneck}
            outer: dict[str, Parameter] = {"channels": channels, "bottleneck": bottleneck}
            reduced: dict[str, Parameter] = {"include_reduce": False}
            blocks: dict[str, Parameter] = {"block_size": "auto"}
            for test, operation, make, parameters in (
                ("conv", "masked", conv, {**size, **inner, **masked, **reduced}),
                ("res", "masked_residual", res, {**size, **outer, **masked, **reduced}),
                ("subm", "submanifold", subm, {**size, **inner, **masked}),
                ("conv-blocks", "convolution", conv_blocks, {**size, **inner, **masked, **blocks}),
                ("res-blocks", "residual", res_blocks, {**size, **outer, **masked, **blocks}),
            ):
                source, figures = PUBLISHED.get(test.removesuffix("-blocks"), ("", ()))
                theirs = architecture == "resnet-v2" and bool(source)
                usual = architecture == "resnet-v2" and test == "conv"
                yield Problem(
                    f"{test}/{architecture}/{stage}",
                    make,
                    parameters,
                    f"{height} x {width}, {channels} channels, bottleneck {bottleneck}",
                    frozenset({"bench"} if usual else ()),
                    tiny={"height": 24, "width": 30},
                    operation=operation,
                    facets={"test": test, "arch": architecture},
                    choices={"mask": MASKS},
                    published={source: figures[number]} if theirs else {},
                )
    yield from _operators()


def _operators() -> Iterator[Problem]:
    (height, width), _ = STAGES["conv-2"]
    size: dict[str, Parameter] = {"height": height, "width": width}
    masked: dict[str, Parameter] = {"mask": "blobs", "sparsity": 0.9, "block_size": "auto"}
    largest: dict[str, Parameter] = {"avgpool": False}
    mean: dict[str, Parameter] = {"avgpool": True}
    wide: dict[str, Parameter] = {"channels": 96}
    for name, operation, make, channels in (
        ("reduce-max", "reduce_mask", reduction, largest),
        ("reduce-mean", "reduce_mask", reduction, mean),
        ("gather", "gather", gathering, wide),
        ("scatter", "scatter", scattering, wide),
    ):
        yield Problem(
            f"ops/{name}",
            make,
            {**size, **channels, **masked},
            f"the operator alone, {height} x {width}",
            tiny={"height": 24, "width": 30},
            operation=operation,
            facets={"test": "ops", "arch": "resnet-v2"},
            choices={"mask": MASKS},
        )


WORKLOADS = tuple(_workloads())
