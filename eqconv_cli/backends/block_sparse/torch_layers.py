"""Sparse convolutions as PyTorch layers.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018 (blocks, residual unit); Graham, van der Maaten, arXiv 1706.01307
(submanifold); uber-research/sbnet ``benchmark/sparse_res_block_tests.py`` and facebookresearch/SparseConvNet for the
initial values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eqconv_cli.backends.block_sparse import arguments, torch_convolution
from eqconv_cli.backends.block_sparse.geometry import (
    COVERAGES,
    BlockParams,
    block_params,
    block_params_chain,
    both,
    check_padding,
    pair,
)
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.options import Fused
from eqconv_cli.backends.block_sparse.site_patterns import per_axis
from eqconv_cli.backends.block_sparse.torch_ops import reduce_mask
from eqconv_cli.backends.block_sparse.torch_residual import (
    KSIZES,
    masked_residual_unit,
    residual_unit,
    sparse_residual_unit,
)
from eqconv_cli.backends.block_sparse.torch_sites import Sites, sparse_conv, sparse_inverse_conv, subm_conv
from eqconv_cli.backends.block_sparse.units import (
    BORDERS,
    DECAY,
    EPSILON,
    STATISTICS,
    BatchNorm,
    ResidualWeights,
    check_decay,
    check_projection,
)


def check_positive(name: str, value: int) -> None:
    """Raise ValueError for a number that is below 1."""
    if value < 1:
        raise ValueError(f"{name}={value} is not allowed: at least 1 is needed")


def active_blocks(x: Tensor, where: Tensor | BlockIndex, params: BlockParams, tol: float, avgpool: bool) -> BlockIndex:
    """The blocks that a mask makes active, or a list as it is."""
    if isinstance(where, BlockIndex):
        return where
    arguments.check_mask(where.shape, x.shape)
    geometry: dict[str, Any] = {"bsize": params.bsize, "bstride": params.bstrides, "boffset": params.boffset}
    return reduce_mask(where, params.bcount, **geometry, tol=tol, avgpool=avgpool)


def truncated_normal(w: Tensor, fan: int) -> None:
    """Fill with a normal distribution of deviation sqrt(2 / fan), values beyond two deviations drawn again."""
    deviation = (2 / fan) ** 0.5
    nn.init.trunc_normal_(w, std=deviation, a=-2 * deviation, b=2 * deviation)


class SparseBlockConv2d(nn.Module):
    """A convolution where a mask, a list of blocks or a list of pixels says.

    The parameters are those of ``torch.nn.Conv2d``: dictionaries load from one into the other.

    Args:
        in_channels, out_channels: C and K.
        kernel_size: one number or (height, width).
        bsize: size of the blocks' windows, see :func:`block_params`; needed for masks and lists of blocks.
        stride: one number or (height, width).
        padding: "SAME" or "VALID", as TensorFlow defines them; with stride 1 the first is PyTorch's "same".
        bias: whether there is one.
        tol, avgpool: what makes a block active, see :func:`reduce_mask`.
        coverage: see :func:`block_params`.
        base: "zeros" or "input", what the result is elsewhere.
        activation: None or "relu".
        version: see :func:`sparse_conv2d` and :func:`masked_conv2d`.
        device, dtype: of the parameters.

    Attributes:
        weight [K, C, kh, kw]: initially truncated normal of deviation sqrt(2 / (kh kw K)). bias [K]: initially 0.

    Raises:
        ValueError: a number or an option is not allowed.

    Example:
        >>> import torch
        >>> layer = SparseBlockConv2d(3, 5, 3, bsize=(6, 6))
        >>> layer(torch.ones(1, 8, 8, 3), torch.ones(1, 8, 8)).shape
        torch.Size([1, 8, 8, 5])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        bsize: Sequence[int] | None = None,
        stride: int | Sequence[int] = 1,
        padding: str = "SAME",
        bias: bool = True,
        tol: float = 0.0,
        avgpool: bool = False,
        coverage: str = "full",
        base: str = "zeros",
        activation: str | None = None,
        version: str | Fused = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive("in_channels", in_channels)
        check_positive("out_channels", out_channels)
        check_padding(padding)
        arguments.check_tolerance(tol)
        arguments.check_choice("base", base, ("zeros", "input"))
        arguments.check_choice("activation", activation, arguments.ACTIVATIONS)
        arguments.check_choice("coverage", coverage, COVERAGES)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = both("kernel_size", kernel_size), both("stride", stride)
        self.bsize = None if bsize is None else pair("bsize", bsize, 1)
        self.padding, self.tol, self.avgpool, self.coverage = padding, tol, avgpool, coverage
        self.base, self.activation, self.version = base, activation, version
        if self.bsize is not None:
            # Impossible sizes are refused here, not at the first image.
            block_params(self.bsize, self.bsize, self.kernel_size, self.stride, "VALID")
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels, *self.kernel_size, device=device, dtype=dtype)
        )
        made = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial values as above."""
        truncated_normal(self.weight, self.kernel_size[0] * self.kernel_size[1] * self.out_channels)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, where: Tensor | BlockIndex | PixelIndex, out: Tensor | None = None) -> Tensor:
        """The convolution.

        Args:
            x: [N, H, W, C].
            where: a mask [N, H, W] or [N, H, W, 1], which chooses blocks; a list of blocks; or one of output pixels.
            out: see :func:`sparse_conv2d`.

        Returns:
            [N, Hout, Wout, K].

        Raises:
            TypeError, ValueError, IndexError, Unavailable: see :func:`sparse_conv2d`; also a mask without ``bsize``.
        """
        options: dict[str, Any] = {"bias": self.bias, "activation": self.activation, "w_layout": "OIHW"}
        options |= {"strides": self.stride, "base": self.base, "out": out, "version": self.version}
        if isinstance(where, PixelIndex):
            return torch_convolution.masked_conv2d(x, self.weight, where, padding=self.padding, **options)
        if self.bsize is None:
            raise ValueError("bsize=None: with a mask or a list of blocks their size is needed")
        arguments.check_image("x", x.shape)
        params = block_params(x.shape, self.bsize, self.kernel_size, self.stride, self.padding, self.coverage)
        index = active_blocks(x, where, params, self.tol, self.avgpool)
        return torch_convolution.sparse_conv2d(x, self.weight, index, params, **options)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, bsize={self.bsize}, "
            f"stride={self.stride}, padding={self.padding!r}, bias={self.bias is not None}, base={self.base!r}"
        )


class Normalisation(nn.Module):
    """The parameters and running statistics of one batch normalisation.

    Attributes:
        scale, offset: parameters [C], initially 1 and 0.
        mean, variance: buffers [C], initially 0 and 1.
    """

    scale: nn.Parameter
    offset: nn.Parameter
    mean: Tensor
    variance: Tensor

    def __init__(
        self, channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.scale = nn.Parameter(torch.ones(channels, **place))
        self.offset = nn.Parameter(torch.zeros(channels, **place))
        self.register_buffer("mean", torch.zeros(channels, **place))
        self.register_buffer("variance", torch.ones(channels, **place))

    def values(self) -> BatchNorm:
        """As the functions take them."""
        return BatchNorm(self.scale, self.offset, self.mean, self.variance)

    def follow(self, mean: Tensor, variance: Tensor, decay: float) -> None:
        """Move the running statistics towards new ones."""
        self.mean.lerp_(mean, 1 - decay)
        self.variance.lerp_(variance, 1 - decay)

    def extra_repr(self) -> str:
        """The number of channels."""
        return f"{len(self.scale)}"


class SparseResidualUnit(nn.Module):
    """The pre-activation bottleneck on blocks, on a list of pixels, or dense: the same parameters serve all three.

    Trained with the statistics of one mode (``bn``) the parameters do not fit another.

    Args:
        channels: C.
        bottleneck: M; None takes C / 4.
        out_channels: with another number than C, or with ``project``, the shortcut is a 1x1 convolution.
        bsize: size of the blocks' windows; needed for masks and lists of blocks.
        strides: of the first convolution and the shortcut.
        no_activation: leave out the first normalisation and ReLU.
        project: whether the shortcut has weights; None: if the channels or strides make it necessary.
        border: see :func:`sparse_residual_unit`.
        bn: statistics while training, "inference", "stack" or "active"; while evaluating the running ones.
        tol, avgpool: what makes a block active, see :func:`reduce_mask`.
        epsilon: added to the variances.
        decay: of the running mean and variance: each step keeps this share of them, and takes the rest from the batch.
        version: see :func:`sparse_residual_unit`.
        device, dtype: of the parameters.

    Attributes:
        w1 [C, M], w2 [3, 3, M, M], w3 [M, Cout], w_project [C, Cout]: initially truncated normal of deviation
            sqrt(2 / (kh kw K)). bn1, bn2, bn3: ``scale`` (1), ``offset`` (0), and as buffers ``mean`` (0) and
            ``variance`` (1).

    Raises:
        ValueError: a number or an option is not allowed.
    """

    w_project: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        bottleneck: int | None = None,
        out_channels: int | None = None,
        *,
        bsize: Sequence[int] | None = None,
        strides: int | Sequence[int] = 1,
        no_activation: bool = False,
        project: bool | None = None,
        border: str = "dense",
        bn: str = "inference",
        tol: float = 0.0,
        avgpool: bool = False,
        epsilon: float = EPSILON,
        decay: float = DECAY,
        version: str | Fused = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        inside = max(1, channels // 4) if bottleneck is None else bottleneck
        out = channels if out_channels is None else out_channels
        for name, value in (("channels", channels), ("bottleneck", inside), ("out_channels", out)):
            check_positive(name, value)
        arguments.check_choice("border", border, BORDERS)
        arguments.check_choice("bn", bn, STATISTICS)
        arguments.check_tolerance(tol)
        check_decay(decay)
        self.strides = both("strides", strides)
        projected = check_projection(project, channels, out, self.strides)
        self.channels, self.bottleneck, self.out_channels = channels, inside, out
        self.bsize = None if bsize is None else pair("bsize", bsize, 1)
        if self.bsize is not None:
            block_params_chain(self.bsize, self.bsize, KSIZES, self.strides, "VALID")
        self.border, self.bn, self.tol, self.avgpool = border, bn, tol, avgpool
        self.epsilon, self.decay, self.version = epsilon, decay, version
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.w1 = nn.Parameter(torch.empty(channels, inside, **place))
        self.w2 = nn.Parameter(torch.empty(3, 3, inside, inside, **place))
        self.w3 = nn.Parameter(torch.empty(inside, out, **place))
        self.register_parameter("w_project", nn.Parameter(torch.empty(channels, out, **place)) if projected else None)
        self.bn1 = None if no_activation else Normalisation(channels, **place)
        self.bn2, self.bn3 = Normalisation(inside, **place), Normalisation(inside, **place)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initial values of the matrices as above."""
        for w in (self.w1, self.w2, self.w3, self.w_project):
            if w is not None:
                truncated_normal(w, w.shape[:-2].numel() * w.shape[-1])

    def weights(self) -> ResidualWeights:
        """As the functions take them."""
        bn1 = None if self.bn1 is None else self.bn1.values()
        return ResidualWeights(self.w1, self.w2, self.w3, bn1, self.bn2.values(), self.bn3.values(), self.w_project)

    def forward(self, x: Tensor, where: Tensor | BlockIndex | PixelIndex | None = None) -> Tensor:
        """The unit.

        Args:
            x: [N, H, W, C].
            where: a mask [N, H, W] or [N, H, W, 1], which chooses blocks; a list of blocks; a list of pixels, which
                takes the running statistics; or None for the whole image, with the running statistics.

        Returns:
            [N, ceil(H / stride), ceil(W / stride), Cout].

        Raises:
            TypeError, ValueError, IndexError, Unavailable: see :func:`sparse_residual_unit`; also a mask without
                ``bsize``, and a list of pixels with strides.
        """
        weights = self.weights()
        if where is None:
            return residual_unit(x, weights, strides=self.strides, epsilon=self.epsilon)
        if isinstance(where, PixelIndex):
            if self.strides != (1, 1):
                raise ValueError(f"strides={self.strides}: at a list of pixels only stride 1 is possible")
            version = "auto" if self.version == "blocks" else self.version
            options: dict[str, Any] = {"border": self.border, "epsilon": self.epsilon, "version": version}
            return masked_residual_unit(x, where, weights, **options)
        if self.bsize is None:
            raise ValueError("bsize=None: with a mask or a list of blocks their size is needed")
        arguments.check_image("x", x.shape)
        params = block_params_chain(x.shape, self.bsize, KSIZES, self.strides)
        index = active_blocks(x, where, params, self.tol, self.avgpool)
        computed = self.training and self.bn != "inference"
        statistics: list[tuple[Tensor, Tensor]] = []
        options = {"border": self.border, "bn": self.bn if computed else "inference", "strides": self.strides}
        options |= {"epsilon": self.epsilon, "statistics": statistics, "version": self.version}
        y = sparse_residual_unit(x, index, params, weights, **options)
        norms = [norm for norm in (self.bn1, self.bn2, self.bn3) if norm is not None]
        for norm, found in zip(norms, statistics, strict=False):
            norm.follow(*found, self.decay)
        return y

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"{self.channels}, bottleneck={self.bottleneck}, out_channels={self.out_channels}, bsize={self.bsize}, "
            f"strides={self.strides}, border={self.border!r}, bn={self.bn!r}"
        )


class _SiteLayer(nn.Module):
    """A kernel [k..., C / groups, K] and a bias [K] with SparseConvNet's initial values."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        groups: int,
        bias: bool,
        version: str | Fused,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            check_positive(name, value)
        if not 1 <= axes <= 4:
            raise ValueError(f"axes={axes}: sites have 1 to 4 spatial axes")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups} divides not both in_channels={in_channels} and {out_channels=}")
        self.axes, self.in_channels, self.out_channels, self.groups = axes, in_channels, out_channels, groups
        self.kernel_size = per_axis("kernel_size", axes, kernel_size, 1)
        self.version = version
        shape = (*self.kernel_size, in_channels // groups, out_channels)
        self.weight = nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))
        made = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal of deviation sqrt(2 groups / (C taps)); the bias 0."""
        volume = self.weight.shape[: self.axes].numel()
        nn.init.normal_(self.weight, std=(2 * self.groups / (self.in_channels * volume)) ** 0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"{self.axes}, {self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"bias={self.bias is not None}"
        )


class SubmanifoldConv(_SiteLayer):
    """Submanifold convolution: sites in, the same sites out.

    Args:
        axes: D.
        in_channels, out_channels: C and K.
        kernel_size: one number or D.
        dilation: one number or D.
        groups: see :func:`subm_conv`.
        bias: whether there is one.
        version: see :func:`subm_conv`.
        device, dtype: of the parameters.

    Attributes:
        weight [k..., C / groups, K]: initially normal of deviation sqrt(2 groups / (C taps)). bias [K]: initially 0.

    Raises:
        ValueError: a number is not allowed.
    """

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        version: str | Fused = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(axes, in_channels, out_channels, kernel_size, groups, bias, version, device, dtype)
        self.dilation = per_axis("dilation", axes, dilation, 1)

    def forward(self, sites: Sites) -> Sites:
        """The convolution; errors as for :func:`subm_conv`."""
        options: dict[str, Any] = {"dilation": self.dilation, "groups": self.groups, "version": self.version}
        return subm_conv(sites, self.weight, bias=self.bias, **options)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{super().extra_repr()}, dilation={self.dilation}, groups={self.groups}"


class SparseConv(_SiteLayer):
    """Strided sparse convolution: sites in, all sites that they reach out.

    Args:
        axes, in_channels, out_channels, kernel_size, bias, version, device, dtype: as for :class:`SubmanifoldConv`.
        stride, padding, dilation: one number or D.

    Attributes, Raises: as there.
    """

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        version: str | Fused = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(axes, in_channels, out_channels, kernel_size, 1, bias, version, device, dtype)
        self.stride = per_axis("stride", axes, stride, 1)
        self.padding = per_axis("padding", axes, padding, 0)
        self.dilation = per_axis("dilation", axes, dilation, 1)

    def forward(self, sites: Sites) -> Sites:
        """The convolution; errors as for :func:`sparse_conv`."""
        options: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return sparse_conv(sites, self.weight, bias=self.bias, **options, version=self.version)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        geometry = f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}"
        return f"{super().extra_repr()}, {geometry}"


class SparseInverseConv(_SiteLayer):
    """A strided convolution's pairs the other way round: back to the sites that it was given.

    Args:
        axes, in_channels, out_channels, bias, version, device, dtype: as for :class:`SubmanifoldConv`.
        kernel_size: that of the strided convolution.

    Attributes, Raises: as there.
    """

    def __init__(
        self,
        axes: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        bias: bool = True,
        version: str | Fused = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(axes, in_channels, out_channels, kernel_size, 1, bias, version, device, dtype)

    def forward(self, sites: Sites, paired: Sites) -> Sites:
        """The convolution from the sites that ``SparseConv`` made of ``paired``; errors as for the function."""
        return sparse_inverse_conv(sites, self.weight, paired, bias=self.bias, version=self.version)
