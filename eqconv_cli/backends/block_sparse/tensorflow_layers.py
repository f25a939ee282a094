"""Sparse convolutions as Keras layers: blocks of an image, the residual unit on blocks, and convolutions on sites.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018; Graham, van der Maaten, arXiv 1706.01307. Kernels are initialised as
in uber-research/sbnet and facebookresearch/SparseConvNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from eqconv_cli.backends.block_sparse import arguments
from eqconv_cli.backends.block_sparse.geometry import check_padding, pair, strides_pair
from eqconv_cli.backends.block_sparse.index import BlockIndex
from eqconv_cli.backends.block_sparse.site_patterns import per_axis
from eqconv_cli.backends.block_sparse.tensorflow_convolution import sparse_conv2d
from eqconv_cli.backends.block_sparse.tensorflow_inputs import block_params
from eqconv_cli.backends.block_sparse.tensorflow_ops import reduce_mask
from eqconv_cli.backends.block_sparse.tensorflow_residual import KSIZES, residual_unit, sparse_residual_unit
from eqconv_cli.backends.block_sparse.tensorflow_sites import Sites, sparse_conv, sparse_inverse_conv, subm_conv
from eqconv_cli.backends.block_sparse.units import BORDERS, EPSILON, STATISTICS, BatchNorm, ResidualWeights

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"Keras runs on the backend {keras.backend.backend()!r}: these layers need 'tensorflow' (set KERAS_BACKEND or "
        "keras.json before Keras is imported)"
    )


def _fan_out(kh: int, kw: int, filters: int) -> Any:
    """Truncated normal with the deviation sqrt(2 / (kh kw K))."""
    return keras.initializers.TruncatedNormal(stddev=float(np.sqrt(2.0 / (kh * kw * filters))))


def _check_filters(filters: int) -> None:
    if filters < 1:
        raise ValueError(f"filters={filters}: at least 1 is needed")


class _Blocks(keras.layers.Layer):  # type: ignore[misc]
    """What layers on blocks have in common: which blocks are active."""

    def __init__(self, bsize: Sequence[int], tol: float, avgpool: bool, version: str, **options: Any) -> None:
        super().__init__(**options)
        arguments.check_tolerance(tol)
        self.bsize, self.tol, self.avgpool, self.version = pair("bsize", bsize, 1), tol, avgpool, version
        # Lists whose length depends on the data have no XLA kernels.
        self.supports_jit = False

    def _index(self, mask: Any, params: Any) -> BlockIndex:
        if isinstance(mask, BlockIndex):
            return mask
        return reduce_mask(
            mask,
            params.bcount,
            bsize=params.bsize,
            bstride=params.bstrides,
            boffset=params.boffset,
            tol=self.tol,
            avgpool=self.avgpool,
            version=self.version if self.version in ("auto", "fused") else "auto",
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "bsize": list(self.bsize),
            "tol": self.tol,
            "avgpool": self.avgpool,
            "version": self.version,
        }


@keras.saving.register_keras_serializable(package="eqconv")
class SparseBlockConv2d(_Blocks):
    """A convolution in the tiles of the blocks that a mask makes active, see :func:`sparse_conv2d`.

    Its weights are those of ``keras.layers.Conv2D``: ``set_weights(dense.get_weights())``.

    Args:
        filters: K.
        kernel_size: (kh, kw).
        bsize: size of the window that a block reads.
        strides: two numbers.
        padding: "SAME" or "VALID".
        base: "zeros", or "input" to keep x where nothing is active.
        use_bias: whether there is a bias.
        activation: None or "relu".
        tol, avgpool: when a block is active, see :func:`reduce_mask`.
        kernel_initializer: None: truncated normal with the deviation sqrt(2 / (kh kw K)).
        version: as for :func:`sparse_conv2d`.
        **options: of every Keras layer.

    Attributes:
        kernel [kh, kw, C, K], bias [K] or None.

    Raises:
        ValueError: an argument is not allowed.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Sequence[int],
        bsize: Sequence[int],
        strides: Sequence[int] = (1, 1),
        padding: str = "SAME",
        base: str = "zeros",
        use_bias: bool = True,
        activation: str | None = None,
        tol: float = 0.5,
        avgpool: bool = False,
        kernel_initializer: Any = None,
        version: str = "auto",
        **options: Any,
    ) -> None:
        _check_filters(filters)
        check_padding(padding)
        arguments.check_choice("base", base, ("zeros", "input"))
        arguments.check_choice("activation", activation, arguments.ACTIVATIONS)
        super().__init__(bsize, tol, avgpool, version, **options)
        self.filters, self.kernel_size = filters, pair("kernel_size", kernel_size, 1)
        self.strides, self.padding, self.base = strides_pair("strides", strides), padding, base
        self.use_bias, self.activation = use_bias, activation
        default = _fan_out(*self.kernel_size, filters)
        self.kernel_initializer = keras.initializers.get(kernel_initializer) if kernel_initializer else default

    def build(self, x_shape: Any, mask_shape: Any = None) -> None:
        """Create the parameters for the channels of x."""
        shape = (*self.kernel_size, x_shape[-1], self.filters)
        self.kernel = self.add_weight(shape=shape, initializer=self.kernel_initializer, name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias") if self.use_bias else None
        self.built = True

    def call(self, x: Any, mask: Any) -> tf.Tensor:
        """The convolution of x [N, H, W, C]; ``mask`` [N, H, W] or [N, H, W, 1], or a list of active blocks."""
        params = block_params(x, self.bsize, [self.kernel_size], self.strides, self.padding)
        return sparse_conv2d(
            x,
            tf.convert_to_tensor(self.kernel),
            self._index(mask, params),
            params,
            base=self.base,
            strides=self.strides,
            bias=None if self.bias is None else tf.convert_to_tensor(self.bias),
            activation=self.activation,
            version=self.version,
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": list(self.kernel_size),
            "strides": list(self.strides),
            "padding": self.padding,
            "base": self.base,
            "use_bias": self.use_bias,
            "activation": self.activation,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="eqconv")
class SparseResidualUnit(_Blocks):
    """The pre-activation bottleneck on active blocks, see :func:`sparse_residual_unit`; without a mask the dense unit.

    Both share the parameters, so a unit trained densely runs sparsely and the other way round.

    Args:
        bottleneck: M.
        bsize: size of the window that a block reads.
        filters: C_out of a projected shortcut; None: the shortcut is x and C_out = C.
        strides: of the first convolution and the shortcut.
        border: "dense" or "original".
        statistics: "inference", "stack" or "active".
        no_activation: leave out the first normalisation and ReLU.
        epsilon: of the normalisations.
        tol, avgpool: when a block is active, see :func:`reduce_mask`.
        version: as for :func:`sparse_residual_unit`.
        **options: of every Keras layer.

    Attributes:
        w1 [C, M], w2 [3, 3, M, M], w3 [M, C_out]: truncated normal with the deviation sqrt(2 / (kh kw K)).
        bn1, bn2, bn3 [4, C or M]: scale (1), offset (0), mean (0) and variance (1); mean and variance are not trained.
        w_project [C, C_out] or None.

    Raises:
        ValueError: an argument is not allowed.
    """

    def __init__(
        self,
        bottleneck: int,
        bsize: Sequence[int],
        filters: int | None = None,
        strides: Sequence[int] = (1, 1),
        border: str = "dense",
        statistics: str = "inference",
        no_activation: bool = False,
        epsilon: float = EPSILON,
        tol: float = 0.5,
        avgpool: bool = False,
        version: str = "auto",
        **options: Any,
    ) -> None:
        _check_filters(bottleneck)
        arguments.check_choice("border", border, BORDERS)
        arguments.check_choice("statistics", statistics, STATISTICS)
        super().__init__(bsize, tol, avgpool, version, **options)
        self.bottleneck, self.filters, self.strides = bottleneck, filters, strides_pair("strides", strides)
        self.border, self.statistics, self.no_activation = border, statistics, no_activation
        self.epsilon = epsilon

    def build(self, x_shape: Any, mask_shape: Any = None) -> None:
        """Create the parameters for the channels of x."""
        channels, narrow = x_shape[-1], self.bottleneck
        out = self.filters or channels
        self.w1 = self._matrix("w1", (channels, narrow), 1)
        self.w2 = self._matrix("w2", (3, 3, narrow, narrow), 3)
        self.w3 = self._matrix("w3", (narrow, out), 1)
        self.w_project = self._matrix("w_project", (channels, out), 1) if self.filters else None
        self.norms = {
            name: [
                self.add_weight(shape=(extent,), initializer=start, trainable=trained, name=f"{name}_{part}")
                for part, start, trained in zip(
                    BatchNorm._fields, ("ones", "zeros", "zeros", "ones"), (True, True, False, False), strict=True
                )
            ]
            for name, extent in (("bn1", channels), ("bn2", narrow), ("bn3", narrow))
            if name != "bn1" or not self.no_activation
        }
        self.built = True

    def _matrix(self, name: str, shape: tuple[int, ...], k: int) -> Any:
        return self.add_weight(shape=shape, initializer=_fan_out(k, k, shape[-1]), name=name)

    @property
    def unit(self) -> ResidualWeights:
        """The parameters as the functions take them."""
        norms = {name: BatchNorm(*map(tf.convert_to_tensor, parts)) for name, parts in self.norms.items()}
        w1, w2, w3 = (tf.convert_to_tensor(w) for w in (self.w1, self.w2, self.w3))
        project = None if self.w_project is None else tf.convert_to_tensor(self.w_project)
        return ResidualWeights(w1, w2, w3, norms.get("bn1"), norms["bn2"], norms["bn3"], project)

    def call(self, x: Any, mask: Any = None) -> tf.Tensor:
        """The unit on x [N, H, W, C]; ``mask`` as for :class:`SparseBlockConv2d`, or None."""
        if mask is None:
            return residual_unit(x, self.unit, strides=self.strides, epsilon=self.epsilon)
        params = block_params(x, self.bsize, KSIZES, self.strides)
        return sparse_residual_unit(
            x,
            self._index(mask, params),
            params,
            self.unit,
            border=self.border,
            bn=self.statistics,
            strides=self.strides,
            epsilon=self.epsilon,
            version=self.version,
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "bottleneck": self.bottleneck,
            "filters": self.filters,
            "strides": list(self.strides),
            "border": self.border,
            "statistics": self.statistics,
            "no_activation": self.no_activation,
            "epsilon": self.epsilon,
        }


class _OnSites(keras.layers.Layer):  # type: ignore[misc]
    """What layers on sites have in common: the parameters, and being called with sites, which are no tensors."""

    def __init__(
        self, filters: int, kernel_size: Sequence[int], use_bias: bool, groups: int, version: str, **options: Any
    ) -> None:
        _check_filters(filters)
        super().__init__(**options)
        self.filters, self.use_bias, self.groups, self.version = filters, use_bias, groups, version
        self.kernel_size = per_axis("kernel_size", len(kernel_size), kernel_size, 1)
        self.supports_jit = False

    def build(self, feats_shape: Any) -> None:
        """Create the parameters for the channels of the features."""
        channels = feats_shape[-1]
        deviation = float(np.sqrt(2.0 * self.groups / (channels * np.prod(self.kernel_size))))
        shape = (*self.kernel_size, channels // self.groups, self.filters)
        initializer = keras.initializers.RandomNormal(stddev=deviation)
        self.kernel = self.add_weight(shape=shape, initializer=initializer, name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias") if self.use_bias else None
        self.built = True

    def __call__(self, sites: Sites, paired: Sites | None = None) -> Sites:
        """The convolution; Keras takes sites by name alone."""
        given = {} if paired is None else {"paired": paired}
        return super().__call__(sites.feats, sites=sites, **given)

    def _parameters(self) -> dict[str, Any]:
        bias = None if self.bias is None else tf.convert_to_tensor(self.bias)
        return {"w": tf.convert_to_tensor(self.kernel), "bias": bias, "version": self.version}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": list(self.kernel_size),
            "use_bias": self.use_bias,
            "version": self.version,
        }


@keras.saving.register_keras_serializable(package="eqconv")
class SubmanifoldConv(_OnSites):
    """Submanifold convolution with its parameters, see :func:`subm_conv`; called with :class:`Sites`.

    Args:
        filters: K.
        kernel_size: one extent an axis.
        dilation: one number or one for each axis.
        groups: of channels.
        use_bias: whether there is a bias.
        version: as for :func:`subm_conv`.
        **options: of every Keras layer.

    Attributes:
        kernel [k..., C / groups, K]: normal with the deviation sqrt(2 groups / (C volume)). bias [K] or None.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Sequence[int],
        dilation: Any = 1,
        groups: int = 1,
        use_bias: bool = True,
        version: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(filters, kernel_size, use_bias, groups, version, **options)
        self.dilation = per_axis("dilation", len(self.kernel_size), dilation, 1)

    def call(self, feats: tf.Tensor, sites: Sites) -> Sites:
        """The convolution of ``feats`` on the coordinates of ``sites``."""
        return subm_conv(sites.with_feats(feats), dilation=self.dilation, groups=self.groups, **self._parameters())

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {**super().get_config(), "dilation": list(self.dilation), "groups": self.groups}


@keras.saving.register_keras_serializable(package="eqconv")
class SparseConv(_OnSites):
    """Strided sparse convolution with its parameters, see :func:`sparse_conv`; called with :class:`Sites`.

    Args:
        filters: K.
        kernel_size: one extent an axis.
        stride, padding, dilation: one number or one for each axis.
        use_bias: whether there is a bias.
        version: as for :func:`subm_conv`.
        **options: of every Keras layer.

    Attributes:
        kernel [k..., C, K], bias [K] or None: as for :class:`SubmanifoldConv`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Sequence[int],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        use_bias: bool = True,
        version: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(filters, kernel_size, use_bias, 1, version, **options)
        axes = len(self.kernel_size)
        self.geometry: dict[str, Any] = {
            "stride": per_axis("stride", axes, stride, 1),
            "padding": per_axis("padding", axes, padding, 0),
            "dilation": per_axis("dilation", axes, dilation, 1),
        }

    def call(self, feats: tf.Tensor, sites: Sites) -> Sites:
        """The convolution of ``feats`` on the coordinates of ``sites``."""
        return sparse_conv(sites.with_feats(feats), **self.geometry, **self._parameters())

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {**super().get_config(), **{name: list(numbers) for name, numbers in self.geometry.items()}}


@keras.saving.register_keras_serializable(package="eqconv")
class SparseInverseConv(_OnSites):
    """The inverse of a strided sparse convolution, see :func:`sparse_inverse_conv`; called with two :class:`Sites`.

    Args:
        filters: K.
        kernel_size: that of the paired convolution.
        use_bias: whether there is a bias.
        version: as for :func:`subm_conv`.
        **options: of every Keras layer.

    Attributes:
        kernel [k..., C, K], bias [K] or None: as for :class:`SubmanifoldConv`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Sequence[int],
        use_bias: bool = True,
        version: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__(filters, kernel_size, use_bias, 1, version, **options)

    def call(self, feats: tf.Tensor, sites: Sites, paired: Sites) -> Sites:
        """The convolution of ``feats`` on ``sites`` back to the sites that the paired convolution was given."""
        return sparse_inverse_conv(sites.with_feats(feats), paired=paired, **self._parameters())
