"""Steerable convolution of the plane as a PyTorch layer.

Weiler, Cesa, "General E(2)-Equivariant Steerable CNNs", arXiv 1911.08251; QUVA-Lab/e2cnn
``nn/modules/r2_conv/r2convolution.py``, whose arguments and order of weights this layer has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eqconv_cli.backends.steerable import convolution
from eqconv_cli.backends.steerable.basis import Attributes
from eqconv_cli.backends.steerable.bias import bias_map
from eqconv_cli.backends.steerable.fields import FieldType
from eqconv_cli.backends.steerable.initialisation import he_standard_deviations
from eqconv_cli.backends.steerable.plan import make_plan
from eqconv_cli.backends.steerable.sampling import Cutoff
from eqconv_cli.backends.steerable.torch_expansion import ALGORITHMS, expand, expand_backward

_HALVES = (torch.float16, torch.bfloat16)


class R2Conv(nn.Module):
    """A convolution that commutes with a group of the plane, on plain tensors.

    The weights are coordinates in a basis of all kernels that commute; a forward pass expands them into a filter and
    convolves. In evaluation mode the filter is kept until the weights change: by an optimizer, ``load_state_dict``,
    ``to``, any other change in place, or another tensor in their place. (Changes through ``weights.data`` are seen when
    ``train()`` or ``eval()`` is called.) Gradients reach the weights in both modes. A compiled layer expands in each
    pass; :meth:`export` gives a plain convolution.

    The state dictionary holds ``weights`` and ``bias`` in both modes; the basis is made from the arguments.

    Args:
        in_type, out_type: the fields of input and output, of one space.
        kernel_size: k, one integer.
        padding, stride: one integer or (height, width).
        dilation: pixels from one tap to the next.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        groups: both types must be so many repetitions of one list of fields.
        bias: whether there is one; outputs without a trivial irrep have none.
        sigma, frequencies_cutoff, rings, maximum_offset, basis_filter, scale_cutoff_with_dilation: which kernels there
            are, see :func:`eqconv_cli.backends.steerable.basis.build_basis`.
        recompute: build the basis anew rather than take one that another layer has.
        initialize: draw the weights, see :meth:`reset_parameters`; else they are 0.
        expansion: the algorithm, see :func:`eqconv_cli.backends.steerable.torch_expansion.expand`.
        device, dtype: of the parameters.

    Attributes:
        weights [n]: ordered as :class:`eqconv_cli.backends.steerable.plan.Plan` says.
        bias [trivial irreps of the output], or None: initially 0.
        plan: how the weights become the filter.

    Raises:
        TypeError, ValueError: an argument is not allowed, or no kernel commutes with the group on this grid.

    Example:
        >>> import torch
        >>> from eqconv_cli.torch import R2Conv, Space
        >>> space = Space.of("C8")
        >>> layer = R2Conv(space.trivial_fields(3), space.regular_fields(2), 5, padding=2)
        >>> layer(torch.ones(1, 3, 9, 9)).shape
        torch.Size([1, 16, 9, 9])
    """

    weights: nn.Parameter
    bias: nn.Parameter | None
    _bias_index: Tensor
    _bias_values: Tensor

    def __init__(
        self,
        in_type: FieldType,
        out_type: FieldType,
        kernel_size: int,
        padding: int | Sequence[int] = 0,
        stride: int | Sequence[int] = 1,
        dilation: int = 1,
        padding_mode: str = "zeros",
        groups: int = 1,
        bias: bool = True,
        sigma: float | Sequence[float] | None = None,
        frequencies_cutoff: Cutoff = None,
        rings: Sequence[float] | None = None,
        maximum_offset: int | None = None,
        basis_filter: Callable[[Attributes], bool] | None = None,
        recompute: bool = False,
        initialize: bool = True,
        expansion: str = "auto",
        scale_cutoff_with_dilation: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        convolution.check_padding_mode(padding_mode)
        if expansion not in ("auto", *ALGORITHMS):
            raise ValueError(f"expansion={expansion!r}: allowed: auto, {', '.join(ALGORITHMS)}")
        self.padding, self.stride = convolution.both("padding", padding, 0), convolution.both("stride", stride, 1)
        self.plan = make_plan(
            in_type,
            out_type,
            kernel_size,
            groups=groups,
            dilation=dilation,
            rings=rings,
            sigma=sigma,
            frequencies_cutoff=frequencies_cutoff,
            maximum_offset=maximum_offset,
            basis_filter=basis_filter,
            scale_cutoff_with_dilation=scale_cutoff_with_dilation,
            recompute=recompute,
        )
        self.in_type, self.out_type = in_type, out_type
        self.kernel_size, self.dilation = self.plan.sampling.size, self.plan.sampling.dilation
        self.padding_mode, self.groups, self.expansion = padding_mode, groups, expansion
        self.weights = nn.Parameter(torch.zeros(self.plan.weights_size, device=device, dtype=dtype))
        made = bias_map(out_type) if bias else None
        parameters = made.count if made else 0
        self.bias = nn.Parameter(torch.zeros(parameters, device=device, dtype=dtype)) if parameters else None
        if made and parameters:
            index, values = torch.from_numpy(made.index), torch.from_numpy(made.values)
            self.register_buffer("_bias_index", index.to(device=device), persistent=False)
            self.register_buffer("_bias_values", values.to(self.weights), persistent=False)
        self._kept: _Kept | None = None
        if initialize:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Normal weights that give unit-variance outputs for unit-variance inputs, and a bias of 0.

        The deviations are those of :func:`eqconv_cli.backends.steerable.initialisation.he_standard_deviations`.
        """
        self.weights.normal_(generator=generator)
        for pair, deviations in zip(self.plan.pairs, he_standard_deviations(self.plan), strict=True):
            part = self.weights[pair.start : pair.start + pair.weights].view(pair.shape)
            part *= torch.from_numpy(deviations).to(part)
        if self.bias is not None:
            self.bias.zero_()

    @property
    def filter(self) -> Tensor:
        """[out channels, in channels / groups, k, k] of the weights as they are."""
        return self._filter(self.weights.dtype)

    @property
    def expanded_bias(self) -> Tensor | None:
        """[out channels] of the bias as it is, or None without one."""
        if self.bias is None:
            return None
        return (self.bias[self._bias_index] * self._bias_values).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution.

        Args:
            x: [B, in channels, H, W].

        Returns:
            [B, out channels, H', W'], see :meth:`output_shape`; under autocast in its dtype.

        Raises:
            ValueError: the shape is another.
        """
        convolution.check_channels(x.shape, 1, self.in_type)
        filter, bias, padding = self._filter(_computed_in(self.weights)), self.expanded_bias, self.padding
        if self.padding_mode != "zeros":
            rows, columns = padding
            x, padding = F.pad(x, (columns, columns, rows, rows), self.padding_mode), (0, 0)
        return F.conv2d(x, filter, bias, self.stride, padding, self.dilation, self.groups)

    def _filter(self, dtype: torch.dtype) -> Tensor:
        """The filter in a dtype: kept in evaluation mode, else expanded."""
        weights = self.weights
        # A compiler would take what is kept for a constant; parameters that are lent for one call (functional_call,
        # data parallelism) are no Parameters; tensors made in inference mode do not count their changes.
        if (
            self.training
            or torch.compiler.is_compiling()
            or type(weights) is not nn.Parameter
            or weights.is_inference()
        ):
            return self._expanded(weights, dtype)
        state = _State.of(weights)
        if self._kept is None or self._kept.weights is not weights or self._kept.state != state:
            self._kept = _Kept(weights, state, {})
        if dtype not in self._kept.filters:
            with torch.inference_mode(False), torch.no_grad():
                self._kept.filters[dtype] = self._expanded(weights, dtype)
        kept = self._kept.filters[dtype]
        if torch.is_grad_enabled() and weights.requires_grad:
            kept = _Attached.apply(weights, kept, self)
        return kept

    def _expanded(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        # Sums of the weights are taken in float32 or float64, whatever the dtype of the filter.
        wide = weights.float() if weights.dtype in _HALVES else weights
        return expand(self.plan, wide, algorithm=self.expansion).to(dtype)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, int, int, int]:
        """The shape of the output for an input [B, C, H, W].

        Raises:
            ValueError: other axes or channels, or an image that is smaller than the kernel.
        """
        convolution.check_channels(shape, 1, self.in_type)
        rows, columns = (
            convolution.output_side(side, self.kernel_size, padding, stride, self.dilation)
            for side, padding, stride in zip(shape[2:], self.padding, self.stride, strict=True)
        )
        return shape[0], self.out_type.size, rows, columns

    def export(self) -> nn.Conv2d:
        """A plain convolution with the same outputs, in the same mode; its tensors are copies."""
        made = nn.Conv2d(
            self.in_type.size,
            self.out_type.size,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            device=self.weights.device,
            dtype=self.weights.dtype,
        )
        with torch.no_grad():
            made.weight.copy_(self._expanded(self.weights, self.weights.dtype))
            if made.bias is not None:
                made.bias.copy_(self.expanded_bias)
        return made.train(self.training)

    def train(self, mode: bool = True) -> R2Conv:
        """Change the mode; the next evaluation expands the weights anew."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"{self.in_type} -> {self.out_type} of {self.in_type.space.group.name}, kernel_size={self.kernel_size}, "
            f"padding={self.padding}, stride={self.stride}, dilation={self.dilation}, "
            f"padding_mode={self.padding_mode!r}, groups={self.groups}, bias={self.bias is not None}, "
            f"weights={len(self.weights)}"
        )


SteerableConv2d = R2Conv


def _computed_in(weights: Tensor) -> torch.dtype:
    """The dtype in which a convolution computes: that of autocast where it is on, which leaves float64 alone."""
    kind = weights.device.type
    if weights.dtype != torch.float64 and kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weights.dtype


class _State(NamedTuple):
    """What changes with the values of weights."""

    version: int
    address: int
    device: torch.device
    dtype: torch.dtype

    @staticmethod
    def of(weights: Tensor) -> _State:
        return _State(weights._version, weights.data_ptr(), weights.device, weights.dtype)


class _Kept(NamedTuple):
    """Filters that have been expanded."""

    weights: nn.Parameter
    state: _State
    filters: dict[torch.dtype, Tensor]


class _Attached(torch.autograd.Function):
    """A filter that is kept, as a function of the weights: its values are known, only its derivative is computed."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, filter: Tensor, layer: R2Conv) -> Tensor:
        ctx.layer, ctx.dtype = layer, weights.dtype
        return filter.view_as(filter)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        (cotangent,) = cotangents
        wide = cotangent.float() if cotangent.dtype in _HALVES else cotangent
        return expand_backward(ctx.layer.plan, wide, algorithm=ctx.layer.expansion).to(ctx.dtype), None, None
