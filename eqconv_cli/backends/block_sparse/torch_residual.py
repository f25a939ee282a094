"""The pre-activation bottleneck on blocks of an image, or at a list of its pixels, in PyTorch.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018, section 3; uber-research/sbnet ``benchmark/sparse_conv_lib.py``:
y = x + conv1x1(relu(bn3(conv3x3(relu(bn2(conv1x1(relu(bn1(x))))))))), no biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from eqconv_cli.backends.block_sparse import arguments, torch_fused, torch_neighbours
from eqconv_cli.backends.block_sparse.arguments import Window
from eqconv_cli.backends.block_sparse.geometry import BlockParams, Pair, strides_pair
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.torch_arguments import (
    Rows,
    block_rows,
    check_like,
    check_real,
    counting,
    pixel_rows,
    widened,
)
from eqconv_cli.backends.block_sparse.torch_convolution import dense_conv2d
from eqconv_cli.backends.block_sparse.torch_ops import (
    block_pixels,
    out_grid,
    sparse_gather,
    sparse_scatter,
    sparse_scatter_var,
)
from eqconv_cli.backends.block_sparse.units import (
    BLOCK_COMPOSITIONS,
    BORDERS,
    EPSILON,
    PIXEL_COMPOSITIONS,
    STATISTICS,
    BatchNorm,
    ResidualWeights,
    check_route,
    check_weights,
    only_blocks,
)

#: The kernels of the unit.
KSIZES = ((1, 1), (3, 3), (1, 1))


def residual_unit(
    x: Tensor, weights: ResidualWeights, *, strides: Sequence[int] = (1, 1), epsilon: float = EPSILON
) -> Tensor:
    """The unit on the whole image.

    Args:
        x: [N, H, W, C] float32 or float64.
        weights: parameters.
        strides: of the first convolution and the shortcut.
        epsilon: added to the variances.

    Returns:
        [N, ceil(H / stride), ceil(W / stride), C_out].

    Raises:
        TypeError, ValueError: a dtype or a shape does not fit.
    """
    x, weights = _checked(x, weights)
    step = strides_pair("strides", strides)
    kept = x[:, :: step[0], :: step[1]]
    a1 = kept if weights.bn1 is None else _rectified(kept, _folded(weights.bn1, epsilon))
    a2 = _rectified(a1 @ weights.w1, _folded(weights.bn2, epsilon))
    a3 = _rectified(dense_conv2d(a2, weights.w2), _folded(weights.bn3, epsilon))
    return _shortcut(x, weights, step) + a3 @ weights.w3


def sparse_residual_unit(
    x: Tensor,
    index: BlockIndex,
    params: BlockParams,
    weights: ResidualWeights,
    *,
    border: str = "dense",
    bn: str = "inference",
    strides: Sequence[int] = (1, 1),
    epsilon: float = EPSILON,
    in_place: bool = False,
    statistics: list[tuple[Tensor, Tensor]] | None = None,
    version: str | Fused = "auto",
) -> Tensor:
    """The unit on the active blocks' output tiles; the shortcut elsewhere.

    Weights that were trained with one ``bn`` do not fit another, nor the dense unit: statistics over a mask are not
    those of an image.

    Args:
        x: [N, H, W, C] float32 or float64.
        index: the active blocks, see :func:`reduce_mask`.
        params: ``block_params_chain(x.shape, bsize, [(1, 1), (3, 3), (1, 1)], strides)``.
        weights: parameters.
        border: "dense": what is outside the image is 0 before the 3x3 convolution, as in the dense unit; "original": it
            is what the layers make of x = 0, as in SBNet, which differs in the outermost ring of the image.
        bn: "inference": the given mean and variance; "stack": those of all gathered positions, overlaps and zeros
            outside counted (SBNet's training); "active": those of the active output pixels, each once.
        strides: of the first convolution and the shortcut.
        epsilon: added to the variances.
        in_place: write into ``x`` and return it; needs stride 1 and no projection.
        statistics: a list that takes the mean and the variance of each normalisation, where ``bn`` computes them; where
            nothing is counted, the given ones.
        version: "blocks" (the layers on the stack), "pixels" (the layers on rows of pixels, nothing twice), "dense" (on
            the whole image, then chosen; for border="dense"), "fused" (compiled: ``eqconv build-kernels``), or "auto".
            All but "blocks" and "auto" need bn="inference", stride 1 and no projection.

    Returns:
        [N, ceil(H / stride), ceil(W / stride), C_out].

    Raises:
        TypeError, ValueError: a dtype, a shape or an option is not allowed.
        IndexError: a row of the index in host memory is out of range.
        Unavailable: version is "fused" and the kernels are not built.
    """
    plain, weights = _checked(x, weights)
    arguments.check_choice("border", border, BORDERS)
    arguments.check_choice("bn", bn, STATISTICS)
    step = strides_pair("strides", strides)
    _check_params(plain, params, step)
    why = only_blocks(bn, step, weights)
    check_route(version, why, border)
    if in_place and (step != (1, 1) or weights.w_project is not None or plain is not x):
        raise ValueError(f"in_place=True needs stride 1 and no projection: strides={step}")
    if version == "auto" and (why or in_place):
        version = "blocks"
    how = torch_fused.version_on(version, BLOCK_COMPOSITIONS, x)
    if how == "blocks":
        return _on_blocks(plain, index, params, weights, border, bn, step, epsilon, in_place, statistics)
    pixels = block_pixels(index, params, plain.shape[0], how if isinstance(how, Fused) else "indexed")
    made = masked_residual_unit(plain, weights=weights, pixels=pixels, border=border, epsilon=epsilon, version=how)
    return x.copy_(made) if in_place else made


def masked_residual_unit(
    x: Tensor,
    pixels: PixelIndex,
    weights: ResidualWeights,
    *,
    border: str = "dense",
    epsilon: float = EPSILON,
    out: Tensor | None = None,
    version: str | Fused = "auto",
) -> Tensor:
    """The unit exactly at the listed pixels, with the given statistics; x elsewhere.

    Args:
        x, weights, border, epsilon: as for :func:`sparse_residual_unit`, without projection.
        pixels: see :func:`pixel_index`.
        out: written in place, at the listed pixels only, and returned; not x.
        version: "pixels" (the layers on rows of pixels), "dense" (on the whole image, then chosen; for border="dense"),
            "fused" (compiled: ``eqconv build-kernels``), or "auto".

    Returns:
        [N, H, W, C].

    Raises:
        TypeError, ValueError, IndexError, Unavailable: as there.
    """
    x, weights = _checked(x, weights)
    arguments.check_choice("border", border, BORDERS)
    check_route(version, "", border)
    if weights.w_project is not None:
        raise ValueError("w_project is given: at single pixels there is no projection (sparse_residual_unit has one)")
    if out is not None:
        check_like("out", out, "x", x)
        if out.shape != x.shape:
            raise ValueError(f"out has shape {arguments.text(out.shape)}: expected {arguments.text(x.shape)}")
    grid = (x.shape[0], x.shape[1], x.shape[2])
    listed = pixel_rows(pixels, grid, x.device)
    how = torch_fused.version_on(version, PIXEL_COMPOSITIONS, x)
    if isinstance(how, Fused):
        return _fused(x, listed, weights, border, epsilon, out, how)
    positions = counting(listed)
    flat = x.reshape(-1, x.shape[3])
    if how == "dense":
        everywhere = residual_unit(x, weights, epsilon=epsilon)
        values = everywhere.reshape(-1, x.shape[3]).index_select(0, positions)
    else:
        values = flat.index_select(0, positions) + _at_pixels(x, positions, weights, border, epsilon)
    if out is None:
        return flat.index_copy(0, positions, values).view(x.shape)
    image, row, column = torch_neighbours.split(positions, grid[1], grid[2])
    return out.index_put_((image, row, column), values)


# Ways to compute.


def _on_blocks(
    x: Tensor,
    index: BlockIndex,
    params: BlockParams,
    weights: ResidualWeights,
    border: str,
    bn: str,
    step: Pair,
    epsilon: float,
    in_place: bool,
    statistics: list[tuple[Tensor, Tensor]] | None,
) -> Tensor:
    rows = _rows_once(block_rows(index, x.shape[0], x.device), bn)
    blocks = BlockIndex(rows.rows, rows.number)
    at = Window(params.bsize, params.bstrides, params.boffset)
    size = (x.shape[1], x.shape[2])
    stack = sparse_gather(x, blocks, bsize=at.size, bstride=at.stride, boffset=at.offset)
    _, inside = torch_neighbours.of_blocks(rows, at, size)
    _, written = torch_neighbours.of_blocks(rows, _tile(params), params.out_size)
    keep = inside[..., None].to(x.dtype) if border == "dense" and not bool(inside.all()) else None
    core = (slice(None), *(slice(1, 1 + n) for n in params.bsize_out))

    def normalised(values: Tensor, norm: BatchNorm, counted: Tensor) -> Tensor:
        if bn == "inference":
            return _rectified(values, _folded(norm, epsilon))
        rows = counted.flatten(0, -2) if bn == "stack" else counted[written]
        variance, mean = torch.var_mean(rows, 0, correction=0) if len(rows) else (norm.variance, norm.mean)
        if statistics is not None:
            statistics.append((mean.detach(), variance.detach()))
        return _rectified(values, _folded(norm._replace(mean=mean, variance=variance), epsilon))

    def strided(values: Tensor) -> Tensor:
        return values[:, :: step[0], :: step[1]]

    a1 = stack
    if weights.bn1 is not None:
        a1 = normalised(stack, weights.bn1, stack if bn == "stack" else strided(stack)[core])
        a1 = a1 if keep is None else a1 * keep
    h1 = strided(a1) @ weights.w1
    a2 = normalised(h1, weights.bn2, h1 if bn == "stack" else h1[core])
    a2 = a2 if keep is None else a2 * strided(keep)
    h3 = functional.conv2d(a2.permute(0, 3, 1, 2), weights.w2.permute(3, 2, 0, 1)).permute(0, 2, 3, 1)
    made = normalised(h3, weights.bn3, h3) @ weights.w3
    # Of a repeated row, which only a stack's statistics keep, every copy adds.
    tile: dict[str, Any] = {"bsize": params.bsize_out, "bstride": params.bsize_out, "add": True}
    if in_place:
        return sparse_scatter_var(made, blocks, x, **tile)
    return sparse_scatter(made, blocks, _shortcut(x, weights, step), **tile)


def _at_pixels(x: Tensor, positions: Tensor, weights: ResidualWeights, border: str, epsilon: float) -> Tensor:
    """What the unit adds to x at the listed pixels [P, C]."""
    seen, table = torch_neighbours.touched(positions, x.shape[0], (x.shape[1], x.shape[2]))
    # One row more than there are pixels stands for all that is outside of the image.
    rows = functional.pad(x.reshape(-1, x.shape[3]).index_select(0, seen), (0, 0, 0, 1))
    a1 = rows if weights.bn1 is None else _rectified(rows, _folded(weights.bn1, epsilon))
    a2 = _rectified(a1 @ weights.w1, _folded(weights.bn2, epsilon))
    if border == "dense":
        a2 = functional.pad(a2[:-1], (0, 0, 0, 1))
    patches = a2.index_select(0, table.flatten()).view(len(positions), 9 * a2.shape[1])
    a3 = _rectified(patches @ weights.w2.flatten(0, 2), _folded(weights.bn3, epsilon))
    return a3 @ weights.w3


def _fused(
    x: Tensor, listed: Rows, weights: ResidualWeights, border: str, epsilon: float, out: Tensor | None, settings: Fused
) -> Tensor:
    first = (None, None) if weights.bn1 is None else _folded(weights.bn1, epsilon)
    second, third = _folded(weights.bn2, epsilon), _folded(weights.bn3, epsilon)
    unit = (*first, weights.w1, *second, weights.w2, *third, weights.w3)
    original = border == "original"
    if out is None or not out.is_contiguous() or torch.compiler.is_compiling():
        made = torch_fused.residual(x, listed.rows, listed.number, unit, original, settings)
        if out is None:
            return made
        image, row, column = torch_neighbours.split(counting(listed), x.shape[1], x.shape[2])
        return out.index_put_((image, row, column), made[image, row, column])
    return torch_fused.residual_(out, x, listed.rows, listed.number, unit, original, settings)


def _folded(norm: BatchNorm, epsilon: float) -> tuple[Tensor, Tensor]:
    """(scale, shift) of the same map as one multiplication and one addition."""
    scale = norm.scale * torch.rsqrt(norm.variance + epsilon)
    return scale, norm.offset - norm.mean * scale


def _rectified(x: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
    """relu(x * scale + shift)."""
    return torch.addcmul(affine[1], x, affine[0]).relu()


def _shortcut(x: Tensor, weights: ResidualWeights, step: Pair) -> Tensor:
    kept = x[:, :: step[0], :: step[1]]
    return kept if weights.w_project is None else kept @ weights.w_project


def _tile(params: BlockParams) -> Window:
    return Window(params.bsize_out, params.bsize_out, (0, 0))


def _rows_once(rows: Rows, bn: str) -> Rows:
    """The rows that count; without repeats, unless statistics are to count them."""
    listed = rows.rows if rows.whole else rows.rows[: int(rows.number)]
    if bn != "stack":
        listed = torch.unique(listed, dim=0) if len(listed) else listed
    return Rows(listed, torch.tensor([len(listed)], dtype=torch.int32, device=listed.device), True)


# Arguments.


def _checked(x: Tensor, weights: ResidualWeights) -> tuple[Tensor, ResidualWeights]:
    """Both in one dtype; raises TypeError or ValueError naming what does not fit."""
    norms = (weights.bn1, weights.bn2, weights.bn3)
    x, w1, w2, w3, project = widened(x, weights.w1, weights.w2, weights.w3, weights.w_project)
    bn1, bn2, bn3 = (None if norm is None else BatchNorm(*widened(*norm)) for norm in norms)
    if bn2 is None or bn3 is None:
        raise ValueError("bn2 and bn3 are needed: only bn1 may be None")
    check_real("x", x)
    arguments.check_image("x", x.shape)
    made = ResidualWeights(w1, w2, w3, bn1, bn2, bn3, project)
    for name, tensor in (("w1", w1), ("w2", w2), ("w3", w3), ("w_project", project)):
        if tensor is not None:
            check_like(name, tensor, "x", x)
    for name, norm in (("bn1", bn1), ("bn2", bn2), ("bn3", bn3)):
        for part, vector in zip(BatchNorm._fields, norm or (), strict=False):
            check_like(f"{name}.{part}", vector, "x", x)
    check_weights(made, x.shape)
    return x, made


def _check_params(x: Tensor, params: BlockParams, step: Pair) -> None:
    """Raises ValueError for a geometry that was made for something else than this unit."""
    grid, _ = out_grid(x.shape, (1, 1), step, "SAME")
    tile = tuple((b - 1 - 2 * s) // s + 1 for b, s in zip(params.bsize, step, strict=True))
    offset = tuple(-s for s in step)
    if (tuple(params.out_size), tuple(params.bsize_out), tuple(params.boffset)) != (grid[1:], tile, offset):
        raise ValueError(
            f"params has out_size {tuple(params.out_size)}, bsize_out {tuple(params.bsize_out)} and boffset "
            f"{tuple(params.boffset)}, but this unit needs {grid[1:]}, {tile} and {offset}: take "
            f"block_params_chain(x.shape, bsize, {list(KSIZES)}, strides)"
        )
