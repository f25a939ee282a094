"""The compiled kernels as PyTorch operators: against the oracle, and everything PyTorch expects of an operator."""

from __future__ import annotations

import io
import subprocess

import numpy as np
import pytest
import torch

from eqconv_cli import kernels
from eqconv_cli.backends.feature_steered import schedule, torch_fused
from eqconv_cli.backends.feature_steered.options import Fused
from eqconv_cli.backends.feature_steered.reference import reference_gradients
from eqconv_cli.backends.feature_steered.torch_runs import prepare
from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels import doors
from eqconv_cli.torch import (
    Coo,
    FeaStConv,
    FeatureSteeredConvolution,
    MeshSegmentation,
    feature_steered_convolution,
    plan_neighborhood,
)
from tests.feature_steered.support import (
    FLOATS,
    PARAMETERS,
    assert_close,
    assert_gradients,
    oracle,
    random_problem,
    rounded,
)
from tests.feature_steered.support_fused import PROBLEMS, SHAPES, after_relu, check, instance, offset, shaped
from tests.support import needs

built = needs("torch", "cpu")
DTYPES = ["float32", "float64"]


def run(inputs, g=None, device="cpu", settings=None, **options):
    prepared = prepare(inputs, str(inputs["data"].dtype), device, fused=settings or {}, **options)
    output = prepared.download(prepared.run()["output"])
    if g is None:
        return output, {}
    gradients = prepared.run_backward({"output": prepared.upload(g)})
    return output, {name: prepared.download(gradient) for name, gradient in gradients.items()}


def planned(inputs):
    neighbors = Coo(inputs["indices"], torch.from_numpy(inputs["values"]), inputs["dense_shape"])
    return plan_neighborhood(neighbors, inputs.get("sizes"))


def leaves_of(inputs, gradient=True):
    return {n: torch.from_numpy(inputs[n].copy()).requires_grad_(gradient) for n in FLOATS if n in inputs}


def small(**changes):
    return random_problem(0, **{"centres": 9, "edges": 30, **changes})


def operands(own_centres=False, relu=False, gradient=True, dtype=torch.float64):
    """Arguments of the forward operator."""
    torch_fused._operator("cpu")
    inputs = small()
    packed = schedule.pack(planned(inputs).pattern, schedule.TOUCHED)
    x, *rest = (t.detach().to(dtype).requires_grad_(gradient) for t in leaves_of(inputs).values())
    centre = (x.detach() + 1).requires_grad_(gradient) if own_centres else None
    return (x, centre, *rest, torch.from_numpy(packed.words), *packed.sizes, int(relu), 0, "")


def forward(*arguments):
    return torch.ops.eqconv.feature_steered_forward.default(*arguments)


def backward(*arguments):
    return torch.ops.eqconv.feature_steered_backward.default(*arguments)


# Against the oracle.


@built
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_problems(problem, dtype):
    check(run, instance(problem, dtype), dtype)


@built
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[::3], ids=str)
def test_shapes(shape, dtype):
    for first in (False, True):
        inputs = rounded(shaped(*shape), dtype)
        check(run, (inputs, *oracle(inputs)), dtype, transform_data_first=first)


@built
def test_features_far_from_the_origin():
    inputs = offset(300.0)
    check(run, (inputs, *oracle(inputs)), "float32")


@built
@pytest.mark.parametrize("problem", ["ragged", "bipartite", "no edge"])
def test_relu(problem):
    inputs, expected, g, _ = instance(problem, "float64")
    expected, gradients = after_relu(inputs, expected, g, reference_gradients)
    output, found = run(inputs, g, activation="relu")
    assert_close(output, expected, 1e-12)
    assert_gradients(found, gradients, 1e-12)


@built
@pytest.mark.parametrize("problem", ["ragged", "many chunks", "star"])
def test_the_number_of_threads_and_a_second_run_change_no_bit(problem):
    inputs, _, g, _ = instance(problem, "float32")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            output, gradients = run(inputs, g)
            results.append({"output": output, **gradients})
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, array in results[0].items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


@built
@pytest.mark.parametrize("wanted", [*([name] for name in ("data", "values", *PARAMETERS)), ["data", "var_w"], []])
def test_only_wanted_gradients_are_computed(wanted):
    inputs, expected, g, gradients = instance("sorted", "float64")
    tensors = leaves_of(inputs, gradient=False)
    for name in wanted:
        tensors[name].requires_grad_()
    plan = planned(inputs).with_values(tensors["values"])
    y = feature_steered_convolution(tensors["data"], plan, None, *(tensors[n] for n in PARAMETERS), version="fused")
    assert_close(y.detach().numpy(), expected, 1e-12)
    assert y.requires_grad == bool(wanted)
    if wanted:
        y.backward(torch.from_numpy(g))
    found = {name: tensor.grad.numpy() for name, tensor in tensors.items() if tensor.grad is not None}
    assert_gradients(found, {name: gradients[name] for name in wanted}, 1e-12)


@built
def test_unwanted_gradients_are_empty():
    x, _, values, u, v, c, w, b, words, *numbers = operands(gradient=False)
    dy = torch.ones(x.shape[0], b.shape[0], dtype=x.dtype)
    shapes = (x.shape, (0,), values.shape, u.shape, v.shape, c.shape, w.shape, b.shape)
    for bit, shape in enumerate(shapes):
        if bit == 1:
            continue
        found = backward(dy, None, x, None, values, u, v, c, w, words, *numbers[:5], 1 << bit, 0, 0, "")
        assert [tuple(t.shape) for t in found] == [tuple(shape) if k == bit else (0,) for k in range(8)]


# What PyTorch expects of an operator.


@built
@pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])
@pytest.mark.parametrize("own_centres", [False, True], ids=["tied", "own centres"])
def test_opcheck_and_gradcheck(own_centres, relu):
    arguments = operands(own_centres, relu)
    assert set(torch.library.opcheck(forward_overload(), arguments).values()) == {"SUCCESS"}
    assert torch.autograd.gradcheck(lambda *floats: forward(*floats, *arguments[8:]), arguments[:8])


def forward_overload():
    return torch.ops.eqconv.feature_steered_forward.default


@built
@pytest.mark.parametrize("wanted", [0, 1, 0b11111101, 0b00101000])
def test_opcheck_of_the_backward_operator(wanted):
    x, _, *rest = operands(gradient=False)
    y = forward(x, None, *rest)
    words, numbers = rest[6], rest[7:12]
    arguments = (torch.ones_like(y), y, x, None, *rest[:5], words, *numbers, wanted, 1, 0, "")
    overload = torch.ops.eqconv.feature_steered_backward.default
    assert set(torch.library.opcheck(overload, arguments).values()) == {"SUCCESS"}


@built
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradcheck_of_the_operator(padded, activation):
    inputs = random_problem(6, batch=(2,), centres=4, edges=12, channels=2, outputs=2, sizes=[3, 4] if padded else None)
    plan, leaves = planned(inputs), leaves_of(inputs)

    def function(data, values, *parameters):
        weighted = plan.with_values(values)
        return feature_steered_convolution(data, weighted, None, *parameters, version="fused", activation=activation)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()))


@built
@pytest.mark.parametrize("bare", [False, True], ids=["function", "operator"])
def test_a_second_derivative_is_refused(bare):
    inputs = small()
    leaves, plan = leaves_of(inputs), planned(inputs)
    if bare:
        arguments = operands()
        x, y = arguments[0], forward(*arguments)
    else:
        x = leaves["data"]
        y = feature_steered_convolution(x, plan, None, *(leaves[name] for name in PARAMETERS), version="fused")
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="version='fused' has first derivatives only: take another version"):
        gradient.sum().backward()


@built
def test_vmap_and_forward_mode_are_refused():
    inputs = small()
    tensors, plan = leaves_of(inputs, gradient=False), planned(inputs)
    x, parameters = tensors["data"], [tensors[name] for name in PARAMETERS]

    def function(x):
        return feature_steered_convolution(x, plan, None, *parameters, version="fused")

    with pytest.raises(NotImplementedError, match="give data its batch dimensions"):
        torch.vmap(function)(torch.stack([x, x]))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        function(torch.autograd.forward_ad.make_dual(x, x))


@built
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_computes_in_float32(dtype):
    inputs, expected, _, _ = instance("ragged", "float32")
    tensors, plan = leaves_of(inputs, gradient=False), planned(inputs)
    for name in ("data", "var_w"):
        tensors[name] = tensors[name].to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = feature_steered_convolution(tensors["data"], plan, None, *(tensors[n] for n in PARAMETERS), version="fused")
    assert y.dtype == torch.float32
    assert_close(y.detach().numpy(), expected, 1e-5 if dtype == torch.float32 else 0.05)
    y.sum().backward()
    assert tensors["data"].grad.dtype == tensors["var_w"].grad.dtype == dtype
    arguments = [t.bfloat16() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in operands()]
    with torch.autocast("cpu", torch.bfloat16):
        assert forward(*arguments).dtype == torch.float32


@built
@pytest.mark.slow
@pytest.mark.parametrize("version", ["fused", "auto"])
@pytest.mark.parametrize("problem", ["ragged", "bipartite"])
def test_compiled_without_a_break(problem, version):
    def compiled(inputs, g, **options):
        prepared = prepare(inputs, str(inputs["data"].dtype), "cpu", compiled=True, version=version, **options)
        gradients = prepared.run_backward({"output": prepared.upload(g)})
        output = prepared.download(prepared.run()["output"])
        return output, {name: prepared.download(gradient) for name, gradient in gradients.items()}

    check(compiled, instance(problem, "float32"), "float32")


@built
def test_compiled_functions_tell_plans_apart():
    """Two plans of the same sizes: what was packed of the first may not be taken for the second."""
    tensors = leaves_of(small(), gradient=False)
    x, parameters = tensors["data"], [tensors[name] for name in PARAMETERS]

    def function(x, plan):
        return feature_steered_convolution(x, plan, None, *parameters, version="fused", validate="none")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    plans = [planned(small(matrices=2) | {"indices": np.random.default_rng(k).integers(0, 9, (30, 2))}) for k in (1, 2)]
    for plan in (*plans, *plans):
        torch.testing.assert_close(compiled(x, plan), function(x, plan), rtol=0, atol=0)


@built
@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = FeatureSteeredConvolution(2, 4, in_channels=3, version="fused", activation="relu")
            self.plan = planned(rounded(small(), "float32"))

        def forward(self, x):
            return self.layer(x, self.plan)

    model, x = Model(), torch.randn(9, 3)
    exported = torch.export.export(model, (x,), strict=strict)
    torch.testing.assert_close(exported.module()(x), model(x), rtol=0, atol=0)
    stored = io.BytesIO()
    torch.export.save(exported, stored)
    stored.seek(0)
    torch.testing.assert_close(torch.export.load(stored).module()(x), model(x), rtol=0, atol=0)
    # What the export packed under its tracing serves other calls, too.
    model(x).sum().backward()


@built
def test_a_pattern_first_used_in_inference_mode_can_be_trained_with():
    inputs, _, g, gradients = instance("sorted", "float64")
    plan = planned(inputs)
    leaves = leaves_of(inputs)
    parameters = [leaves[name] for name in PARAMETERS]
    with torch.inference_mode():
        feature_steered_convolution(leaves["data"], plan, None, *parameters, version="fused")
    y = feature_steered_convolution(leaves["data"], plan, None, *parameters, version="fused")
    y.backward(torch.from_numpy(g))
    assert_close(leaves["data"].grad.numpy(), gradients["data"], 1e-12)


# Arguments.


@built
def test_arrays_that_are_not_contiguous():
    inputs, expected, g, gradients = instance("sorted", "float64")
    leaves = {name: t.detach().repeat_interleave(2, -1).requires_grad_() for name, t in leaves_of(inputs).items()}
    strided = {name: t[..., ::2] for name, t in leaves.items()}
    plan = planned(inputs).with_values(strided["values"])
    y = feature_steered_convolution(strided["data"], plan, None, *(strided[n] for n in PARAMETERS), version="fused")
    assert_close(y.detach().numpy(), expected, 1e-12)
    y.backward(torch.from_numpy(np.asfortranarray(g)))
    assert_gradients({name: t.grad[..., ::2].numpy() for name, t in leaves.items()}, gradients, 1e-12)
    # A sum has a cotangent whose strides are 0.
    feature_steered_convolution(
        strided["data"], plan, None, *(strided[n] for n in PARAMETERS), version="fused"
    ).sum().backward()


@built
def test_centres_that_share_their_memory_with_the_sources():
    inputs, expected, g, gradients = instance("sorted", "float64")
    leaves = leaves_of(inputs)
    data = (leaves["data"], leaves["data"].detach().requires_grad_())
    y = feature_steered_convolution(data, planned(inputs), None, *(leaves[n] for n in PARAMETERS), version="fused")
    assert_close(y.detach().numpy(), expected, 1e-12)
    by_sources, by_centres = torch.autograd.grad(y, data, torch.from_numpy(g))
    assert_close((by_sources + by_centres).numpy(), gradients["data"], 1e-12)


@built
def test_padding_has_gradient_zero_and_is_not_read():
    inputs, expected, g, gradients = instance("ragged", "float64")
    padding = np.arange(11) >= inputs["sizes"][:, None]
    inputs = {**inputs, "data": np.where(padding[..., None], np.nan, inputs["data"])}
    output, found = run(inputs, g)
    assert_close(output, expected, 1e-12)
    assert (output[padding] == 0).all() and (found["data"][padding] == 0).all()
    assert_close(found["data"], gradients["data"], 1e-12)


@built
def test_dropped_edges_have_gradient_zero():
    inputs = random_problem(1, batch=(2,), centres=6, edges=50)
    values, sizes = torch.from_numpy(inputs["values"]).requires_grad_(), np.array([4, 6])
    plan = plan_neighborhood(
        Coo(inputs["indices"], values, inputs["dense_shape"]), torch.from_numpy(sizes), outside_sizes="drop"
    )
    inside = (inputs["indices"][:, 1:] < sizes[inputs["indices"][:, 0], None]).all(1)
    parameters = [torch.from_numpy(inputs[name]) for name in PARAMETERS]
    y = feature_steered_convolution(torch.from_numpy(inputs["data"]), plan, None, *parameters, version="fused")
    y.sum().backward()
    assert (values.grad.numpy() != 0).tolist() == inside.tolist()


def replaced(arguments, place, value):
    return (*arguments[:place], value, *arguments[place + 1 :])


@built
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(9, 3, dtype=torch.float16), "x has dtype Half: allowed: Float, Double"),
        (3, torch.zeros(3, 3, dtype=torch.float64), r"u has shape \[3, 3\]: expected \[3, 2\]"),
        (4, torch.zeros(3, 2), "v has dtype Float"),
        (2, torch.zeros(31, dtype=torch.float64), "values has 31 entries but the pattern 30"),
        (8, torch.zeros(4, dtype=torch.int64), r"pattern has 4 words: expected \d+"),
        (8, torch.zeros(400, dtype=torch.int32), "pattern has dtype Int"),
        (9, 8, "centre is missing: there are 8 rows and 9 columns"),
        (10, -1, "a size of the pattern is impossible"),
        (13, 0, "packed without the chunks"),
        (16, "gpu", "core is 'gpu': allowed: '', 'emulated'"),
    ],
)
def test_the_operator_checks_its_arguments(place, value, message):
    arguments = operands(gradient=False)
    if place == 2:
        arguments = replaced(arguments, 13, arguments[13] & ~schedule.EDGE_OF_SLOT)
    with pytest.raises(RuntimeError, match=message):
        forward(*replaced(arguments, place, value))


@built
def test_a_gradient_needs_the_lists_of_columns():
    arguments = operands()
    y = forward(*replaced(arguments, 13, arguments[13] & ~schedule.TOUCHED))
    with pytest.raises(RuntimeError, match="packed without the lists of columns"):
        y.sum().backward()


@built
def test_mixed_devices_are_named():
    inputs = rounded(small(), "float32")
    tensors, plan = leaves_of(inputs, gradient=False), planned(inputs)
    on_meta = {**tensors, "var_w": tensors["var_w"].to("meta")}
    with pytest.raises(ValueError, match="var_w is on meta but data is on cpu"):
        feature_steered_convolution(tensors["data"], plan, None, *(on_meta[n] for n in PARAMETERS), version="fused")
    weighted = plan.with_values(plan.values.to("meta"))
    with pytest.raises(ValueError, match="neighbors has values on meta but data is on cpu"):
        feature_steered_convolution(tensors["data"], weighted, None, *(tensors[n] for n in PARAMETERS), version="fused")


@built
@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("data", torch.float16, "data has dtype float16: allowed: float32, float64"),
        ("data", torch.bfloat16, "data has dtype bfloat16: allowed: float32, float64"),
        ("var_w", torch.float64, "var_w has dtype float64 but data has dtype float32"),
    ],
)
def test_dtypes_that_are_refused(name, dtype, message):
    inputs = rounded(small(), "float32")
    tensors, plan = leaves_of(inputs, gradient=False), planned(inputs)
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises(TypeError, match=message):
        feature_steered_convolution(tensors["data"], plan, None, *(tensors[n] for n in PARAMETERS), version="fused")


@built
def test_validate_full_still_wants_finite_values():
    inputs = small()
    inputs["data"][2, 1] = np.nan
    tensors = leaves_of(inputs, gradient=False)
    with pytest.raises(ValueError, match=r"data is nan at \[2, 1\]"):
        feature_steered_convolution(
            tensors["data"], planned(inputs), None, *(tensors[n] for n in PARAMETERS), version="fused", validate="full"
        )


def test_a_device_without_kernels_is_named():
    assert "of type meta" in torch_fused.missing(Fused(), "meta", 1, 1, 1)[0]
    assert "computes on tensors of the cpu" in torch_fused.missing(Fused(core="emulated"), "cuda", 1, 1, 1)[0]


def test_without_kernels_auto_takes_another_version(monkeypatch):

    monkeypatch.setattr(kernels, "missing", lambda target: [f"{target} is not built"])
    doors.missing_kernels.cache_clear()
    inputs, expected, _, _ = instance("sorted", "float64")
    tensors, plan = leaves_of(inputs), planned(inputs)
    try:
        y = feature_steered_convolution(tensors["data"], plan, None, *(tensors[n] for n in PARAMETERS))
        assert_close(y.detach().numpy(), expected, 1e-12)
        with pytest.raises(Unavailable, match="version='fused': torch is not built; cpu is not built"):
            feature_steered_convolution(tensors["data"], plan, None, *(tensors[n] for n in PARAMETERS), version="fused")
    finally:
        doors.missing_kernels.cache_clear()


# Layers.


@built
def test_layers_take_version_and_activation():
    torch.manual_seed(0)
    inputs = rounded(small(), "float32")
    x, plan = torch.from_numpy(inputs["data"]), planned(inputs)
    layer = FeatureSteeredConvolution(3, 5, in_channels=3, version="fused", activation="relu")
    other = FeatureSteeredConvolution(3, 5, in_channels=3, version="v1", activation="relu")
    other.load_state_dict(layer.state_dict())
    for conv in (layer, other):
        conv(x, plan).square().sum().backward()
    torch.testing.assert_close(layer(x, plan), other(x, plan))
    assert (layer(x, plan) >= 0).all()
    for mine, its in zip(layer.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-4, atol=1e-5)
    edges = torch.from_numpy(inputs["indices"].T.copy())
    conv = FeaStConv(3, 5, heads=2, version="fused", activation="relu")
    plain = FeaStConv(3, 5, heads=2, version="v1")
    plain.load_state_dict(conv.state_dict())
    torch.testing.assert_close(conv(x, edges), plain(x, edges).relu())
    with pytest.raises(ValueError, match="activation='gelu' is unknown"):
        FeatureSteeredConvolution(3, 5, activation="gelu")


@built
def test_a_model_trains():
    torch.manual_seed(0)
    inputs = rounded(small(), "float32")
    x, plan = torch.from_numpy(inputs["data"]), planned(inputs)
    model = MeshSegmentation(4, 2, version="fused")
    labels = torch.randint(0, 4, (9,))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(x, plan), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# The emulated device.


@needs("torch", "emulated")
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomics", "deterministic"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", ["ragged", "bipartite", "hard", "no edge", "no vertex", "isolated", "duplicates"])
def test_emulated(problem, dtype, deterministic):
    check(run, instance(problem, dtype), dtype, device="emulated", settings={"deterministic": deterministic})


# The library.


@needs("torch")
def test_no_symbol_of_the_framework_is_left_undefined():
    """C functions of the stable ABI only; a C++ symbol would break with the next release."""
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", kernels.built("torch")], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[-1].split("@")[0] for line in listed.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    assert not [name for name in names if name.startswith("_Z") and any(n in name for n in ("torch", "c10", "2at"))]
