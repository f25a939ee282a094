"""What a PyTorch user has without eqconv, at its best: the measures that ``bench`` divides by.

``conv2d`` computes the whole image in channels-last memory. ``index_blocks`` is the block route with PyTorch's own
``index_select``, ``conv2d`` and ``index_copy_``, all positions worked out before, at the fastest of a few block sizes.
``spconv`` is traveller59/spconv. All outputs are compared at the listed pixels only, for outside of them they differ by
design.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from eqconv_cli.backends.block_sparse import problem_arrays
from eqconv_cli.backends.block_sparse.geometry import BlockParams, block_params, block_params_chain, paddings
from eqconv_cli.backends.block_sparse.index import BlockIndex
from eqconv_cli.backends.block_sparse.numpy_ops import block_pixels
from eqconv_cli.backends.block_sparse.torch_residual import KSIZES
from eqconv_cli.frameworks.torch import BoundRun, Tensors

Arrays = Mapping[str, np.ndarray]

#: Block outputs of about these extents are tried; the published sweeps lie in this range.
_TILES = (4, 7, 11, 16, 24)
_TRIALS = 3
_EPSILON = 1e-3


class ListedRun(BoundRun):
    """A run whose output is compared at some rows only: what it writes elsewhere is replaced by the base.

    Args:
        function, arrays, differentiable, device: as for :class:`BoundRun`; the output is ``y``.
        listed: flat positions of the rows that count.
        base: what the operation gives elsewhere.
    """

    def __init__(
        self,
        function: Callable[[Tensors], Tensors],
        arrays: Arrays,
        differentiable: Sequence[str],
        device: str,
        listed: np.ndarray,
        base: np.ndarray,
    ) -> None:
        super().__init__(function, arrays, differentiable, device)
        self._listed, self._base = listed, base

    def download(self, native: Tensor) -> np.ndarray:
        """The base with the listed rows of the result; anything of another shape as it is."""
        given = super().download(native)
        if given.shape != self._base.shape:
            return given
        kept = np.array(self._base, given.dtype)
        channels = given.shape[-1]
        kept.reshape(-1, channels)[self._listed] = given.reshape(-1, channels)[self._listed]
        return kept

    def inputs(self) -> Mapping[str, np.ndarray]:
        """The inputs as they are now, all of them."""
        return {name: super(ListedRun, self).download(tensor) for name, tensor in self._tensors.items()}


def channels_last(x: Tensor) -> Tensor:
    """[N, H, W, C] as the [N, C, H, W] in channels-last memory that PyTorch's convolutions like best."""
    return x.permute(0, 3, 1, 2)


def oihw(w: Tensor) -> Tensor:
    """[kh, kw, C, K] as [K, C, kh, kw] in channels-last memory."""
    return w.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)


def conv2d(inputs: Arrays, dtype: str, device: str, *, operation: str, folded: bool = False) -> BoundRun:
    """The dense computation of the whole image.

    Args:
        inputs: those of the operation "masked", "convolution", "masked_residual", "residual" or "submanifold".
        dtype: "float32" or "float64".
        device: "cpu" or "cuda".
        operation: which of them.
        folded: residual units: the second and third normalisation go into the weights before them.
    """
    arrays = _floats(inputs, dtype)
    if operation == "submanifold":
        return _dense_sites(inputs, arrays, device)
    place, compared = torch.device(device), (_listed(inputs, operation), problem_arrays.base(inputs, dtype, operation))
    if operation in ("masked_residual", "residual"):
        unit = _residual_unit(arrays, place, folded)
        image = _run_arrays(arrays, "x")

        def residual(tensors: Tensors) -> Tensors:
            return {"y": unit(channels_last(tensors["x"]), None).permute(0, 2, 3, 1)}

        return ListedRun(residual, image, ("x",), device, *compared)
    pads = _pads(inputs, arrays["x"].shape[1:3])
    strides, relu = tuple(int(s) for s in inputs["strides"]), str(inputs["activation"]) == "relu"
    symmetric = pads[0] == pads[1] and pads[2] == pads[3]
    w = oihw(torch.from_numpy(arrays["w"]).to(device))
    bias = torch.from_numpy(arrays["bias"]).to(device) if "bias" in arrays else None

    def convolve(tensors: Tensors) -> Tensors:
        x = channels_last(tensors["x"])
        if not symmetric:
            x = functional.pad(x, (pads[2], pads[3], pads[0], pads[1]))
        y = functional.conv2d(x, w, bias, strides, (pads[0], pads[2]) if symmetric else 0)
        y = y.relu_() if relu else y
        return {"y": y.permute(0, 2, 3, 1)}

    return ListedRun(convolve, _run_arrays(arrays, "x"), ("x",), device, *compared)


def index_blocks(inputs: Arrays, dtype: str, device: str, *, operation: str) -> BoundRun:
    """Gather, convolution and scatter by PyTorch's own indexing, in place on an output that holds the base.

    The active tiles are those that hold a listed pixel. Of the tile sizes :data:`_TILES` the fastest here is taken.

    Args:
        inputs: those of the operation "masked" (stride 1) or "masked_residual".
        dtype: "float32" or "float64".
        device: "cpu" or "cuda".
        operation: which of them.
    """
    arrays, place = _floats(inputs, dtype), torch.device(device)
    shape, residual = arrays["x"].shape, operation == "masked_residual"
    kernel = (3, 3) if residual else arrays["w"].shape[:2]
    padding = "SAME" if residual else str(inputs["padding"])
    base = problem_arrays.base(inputs, dtype, operation)
    y = torch.from_numpy(base.copy()).to(place)
    compute = _residual_unit(arrays, place, True) if residual else _valid_convolution(inputs, arrays, place)

    def at(tile: int) -> Callable[[Tensors], Tensors]:
        bsize = (tile + kernel[0] - 1, tile + kernel[1] - 1)
        params = block_params(shape, bsize, kernel, (1, 1), padding)
        active = _active_tiles(inputs["pixels"], params)
        windows = _Windows(active, params.bsize, params.bstrides, params.boffset, shape[1:3], place)
        tiles = _Windows(active, params.bsize_out, params.bsize_out, (0, 0), params.out_size, place)
        inside = None if windows.inside is None else windows.inside[:, None]

        def run(tensors: Tensors) -> Tensors:
            stack = windows.gather(tensors["x"].view(-1, shape[-1]))
            tiles.scatter(compute(channels_last(stack), inside).permute(0, 2, 3, 1), y.view(-1, y.shape[-1]))
            return {"y": y}

        return run

    tensors = {"x": torch.from_numpy(arrays["x"]).to(place)}
    runs = [at(tile) for tile in _TILES]
    fastest = min(runs, key=lambda run: _seconds(run, tensors))
    return ListedRun(fastest, _run_arrays(arrays, "x"), ("x",), device, inputs["pixels"], base)


def pool(inputs: Arrays, dtype: str, device: str, *, operation: str) -> BoundRun:
    """The active blocks by PyTorch's pooling and ``nonzero``.

    Args:
        inputs: those of the operation "reduce_mask", without NaN.
        dtype: "float32" or "float64".
        device: "cpu" or "cuda".
        operation: "reduce_mask".
    """
    mask = inputs["mask"].astype(dtype, copy=False)
    size, stride, offset, count = (inputs[name].tolist() for name in ("bsize", "bstride", "boffset", "bcount"))
    average, tol = bool(inputs["avgpool"]), float(inputs["tol"])
    pads = []
    for axis in (1, 0):
        reach = offset[axis] + stride[axis] * (count[axis] - 1) + size[axis]
        pads += [-offset[axis], max(0, reach - mask.shape[1 + axis])]

    def run(tensors: Tensors) -> Tensors:
        image = tensors["mask"].view(mask.shape[0], 1, *mask.shape[1:3])
        around = functional.pad(image, pads, value=0.0 if average else float("-inf"))
        pooled = (functional.avg_pool2d if average else functional.max_pool2d)(around, size, stride)
        rows = (pooled[:, 0, : count[0], : count[1]] > tol).nonzero().int()
        return {"active_block_indices": rows, "bin_counts": torch.tensor([len(rows)], dtype=torch.int32)}

    return BoundRun(run, {"mask": mask}, (), device)


def index_select(inputs: Arrays, dtype: str, device: str, *, operation: str) -> BoundRun:
    """Gather by PyTorch's ``index_select``, all positions worked out before.

    Args:
        inputs: those of the operation "gather", blocks not transposed.
        dtype: "float32" or "float64".
        device: "cpu" or "cuda".
        operation: "gather".
    """
    arrays, place = _floats(inputs, dtype), torch.device(device)
    size, stride, offset = (inputs[name].tolist() for name in ("bsize", "bstride", "boffset"))
    windows = _Windows(inputs["index"], size, stride, offset, arrays["x"].shape[1:3], place)

    def gather(tensors: Tensors) -> Tensors:
        x = tensors["x"]
        return {"blocks": windows.gather(x.view(-1, x.shape[3]))}

    return BoundRun(gather, _run_arrays(arrays, "x"), ("x",), device)


def index_copy(inputs: Arrays, dtype: str, device: str, *, operation: str, in_place: bool = False) -> BoundRun:
    """Scatter by PyTorch's ``index_copy_``, all positions worked out before.

    Args:
        inputs: those of the operation "scatter", blocks that do not overlap, not transposed and not added.
        dtype: "float32" or "float64".
        device: "cpu" or "cuda".
        operation: "scatter".
        in_place: every run writes into one image that holds the base.
    """
    arrays, place = _floats(inputs, dtype), torch.device(device)
    size, stride, offset = (inputs[name].tolist() for name in ("bsize", "bstride", "boffset"))
    windows = _Windows(inputs["index"], size, stride, offset, arrays["ybase"].shape[1:3], place)
    y = torch.from_numpy(arrays["ybase"].copy()).to(place)

    def scatter(tensors: Tensors) -> Tensors:
        target = y if in_place else tensors["ybase"].clone()
        windows.scatter(tensors["blocks"], target.view(-1, target.shape[3]))
        return {"y": target}

    return BoundRun(scatter, _run_arrays(arrays, "blocks", "ybase"), ("blocks", "ybase"), device)


def spconv(inputs: Arrays, dtype: str, device: str, *, operation: str) -> BoundRun:
    """spconv's submanifold convolution with its pairs of sites worked out before.

    Args:
        inputs: those of the operation "submanifold".
        dtype: "float32" or "float64".
        device: "cpu" or "cuda".
        operation: "submanifold".

    Raises:
        ValueError: another operation, number of axes or groups than spconv has.
    """
    import spconv.pytorch as peer

    arrays, shape = _floats(inputs, dtype), [int(extent) for extent in inputs["shape"]]
    kinds = {2: peer.SubMConv2d, 3: peer.SubMConv3d}
    if operation != "submanifold" or len(shape) not in kinds or int(inputs["groups"]) != 1:
        raise ValueError(
            f"spconv computes submanifold convolutions of 2 or 3 axes without groups, not this {operation}"
        )
    w, place = arrays["w"], torch.device(device)
    volume = w.shape[:-2]
    layer = kinds[len(shape)](
        w.shape[-2],
        w.shape[-1],
        volume,
        dilation=inputs["dilation"].tolist(),
        bias="bias" in arrays,
        indice_key="sites",
    )
    layer = layer.to(place, torch.from_numpy(w).dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.moveaxis(w, -1, 0)))
        if "bias" in arrays:
            layer.bias.copy_(torch.from_numpy(arrays["bias"]))
    coords = torch.from_numpy(np.ascontiguousarray(inputs["coords"], np.int32)).to(place)
    feats = torch.from_numpy(arrays["feats"]).to(place)
    with torch.no_grad():
        planned = layer(peer.SparseConvTensor(feats, coords, shape, int(inputs["batch"])))

    def run(tensors: Tensors) -> Tensors:
        return {"feats": layer(planned.replace_feature(tensors["feats"])).features}

    return BoundRun(run, _run_arrays(arrays, "feats"), ("feats",), device)


def _listed(inputs: Arrays, operation: str) -> np.ndarray:
    """Flat positions of the output pixels that are compared."""
    if "pixels" in inputs:
        return inputs["pixels"]
    shape, size, strides = inputs["x"].shape, inputs["bsize"].tolist(), inputs["strides"].tolist()
    if operation == "residual":
        params = block_params_chain(shape, size, KSIZES, strides)
    else:
        params = block_params(shape, size, inputs["w"].shape, strides, str(inputs["padding"]), str(inputs["coverage"]))
    index = BlockIndex(inputs["index"], np.array([len(inputs["index"])], np.int32))
    return np.asarray(block_pixels(index, params, shape[0], "indexed").pixels)


def _floats(inputs: Arrays, dtype: str) -> dict[str, np.ndarray]:
    return {name: a.astype(dtype, copy=False) for name, a in inputs.items() if np.issubdtype(a.dtype, np.floating)}


def _run_arrays(arrays: Arrays, *names: str) -> dict[str, np.ndarray]:
    return {name: arrays[name] for name in names}


def _pads(inputs: Arrays, size: Sequence[int]) -> tuple[int, int, int, int]:
    """Top, bottom, left, right."""
    kernel, strides, padding = inputs["w"].shape[:2], inputs["strides"], str(inputs["padding"])
    top, bottom = paddings(int(size[0]), kernel[0], int(strides[0]), padding)
    left, right = paddings(int(size[1]), kernel[1], int(strides[1]), padding)
    return top, bottom, left, right


def _seconds(run: Callable[[Tensors], Tensors], tensors: Tensors) -> float:
    times = []
    with torch.no_grad():
        for _ in range(_TRIALS):
            started = time.perf_counter()
            run(tensors)
            times.append(time.perf_counter() - started)
    return min(times)


class _Windows:
    """Flat positions of the pixels of a list of windows."""

    def __init__(
        self,
        index: np.ndarray,
        size: Sequence[int],
        stride: Sequence[int],
        offset: Sequence[int],
        image: Sequence[int],
        place: torch.device,
    ) -> None:
        positions, inside = _positions(index, size, stride, offset, image)
        self._size = tuple(size)
        self._all = torch.from_numpy(positions.reshape(-1)).to(place)
        self._outside = torch.from_numpy(np.flatnonzero(~inside)).to(place)
        self._inside = torch.from_numpy(positions[inside]).to(place)
        self._kept = None if inside.all() else torch.from_numpy(np.flatnonzero(inside)).to(place)
        #: [B, h, w], whether a pixel is in the image; None when all are.
        self.inside = None if inside.all() else torch.from_numpy(inside).to(place)

    def gather(self, x: Tensor) -> Tensor:
        """[B, h, w, C] from the rows [pixels, C], 0 outside the image."""
        rows = x.index_select(0, self._all)
        if len(self._outside):
            rows.index_fill_(0, self._outside, 0)
        return rows.view(-1, *self._size, x.shape[1])

    def scatter(self, blocks: Tensor, y: Tensor) -> None:
        """Put [B, h, w, K] into the rows [pixels, K]."""
        rows = blocks.reshape(-1, y.shape[1])
        y.index_copy_(0, self._inside, rows if self._kept is None else rows.index_select(0, self._kept))


def _active_tiles(pixels: np.ndarray, params: BlockParams) -> np.ndarray:
    """(image, i, j) of the tiles that hold a listed output pixel."""
    height, width = params.out_size
    lines, tile = pixels.astype(np.int64) // width, params.bsize_out
    rows = np.stack([lines // height, lines % height // tile[0], pixels % width // tile[1]], axis=1)
    return np.unique(rows, axis=0)


def _positions(
    active: np.ndarray, size: Sequence[int], stride: Sequence[int], offset: Sequence[int], image: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions [B, h, w] of windows, moved into the image where outside, and which are inside."""
    rows = (offset[0] + stride[0] * active[:, 1])[:, None] + np.arange(size[0])
    columns = (offset[1] + stride[1] * active[:, 2])[:, None] + np.arange(size[1])
    inside = ((rows >= 0) & (rows < image[0]))[:, :, None] & ((columns >= 0) & (columns < image[1]))[:, None, :]
    lines = active[:, 0, None] * image[0] + np.clip(rows, 0, image[0] - 1)
    return lines[:, :, None] * image[1] + np.clip(columns, 0, image[1] - 1)[:, None, :], inside


def _valid_convolution(
    inputs: Arrays, arrays: Arrays, place: torch.device
) -> Callable[[Tensor, Tensor | None], Tensor]:
    w = oihw(torch.from_numpy(arrays["w"]).to(place))
    bias = torch.from_numpy(arrays["bias"]).to(place) if "bias" in arrays else None
    relu = str(inputs["activation"]) == "relu"

    def compute(blocks: Tensor, inside: Tensor | None) -> Tensor:
        y = functional.conv2d(blocks, w, bias)
        return y.relu_() if relu else y

    return compute


def _residual_unit(arrays: Arrays, place: torch.device, folded: bool) -> Callable[[Tensor, Tensor | None], Tensor]:
    """The bottleneck on [B, C, h, w]: SAME on a whole image, VALID on blocks, where ``inside`` says what is image."""
    bn = {name: torch.from_numpy(arrays[name]).to(place) for name in ("bn1", "bn2", "bn3") if name in arrays}
    w1, w2, w3 = (torch.from_numpy(arrays[name]).to(place) for name in ("w1", "w2", "w3"))
    bias: dict[str, Tensor | None] = {"bn2": None, "bn3": None}
    if folded:
        for name in bias:
            scale = bn[name][0] * torch.rsqrt(bn[name][3] + _EPSILON)
            bias[name] = bn[name][1] - bn[name][2] * scale
            w1, w2 = (w1 * scale, w2) if name == "bn2" else (w1, w2 * scale)
    first, middle, last = oihw(w1[None, None]), oihw(w2), oihw(w3[None, None])

    def normalised(name: str, h: Tensor) -> Tensor:
        if name not in bn or bias.get(name) is not None:
            return h
        scale, offset, mean, variance = bn[name]
        return functional.batch_norm(h, mean, variance, scale, offset, eps=_EPSILON)

    def unit(x: Tensor, inside: Tensor | None) -> Tensor:
        whole = x.shape[0] == arrays["x"].shape[0] and x.shape[2:] == arrays["x"].shape[1:3]
        a = normalised("bn1", x).relu() if "bn1" in bn else x
        h = normalised("bn2", functional.conv2d(a, first, bias["bn2"])).relu_()
        if inside is not None:
            h = h * inside
        h = functional.conv2d(h, middle, bias["bn3"], padding=1 if whole else 0)
        h = functional.conv2d(normalised("bn3", h).relu_(), last)
        return h.add_(x if whole else x[:, :, 1:-1, 1:-1])

    return unit


def _dense_sites(inputs: Arrays, arrays: Mapping[str, np.ndarray], device: str) -> BoundRun:
    """The dense convolution of the image that is zero where there is no site, read at the sites; 2 axes."""
    shape, place = [int(extent) for extent in inputs["shape"]], torch.device(device)
    if len(shape) != 2:
        raise ValueError(f"conv2d computes 2 axes, not {len(shape)}")
    dilation, kernel = inputs["dilation"].tolist(), inputs["w"].shape[:2]
    image = torch.zeros(
        int(inputs["batch"]), *shape, arrays["feats"].shape[1], dtype=torch.from_numpy(arrays["w"]).dtype
    )
    image = image.to(place)
    coords = inputs["coords"].astype(np.int64)
    flat = torch.from_numpy((coords[:, 0] * shape[0] + coords[:, 1]) * shape[1] + coords[:, 2]).to(place)
    rows, w = image.view(-1, image.shape[-1]), oihw(torch.from_numpy(arrays["w"]).to(place))
    bias = torch.from_numpy(arrays["bias"]).to(place) if "bias" in arrays else None
    front = [step * (k // 2) for step, k in zip(dilation, kernel, strict=True)]
    behind = [step * (k - 1) - pad for step, k, pad in zip(dilation, kernel, front, strict=True)]

    def run(tensors: Tensors) -> Tensors:
        rows.index_copy_(0, flat, tensors["feats"])
        x = channels_last(image)
        if front != behind:
            x = functional.pad(x, (front[1], behind[1], front[0], behind[0]))
        pads = 0 if front != behind else (front[0], front[1])
        y = functional.conv2d(x, w, bias, 1, pads, dilation, int(inputs["groups"]))
        return {"feats": y.permute(0, 2, 3, 1).reshape(-1, y.shape[1]).index_select(0, flat)}

    return BoundRun(run, _run_arrays(arrays, "feats"), ("feats",), device)
