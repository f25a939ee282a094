"""The public face of eqconv for TensorFlow.

Example:
    >>> import tensorflow as tf
    >>> from eqconv_cli.tensorflow import FeatureSteeredConvolution
    >>> FeatureSteeredConvolution(num_output_channels=5)(tf.ones([4, 3]), tf.sparse.eye(4)).shape.as_list()
    [4, 5]
"""

from __future__ import annotations

from eqconv_cli.backends.block_sparse.geometry import BlockParams, block_params, block_params_chain
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.tensorflow_convolution import (
    convert_mask_to_indices,
    mask_conv2d,
    masked_conv2d,
    sparse_conv2d,
    sparse_conv2d_matmul,
    upsample_indices,
)
from eqconv_cli.backends.block_sparse.tensorflow_layers import (
    SparseBlockConv2d,
    SparseConv,
    SparseInverseConv,
    SparseResidualUnit,
    SubmanifoldConv,
)
from eqconv_cli.backends.block_sparse.tensorflow_ops import (
    block_pixels,
    pixel_index,
    reduce_mask,
    resize_mask,
    sparse_gather,
    sparse_scatter,
    sparse_scatter_var,
)
from eqconv_cli.backends.block_sparse.tensorflow_residual import (
    masked_residual_unit,
    residual_unit,
    sparse_residual_unit,
)
from eqconv_cli.backends.block_sparse.tensorflow_sbnet import sbnet_module
from eqconv_cli.backends.block_sparse.tensorflow_sites import (
    Sites,
    sites_from_mask,
    sites_from_points,
    sparse_conv,
    sparse_inverse_conv,
    subm_conv,
    to_dense,
)
from eqconv_cli.backends.block_sparse.units import BatchNorm, ResidualWeights
from eqconv_cli.backends.feature_steered.plan import Coo, Csr, NeighborhoodPlan
from eqconv_cli.backends.feature_steered.tensorflow import feature_steered_convolution, plan_neighborhood
from eqconv_cli.backends.feature_steered.tensorflow_layers import FeaStConv, FeatureSteeredConvolution
from eqconv_cli.backends.feature_steered.tensorflow_models import MeshSegmentation, masked_cross_entropy
from eqconv_cli.backends.steerable.basis import SteerableBasis, build_basis
from eqconv_cli.backends.steerable.fields import FieldType, Space
from eqconv_cli.backends.steerable.plan import Plan, make_plan
from eqconv_cli.backends.steerable.tensorflow_expansion import expand, expand_backward
from eqconv_cli.backends.steerable.tensorflow_layers import SteerableConv2d

__all__ = [
    "BatchNorm",
    "BlockIndex",
    "BlockParams",
    "Coo",
    "Csr",
    "FeaStConv",
    "FeatureSteeredConvolution",
    "FieldType",
    "MeshSegmentation",
    "NeighborhoodPlan",
    "PixelIndex",
    "Plan",
    "ResidualWeights",
    "Sites",
    "Space",
    "SparseBlockConv2d",
    "SparseConv",
    "SparseInverseConv",
    "SparseResidualUnit",
    "SteerableBasis",
    "SteerableConv2d",
    "SubmanifoldConv",
    "block_params",
    "block_params_chain",
    "block_pixels",
    "build_basis",
    "convert_mask_to_indices",
    "expand",
    "expand_backward",
    "feature_steered_convolution",
    "make_plan",
    "mask_conv2d",
    "masked_conv2d",
    "masked_cross_entropy",
    "masked_residual_unit",
    "pixel_index",
    "plan_neighborhood",
    "reduce_mask",
    "residual_unit",
    "resize_mask",
    "sbnet_module",
    "sites_from_mask",
    "sites_from_points",
    "sparse_conv",
    "sparse_conv2d",
    "sparse_conv2d_matmul",
    "sparse_gather",
    "sparse_inverse_conv",
    "sparse_residual_unit",
    "sparse_scatter",
    "sparse_scatter_var",
    "subm_conv",
    "to_dense",
    "upsample_indices",
]
