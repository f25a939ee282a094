"""The library for PyTorch: operators, layers and models on ``torch.Tensor``."""

from eqconv_cli.backends.feature_steered.plan import Coo, Csr, NeighborhoodPlan
from eqconv_cli.backends.feature_steered.torch import feature_steered_convolution, plan_neighborhood
from eqconv_cli.backends.feature_steered.torch_layers import FeaStConv, FeatureSteeredConvolution
from eqconv_cli.backends.feature_steered.torch_models import MeshSegmentation, masked_cross_entropy

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
