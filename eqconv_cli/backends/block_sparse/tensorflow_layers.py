"""Sparse convolutions as Keras layers: blocks of an image, the residual unit on blocks, and convolutions on sites.

Ren, Pokrovsky, Yang, Urtasun, "SBNet", CVPR 2018; Graham, van der Maaten, arXiv 1706.01307. Kernels are initialised as
in uber-research/sbnet and facebookresearch/SparseConvNet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from eqconv_cli.backends.block_sparse import arguments
from eqconv_cli.backends.block_sparse.geometry import (
    COVERAGES,
    Pair,
    block_params_chain,
    both,
    check_padding,
    pair,
)
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.site_patterns import per_axis
from eqconv_cli.backends.block_sparse.tensorflow_convolution import masked_conv2d, sparse_conv2d
from eqconv_cli.backends.block_sparse.tensorflow_inputs import block_params
from eqconv_cli.backends.block_sparse.tensorflow_ops import reduce_mask
from eqconv_cli.backends.block_sparse.tensorflow_residual import (
    KSIZES,
    masked_residual_unit,
    residual_unit,
    sparse_residual_unit,
)
from eqconv_cli.backends.block_sparse.tensorflow_sites import Sites, sparse_conv, sparse_inverse_conv, subm_conv
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

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"Keras runs on the backend {keras.backend.backend()!r}: these layers need 'tensorflow' (set KERAS_BACKEND or "
        "keras.json before Keras is imported)"
    )


def _fan_out(kh: int, kw: int, filters: int) -> Any:
    """Truncated normal with the deviation sqrt(2 / (kh kw K))."""
    return keras.initializers.TruncatedNormal(stddev=float(np.sqrt(2.0 / (kh * kw * filters))))


def _check_filters(filters: int, name: str = "filters") -> None:
    if filters < 1:
        raise ValueError(f"{name}={filters} is not allowed: at least 1 is needed")


#: Raises ValueError for a size of blocks that a layer cannot have.
Least = Callable[[Pair], None]


class _Pixels:
    """A list of pixels on its way through Keras."""

    def __init__(self, listed: PixelIndex) -> None:
        self.listed = listed


class _Blocks(keras.layers.Layer):  # type: ignore[misc]
    """What layers on blocks have in common: which blocks are active."""

    def __init__(
        self, bsize: Sequence[int] | None, tol: float, avgpool: bool, version: str, least: Least, **options: Any
    ) -> None:
        super().__init__(**options)
        arguments.check_tolerance(tol)
        self.bsize = None if bsize is None else pair("bsize", bsize, 1)
        if self.bsize is not None:
            # Impossible sizes are refused here, not at the first image.
            least(self.bsize)
        self.tol, self.avgpool, self.version = tol, avgpool, version
        # Lists whose length depends on the data have no XLA kernels.
        self.supports_jit = False

    def __call__(self, x: Any, where: Any = None, **options: Any) -> Any:
        """The layer; Keras takes no tuple of both tensors and numbers, as a list of pixels is."""
        given = _Pixels(where) if isinstance(where, PixelIndex) else where
        return super().__call__(x, **({} if where is None else {"where": given}), **options)

    def _size(self) -> Pair:
        if self.bsize is None:
            raise ValueError("bsize=None: with a mask or a list of blocks their size is needed")
        return self.bsize

    def _index(self, where: Any, params: Any) -> BlockIndex:
        if isinstance(where, BlockIndex):
            return where
        return reduce_mask(
            where,
            params.bcount,
            bsize=params.bsize,
            bstride=params.bstrides,
            boffset=params.boffset,
            tol=self.tol,
            avgpool=self.avgpool,
        )

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "bsize": None if self.bsize is None else list(self.bsize),
            "tol": self.tol,
            "avgpool": self.avgpool,
            "version": self.version,
        }


@keras.saving.register_keras_serializable(package="eqconv")
class SparseBlockConv2d(_Blocks):
    """A convolution where a mask, a list of blocks or a list of pixels says.

    Its weights are those of ``keras.layers.Conv2D``: ``set_weights(dense.get_weights())``.

    Args:
        filters: K.
        kernel_size: one number or (height, width).
        bsize: size of the blocks' windows; needed for masks and lists of blocks.
        strides: one number or (height, width).
        padding: "SAME" or "VALID".
        base: "zeros" or "input", what the result is elsewhere.
        use_bias: whether there is a bias.
        activation: None or "relu".
        tol, avgpool: what makes a block active, see :func:`reduce_mask`.
        coverage: see :func:`block_params`.
        kernel_initializer: None: truncated normal with the deviation sqrt(2 / (kh kw K)).
        version: as for :func:`sparse_conv2d` and :func:`masked_conv2d`.
        **options: of every Keras layer.

    Attributes:
        kernel [kh, kw, C, K], bias [K] or None.

    Raises:
        ValueError: an argument is not allowed.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        bsize: Sequence[int] | None = None,
        strides: int | Sequence[int] = 1,
        padding: str = "SAME",
        base: str = "zeros",
        use_bias: bool = True,
        activation: str | None = None,
        tol: float = 0.0,
        avgpool: bool = False,
        coverage: str = "full",
        kernel_initializer: Any = None,
        version: str = "auto",
        **options: Any,
    ) -> None:
        _check_filters(filters)
        check_padding(padding)
        arguments.check_choice("base", base, ("zeros", "input"))
        arguments.check_choice("activation", activation, arguments.ACTIVATIONS)
        arguments.check_choice("coverage", coverage, COVERAGES)
        kernel, step = both("kernel_size", kernel_size), both("strides", strides)

        def least(size: Pair) -> None:
            block_params_chain(size, size, [kernel], step, "VALID")

        super().__init__(bsize, tol, avgpool, version, least, **options)
        self.filters, self.kernel_size, self.strides = filters, kernel, step
        self.padding, self.base, self.coverage = padding, base, coverage
        self.use_bias, self.activation = use_bias, activation
        default = _fan_out(*self.kernel_size, filters)
        self.kernel_initializer = keras.initializers.get(kernel_initializer) if kernel_initializer else default

    def build(self, x_shape: Any) -> None:
        """Create the parameters for the channels of x."""
        shape = (*self.kernel_size, x_shape[-1], self.filters)
        self.kernel = self.add_weight(shape=shape, initializer=self.kernel_initializer, name="kernel")
        self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias") if self.use_bias else None
        self.built = True

    def call(self, x: Any, where: Any) -> tf.Tensor:
        """The convolution.

        Args:
            x: [N, H, W, C].
            where: a mask [N, H, W] or [N, H, W, 1], which chooses blocks; a list of blocks; or one of output pixels.

        Returns:
            [N, Hout, Wout, K].

        Raises:
            TypeError, ValueError, IndexError, Unavailable: see :func:`sparse_conv2d`; also a mask without ``bsize``.
        """
        options: dict[str, Any] = {
            "base": self.base,
            "strides": self.strides,
            "bias": None if self.bias is None else tf.convert_to_tensor(self.bias),
            "activation": self.activation,
            "version": self.version,
        }
        kernel = tf.convert_to_tensor(self.kernel)
        if isinstance(where, _Pixels):
            return masked_conv2d(x, kernel, where.listed, padding=self.padding, **options)
        params = block_params(x, self._size(), [self.kernel_size], self.strides, self.padding, self.coverage)
        return sparse_conv2d(x, kernel, self._index(where, params), params, **options)

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
            "coverage": self.coverage,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="eqconv")
class SparseResidualUnit(_Blocks):
    """The pre-activation bottleneck on blocks, on a list of pixels, or dense: the same parameters serve all three.

    Trained with the statistics of one mode (``bn``) the parameters do not fit another.

    Args:
        bottleneck: M; None takes C / 4.
        bsize: size of the blocks' windows; needed for masks and lists of blocks.
        filters: C_out; with another number than C, or with ``project``, the shortcut is a 1x1 convolution. None: C.
        strides: of the first convolution and the shortcut, one number or (height, width).
        border: see :func:`sparse_residual_unit`.
        bn: statistics while training, "inference", "stack" or "active"; while evaluating the running ones.
        no_activation: leave out the first normalisation and ReLU.
        project: whether the shortcut has weights; None: if the channels or strides make it necessary.
        epsilon: added to the variances.
        decay: of the running mean and variance: each step keeps this share of them, and takes the rest from the batch.
        tol, avgpool: what makes a block active, see :func:`reduce_mask`.
        version: as for :func:`sparse_residual_unit`.
        **options: of every Keras layer.

    Attributes:
        w1 [C, M], w2 [3, 3, M, M], w3 [M, C_out], w_project [C, C_out] or None: truncated normal with the deviation
            sqrt(2 / (kh kw K)).
        norms: "bn1", "bn2" and "bn3" to scale (1), offset (0), mean (0) and variance (1), [C or M] each; mean and
            variance are not trained.

    Raises:
        ValueError: an argument is not allowed.
    """

    def __init__(
        self,
        bottleneck: int | None = None,
        bsize: Sequence[int] | None = None,
        filters: int | None = None,
        strides: int | Sequence[int] = 1,
        border: str = "dense",
        bn: str = "inference",
        no_activation: bool = False,
        project: bool | None = None,
        epsilon: float = EPSILON,
        decay: float = DECAY,
        tol: float = 0.0,
        avgpool: bool = False,
        version: str = "auto",
        **options: Any,
    ) -> None:
        for name, value in (("bottleneck", bottleneck), ("filters", filters)):
            if value is not None:
                _check_filters(value, name)
        arguments.check_choice("border", border, BORDERS)
        arguments.check_choice("bn", bn, STATISTICS)
        check_decay(decay)
        step = both("strides", strides)

        def least(size: Pair) -> None:
            block_params_chain(size, size, KSIZES, step, "VALID")

        super().__init__(bsize, tol, avgpool, version, least, **options)
        self.bottleneck, self.filters, self.strides, self.project = bottleneck, filters, step, project
        self.border, self.bn, self.no_activation = border, bn, no_activation
        self.epsilon, self.decay = epsilon, decay

    def build(self, x_shape: Any) -> None:
        """Create the parameters for the channels of x."""
        channels = x_shape[-1]
        narrow, out = self.bottleneck or max(1, channels // 4), self.filters or channels
        projected = check_projection(self.project, channels, out, self.strides)
        self.w1 = self._matrix("w1", (channels, narrow), 1)
        self.w2 = self._matrix("w2", (3, 3, narrow, narrow), 3)
        self.w3 = self._matrix("w3", (narrow, out), 1)
        self.w_project = self._matrix("w_project", (channels, out), 1) if projected else None
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

    def call(self, x: Any, where: Any = None, training: bool = False) -> tf.Tensor:
        """The unit.

        Args:
            x: [N, H, W, C].
            where: a mask [N, H, W] or [N, H, W, 1], which chooses blocks; a list of blocks; a list of pixels, which
                takes the running statistics; or None for the whole image, with the running statistics.
            training: whether ``bn`` computes statistics, and moves the running ones.

        Returns:
            [N, ceil(H / stride), ceil(W / stride), C_out].

        Raises:
            TypeError, ValueError, IndexError, Unavailable: see :func:`sparse_residual_unit`; also a mask without
                ``bsize``, and a list of pixels with strides.
        """
        if where is None:
            return residual_unit(x, self.unit, strides=self.strides, epsilon=self.epsilon)
        options: dict[str, Any] = {"border": self.border, "epsilon": self.epsilon}
        if isinstance(where, _Pixels):
            if self.strides != (1, 1):
                raise ValueError(f"strides={self.strides}: at a list of pixels only stride 1 is possible")
            version = "auto" if self.version == "blocks" else self.version
            return masked_residual_unit(x, where.listed, self.unit, **options, version=version)
        params = block_params(x, self._size(), KSIZES, self.strides)
        statistics: list[tuple[tf.Tensor, tf.Tensor]] = []
        options |= {"bn": self.bn if training else "inference", "strides": self.strides, "statistics": statistics}
        y = sparse_residual_unit(x, self._index(where, params), params, self.unit, **options, version=self.version)
        for (_, _, *running), found in zip(self.norms.values(), statistics, strict=False):
            for variable, value in zip(running, found, strict=True):
                variable.assign(variable * self.decay + value * (1 - self.decay))
        return y

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, serialised."""
        return {
            **super().get_config(),
            "bottleneck": self.bottleneck,
            "filters": self.filters,
            "strides": list(self.strides),
            "border": self.border,
            "bn": self.bn,
            "no_activation": self.no_activation,
            "project": self.project,
            "epsilon": self.epsilon,
            "decay": self.decay,
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
