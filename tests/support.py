"""What the tests of all families share: whether the compiled kernels are built."""

from __future__ import annotations

import pytest

from eqconv_cli import kernels


def needs(*targets: str) -> pytest.MarkDecorator:
    """Skips, with the reason, where one of these artefacts is not built."""
    reasons = [reason for target in targets for reason in kernels.missing(target)]
    return pytest.mark.skipif(bool(reasons), reason="; ".join(reasons))
