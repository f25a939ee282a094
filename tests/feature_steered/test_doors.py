"""What ``bench --case overhead`` times: a bare call, the compiled operators, and the operators around them."""

from __future__ import annotations

import pytest

from eqconv_cli.backends.feature_steered import CONVOLUTION, FAMILY
from eqconv_cli.catalog import Variant
from eqconv_cli.engine.oracle import Instance
from eqconv_cli.errors import EqconvError
from tests.feature_steered.support import TOLERANCE, assert_close
from tests.support import needs

CASE = next(case for case in FAMILY.cases if case.name == "overhead")


def marked(variant: Variant) -> object:
    marks = [getattr(pytest.mark, variant.framework)] if variant.framework != "numpy" else []
    targets = ("cpu",) if variant.framework == "numpy" else (variant.framework, "cpu")
    return pytest.param(variant, marks=[*marks, needs(*targets)], id=variant.name)


@pytest.mark.parametrize("variant", [marked(variant) for variant in CASE.variants])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_row_computes_the_same(variant: Variant, dtype: str) -> None:
    instance = Instance(CASE.timed(CONVOLUTION), CASE.problems[0], dtype, 0)
    prepared = variant.bind(instance.fresh_inputs(), dtype, "cpu")
    for _ in range(2):
        found = prepared.download(prepared.run()["output"])
        assert found.dtype == dtype
        assert_close(found, instance.outputs["output"], TOLERANCE[dtype])


@needs("cpu")
def test_a_bare_call_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from eqconv_cli.kernels.library import PreparedCall

    instance = Instance(CASE.timed(CONVOLUTION), CASE.problems[0], "float32", 0)
    prepared = CASE.variants[0].bind(instance.fresh_inputs(), "float32", "cpu")
    monkeypatch.setattr(PreparedCall, "__call__", lambda self: 2)
    with pytest.raises(EqconvError, match="feature_steered_forward on cpu: this build of the core does not compute"):
        prepared.run()
