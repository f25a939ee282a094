"""The steerable layer for PyTorch: outputs, the filter that is kept, state, export, compilation, precision, errors."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from eqconv_cli.backends.steerable import torch_layers  # noqa: E402
from eqconv_cli.backends.steerable.bias import bias_map  # noqa: E402
from eqconv_cli.backends.steerable.convolution import PADDING_MODES  # noqa: E402
from eqconv_cli.backends.steerable.fields import FieldType, Space  # noqa: E402
from eqconv_cli.backends.steerable.initialisation import he_standard_deviations  # noqa: E402
from eqconv_cli.maths.planar_groups import parse_group  # noqa: E402
from eqconv_cli.torch import R2Conv, SteerableConv2d  # noqa: E402
from tests.steerable.support_layers import correlation, dense_filter  # noqa: E402

pytestmark = pytest.mark.torch

C4, D4 = Space.of("C4"), Space.of("D4")
MIXED = C4.fields("regular+irrep:1+trivial+regular")


def image(fields: FieldType, side: int = 7, dtype: Any = torch.float32) -> Any:
    return torch.randn(2, fields.size, side, side, dtype=dtype, generator=torch.Generator().manual_seed(1))


def make(fields: FieldType = MIXED, kernel_size: int = 3, **options: Any) -> R2Conv:
    torch.manual_seed(0)
    made = R2Conv(fields, fields, kernel_size, **options)
    if made.bias is not None:
        torch.nn.init.normal_(made.bias)
    return made


def expected(layer: R2Conv, x: Any) -> np.ndarray:
    filter = dense_filter(layer.plan, layer.weights.detach().double().numpy())
    bias = None
    if layer.bias is not None:
        bias = bias_map(layer.out_type).matrix() @ layer.bias.detach().double().numpy()
    options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode", "groups")}
    return correlation(x.double().numpy(), filter, bias, **options)


@pytest.fixture
def expansions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Grows with each expansion of a filter."""
    found: list[Any] = []
    plain = torch_layers.expand

    def counted(*arguments: Any, **options: Any) -> Any:
        found.append(arguments)
        return plain(*arguments, **options)

    monkeypatch.setattr(torch_layers, "expand", counted)
    yield found


# Outputs.


@pytest.mark.parametrize("kernel_size", [3, 5, 7, 9, 4, 8])
def test_outputs(kernel_size: int) -> None:
    fields = C4.fields("trivial+irrep:1")
    base, x = make(fields, kernel_size), image(fields, 17)
    for padding, stride, mode in itertools.product((0, 1, 2, 4), (1, 2, 3), PADDING_MODES):
        layer = R2Conv(fields, fields, kernel_size, padding, stride, padding_mode=mode, initialize=False)
        layer.load_state_dict(base.state_dict())
        y = layer(x)
        np.testing.assert_allclose(y.detach().numpy(), expected(layer, x), atol=2e-5)
        assert tuple(y.shape) == layer.output_shape(x.shape)
        layer.eval()
        np.testing.assert_array_equal(layer(x).detach().numpy(), y.detach().numpy())
        exported = layer.export()
        assert exported.padding_mode == mode and not exported.training
        np.testing.assert_allclose(exported(x).detach().numpy(), y.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_pairs(mode: str) -> None:
    layer = make(padding=(0, 2), stride=(2, 1), padding_mode=mode)
    x = image(MIXED, 9)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected(layer, x), atol=1e-5)
    assert layer.output_shape(x.shape) == (2, MIXED.size, 4, 11) == tuple(layer(x).shape)


def test_dilation() -> None:
    plain, wide, scaled = (
        make(C4.regular_fields(1), 5, dilation=dilation, scale_cutoff_with_dilation=scale)
        for dilation, scale in ((1, False), (2, False), (2, True))
    )
    assert len(plain.weights) == len(scaled.weights)
    for layer in (wide, scaled):
        x = image(layer.in_type, 13)
        np.testing.assert_allclose(layer(x).detach().numpy(), expected(layer, x), atol=1e-5)


def test_groups() -> None:
    fields = C4.fields("regular+irrep:1+regular+irrep:1")
    layer, x = make(fields, groups=2, padding=1), image(fields)
    assert layer.filter.shape == (12, 6, 3, 3)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected(layer, x), atol=1e-5)
    np.testing.assert_allclose(layer.export()(x).detach().numpy(), layer(x).detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("space", [C4, D4, Space.of("D4", np.pi / 4), Space.of("C8")], ids=["C4", "D4", "D4'", "C8"])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_turns_by_90_degrees(space: Space, mode: str) -> None:
    given, out = space.fields("regular+irrep:" + ("1,1" if space.group.flips else "1")), space.fields("regular+trivial")
    torch.manual_seed(0)
    layer = R2Conv(given, out, 5, padding=2, stride=2, padding_mode=mode, dtype=torch.float64)
    torch.nn.init.normal_(layer.bias)
    x = image(given, 9, torch.float64)
    turn = space.group.elements[space.group.rotations // 4]

    def turned(f: Any, fields: FieldType) -> Any:
        return torch.einsum("oi,bihw->bohw", torch.from_numpy(fields.matrix(turn)), torch.rot90(f, 1, (2, 3)))

    torch.testing.assert_close(layer(turned(x, given)), turned(layer(x), out), rtol=1e-12, atol=1e-12)


def test_one_by_one_kernels_intertwine() -> None:
    fields = Space.of("C8").regular_fields(1)
    layer = make(fields, 1)
    assert len(layer.weights) == 8
    matrix = layer.filter.detach()[:, :, 0, 0]
    for shift in range(8):
        torch.testing.assert_close(matrix.roll((shift, shift), (0, 1)), matrix)


# Parameters.


def test_initial_weights_have_their_deviations() -> None:
    layer = make()
    unit = torch.empty(len(layer.weights)).normal_(generator=torch.Generator().manual_seed(7))
    layer.reset_parameters(torch.Generator().manual_seed(7))
    for pair, deviations in zip(layer.plan.pairs, he_standard_deviations(layer.plan), strict=True):
        mine = slice(pair.start, pair.start + pair.weights)
        expected = unit[mine].view(pair.shape) * torch.from_numpy(deviations).float()
        torch.testing.assert_close(layer.weights[mine].detach().view(pair.shape), expected)
    assert not layer.bias.any()


def test_without_initial_weights() -> None:
    assert not R2Conv(MIXED, MIXED, 3, initialize=False).weights.any()


def test_without_trivial_irreps_there_is_no_bias() -> None:
    layer = make(C4.fields("irrep:1+irrep:2"))
    assert layer.bias is None and layer.expanded_bias is None and layer.export().bias is None
    assert list(layer.state_dict()) == ["weights"]
    assert make(bias=False).bias is None


def test_state_is_weights_and_bias_in_both_modes() -> None:
    layer, x = make(), image(MIXED)
    for training in (True, False, True):
        layer.train(training)
        layer(x)
        assert list(layer.state_dict()) == ["weights", "bias"]
        other = make(initialize=False).train(not training)
        other.load_state_dict(layer.state_dict())
        torch.testing.assert_close(other(x), layer(x))


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), "torch.save"])
def test_copies(twin: Any, expansions: list[Any]) -> None:
    layer, x = make().eval(), image(MIXED)
    y = layer(x)
    if twin == "torch.save":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = twin(layer)
    torch.testing.assert_close(other(x), y)
    with torch.no_grad():
        other.weights.mul_(2)
        other.bias.mul_(2)
    torch.testing.assert_close(other(x), 2 * y)
    torch.testing.assert_close(layer(x), y)


def test_pickles_hold_no_basis() -> None:
    fields = Space.of("C16").regular_fields(1)
    layer = R2Conv(fields, fields, 9)
    before = len(pickle.dumps(layer))
    layer(image(fields, 9))
    assert layer.plan.pairs[0].basis.dense.nbytes > 1e7
    assert len(pickle.dumps(layer)) < 1.1 * before < 3e5


# The filter that is kept.


def test_training_expands_each_time(expansions: list[Any]) -> None:
    layer, x = make(), image(MIXED)
    layer(x)
    layer(x)
    assert len(expansions) == 2


def test_evaluation_expands_once(expansions: list[Any]) -> None:
    layer, x = make().eval(), image(MIXED)
    y = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), y)
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), y)
    torch.testing.assert_close(layer.filter, layer.filter)
    layer.requires_grad_(False)
    layer(x)
    assert len(expansions) == 1


def test_what_inference_keeps_can_be_differentiated_later(expansions: list[Any]) -> None:
    layer, x = make().eval(), image(MIXED)
    with torch.inference_mode():
        layer(x)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None and layer.weights.grad is not None and len(expansions) == 1


def doubled_in_place(layer: R2Conv) -> R2Conv:
    with torch.no_grad():
        layer.weights.mul_(2)
    return layer


def doubled_by_loading(layer: R2Conv) -> R2Conv:
    layer.load_state_dict({**layer.state_dict(), "weights": 2 * layer.weights.detach()})
    return layer


def doubled_by_assigning(layer: R2Conv) -> R2Conv:
    layer.load_state_dict({**layer.state_dict(), "weights": 2 * layer.weights.detach()}, assign=True)
    return layer


def doubled_by_a_new_parameter(layer: R2Conv) -> R2Conv:
    layer.weights = torch.nn.Parameter(2 * layer.weights.detach())
    return layer


def doubled_by_new_data(layer: R2Conv) -> R2Conv:
    layer.weights.data = 2 * layer.weights.data
    return layer


def doubled_by_an_optimizer(layer: R2Conv) -> R2Conv:
    layer.weights.grad = -layer.weights.detach()
    torch.optim.SGD([layer.weights], lr=1.0).step()
    return layer


def doubled_while_training(layer: R2Conv) -> R2Conv:
    layer.train()
    layer.weights.data.mul_(2)
    return layer.eval()


DOUBLED = [
    doubled_in_place,
    doubled_by_loading,
    doubled_by_assigning,
    doubled_by_a_new_parameter,
    doubled_by_new_data,
    doubled_by_an_optimizer,
    doubled_while_training,
]


@pytest.mark.parametrize("change", DOUBLED)
def test_changed_weights_are_seen(change: Any) -> None:
    layer, x = make(bias=False).eval(), image(MIXED)
    y = layer(x).detach()
    torch.testing.assert_close(change(layer)(x), 2 * y)


def test_another_dtype_is_seen() -> None:
    layer, x = make().eval(), image(MIXED)
    y = layer(x)
    assert layer.double()(x.double()).dtype == torch.float64
    torch.testing.assert_close(layer(x.double()).float(), y)
    halves = layer.bfloat16()(x.bfloat16())
    assert halves.dtype == torch.bfloat16
    torch.testing.assert_close(halves.float(), y, atol=0.15, rtol=0.1)


def test_lent_weights() -> None:
    layer, x = make(bias=False).eval(), image(MIXED)
    y = layer(x)
    lent = torch.func.functional_call(layer, {"weights": 2 * layer.weights}, (x,))
    torch.testing.assert_close(lent, 2 * y)
    torch.testing.assert_close(layer(x), y)
    slope = torch.func.grad(lambda w: torch.func.functional_call(layer, {"weights": w}, (x,)).square().sum())
    (by_tape,) = torch.autograd.grad(layer(x).square().sum(), layer.weights)
    torch.testing.assert_close(slope(layer.weights.detach()), by_tape, rtol=1e-4, atol=1e-3)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer, x = make(bias=False).eval(), image(MIXED)
        y = layer(x)
        layer.weights.mul_(2)
        torch.testing.assert_close(layer(x), 2 * y)


# Gradients.


def test_gradients() -> None:
    fields = C4.regular_fields(2)
    layer = make(fields, padding=1, dtype=torch.float64)
    x = image(fields, 5, torch.float64)[:1].requires_grad_()

    def run(x: Any, weights: Any, bias: Any) -> Any:
        return layer(x)

    assert torch.autograd.gradcheck(run, (x, layer.weights, layer.bias))
    assert torch.autograd.gradgradcheck(run, (x, layer.weights, layer.bias), fast_mode=True)


def test_evaluation_has_the_gradients_of_training() -> None:
    layer, x = make(dtype=torch.float64), image(MIXED, dtype=torch.float64)
    found = []
    for training in (True, False):
        y = layer.train(training)(x)
        first = torch.autograd.grad(y.pow(3).sum(), [layer.weights, layer.bias], create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), [layer.weights, layer.bias])
        found.append([*first, *second])
    torch.testing.assert_close(*found)


# Precision, compilation, export.


@pytest.mark.parametrize("training", [True, False])
def test_autocast(training: bool, expansions: list[Any]) -> None:
    layer, x = make(padding=1).train(training), image(MIXED)
    y = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
        assert layer.filter.dtype == torch.float32
    assert mixed.dtype == torch.bfloat16
    assert all(weights.dtype == torch.float32 for _, weights in expansions)
    exact = torch.nn.functional.conv2d(x.bfloat16(), layer.filter.bfloat16(), layer.expanded_bias.bfloat16(), padding=1)
    torch.testing.assert_close(mixed, exact)
    mixed.float().square().sum().backward()
    assert layer.weights.grad.dtype == torch.float32
    torch.testing.assert_close(layer(x), y)


def test_autocast_leaves_float64_alone() -> None:
    layer, x = make(dtype=torch.float64), image(MIXED, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float64


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_compile(training: bool, mode: str) -> None:
    torch._dynamo.reset()
    layer, x = make(padding=1, padding_mode=mode).train(training), image(MIXED)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    by_tape, by_compiler = (torch.autograd.grad(f(x).square().sum(), layer.weights)[0] for f in (layer, compiled))
    torch.testing.assert_close(by_tape, by_compiler, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        layer.weights.mul_(2)
    torch.testing.assert_close(compiled(x), layer(x))


def test_torch_export() -> None:
    layer, x = make(padding=1).eval(), image(MIXED)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_the_exported_convolution_is_plain_and_its_own(mode: str) -> None:
    layer, x = make(padding=1, padding_mode=mode).eval(), image(MIXED)
    plain = layer.export()
    assert type(plain) is torch.nn.Conv2d and list(plain.state_dict()) == ["weight", "bias"]
    y = plain(x)
    with torch.no_grad():
        layer.weights.mul_(2)
        layer.bias.mul_(2)
    torch.testing.assert_close(plain(x), y)
    with torch.no_grad():
        plain.weight.zero_()
    assert layer.filter.any()
    traced = torch.jit.trace(layer.export(), (x,))
    torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_onnx(mode: str) -> None:
    onnx_reference = pytest.importorskip("onnx.reference")
    onnx = pytest.importorskip("onnx")
    layer, x = make(padding=1, padding_mode=mode).eval(), image(MIXED)
    file = io.BytesIO()
    torch.onnx.export(layer.export(), (x,), file, dynamo=False)
    (y,) = onnx_reference.ReferenceEvaluator(onnx.load_from_string(file.getvalue())).run(None, {"input.1": x.numpy()})
    np.testing.assert_allclose(y, layer(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_torch_export_of_the_plain_convolution(mode: str) -> None:
    layer, x = make(padding=1, padding_mode=mode).eval(), image(MIXED)
    program = torch.export.export(layer.export(), (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


# Errors.


def test_the_alias() -> None:
    assert SteerableConv2d is R2Conv


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": -1}, r"padding=-1: one integer or \(height, width\) is needed, 0 or more"),
        ({"padding": (1, 2, 3)}, r"padding=\(1, 2, 3\)"),
        ({"padding": "same"}, "padding='same'"),
        ({"stride": 0}, "stride=0.* 1 or more"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror': allowed: zeros, reflect, replicate, circular"),
        ({"expansion": "best"}, "expansion='best': allowed: auto, dense"),
        ({"groups": 3}, "groups=3: it must divide the 2 fields"),
        ({"groups": 2.0}, "groups=2.0"),
        ({"kernel_size": 0}, "kernel_size=0"),
        ({"kernel_size": 3.0}, "kernel_size=3.0"),
        ({"kernel_size": (3, 5)}, "kernels that are not square are not supported"),
        ({"dilation": 0}, "dilation=0"),
        ({"rings": [0, 3]}, "rings has the radius 3"),
        ({"sigma": 0}, "sigma=0"),
        ({"sigma": [1, 2, 3]}, "sigma has 3 numbers: expected one, or 2"),
        ({"frequencies_cutoff": "high"}, "frequencies_cutoff='high'"),
        ({"maximum_offset": -1}, "maximum_offset=-1"),
        ({"kernel_size": 2}, r"sigma=0.5, rings=\[0.7\], frequencies_cutoff=2"),
        ({"basis_filter": lambda element: False}, "no kernel of these fields is left on the grid"),
    ],
)
def test_refused_arguments(options: dict[str, Any], message: str) -> None:
    fields = C4.regular_fields(2)
    with pytest.raises((TypeError, ValueError), match=message):
        R2Conv(**{"in_type": fields, "out_type": fields, "kernel_size": 3, **options})


def test_refused_spaces() -> None:
    with pytest.raises(ValueError, match="in_type is of C4 and out_type of C8"):
        R2Conv(C4.regular_fields(1), Space.of("C8").regular_fields(1), 3)
    with pytest.raises(ValueError, match="axis"):
        R2Conv(D4.regular_fields(1), Space.of("D4", 0.0).regular_fields(1), 3)
    with pytest.raises(ValueError, match="allowed: 0, 1, 2"):
        C4.fields("irrep:3")
    with pytest.raises(ValueError, match="no subgroup of C4"):
        C4.fields("quotient:3")
    with pytest.raises(ValueError, match="continuous"):
        Space.of("SO2").regular_fields(1)
    with pytest.raises(ValueError, match="C0"):
        parse_group("C0")


def test_refused_images() -> None:
    layer = make()
    for shape in ((2, 3, 7, 7), (MIXED.size, 7, 7)):
        with pytest.raises(ValueError, match=r"expected \[B, C, H, W\] with C=11, the channels of in_type \(regular"):
            layer(torch.zeros(shape))
    with pytest.raises(ValueError, match="smaller than the kernel"):
        layer.output_shape((1, MIXED.size, 2, 7))


def test_refused_weights() -> None:
    layer = make()
    with pytest.raises(RuntimeError, match="size mismatch for weights"):
        layer.load_state_dict({**layer.state_dict(), "weights": torch.zeros(3)})


def test_even_kernels_warn_beyond_90_degrees() -> None:
    fields = Space.of("C8").regular_fields(1)
    with pytest.warns(UserWarning, match="kernel_size=4 is even"):
        R2Conv(fields, fields, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        R2Conv(C4.regular_fields(1), C4.regular_fields(1), 4)


def test_another_basis_for_another_axis() -> None:
    filters = []
    for axis in (np.pi / 2, np.pi / 4):
        fields = Space.of("D4", axis).regular_fields(1)
        layer = R2Conv(fields, fields, 3, initialize=False)
        torch.nn.init.ones_(layer.weights)
        filters.append(layer.filter)
    assert not torch.allclose(*filters)


def test_recompute_builds_a_basis_of_its_own() -> None:
    fields = C4.regular_fields(1)
    kept, again, anew = (R2Conv(fields, fields, 3, recompute=recompute) for recompute in (False, False, True))
    bases = [layer.plan.pairs[0].basis for layer in (kept, again, anew)]
    assert bases[0] is bases[1] is not bases[2]
    np.testing.assert_array_equal(bases[0].dense, bases[2].dense)
