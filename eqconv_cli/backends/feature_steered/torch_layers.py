"""Feature-steered convolution as PyTorch layers: the paper's, and PyTorch Geometric's with its names and signs.

Verma, Boyer, Verbeek, CVPR 2018; tensorflow/graphics ``FeatureSteeredConvolutionKerasLayer``;
pyg-team/pytorch_geometric ``FeaStConv``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from eqconv_cli.backends.feature_steered import arguments
from eqconv_cli.backends.feature_steered.edge_index import mean_neighborhood
from eqconv_cli.backends.feature_steered.plan import Coo, NeighborhoodPlan
from eqconv_cli.backends.feature_steered.torch import feature_steered_convolution, plan_neighborhood

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Fills a parameter in place, like the functions of ``torch.nn.init``.
Initializer = Callable[[Tensor], Any]


class OperatorOptions(TypedDict, total=False):
    """Options that a layer passes on to :func:`feature_steered_convolution`."""

    version: str
    transform_data_first: Any
    memory_efficient: bool
    segment_sum_impl: str
    softmax: str
    activation: str | None


_DEFAULTS = OperatorOptions(
    version="auto",
    transform_data_first=None,
    memory_efficient=True,
    segment_sum_impl="sorted",
    softmax="stable",
    activation=None,
)


def check_positive(name: str, value: int | None) -> None:
    """Raise ValueError when a number is given that is below 1."""
    if value is not None and value < 1:
        raise ValueError(f"{name}={value} is not allowed: at least 1 is needed")


def truncated_normal(tensor: Tensor) -> Tensor:
    """Fill with a normal distribution of deviation 0.1, values beyond two deviations drawn again."""
    return nn.init.trunc_normal_(tensor, std=0.1, a=-0.2, b=0.2)


class FeatureSteeredConvolution(nn.Module):
    """Feature-steered graph convolution with its parameters.

    Args:
        num_weight_matrices: M.
        num_output_channels: D; None takes the number of input channels.
        translation_invariant: use v = -u, evaluated at every call, so that the assignment depends on x_i - x_j only and
            u gets the gradient of both. Otherwise v is a parameter.
        initializer: fills each parameter in place, biases too; default :func:`truncated_normal`.
        in_channels: C; None takes it from the data at the first call. Until then the parameters have no shape
            (``torch.nn.parameter.UninitializedParameter``); ``state_dict``, ``load_state_dict`` and ``copy`` work.
        device, dtype: of the parameters.
        **operator: ``version``, ``transform_data_first``, ``memory_efficient``, ``segment_sum_impl``, ``softmax``,
            ``activation`` of :func:`feature_steered_convolution`.

    Attributes:
        var_u [C, M], var_v [C, M] (unless translation-invariant), var_c [M], var_w [M, C, D], var_b [D]: the
            parameters, created in this order.

    Raises:
        ValueError: a number is not positive, or an option is unknown.

    Example:
        >>> import torch
        >>> layer = FeatureSteeredConvolution(num_output_channels=5)
        >>> neighbors = torch.eye(4).to_sparse()
        >>> layer(torch.ones(4, 3), neighbors).shape
        torch.Size([4, 5])
    """

    var_u: nn.Parameter
    var_v: nn.Parameter
    var_c: nn.Parameter
    var_w: nn.Parameter
    var_b: nn.Parameter

    def __init__(
        self,
        num_weight_matrices: int = 8,
        num_output_channels: int | None = None,
        translation_invariant: bool = True,
        initializer: Initializer | None = None,
        *,
        in_channels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **operator: Unpack[OperatorOptions],
    ) -> None:
        super().__init__()
        check_positive("num_weight_matrices", num_weight_matrices)
        check_positive("num_output_channels", num_output_channels)
        check_positive("in_channels", in_channels)
        self.num_weight_matrices = num_weight_matrices
        self.num_output_channels = num_output_channels
        self.translation_invariant = translation_invariant
        self.initializer = truncated_normal if initializer is None else initializer
        self.operator = _checked(operator)
        names = ("var_u", "var_c", "var_w", "var_b")
        for name in names if translation_invariant else ("var_u", "var_v", *names[1:]):
            self.register_parameter(name, _without_shape(device, dtype))
        # A plain flag, for compilers that follow ``forward`` cannot look into parameters without a shape.
        self._unbuilt = True
        if in_channels is not None:
            self.build(in_channels)

    @property
    def in_channels(self) -> int | None:
        """C, or None as long as no data has told it."""
        return None if is_lazy(self.var_u) else self.var_u.shape[0]

    def build(self, in_channels: int) -> None:
        """Give the parameters that have no shape yet theirs, and fill them."""
        matrices, outputs = self.num_weight_matrices, self.num_output_channels or in_channels
        shapes = {
            "var_u": (in_channels, matrices),
            "var_v": (in_channels, matrices),
            "var_c": (matrices,),
            "var_w": (matrices, in_channels, outputs),
            "var_b": (outputs,),
        }
        for name, parameter in self.named_parameters():
            if isinstance(parameter, UninitializedParameter):
                parameter.materialize(shapes[name])
                self._fill(parameter)
        self._unbuilt = False

    def reset_parameters(self) -> None:
        """Fill all parameters anew; those without a shape are filled when they get it."""
        for parameter in self.parameters():
            if not is_lazy(parameter):
                self._fill(parameter)

    def _fill(self, parameter: Tensor) -> None:
        with torch.no_grad():
            self.initializer(parameter)

    def forward(self, data: Tensor | tuple[Tensor, Tensor], neighbors: Any, sizes: Any = None) -> Tensor:
        """The convolution; arguments, result and errors as for :func:`feature_steered_convolution`."""
        x = data[0] if isinstance(data, tuple) else data
        if self._unbuilt:
            arguments.check_data("data", arguments.Operand(tuple(x.shape), str(x.dtype).removeprefix("torch.")))
            self.build(x.shape[-1])
        var_v = -self.var_u if self.translation_invariant else self.var_v
        return feature_steered_convolution(
            data, neighbors, sizes, self.var_u, var_v, self.var_c, self.var_w, self.var_b, **self.operator
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # Parameters without a shape cannot be detached; they are saved as they are.
        for name, parameter in self.named_parameters():
            destination[prefix + name] = parameter if keep_vars or is_lazy(parameter) else parameter.detach()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        for name, parameter in self.named_parameters():
            saved = state_dict.get(prefix + name)
            if isinstance(parameter, UninitializedParameter) and saved is not None and not is_lazy(saved):
                parameter.materialize(saved.shape)
        self._unbuilt = any(is_lazy(parameter) for parameter in self.parameters())
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"in_channels={self.in_channels}, num_weight_matrices={self.num_weight_matrices}, "
            f"num_output_channels={self.num_output_channels}, translation_invariant={self.translation_invariant}"
        )


class FeaStConv(nn.Module):
    """The translation-invariant layer with the names, signs and parameters of PyTorch Geometric's ``FeaStConv``.

    y_i = bias + mean over the edges j → i of Σ_m softmax_m(u_m·(x_j - x_i) + c_m) lin_m x_j. State dictionaries load
    from one into the other: ``u.weight`` [heads, C], ``lin.weight`` [heads·D, C], ``c`` [heads], ``bias`` [D].

    Args:
        in_channels: C.
        out_channels: D.
        heads: number of weight matrices M.
        add_self_loops: remove all edges i → i of the graph, then add one to each target.
        bias: whether there is a ``bias``.
        **operator: options of :func:`feature_steered_convolution`, as for :class:`FeatureSteeredConvolution`.

    Raises:
        ValueError: a number is not positive, or an option is unknown.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        add_self_loops: bool = True,
        bias: bool = True,
        **operator: Unpack[OperatorOptions],
    ) -> None:
        super().__init__()
        check_positive("in_channels", in_channels)
        check_positive("out_channels", out_channels)
        check_positive("heads", heads)
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.add_self_loops = add_self_loops
        self.operator = _checked(operator)
        self.lin = nn.Linear(in_channels, heads * out_channels, bias=False)
        self.u = nn.Linear(in_channels, heads, bias=False)
        self.c = nn.Parameter(torch.empty(heads))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """``lin`` and ``u`` uniform in ±1/√C, ``c`` and ``bias`` normal with deviation 0.1."""
        bound = self.in_channels**-0.5
        for weight in (self.lin.weight, self.u.weight):
            nn.init.uniform_(weight, -bound, bound)
        for vector in (self.c, self.bias):
            if vector is not None:
                nn.init.normal_(vector, std=0.1)

    def plan(self, edge_index: Tensor, num_sources: int, num_targets: int | None = None) -> NeighborhoodPlan:
        """Bring a graph into the form that :meth:`forward` takes at no cost, for any number of calls.

        Args:
            edge_index: as for :meth:`forward`.
            num_sources: vertices that edges start from.
            num_targets: vertices that edges end in; default the same.

        Raises:
            TypeError, ValueError, IndexError: see :meth:`forward`.
        """
        targets = num_sources if num_targets is None else num_targets
        pairs = _edge_list(edge_index).detach().cpu().numpy()
        indices, weights = mean_neighborhood(pairs, num_sources, targets, self.add_self_loops)
        return plan_neighborhood(Coo(indices, torch.from_numpy(weights).to(self.c), (targets, num_sources)))

    def forward(self, x: Tensor | tuple[Tensor, Tensor], edge_index: Tensor | NeighborhoodPlan) -> Tensor:
        """The convolution.

        Args:
            x: [V, C] float32 or float64, or a pair (sources [Vs, C], targets [Vt, C]).
            edge_index: integer [2, E], row 0 the sources j, row 1 the targets i; or a sparse tensor [Vt, Vs] with an
                entry for each edge, whose values are not read; or a plan from :meth:`plan`, which is taken as it is.
                An edge that occurs twice counts twice.

        Returns:
            [V or Vt, D].

        Raises:
            TypeError: a dtype is not allowed.
            ValueError: a shape does not fit; self loops are wanted of more targets than there are sources.
            IndexError: an edge names a vertex that is not there.
        """
        sources, targets = x if isinstance(x, tuple) else (x, x)
        if isinstance(edge_index, Tensor):
            edge_index = self.plan(edge_index, sources.shape[0], targets.shape[0])
        var_v = self.u.weight.T
        var_w = self.lin.weight.unflatten(0, (self.heads, self.out_channels)).transpose(1, 2)
        var_b = self.c.new_zeros(self.out_channels) if self.bias is None else self.bias
        return feature_steered_convolution(x, edge_index, None, -var_v, var_v, self.c, var_w, var_b, **self.operator)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{self.in_channels}, {self.out_channels}, heads={self.heads}, add_self_loops={self.add_self_loops}"


def _without_shape(device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Parameter:
    make: Any = UninitializedParameter  # its stub hides the arguments
    parameter: nn.Parameter = make(device=device, dtype=dtype)
    return parameter


def _edge_list(edge_index: Tensor) -> Tensor:
    """(sources, targets) [2, E] of an edge list or of a sparse tensor whose rows are the targets."""
    if edge_index.layout == torch.strided:
        return edge_index
    if edge_index.layout in (torch.sparse_csr, torch.sparse_csc):
        edge_index = edge_index.to_sparse_coo()
    # ``indices()`` would ask for a coalesced tensor, in which edges that occur twice are one.
    return edge_index._indices().flip(0)


def _checked(operator: OperatorOptions) -> OperatorOptions:
    """All options, those not given at their defaults; raises TypeError or ValueError."""
    unknown = sorted(set(operator) - set(_DEFAULTS))
    if unknown:
        raise TypeError(f"{unknown[0]} is not an option of the layer: allowed: {', '.join(_DEFAULTS)}")
    options: OperatorOptions = {**_DEFAULTS, **operator}
    arguments.check_choices(
        options["version"],
        options["transform_data_first"],
        options["segment_sum_impl"],
        options["softmax"],
        "cheap",
        options["activation"],
    )
    return options
