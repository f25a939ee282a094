"""The PyTorch variants as prepared runs: lists, geometry and tables of neighbours are there before the first run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqconv_cli.backends.block_sparse import problem_arrays, torch_convolution, torch_ops, torch_residual, torch_sites
from eqconv_cli.backends.block_sparse.geometry import block_params, block_params_chain
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.units import BatchNorm, ResidualWeights
from eqconv_cli.frameworks import of_framework
from eqconv_cli.frameworks.torch import BoundRun, Tensors
from eqconv_cli.kernels.doors import settings_on

Arrays = Mapping[str, np.ndarray]
#: A function of the real tensors by name.
Function = Callable[[Tensors], Tensors]


def prepare(
    inputs: Arrays,
    dtype: str,
    device: str,
    *,
    operation: str,
    version: str = "auto",
    fused: Mapping[str, Any] | None = None,
    in_place: bool = False,
    **options: Any,
) -> BoundRun:
    """Bind one operation to one problem's arrays.

    Args:
        inputs: the operation's arrays by name; words, numbers and truth values are arrays without axes.
        dtype: "float32" or "float64"; the real inputs are converted to it, masks of truth values are not.
        device: "cpu", "cuda", or "emulated" for the compiled kernels.
        operation: "reduce_mask", "pixel_index", "gather", "scatter", "convolution", "masked", "residual",
            "masked_residual", "submanifold" or "strided".
        version: of the operation's function.
        fused: settings of the compiled kernels, see :class:`Fused`; None runs ``version``.
        in_place: masked, masked_residual, scatter: every run writes into one output that holds the base.
        **options: other keyword options of the operation's function.

    Returns:
        A run with the operation's outputs and the gradients of all real inputs but masks.

    Raises:
        TypeError, ValueError, IndexError: see the operation's function.
    """
    arrays, differentiable = problem_arrays.reals(inputs, dtype, operation)
    how = version if fused is None else settings_on(Fused, device, fused)
    options = {"version": how, **options}
    if in_place:
        options["out"] = torch.from_numpy(problem_arrays.base(inputs, dtype, operation)).to(of_framework(device))
    function = _FUNCTIONS[operation](inputs, torch.device(of_framework(device)), options)
    if operation == "convolution" and version == "blocks" and "mask" in inputs:
        return _StagedBlocks(function, arrays, differentiable, device, inputs)
    return BoundRun(function, {n: np.ascontiguousarray(array) for n, array in arrays.items()}, differentiable, device)


class _StagedBlocks(BoundRun):
    """A convolution on blocks whose steps can be timed one by one, from the mask on."""

    def __init__(
        self, function: Function, arrays: Arrays, differentiable: tuple[str, ...], device: str, inputs: Arrays
    ) -> None:
        super().__init__(function, arrays, differentiable, device)
        self._strides = inputs["strides"].tolist()
        words = (self._strides, str(inputs["padding"]), str(inputs["coverage"]))
        self._params = block_params(inputs["x"].shape, inputs["bsize"].tolist(), inputs["w"].shape, *words)
        self._mask = _upload(inputs["mask"].astype(np.float32), self._device)
        self._threshold = problem_arrays.threshold(inputs)

    def stages(self) -> Mapping[str, float]:
        """Seconds of the four steps."""
        p, x, w = self._params, self._tensors["x"], self._tensors["w"]
        window: dict[str, Any] = {"bsize": p.bsize, "bstride": p.bstrides, "boffset": p.boffset}
        tile: dict[str, Any] = {"bsize": p.bsize_out, "bstride": p.bsize_out, "add": False}
        with torch.no_grad():
            zeros = x.new_zeros(len(x), *p.out_size, w.shape[3])
            clock = [self._now()]
            index = torch_ops.reduce_mask(self._mask, p.bcount, **window, **self._threshold)
            clock.append(self._now())
            stack = torch_ops.sparse_gather(x, index, **window)
            clock.append(self._now())
            tiles = torch_convolution.convolved_blocks(stack, w, self._strides)
            clock.append(self._now())
            torch_ops.sparse_scatter_var(tiles, index, zeros, **tile)
            clock.append(self._now())
        names = ("reduce", "gather", "convolve", "scatter")
        return {name: end - start for name, start, end in zip(names, clock, clock[1:], strict=False)}

    def _now(self) -> float:
        self.synchronize()
        return time.perf_counter()


def _reduce_mask(inputs: Arrays, device: torch.device, options: dict[str, Any]) -> Function:
    geometry: dict[str, Any] = {**problem_arrays.window(inputs), **problem_arrays.threshold(inputs)}
    words: dict[str, Any] = {"on_empty": str(inputs["on_empty"])}
    bcount = inputs["bcount"].tolist()

    def run(tensors: Tensors) -> Tensors:
        index = torch_ops.reduce_mask(tensors["mask"], bcount, **geometry, **words, **options)
        rows = index.active_block_indices[: int(index.bin_counts)]
        return {"active_block_indices": rows, "bin_counts": index.bin_counts}

    return run


def _pixel_index(inputs: Arrays, device: torch.device, options: dict[str, Any]) -> Function:
    geometry: dict[str, Any] = {
        "ksize": inputs["ksize"].tolist(),
        **problem_arrays.steps(inputs),
        "tol": float(inputs["tol"]),
    }

    def run(tensors: Tensors) -> Tensors:
        index = torch_ops.pixel_index(tensors["mask"], **geometry, **options)
        return {"pixels": index.pixels[: int(index.count)], "count": index.count}

    return run


def _gather(inputs: Arrays, device: torch.device, options: dict[str, Any]) -> Function:
    index, geometry = _index(inputs, device), {**problem_arrays.window(inputs), "transpose": bool(inputs["transpose"])}
    return lambda tensors: {"blocks": torch_ops.sparse_gather(tensors["x"], index, **geometry, **options)}


def _scatter(inputs: Arrays, device: torch.device, options: dict[str, Any]) -> Function:
    index, geometry = _index(inputs, device), problem_arrays.window(inputs)
    flags: dict[str, Any] = {name: bool(inputs[name]) for name in ("add", "atomic", "transpose")}

    target = options.pop("out", None)

    def run(tensors: Tensors) -> Tensors:
        blocks, words = tensors["blocks"], {**geometry, **flags, **options}
        if target is not None:
            return {"y": torch_ops.sparse_scatter_var(blocks, index, target, **words)}
        return {"y": torch_ops.sparse_scatter(blocks, index, tensors["ybase"], **words)}

    return run


def _convolution(inputs: Arrays, device: torch.device, options: dict[str, Any]) -> Function:
    steps, index = problem_arrays.steps(inputs), _index(inputs, device)
    words = (steps["strides"], steps["padding"], str(inputs["coverage"]))
    params = block_params(inputs["x"].shape, inputs["bsize"].tolist(), inputs["w"].shape, *words)

    def run(tensors: Tensors) -> Tensors:
        rest = {"strides": steps["strides"], **_rest(inputs, tensors)}
        return {"y": torch_convolution.sparse_conv2d(tensors["x"], tensors["w"], index, params, **rest, **options)}

    return run


def _masked(inputs: Arrays, device: torch.device, options: dict[str, Any]) -> Function:
    steps = problem_arrays.steps(inputs)
    pixels = _listing(inputs, problem_arrays.grid(inputs), device, options)

    def run(tensors: Tensors) -> Tensors:
        rest = {**steps, **_rest(inputs, tensors)}
        if "out" in options:
            del rest["base"]
        return {"y": torch_convolution.masked_conv2d(tensors["x"], tensors["w"], pixels(), **rest, **options)}

    return run


def _residual(inputs: Arrays, device: torch.device, options: dict[str, Any]) -> Function:
    strides, index = inputs["strides"].tolist(), _index(inputs, device)
    params = block_params_chain(inputs["x"].shape, inputs["bsize"].tolist(), torch_residual.KSIZES, strides)
    words: dict[str, Any] = {"border": str(inputs["border"]), "bn": str(inputs["bn"]), "strides": strides}

    def run(tensors: Tensors) -> Tensors:
        weights = _weights(tensors)
        made = torch_residual.sparse_residual_unit(tensors["x"], index, params, weights, **words, **options)
        return {"y": made}

    return run


def _masked_residual(inputs: Arrays, device: torch.device, options: dict[str, Any]) -> Function:
    n, h, w, _ = inputs["x"].shape
    pixels, border = _listing(inputs, (n, h, w), device, options), str(inputs["border"])

    def run(tensors: Tensors) -> Tensors:
        unit = torch_residual.masked_residual_unit
        return {"y": unit(tensors["x"], pixels(), _weights(tensors), border=border, **options)}

    return run


def _submanifold(inputs: Arrays, device: torch.device, options: dict[str, Any]) -> Function:
    sites = _sites(inputs, device)
    geometry: dict[str, Any] = {"dilation": inputs["dilation"].tolist(), "groups": int(inputs["groups"])}

    def run(tensors: Tensors) -> Tensors:
        given = sites.with_feats(tensors["feats"])
        made = torch_sites.subm_conv(given, tensors["w"], bias=tensors.get("bias"), **geometry, **options)
        return {"feats": made.feats}

    return run


def _strided(inputs: Arrays, device: torch.device, options: dict[str, Any]) -> Function:
    sites = _sites(inputs, device)
    geometry: dict[str, Any] = {name: inputs[name].tolist() for name in ("stride", "padding", "dilation")}
    if not inputs["inverse"]:

        def run(tensors: Tensors) -> Tensors:
            given = sites.with_feats(tensors["feats"])
            made = torch_sites.sparse_conv(given, tensors["w"], bias=tensors.get("bias"), **geometry, **options)
            return {"coords": made.coords, "feats": made.feats}

        return run
    kernel = torch.zeros(*inputs["w"].shape[:-2], 1, 1, device=device)
    single = sites.with_feats(torch.zeros(len(inputs["coords"]), 1, device=device))
    smaller = torch_sites.sparse_conv(single, kernel, **geometry, version="table")

    def back(tensors: Tensors) -> Tensors:
        given = smaller.with_feats(tensors["feats"])
        made = torch_sites.sparse_inverse_conv(given, tensors["w"], single, bias=tensors.get("bias"), **options)
        return {"coords": made.coords, "feats": made.feats}

    return back


_FUNCTIONS: dict[str, Callable[[Arrays, torch.device, dict[str, Any]], Function]] = {
    "reduce_mask": _reduce_mask,
    "pixel_index": _pixel_index,
    "gather": _gather,
    "scatter": _scatter,
    "convolution": _convolution,
    "masked": _masked,
    "residual": _residual,
    "masked_residual": _masked_residual,
    "submanifold": _submanifold,
    "strided": _strided,
}


def _rest(inputs: Arrays, tensors: Tensors) -> dict[str, Any]:
    """Base, bias and activation of a convolution."""
    return {
        "base": tensors.get("base", "zeros"),
        "bias": tensors.get("bias"),
        "activation": problem_arrays.activation(inputs),
    }


def _index(inputs: Arrays, device: torch.device) -> BlockIndex:
    rows = np.ascontiguousarray(inputs["index"], np.int32)
    return BlockIndex(_upload(rows, device), _upload(np.array([len(rows)], np.int32), device))


def _listing(
    inputs: Arrays, grid: tuple[int, int, int], device: torch.device, options: Mapping[str, Any]
) -> Callable[[], PixelIndex]:
    """The listed pixels: given, or found in the mask at every call where that is to be timed."""
    if inputs.get("include_reduce"):
        mask, tol = _upload(inputs["mask"].astype(np.float32), device), float(inputs["tol"])
        version = options["version"] if isinstance(options["version"], Fused) else "indexed"
        return lambda: torch_ops.pixel_index(mask, tol=tol, version=version)
    pixels = np.ascontiguousarray(inputs["pixels"], np.int32)
    listed = PixelIndex(_upload(pixels, device), _upload(np.array([len(pixels)], np.int32), device), grid)
    return lambda: listed


def _sites(inputs: Arrays, device: torch.device) -> torch_sites.Sites:
    feats = torch.zeros(len(inputs["coords"]), 1, device=device)
    return torch_sites.Sites.make(inputs["coords"], feats, inputs["shape"].tolist(), int(inputs["batch"]))


def _weights(tensors: Tensors) -> ResidualWeights:
    norms = (BatchNorm(*tensors[name].unbind()) if name in tensors else None for name in ("bn1", "bn2", "bn3"))
    bn1, bn2, bn3 = norms
    assert bn2 is not None and bn3 is not None
    return ResidualWeights(tensors["w1"], tensors["w2"], tensors["w3"], bn1, bn2, bn3, tensors.get("w_project"))


def _upload(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.tensor(array, device=device)
