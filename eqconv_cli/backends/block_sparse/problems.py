"""The problems of the block-sparse family: small ones that hold every special case, real data, and the user's files.

The benchmarks' problems are in :mod:`~eqconv_cli.backends.block_sparse.workloads`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.block_sparse import masks
from eqconv_cli.backends.block_sparse.geometry import Pair, block_params, block_params_chain, output_grid
from eqconv_cli.backends.block_sparse.numpy_ops import reduce_mask
from eqconv_cli.backends.block_sparse.site_patterns import make_pattern
from eqconv_cli.backends.block_sparse.voxels import voxels
from eqconv_cli.backends.block_sparse.workloads import WORKLOADS
from eqconv_cli.backends.mesh_files import load_mesh
from eqconv_cli.backends.packaged_data import missing_file, needed_file
from eqconv_cli.backends.pictures import picture
from eqconv_cli.catalog import Parameter, Problem

Arrays = dict[str, npt.NDArray[Any]]

#: One image of each kind, so that one problem has masks that are empty, full, a pixel, a corner and ragged.
_KINDS = ("noise", "empty", "full", "single", "corner", "blobs", "rings")


def words(**values: Any) -> Arrays:
    """Words, switches and whole numbers as arrays."""
    return {name: np.asarray(value) for name, value in values.items()}


def mixed_masks(rng: np.random.Generator, height: int, width: int, kinds: tuple[str, ...] = _KINDS) -> npt.NDArray[Any]:
    """[N, H, W], an image of each kind."""
    return np.concatenate([masks.make(kind, rng, 1, height, width, 0.8) for kind in kinds])


def mask_blocks(
    seed: int, height: int, width: int, tol: float, avgpool: bool, on_empty: str, window: tuple[Pair, Pair, Pair]
) -> Arrays:
    """Masks of every kind under windows (bsize, bstride, boffset), as many as reach past the far edge."""
    rng = np.random.default_rng(seed)
    kinds = ("empty", "empty") if on_empty == "first" else _KINDS
    size, stride, offset = window
    count = [2 + (n - o - 1) // s for n, o, s in zip((height, width), offset, stride, strict=True)]
    # Average pooling takes zeros and ones: their sums are exact, whatever adds them up in whatever order.
    values = mixed_masks(rng, height, width, kinds)
    if not avgpool:
        values = values * rng.normal(size=values.shape)
    geometry = words(bcount=count, bsize=size, bstride=stride, boffset=offset)
    return {
        "mask": values[..., None] if avgpool else values,
        **geometry,
        **words(tol=float(tol), avgpool=avgpool, on_empty=on_empty),
    }


def mask_pixels(seed: int, height: int, width: int, ksize: Pair, strides: Pair, padding: str) -> Arrays:
    """Masks of every kind, dilated by a kernel."""
    mask = mixed_masks(np.random.default_rng(seed), height, width)
    return {"mask": mask, **words(tol=0.5, ksize=ksize, strides=strides, padding=padding)}


def listed(rng: np.random.Generator, mask: npt.NDArray[Any], window: tuple[Pair, Pair, Pair]) -> npt.NDArray[np.int32]:
    """Rows of the active blocks in no order, some of them twice."""
    size, stride, offset = window
    count = [2 + (n - o - 1) // s for n, o, s in zip(mask.shape[1:], offset, stride, strict=True)]
    index = reduce_mask(
        mask, count, bsize=size, bstride=stride, boffset=offset, tol=0.5, avgpool=False, version="sliced"
    )
    rows = index.active_block_indices
    return rng.permutation(np.concatenate([rows, rows[: len(rows) // 5]]))


def gathered(
    seed: int, height: int, width: int, channels: int, transpose: bool, window: tuple[Pair, Pair, Pair]
) -> Arrays:
    """Blocks of a batch of masks of every kind."""
    rng = np.random.default_rng(seed)
    mask = mixed_masks(rng, height, width, ("noise", "empty", "corner"))
    size, stride, offset = window
    return {
        "x": rng.normal(size=(*mask.shape, channels)),
        "index": listed(rng, mask, window),
        **words(bsize=size, bstride=stride, boffset=offset, transpose=transpose),
    }


def scattered(
    seed: int,
    height: int,
    width: int,
    channels: int,
    transpose: bool,
    add: bool,
    window: tuple[Pair, Pair, Pair],
) -> Arrays:
    """Blocks to put into a base that is nowhere 0."""
    rng = np.random.default_rng(seed)
    given = gathered(seed, height, width, channels, transpose, window)
    shape = given.pop("x").shape
    block = (channels, *window[0]) if transpose else (*window[0], channels)
    return {
        "blocks": rng.normal(size=(len(given["index"]), *block)),
        "ybase": 10 + rng.normal(size=shape),
        **given,
        **words(add=add, atomic=add),
    }


def layer(rng: np.random.Generator, ksize: Pair, channels: int, filters: int, bias: bool = True) -> Arrays:
    """A kernel with outputs of order 1."""
    w = rng.normal(size=(*ksize, channels, filters)) / (ksize[0] * ksize[1] * channels) ** 0.5
    return {"w": w, **({"bias": rng.normal(size=filters)} if bias else {})}


def convolved(
    seed: int,
    size: tuple[int, int, int],
    channels: int,
    filters: int,
    ksize: Pair,
    bsize: Pair,
    strides: Pair,
    padding: str,
    coverage: str,
    activation: str,
) -> Arrays:
    """A convolution on blocks over a base that is nowhere 0."""
    rng = np.random.default_rng(seed)
    params = block_params(size[1:], bsize, ksize, strides, padding, coverage)
    mask = mixed_masks(rng, *size[1:], (*_KINDS[:1], "empty", "corner")[: size[0]])
    index = reduce_mask(
        mask, params.bcount, bsize=params.bsize, bstride=params.bstrides, boffset=params.boffset, tol=0.5
    )
    return {
        "x": rng.normal(size=(*size, channels)),
        **layer(rng, ksize, channels, filters),
        "index": rng.permutation(index.active_block_indices),
        "base": 10 + rng.normal(size=(size[0], *params.out_size, filters)),
        **words(bsize=bsize, strides=strides, padding=padding, coverage=coverage, activation=activation),
    }


def at_pixels(
    seed: int,
    size: tuple[int, int, int],
    channels: int,
    filters: int,
    ksize: Pair,
    strides: Pair,
    padding: str,
    activation: str,
    kinds: tuple[str, ...],
) -> Arrays:
    """A convolution at the pixels of masks of these kinds, one image each, over a base that is nowhere 0."""
    rng = np.random.default_rng(seed)
    _, height, width = output_grid(size, ksize, strides, padding)
    mask = mixed_masks(rng, height, width, kinds)
    return {
        "x": rng.normal(size=(*size, channels)),
        **layer(rng, ksize, channels, filters),
        "pixels": np.flatnonzero(mask).astype(np.int32),
        "base": 10 + rng.normal(size=(*mask.shape, filters)),
        **words(strides=strides, padding=padding, activation=activation),
    }


def unit(rng: np.random.Generator, channels: int, bottleneck: int, filters: int = 0, first: bool = True) -> Arrays:
    """A trained-like residual unit: normalisations that are not the identity; ``filters`` for a projection."""

    def norm(features: int) -> npt.NDArray[Any]:
        rows = rng.normal(size=(3, features)) * 0.3 + np.array([[1.0], [0.3], [0.1]])
        return np.concatenate([rows, rng.uniform(0.5, 1.5, (1, features))])

    made = {
        "w1": rng.normal(size=(channels, bottleneck)) / channels**0.5,
        "w2": rng.normal(size=(3, 3, bottleneck, bottleneck)) / (9 * bottleneck) ** 0.5,
        "w3": rng.normal(size=(bottleneck, filters or channels)) / bottleneck**0.5,
        "bn2": norm(bottleneck),
        "bn3": norm(bottleneck),
    }
    if first:
        made["bn1"] = norm(channels)
    if filters:
        made["w_project"] = rng.normal(size=(channels, filters)) / channels**0.5
    return made


def residual(
    seed: int,
    size: tuple[int, int, int],
    channels: int,
    bottleneck: int,
    filters: int,
    bsize: Pair,
    strides: Pair,
    border: str,
    bn: str,
) -> Arrays:
    """A residual unit on blocks, some at the edge of the image."""
    rng = np.random.default_rng(seed)
    params = block_params_chain(size[1:], bsize, [(1, 1), (3, 3), (1, 1)], strides)
    mask = mixed_masks(rng, *size[1:], ("noise", "corner", "blobs")[: size[0]])
    index = reduce_mask(
        mask, params.bcount, bsize=params.bsize, bstride=params.bstrides, boffset=params.boffset, tol=0.5
    )
    return {
        "x": rng.normal(size=(*size, channels)),
        "index": rng.permutation(index.active_block_indices),
        **unit(rng, channels, bottleneck, filters),
        **words(bsize=bsize, strides=strides, border=border, bn=bn),
    }


def masked_residual(
    seed: int, size: tuple[int, int, int], channels: int, bottleneck: int, border: str, first: bool
) -> Arrays:
    """A residual unit at pixels, some at the edge of the image."""
    rng = np.random.default_rng(seed)
    mask = mixed_masks(rng, *size[1:], ("noise", "corner", "empty")[: size[0]])
    return {
        "x": rng.normal(size=(*size, channels)),
        "pixels": np.flatnonzero(mask).astype(np.int32),
        **unit(rng, channels, bottleneck, first=first),
        **words(border=border),
    }


def sites(
    seed: int,
    shape: tuple[int, ...],
    batch: int,
    density: float,
    channels: int,
    filters: int,
    ksize: tuple[int, ...],
    dilation: int,
    groups: int,
) -> Arrays:
    """Random sites in no order."""
    rng = np.random.default_rng(seed)
    coords = rng.permutation(np.argwhere(rng.random((batch, *shape)) < density)).astype(np.int32)
    return on_sites(rng, coords, shape, batch, channels, filters, ksize, dilation, groups)


def on_sites(
    rng: np.random.Generator,
    coords: npt.NDArray[np.int32],
    shape: tuple[int, ...],
    batch: int,
    channels: int,
    filters: int,
    ksize: tuple[int, ...],
    dilation: int = 1,
    groups: int = 1,
) -> Arrays:
    """A submanifold convolution on given sites."""
    fan_in = int(np.prod(ksize)) * channels / groups
    return {
        "coords": coords,
        "feats": rng.normal(size=(len(coords), channels)),
        "w": rng.normal(size=(*ksize, channels // groups, filters)) / fan_in**0.5,
        "bias": rng.normal(size=filters),
        **words(shape=shape, batch=batch, dilation=[dilation] * len(shape), groups=groups),
    }


def strided(
    seed: int,
    shape: tuple[int, ...],
    batch: int,
    density: float,
    channels: int,
    filters: int,
    ksize: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    inverse: bool,
) -> Arrays:
    """A strided convolution of random sites in no order, or the way back."""
    given = sites(seed, shape, batch, density, channels, filters, ksize, 1, 1)
    del given["groups"]
    if inverse:
        pattern, _ = make_pattern(given["coords"], shape, batch)
        made = pattern.strided(ksize, stride, padding).out.sites
        given["feats"] = np.random.default_rng(seed + 1).normal(size=(made, channels))
    return {**given, **words(stride=stride, padding=padding, inverse=inverse)}


# Real data.


def elevation() -> npt.NDArray[np.float64]:
    """Heights of the Jacksboro fault (U.S. Geological Survey) from Matplotlib's samples, 344 x 403, between 0 and 1."""
    with np.load(needed_file(*_DEM)) as stored:
        heights = stored["elevation"].astype(np.float64)
    return (heights - heights.min()) / np.ptp(heights)


def range_scan() -> npt.NDArray[np.float64]:
    """A range scan of a face from PyMeshLab's samples: 85,849 points in space."""
    return load_mesh(needed_file(*_SCAN))[0]


def terrain(seed: int, channels: int, filters: int, sparsity: float) -> Arrays:
    """A 3x3 convolution on the highest parts of a landscape: height and slopes, mixed to ``channels`` features."""
    heights = elevation()
    return on_picture(seed, np.stack([heights, *np.gradient(heights)], -1), channels, filters, sparsity)


def on_picture(seed: int, colours: npt.NDArray[Any], channels: int, filters: int, sparsity: float) -> Arrays:
    """A 3x3 convolution where a picture's first channel is not below its quantile."""
    rng = np.random.default_rng(seed)
    mask = colours[..., 0] >= np.quantile(colours[..., 0], sparsity)
    x = (colours @ rng.normal(size=(colours.shape[2], channels)))[None]
    return {
        "x": x,
        **layer(rng, (3, 3), channels, filters),
        "pixels": np.flatnonzero(mask).astype(np.int32),
        "base": np.zeros((*x.shape[:3], filters)),
        **words(strides=(1, 1), padding="SAME", activation="relu"),
    }


def scan(seed: int, resolution: int, channels: int, filters: int) -> Arrays:
    """A 3x3x3 submanifold convolution on the voxels of a range scan: a surface in space."""
    points = range_scan()
    edge = np.ptp(points, axis=0).max() / resolution
    found = voxels(points, edge)
    coords = np.unique(found.coords, axis=0).astype(np.int32)
    return on_sites(np.random.default_rng(seed), coords, found.shape, 1, channels, filters, (3, 3, 3))


# The user's own files.


def mask_file(path: Path) -> tuple[Problem, ...]:
    """Problems on a user's mask, see :func:`masks.stored`: random features, each kind of operation."""
    mask = masks.stored(path)
    named = partial(Problem, f"mask:{path.name}", title=str(path), traits=frozenset({"real"}))

    def blocks(seed: int, block_size: int) -> Arrays:
        params = block_params(mask.shape[1:], (block_size, block_size), (3, 3))
        window = words(bcount=params.bcount, bsize=params.bsize, bstride=params.bstrides, boffset=params.boffset)
        return {"mask": mask, **window, **words(tol=0.5, avgpool=False, on_empty="none")}

    def pixels(seed: int, channels: int) -> Arrays:
        rng = np.random.default_rng(seed)
        return {
            "x": rng.normal(size=(*mask.shape, channels)),
            **layer(rng, (3, 3), channels, channels),
            "pixels": np.flatnonzero(mask).astype(np.int32),
            "base": np.zeros((*mask.shape, channels)),
            **words(strides=(1, 1), padding="SAME", activation="none"),
        }

    def residual_unit(seed: int, channels: int, bottleneck: int) -> Arrays:
        rng = np.random.default_rng(seed)
        x, listing = rng.normal(size=(*mask.shape, channels)), np.flatnonzero(mask).astype(np.int32)
        return {"x": x, "pixels": listing, **unit(rng, channels, bottleneck), **words(border="dense")}

    def on_mask_sites(seed: int, channels: int) -> Arrays:
        coords = np.argwhere(mask).astype(np.int32)
        images, *shape = mask.shape
        return on_sites(np.random.default_rng(seed), coords, tuple(shape), images, channels, channels, (3, 3))

    return (
        named(make=blocks, parameters={"block_size": 16}, operation="reduce_mask"),
        named(make=pixels, parameters={"channels": 16}, operation="masked"),
        named(make=residual_unit, parameters={"channels": 32, "bottleneck": 8}, operation="masked_residual"),
        named(make=on_mask_sites, parameters={"channels": 16}, operation="submanifold"),
    )


def image_file(path: Path) -> Problem:
    """A 3x3 convolution on a user's picture where it is brightest; its colours are mixed to ``channels`` features."""
    colours = picture(path)
    features = np.concatenate([masks.gray(colours)[..., None], colours], -1)
    parameters: dict[str, Parameter] = {"channels": 16, "filters": 16, "sparsity": 0.9}
    make = partial(_on_picture, features)
    return Problem(
        f"image:{path.name}", make, parameters, title=str(path), traits=frozenset({"real"}), operation="masked"
    )


def _on_picture(colours: npt.NDArray[Any], seed: int, channels: int, filters: int, sparsity: float) -> Arrays:
    return on_picture(seed, colours, channels, filters, sparsity)


def missing_scan() -> list[str]:
    """Why the range scan cannot be read; empty when it can."""
    if importlib.util.find_spec("trimesh") is None:
        return [*missing_file(*_SCAN), 'the package trimesh is not installed (pip install "eqconv[data]")']
    return missing_file(*_SCAN)


_SCAN = ("pymeshlab", "tests/sample_meshes/rangemaps/face000.ply")
_DEM = ("matplotlib", "mpl-data/sample_data/jacksboro_fault_dem.npz")
_DEFAULT = ("verify",)
_SMALLEST = ("verify", "quick", "tiny", "invariants")


def _problem(
    operation: str, name: str, make: Callable[..., Arrays], title: str, traits: tuple[str, ...], **fixed: Any
) -> Problem:
    """Parameters that are one number or word stay open to ``--set``; pairs are fixed."""
    open_ = {key: value for key, value in fixed.items() if isinstance(value, int | float | str)}
    closed = {key: value for key, value in fixed.items() if key not in open_}
    return Problem(name, partial(make, **closed), open_, title, frozenset(traits), operation=operation)


def _window(bsize: Pair, bstride: Pair, boffset: Pair) -> tuple[Pair, Pair, Pair]:
    return bsize, bstride, boffset


_OVERLAP = _window((4, 5), (3, 2), (-1, -2))
_GAPS = _window((3, 2), (4, 5), (1, 0))
_TILES = _window((3, 3), (3, 3), (-3, 2))

_MASKS = (
    _problem(
        "reduce_mask", "mask-overlap", mask_blocks, "masks of every kind, windows overlap, start outside", _SMALLEST,
        height=13, width=10, tol=0.5, avgpool=False, on_empty="none", window=_OVERLAP,
    ),
    _problem(
        "reduce_mask", "mask-average", mask_blocks, "averages, gaps between the windows, one channel", _DEFAULT,
        height=7, width=11, tol=0.05, avgpool=True, on_empty="none", window=_GAPS,
    ),
    _problem(
        "reduce_mask", "mask-outside", mask_blocks, "a tolerance below 0 makes averages outside the image active",
        _DEFAULT, height=6, width=5, tol=-0.25, avgpool=True, on_empty="none", window=_window((2, 3), (2, 3), (-6, -2)),
    ),
    _problem(
        "reduce_mask", "mask-first", mask_blocks, "nothing is active: block (0, 0, 0) as in SBNet",
        (*_DEFAULT, "first"), height=5, width=5, tol=0.0, avgpool=False, on_empty="first",
        window=_window((1, 1), (1, 1), (0, 0)),
    ),
    _problem(
        "reduce_mask", "mask-large", mask_blocks, "windows larger than the image", ("full",),
        height=28, width=28, tol=0.0, avgpool=False, on_empty="none", window=_window((40, 41), (16, 18), (-3, 2)),
    ),
    _problem(
        "pixel_index", "mask-dilated", mask_pixels, "masks of every kind, dilated by 3x3", _SMALLEST,
        height=13, width=9, ksize=(3, 3), strides=(1, 1), padding="SAME",
    ),
    _problem(
        "pixel_index", "mask-dilated-strided", mask_pixels, "strides 2 and 1 over 2x3, no padding", _DEFAULT,
        height=7, width=11, ksize=(2, 3), strides=(2, 1), padding="VALID",
    ),
)  # fmt: skip

_BLOCKS = (
    _problem(
        "gather", "gather", gathered, "overlapping windows that start outside", _SMALLEST,
        height=7, width=11, channels=3, transpose=False, window=_OVERLAP,
    ),
    _problem(
        "gather", "gather-transposed", gathered, "gaps, channels first", (*_DEFAULT, "transposed"),
        height=13, width=9, channels=17, transpose=True, window=_GAPS,
    ),
    _problem(
        "gather", "gather-1x1", gathered, "one pixel, many channels", ("full",),
        height=1, width=1, channels=50176, transpose=False, window=_window((2, 3), (1, 1), (0, 0)),
    ),
    _problem(
        "scatter", "scatter", scattered, "the later of two blocks wins", (*_SMALLEST, "overlap"),
        height=7, width=11, channels=3, transpose=False, add=False, window=_OVERLAP,
    ),
    _problem(
        "scatter", "scatter-sums", scattered, "overlapping blocks add up, channels first",
        (*_DEFAULT, "invariants", "overlap", "transposed", "sums"),
        height=13, width=9, channels=5, transpose=True, add=True, window=_OVERLAP,
    ),
    _problem(
        "scatter", "scatter-plain", scattered, "no overlap, channels last", ("full",),
        height=9, width=13, channels=4, transpose=False, add=False, window=_TILES,
    ),
    _problem(
        "scatter", "scatter-tiles", scattered, "no overlap, channels first", (*_DEFAULT, "transposed"),
        height=13, width=9, channels=17, transpose=True, add=False, window=_TILES,
    ),
)  # fmt: skip

_CONVOLUTIONS = (
    _problem(
        "convolution", "blocks-same", convolved, "3x3 with bias and ReLU on 5x4 blocks", _SMALLEST,
        size=(3, 13, 10), channels=3, filters=5, ksize=(3, 3), bsize=(5, 4), strides=(1, 1), padding="SAME",
        coverage="full", activation="relu",
    ),
    _problem(
        "convolution", "blocks-strided", convolved, "2x3 with stride 2, no padding", _DEFAULT,
        size=(2, 9, 12), channels=7, filters=2, ksize=(2, 3), bsize=(4, 5), strides=(2, 2), padding="VALID",
        coverage="full", activation="none",
    ),
    _problem(
        "convolution", "blocks-original", convolved, "SBNet's number of blocks, which leaves rows uncovered", ("full",),
        size=(1, 14, 13), channels=4, filters=4, ksize=(3, 3), bsize=(5, 5), strides=(1, 1), padding="SAME",
        coverage="original", activation="none",
    ),
    _problem(
        "masked", "pixels-same", at_pixels, "3x3 with bias and ReLU, masks of every kind", _SMALLEST,
        size=(4, 13, 10), channels=3, filters=5, ksize=(3, 3), strides=(1, 1), padding="SAME", activation="relu",
        kinds=("noise", "empty", "corner", "full"),
    ),
    _problem(
        "masked", "pixels-strided", at_pixels, "5x3 with strides 2 and 1", (*_DEFAULT, "strides"),
        size=(2, 11, 14), channels=7, filters=24, ksize=(5, 3), strides=(2, 1), padding="SAME", activation="none",
        kinds=("blobs", "single"),
    ),
    _problem(
        "masked", "pixels-none", at_pixels, "no pixel at all", _DEFAULT,
        size=(1, 5, 5), channels=2, filters=3, ksize=(3, 3), strides=(1, 1), padding="VALID", activation="none",
        kinds=("empty",),
    ),
    Problem(
        "terrain", terrain, {"channels": 5, "filters": 8, "sparsity": 0.9},
        "the highest tenth of the Jacksboro fault, 344 x 403 (Matplotlib's samples)", frozenset({"verify", "real"}),
        partial(missing_file, *_DEM, "plots"), operation="masked",
    ),
)  # fmt: skip

_UNITS = (
    _problem(
        "residual", "unit-blocks", residual, "fixed statistics, equal to the dense unit", _SMALLEST,
        size=(2, 9, 11), channels=4, bottleneck=3, filters=0, bsize=(5, 6), strides=(1, 1), border="dense",
        bn="inference",
    ),
    _problem(
        "residual", "unit-original", residual, "the border as in SBNet", (*_DEFAULT, "invariants", "ring"),
        size=(2, 7, 8), channels=4, bottleneck=3, filters=0, bsize=(5, 4), strides=(1, 1), border="original",
        bn="inference",
    ),
    _problem(
        "residual", "unit-stack", residual, "statistics of the stack, border as in SBNet", (*_DEFAULT, "statistics"),
        size=(3, 9, 9), channels=4, bottleneck=2, filters=0, bsize=(5, 5), strides=(1, 1), border="original",
        bn="stack",
    ),
    _problem(
        "residual", "unit-active", residual, "statistics of the active pixels", (*_DEFAULT, "statistics"),
        size=(3, 9, 9), channels=4, bottleneck=2, filters=0, bsize=(5, 5), strides=(1, 1), border="dense", bn="active",
    ),
    _problem(
        "residual", "unit-strided", residual, "strides 2 and a projection", (*_DEFAULT, "projection"),
        size=(2, 10, 9), channels=3, bottleneck=2, filters=6, bsize=(7, 9), strides=(2, 2), border="dense",
        bn="inference",
    ),
    _problem(
        "masked_residual", "unit-pixels", masked_residual, "at pixels, equal to the dense unit", _SMALLEST,
        size=(3, 9, 11), channels=5, bottleneck=3, border="dense", first=True,
    ),
    _problem(
        "masked_residual", "unit-pixels-original", masked_residual, "the border as in SBNet, no first normalisation",
        (*_DEFAULT, "ring"), size=(2, 7, 8), channels=4, bottleneck=3, border="original", first=False,
    ),
)  # fmt: skip

_SITES = (
    _problem(
        "submanifold", "sites-2d", sites, "3x3 in the plane, two samples", _SMALLEST,
        shape=(9, 12), batch=2, density=0.4, channels=3, filters=5, ksize=(3, 3), dilation=1, groups=1,
    ),
    _problem(
        "submanifold", "sites-grouped", sites, "two groups, an even kernel, dilated", (*_DEFAULT, "grouped", "3d"),
        shape=(8, 7, 9), batch=1, density=0.2, channels=4, filters=6, ksize=(2, 3, 3), dilation=2, groups=2,
    ),
    _problem(
        "submanifold", "sites-none", sites, "no site", (*_DEFAULT, "1d"),
        shape=(4,), batch=1, density=0.0, channels=2, filters=3, ksize=(3,), dilation=1, groups=1,
    ),
    _problem(
        "submanifold", "sites-4d", sites, "four axes", ("full", "4d"),
        shape=(4, 5, 3, 4), batch=2, density=0.3, channels=2, filters=3, ksize=(3, 3, 3, 3), dilation=1, groups=1,
    ),
    Problem(
        "scan", scan, {"resolution": 40, "channels": 4, "filters": 8},
        "voxels of a range scan of a face (PyMeshLab's samples)", frozenset({"verify", "real", "3d"}),
        missing_scan, operation="submanifold",
    ),
    _problem(
        "strided", "strided-2d", strided, "3x3 with stride 2", _SMALLEST,
        shape=(9, 12), batch=2, density=0.2, channels=3, filters=5, ksize=(3, 3), stride=(2, 2), padding=(1, 1),
        inverse=False,
    ),
    _problem(
        "strided", "strided-3d", strided, "2x2x3 with strides 2, 1, 3", _DEFAULT,
        shape=(6, 5, 7), batch=1, density=0.1, channels=4, filters=2, ksize=(2, 2, 3), stride=(2, 1, 3),
        padding=(0, 1, 0), inverse=False,
    ),
    _problem(
        "strided", "inverse", strided, "back from the outputs of a convolution with stride 2", _DEFAULT,
        shape=(9, 12), batch=2, density=0.2, channels=3, filters=5, ksize=(3, 3), stride=(2, 2), padding=(1, 1),
        inverse=True,
    ),
)  # fmt: skip

PROBLEMS = (*_MASKS, *_BLOCKS, *_CONVOLUTIONS, *_UNITS, *_SITES, *WORKLOADS)
