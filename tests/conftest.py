"""Settings shared by all tests: a reproducible hypothesis profile for CI."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Set by parallel runners of the tests; tables in pipes are as wide as their contents only without it.
os.environ.pop("COLUMNS", None)

settings.register_profile(
    "eqconv", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("eqconv")
