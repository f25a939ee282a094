"""The mesh-segmentation network of the tensorflow/graphics notebook (mesh_segmentation_demo), and its loss."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from eqconv_cli.backends.feature_steered.plan import Pattern
from eqconv_cli.backends.feature_steered.torch import plan_neighborhood
from eqconv_cli.backends.feature_steered.torch_layers import FeatureSteeredConvolution, OperatorOptions, check_positive
from eqconv_cli.backends.feature_steered.torch_sparse import edges_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Channels of the three convolutions, from the first linear layer on.
CHANNELS = (16, 32, 64, 128)
HIDDEN = 256


class MeshSegmentation(nn.Module):
    """Assigns each vertex of a mesh to one of several classes.

    Linear C → 16; three translation-invariant feature-steered convolutions 16 → 32 → 64 → 128 and linear 128 → 256,
    each followed by ReLU; linear 256 → classes. Nothing is pooled.

    Args:
        num_classes: number of classes K.
        num_weight_matrices: M of each convolution.
        in_channels: C, 3 for coordinates (which should be centred on their mean).
        **operator: options of :func:`feature_steered_convolution`.

    Raises:
        ValueError: a number is not positive, or an option is unknown.
    """

    def __init__(
        self,
        num_classes: int = 16,
        num_weight_matrices: int = 8,
        in_channels: int = 3,
        **operator: Unpack[OperatorOptions],
    ) -> None:
        super().__init__()
        check_positive("num_classes", num_classes)
        check_positive("in_channels", in_channels)
        self.embed = nn.Linear(in_channels, CHANNELS[0])
        operator["activation"] = "relu"
        self.convolutions = nn.ModuleList(
            FeatureSteeredConvolution(num_weight_matrices, outputs, in_channels=inputs, **operator)
            for inputs, outputs in pairwise(CHANNELS)
        )
        self.hidden = nn.Linear(CHANNELS[-1], HIDDEN)
        self.classify = nn.Linear(HIDDEN, num_classes)

    def forward(self, data: Tensor, neighbors: Any, sizes: Any = None) -> Tensor:
        """The logits [A1, ..., An, V, K]; rows beyond ``sizes`` are not read and come out as 0.

        Args:
            data: [A1, ..., An, V, C].
            neighbors: as for :func:`feature_steered_convolution`; planned once for the three convolutions, or already.
            sizes: integer [A1, ..., An] or None.

        Raises:
            TypeError, ValueError, IndexError: see :func:`feature_steered_convolution`.
        """
        plan = plan_neighborhood(neighbors, sizes)
        padding = _padding(plan.pattern, data.device)
        if padding is not None:
            # A linear layer's gradient multiplies rows of zeros with these rows, which may hold NaN.
            data = data.masked_fill(padding, 0.0)
        x = self.embed(data)
        for convolution in self.convolutions:
            x = convolution(x, plan)
        logits: Tensor = self.classify(relu(self.hidden(x)))
        return logits if padding is None else logits.masked_fill(padding, 0.0)


def masked_cross_entropy(logits: Tensor, labels: Tensor, sizes: Any = None) -> Tensor:
    """Softmax cross-entropy, averaged over the vertices that ``sizes`` keeps.

    Args:
        logits: [A1, ..., An, V, K] floating-point.
        labels: integer [A1, ..., An, V]; what stands beyond ``sizes`` is not read.
        sizes: integer [A1, ..., An] or None for all vertices.

    Returns:
        A scalar; 0 when no vertex is left.

    Raises:
        ValueError: the shapes do not fit.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels has shape {list(labels.shape)} but logits has {list(logits.shape)}: "
            f"expected labels of shape {list(logits.shape[:-1])}"
        )
    if sizes is not None:
        counts = torch.as_tensor(sizes, device=logits.device)
        if counts.shape != labels.shape[:-1]:
            raise ValueError(
                f"sizes has shape {list(counts.shape)} but logits has batch dimensions {list(labels.shape[:-1])}"
            )
        real = torch.arange(labels.shape[-1], device=logits.device) < counts[..., None]
        logits, labels = logits[real], labels[real]
    total = cross_entropy(logits.flatten(0, -2), labels.flatten().long(), reduction="sum")
    return total / max(1, labels.numel())


def _padding(pattern: Pattern, device: torch.device) -> Tensor | None:
    """Which vertices ``sizes`` leaves out [A1, ..., An, V, 1]; None when it leaves out none."""
    kept = edges_of(pattern, device).kept
    if kept is None:
        return None
    vertices = pattern.dense_shape[:-1]
    padding = torch.ones(vertices, dtype=torch.bool, device=device).flatten()
    return padding.index_fill(0, kept, False).reshape(*vertices, 1)
