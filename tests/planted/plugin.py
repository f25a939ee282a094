"""A user's module for ``--plugin`` with one broken variant."""

from tests.planted import faults

VARIANTS = {"feature_steered": [faults.variant("zeros", "closed_form@numpy")]}
