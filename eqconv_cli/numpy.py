"""eqconv for NumPy: the operators on NumPy arrays and SciPy sparse matrices."""

from eqconv_cli.backends.block_sparse.geometry import BlockParams, block_params, block_params_chain
from eqconv_cli.backends.block_sparse.index import BlockIndex, PixelIndex
from eqconv_cli.backends.block_sparse.numpy_convolution import (
    convert_mask_to_indices,
    mask_conv2d,
    masked_conv2d,
    masked_conv2d_gradients,
    sparse_conv2d,
    sparse_conv2d_gradients,
    sparse_conv2d_matmul,
    upsample_indices,
)
from eqconv_cli.backends.block_sparse.numpy_ops import (
    block_pixels,
    pixel_index,
    reduce_mask,
    resize_mask,
    sparse_gather,
    sparse_gather_gradient,
    sparse_scatter,
    sparse_scatter_gradients,
    sparse_scatter_var,
)
from eqconv_cli.backends.block_sparse.numpy_residual import (
    masked_residual_unit,
    masked_residual_unit_gradients,
    residual_unit,
    sparse_residual_unit,
    sparse_residual_unit_gradients,
)
from eqconv_cli.backends.block_sparse.numpy_sites import (
    Sites,
    sites_from_mask,
    sites_from_points,
    sparse_conv,
    sparse_conv_gradients,
    sparse_inverse_conv,
    sparse_inverse_conv_gradients,
    subm_conv,
    subm_conv_gradients,
    to_dense,
)
from eqconv_cli.backends.block_sparse.units import BatchNorm, ResidualWeights
from eqconv_cli.backends.feature_steered.numpy import (
    feature_steered_convolution,
    feature_steered_convolution_gradients,
    plan_neighborhood,
)
from eqconv_cli.backends.feature_steered.plan import Coo, Csr, NeighborhoodPlan

__all__ = [
    "BatchNorm",
    "BlockIndex",
    "BlockParams",
    "Coo",
    "Csr",
    "NeighborhoodPlan",
    "PixelIndex",
    "ResidualWeights",
    "Sites",
    "block_params",
    "block_params_chain",
    "block_pixels",
    "convert_mask_to_indices",
    "feature_steered_convolution",
    "feature_steered_convolution_gradients",
    "mask_conv2d",
    "masked_conv2d",
    "masked_conv2d_gradients",
    "masked_residual_unit",
    "masked_residual_unit_gradients",
    "pixel_index",
    "plan_neighborhood",
    "reduce_mask",
    "residual_unit",
    "resize_mask",
    "sites_from_mask",
    "sites_from_points",
    "sparse_conv",
    "sparse_conv2d",
    "sparse_conv2d_gradients",
    "sparse_conv2d_matmul",
    "sparse_conv_gradients",
    "sparse_gather",
    "sparse_gather_gradient",
    "sparse_inverse_conv",
    "sparse_inverse_conv_gradients",
    "sparse_residual_unit",
    "sparse_residual_unit_gradients",
    "sparse_scatter",
    "sparse_scatter_gradients",
    "sparse_scatter_var",
    "subm_conv",
    "subm_conv_gradients",
    "to_dense",
    "upsample_indices",
]
