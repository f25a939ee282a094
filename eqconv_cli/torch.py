"""The library for PyTorch: operators, layers and models on ``torch.Tensor``."""

from eqconv_cli.backends.block_sparse.geometry import BlockParams, block_params, block_params_chain
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.torch_convolution import (
    convert_mask_to_indices,
    mask_conv2d,
    masked_conv2d,
    sparse_conv2d,
    sparse_conv2d_matmul,
    upsample_indices,
)
from eqconv_cli.backends.block_sparse.torch_layers import (
    SparseBlockConv2d,
    SparseConv,
    SparseInverseConv,
    SparseResidualUnit,
    SubmanifoldConv,
)
from eqconv_cli.backends.block_sparse.torch_ops import (
    block_pixels,
    pixel_index,
    reduce_mask,
    resize_mask,
    sparse_gather,
    sparse_scatter,
    sparse_scatter_var,
)
from eqconv_cli.backends.block_sparse.torch_residual import masked_residual_unit, residual_unit, sparse_residual_unit
from eqconv_cli.backends.block_sparse.torch_sites import (
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
from eqconv_cli.backends.feature_steered.torch import feature_steered_convolution, plan_neighborhood
from eqconv_cli.backends.feature_steered.torch_layers import FeaStConv, FeatureSteeredConvolution
from eqconv_cli.backends.feature_steered.torch_models import MeshSegmentation, masked_cross_entropy
from eqconv_cli.backends.steerable.fields import FieldType, Space
from eqconv_cli.backends.steerable.torch_layers import R2Conv, SteerableConv2d

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
    "R2Conv",
    "ResidualWeights",
    "Sites",
    "Space",
    "SparseBlockConv2d",
    "SparseConv",
    "SparseInverseConv",
    "SparseResidualUnit",
    "SteerableConv2d",
    "SubmanifoldConv",
    "block_params",
    "block_params_chain",
    "block_pixels",
    "convert_mask_to_indices",
    "feature_steered_convolution",
    "mask_conv2d",
    "masked_conv2d",
    "masked_cross_entropy",
    "masked_residual_unit",
    "pixel_index",
    "plan_neighborhood",
    "reduce_mask",
    "residual_unit",
    "resize_mask",
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
