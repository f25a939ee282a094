"""Feature-steered convolution as Keras layers: the paper's, and PyTorch Geometric's with its names and signs.

Verma, Boyer, Verbeek, CVPR 2018; tensorflow/graphics ``FeatureSteeredConvolutionKerasLayer``;
pyg-team/pytorch_geometric ``FeaStConv``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from eqconv_cli.backends.feature_steered import arguments
from eqconv_cli.backends.feature_steered.edge_index import mean_neighborhood
from eqconv_cli.backends.feature_steered.plan import Coo, NeighborhoodPlan
from eqconv_cli.backends.feature_steered.tensorflow import feature_steered_convolution, plan_neighborhood
from eqconv_cli.backends.feature_steered.tensorflow_symbolic import symbolic_mean_neighborhood
from eqconv_cli.frameworks.tensorflow_tensors import Extent, extent, is_symbolic

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"Keras runs on the backend {keras.backend.backend()!r}: these layers need 'tensorflow' (set KERAS_BACKEND or "
        "keras.json before Keras is imported)"
    )

#: Options that a layer passes on to :func:`feature_steered_convolution`, with their defaults.
OPERATOR_OPTIONS: Mapping[str, Any] = {
    "version": "auto",
    "transform_data_first": None,
    "memory_efficient": True,
    "segment_sum_impl": "sorted",
    "softmax": "stable",
    "activation": None,
}


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The operator's options, those not given at their defaults, and what is left for Keras.

    Raises:
        ValueError: a value is not allowed.
    """
    operator = {name: options.get(name, default) for name, default in OPERATOR_OPTIONS.items()}
    arguments.check_choices(
        operator["version"],
        operator["transform_data_first"],
        operator["segment_sum_impl"],
        operator["softmax"],
        "cheap",
        operator["activation"],
    )
    return operator, {name: value for name, value in options.items() if name not in OPERATOR_OPTIONS}


def check_positive(name: str, value: int | None) -> None:
    """Raise ValueError when a number is given that is below 1."""
    if value is not None and value < 1:
        raise ValueError(f"{name}={value} is not allowed: at least 1 is needed")


def unpack(inputs: Any, neighbors: Any, sizes: Any) -> tuple[Any, Any, Any]:
    """Data, neighbours and sizes of a call ``([data, neighbors, sizes])`` or ``(data, neighbors, sizes)``.

    Raises:
        ValueError: the list has neither two nor three parts, or sizes is given twice.
    """
    if neighbors is not None:
        return inputs, neighbors, sizes
    if not isinstance(inputs, (list, tuple)) or len(inputs) not in (2, 3):
        raise ValueError("inputs needs neighbors: give [data, neighbors], [data, neighbors, sizes] or two arguments")
    if len(inputs) == 3 and inputs[2] is not None:
        if sizes is not None:
            raise ValueError("sizes is given twice, in inputs and as an argument of its own")
        sizes = inputs[2]
    return inputs[0], inputs[1], sizes


def channels_of(inputs_shape: Any) -> int:
    """The channels C of data, the first array of possibly nested inputs; raises ValueError when unknown."""
    shape = inputs_shape
    while isinstance(shape[0], (list, tuple)):
        shape = shape[0]
    if shape[-1] is None:
        raise ValueError(f"data has shape {list(shape)}: its last extent, the channels, must be known")
    return int(shape[-1])


class TakesNeighbors:
    """Lets a Keras layer or model be called with neighbours that are not tensors."""

    def __call__(self, inputs: Any, neighbors: Any = None, sizes: Any = None, **context: Any) -> Any:
        """Plan neighbours that are not a tensor, and give them by name: Keras takes nothing else without one."""
        tensor = isinstance(neighbors, tf.SparseTensor) or getattr(neighbors, "sparse", False)
        if neighbors is not None and not tensor:
            neighbors, sizes = plan_neighborhood(neighbors, sizes), None
        return super().__call__(inputs, neighbors=neighbors, sizes=sizes, **context)  # type: ignore[misc]


@keras.saving.register_keras_serializable(package="eqconv")
class FeatureSteeredConvolution(TakesNeighbors, keras.layers.Layer):  # type: ignore[misc]
    """Feature-steered graph convolution with its parameters.

    Call it with ``(data, neighbors, sizes)``, where neighbors may have every form that
    :func:`feature_steered_convolution` takes, or with a list of tensors ``[data, neighbors]`` or
    ``[data, neighbors, sizes]``. ``data`` and the weights of the neighbours are cast to the layer's dtype.

    Args:
        num_weight_matrices: M.
        num_output_channels: D; None takes the number of input channels.
        translation_invariant: use v = -u, evaluated at every call, so that the assignment depends on x_i - x_j only and
            u gets the gradient of both. Otherwise v is a parameter.
        initializer: of every parameter, the bias too; default truncated normal with deviation 0.1. A fixed seed is
            counted up from one parameter to the next, so that u and v differ.
        **options: ``version``, ``transform_data_first``, ``memory_efficient``, ``segment_sum_impl``, ``softmax``,
            ``activation`` of :func:`feature_steered_convolution`, and the options of every Keras layer.

    Attributes:
        var_u [C, M], var_v [C, M] (unless translation-invariant), var_c [M], var_w [M, C, D], var_b [D]: the
            parameters, created in this order when C becomes known.

    Raises:
        ValueError: a number is not positive, or an option is unknown.

    Example:
        >>> import tensorflow as tf
        >>> layer = FeatureSteeredConvolution(num_output_channels=5)
        >>> layer(tf.ones([4, 3]), tf.sparse.eye(4)).shape.as_list()
        [4, 5]
    """

    def __init__(
        self,
        num_weight_matrices: int = 8,
        num_output_channels: int | None = None,
        translation_invariant: bool = True,
        initializer: Any = None,
        **options: Any,
    ) -> None:
        check_positive("num_weight_matrices", num_weight_matrices)
        check_positive("num_output_channels", num_output_channels)
        operator, rest = split_options(options)
        super().__init__(**rest)
        self.num_weight_matrices = num_weight_matrices
        self.num_output_channels = num_output_channels
        self.translation_invariant = translation_invariant
        default = keras.initializers.TruncatedNormal(stddev=0.1)
        self.initializer = default if initializer is None else keras.initializers.get(initializer)
        self.operator = operator
        # Symbolic sizes and the sorted sums have no XLA kernels.
        self.supports_jit = False

    def build(self, inputs_shape: Any, neighbors_shape: Any = None, sizes_shape: Any = None) -> None:
        """Create the parameters for the channels of ``inputs_shape``."""
        channels = channels_of(inputs_shape)
        matrices, outputs = self.num_weight_matrices, self.num_output_channels or channels
        shapes: dict[str, tuple[int, ...]] = {"var_u": (channels, matrices)}
        if not self.translation_invariant:
            shapes["var_v"] = (channels, matrices)
        shapes |= {"var_c": (matrices,), "var_w": (matrices, channels, outputs), "var_b": (outputs,)}
        for number, (name, shape) in enumerate(shapes.items()):
            weight = self.add_weight(shape=shape, initializer=_seeded(self.initializer, number), name=name)
            setattr(self, name, weight)
        self.built = True

    def call(self, inputs: Any, neighbors: Any = None, sizes: Any = None) -> tf.Tensor:
        """The convolution; arguments, result and errors as for :func:`feature_steered_convolution`."""
        data, neighbors, sizes = unpack(inputs, neighbors, sizes)
        data = tuple(data) if isinstance(data, list) else data
        if isinstance(neighbors, NeighborhoodPlan):
            neighbors = neighbors.with_values(tf.cast(neighbors.values, self.compute_dtype))
        # The released layer computed -u once when it was built: v stayed behind as u was trained.
        var_v = -self.var_u if self.translation_invariant else self.var_v
        return feature_steered_convolution(
            data, neighbors, sizes, self.var_u, var_v, self.var_c, self.var_w, self.var_b, **self.operator
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "num_weight_matrices": self.num_weight_matrices,
            "num_output_channels": self.num_output_channels,
            "translation_invariant": self.translation_invariant,
            "initializer": keras.initializers.serialize(self.initializer),
            **self.operator,
        }


@keras.saving.register_keras_serializable(package="eqconv")
class FeaStConv(keras.layers.Layer):  # type: ignore[misc]
    """The translation-invariant layer with the names, signs and parameters of PyTorch Geometric's ``FeaStConv``.

    y_i = bias + mean over the edges j → i of Σ_m softmax_m(u_m·(x_j - x_i) + c_m) lin_m x_j.

    Args:
        in_channels: C.
        out_channels: D.
        heads: number of weight matrices M.
        add_self_loops: remove all edges i → i of the graph, then add one to each target.
        bias: whether there is a bias.
        **options: as for :class:`FeatureSteeredConvolution`.

    Attributes:
        lin [heads·D, C], u [heads, C]: uniform in ±1/√C. c [heads], bias [D] or None: normal with deviation 0.1.

    Raises:
        ValueError: a number is not positive, or an option is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        add_self_loops: bool = True,
        bias: bool = True,
        **options: Any,
    ) -> None:
        check_positive("in_channels", in_channels)
        check_positive("out_channels", out_channels)
        check_positive("heads", heads)
        operator, rest = split_options(options)
        super().__init__(**rest)
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.add_self_loops, self.use_bias = add_self_loops, bias
        self.operator = operator
        self.supports_jit = False
        bound = in_channels**-0.5
        self.lin = self._weight("lin", (heads * out_channels, in_channels), keras.initializers.RandomUniform, bound)
        self.u = self._weight("u", (heads, in_channels), keras.initializers.RandomUniform, bound)
        self.c = self._weight("c", (heads,), keras.initializers.RandomNormal, None)
        self.bias = self._weight("bias", (out_channels,), keras.initializers.RandomNormal, None) if bias else None

    def _weight(self, name: str, shape: tuple[int, ...], initializer: Any, bound: float | None) -> Any:
        made = initializer(stddev=0.1) if bound is None else initializer(-bound, bound)
        return self.add_weight(shape=shape, initializer=made, name=name)

    def plan(self, edge_index: Any, num_sources: Extent, num_targets: Extent | None = None) -> NeighborhoodPlan:
        """Bring a graph into the form that the layer takes at no cost, for any number of calls.

        Args:
            edge_index: as for :meth:`call`.
            num_sources: vertices that edges start from.
            num_targets: vertices that edges end in; default the same.

        Raises:
            TypeError, ValueError, IndexError: see :meth:`call`.
        """
        targets = num_sources if num_targets is None else num_targets
        if isinstance(edge_index, tf.SparseTensor):
            edge_index = tf.reverse(tf.transpose(edge_index.indices), [0])
        if is_symbolic(edge_index, num_sources, targets):
            return plan_neighborhood(
                symbolic_mean_neighborhood(edge_index, num_sources, targets, self.add_self_loops, self.compute_dtype)
            )
        pairs = np.asarray(edge_index)
        indices, weights = mean_neighborhood(pairs, num_sources, targets, self.add_self_loops)
        return plan_neighborhood(Coo(indices, weights.astype(self.compute_dtype), (targets, num_sources)))

    def __call__(self, x: Any, edge_index: Any, **context: Any) -> Any:
        """The convolution, see :meth:`call`; Keras takes a plan, which is no tensor, by name alone."""
        return super().__call__(x, edge_index=edge_index, **context)

    def call(self, x: Any, edge_index: Any) -> tf.Tensor:
        """The convolution.

        Args:
            x: [V, C], or a pair (sources [Vs, C], targets [Vt, C]).
            edge_index: integer [2, E], row 0 the sources j, row 1 the targets i; or a ``tf.SparseTensor`` [Vt, Vs] with
                an entry for each edge, whose values are not read; or a plan from :meth:`plan`, which is taken as it is.
                An edge that occurs twice counts twice.

        Returns:
            [V or Vt, D].

        Raises:
            TypeError: a dtype is not allowed.
            ValueError: a shape does not fit; self loops are wanted of more targets than there are sources.
            IndexError: an edge names a vertex that is not there.
        """
        data = tuple(x) if isinstance(x, (list, tuple)) else x
        sources, targets = data if isinstance(data, tuple) else (data, data)
        if not isinstance(edge_index, NeighborhoodPlan):
            edge_index = self.plan(edge_index, extent(sources, 0), extent(targets, 0))
        var_v = tf.transpose(self.u)
        var_w = tf.transpose(tf.reshape(self.lin, [self.heads, self.out_channels, self.in_channels]), [0, 2, 1])
        var_b = tf.zeros([self.out_channels], var_w.dtype) if self.bias is None else self.bias
        return feature_steered_convolution(data, edge_index, None, -var_v, var_v, self.c, var_w, var_b, **self.operator)

    def load_pyg_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the parameters of a PyTorch Geometric ``FeaStConv``.

        Args:
            state_dict: ``u.weight`` [heads, C], ``lin.weight`` [heads·D, C], ``c`` [heads] and, when the layer has a
                bias, ``bias`` [D]; NumPy arrays or PyTorch tensors.

        Raises:
            ValueError: a name is missing or not one of these, or a shape differs.
        """
        weights = {"lin.weight": self.lin, "u.weight": self.u, "c": self.c}
        if self.bias is not None:
            weights["bias"] = self.bias
        for name in sorted(set(weights) ^ set(state_dict)):
            fault = "misses" if name in weights else "has the unknown entry"
            raise ValueError(f"state_dict {fault} {name!r}: expected {', '.join(weights)}")
        arrays = {name: _as_array(state_dict[name]) for name in weights}
        for name, weight in weights.items():
            if arrays[name].shape != tuple(weight.shape):
                raise ValueError(
                    f"state_dict[{name!r}] has shape {list(arrays[name].shape)}: expected {list(weight.shape)}"
                )
        for name, weight in weights.items():
            weight.assign(arrays[name])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "heads": self.heads,
            "add_self_loops": self.add_self_loops,
            "bias": self.use_bias,
            **self.operator,
        }


def _seeded(initializer: Any, number: int) -> Any:
    """An initialiser of its own for a parameter: Keras draws the same numbers from one instance at every call."""
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    config = initializer.get_config()
    if isinstance(config.get("seed"), int):
        config["seed"] += number
    return type(initializer).from_config(config)


def _as_array(array: Any) -> Any:
    return np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
