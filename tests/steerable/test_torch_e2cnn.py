"""The filters of e2cnn itself, for the same weights: elements, their order and the layout of the weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sympy")

from eqconv_cli.backends.steerable import problem_arrays  # noqa: E402
from eqconv_cli.backends.steerable.problem_arrays import Described  # noqa: E402
from eqconv_cli.backends.steerable.problems import expansion  # noqa: E402
from eqconv_cli.backends.steerable.torch_e2cnn import e2cnn, import_e2cnn  # noqa: E402
from eqconv_cli.errors import Unavailable  # noqa: E402
from eqconv_cli.torch import expand  # noqa: E402

pytestmark = pytest.mark.torch

IRREPS = "irrep:0+irrep:1+irrep:2+irrep:1"


@pytest.fixture(autouse=True)
def installed() -> None:
    try:
        import_e2cnn()
    except Unavailable as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize(
    "layer",
    [
        Described("C8", "irrep:1+regular+trivial+irrep:3+regular", "regular+irrep:2+trivial+regular+irrep:4", 7),
        Described("C8", "2*regular", "regular", 3, dilation=2),
        Described("C6", "regular", "2*regular", 5, frequencies_cutoff="3"),
        Described("D4", "regular+irrep:1,1", "regular+irrep:1,0+irrep:0,2", 5, axis="1/3"),
        Described("D8", "regular", "regular", 5),
        Described("flip", "regular+trivial", "regular", 7, axis="1/4"),
        Described("SO(2)", IRREPS, f"{IRREPS}+irrep:3", 5),
        Described("O(2)", "irrep:0,0+irrep:1,0+irrep:1,1", "irrep:1,1+irrep:1,3+irrep:0,0", 7, axis="2/5"),
        Described("C1", "2*trivial", "3*trivial", 3),
    ],
    ids=lambda layer: f"{layer.group}-{layer.axis.replace('/', 'of')}",
)
def test_same_filter(layer: Described) -> None:
    inputs = expansion(0, layer)
    plan = problem_arrays.plan_of(inputs)
    theirs = e2cnn(inputs, "float32", "cpu").run()["filter"]
    ours = expand(plan, torch.from_numpy(inputs["weights"]), algorithm="dense")
    np.testing.assert_allclose(theirs.numpy(), ours.numpy(), atol=2e-6)


def test_what_it_cannot_have() -> None:
    with pytest.raises(Unavailable, match=r"the field quotient\[2\] has other coordinates there"):
        e2cnn(expansion(0, Described("C4", "quotient:2", "regular", 3)), "float32", "cpu")
    with pytest.raises(Unavailable, match="in float32, not float64"):
        e2cnn(expansion(0, Described("C4", "regular", "regular", 3)), "float64", "cpu")
