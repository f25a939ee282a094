"""The mesh-segmentation network of the tensorflow/graphics notebook (mesh_segmentation_demo), and its loss."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from eqconv_cli.backends.feature_steered.tensorflow_layers import (
    FeatureSteeredConvolution,
    TakesNeighbors,
    channels_of,
    check_positive,
    split_options,
    unpack,
)
from eqconv_cli.backends.feature_steered.tensorflow_neighbors import plan_neighborhood, planned_edges
from eqconv_cli.backends.feature_steered.tensorflow_sparse import Edges

#: Channels of the first linear layer, and of the three convolutions after it.
EMBEDDED = 16
CONVOLVED = (32, 64, 128)
HIDDEN = 256


@keras.saving.register_keras_serializable(package="eqconv")
class MeshSegmentation(TakesNeighbors, keras.Model):  # type: ignore[misc]
    """Assigns each vertex of a mesh to one of several classes.

    Linear C → 16; three translation-invariant feature-steered convolutions 16 → 32 → 64 → 128 and linear 128 → 256,
    each followed by ReLU; linear 256 → classes. Nothing is pooled.

    Args:
        num_classes: number of classes K.
        num_weight_matrices: M of each convolution.
        **options: options of :func:`feature_steered_convolution`, and of every Keras model.

    Raises:
        ValueError: a number is not positive, or an option is unknown.
    """

    def __init__(self, num_classes: int = 16, num_weight_matrices: int = 8, **options: Any) -> None:
        check_positive("num_classes", num_classes)
        operator, rest = split_options(options)
        super().__init__(**rest)
        self.num_classes, self.num_weight_matrices, self.operator = num_classes, num_weight_matrices, operator
        self.embed = keras.layers.Dense(EMBEDDED, dtype=self.dtype_policy)
        self.convolutions = [
            FeatureSteeredConvolution(
                num_weight_matrices, outputs, dtype=self.dtype_policy, **{**operator, "activation": "relu"}
            )
            for outputs in CONVOLVED
        ]
        self.hidden = keras.layers.Dense(HIDDEN, activation="relu", dtype=self.dtype_policy)
        self.classify = keras.layers.Dense(num_classes, dtype=self.dtype_policy)

    def build(self, inputs_shape: Any, neighbors_shape: Any = None, sizes_shape: Any = None) -> None:
        """Create the parameters of all layers for the channels of ``inputs_shape``."""
        layers = (self.embed, *self.convolutions, self.hidden, self.classify)
        widths = (channels_of(inputs_shape), EMBEDDED, *CONVOLVED, HIDDEN)
        for layer, width in zip(layers, widths, strict=True):
            layer.build((None, width))
        self.built = True

    def call(self, inputs: Any, neighbors: Any = None, sizes: Any = None) -> tf.Tensor:
        """The logits [A1, ..., An, V, K]; rows beyond ``sizes`` are not read and come out as 0.

        Args:
            inputs: data [A1, ..., An, V, C] (coordinates should be centred on their mean), or a list
                [data, neighbors, sizes].
            neighbors: as for :func:`feature_steered_convolution`; planned once for the three convolutions, or already.
            sizes: integer [A1, ..., An] or None.

        Raises:
            TypeError, ValueError, IndexError: see :func:`feature_steered_convolution`.
        """
        data, neighbors, sizes = unpack(inputs, neighbors, sizes)
        plan = plan_neighborhood(neighbors, sizes)
        real = _real_vertices(planned_edges(plan, data.device), data.dtype)
        # A linear layer's gradient multiplies rows of zeros with the padding, which may hold NaN.
        x = self.embed(data if real is None else tf.where(real, data, tf.zeros_like(data)))
        for convolution in self.convolutions:
            x = convolution(x, plan)
        logits = self.classify(self.hidden(x))
        return logits if real is None else tf.where(real, logits, tf.zeros_like(logits))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "num_weight_matrices": self.num_weight_matrices,
            **self.operator,
        }


def masked_cross_entropy(logits: tf.Tensor, labels: Any, sizes: Any = None) -> tf.Tensor:
    """Softmax cross-entropy, averaged over the vertices that ``sizes`` keeps.

    Args:
        logits: [A1, ..., An, V, K] floating-point.
        labels: whole numbers [A1, ..., An, V], also as floating-point, which is how Keras hands labels to a loss; what
            stands beyond ``sizes`` is not read.
        sizes: integer [A1, ..., An] or None for all vertices.

    Returns:
        A scalar; 0 when no vertex is left.

    Raises:
        ValueError: the shapes do not fit.
    """
    labels = tf.convert_to_tensor(labels)
    if not labels.shape.is_compatible_with(logits.shape[:-1]):
        raise ValueError(
            f"labels has shape {labels.shape} but logits has {logits.shape}: "
            f"expected labels of shape {logits.shape[:-1]}"
        )
    if sizes is None:
        real = tf.ones_like(labels, tf.bool)
    else:
        sizes = tf.convert_to_tensor(sizes)
        if not sizes.shape.is_compatible_with(labels.shape[:-1]):
            raise ValueError(f"sizes has shape {sizes.shape} but logits has batch dimensions {labels.shape[:-1]}")
        real = tf.sequence_mask(sizes, tf.shape(labels)[-1])
    # Both sides are replaced where nothing is to be read: a label there may be no class, a logit may be NaN.
    labels = tf.cast(tf.where(real, labels, tf.zeros_like(labels)), tf.int64)
    logits = tf.where(real[..., None], logits, tf.zeros_like(logits))
    weights = tf.cast(real, logits.dtype)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits) * weights
    return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.reduce_sum(weights))


def _real_vertices(edges: Edges, dtype: tf.DType) -> tf.Tensor | None:
    """Which vertices ``sizes`` keeps [A1, ..., An, V, 1]; None when it keeps all."""
    if edges.kept is None:
        return None
    vertices = tf.cast(edges.blocks * edges.extents[-2], edges.kept.dtype)
    flat = tf.scatter_nd(edges.kept[:, None], tf.ones(tf.shape(edges.kept), dtype), vertices[None])
    return tf.reshape(flat, [*edges.extents[:-1], 1]) > 0
