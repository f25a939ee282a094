"""The gradient of the compiled residual unit: what the forward pass did not keep is computed again, compactly.

An operator of its own, so that a compiler need not follow the lists in it, whose lengths depend on the data.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from eqconv_cli.backends.block_sparse import torch_neighbours
from eqconv_cli.backends.block_sparse.options import Flag

_NAME = "eqconv::residual_backward"
_SCHEMA = (
    "(Tensor dy, Tensor x, Tensor site, Tensor? count, Tensor? scale1, Tensor? shift1, Tensor w1, Tensor scale2, "
    "Tensor shift2, Tensor w2, Tensor scale3, Tensor shift3, Tensor w3, bool[] wanted, int flags) -> (Tensor, Tensor, "
    "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@cache
def define() -> None:
    """Enter the operator into PyTorch's library."""
    operator = torch.library.custom_op(_NAME, _backward, mutates_args=(), schema=_SCHEMA)
    operator.register_fake(_fake)


def _fake(dy: Tensor, x: Tensor, site: Tensor, count: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *unit, wanted, _ = rest
    return tuple(_like(t, x, need) for t, need in zip((x, *unit), wanted, strict=True))


def _like(tensor: Tensor | None, x: Tensor, wanted: bool) -> Tensor:
    if tensor is None or not wanted:
        return x.new_empty(0)
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _backward(
    dy: Tensor,
    x: Tensor,
    site: Tensor,
    count: Tensor | None,
    scale1: Tensor | None,
    shift1: Tensor | None,
    w1: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    w2: Tensor,
    scale3: Tensor,
    shift3: Tensor,
    w3: Tensor,
    wanted: list[bool],
    flags: int,
) -> tuple[Tensor, ...]:
    """The gradients of x, scale1, shift1, w1, ..., w3; those that are not wanted are empty."""
    images, height, width, channels = x.shape
    pixels = (site if count is None else site[: int(count)]).long()
    touched, taps = torch_neighbours.touched(pixels, images, (height, width))

    # Forward. One row more than there are pixels stands for all that is outside of the image.
    original = bool(flags & Flag.ORIGINAL)
    xs = torch.cat([x.reshape(-1, channels)[touched], x.new_zeros(1, channels)])
    a = xs if scale1 is None or shift1 is None else (xs * scale1 + shift1).relu_()
    h1 = a @ w1
    h2 = (h1 * scale2 + shift2).relu_()
    if not original:
        h2[-1] = 0
    patches = h2[taps].flatten(1)
    kernel = w2.reshape(-1, w2.shape[-1])
    c = patches @ kernel
    g = (c * scale3 + shift3).relu_()

    # Backward.
    narrow = len(scale2)
    dys = dy.reshape(-1, channels)[pixels]
    dw3 = g.T @ dys
    dc = (dys @ w3.T) * (g > 0)
    dscale3, dshift3 = (dc * c).sum(0), dc.sum(0)
    dc = dc * scale3
    dw2 = (patches.T @ dc).reshape(w2.shape)
    dh2 = torch.zeros_like(h2)
    for tap, spread in enumerate((dc @ kernel.T).split(narrow, 1)):
        dh2.index_put_((taps[:, tap],), spread, accumulate=True)
    if not original:
        dh2[-1] = 0
    dh2 = dh2 * (h2 > 0)
    dscale2, dshift2 = (dh2 * h1).sum(0), dh2.sum(0)
    dh1 = dh2 * scale2
    dw1 = a.T @ dh1
    da = dh1 @ w1.T
    dscale1 = dshift1 = None
    if scale1 is not None:
        da = da * (a > 0)
        dscale1, dshift1 = (da * xs).sum(0), da.sum(0)
        da = da * scale1
    dx = dy.clone(memory_format=torch.contiguous_format)
    dx.view(-1, channels).index_add_(0, touched, da[:-1])
    found = (dx, dscale1, dshift1, dw1, dscale2, dshift2, dw2, dscale3, dshift3, dw3)
    return tuple(x.new_empty(0) if g is None or not need else g for g, need in zip(found, wanted, strict=True))
