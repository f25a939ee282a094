"""The steerable layer for Keras: outputs, gradients, configurations, precision, export, errors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")

from eqconv_cli.backends.steerable.bias import bias_map  # noqa: E402
from eqconv_cli.backends.steerable.convolution import PADDING_MODES  # noqa: E402
from eqconv_cli.backends.steerable.expressions import expression_of  # noqa: E402
from eqconv_cli.backends.steerable.fields import FieldType, Space  # noqa: E402
from eqconv_cli.backends.steerable.initialisation import he_standard_deviations  # noqa: E402
from eqconv_cli.maths.representations import change_basis, direct_sum, induced, regular  # noqa: E402
from eqconv_cli.tensorflow import SteerableConv2d  # noqa: E402
from tests.steerable.support_layers import correlation, dense_filter  # noqa: E402

pytestmark = pytest.mark.tensorflow

C4 = Space.of("C4")
MIXED = C4.fields("regular+irrep:1+trivial+regular")


def image(fields: FieldType, side: int = 7, dtype: str = "float32") -> np.ndarray:
    """[B, C, H, W]."""
    return np.random.default_rng(1).standard_normal((2, fields.size, side, side)).astype(dtype)


def last(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


def make(fields: FieldType = MIXED, kernel_size: int = 3, **options: Any) -> SteerableConv2d:
    layer = SteerableConv2d(fields, fields, kernel_size, **{"seed": 3, **options})
    first = layer.data_format == "channels_first"
    layer.build((None, fields.size, None, None) if first else (None, None, None, fields.size))
    if layer.bias is not None:
        layer.bias.assign(np.random.default_rng(2).standard_normal(layer.bias.shape))
    return layer


def expected(layer: SteerableConv2d, x: np.ndarray) -> np.ndarray:
    filter = dense_filter(layer.plan, layer.coordinates.numpy().astype(np.float64))
    bias = None if layer.bias is None else bias_map(layer.out_type).matrix() @ layer.bias.numpy().astype(np.float64)
    options = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode", "groups")}
    return correlation(x.astype(np.float64), filter, bias, **options)


@pytest.mark.parametrize("kernel_size", [3, 5, 4])
def test_outputs(kernel_size: int) -> None:
    fields = C4.fields("trivial+irrep:1")
    base, x = make(fields, kernel_size), image(fields, 17)
    for padding, stride, mode in itertools.product((0, 1, 4), (1, 2, 3), PADDING_MODES):
        layer = make(fields, kernel_size, padding=padding, stride=stride, padding_mode=mode)
        layer.set_weights(base.get_weights())
        y = layer(last(x))
        np.testing.assert_allclose(y, last(expected(layer, x)), atol=2e-5)
        assert tuple(y.shape) == layer.compute_output_shape(last(x).shape)


@pytest.mark.parametrize("mode", PADDING_MODES)
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_pairs_and_formats(mode: str, data_format: str) -> None:
    layer = make(padding=(0, 2), stride=(2, 1), padding_mode=mode, data_format=data_format)
    x = image(MIXED, 9)
    given, wanted = (x, expected(layer, x)) if data_format == "channels_first" else (last(x), last(expected(layer, x)))
    np.testing.assert_allclose(layer(given), wanted, atol=1e-5)
    assert layer.compute_output_shape(given.shape) == wanted.shape
    size = MIXED.size
    unknown = (None, size, None, None) if data_format == "channels_first" else (None, None, None, size)
    assert layer.compute_output_shape(unknown) == unknown


def test_groups_and_dilation() -> None:
    fields = C4.fields("regular+irrep:1+regular+irrep:1")
    layer, x = make(fields, groups=2, padding=1, dilation=2), image(fields)
    np.testing.assert_allclose(layer(last(x)), last(expected(layer, x)), atol=1e-5)


def test_initial_weights_have_their_deviations() -> None:
    layer, again, other = (make(C4.regular_fields(40), seed=seed) for seed in (3, 3, 4))
    (pair,) = layer.plan.pairs
    drawn = layer.coordinates.numpy().reshape(pair.shape)
    np.testing.assert_allclose(drawn.std((0, 1)) / he_standard_deviations(layer.plan)[0], 1, atol=0.1)
    np.testing.assert_array_equal(layer.coordinates, again.coordinates)
    assert not np.array_equal(layer.coordinates, other.coordinates)
    assert not make(initialize=False).coordinates.numpy().any()


@pytest.mark.parametrize("traced", [False, True])
def test_gradients(traced: bool) -> None:
    fields = C4.regular_fields(2)
    layer = make(fields, padding=1, dtype="float64")
    x = tf.constant(last(image(fields, 5, "float64")))
    call = tf.function(layer) if traced else layer
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(call(x) ** 2)
    gradients = tape.gradient(loss, [layer.coordinates.value, layer.bias.value, x])
    for variable, gradient in zip((layer.coordinates, layer.bias), gradients, strict=False):
        direction = np.random.default_rng(5).standard_normal(variable.shape)
        kept = variable.numpy()
        sides = []
        for step in (1e-6, -1e-6):
            variable.assign(kept + step * direction)
            sides.append(float(tf.reduce_sum(call(x) ** 2)))
        variable.assign(kept)
        assert float(tf.reduce_sum(gradient * direction)) == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-6)
    assert gradients[2].shape == x.shape


def test_fit_and_saved_models(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((7, 7, MIXED.size)), make(padding=1)])
    model.compile("sgd", "mse")
    x = last(image(MIXED))
    model.fit(x, x, epochs=1, verbose=0)
    assert len(model.weights) == 2
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


@pytest.mark.parametrize(
    ("space", "text"),
    [
        (C4, "2*regular+irrep:1+quotient:2+irrep:0"),
        (Space.of("D4", 0.3), "irrep:1,1+quotient:0,2+quotient:none,2+regular+irrep:0,2"),
        (Space.of("O2"), "irrep:1,3+2*irrep:0,0"),
        (Space.of("flip"), "regular+irrep:1"),
    ],
)
def test_configurations(space: Space, text: str) -> None:
    fields = space.fields(text)
    assert expression_of(fields) == text
    layer = SteerableConv2d(
        fields,
        space.fields(text.split("+")[0]),
        5,
        padding=(1, 2),
        stride=2,
        sigma=[0.1, 0.6, 0.5],
        rings=np.array([0.0, 1.0, 2.0]),
        frequencies_cutoff=2.5,
        padding_mode="reflect",
        bias=False,
        name="mine",
    )
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config()
    assert again.in_type == layer.in_type and again.out_type == layer.out_type and again.name == "mine"
    assert again.plan.sampling == layer.plan.sampling and again.padding == (1, 2)


def test_configurations_that_are_refused() -> None:
    group = C4.group
    turned = change_basis(regular(group), np.diag([1.0, 2.0, 1.0, 1.0]), "stretched")
    for field in (turned, direct_sum([regular(group)] * 2), induced(group, 2, (1,))):
        fields = FieldType(C4, (field,))
        with pytest.raises(ValueError, match="has no expression: only regular, irrep and quotient fields"):
            SteerableConv2d(fields, fields, 3).get_config()
    impostor = FieldType(C4, (change_basis(regular(group), np.diag([1.0, 2.0, 1.0, 1.0]), "regular"),))
    with pytest.raises(ValueError, match="'regular' has no expression"):
        SteerableConv2d(impostor, impostor, 3).get_config()
    with pytest.raises(ValueError, match="frequencies_cutoff is a function"):
        make(frequencies_cutoff=lambda r: 2 * r).get_config()
    with pytest.raises(ValueError, match="basis_filter is a function"):
        make(basis_filter=lambda element: True).get_config()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_precision(policy: str) -> None:
    layer, exact, x = make(dtype=policy), make(), image(MIXED)
    assert layer.coordinates.dtype == ("bfloat16" if policy == "bfloat16" else "float32")
    layer.set_weights(exact.get_weights())
    y = layer(last(x))
    assert y.dtype.name == policy.split("_")[-1]
    np.testing.assert_allclose(tf.cast(y, tf.float32), exact(last(x)), atol=0.15)
    if policy.startswith("mixed"):
        # The filter is rounded once, when it is made.
        kernel, bias = (tf.cast(t, y.dtype) for t in (tf.transpose(exact.filter, [2, 3, 1, 0]), exact.expanded_bias))
        np.testing.assert_array_equal(y, tf.nn.conv2d(tf.cast(last(x), y.dtype), kernel, 1, "VALID") + bias)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_export(data_format: str) -> None:
    layer = make(padding=(0, 2), stride=2, data_format=data_format)
    x = image(MIXED, 9) if data_format == "channels_first" else last(image(MIXED, 9))
    if data_format == "channels_first" and not tf.config.list_physical_devices("GPU"):
        assert layer.export().layers[-1].data_format == "channels_first"
        return
    y, plain = layer(x), layer.export()
    np.testing.assert_allclose(plain(x), y, atol=1e-6)
    layer.coordinates.assign(0 * layer.coordinates)
    np.testing.assert_allclose(plain(x), y, atol=1e-6)
    with pytest.raises(ValueError, match="padding_mode='circular': Keras has layers for 'zeros' only"):
        make(padding_mode="circular").export()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "same"}, "padding='same'"),
        ({"stride": 0}, "stride=0"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror'"),
        ({"data_format": "NHWC"}, "data_format='NHWC': allowed: channels_last, channels_first"),
        ({"expansion": "best"}, "expansion='best'"),
        ({"groups": 3}, "groups=3"),
        ({"kernel_size": (3, 5)}, "not square"),
        ({"kernel_size": 2}, r"sigma=0.5, rings=\[0.7\]"),
    ],
)
def test_refused_arguments(options: dict[str, Any], message: str) -> None:
    fields = C4.regular_fields(2)
    with pytest.raises((TypeError, ValueError), match=message):
        SteerableConv2d(**{"in_type": fields, "out_type": fields, "kernel_size": 3, **options})


def test_refused_images() -> None:
    with pytest.raises(ValueError, match=r"expected \[B, H, W, C\] with C=11"):
        make()(np.zeros((2, 7, 7, 3), np.float32))
    with pytest.raises(ValueError, match=r"expected \[B, C, H, W\] with C=11"):
        make(data_format="channels_first")(np.zeros((2, 7, 7, 11), np.float32))
    with pytest.raises(ValueError, match="a side of 3 pixels allows 3"):
        make(padding=4, padding_mode="circular")(np.zeros((2, 3, 3, 11), np.float32))


def test_without_trivial_irreps_there_is_no_bias() -> None:
    layer = make(C4.fields("irrep:1"))
    assert layer.bias is None and len(layer.variables) == 1
