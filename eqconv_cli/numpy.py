"""eqconv for NumPy: the operators on NumPy arrays and SciPy sparse matrices."""

from eqconv_cli.backends.feature_steered.numpy import (
    feature_steered_convolution,
    feature_steered_convolution_gradients,
    plan_neighborhood,
)
from eqconv_cli.backends.feature_steered.plan import Coo, Csr, NeighborhoodPlan

__all__ = [
    "Coo",
    "Csr",
    "NeighborhoodPlan",
    "feature_steered_convolution",
    "feature_steered_convolution_gradients",
    "plan_neighborhood",
]
