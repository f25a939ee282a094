"""SBNet's operators under their own names: what ``tf.load_op_library("libsbnet.so")`` gave its users.

uber-research/sbnet ``sbnet_ops``. Index lists are int16 and an empty mask gives block (0, 0, 0), as there; lists are in
raster order and have the length that counts, gradients are those of overlapping and of transposed blocks, too.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import tensorflow as tf

from eqconv_cli.kernels import tensorflow_doors
from eqconv_cli.kernels.doors import missing_kernels

_GEOMETRY = ("bsize", "bstride", "boffset")


@cache
def sbnet_module() -> SbnetModule:
    """SBNet's operators, computed by the compiled kernels.

    Returns:
        An object with ``reduce_mask``, ``sparse_gather``, ``sparse_scatter`` and ``sparse_scatter_var``; they work
        eagerly, in ``tf.function`` and in graphs of TensorFlow 1, and have gradients.

    Raises:
        Unavailable: the kernels are not built.
    """
    module = tensorflow_doors.operators("cpu")
    if tf.config.list_logical_devices("GPU") and not missing_kernels("cuda"):
        tensorflow_doors.operators("cuda")
    _register(module)
    return SbnetModule(module)


class SbnetModule:
    """The operators of one library.

    Sizes are given as ``dynamic_bsize``, ``dynamic_bstride`` and ``dynamic_boffset`` (the released operators; arrays or
    tensors of two int32), or as ``bsize``, ``bstride`` and ``boffset`` (its README and older releases).
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    def reduce_mask(
        self, mask: Any, bcount: Any = None, *, tol: float, avgpool: bool = False, name: str | None = None, **sizes: Any
    ) -> Any:
        """The active blocks: ``active_block_indices`` int16 [B, 3] and ``bin_counts`` int32 [1].

        Args:
            mask: [N, H, W] or [N, H, W, 1] float32 or float64.
            bcount: number of blocks (rows, columns); also as ``dynamic_bcount``.
            tol: a block is active where the mask is above it.
            avgpool: compare means over whole windows.
            name: of the operation.
            **sizes: of the windows.

        Raises:
            TypeError: an argument is missing, unknown or given twice.
            tf.errors.InvalidArgumentError: a shape or a number is not allowed.
        """
        count = _one_of("bcount", bcount, sizes)
        return self._module.reduce_mask(mask, count, *_geometry(sizes), tol=tol, avgpool=avgpool, name=name)

    def sparse_gather(
        self,
        x: Any,
        bin_counts: Any,
        active_block_indices: Any,
        *,
        transpose: bool = False,
        name: str | None = None,
        **sizes: Any,
    ) -> tf.Tensor:
        """The windows of x [N, H, W, C]: [B, h, w, C], or with ``transpose`` [B, C, h, w]; errors as above."""
        operator = self._module.sparse_gather
        return operator(x, bin_counts, active_block_indices, *_geometry(sizes), transpose=transpose, name=name)

    def sparse_scatter(
        self,
        x: Any,
        bin_counts: Any,
        active_block_indices: Any,
        ybase: Any,
        *,
        add: bool,
        atomic: bool = False,
        transpose: bool = False,
        name: str | None = None,
        **sizes: Any,
    ) -> tf.Tensor:
        """``ybase`` [N, H, W, C] with the blocks ``x`` written or added; errors as above."""
        flags = {"add": add, "atomic": atomic, "transpose": transpose, "name": name}
        return self._module.sparse_scatter(x, bin_counts, active_block_indices, ybase, *_geometry(sizes), **flags)

    def sparse_scatter_var(
        self,
        x: Any,
        bin_counts: Any,
        active_block_indices: Any,
        ybase: Any,
        *,
        add: bool,
        atomic: bool = False,
        transpose: bool = False,
        name: str | None = None,
        **sizes: Any,
    ) -> tf.Tensor:
        """As :meth:`sparse_scatter`, written into the variable ``ybase``; returns its value afterwards.

        Takes a ``tf.Variable`` or a variable of TensorFlow 1, which is a reference.
        """
        flags = {"add": add, "atomic": atomic, "transpose": transpose, "name": name}
        variable = ybase.value if type(ybase).__module__.startswith("keras") else ybase
        inputs = (x, bin_counts, active_block_indices)
        if hasattr(variable, "handle"):
            return self._module.sparse_scatter_var(*inputs, variable.handle, *_geometry(sizes), **flags)
        reference = variable._ref() if hasattr(variable, "_ref") else variable
        return self._module.sparse_scatter_ref_var(*inputs, reference, *_geometry(sizes), **flags)


def _geometry(sizes: dict[str, Any]) -> list[Any]:
    """Size, stride and offset under either of their names; raises TypeError for a name that there is not."""
    unknown = sorted(set(sizes) - {*_GEOMETRY, *(f"dynamic_{name}" for name in _GEOMETRY)})
    if unknown:
        raise TypeError(f"{unknown[0]} is no argument: allowed: {', '.join(_GEOMETRY)}, each also as dynamic_...")
    sizes = {"boffset": [0, 0], **sizes} if "dynamic_boffset" not in sizes else sizes
    return [_one_of(name, sizes.pop(name, None), sizes) for name in _GEOMETRY]


def _one_of(name: str, value: Any, sizes: dict[str, Any]) -> tf.Tensor:
    """``value``, or what is given as ``dynamic_name``, as int32 in host memory."""
    dynamic = sizes.pop(f"dynamic_{name}", None)
    if (value is None) == (dynamic is None):
        raise TypeError(f"{name} is {'missing' if value is None else 'given twice'}: give {name} or dynamic_{name}")
    with tf.device("/CPU:0"):
        return tf.convert_to_tensor(dynamic if value is None else value, tf.int32)


@cache
def _register(module: Any) -> None:
    """The gradients of SBNet's operators."""

    def of_gather(op: Any, dy: tf.Tensor) -> list[tf.Tensor | None]:
        x, counts, index, *sizes = op.inputs
        transpose, owned = op.get_attr("transpose"), op.get_attr("owned")
        flags = {"add": not owned, "atomic": not owned, "transpose": transpose}
        return [module.sparse_scatter(dy, counts, index, tf.zeros_like(x), *sizes, **flags), *[None] * 5]

    def of_scatter(op: Any, dy: tf.Tensor) -> list[tf.Tensor | None]:
        blocks, counts, index, base, *sizes = op.inputs
        add, transpose = op.get_attr("add"), op.get_attr("transpose")
        # Of blocks that were written, only the later row has a gradient where two overlap.
        dblocks = module.sparse_gather(dy, counts, index, *sizes, transpose=transpose, owned=not add)
        # The stack may have rows behind those that count.
        behind = tf.shape(blocks)[0] - tf.shape(dblocks)[0]
        dblocks = tf.pad(dblocks, [[0, behind], [0, 0], [0, 0], [0, 0]])
        if base.dtype not in (tf.float32, tf.float64):
            return [dblocks, *[None] * 6]
        dbase = dy
        if not add:
            nothing = tf.zeros_like(blocks)
            dbase = module.sparse_scatter(nothing, counts, index, dy, *sizes, add=False, transpose=transpose)
        return [dblocks, None, None, dbase, None, None, None]

    tf.RegisterGradient("SparseGather")(of_gather)
    for name in ("SparseScatter", "SparseScatterVar", "SparseScatterRefVar"):
        tf.RegisterGradient(name)(of_scatter)
    tf.no_gradient("ReduceMask")
