from __future__ import annotations

import numpy as np
import pytest
import torch

from eqconv_cli.backends.feature_steered.meshes import icosphere, mesh_graph
from eqconv_cli.backends.mesh_files import load_mesh
from eqconv_cli.backends.packaged_data import packaged_file
from eqconv_cli.torch import MeshSegmentation, masked_cross_entropy, plan_neighborhood
from tests.feature_steered.support import random_problem

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def prepared(vertices, triangles):
    """Features [V, 3] of equal spread, the plan, and 16 parts: the cells of 16 vertices far from each other."""
    centred = vertices - vertices.mean(0)
    points = 2 * centred / centred.std(0)
    seeds = [0]
    for _ in range(15):
        seeds.append(int(distances(points, seeds).min(1).argmax()))
    indices, weights = mesh_graph(len(vertices), triangles)
    shape = (len(vertices), len(vertices))
    plan = plan_neighborhood((indices, torch.from_numpy(weights).float(), shape))
    return torch.from_numpy(points).float(), plan, torch.from_numpy(distances(points, seeds).argmin(1))


def distances(points, seeds):
    return ((points[:, None] - points[seeds]) ** 2).sum(-1)


def train(model, features, plan, labels, steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = masked_cross_entropy(model(features, plan), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_learns_a_real_mesh():
    path = packaged_file("pymeshlab", "tests/sample_meshes/cow.obj")
    if path is None:
        pytest.skip("the package pymeshlab is not installed")
    features, plan, labels = prepared(*load_mesh(path))
    losses = train(MeshSegmentation(), features, plan, labels, steps=60)
    assert losses[0] == pytest.approx(np.log(16), rel=0.1)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_learns_a_sphere_with_any_algorithm(version):
    features, plan, labels = prepared(*icosphere(1))
    losses = train(MeshSegmentation(version=version), features, plan, labels, steps=40)
    assert losses[-1] < losses[0] / 2


def test_the_network_of_the_notebook():
    model = MeshSegmentation()
    layers = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters() if parameter.ndim > 1]
    assert layers == [
        ("embed.weight", (16, 3)),
        *[
            entry
            for k, (inputs, outputs) in enumerate([(16, 32), (32, 64), (64, 128)])
            for entry in [
                (f"convolutions.{k}.var_u", (inputs, 8)),
                (f"convolutions.{k}.var_w", (8, inputs, outputs)),
            ]
        ],
        ("hidden.weight", (256, 128)),
        ("classify.weight", (16, 256)),
    ]
    other = MeshSegmentation(5, 4, 6)
    assert other.classify.weight.shape == (5, 256) and other.embed.weight.shape == (16, 6)
    assert other.convolutions[2].var_c.shape == (4,)


def test_order_of_the_layers():
    """The embedding has no activation, the convolutions and the hidden layer have ReLU, the logits have none."""
    model = MeshSegmentation(4, 2)
    features, plan, _ = prepared(*icosphere(0))
    x = model.embed(features)
    for convolution in model.convolutions:
        x = convolution(x, plan).clamp(min=0)
    expected = model.classify(model.hidden(x).clamp(min=0))
    assert torch.equal(model(features, plan), expected)
    assert (model.embed(features) < 0).any()


@pytest.fixture
def batch():
    inputs = random_problem(0, batch=(3,), centres=8, edges=90, sizes=[8, 0, 5])
    neighbors = (inputs["indices"], torch.from_numpy(inputs["values"]).float(), inputs["dense_shape"])
    padding = torch.arange(8) >= torch.tensor([8, 0, 5])[:, None]
    data = torch.from_numpy(inputs["data"]).float()
    data[padding] = float("nan")
    return data, neighbors, inputs["sizes"], padding


def test_padding_is_zero_and_never_read(batch):
    data, neighbors, sizes, padding = batch
    model = MeshSegmentation(4, 2)
    logits = model(data, neighbors, sizes)
    assert (logits[padding] == 0).all() and (logits[~padding] != 0).all()
    labels = torch.full((3, 8), -77)
    labels[~padding] = 1
    masked_cross_entropy(logits, labels, sizes).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert torch.equal(model(data, plan_neighborhood(neighbors, sizes)), logits)


def test_a_batch_equals_its_meshes_one_by_one(batch):
    data, (indices, values, _), sizes, _ = batch
    model = MeshSegmentation(4, 2)
    logits = model(data, batch[1], sizes)
    for block in (0, 2):
        mine, size = indices[:, 0] == block, int(sizes[block])
        alone = model(data[block, :size], (indices[mine, 1:], values[torch.from_numpy(mine)], (size, size)))
        torch.testing.assert_close(logits[block, :size], alone, rtol=1e-5, atol=1e-6)


def test_the_neighbourhood_is_planned_once(batch, monkeypatch):
    from eqconv_cli.backends.feature_steered import torch as operator

    calls = []
    build = operator.build_pattern
    monkeypatch.setattr(operator, "build_pattern", lambda *arguments: calls.append(1) or build(*arguments))
    MeshSegmentation(4, 2)(*batch[:3])
    assert len(calls) == 1


def test_cross_entropy_is_the_mean_over_real_vertices():
    logits = torch.randn(2, 3, 4, dtype=torch.float64)
    labels = torch.tensor([[0, 3, 1], [2, 99, -5]])
    rows = [(0, 0, 0), (0, 1, 3), (0, 2, 1), (1, 0, 2)]
    expected = -sum(logits[b, v].log_softmax(0)[k] for b, v, k in rows) / 4
    for sizes in (torch.tensor([3, 1]), np.array([3, 1]), [3, 1]):
        torch.testing.assert_close(masked_cross_entropy(logits, labels, sizes), expected)
    all_of_them = masked_cross_entropy(logits[:1], labels[:1])
    torch.testing.assert_close(all_of_them, -sum(logits[b, v].log_softmax(0)[k] for b, v, k in rows[:3]) / 3)


def test_cross_entropy_of_no_vertex_is_zero():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = masked_cross_entropy(logits, torch.zeros(2, 3, dtype=torch.int32), [0, 0])
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()


def test_cross_entropy_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"labels has shape \[2, 4\] but logits has \[2, 3, 4\]"):
        masked_cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"sizes has shape \[3\] but logits has batch dimensions \[2\]"):
        masked_cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64), [1, 1, 1])


@pytest.mark.parametrize("name", ["num_classes", "num_weight_matrices", "in_channels"])
def test_numbers_must_be_positive(name):
    with pytest.raises(ValueError, match=f"{name}=0 is not allowed: at least 1"):
        MeshSegmentation(**{name: 0})
