"""The operations of the block-sparse family: their formulas, what is checked of them, and the work that they need."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from eqconv_cli.backends.block_sparse import cost_model
from eqconv_cli.backends.block_sparse.geometry import block_params, block_params_chain
from eqconv_cli.backends.block_sparse.invariants import CHECKS
from eqconv_cli.backends.block_sparse.problem_arrays import grid
from eqconv_cli.backends.block_sparse.site_patterns import Rulebook, make_pattern
from eqconv_cli.catalog import Arrays, Cost, Operation
from eqconv_cli.kernels.doors import missing_kernels

_REFERENCE = "eqconv_cli.backends.block_sparse.reference:{}"
_UNIT = ("x", "w1", "w2", "w3", "bn1", "bn2", "bn3", "w_project")


def _operation(name: str, title: str, formula: str, value: str, baseline: str, **records: Any) -> Operation:
    """An operation with its reference, and its gradients unless nothing is differentiable."""
    gradients = _REFERENCE.format(f"{name}_gradients") if records.get("differentiable") else None
    return Operation(
        name=name,
        title=title,
        formula=formula,
        reference=_REFERENCE.format(name),
        reference_gradients=gradients,
        baseline=baseline,
        checks=CHECKS[name],
        value_check=value,
        **records,
    )


# The work that there is. Bytes are those of the pixels that are read or written at all.


def _masked_sizes(inputs: Arrays) -> tuple[int, int]:
    """Output pixels that are wanted, and all."""
    pixels = len(inputs["pixels"]) if "pixels" in inputs else _tile_pixels(inputs)
    return pixels, int(np.prod(grid(inputs)))


def _tile_pixels(inputs: Arrays) -> int:
    """Output pixels in the tiles of the listed blocks, counted to the edge of the image."""
    shape, size, strides = inputs["x"].shape, inputs["bsize"].tolist(), inputs["strides"].tolist()
    if "w" in inputs:
        words = (str(inputs["padding"]), str(inputs["coverage"]))
        params = block_params(shape, size, inputs["w"].shape, strides, *words)
    else:
        params = block_params_chain(shape, size, [(1, 1), (3, 3), (1, 1)], strides)
    tile, out = np.array(params.bsize_out), np.array(params.out_size)
    first = np.unique(inputs["index"], axis=0)[:, 1:] * tile
    return int(np.prod(np.clip(out - first, 0, tile), axis=1).sum())


def _passes(flops: float, read: float, written: float, weights: float, itemsize: int) -> dict[str, Cost]:
    """A bilinear operation's passes: each of its two gradients costs as much as itself."""
    forward = Cost(flops, itemsize * (read + written + weights))
    return {"forward": forward, "forward+backward": Cost(3 * flops, 2 * forward.bytes)}


def masked_cost(inputs: Arrays) -> dict[str, Cost]:
    """Of a convolution at some pixels."""
    (pixels, _), w = _masked_sizes(inputs), inputs["w"]
    flops = 2.0 * pixels * w.size
    return _passes(flops, pixels * w.shape[2], pixels * w.shape[3], w.size, inputs["x"].dtype.itemsize)


def masked_facts(inputs: Arrays) -> dict[str, float]:
    """Sizes and densities; of blocks where there are some."""
    (pixels, outputs), (_, height, width, channels) = _masked_sizes(inputs), inputs["x"].shape
    facts = {"H": height, "W": width, "C": channels, "K": inputs["w"].shape[3], "density": pixels / max(outputs, 1)}
    return {name: float(value) for name, value in {**facts, **_block_facts(inputs)}.items()}


def masked_ideal(inputs: Arrays) -> float:
    """All output pixels over the wanted ones."""
    pixels, outputs = _masked_sizes(inputs)
    return outputs / max(pixels, 1)


def _unit_sizes(inputs: Arrays) -> tuple[int, int]:
    images, height, width, _ = inputs["x"].shape
    pixels = len(inputs["pixels"]) if "pixels" in inputs else _tile_pixels(inputs)
    return pixels, images * height * width


def unit_cost(inputs: Arrays) -> dict[str, Cost]:
    """Of a residual unit at some pixels; the first convolution counted there only, not on their neighbours."""
    pixels, _ = _unit_sizes(inputs)
    weights = sum(inputs[name].size for name in ("w1", "w2", "w3"))
    channels = inputs["x"].shape[3]
    return _passes(2.0 * pixels * weights, pixels * channels, pixels * channels, weights, inputs["x"].dtype.itemsize)


def unit_facts(inputs: Arrays) -> dict[str, float]:
    """Sizes and densities; K is the bottleneck, as in SBNet's table."""
    (pixels, outputs), (_, height, width, channels) = _unit_sizes(inputs), inputs["x"].shape
    bottleneck = inputs["w1"].shape[1]
    facts = {"H": height, "W": width, "C": channels, "K": bottleneck, "density": pixels / max(outputs, 1)}
    return {name: float(value) for name, value in {**facts, **_block_facts(inputs)}.items()}


def unit_ideal(inputs: Arrays) -> float:
    """All pixels over the wanted ones."""
    pixels, outputs = _unit_sizes(inputs)
    return outputs / max(pixels, 1)


def _block_facts(inputs: Arrays) -> dict[str, float]:
    if "index" not in inputs:
        return {}
    shape, size, strides = inputs["x"].shape, inputs["bsize"].tolist(), inputs["strides"].tolist()
    kernels = [inputs["w"].shape] if "w" in inputs else [(1, 1), (3, 3), (1, 1)]
    padding = str(inputs["padding"]) if "padding" in inputs else "SAME"
    params = block_params_chain(shape, size, kernels, strides, padding)
    blocks = shape[0] * params.bcount[0] * params.bcount[1]
    return {"BH": size[0], "BW": size[1], "block_sparsity": 1 - len(inputs["index"]) / max(blocks, 1)}


def _rulebook(inputs: Arrays) -> Rulebook:
    pattern, _ = make_pattern(inputs["coords"], inputs["shape"].tolist(), int(inputs["batch"]))
    size = inputs["w"].shape[:-2]
    if "stride" not in inputs:
        return pattern.submanifold(size, inputs["dilation"].tolist())
    return pattern.strided(size, *(inputs[name].tolist() for name in ("stride", "padding", "dilation")))


def sites_cost(inputs: Arrays) -> dict[str, Cost]:
    """Of a convolution on sites: a product for each pair of sites that a tap joins."""
    book, w, feats = _rulebook(inputs), inputs["w"], inputs["feats"]
    out = book.source if inputs.get("inverse") else book.out
    flops = 2.0 * book.pair_count * w.shape[-2] * w.shape[-1]
    return _passes(flops, feats.size, out.sites * w.shape[-1], w.size, feats.dtype.itemsize)


def sites_facts(inputs: Arrays) -> dict[str, float]:
    """Sizes and the density of the sites."""
    places = int(inputs["batch"]) * int(np.prod(inputs["shape"]))
    facts = {"C": inputs["feats"].shape[1], "K": inputs["w"].shape[-1], "density": len(inputs["coords"]) / places}
    extents = dict(zip(("H", "W"), inputs["shape"].tolist(), strict=False))
    return {name: float(value) for name, value in {**extents, **facts}.items()}


def sites_ideal(inputs: Arrays) -> float:
    """All places over the active ones."""
    return int(inputs["batch"]) * int(np.prod(inputs["shape"])) / max(len(inputs["coords"]), 1)


def gather_cost(inputs: Arrays) -> dict[str, Cost]:
    """Each block read and written once; nothing is computed."""
    elements = len(inputs["index"]) * int(np.prod(inputs["bsize"])) * inputs["x"].shape[3]
    return {"forward": Cost(0.0, 2.0 * elements * inputs["x"].dtype.itemsize)}


def scatter_cost(inputs: Arrays) -> dict[str, Cost]:
    """Each block read and written once; the rest of the image can stay where it is."""
    return {"forward": Cost(0.0, 2.0 * inputs["blocks"].nbytes)}


def mask_cost(inputs: Arrays) -> dict[str, Cost]:
    """Each value of the mask read once."""
    return {"forward": Cost(0.0, float(inputs["mask"].nbytes))}


_LISTS = {"value_title": "lists of blocks and pixels are equal, in order and count", "exact": True}
_ADJOINT = {"gradient_check": "E6", "gradient_title": "⟨op(x), b⟩ = ⟨x, gradient(b)⟩"}
_GRADIENTS = {"gradient_check": "E12", "gradient_title": "gradients are those of the dense operation, masked"}

OPERATIONS = (
    _operation(
        "reduce_mask",
        "Active blocks of a mask",
        "block (n, i, j) is active ⇔ max or mean of its window > tol",
        "E1",
        "indexed@torch",
        cost=mask_cost,
        **_LISTS,
    ),
    _operation(
        "pixel_index",
        "Active pixels of a mask",
        "pixel p is active ⇔ max of the kernel's window at p > tol",
        "E1",
        "indexed@torch",
        cost=mask_cost,
        **_LISTS,
    ),
    _operation(
        "gather",
        "Blocks out of an image",
        "blocks[r, i, j] = x[n, offset + stride b + (i, j)], 0 outside",
        "E2",
        "indexed@torch",
        differentiable=("x",),
        cost=gather_cost,
        exact=True,
        value_title="gathered and scattered blocks are equal",
        **_ADJOINT,
    ),
    _operation(
        "scatter",
        "Blocks into an image",
        "y = base; y[window of r] = blocks[r] (or += blocks[r]), r = 0, 1, ...",
        "E2",
        "indexed@torch",
        differentiable=("blocks", "ybase"),
        cost=scatter_cost,
        value_title="gathered and scattered blocks are equal",
        **_ADJOINT,
    ),
    _operation(
        "convolution",
        "Convolution on blocks",
        "y = conv(x, w) + bias in the tiles of the active blocks, base elsewhere",
        "E7",
        "conv2d@torch",
        differentiable=("x", "w", "bias", "base"),
        cost=masked_cost,
        facts=masked_facts,
        ideal=masked_ideal,
        value_title="the dense convolution on every covered pixel, the base elsewhere",
        **_GRADIENTS,
    ),
    _operation(
        "masked",
        "Convolution at pixels",
        "y = conv(x, w) + bias at the listed pixels, base elsewhere",
        "E9",
        "conv2d@torch",
        differentiable=("x", "w", "bias", "base"),
        cost=masked_cost,
        facts=masked_facts,
        ideal=masked_ideal,
        value_title="all routes agree on the dilated mask",
        **_GRADIENTS,
    ),
    _operation(
        "residual",
        "Residual unit on blocks",
        "y = x + conv₁(relu(bn₃(conv₃(relu(bn₂(conv₁(relu(bn₁(x)))))))) in the tiles of the active blocks",
        "E10",
        "conv2d@torch",
        differentiable=_UNIT,
        cost=unit_cost,
        facts=unit_facts,
        ideal=unit_ideal,
        gradient_jumps=True,
        value_title="the dense residual unit on covered pixels",
        **_GRADIENTS,
    ),
    _operation(
        "masked_residual",
        "Residual unit at pixels",
        "y = x + conv₁(relu(bn₃(conv₃(relu(bn₂(conv₁(relu(bn₁(x)))))))) at the listed pixels",
        "E10",
        "conv2d@torch",
        differentiable=_UNIT,
        cost=unit_cost,
        facts=unit_facts,
        ideal=unit_ideal,
        gradient_jumps=True,
        value_title="the dense residual unit on covered pixels",
        **_GRADIENTS,
    ),
    _operation(
        "submanifold",
        "Submanifold convolution",
        "y_j = bias + Σ_o x_i w_o, i the site at j + (o - k // 2) dilation",
        "E11",
        "conv2d@torch",
        differentiable=("feats", "w", "bias"),
        cost=sites_cost,
        facts=sites_facts,
        ideal=sites_ideal,
        value_title="the dense convolution of the zero-filled image at the sites",
        **_GRADIENTS,
    ),
    _operation(
        "strided",
        "Strided sparse convolution and its inverse",
        "y_t = bias + Σ_o x_i w_o, i the site at t stride - padding + o dilation",
        "E11",
        "dense@torch",
        differentiable=("feats", "w", "bias"),
        cost=sites_cost,
        facts=sites_facts,
        value_title="the dense convolution of the zero-filled image at the sites",
        **_GRADIENTS,
    ),
)


def explain(inputs: Arrays) -> list[str]:
    """What version="auto" takes at pixels or on sites in each framework on the CPU, and why; else nothing."""
    choose: Callable[[str, bool], cost_model.Choice]
    if {"x", "w", "pixels"} <= inputs.keys():
        outputs, listed = grid(inputs), inputs["pixels"]
        tiles = cost_model.tiles_of(listed, outputs)
        pixels = cost_model.sizes(len(listed), tiles, int(np.prod(outputs)), inputs["w"].shape)
        choose = partial(cost_model.choose, pixels)
    elif {"coords", "w"} <= inputs.keys():
        choose = partial(cost_model.choose_sites, _rulebook(inputs).sizes(bool(inputs.get("inverse"))))
    else:
        return []
    choices = {}
    for framework in ("numpy", "torch", "tensorflow"):
        needed = ("cpu",) if framework == "numpy" else (framework, "cpu")
        choices[framework] = choose(framework, not missing_kernels(*needed))
    return [f"auto@{framework}: {choice.version} ({choice.reason})" for framework, choice in choices.items()]
