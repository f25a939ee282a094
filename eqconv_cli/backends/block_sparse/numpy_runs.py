"""The catalog's door to NumPy: each operation bound to a problem's arrays, with its gradients by the closed forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from eqconv_cli.backends.block_sparse import numpy_convolution, numpy_ops, numpy_residual, numpy_sites
from eqconv_cli.backends.block_sparse.geometry import Pair, block_params, block_params_chain
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.problem_arrays import activation
from eqconv_cli.backends.block_sparse.units import BatchNorm, ResidualWeights
from eqconv_cli.catalog import Arrays
from eqconv_cli.frameworks.numpy import BoundRun
from eqconv_cli.kernels.doors import settings_on

Results = dict[str, Any]
Version = str | Fused


class Bound(NamedTuple):
    """An operation with everything but its real arrays."""

    forward: Callable[[Arrays], Results]
    #: From arrays and cotangents to the gradients by name; None where there are none.
    backward: Callable[[Arrays, Arrays], Results] | None


def prepare(
    inputs: Arrays,
    dtype: str,
    device: str,
    *,
    operation: str,
    version: str = "auto",
    fused: Mapping[str, Any] | None = None,
    gradients: bool = False,
) -> BoundRun:
    """Bind an operation of the family.

    Args:
        inputs: of the problem, see the family's operations.
        dtype: "float32" or "float64".
        device: "cpu", or "emulated" for the compiled kernels.
        operation: its name in the catalog.
        version: of the operation.
        fused: settings of the compiled kernels, see :class:`Fused`; None runs ``version``.
        gradients: whether there is a backward pass.
    """
    how: Version = version if fused is None else settings_on(Fused, device, fused)
    bound = _BINDERS[operation](inputs, how)
    floats = {name: a for name, a in inputs.items() if np.issubdtype(a.dtype, np.floating)}
    backward = bound.backward
    if not gradients or backward is None:
        return BoundRun(bound.forward, floats)

    def both(arrays: Arrays, cotangents: Arrays) -> Results:
        # The gradients do not need the outputs; both are computed and kept to the end, as in the frameworks.
        outputs = bound.forward(arrays)
        found = backward(arrays, cotangents)
        del outputs
        return {name: found[name] for name in found if name in arrays}

    return BoundRun(bound.forward, floats, both)


def _reduce_mask(given: Arrays, how: Version) -> Bound:
    options = {**_window(given), "avgpool": bool(given["avgpool"]), "on_empty": str(given["on_empty"])}

    def forward(arrays: Arrays) -> Results:
        mask = arrays.get("mask", given["mask"])
        index = numpy_ops.reduce_mask(mask, _pair(given["bcount"]), tol=float(arrays["tol"]), version=how, **options)
        return index._asdict()

    return Bound(forward, None)


def _pixel_index(given: Arrays, how: Version) -> Bound:
    options: Results = {"ksize": _pair(given["ksize"]), "strides": _pair(given["strides"])}

    def forward(arrays: Arrays) -> Results:
        mask, padding = arrays.get("mask", given["mask"]), str(given["padding"])
        found = numpy_ops.pixel_index(mask, tol=float(arrays["tol"]), padding=padding, version=how, **options)
        return {"pixels": found.pixels, "count": found.count}

    return Bound(forward, None)


def _gather(given: Arrays, how: Version) -> Bound:
    index, options = _index(given), {**_window(given), "transpose": bool(given["transpose"]), "version": how}

    def forward(arrays: Arrays) -> Results:
        return {"blocks": numpy_ops.sparse_gather(arrays["x"], index, **options)}

    def backward(arrays: Arrays, cotangents: Arrays) -> Results:
        return {"x": numpy_ops.sparse_gather_gradient(cotangents["blocks"], index, arrays["x"].shape, **options)}

    return Bound(forward, backward)


def _scatter(given: Arrays, how: Version) -> Bound:
    index, options = _index(given), {**_window(given), "transpose": bool(given["transpose"]), "version": how}
    add, atomic = bool(given["add"]), bool(given["atomic"])

    def forward(arrays: Arrays) -> Results:
        blocks, base = arrays["blocks"], arrays["ybase"]
        return {"y": numpy_ops.sparse_scatter(blocks, index, base, add=add, atomic=atomic, **options)}

    def backward(arrays: Arrays, cotangents: Arrays) -> Results:
        found = numpy_ops.sparse_scatter_gradients(cotangents["y"], index, add=add, **options)
        return dict(zip(("blocks", "ybase"), found, strict=True))

    return Bound(forward, backward)


def _convolution(given: Arrays, how: Version) -> Bound:
    strides, padding, coverage = _pair(given["strides"]), str(given["padding"]), str(given["coverage"])
    shapes = given["x"].shape, _pair(given["bsize"]), given["w"].shape
    index, params = _index(given), block_params(*shapes, strides, padding, coverage)
    options: Results = {"strides": strides, "activation": activation(given)}

    def forward(arrays: Arrays) -> Results:
        x, w, base = arrays["x"], arrays["w"], arrays.get("base", "zeros")
        bias = arrays.get("bias")
        return {"y": numpy_convolution.sparse_conv2d(x, w, index, params, base=base, bias=bias, version=how, **options)}

    def backward(arrays: Arrays, cotangents: Arrays) -> Results:
        x, w = arrays["x"], arrays["w"]
        return numpy_convolution.sparse_conv2d_gradients(
            cotangents["y"], x, w, index, params, bias=arrays.get("bias"), version=how, **options
        )

    return Bound(forward, backward)


def _masked(given: Arrays, how: Version) -> Bound:
    strides, padding = _pair(given["strides"]), str(given["padding"])
    grid = numpy_ops.out_grid(given["x"].shape, _pair(np.array(given["w"].shape[:2])), strides, padding)
    pixels = _listing(given, grid, how)
    options: Results = {"strides": strides, "padding": padding, "activation": activation(given)}

    def forward(arrays: Arrays) -> Results:
        x, w, base = arrays["x"], arrays["w"], arrays.get("base", "zeros")
        bias, here = arrays.get("bias"), pixels()
        return {"y": numpy_convolution.masked_conv2d(x, w, here, base=base, bias=bias, version=how, **options)}

    def backward(arrays: Arrays, cotangents: Arrays) -> Results:
        x, w = arrays["x"], arrays["w"]
        return numpy_convolution.masked_conv2d_gradients(
            cotangents["y"], x, w, pixels(), bias=arrays.get("bias"), version=how, **options
        )

    return Bound(forward, backward)


def _residual(given: Arrays, how: Version) -> Bound:
    strides = _pair(given["strides"])
    params = block_params_chain(given["x"].shape, _pair(given["bsize"]), [(1, 1), (3, 3), (1, 1)], strides)
    index = _index(given)
    options: Results = {"border": str(given["border"]), "bn": str(given["bn"]), "strides": strides, "version": how}

    def forward(arrays: Arrays) -> Results:
        return {"y": numpy_residual.sparse_residual_unit(arrays["x"], index, params, weights_of(arrays), **options)}

    def backward(arrays: Arrays, cotangents: Arrays) -> Results:
        weights, dy = weights_of(arrays), cotangents["y"]
        found = numpy_residual.sparse_residual_unit_gradients(dy, arrays["x"], index, params, weights, **options)
        return _stacked(found)

    return Bound(forward, backward)


def _masked_residual(given: Arrays, how: Version) -> Bound:
    pixels = _listing(given, given["x"].shape[:3], how)
    options: Results = {"border": str(given["border"]), "version": how}

    def forward(arrays: Arrays) -> Results:
        return {"y": numpy_residual.masked_residual_unit(arrays["x"], pixels(), weights_of(arrays), **options)}

    def backward(arrays: Arrays, cotangents: Arrays) -> Results:
        weights, dy = weights_of(arrays), cotangents["y"]
        found = numpy_residual.masked_residual_unit_gradients(dy, arrays["x"], pixels(), weights, **options)
        return _stacked(found)

    return Bound(forward, backward)


def _submanifold(given: Arrays, how: Version) -> Bound:
    sites = _sites(given)
    options: Results = {"dilation": given["dilation"].tolist(), "groups": int(given["groups"])}

    def forward(arrays: Arrays) -> Results:
        here, bias = sites.with_feats(arrays["feats"]), arrays.get("bias")
        return {"feats": numpy_sites.subm_conv(here, arrays["w"], bias=bias, version=how, **options).feats}

    def backward(arrays: Arrays, cotangents: Arrays) -> Results:
        here = sites.with_feats(arrays["feats"])
        dy, bias = cotangents["feats"], arrays.get("bias")
        return numpy_sites.subm_conv_gradients(dy, here, arrays["w"], bias=bias, version=how, **options)

    return Bound(forward, backward)


def _strided(given: Arrays, how: Version) -> Bound:
    options: Results = {name: given[name].tolist() for name in ("stride", "padding", "dilation")}
    fine = _sites({**given, "feats": np.empty((len(given["coords"]), 1), given["w"].dtype)})
    if given["inverse"]:
        return _inverse(fine, given, how, options)

    def forward(arrays: Arrays) -> Results:
        here, bias = fine.with_feats(arrays["feats"]), arrays.get("bias")
        made = numpy_sites.sparse_conv(here, arrays["w"], bias=bias, version=how, **options)
        return {"coords": made.coords, "feats": made.feats}

    def backward(arrays: Arrays, cotangents: Arrays) -> Results:
        here = fine.with_feats(arrays["feats"])
        dy, bias = cotangents["feats"], arrays.get("bias")
        return numpy_sites.sparse_conv_gradients(dy, here, arrays["w"], bias=bias, version=how, **options)

    return Bound(forward, backward)


def _inverse(fine: numpy_sites.Sites, given: Arrays, how: Version, options: Results) -> Bound:
    coarse = fine.pattern.strided(given["w"].shape[:-2], **options).out

    def forward(arrays: Arrays) -> Results:
        here, bias = numpy_sites.Sites(coarse, arrays["feats"]), arrays.get("bias")
        made = numpy_sites.sparse_inverse_conv(here, arrays["w"], fine, bias=bias, version=how)
        return {"coords": made.coords, "feats": made.feats}

    def backward(arrays: Arrays, cotangents: Arrays) -> Results:
        here = numpy_sites.Sites(coarse, arrays["feats"])
        dy, bias = cotangents["feats"], arrays.get("bias")
        return numpy_sites.sparse_inverse_conv_gradients(dy, here, arrays["w"], fine, bias=bias, version=how)

    return Bound(forward, backward)


_BINDERS: dict[str, Callable[[Arrays, Version], Bound]] = {
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


# Arrays as arguments.


def weights_of(arrays: Arrays) -> ResidualWeights:
    """The unit's parameters, whose normalisations a problem has as [4, C]."""
    norms = [BatchNorm(*arrays[name]) if name in arrays else None for name in ("bn1", "bn2", "bn3")]
    first, second, third = norms
    assert second is not None and third is not None
    project = arrays.get("w_project")
    return ResidualWeights(arrays["w1"], arrays["w2"], arrays["w3"], first, second, third, project)


def _stacked(gradients: Results) -> Results:
    return {name: np.stack(g) if isinstance(g, BatchNorm) else g for name, g in gradients.items() if g is not None}


def _listing(given: Arrays, grid: tuple[int, ...], how: Version) -> Callable[[], PixelIndex]:
    """The problem's pixels; made of the mask at each call where the problem wants that timed."""
    images, height, width = grid
    listed = given["pixels"].astype(np.int32)
    made = PixelIndex(listed, np.array([len(listed)], np.int32), (images, height, width))
    if "include_reduce" not in given or not given["include_reduce"]:
        return lambda: made
    version = how if isinstance(how, Fused) else "indexed"
    return lambda: numpy_ops.pixel_index(given["mask"], tol=float(given["tol"]), version=version)


def _sites(given: Arrays) -> numpy_sites.Sites:
    return numpy_sites.Sites.make(given["coords"], given["feats"], given["shape"].tolist(), int(given["batch"]))


def _index(given: Arrays) -> BlockIndex:
    rows = given["index"].astype(np.int32)
    return BlockIndex(rows, np.array([len(rows)], np.int32))


def _window(given: Arrays) -> Results:
    return {name: _pair(given[name]) for name in ("bsize", "bstride", "boffset")}


def _pair(array: Any) -> Pair:
    first, second = array.tolist()
    return first, second
