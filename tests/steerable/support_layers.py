"""What a steerable layer computes, plainly: loops over fields, float64."""

from __future__ import annotations

import numpy as np

from eqconv_cli.backends.steerable.plan import Plan

PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def dense_filter(plan: Plan, weights: np.ndarray) -> np.ndarray:
    """The sum of weights times sampled elements, [out channels, in channels of a group, k, k]."""
    made = np.zeros((plan.out_type.size, plan.in_type.size, plan.sampling.pixels))
    for pair in plan.pairs:
        at = pair.start
        for out_field in pair.out_fields:
            for in_field in pair.in_fields:
                o, i = plan.out_type.starts[out_field], plan.in_type.starts[in_field]
                so, si, _ = pair.basis.block_shape
                mine = weights[at : at + len(pair.basis)]
                made[o : o + so, i : i + si] = np.tensordot(mine, pair.basis.dense, 1)
                at += len(pair.basis)
    return made.reshape(plan.filter_shape)


def correlation(
    x: np.ndarray,
    filter: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: int = 1,
    padding_mode: str = "zeros",
    groups: int = 1,
) -> np.ndarray:
    """[B, C, H, W] with [O, C / groups, k, k]."""
    rows, columns = padding
    padded = np.pad(x, ((0, 0), (0, 0), (rows, rows), (columns, columns)), PADDING[padding_mode])
    reach = dilation * (filter.shape[-1] - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (reach, reach), (2, 3))
    windows = windows[:, :, :: stride[0], :: stride[1], ::dilation, ::dilation]
    parts = zip(np.split(windows, groups, 1), np.split(filter, groups, 0), strict=True)
    made = np.concatenate([np.einsum("bchwij,ocij->bohw", w, f, optimize=True) for w, f in parts], 1)
    return made if bias is None else made + bias[:, None, None]
