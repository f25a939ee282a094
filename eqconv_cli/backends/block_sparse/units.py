"""The parameters of the residual unit, for the arrays of every framework."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from eqconv_cli.backends.block_sparse.arguments import Shape, check_vector, differ, text

#: TensorFlow's and SBNet's default.
EPSILON = 1e-3
#: Of running statistics, SBNet's.
DECAY = 0.999
BORDERS = ("dense", "original")
STATISTICS = ("inference", "stack", "active")

#: Of a unit on blocks and at pixels, beside "fused" and "auto"; the first is "auto"'s without the kernels.
BLOCK_COMPOSITIONS = ("blocks", "pixels", "dense")
PIXEL_COMPOSITIONS = ("pixels", "dense")


class BatchNorm(NamedTuple):
    """scale (x - mean) / sqrt(variance + epsilon) + offset for each channel; four arrays [C]."""

    scale: Any
    offset: Any
    mean: Any
    variance: Any


class ResidualWeights(NamedTuple):
    """The pre-activation bottleneck: shortcut + conv1x1(relu(bn3(conv3x3(relu(bn2(conv1x1(relu(bn1(x)))))))).

    C channels in, Cout out, M in between; no biases.
    """

    #: [C, M].
    w1: Any
    #: [3, 3, M, M].
    w2: Any
    #: [M, Cout].
    w3: Any
    #: Of C channels; None leaves out the first normalisation and the first ReLU.
    bn1: BatchNorm | None
    #: Of M channels.
    bn2: BatchNorm
    bn3: BatchNorm
    #: [C, Cout], the strided 1x1 convolution of the shortcut; None: the shortcut is x.
    w_project: Any = None


def only_blocks(bn: str, strides: Sequence[int], weights: ResidualWeights) -> str:
    """Why such a unit is computed by version="blocks" alone; empty when every version computes it."""
    if bn != "inference":
        return f"bn={bn!r}"
    if tuple(strides) != (1, 1):
        return f"strides={tuple(strides)}"
    return "" if weights.w_project is None else "w_project is given"


def check_route(version: Any, why: str, border: str) -> None:
    """Raises ValueError unless the version computes the unit; ``why``: what :func:`only_blocks` says."""
    name = version if isinstance(version, str) else "fused"
    if why and name not in ("blocks", "auto"):
        raise ValueError(f"version={name!r} needs bn='inference', strides (1, 1) and no w_project: {why}")
    if name == "dense" and border != "dense":
        raise ValueError(f"version='dense' has border='dense', not border={border!r}")


def check_decay(decay: float) -> None:
    """Raises ValueError unless running statistics move by a share of 0 to 1."""
    if not 0 <= decay <= 1:
        raise ValueError(f"decay={decay!r} is not allowed: a number from 0 to 1 is needed")


def check_projection(project: bool | None, channels: int, out: int, strides: Sequence[int]) -> bool:
    """Whether a layer's shortcut has weights; None: where other channels or strides need them. Raises ValueError."""
    if project is False and out != channels:
        raise ValueError(f"project=False with {channels} channels in and {out} out: both must be equal")
    return (out != channels or tuple(strides) != (1, 1)) if project is None else project


def check_weights(weights: ResidualWeights, x: Shape) -> None:
    """Raises ValueError unless the shapes fit each other and the image [N, H, W, C]."""
    channels, bottleneck = x[3], weights.w1.shape[-1]
    filters = weights.w3.shape[-1]
    for name, wanted in (
        ("w1", (channels, bottleneck)),
        ("w2", (3, 3, bottleneck, bottleneck)),
        ("w3", (bottleneck, filters)),
        ("w_project", (channels, filters)),
    ):
        array = getattr(weights, name)
        if array is not None and (
            len(array.shape) != len(wanted) or any(differ(a, b) for a, b in zip(array.shape, wanted, strict=True))
        ):
            raise ValueError(f"{name} has shape {text(array.shape)}: expected {text(wanted)}")
    for name, extent in (("bn1", channels), ("bn2", bottleneck), ("bn3", bottleneck)):
        for part, array in zip(BatchNorm._fields, getattr(weights, name) or (), strict=False):
            check_vector(f"{name}.{part}", array.shape, extent)
    if weights.w_project is None and differ(filters, channels):
        raise ValueError(
            f"w3 has {filters} outputs but x has {channels} channels: without w_project both must be equal"
        )
