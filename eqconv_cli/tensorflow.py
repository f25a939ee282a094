"""The public face of eqconv for TensorFlow.

Example:
    >>> import tensorflow as tf
    >>> from eqconv_cli.tensorflow import FeatureSteeredConvolution
    >>> FeatureSteeredConvolution(num_output_channels=5)(tf.ones([4, 3]), tf.sparse.eye(4)).shape.as_list()
    [4, 5]
"""

from __future__ import annotations

from eqconv_cli.backends.feature_steered.plan import Coo, Csr, NeighborhoodPlan
from eqconv_cli.backends.feature_steered.tensorflow import feature_steered_convolution, plan_neighborhood
from eqconv_cli.backends.feature_steered.tensorflow_layers import FeaStConv, FeatureSteeredConvolution
from eqconv_cli.backends.feature_steered.tensorflow_models import MeshSegmentation, masked_cross_entropy

__all__ = [
    "Coo",
    "Csr",
    "FeaStConv",
    "FeatureSteeredConvolution",
    "MeshSegmentation",
    "NeighborhoodPlan",
    "feature_steered_convolution",
    "masked_cross_entropy",
    "plan_neighborhood",
]
