"""The oracle: every operation of this family and its gradients in float64, as the definitions stand.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018 (blocks, residual unit); Graham, van der Maaten, arXiv 1706.01307
(submanifold). One block after the other, one site after the other; sums over taps are products of listed rows with the
tap's matrix. Every function takes the arrays of a problem by name; words and numbers are arrays without axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.block_sparse.geometry import (
    BlockParams,
    block_params,
    block_params_chain,
    out_extent,
    paddings,
)

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Arrays = Mapping[str, npt.NDArray[Any]]
Results = dict[str, npt.NDArray[Any]]

EPSILON = 1e-3


# Masks.


def reduce_mask(inputs: Arrays) -> Results:
    """Blocks whose window has a value above the tolerance, or with ``avgpool`` a mean above it, in raster order.

    Args:
        inputs: ``mask`` [N, H, W] or [N, H, W, 1], ``bcount``, ``bsize``, ``bstride``, ``boffset`` [2], ``tol``,
            ``avgpool``, ``on_empty``.

    Returns:
        ``active_block_indices`` [B, 3] and ``bin_counts`` [1]. Values are compared in float32 and added in float64; a
        mean divides by the whole window, also where that is outside the image.
    """
    mask, tol = _mask(inputs), np.float32(inputs["tol"])
    (rows, columns), size = _pair(inputs["bcount"]), _pair(inputs["bsize"])
    grid = np.array(list(product(range(len(mask)), range(rows), range(columns))), np.int64).reshape(-1, 3)
    active = []
    for window in _windows(grid, inputs, mask.shape):
        values = mask[window.image]
        mean = values.sum(dtype=np.float64) / (size[0] * size[1])
        active.append(bool(mean > tol) if inputs["avgpool"] else bool((values > tol).any()))
    found = grid[np.array(active, bool)]
    if not len(found) and str(inputs["on_empty"]) == "first":
        found = np.zeros((1, 3), np.int64)
    return {"active_block_indices": found, "bin_counts": np.array([len(found)])}


def pixel_index(inputs: Arrays) -> Results:
    """Output pixels of a convolution whose window has a mask value above the tolerance, as flat positions.

    Args:
        inputs: ``mask`` as for :func:`reduce_mask`, ``tol``, ``ksize`` and ``strides`` [2], ``padding``.

    Returns:
        ``pixels`` [P], ascending, and ``count`` [1].
    """
    mask = _mask(inputs)
    above = (mask > np.float32(inputs["tol"])).reshape(-1)
    grid = _out_grid(mask.shape, _pair(inputs["ksize"]), inputs)
    active = np.zeros(int(np.prod(grid)), bool)
    for _, outputs, rows in _taps(mask.shape, _pair(inputs["ksize"]), np.arange(len(active)), grid, inputs):
        active[outputs] |= above[rows]
    pixels = np.flatnonzero(active)
    return {"pixels": pixels, "count": np.array([len(pixels)])}


# Blocks in and out.


def gather(inputs: Arrays) -> Results:
    """The windows of the listed blocks, 0 outside the image.

    Args:
        inputs: ``x`` [N, H, W, C], ``index`` [B, 3], ``bsize``, ``bstride``, ``boffset`` [2], ``transpose``.

    Returns:
        ``blocks`` [B, h, w, C], or with ``transpose`` [B, C, h, w].
    """
    x = _float(inputs["x"])
    return {"blocks": _transposed(_gathered(x, inputs), inputs)}


def gather_gradients(inputs: Arrays, cotangents: Arrays) -> Results:
    """Where windows overlap, their cotangents add up."""
    blocks, dx = _channels_last(_float(cotangents["blocks"]), inputs), np.zeros(inputs["x"].shape)
    for window in _windows(inputs["index"], inputs, dx.shape):
        dx[window.image] += blocks[window.block]
    return {"x": dx}


def scatter(inputs: Arrays) -> Results:
    """Blocks written (the later row wins) or with ``add`` added to a copy of ``ybase``.

    Args:
        inputs: ``blocks`` as :func:`gather` returns them, ``index``, ``ybase`` [N, H, W, C], ``bsize``, ``bstride``,
            ``boffset``, ``add``, ``atomic``, ``transpose``.

    Returns:
        ``y`` [N, H, W, C].
    """
    blocks, y = _channels_last(_float(inputs["blocks"]), inputs), _float(inputs["ybase"]).copy()
    for window in _windows(inputs["index"], inputs, y.shape):
        if inputs["add"]:
            y[window.image] += blocks[window.block]
        else:
            y[window.image] = blocks[window.block]
    return {"y": y}


def scatter_gradients(inputs: Arrays, cotangents: Arrays) -> Results:
    """A block gets the cotangent of the pixels that it owns, the base that of the pixels that nobody wrote."""
    dy = _float(cotangents["y"])
    if inputs["add"]:
        return {"blocks": _transposed(_gathered(dy, inputs), inputs), "ybase": dy.copy()}
    owner = np.full(dy.shape[:3], -1)
    for window in _windows(inputs["index"], inputs, dy.shape):
        owner[window.image] = window.row
    dblocks = np.zeros((len(inputs["index"]), *_pair(inputs["bsize"]), dy.shape[3]))
    for window in _windows(inputs["index"], inputs, dy.shape):
        mine = owner[window.image] == window.row
        dblocks[window.block] = dy[window.image] * mine[..., None]
    return {"blocks": _transposed(dblocks, inputs), "ybase": dy * (owner < 0)[..., None]}


# Convolutions of an image at some of its pixels.


def convolution(inputs: Arrays) -> Results:
    """The dense convolution at every pixel of the active blocks' tiles, the base at all others.

    Args:
        inputs: ``x`` [N, H, W, C], ``w`` [kh, kw, C, K], optional ``bias`` [K], ``index`` [B, 3], ``bsize``,
            ``strides`` [2], ``padding``, ``coverage``, optional ``base`` [N, Hout, Wout, K] (else zeros),
            ``activation`` ("none" or "relu").

    Returns:
        ``y`` [N, Hout, Wout, K].
    """
    return masked({**inputs, "pixels": _covered(inputs)})


def convolution_gradients(inputs: Arrays, cotangents: Arrays) -> Results:
    """Gradients of ``x``, ``w`` and ``bias`` from the covered pixels' cotangents, and of ``base`` from the others'."""
    return masked_gradients({**inputs, "pixels": _covered(inputs)}, cotangents)


def masked(inputs: Arrays) -> Results:
    """The dense convolution at the listed output pixels, the base at all others.

    Args:
        inputs: as for :func:`convolution`, with flat positions ``pixels`` [P] instead of the blocks.

    Returns:
        ``y`` [N, Hout, Wout, K].
    """
    y = _base(inputs)
    y.reshape(-1, y.shape[3])[inputs["pixels"]] = _activated(_convolved(inputs), inputs)
    return {"y": y}


def masked_gradients(inputs: Arrays, cotangents: Arrays) -> Results:
    """As :func:`convolution_gradients`."""
    x, w, pixels = _float(inputs["x"]), _float(inputs["w"]), inputs["pixels"]
    dy = _float(cotangents["y"]).reshape(-1, w.shape[3])
    listed = dy[pixels]
    if str(inputs["activation"]) == "relu":
        listed = listed * (_convolved(inputs) > 0)
    dbase = dy.copy()
    dbase[pixels] = 0
    dx, dw = np.zeros_like(x).reshape(-1, x.shape[3]), np.zeros_like(w)
    grid = _out_grid(x.shape, w.shape[:2], inputs)
    for tap, outputs, rows in _taps(x.shape, w.shape[:2], pixels, grid, inputs):
        dx[rows] += listed[outputs] @ w[tap].T
        dw[tap] = x.reshape(dx.shape)[rows].T @ listed[outputs]
    return {
        "x": dx.reshape(x.shape),
        "w": dw,
        "bias": listed.sum(0),
        "base": dbase.reshape(cotangents["y"].shape),
    }


def _convolved(inputs: Arrays) -> Array:
    """bias + Σ_taps x[pixel under the tap] w[tap], for each listed pixel [P, K]."""
    x, w = _float(inputs["x"]), _float(inputs["w"])
    y = np.zeros((len(inputs["pixels"]), w.shape[3]))
    if "bias" in inputs:
        y += _float(inputs["bias"])
    grid = _out_grid(x.shape, w.shape[:2], inputs)
    for tap, outputs, rows in _taps(x.shape, w.shape[:2], inputs["pixels"], grid, inputs):
        y[outputs] += x.reshape(-1, x.shape[3])[rows] @ w[tap]
    return y


def _base(inputs: Arrays) -> Array:
    if "base" in inputs:
        return _float(inputs["base"]).copy()
    return np.zeros((*_out_grid(inputs["x"].shape, inputs["w"].shape[:2], inputs), inputs["w"].shape[3]))


def _activated(y: Array, inputs: Arrays) -> Array:
    return np.maximum(y, 0) if str(inputs["activation"]) == "relu" else y


def _covered(inputs: Arrays) -> Ints:
    """Flat positions of the output pixels in the tiles of the active blocks."""
    x, w = inputs["x"], inputs["w"]
    strides, words = _pair(inputs["strides"]), (str(inputs["padding"]), str(inputs["coverage"]))
    params = block_params(x.shape, _pair(inputs["bsize"]), w.shape[:2], strides, *words)
    return _tile_pixels(inputs["index"], params, x.shape[0])


def _tile_pixels(index: npt.NDArray[Any], params: BlockParams, images: int) -> Ints:
    inside = np.zeros((images, *params.out_size), bool)
    for window in _tiles(index, params):
        inside[window.image] = True
    return np.flatnonzero(inside)


# The residual unit.


def residual(inputs: Arrays) -> Results:
    """Shortcut + conv1x1(relu(bn3(conv3x3(relu(bn2(conv1x1(relu(bn1(x)))))))) at the covered pixels; else the shortcut.

    Args:
        inputs: ``x`` [N, H, W, C], ``index`` [B, 3], ``bsize``, ``border`` ("dense": outside the image the input of
            the 3x3 convolution is 0; "original": it is what x = 0 gives), ``bn`` ("inference"; "stack": statistics of
            all gathered positions; "active": of the covered pixels, each once), ``w1`` [C, M], ``w2`` [3, 3, M, M],
            ``w3`` [M, Cout], ``bn1`` [4, C] (rows scale, offset, mean, variance; absent: neither it nor the first
            ReLU), ``bn2``, ``bn3`` [4, M], ``strides`` [2] of the first convolution, optional ``w_project`` [C, Cout].

    Returns:
        ``y`` [N, Hout, Wout, Cout]; the shortcut is x or, with ``w_project``, its strided 1x1 convolution.
    """
    return _residual(inputs)[0]


def residual_gradients(inputs: Arrays, cotangents: Arrays) -> Results:
    """Gradients of ``x``, the matrices and the normalisations, through their statistics where those are computed."""
    return _residual(inputs)[1](cotangents)


def masked_residual(inputs: Arrays) -> Results:
    """The unit of :func:`residual` at the listed ``pixels`` with fixed statistics and stride 1; y = x elsewhere."""
    return _masked_residual(inputs)[0]


def masked_residual_gradients(inputs: Arrays, cotangents: Arrays) -> Results:
    """As :func:`residual_gradients`."""
    return _masked_residual(inputs)[1](cotangents)


class _Rows(NamedTuple):
    """Where the unit is computed: rows of positions, an output for each row of a table of nine."""

    #: Input pixel of each row [R]; -1 is outside the image.
    source: Ints
    #: Row under each tap of each output [Q, 9].
    table: Ints
    #: Output pixel of each output [Q]; -1 is outside the image and dropped.
    target: Ints
    #: Rows that count in the statistics of bn1, rows of bn2, outputs of bn3; None: fixed statistics.
    counted: tuple[Ints, Ints, Ints] | None


def _residual(inputs: Arrays) -> tuple[Results, Callable[[Arrays], Results]]:
    strides = _pair(inputs["strides"])
    params = block_params_chain(inputs["x"].shape, _pair(inputs["bsize"]), [(1, 1), (3, 3), (1, 1)], strides)
    if str(inputs["bn"]) == "stack":
        return _unit(inputs, _stack_rows(inputs, params), strides)
    pixels = _tile_pixels(inputs["index"], params, inputs["x"].shape[0])
    return _unit(inputs, _pixel_rows(inputs["x"].shape, pixels, strides, str(inputs["bn"]) == "active"), strides)


def _masked_residual(inputs: Arrays) -> tuple[Results, Callable[[Arrays], Results]]:
    return _unit(inputs, _pixel_rows(inputs["x"].shape, inputs["pixels"], (1, 1), False), (1, 1))


def _pixel_rows(shape: tuple[int, ...], pixels: Ints, strides: tuple[int, int], active: bool) -> _Rows:
    """A row for each pixel that the 3x3 windows see; the last is the outside."""
    images, height, width = shape[0], *(-(-n // s) for n, s in zip(shape[1:3], strides, strict=True))
    seen = np.full((len(pixels), 9), -1)
    at = {"strides": np.array([1, 1]), "padding": np.array("SAME")}
    grid = (images, height, width)
    for (i, j), outputs, rows in _taps(grid, (3, 3), pixels, grid, at):
        seen[outputs, 3 * i + j] = rows
    positions = np.unique(np.append(seen[seen >= 0], pixels))
    n, h, w = np.unravel_index(positions, grid)
    source = np.ravel_multi_index((n, h * strides[0], w * strides[1]), shape[:3]) if len(positions) else positions
    table = np.where(seen >= 0, np.searchsorted(positions, seen), len(positions))
    listed = np.searchsorted(positions, pixels)
    counted = listed, listed, np.arange(len(pixels))
    return _Rows(np.append(source, -1).astype(np.int64), table, pixels, counted if active else None)


def _stack_rows(inputs: Arrays, params: BlockParams) -> _Rows:
    """A row for each position of each gathered block, in the image or not, and all of them are counted."""
    strides, (down, right) = _pair(inputs["strides"]), params.bsize
    rows = np.arange(len(inputs["index"]) * down * right).reshape(-1, down, right)
    source, target = np.full(rows.shape, -1), np.full((len(rows), *params.bsize_out), -1)
    pixels = np.arange(int(np.prod(inputs["x"].shape[:3]))).reshape(inputs["x"].shape[:3])
    for window in _clipped(inputs["index"], params.bsize, params.bstrides, params.boffset, pixels.shape[1:]):
        source[window.block] = pixels[window.image]
    outputs = np.arange(len(pixels) * int(np.prod(params.out_size))).reshape(-1, *params.out_size)
    for window in _tiles(inputs["index"], params):
        target[window.block] = outputs[window.image]
    kept = rows[:, :: strides[0], :: strides[1]]
    down, right = params.bsize_out
    taps = [kept[:, i : i + down, j : j + right].reshape(-1) for i, j in product(range(3), range(3))]
    counted = rows.reshape(-1), kept.reshape(-1), np.arange(target.size)
    return _Rows(source.reshape(-1), np.stack(taps, axis=1), target.reshape(-1), counted)


def _unit(inputs: Arrays, rows: _Rows, strides: tuple[int, int]) -> tuple[Results, Callable[[Arrays], Results]]:
    """The unit on these rows, and the function that takes its cotangents back."""
    x, p = _float(inputs["x"]), {name: _float(inputs[name]) for name in _PARAMETERS if name in inputs}
    flat, outside = x.reshape(-1, x.shape[3]), rows.source < 0
    # Outside the image x is 0; what the layers make of that 0 is kept or not.
    keep = ~outside if str(inputs["border"]) == "dense" else np.ones(len(outside), bool)
    counted = rows.counted or (None, None, None)
    a0 = np.where(outside[:, None], 0.0, flat[np.maximum(rows.source, 0)])
    if "bn1" in p:
        n1, back_n1 = _normalised(a0, p["bn1"], counted[0])
        a1 = np.maximum(n1, 0) * keep[:, None]
    else:
        a1 = a0
    n2, back_n2 = _normalised(a1 @ p["w1"], p["bn2"], counted[1])
    a2 = np.maximum(n2, 0) * keep[:, None]
    taps = list(product(range(3), range(3)))
    h3 = np.zeros((len(rows.table), p["w2"].shape[3]))
    for t, tap in enumerate(taps):
        h3 += a2[rows.table[:, t]] @ p["w2"][tap]
    n3, back_n3 = _normalised(h3, p["bn3"], counted[2])
    a3 = np.maximum(n3, 0)
    inside = rows.target >= 0
    strided = x[:, :: strides[0], :: strides[1]]
    y = strided @ p["w_project"] if "w_project" in p else strided.copy()
    np.add.at(y.reshape(-1, y.shape[3]), rows.target[inside], (a3 @ p["w3"])[inside])

    def back(cotangents: Arrays) -> Results:
        dy = _float(cotangents["y"])
        d: Results = {}
        d4 = np.where(inside[:, None], dy.reshape(-1, dy.shape[3])[np.maximum(rows.target, 0)], 0.0)
        d["w3"] = a3.T @ d4
        dh3, d["bn3"] = back_n3((d4 @ p["w3"].T) * (n3 > 0))
        da2, d["w2"] = np.zeros_like(a2), np.zeros_like(p["w2"])
        for t, tap in enumerate(taps):
            np.add.at(da2, rows.table[:, t], dh3 @ p["w2"][tap].T)
            d["w2"][tap] = a2[rows.table[:, t]].T @ dh3
        dh1, d["bn2"] = back_n2(da2 * (n2 > 0) * keep[:, None])
        d["w1"] = a1.T @ dh1
        da0 = dh1 @ p["w1"].T
        if "bn1" in p:
            da0, d["bn1"] = back_n1(da0 * (n1 > 0) * keep[:, None])
        dx = np.zeros_like(x)
        shortcut = dx[:, :: strides[0], :: strides[1]]
        if "w_project" in p:
            shortcut += dy @ p["w_project"].T
            d["w_project"] = np.einsum("nhwc,nhwk->ck", strided, dy)
        else:
            shortcut += dy
        np.add.at(dx.reshape(flat.shape), rows.source[~outside], da0[~outside])
        return {"x": dx, **d}

    return {"y": y}, back


_PARAMETERS = ("w1", "w2", "w3", "bn1", "bn2", "bn3", "w_project")


def _normalised(x: Array, bn: Array, counted: Ints | None) -> tuple[Array, Callable[[Array], tuple[Array, Array]]]:
    """scale (x - mean) / sqrt(variance + 1e-3) + offset for rows [R, C]; the statistics are those of the counted rows.

    The variance divides by the number of rows. With None the statistics are the given ones.

    Returns:
        The rows, and the function that takes their cotangent to those of ``x`` and of ``bn``.
    """
    scale, offset, mean, variance = bn
    if counted is not None:
        rows = x[counted]
        number = max(len(rows), 1)
        mean = rows.sum(0) / number
        variance = ((rows - mean) ** 2).sum(0) / number
    centred, inverse = x - mean, 1 / np.sqrt(variance + EPSILON)

    def back(g: Array) -> tuple[Array, Array]:
        dmean = -(scale * inverse * g).sum(0)
        dvariance = -0.5 * (scale * inverse**3 * g * centred).sum(0)
        dx, dbn = scale * inverse * g, np.zeros_like(bn)
        dbn[:2] = (g * centred * inverse).sum(0), g.sum(0)
        if counted is None:
            dbn[2:] = dmean, dvariance
        else:
            np.add.at(dx, counted, (dmean + 2 * dvariance * centred[counted]) / number)
        return dx, dbn

    return scale * centred * inverse + offset, back


# Sites.


def submanifold(inputs: Arrays) -> Results:
    """y_j = bias + Σ_o x_i w_o over the sites i at coords_j + (o - k // 2) * dilation.

    Args:
        inputs: ``coords`` [M, 1 + D], ``feats`` [M, C], ``shape`` [D], ``batch``, ``w`` [k..., C / groups, K],
            optional ``bias`` [K], ``dilation`` (one number or [D]), ``groups``.

    Returns:
        ``feats`` [M, K] at the same sites.
    """
    pairs = _submanifold_pairs(inputs)
    return {"feats": _summed(inputs, pairs, len(inputs["coords"]), int(inputs["groups"]))}


def submanifold_gradients(inputs: Arrays, cotangents: Arrays) -> Results:
    """Gradients of ``feats``, ``w`` and ``bias``."""
    return _summed_gradients(inputs, cotangents, _submanifold_pairs(inputs), int(inputs["groups"]))


def strided(inputs: Arrays) -> Results:
    """y_t = bias + Σ_o x_i w_o over the sites i at t * stride - padding + o * dilation, for all t that have one.

    Args:
        inputs: ``coords``, ``feats``, ``shape``, ``batch``, ``w`` [k..., C, K], optional ``bias`` [K], ``stride``,
            ``padding``, ``dilation`` (one number or [D] each), ``inverse``: instead the convolution that takes
            ``feats`` [M_out, C] of those t back to ``coords``, along the same pairs.

    Returns:
        ``coords`` and ``feats`` of the result's sites, sorted; of an inverse convolution in the order of ``coords``.
    """
    outputs, pairs = _strided_pairs(inputs)
    coords = inputs["coords"] if inputs["inverse"] else outputs
    return {"coords": coords.astype(np.int64), "feats": _summed(inputs, pairs, len(coords), 1)}


def strided_gradients(inputs: Arrays, cotangents: Arrays) -> Results:
    """Gradients of ``feats``, ``w`` and ``bias``."""
    return _summed_gradients(inputs, cotangents, _strided_pairs(inputs)[1], 1)


#: For each tap the rows of ``feats`` and the rows of the result that it joins.
_Pairs = list[tuple[tuple[int, ...], Ints, Ints]]


def _submanifold_pairs(inputs: Arrays) -> _Pairs:
    coords = inputs["coords"].tolist()
    row_of = {tuple(site): row for row, site in enumerate(coords)}
    size, dilation = _kernel_size(inputs), _per_axis(inputs, "dilation")
    pairs: _Pairs = []
    for tap in product(*map(range, size)):
        shift = [(o - k // 2) * d for o, k, d in zip(tap, size, dilation, strict=True)]
        found = [
            (row_of[there], row)
            for row, (batch, *at) in enumerate(coords)
            if (there := (batch, *(c + s for c, s in zip(at, shift, strict=True)))) in row_of
        ]
        pairs.append((tap, *_columns(found)))
    return pairs


def _strided_pairs(inputs: Arrays) -> tuple[Ints, _Pairs]:
    """The output sites, sorted, and the pairs."""
    size = _kernel_size(inputs)
    stride, padding, dilation = (_per_axis(inputs, name) for name in ("stride", "padding", "dilation"))
    shape = [
        (int(n) + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(inputs["shape"], padding, dilation, size, stride, strict=True)
    ]
    joined: list[tuple[tuple[int, ...], int, tuple[int, ...]]] = []
    for tap in product(*map(range, size)):
        for row, (batch, *at) in enumerate(inputs["coords"].tolist()):
            steps = [c + p - o * d for c, p, o, d in zip(at, padding, tap, dilation, strict=True)]
            site = [step // s for step, s in zip(steps, stride, strict=True)]
            whole = all(step % s == 0 for step, s in zip(steps, stride, strict=True))
            if whole and all(0 <= t < n for t, n in zip(site, shape, strict=True)):
                joined.append((tap, row, (batch, *site)))
    outputs = sorted({site for _, _, site in joined})
    row_of = {site: row for row, site in enumerate(outputs)}
    pairs: _Pairs = []
    for tap in product(*map(range, size)):
        rows, sites = _columns([(row, row_of[site]) for at, row, site in joined if at == tap])
        pairs.append((tap, sites, rows) if inputs["inverse"] else (tap, rows, sites))
    return np.array(outputs, np.int64).reshape(-1, 1 + len(shape)), pairs


def _columns(pairs: list[tuple[int, int]]) -> tuple[Ints, Ints]:
    table = np.array(pairs, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _summed(inputs: Arrays, pairs: _Pairs, sites: int, groups: int) -> Array:
    """bias + Σ_taps over the pairs, [sites, K]; each group of channels has its own columns of w."""
    x, w = _float(inputs["feats"]), _float(inputs["w"])
    y = np.zeros((sites, w.shape[-1]))
    if "bias" in inputs:
        y += _float(inputs["bias"])
    for tap, rows, out in pairs:
        for channels, columns in _groups(w, groups):
            y[out, columns] += x[rows, channels] @ w[tap][:, columns]
    return y


def _summed_gradients(inputs: Arrays, cotangents: Arrays, pairs: _Pairs, groups: int) -> Results:
    x, w, dy = _float(inputs["feats"]), _float(inputs["w"]), _float(cotangents["feats"])
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for tap, rows, out in pairs:
        for channels, columns in _groups(w, groups):
            dx[rows, channels] += dy[out, columns] @ w[tap][:, columns].T
            dw[tap][:, columns] += x[rows, channels].T @ dy[out, columns]
    return {"feats": dx, "w": dw, "bias": dy.sum(0)}


def _groups(w: Array, groups: int) -> Iterator[tuple[slice, slice]]:
    """The input channels and the output columns of each group."""
    channels, columns = w.shape[-2], w.shape[-1] // groups
    for g in range(groups):
        yield slice(g * channels, (g + 1) * channels), slice(g * columns, (g + 1) * columns)


def _kernel_size(inputs: Arrays) -> tuple[int, ...]:
    return inputs["w"].shape[:-2]


def _per_axis(inputs: Arrays, name: str) -> list[int]:
    return [int(number) for number in np.broadcast_to(inputs[name], inputs["shape"].shape)]


# What they share.


class _Window(NamedTuple):
    """The part of a window that is inside the image, in the image and in the stack of blocks."""

    row: int
    image: tuple[Any, ...]
    block: tuple[Any, ...]


def _windows(index: npt.NDArray[Any], inputs: Arrays, image: tuple[int, ...]) -> Iterator[_Window]:
    size, stride, offset = (_pair(inputs[name]) for name in ("bsize", "bstride", "boffset"))
    return _clipped(index, size, stride, offset, image[1:3])


def _tiles(index: npt.NDArray[Any], params: BlockParams) -> Iterator[_Window]:
    return _clipped(index, params.bsize_out, params.bsize_out, (0, 0), params.out_size)


def _clipped(
    index: npt.NDArray[Any],
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: tuple[int, ...],
    image: tuple[int, ...],
) -> Iterator[_Window]:
    for row, (n, *at) in enumerate(index.tolist()):
        first = [o + s * k for o, s, k in zip(offset, stride, at, strict=True)]
        inside = [(max(f, 0), max(min(f + b, e), 0)) for f, b, e in zip(first, size, image, strict=True)]
        here = tuple(slice(low, max(low, high)) for low, high in inside)
        there = tuple(slice(low - f, max(low, high) - f) for (low, high), f in zip(inside, first, strict=True))
        yield _Window(row, (n, *here), (row, *there))


def _gathered(x: Array, inputs: Arrays) -> Array:
    blocks = np.zeros((len(inputs["index"]), *_pair(inputs["bsize"]), x.shape[3]))
    for window in _windows(inputs["index"], inputs, x.shape):
        blocks[window.block] = x[window.image]
    return blocks


def _out_grid(shape: tuple[int, ...], ksize: tuple[int, ...], inputs: Arrays) -> tuple[int, int, int]:
    """(N, Hout, Wout)."""
    strides, padding = _pair(inputs["strides"]), str(inputs["padding"])
    height, width = (out_extent(shape[1 + a], ksize[a], strides[a], padding) for a in (0, 1))
    return shape[0], height, width


def _taps(
    shape: tuple[int, ...], ksize: tuple[int, ...], pixels: Ints, grid: tuple[int, int, int], inputs: Arrays
) -> Iterator[tuple[tuple[int, int], Ints, Ints]]:
    """For each tap: which entries of ``pixels`` have an input pixel under it, and its flat position."""
    strides, padding = _pair(inputs["strides"]), str(inputs["padding"])
    front = [paddings(shape[1 + a], ksize[a], strides[a], padding)[0] for a in (0, 1)]
    n, h, w = np.unravel_index(np.asarray(pixels, np.int64), grid) if len(pixels) else (np.empty(0, np.int64),) * 3
    for i, j in product(range(ksize[0]), range(ksize[1])):
        row, column = h * strides[0] - front[0] + i, w * strides[1] - front[1] + j
        inside = np.flatnonzero((row >= 0) & (row < shape[1]) & (column >= 0) & (column < shape[2]))
        yield (i, j), inside, (n[inside] * shape[1] + row[inside]) * shape[2] + column[inside]


def _mask(inputs: Arrays) -> npt.NDArray[np.float32]:
    mask = inputs["mask"]
    return np.asarray(mask.reshape(mask.shape[:3]), np.float32)


def _transposed(blocks: Array, inputs: Arrays) -> Array:
    return blocks.transpose(0, 3, 1, 2).copy() if inputs["transpose"] else blocks


def _channels_last(blocks: Array, inputs: Arrays) -> Array:
    return blocks.transpose(0, 2, 3, 1) if inputs["transpose"] else blocks


def _pair(array: npt.NDArray[Any]) -> tuple[int, int]:
    first, second = array.tolist()
    return first, second


def _float(array: npt.NDArray[Any]) -> Array:
    return np.asarray(array, np.float64)
