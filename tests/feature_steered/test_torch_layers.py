from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from eqconv_cli.backends.feature_steered.reference import reference, reference_gradients
from eqconv_cli.torch import FeaStConv, FeatureSteeredConvolution, feature_steered_convolution, plan_neighborhood
from tests.feature_steered.support import assert_close, random_problem, tied


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def graph(seed=0, **shape):
    """Data and neighbours of a random problem, as float64 tensors."""
    inputs = random_problem(seed, **shape)
    neighbors = (inputs["indices"], torch.from_numpy(inputs["values"]), inputs["dense_shape"])
    return torch.from_numpy(inputs["data"]), neighbors


# FeatureSteeredConvolution.


@pytest.mark.parametrize("in_channels", [3, None])
@pytest.mark.parametrize("outputs", [5, None])
@pytest.mark.parametrize("invariant", [True, False])
def test_shapes_and_order_of_the_parameters(in_channels, outputs, invariant):
    layer = FeatureSteeredConvolution(4, outputs, invariant, in_channels=in_channels, dtype=torch.float64)
    data, neighbors = graph()
    D = outputs or 3
    assert layer(data, neighbors).shape == (7, D)
    shapes = {name: tuple(parameter.shape) for name, parameter in layer.named_parameters()}
    wanted = {"var_u": (3, 4), "var_v": (3, 4), "var_c": (4,), "var_w": (4, 3, D), "var_b": (D,)}
    if invariant:
        del wanted["var_v"]
    assert list(shapes.items()) == list(wanted.items())
    assert layer.in_channels == 3


def test_defaults():
    layer = FeatureSteeredConvolution()
    data, neighbors = graph()
    assert layer.in_channels is None
    layer.to(torch.float64)(data, neighbors)
    assert layer.var_w.shape == (8, 3, 3) and layer.var_w.dtype == torch.float64
    assert repr(layer) == (
        "FeatureSteeredConvolution(in_channels=3, num_weight_matrices=8, num_output_channels=None, "
        "translation_invariant=True)"
    )


def test_all_parameters_start_truncated_normal():
    layer = FeatureSteeredConvolution(40, 50, False, in_channels=60)
    for parameter in layer.parameters():
        assert 0 < parameter.abs().max() <= 0.2
    # A normal distribution cut at two deviations has 0.8796 of its deviation.
    assert layer.var_w.std().item() == pytest.approx(0.08796, rel=0.01)
    assert abs(layer.var_w.mean().item()) < 1e-3


def test_initializer_sees_every_parameter_in_order():
    seen = []
    layer = FeatureSteeredConvolution(2, 4, False, lambda p: seen.append(tuple(p.shape)), in_channels=3)
    assert seen == [(3, 2), (3, 2), (2,), (2, 3, 4), (4,)]
    layer.initializer = nn.init.ones_
    layer.reset_parameters()
    assert all((parameter == 1).all() for parameter in layer.parameters())
    assert all(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("lazy", [False, True])
def test_a_seed_gives_the_same_parameters_whenever_they_are_built(lazy):
    eager = FeatureSteeredConvolution(in_channels=3, dtype=torch.float64)
    torch.manual_seed(0)
    later = FeatureSteeredConvolution(in_channels=None if lazy else 3, dtype=torch.float64)
    later(*graph())
    assert all(map(torch.equal, eager.parameters(), later.parameters()))


@pytest.mark.parametrize("invariant", [True, False])
def test_layer_is_the_operator_with_its_parameters(invariant):
    layer = FeatureSteeredConvolution(2, 4, invariant, nn.init.normal_, in_channels=3, dtype=torch.float64)
    inputs = random_problem(1, batch=(2,), sizes=[7, 4])
    inputs |= {name: parameter.detach().numpy() for name, parameter in layer.named_parameters()}
    neighbors = (inputs["indices"], torch.from_numpy(inputs["values"]), inputs["dense_shape"])
    output = layer(torch.from_numpy(inputs["data"]), neighbors, inputs["sizes"])
    expected = reference(tied(inputs) if invariant else inputs)["output"]
    assert_close(output.detach().numpy(), expected, 1e-12)


def test_v_follows_u():
    """After a step of the optimiser v is still -u, and u gets both parts of the gradient."""
    layer = FeatureSteeredConvolution(2, 4, True, nn.init.normal_, in_channels=3, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    inputs = random_problem(2)
    neighbors = (inputs["indices"], torch.from_numpy(inputs["values"]), inputs["dense_shape"])
    g = np.random.default_rng(1).normal(size=(7, 4))
    for _ in range(2):
        now = {name: parameter.detach().numpy().copy() for name, parameter in layer.named_parameters()}
        problem = tied({**inputs, **now})
        output = layer(torch.from_numpy(inputs["data"]), neighbors)
        assert_close(output.detach().numpy(), reference(problem)["output"], 1e-12)
        optimizer.zero_grad()
        output.backward(torch.from_numpy(g))
        exact = reference_gradients(problem, {"output": g})
        assert np.abs(exact["var_v"]).max() > 1e-2
        assert_close(layer.var_u.grad.numpy(), exact["var_u"] - exact["var_v"], 1e-12, floor=1e-3)
        optimizer.step()
        assert np.abs(layer.var_u.detach().numpy() - now["var_u"]).max() > 1e-3


def test_bipartite_pair():
    layer = FeatureSteeredConvolution(2, 4, in_channels=3, dtype=torch.float64)
    data, neighbors = graph(3, centres=4, sources=6)
    centre = torch.ones(4, 3, dtype=torch.float64)
    u, c, w, b = layer.parameters()
    expected = feature_steered_convolution((data, centre), neighbors, None, u, -u, c, w, b)
    assert torch.equal(layer((data, centre), neighbors), expected)
    lazy = FeatureSteeredConvolution(2, 4, dtype=torch.float64)
    assert lazy((data, centre), neighbors).shape == (4, 4) and lazy.in_channels == 3


@pytest.mark.parametrize("invariant", [True, False])
@pytest.mark.parametrize("built_before", [True, False])
def test_state_dict_round_trip(invariant, built_before):
    source = FeatureSteeredConvolution(2, 4, invariant, in_channels=3, dtype=torch.float64)
    target = FeatureSteeredConvolution(
        2, 4, invariant, nn.init.zeros_, in_channels=3 if built_before else None, dtype=torch.float64
    )
    torch.save(source.state_dict(), file := io.BytesIO())
    file.seek(0)
    result = target.load_state_dict(torch.load(file))
    assert result.missing_keys == result.unexpected_keys == []
    assert target.in_channels == 3
    assert torch.equal(source(*graph()), target(*graph()))


def test_state_dict_before_the_first_call():
    layer = FeatureSteeredConvolution(2, 4)
    assert list(layer.state_dict()) == ["var_u", "var_c", "var_w", "var_b"]
    assert list(nn.Sequential(layer).state_dict()) == ["0.var_u", "0.var_c", "0.var_w", "0.var_b"]
    other = FeatureSteeredConvolution(2, 4)
    other.load_state_dict(layer.state_dict())
    assert other.in_channels is None
    for twin in (copy.deepcopy(layer), other):
        twin.double()(*graph())
        assert twin.in_channels == 3 and layer.in_channels is None


def test_a_state_of_other_shapes_is_refused():
    built = FeatureSteeredConvolution(2, 4, in_channels=3)
    with pytest.raises(RuntimeError, match="size mismatch for var_u"):
        built.load_state_dict(FeatureSteeredConvolution(2, 4, in_channels=5).state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key.*"var_v"'):
        FeatureSteeredConvolution(2, 4, False).load_state_dict(built.state_dict())


def test_an_optimizer_made_before_the_first_call_trains_the_parameters():
    layer = FeatureSteeredConvolution(2, 4, dtype=torch.float64)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    data, neighbors = graph(4)
    target = torch.cos(torch.arange(28.0, dtype=torch.float64)).reshape(7, 4)
    losses = []
    for _ in range(100):
        loss = (layer(data, neighbors) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("arguments", [{"num_weight_matrices": 0}, {"num_output_channels": -1}, {"in_channels": 0}])
def test_numbers_must_be_positive(arguments):
    (name, value), = arguments.items()  # fmt: skip
    with pytest.raises(ValueError, match=f"{name}={value} is not allowed: at least 1"):
        FeatureSteeredConvolution(**arguments)


@pytest.mark.parametrize("make", [FeatureSteeredConvolution, lambda **options: FeaStConv(3, 4, **options)])
def test_operator_options(make):
    assert make(version="v2", softmax="guarded").operator["version"] == "v2"
    with pytest.raises(ValueError, match="version='v9' is unknown: allowed: "):
        make(version="v9")
    with pytest.raises(TypeError, match="speed is not an option of the layer: allowed: version, "):
        make(speed="high")


@pytest.mark.parametrize("data", [torch.ones(7), torch.ones(7, 3, dtype=torch.int64)])
def test_data_that_does_not_fit_does_not_build_the_layer(data):
    layer = FeatureSteeredConvolution()
    with pytest.raises((TypeError, ValueError), match="data has"):
        layer(data, graph()[1])
    assert layer.in_channels is None


@pytest.mark.parametrize("make", [FeatureSteeredConvolution, lambda **options: FeaStConv(3, 3, **options)])
def test_layers_compile_as_one_graph_and_options_reach_the_operator(make):
    """In one graph there is no v3, which "auto" takes: that it compiles shows that the options arrived."""
    layer = make(version="v1", segment_sum_impl="unsorted").double()
    data, neighbors = graph()
    plan = plan_neighborhood(neighbors)
    layer(data, plan_neighborhood(neighbors))  # gives the parameters their shapes
    compiled = torch.compile(layer, fullgraph=True, backend="eager")(data, plan)
    assert torch.equal(compiled, layer(data, plan))


# FeaStConv.


@pytest.fixture
def peer():
    return pytest.importorskip("torch_geometric.nn").FeaStConv


def pair_of_layers(peer, heads=3, add_self_loops=True, bias=True):
    """Ours with the peer's parameters."""
    theirs = peer(4, 5, heads=heads, add_self_loops=add_self_loops, bias=bias)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    ours = FeaStConv(4, 5, heads=heads, add_self_loops=add_self_loops, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def edges(sources=9, targets=9, count=40):
    """Random edges (source, target), with duplicates and self loops; the last target gets none."""
    index = torch.stack([torch.randint(sources, (count,)), torch.randint(targets - 1, (count,))])
    index[:, 0] = index[:, 1]
    index[:, 2] = 1
    return index


def assert_same(ours, theirs, *arguments):
    a, b = ours(*arguments), theirs(*arguments)
    assert_close(a.detach().numpy(), b.detach().double().numpy(), 1e-6)
    g = torch.randn(b.shape)
    a.backward(g)
    b.backward(g)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad.numpy(), expected[name].grad.double().numpy(), 1e-5)
    ours.zero_grad()
    theirs.zero_grad()


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("add_self_loops", [True, False])
def test_equals_the_peer_on_edge_lists(peer, heads, bias, add_self_loops):
    ours, theirs = pair_of_layers(peer, heads, add_self_loops, bias)
    x, index = torch.randn(9, 4), edges()
    assert_same(ours, theirs, x, index)
    assert_same(ours, theirs, (x, x), index)


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr"])
@pytest.mark.parametrize("add_self_loops", [True, False])
def test_equals_the_peer_on_sparse_matrices(peer, layout, add_self_loops):
    ours, theirs = pair_of_layers(peer, add_self_loops=add_self_loops)
    dense = torch.rand(9, 9) * (torch.rand(9, 9) < 0.3)
    assert_same(ours, theirs, torch.randn(9, 4), getattr(dense, layout)())


def test_duplicates_in_a_sparse_matrix_count(peer):
    ours, _ = pair_of_layers(peer)
    index = edges()
    adjacency = torch.sparse_coo_tensor(index.flip(0), torch.ones(index.shape[1]), (9, 9), check_invariants=False)
    x = torch.randn(9, 4)
    assert_close(ours(x, adjacency).detach().numpy(), ours(x, index).detach().double().numpy(), 1e-6)


@pytest.mark.parametrize("add_self_loops", [True, False])
@pytest.mark.parametrize("targets", [9, 6])
def test_equals_the_peer_on_bipartite_graphs(peer, add_self_loops, targets):
    ours, theirs = pair_of_layers(peer, add_self_loops=add_self_loops)
    assert_same(ours, theirs, (torch.randn(9, 4), torch.randn(targets, 4)), edges(targets=targets))


def test_more_targets_than_sources(peer):
    ours, theirs = pair_of_layers(peer, add_self_loops=False)
    x = (torch.randn(5, 4), torch.randn(8, 4))
    assert_same(ours, theirs, x, edges(5, 8))
    with pytest.raises(ValueError, match="add_self_loops=True gives each of the 8 targets"):
        pair_of_layers(peer)[0](x, edges(5, 8))


def test_weights_travel_in_both_directions(peer):
    ours, theirs = FeaStConv(4, 5, heads=2), peer(4, 5, heads=2)
    theirs.load_state_dict(ours.state_dict())
    assert_same(ours, theirs, torch.randn(9, 4), edges())
    assert set(FeaStConv(4, 5, bias=False).state_dict()) == {"u.weight", "lin.weight", "c"}


def test_initial_parameters_have_the_peers_distribution():
    layer = FeaStConv(64, 300, heads=40)
    for weight in (layer.lin.weight, layer.u.weight):
        assert 0.12 < weight.abs().max() <= 1 / 8
        assert weight.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.03)
    assert layer.bias.std().item() == pytest.approx(0.1, rel=0.2)
    assert 0.05 < layer.c.std().item() < 0.15


@pytest.mark.parametrize("targets", [None, 6])
def test_a_plan_replaces_the_edges(targets):
    layer = FeaStConv(4, 5, heads=2).double()
    index = edges(targets=targets or 9)
    x = torch.randn(9, 4).double()
    data = x if targets is None else (x, torch.randn(targets, 4).double())
    plan = layer.plan(index, 9, targets)
    assert plan.values.dtype == torch.float64
    assert torch.equal(layer(data, plan), layer(data, index))


def test_a_weighted_plan_is_taken_as_it_is():
    layer = FeaStConv(3, 5).double()
    data, neighbors = graph()
    w = layer.lin.weight.T[None]
    zeros = torch.zeros(3, 1).double()
    expected = feature_steered_convolution(data, neighbors, None, zeros, zeros, layer.c, w, layer.bias)
    assert_close(layer(data, plan_neighborhood(neighbors)).detach().numpy(), expected.detach().numpy(), 1e-12)


@pytest.mark.parametrize(
    ("index", "kind", "text"),
    [
        (torch.zeros(2, 3), TypeError, "edge_index has dtype float32"),
        (torch.zeros(3, 2, dtype=torch.int64), ValueError, r"edge_index has shape \[3, 2\]: expected \[2, E\]"),
        (torch.tensor([[0, 9], [1, 1]]), IndexError, r"edge 1 has source 9, outside \[0, 9\)"),
        (torch.tensor([[0, 1], [1, -1]]), IndexError, "edge 1 has target -1"),
    ],
)
def test_edges_that_are_none(index, kind, text):
    with pytest.raises(kind, match=text):
        FeaStConv(4, 5)(torch.randn(9, 4), index)


@pytest.mark.parametrize("arguments", [(0, 5, 1), (4, 0, 1), (4, 5, 0)])
def test_numbers_of_the_peer_layer_must_be_positive(arguments):
    with pytest.raises(ValueError, match="=0 is not allowed: at least 1"):
        FeaStConv(*arguments)
