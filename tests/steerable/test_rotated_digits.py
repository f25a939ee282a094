"""The example of rotated digits: what is learned upright is read at any angle by the equivariant network alone."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "rotated_digits.py"

pytestmark = [pytest.mark.slow, pytest.mark.torch]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The example on one thread: small products on several wait for one another where other tests run beside."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("rotated_digits", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rotated_digits", module)
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)


def test_the_equivariant_network_reads_turned_digits(example: ModuleType) -> None:
    result = example.compare(epochs=8)
    equivariant, plain = result.parameters
    assert abs(equivariant - plain) < 0.1 * equivariant
    assert result.equivariant[0] > 0.8 and result.plain[0] > 0.7
    for angle in (90, 180, 270):
        # Up to rounding in float32, which may move a digit between two equal logits.
        assert abs(result.equivariant[angle] - result.equivariant[0]) < 0.005
    for angle in (45, 90, 135, 180, 270):
        assert result.equivariant[angle] > result.plain[angle] + 0.2
