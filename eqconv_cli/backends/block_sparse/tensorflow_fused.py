"""The compiled kernels of this family as TensorFlow operators: loading, gradients, and the calls themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from eqconv_cli.backends.block_sparse import tensorflow_residual_backward
from eqconv_cli.backends.block_sparse.arguments import Window
from eqconv_cli.backends.block_sparse.options import Flag, Fused
from eqconv_cli.backends.block_sparse.tensorflow_inputs import Frame, Listed, on_host
from eqconv_cli.backends.block_sparse.tensorflow_neighbours import replaced
from eqconv_cli.frameworks.tensorflow_tensors import Extent
from eqconv_cli.kernels.tensorflow_doors import gradient_of, library, operators, place_of

SECOND_ORDER = "version='fused' has first derivatives only: take another version for derivatives of gradients"

for _name in (
    "MaskBlocks",
    "MaskPixels",
    "BlockPixels",
    "BlockScatterVar",
    "SiteForwardVar",
    "SiteOutputs",
    "SiteTable",
):
    tf.no_gradient(f"Eqconv{_name}")
gradient_of("EqconvResidualForward")(tensorflow_residual_backward.gradient)

#: Bits of ``wanted`` of site_backward.
_DX, _DW, _DB = 1, 2, 4


def _call(operation: str, settings: Fused, like: tf.Tensor, *inputs: Any, flags: int = 0, **attributes: Any) -> Any:
    operator = getattr(operators(place_of(settings, like.device)), f"eqconv_{operation}")
    return operator(
        *inputs,
        flags=flags + settings.processor_flags,
        threads=settings.threads,
        core=settings.core or "",
        **attributes,
    )


def _of_window(at: Window) -> tf.Tensor:
    return on_host([*at.size, *at.stride, *at.offset])


# Lists.


def mask_blocks(
    mask: tf.Tensor, grid: Sequence[Extent], at: Window, tol: float, average: bool, first: bool, settings: Fused
) -> tuple[tf.Tensor, tf.Tensor]:
    """The active windows, int32 [B, 3], and their count [1]."""
    flags = Flag.AVERAGE * average + Flag.FIRST * first
    made = _call("mask_blocks", settings, mask, mask, on_host(grid), _of_window(at), tolerance=tol, flags=flags)
    return made.index, made.count


def mask_pixels(
    mask: tf.Tensor, grid: Sequence[Extent], at: Window, tol: float, settings: Fused
) -> tuple[tf.Tensor, tf.Tensor]:
    """The flat positions of the active windows, int32 [P], and their count [1]."""
    made = _call("mask_pixels", settings, mask, mask, on_host(grid), _of_window(at), tolerance=tol)
    return made.pixels, made.count


def block_pixels(blocks: Listed, grid: Sequence[Extent], at: Window, settings: Fused) -> tuple[tf.Tensor, tf.Tensor]:
    """The flat positions that windows cover, int32 [P], and their count [1]."""
    made = _call("block_pixels", settings, blocks.entries, *blocks[:2], on_host(grid), _of_window(at))
    return made.pixels, made.pixel_count


# Blocks.


def block_gather(x: tf.Tensor, blocks: Listed, at: Window, transpose: bool, settings: Fused) -> tf.Tensor:
    """The windows of x; differentiable any number of times."""
    flags = Flag.TRANSPOSE * transpose
    return _call("block_gather", settings, x, x, *blocks[:2], _of_window(at), flags=flags)


def block_scatter(
    stack: tf.Tensor, blocks: Listed, base: tf.Tensor, at: Window, transpose: bool, add: bool, settings: Fused
) -> tf.Tensor:
    """``base`` with the blocks put in or added; differentiable any number of times."""
    flags = Flag.TRANSPOSE * transpose + Flag.ADD * add
    size = _size_of(base)
    return _call("block_scatter", settings, base, stack, *blocks[:2], base, size, _of_window(at), flags=flags)


def block_scatter_var(
    stack: tf.Tensor, blocks: Listed, variable: Any, at: Window, transpose: bool, add: bool, settings: Fused
) -> None:
    """The blocks put into a variable, or added there."""
    flags = Flag.TRANSPOSE * transpose + Flag.ADD * add
    handle = variable.handle
    _call("block_scatter_var", settings, variable, stack, *blocks[:2], handle, _of_window(at), flags=flags)


def _size_of(image: tf.Tensor) -> tf.Tensor:
    if image.shape.is_fully_defined():
        return on_host(image.shape.as_list())
    with tf.device("/CPU:0"):
        return tf.shape(image)


def _attributes(op: Any) -> dict[str, Any]:
    core = op.get_attr("core")
    return {"threads": op.get_attr("threads"), "core": core.decode() if isinstance(core, bytes) else core}


@gradient_of("EqconvBlockGather")
def _gather_gradient(op: Any, dy: tf.Tensor) -> list[tf.Tensor | None]:
    x, index, count, window = op.inputs
    flags = op.get_attr("flags")
    # Overlapping windows add up, but for those that were 0 where a later row covers, too.
    flags = flags - Flag.OWNED if flags & Flag.OWNED else flags + Flag.ADD
    dx = library().eqconv_block_scatter(
        dy, index, count, dy[:0], _size_of(x), window, zeros=True, flags=flags, **_attributes(op)
    )
    return [dx, None, None, None]


@gradient_of("EqconvBlockScatter")
def _scatter_gradient(op: Any, dy: tf.Tensor) -> list[tf.Tensor | None]:
    stack, index, count, _, size, window = op.inputs
    flags, module = op.get_attr("flags"), library()
    adds, blank, zeros = flags & Flag.ADD, op.get_attr("blank"), op.get_attr("zeros")
    flags -= adds
    dstack = dbase = None
    if not blank:
        # Of an overwriting scatter only the row that a pixel belongs to has a gradient there.
        own = flags if adds else flags + Flag.OWNED
        dstack = module.eqconv_block_gather(dy, index, count, window, flags=own, **_attributes(op))
    if not zeros:
        dbase = dy
        if not adds:
            dbase = module.eqconv_block_scatter(
                stack[:0], index, count, dy, size, window, blank=True, flags=flags, **_attributes(op)
            )
    return [dstack, None, None, dbase, None, None]


# Convolutions at sites.


def image_convolution(
    x: tf.Tensor,
    w: tf.Tensor,
    bias: tf.Tensor | None,
    base: tf.Tensor | None,
    pixels: Listed,
    at: Frame,
    relu: bool,
    settings: Fused,
) -> tf.Tensor:
    """The convolution of x [N, H, W, C] with w [kh, kw, C, K] at the listed output pixels; elsewhere base, or 0."""
    return _sites(x, w, bias, base, pixels.entries, pixels.count, None, _of_frame(at), relu, settings)


def image_convolution_var(
    x: tf.Tensor,
    w: tf.Tensor,
    bias: tf.Tensor | None,
    variable: Any,
    pixels: Listed,
    at: Frame,
    relu: bool,
    settings: Fused,
) -> None:
    """The convolution written into a variable [N, Hout, Wout, K] at the listed output pixels."""
    given = tf.zeros([0], x.dtype) if bias is None else bias
    inputs = (x, w, given, *pixels[:2], _of_frame(at), variable.handle)
    _call("site_forward_var", settings, variable, *inputs, biased=bias is not None, flags=Flag.RELU * relu)


def _of_frame(at: Frame) -> tf.Tensor:
    return on_host([*at.grid[1:], *at.strides, *at.front, 1, 1])


def table_convolution(
    x: tf.Tensor,
    w: tf.Tensor,
    bias: tf.Tensor | None,
    table: tf.Tensor,
    inverse: tf.Tensor | None,
    settings: Fused,
) -> tf.Tensor:
    """The convolution of rows x [M_in, C] with w [..., C, K] by a table of neighbours [M_out, taps].

    ``inverse`` [M_in, taps] tells who reads a row, for the gradient of x; without it the kernel makes it then.
    """
    nothing = tf.zeros([0], tf.int32)
    return _sites(x, w, bias, None, nothing if inverse is None else inverse, nothing, table, nothing, False, settings)


def _sites(
    x: tf.Tensor,
    w: tf.Tensor,
    bias: tf.Tensor | None,
    base: tf.Tensor | None,
    site: tf.Tensor,
    count: tf.Tensor,
    table: tf.Tensor | None,
    numbers: tf.Tensor,
    relu: bool,
    settings: Fused,
) -> tf.Tensor:
    nothing = tf.zeros([0], x.dtype)
    return _call(
        "site_forward",
        settings,
        x,
        x,
        w,
        nothing if bias is None else bias,
        nothing if base is None else base,
        site,
        count,
        tf.zeros([0, 0], tf.int32) if table is None else table,
        numbers,
        tabled=table is not None,
        biased=bias is not None,
        based=base is not None,
        flags=Flag.RELU * relu,
    )


@gradient_of("EqconvSiteForward")
def _site_gradient(op: Any, dy: tf.Tensor) -> list[tf.Tensor | None]:
    x, w, _, _, site, count, table, numbers = op.inputs
    tabled, biased, based = (op.get_attr(name) for name in ("tabled", "biased", "based"))
    # An eager tape knows which inputs nobody differentiates; a traced function does not.
    skipped = (getattr(op, "skip_input_indices", None) or ()) if tf.executing_eagerly() else ()
    needed = [0 not in skipped, 1 not in skipped, biased and 2 not in skipped, based and 3 not in skipped]
    # The table form has no list of sites: the tensor in its place is the inverse table.
    inverted = tabled and site.shape.rank == 2
    dx, dw, db = library().eqconv_site_backward(
        dy,
        op.outputs[0],
        x,
        w,
        site,
        count,
        table,
        site if inverted else tf.zeros([0, 0], tf.int32),
        numbers,
        tabled=tabled,
        inverted=inverted,
        wanted=_DX * needed[0] + _DW * needed[1] + _DB * needed[2],
        flags=op.get_attr("flags"),
        **_attributes(op),
    )
    dbase = _off_the_list(dy, site, count) if needed[3] else None
    found = (dx if needed[0] else None, dw if needed[1] else None, db if needed[2] else None, dbase)
    return [*found, None, None, None, None]


def _off_the_list(dy: tf.Tensor, site: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """``dy`` with 0 at the listed pixels; waits for the count."""
    listed = site[: count[0]]
    return replaced(dy, listed, tf.zeros([tf.size(listed), tf.shape(dy)[-1]], dy.dtype))


@gradient_of("EqconvSiteBackward")
def _refuse_second_order(op: Any, *cotangents: tf.Tensor) -> list[tf.Tensor | None]:
    raise NotImplementedError(SECOND_ORDER)


# Neighbours of sites.


def site_outputs(coords: tf.Tensor, batch: Extent, geometry: Sequence[Extent], settings: Fused) -> tf.Tensor:
    """The output sites of a strided convolution, sorted, int32 [M_out, 1 + D].

    Args:
        coords: int32 [M, 1 + D].
        batch: number of samples.
        geometry: extents, extents of the output, kernel, strides, padding and dilation, each for every axis.
        settings: where to compute.
    """
    made = _call("site_outputs", settings, coords, coords, tf.zeros([0], tf.int32), on_host([batch, *geometry]))
    return made.out_coords[: made.out_count[0]]


def site_table(
    coords: tf.Tensor, out_coords: tf.Tensor, batch: Extent, geometry: Sequence[Extent], settings: Fused
) -> tf.Tensor:
    """The input row at each tap of each output site, or -1: int32 [M_out, taps]; arguments as above."""
    everything = tf.zeros([0], tf.int32)
    return _call(
        "site_table", settings, coords, coords, everything, out_coords, everything, on_host([batch, *geometry])
    )


# The bottleneck.


def residual(
    x: tf.Tensor,
    base: tf.Tensor | None,
    pixels: Listed,
    unit: Sequence[tf.Tensor | None],
    original: bool,
    settings: Fused,
) -> tf.Tensor:
    """The bottleneck at the listed pixels, elsewhere base; its gradient computes again what it needs.

    Without a base the other pixels have no defined value. ``unit``: scale1, shift1 (both None without the first
    activation), w1, scale2, shift2, w2, scale3, shift3, w3.
    """
    nothing = tf.zeros([0], x.dtype)
    given = [nothing if tensor is None else tensor for tensor in unit]
    return _call(
        "residual_forward",
        settings,
        x,
        x,
        nothing if base is None else base,
        *pixels[:2],
        *given,
        activated=unit[0] is not None,
        blank=base is None,
        flags=Flag.ORIGINAL * original,
    )
