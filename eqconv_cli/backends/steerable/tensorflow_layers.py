"""Steerable convolution of the plane as a Keras layer.

Weiler, Cesa, "General E(2)-Equivariant Steerable CNNs", arXiv 1911.08251; QUVA-Lab/e2cnn
``nn/modules/r2_conv/r2convolution.py``, whose arguments and order of weights this layer has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from eqconv_cli.backends.steerable import arguments, convolution
from eqconv_cli.backends.steerable.basis import Attributes
from eqconv_cli.backends.steerable.bias import bias_map
from eqconv_cli.backends.steerable.expressions import expression_of
from eqconv_cli.backends.steerable.fields import FieldType, Space
from eqconv_cli.backends.steerable.initialisation import he_standard_deviations
from eqconv_cli.backends.steerable.plan import Plan, make_plan
from eqconv_cli.backends.steerable.sampling import Cutoff
from eqconv_cli.backends.steerable.tensorflow_convolution import convolve, padded
from eqconv_cli.backends.steerable.tensorflow_expansion import expand

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"Keras runs on the backend {keras.backend.backend()!r}: these layers need 'tensorflow' (set KERAS_BACKEND or "
        "keras.json before Keras is imported)"
    )

DATA_FORMATS = ("channels_last", "channels_first")


@keras.saving.register_keras_serializable(package="eqconv")
class SteerableConv2d(keras.layers.Layer):  # type: ignore[misc]
    """A convolution that commutes with a group of the plane, on plain tensors.

    The weights are coordinates in a basis of all kernels that commute; each call expands them into a filter, in the
    dtype of the variables, and convolves in the compute dtype. Variables of TensorFlow do not tell when they change,
    so nothing is kept between calls; :meth:`export` gives plain layers.

    A configuration names the group, the axis and the fields by their expressions, see ``Space.fields``.

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
        initialize: draw the weights as
            :func:`eqconv_cli.backends.steerable.initialisation.he_standard_deviations` says; else they are 0.
        expansion: the algorithm, see :func:`eqconv_cli.backends.steerable.tensorflow_expansion.expand`.
        data_format: "channels_last" or "channels_first".
        seed: of the initial weights; None takes Keras' own.
        **options: of every Keras layer.

    Attributes:
        coordinates [n]: the weights, ordered as :class:`eqconv_cli.backends.steerable.plan.Plan` says.
        bias [trivial irreps of the output], or None: initially 0.
        plan: how the weights become the filter.

    Raises:
        TypeError, ValueError: an argument is not allowed, or no kernel commutes with the group on this grid.

    Example:
        >>> import tensorflow as tf
        >>> from eqconv_cli.tensorflow import Space, SteerableConv2d
        >>> space = Space.of("C8")
        >>> layer = SteerableConv2d(space.trivial_fields(3), space.regular_fields(2), 5, padding=2)
        >>> layer(tf.ones([1, 9, 9, 3])).shape.as_list()
        [1, 9, 9, 16]
    """

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
        data_format: str = "channels_last",
        seed: int | None = None,
        **options: Any,
    ) -> None:
        padding, stride = convolution.both("padding", padding, 0), convolution.both("stride", stride, 1)
        convolution.check_padding_mode(padding_mode)
        _check_choice("expansion", expansion, ("auto", *arguments.ALGORITHMS))
        _check_choice("data_format", data_format, DATA_FORMATS)
        basis: dict[str, Any] = {
            "dilation": dilation,
            "groups": groups,
            "sigma": sigma,
            "frequencies_cutoff": frequencies_cutoff,
            "rings": rings,
            "maximum_offset": maximum_offset,
            "basis_filter": basis_filter,
            "recompute": recompute,
            "scale_cutoff_with_dilation": scale_cutoff_with_dilation,
        }
        plan = make_plan(in_type, out_type, kernel_size, **basis)
        super().__init__(**options)
        self.plan, self.in_type, self.out_type = plan, in_type, out_type
        self.kernel_size, self.dilation, self.groups = plan.sampling.size, plan.sampling.dilation, groups
        self.padding, self.stride, self.padding_mode = padding, stride, padding_mode
        self.use_bias, self.initialize, self.expansion = bias, initialize, expansion
        self.data_format, self.seed = data_format, seed
        self._basis = basis
        self._bias_map = bias_map(out_type)
        # The compiled expansion has no XLA kernel.
        self.supports_jit = False

    @property
    def _channels_axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1

    def build(self, input_shape: Any) -> None:
        """Create the parameters."""
        convolution.check_channels(input_shape, self._channels_axis, self.in_type)
        # Precision is lost in the filter, not in the sums that make it.
        initializer = _he(self.plan, self.seed) if self.initialize else "zeros"
        self.coordinates = self.add_weight(
            shape=(self.plan.weights_size,), initializer=initializer, name="coordinates", autocast=False
        )
        parameters = self._bias_map.parameters if self.use_bias else 0
        self.bias = (
            self.add_weight(shape=(parameters,), initializer="zeros", name="bias", autocast=False)
            if parameters
            else None
        )
        self.built = True

    @property
    def filter(self) -> tf.Tensor:
        """[out channels, in channels / groups, k, k] of the weights as they are."""
        weights = tf.convert_to_tensor(self.coordinates)
        wide = tf.cast(weights, tf.float32) if weights.dtype.size < 4 else weights
        return tf.cast(expand(self.plan, wide, algorithm=self.expansion), weights.dtype)

    @property
    def expanded_bias(self) -> tf.Tensor | None:
        """[out channels] of the bias as it is, or None without one."""
        if self.bias is None:
            return None
        bias = tf.convert_to_tensor(self.bias)
        # Along the first axis the gradient would be sparse, which optimizers take for a gradient of some entries only.
        each = tf.gather(bias[tf.newaxis], self._bias_map.positions, axis=1)[0]
        return tf.reduce_sum(each * tf.cast(self._bias_map.values, bias.dtype), 0)

    def call(self, x: Any) -> tf.Tensor:
        """The convolution.

        Args:
            x: [B, H, W, in channels], or [B, in channels, H, W] with channels first.

        Returns:
            [B, H', W', out channels], or [B, out channels, H', W'], in the compute dtype.

        Raises:
            ValueError: the shape is another.
        """
        convolution.check_channels(x.shape, self._channels_axis, self.in_type)
        # Kernels for channels first are not everywhere.
        first = self.data_format == "channels_first"
        image = tf.transpose(x, [0, 2, 3, 1]) if first else x
        padding: tuple[int, ...] = self.padding
        if self.padding_mode != "zeros":
            image, padding = padded(image, self.padding, self.padding_mode), (0, 0)
        y = convolve(image, tf.cast(self.filter, image.dtype), self.stride, padding, self.dilation)
        bias = self.expanded_bias
        y = y if bias is None else y + tf.cast(bias, y.dtype)
        return tf.transpose(y, [0, 3, 1, 2]) if first else y

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """The shape of the output.

        Raises:
            ValueError: other axes or channels, or an image that is smaller than the kernel.
        """
        convolution.check_channels(input_shape, self._channels_axis, self.in_type)
        first = self.data_format == "channels_first"
        sides = [
            None if side is None else convolution.output_side(side, self.kernel_size, padding, stride, self.dilation)
            for side, padding, stride in zip(
                input_shape[2:] if first else input_shape[1:3], self.padding, self.stride, strict=True
            )
        ]
        batch, channels = input_shape[0], self.out_type.size
        return (batch, channels, *sides) if first else (batch, *sides, channels)

    def export(self) -> keras.Sequential:
        """Keras' own padding and convolution with the same outputs; their variables are copies.

        Raises:
            ValueError: Keras has no layer for this padding mode.
        """
        if self.padding_mode != "zeros":
            raise ValueError(f"padding_mode={self.padding_mode!r}: Keras has layers for 'zeros' only")
        bias = self.expanded_bias
        plain = keras.layers.Conv2D(
            self.out_type.size,
            self.kernel_size,
            strides=self.stride,
            data_format=self.data_format,
            dilation_rate=self.dilation,
            groups=self.groups,
            use_bias=bias is not None,
            dtype=self.dtype_policy,
        )
        around = keras.layers.ZeroPadding2D(self.padding, data_format=self.data_format, dtype=self.dtype_policy)
        channels = self.in_type.size
        shape = (None, None, channels) if self.data_format == "channels_last" else (channels, None, None)
        made = keras.Sequential([keras.Input(shape), around, plain])
        kernel = np.transpose(self.filter.numpy(), (2, 3, 1, 0))
        plain.set_weights([kernel] if bias is None else [kernel, bias.numpy()])
        return made

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised.

        Raises:
            ValueError: a representation has no expression, or an argument is a function.
        """
        for name in ("frequencies_cutoff", "basis_filter"):
            if callable(self._basis[name]):
                raise ValueError(f"{name} is a function, which a configuration cannot hold: load the weights instead")
        numbers = {name: _plain(value) for name, value in self._basis.items() if name != "basis_filter"}
        return {
            **super().get_config(),
            "group": self.in_type.space.group.name,
            "axis": self.in_type.space.axis,
            "in_fields": expression_of(self.in_type),
            "out_fields": expression_of(self.out_type),
            "kernel_size": self.kernel_size,
            "padding": list(self.padding),
            "stride": list(self.stride),
            "padding_mode": self.padding_mode,
            "bias": self.use_bias,
            **numbers,
            "initialize": self.initialize,
            "expansion": self.expansion,
            "data_format": self.data_format,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SteerableConv2d:
        """The layer of a configuration."""
        rest = dict(config)
        space = Space.of(rest.pop("group"), rest.pop("axis"))
        in_type, out_type = (space.fields(rest.pop(name)) for name in ("in_fields", "out_fields"))
        return cls(in_type, out_type, **rest)


def _he(plan: Plan, seed: int | None) -> Callable[..., Any]:
    def draw(shape: Sequence[int], dtype: Any = None) -> Any:
        deviations = [
            np.broadcast_to(each, pair.shape).ravel()
            for pair, each in zip(plan.pairs, he_standard_deviations(plan), strict=True)
        ]
        return keras.random.normal(shape, dtype=dtype, seed=seed) * tf.constant(np.concatenate(deviations), dtype)

    return draw


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: allowed: {', '.join(allowed)}")


def _plain(value: Any) -> Any:
    """Numbers as JSON has them."""
    return [float(each) for each in value] if isinstance(value, (Sequence, np.ndarray)) else value
