"""The TensorFlow variants as prepared runs: lists, geometry and tables of neighbours are there before the first run."""

from __future__ import annotations

# First, because it sets how much TensorFlow writes to the terminal before TensorFlow is imported.
from eqconv_cli.frameworks.tensorflow import BoundRun, Mode, Tensors

# isort: split
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from eqconv_cli.backends.block_sparse import (
    problem_arrays,
    tensorflow_convolution,
    tensorflow_ops,
    tensorflow_residual,
    tensorflow_sites,
)
from eqconv_cli.backends.block_sparse.geometry import block_params, block_params_chain
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.units import BatchNorm, ResidualWeights
from eqconv_cli.kernels.doors import settings_on

Arrays = Mapping[str, np.ndarray]
Options = dict[str, Any]
#: A function of the real tensors by name.
Function = Callable[[Tensors], Tensors]


def prepare(
    inputs: Arrays,
    dtype: str,
    device: str,
    *,
    operation: str,
    version: str = "auto",
    mode: Mode = "eager",
    fused: Mapping[str, Any] | None = None,
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
        mode: "eager", "function" or "xla".
        fused: settings of the compiled kernels, see :class:`Fused`; None runs ``version``.
        **options: other keyword options of the operation's function.

    Returns:
        A run with the operation's outputs and the gradients of all real inputs but masks.

    Raises:
        TypeError, ValueError, IndexError: see the operation's function.
    """
    arrays, differentiable = problem_arrays.reals(inputs, dtype, operation)
    how = version if fused is None else settings_on(Fused, device, fused)
    with tf.device("/GPU:0" if device == "cuda" else "/CPU:0"):
        function = _FUNCTIONS[operation](inputs, {"version": how, **options})
    return BoundRun(function, arrays, differentiable, device, mode)


def _reduce_mask(inputs: Arrays, options: Options) -> Function:
    numbers: Options = {**problem_arrays.window(inputs), **problem_arrays.threshold(inputs)}
    on_empty, bcount = str(inputs["on_empty"]), inputs["bcount"].tolist()

    def run(tensors: Tensors) -> Tensors:
        index = tensorflow_ops.reduce_mask(tensors["mask"], bcount, **numbers, on_empty=on_empty, **options)
        return {
            "active_block_indices": index.active_block_indices[: index.bin_counts[0]],
            "bin_counts": index.bin_counts,
        }

    return run


def _pixel_index(inputs: Arrays, options: Options) -> Function:
    numbers: Options = {"ksize": inputs["ksize"].tolist(), **problem_arrays.steps(inputs), "tol": float(inputs["tol"])}

    def run(tensors: Tensors) -> Tensors:
        index = tensorflow_ops.pixel_index(tensors["mask"], **numbers, **options)
        return {"pixels": index.pixels[: index.count[0]], "count": index.count}

    return run


def _gather(inputs: Arrays, options: Options) -> Function:
    index, numbers = _index(inputs), {**problem_arrays.window(inputs), "transpose": bool(inputs["transpose"])}
    return lambda tensors: {"blocks": tensorflow_ops.sparse_gather(tensors["x"], index, **numbers, **options)}


def _scatter(inputs: Arrays, options: Options) -> Function:
    index, numbers = _index(inputs), problem_arrays.window(inputs)
    flags: Options = {name: bool(inputs[name]) for name in ("add", "atomic", "transpose")}

    def run(tensors: Tensors) -> Tensors:
        scatter = tensorflow_ops.sparse_scatter
        return {"y": scatter(tensors["blocks"], index, tensors["ybase"], **numbers, **flags, **options)}

    return run


def _convolution(inputs: Arrays, options: Options) -> Function:
    steps, index = problem_arrays.steps(inputs), _index(inputs)
    words = (steps["strides"], steps["padding"], str(inputs["coverage"]))
    params = block_params(inputs["x"].shape, inputs["bsize"].tolist(), inputs["w"].shape, *words)

    def run(tensors: Tensors) -> Tensors:
        rest = {"strides": steps["strides"], **_rest(inputs, tensors)}
        convolution = tensorflow_convolution.sparse_conv2d
        return {"y": convolution(tensors["x"], tensors["w"], index, params, **rest, **options)}

    return run


def _masked(inputs: Arrays, options: Options) -> Function:
    steps = problem_arrays.steps(inputs)
    pixels = _listing(inputs, problem_arrays.grid(inputs), options["version"])

    def run(tensors: Tensors) -> Tensors:
        rest = {**steps, **_rest(inputs, tensors)}
        return {"y": tensorflow_convolution.masked_conv2d(tensors["x"], tensors["w"], pixels(), **rest, **options)}

    return run


def _residual(inputs: Arrays, options: Options) -> Function:
    strides, index = inputs["strides"].tolist(), _index(inputs)
    params = block_params_chain(inputs["x"].shape, inputs["bsize"].tolist(), tensorflow_residual.KSIZES, strides)
    words: Options = {"border": str(inputs["border"]), "bn": str(inputs["bn"]), "strides": strides}

    def run(tensors: Tensors) -> Tensors:
        unit = tensorflow_residual.sparse_residual_unit
        return {"y": unit(tensors["x"], index, params, _weights(tensors), **words, **options)}

    return run


def _masked_residual(inputs: Arrays, options: Options) -> Function:
    images, height, width, _ = inputs["x"].shape
    pixels, border = _listing(inputs, (images, height, width), options["version"]), str(inputs["border"])

    def run(tensors: Tensors) -> Tensors:
        unit = tensorflow_residual.masked_residual_unit
        return {"y": unit(tensors["x"], pixels(), _weights(tensors), border=border, **options)}

    return run


def _submanifold(inputs: Arrays, options: Options) -> Function:
    sites = _sites(inputs)
    numbers: Options = {"dilation": inputs["dilation"].tolist(), "groups": int(inputs["groups"])}

    def run(tensors: Tensors) -> Tensors:
        given = sites.with_feats(tensors["feats"])
        made = tensorflow_sites.subm_conv(given, tensors["w"], bias=tensors.get("bias"), **numbers, **options)
        return {"feats": made.feats}

    return run


def _strided(inputs: Arrays, options: Options) -> Function:
    sites = _sites(inputs)
    numbers: Options = {name: inputs[name].tolist() for name in ("stride", "padding", "dilation")}
    if not inputs["inverse"]:

        def run(tensors: Tensors) -> Tensors:
            given = sites.with_feats(tensors["feats"])
            made = tensorflow_sites.sparse_conv(given, tensors["w"], bias=tensors.get("bias"), **numbers, **options)
            return {"coords": made.coords, "feats": made.feats}

        return run
    kernel = tf.zeros([*inputs["w"].shape[:-2], 1, 1])
    smaller = tensorflow_sites.sparse_conv(sites, kernel, **numbers, version="table")

    def back(tensors: Tensors) -> Tensors:
        given = smaller.with_feats(tensors["feats"])
        inverse = tensorflow_sites.sparse_inverse_conv
        made = inverse(given, tensors["w"], sites, bias=tensors.get("bias"), **options)
        return {"coords": made.coords, "feats": made.feats}

    return back


_FUNCTIONS: dict[str, Callable[[Arrays, Options], Function]] = {
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


def _rest(inputs: Arrays, tensors: Tensors) -> Options:
    """Base, bias and activation of a convolution."""
    return {
        "base": tensors.get("base", "zeros"),
        "bias": tensors.get("bias"),
        "activation": problem_arrays.activation(inputs),
    }


def _index(inputs: Arrays) -> BlockIndex:
    rows = tf.constant(inputs["index"].astype(np.int32, copy=False))
    return BlockIndex(rows, tf.constant([len(inputs["index"])], tf.int32))


def _listing(inputs: Arrays, grid: tuple[int, int, int], how: Any) -> Callable[[], PixelIndex]:
    """The problem's pixels; made of the mask at each call where the problem wants that timed."""
    if inputs.get("include_reduce"):
        mask, tol = tf.constant(inputs["mask"]), float(inputs["tol"])
        version = how if isinstance(how, Fused) else "indexed"
        return lambda: tensorflow_ops.pixel_index(mask, tol=tol, version=version)
    pixels = tf.constant(inputs["pixels"].astype(np.int32, copy=False))
    made = PixelIndex(pixels, tf.constant([len(inputs["pixels"])], tf.int32), grid)
    return lambda: made


def _sites(inputs: Arrays) -> tensorflow_sites.Sites:
    coords = inputs["coords"]
    return tensorflow_sites.Sites.make(
        coords, tf.zeros([len(coords), 1]), inputs["shape"].tolist(), int(inputs["batch"])
    )


def _weights(tensors: Tensors) -> ResidualWeights:
    norms: dict[str, Any] = {
        name: BatchNorm(*tf.unstack(tensors[name])) for name in ("bn1", "bn2", "bn3") if name in tensors
    }
    matrices = {name: tensors[name] for name in ("w1", "w2", "w3", "w_project") if name in tensors}
    return ResidualWeights(**matrices, **{"bn1": None, **norms})
