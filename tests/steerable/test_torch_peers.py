"""Weights of e2cnn and escnn: the packages themselves where they are, and what is read of them."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from eqconv_cli.backends.steerable.bias import bias_map  # noqa: E402
from eqconv_cli.backends.steerable.fields import Space  # noqa: E402
from eqconv_cli.backends.steerable.torch_e2cnn import import_e2cnn  # noqa: E402
from eqconv_cli.errors import Unavailable  # noqa: E402
from eqconv_cli.maths.representations import Representation  # noqa: E402
from eqconv_cli.torch import R2Conv, load_peer_weights  # noqa: E402
from tests.steerable.support_layers import dense_filter  # noqa: E402

pytestmark = pytest.mark.torch

FIELDS = {
    "C8": ("regular+irrep:1+trivial+regular", "quotient:2+regular+irrep:2"),
    "D4": ("irrep:1,1+regular", "regular+irrep:1,1+regular"),
}


def make(group: str = "C8", kernel_size: int = 5, **options: Any) -> R2Conv:
    space = Space.of(group)
    given, out = FIELDS[group]
    return R2Conv(space.fields(given), space.fields(out), kernel_size, **options)


class Peer(torch.nn.Module):
    """As the two libraries name things; each basis is that of a layer, turned by a random invertible matrix or not."""

    def __init__(self, like: R2Conv, turned: bool) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.in_type, self.out_type = like.in_type, like.out_type
        self.weights = torch.nn.Parameter(torch.from_numpy(rng.standard_normal(like.plan.weights_size)))
        self.basisexpansion = torch.nn.Module()
        self.basisexpansion._representations_pairs = [(p.in_name, p.out_name) for p in like.plan.pairs]
        self.basisexpansion._weights_ranges = {}
        blocks, turns = {}, []
        for pair in like.plan.pairs:
            turn = rng.standard_normal((len(pair.basis),) * 2) if turned else np.eye(len(pair.basis))
            names = (pair.in_name, pair.out_name)
            self.basisexpansion._weights_ranges[names] = (pair.start, pair.start + pair.weights)
            blocks[names] = torch.nn.Module()
            basis = torch.from_numpy(np.tensordot(turn, pair.basis.dense, 1)).float()
            blocks[names].register_buffer("sampled_basis", basis)
            self.basisexpansion.add_module(f"block_expansion_{names}", blocks[names])
            mine = self.weights.detach().numpy()[pair.start : pair.start + pair.weights]
            turns.append((mine.reshape(pair.shape) @ turn).ravel())
        self.equal_weights = np.concatenate(turns)
        matrix = bias_map(like.out_type).matrix()
        self.register_buffer("bias_expansion", torch.from_numpy(matrix * (-1 if turned else 1)))
        self.bias = torch.nn.Parameter(torch.from_numpy(rng.standard_normal(matrix.shape[1])))


@pytest.mark.parametrize("turned", [False, True], ids=["same order", "another basis"])
@pytest.mark.parametrize("group", FIELDS)
def test_what_is_read(group: str, turned: bool) -> None:
    layer = make(group, dtype=torch.float64)
    peer = Peer(layer, turned)
    assert load_peer_weights(layer, peer) is layer
    expected = dense_filter(layer.plan, peer.equal_weights)
    np.testing.assert_allclose(layer.filter.detach().numpy(), expected, atol=1e-5)
    torch.testing.assert_close(layer.expanded_bias, peer.bias_expansion @ peer.bias)
    assert turned or torch.equal(layer.weights, peer.weights)


def test_refused_peers() -> None:
    layer = make()
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with pytest.raises(TypeError, match="Linear has no in_type: an R2Conv of e2cnn"):
        load_peer_weights(layer, torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="in_type has the fields irrep_1,1, regular: this layer has regular, irrep_1,"):
        load_peer_weights(layer, Peer(make("D4"), False))
    with pytest.raises(ValueError, match=r"pair irrep_0 -> irrep_2 has a basis of shape \(\d+, 2, 1, 9\)"):
        load_peer_weights(layer, Peer(make(kernel_size=3), False))
    with pytest.raises(ValueError, match="peer has a bias and this layer has none"):
        load_peer_weights(make(bias=False), Peer(layer, False))
    missing = make(basis_filter=lambda element: element.in_irrep != (0,) or element.out_irrep != (2,))
    with pytest.raises(ValueError, match=r"pairs irrep_0 -> irrep_2 that this layer has not, and none for \(none\)"):
        load_peer_weights(missing, Peer(layer, False))
    other = Peer(make(sigma=[0.005, 0.5, 0.4]), False)
    with pytest.raises(ValueError, match="kernels of the pair irrep_0 -> irrep_2 are not those of this layer"):
        load_peer_weights(layer, other)
    for name, tensor in layer.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def e2cnn(monkeypatch: pytest.MonkeyPatch) -> Any:
    try:
        package = import_e2cnn()
    except Unavailable as missing:
        pytest.skip(str(missing))
    gspaces = package.gspaces
    makers = {"C8": lambda: gspaces.Rot2dOnR2(8), "D4": lambda: gspaces.FlipRot2dOnR2(4)}
    return package.nn, makers


def escnn(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Both are for three dimensions only, and hard to install.
    for name in ("lie_learn.representations.SO3.wigner_d", "py3nj"):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = types.ModuleType(".".join(parts[:end]))
            module.wigner_D_matrix = None  # type: ignore[attr-defined]
            if module.__name__ not in sys.modules:
                monkeypatch.setitem(sys.modules, module.__name__, module)
    pytest.importorskip("escnn")
    from escnn import gspaces, nn

    return nn, {"C8": lambda: gspaces.rot2dOnR2(8), "D4": lambda: gspaces.flipRot2dOnR2(4)}


def of_library(space: Any, field: Representation) -> Any:
    if field.name.startswith("irrep"):
        return space.irrep(*field.irreps[0])
    return space.regular_repr if field.name == "regular" else space.quotient_repr(2)


@pytest.mark.parametrize("library", [e2cnn, escnn])
@pytest.mark.parametrize("group", FIELDS)
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.filterwarnings("ignore")
def test_the_libraries_themselves(library: Any, group: str, kernel_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    nn, makers = library(monkeypatch)
    layer, space = make(group, kernel_size), makers[group]()
    fields = []
    for mine in (layer.in_type, layer.out_type):
        fields.append(nn.FieldType(space, [of_library(space, field) for field in mine.representations]))
    # Its cache asks for a method that NumPy 2.3 took away.
    peer = nn.R2Conv(*fields, kernel_size, recompute=True)
    torch.nn.init.normal_(peer.bias)
    load_peer_weights(layer, peer)
    filter, bias = peer.expand_parameters()
    torch.testing.assert_close(layer.filter, filter.view(layer.filter.shape), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.expanded_bias, bias, atol=1e-5, rtol=0)
    for pair in layer.plan.pairs if library is e2cnn else ():
        # e2cnn finds the coordinates of a quotient by optimisation.
        if "quotient[2]" not in (pair.in_name, pair.out_name):
            mine = slice(pair.start, pair.start + pair.weights)
            assert torch.equal(layer.weights[mine], peer.weights[mine]), (pair.in_name, pair.out_name)
