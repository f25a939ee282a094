"""The compiled kernels as TensorFlow operators: eagerly, traced with known and unknown shapes, in Keras."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from eqconv_cli import kernels
from eqconv_cli.backends.feature_steered import schedule, tensorflow_fused
from eqconv_cli.backends.feature_steered.reference import reference_gradients
from eqconv_cli.backends.feature_steered.tensorflow_runs import prepare
from eqconv_cli.backends.feature_steered.tensorflow_symbolic import build_symbolic_pattern
from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels import doors, tensorflow_doors
from eqconv_cli.tensorflow import (
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

pytestmark = pytest.mark.tensorflow
built = needs("tensorflow", "cpu")
DTYPES = ["float32", "float64"]


def run(inputs, g=None, device="cpu", settings=None, mode="eager", **options):
    prepared = prepare(inputs, str(inputs["data"].dtype), device, mode, fused=settings or {}, **options)
    output = prepared.download(prepared.run()["output"])
    if g is None:
        return output, {}
    gradients = prepared.run_backward({"output": prepared.upload(g)})
    return output, {name: prepared.download(gradient) for name, gradient in gradients.items()}


def tensors_of(inputs):
    return {name: tf.constant(inputs[name]) for name in FLOATS if name in inputs}


def planned(inputs, **options):
    neighbors = Coo(inputs["indices"], tf.constant(inputs["values"]), inputs["dense_shape"])
    return plan_neighborhood(neighbors, inputs.get("sizes"), **options)


def small():
    return random_problem(0, centres=9, edges=30)


def convolve(inputs, version="fused", **options):
    tensors = tensors_of(inputs)
    parameters = (tensors[name] for name in PARAMETERS)
    return feature_steered_convolution(tensors["data"], planned(inputs), None, *parameters, version=version, **options)


# Against the oracle.


@built
@pytest.mark.parametrize("mode", ["eager", "function"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_problems(problem, dtype, mode):
    check(run, instance(problem, dtype), dtype, mode=mode)


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
@pytest.mark.parametrize("mode", ["eager", "function"])
@pytest.mark.parametrize("problem", ["ragged", "bipartite", "no edge"])
def test_relu(problem, mode):
    inputs, expected, g, _ = instance(problem, "float64")
    expected, gradients = after_relu(inputs, expected, g, reference_gradients)
    output, found = run(inputs, g, activation="relu", mode=mode)
    assert_close(output, expected, 1e-12)
    assert_gradients(found, gradients, 1e-12)


@built
@pytest.mark.parametrize("problem", ["ragged", "many chunks", "star"])
def test_the_number_of_threads_and_a_second_run_change_no_bit(problem):
    inputs, _, g, _ = instance(problem, "float32")
    results = []
    for threads in (1, 2, 3, 1):
        output, gradients = run(inputs, g, settings={"threads": threads})
        results.append({"output": output, **gradients})
    for other in results[1:]:
        for name, array in results[0].items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


@built
@pytest.mark.parametrize("wanted", [*([name] for name in ("data", "values", *PARAMETERS)), ["data", "var_w"]])
def test_only_wanted_gradients_are_computed(wanted, monkeypatch):
    inputs, _, g, gradients = instance("sorted", "float64")
    asked = []
    module = tensorflow_doors.library()
    backward = module.eqconv_feature_steered_backward

    def spy(*arguments, **attributes):
        asked.append(attributes["wanted"])
        return backward(*arguments, **attributes)

    monkeypatch.setattr(module, "eqconv_feature_steered_backward", spy)
    tensors, plan = tensors_of(inputs), planned(inputs)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        leaves = [tensors[name] for name in wanted]
        tape.watch(leaves)
        y = feature_steered_convolution(
            tensors["data"],
            plan.with_values(tensors["values"]),
            None,
            *(tensors[name] for name in PARAMETERS),
            version="fused",
        )
    found = tape.gradient(y, leaves, output_gradients=tf.constant(g))
    assert_gradients(
        {name: gradient.numpy() for name, gradient in zip(wanted, found, strict=True)},
        {name: gradients[name] for name in wanted},
        1e-12,
    )
    order = ("data", "data_out", "values", *PARAMETERS)
    assert asked == [sum(1 << order.index(name) for name in wanted)]


@built
def test_numerical_gradients():
    inputs = random_problem(6, batch=(2,), centres=4, edges=12, channels=2, outputs=2, sizes=[3, 4])
    tensors, plan = tensors_of(inputs), planned(inputs)

    def function(data, values, *parameters):
        return feature_steered_convolution(
            data, plan.with_values(values), None, *parameters, version="fused", activation="relu"
        )

    analytic, numeric = tf.test.compute_gradient(function, list(tensors.values()), delta=1e-6)
    for mine, its in zip(analytic, numeric, strict=True):
        np.testing.assert_allclose(mine, its, rtol=0, atol=1e-7)


# Unknown shapes.


def unknown(array):
    return tf.TensorSpec([None] * array.ndim, array.dtype)


@built
@pytest.mark.parametrize("problem", [name for name in PROBLEMS if name not in ("hard", "harder", "star")])
def test_everything_unknown_while_tracing(problem):
    inputs, expected, g, gradients = instance(problem, "float64")
    names = [name for name in FLOATS if name in inputs]
    sizes = inputs.get("sizes")

    def function(floats, indices, shape, sizes, g):
        with tf.GradientTape() as tape:
            tape.watch(floats)
            data = (floats["data"], floats["data_out"]) if "data_out" in floats else floats["data"]
            neighbors = Coo(indices, floats["values"], shape)
            parameters = (floats[name] for name in PARAMETERS)
            y = feature_steered_convolution(data, neighbors, sizes, *parameters, version="fused", validate="full")
        return y, tape.gradient(y, floats, output_gradients=g)

    floats = {name: inputs[name] for name in names}
    specs = [{name: unknown(array) for name, array in floats.items()}, unknown(inputs["indices"])]
    shape_spec = tf.TensorSpec(inputs["dense_shape"].shape, tf.int64)
    sizes_spec = tf.TensorSpec([], tf.int64) if sizes is None else unknown(sizes)

    @tf.function(autograph=False, input_signature=[*specs, shape_spec, sizes_spec, unknown(g)])
    def traced(floats, indices, shape, given_sizes, g):
        return function(floats, indices, shape, None if sizes is None else given_sizes, g)

    y, found = traced(
        {name: tf.constant(array) for name, array in floats.items()},
        tf.constant(inputs["indices"]),
        tf.constant(inputs["dense_shape"]),
        tf.constant(0 if sizes is None else sizes, tf.int64),
        tf.constant(g),
    )
    assert_close(y.numpy(), expected, 1e-12)
    assert_gradients({name: gradient.numpy() for name, gradient in found.items()}, gradients, 1e-12)


@pytest.mark.parametrize("problem", [name for name in PROBLEMS if name not in ("hard", "harder")])
def test_packing_in_a_traced_function_is_packing_with_numpy(problem):
    inputs = PROBLEMS[problem]()
    given = tf.SparseTensor(inputs["indices"], inputs["values"], inputs["dense_shape"])
    sizes = tf.constant(inputs.get("sizes", 0), tf.int64)
    parts = []

    @tf.function(autograph=False)
    def traced(neighbors, sizes):
        edges = build_symbolic_pattern(neighbors, sizes if "sizes" in inputs else None, "error").edges
        packed = tensorflow_fused.pack_symbolic(edges, schedule.CHUNKS)
        parts.append(packed.parts)
        cols = tf.cast(edges.cols, tf.int64)
        added = tensorflow_fused._with_touched(packed.words, packed.layout, packed.parts, cols)
        return packed.words, packed.layout, *added[:2]

    words, layout, all_words, all_layout = traced(given, sizes)
    pattern = planned(inputs).pattern
    pattern = pattern if pattern.edge_of_slot is not None else _with_slots(pattern)
    few, all_ = schedule.pack(pattern, schedule.CHUNKS), schedule.pack(pattern, schedule.TOUCHED)
    assert parts == [few.parts]
    np.testing.assert_array_equal(words, few.words)
    np.testing.assert_array_equal(layout, few.sizes[:4])
    np.testing.assert_array_equal(all_words, all_.words)
    np.testing.assert_array_equal(all_layout, all_.sizes[:4])


def _with_slots(pattern):
    """A traced function does not know that edges are in order, and names each by its slot."""
    return replace(pattern, edge_of_slot=np.arange(pattern.edges))


# What TensorFlow expects of an operator.


@built
@pytest.mark.parametrize("mode", ["eager", "function"])
def test_a_second_derivative_is_refused(mode):
    inputs = small()
    tensors, plan = tensors_of(inputs), planned(inputs)

    def twice(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                parameters = (tensors[name] for name in PARAMETERS)
                y = feature_steered_convolution(x, plan, None, *parameters, version="fused")
            first = inner.gradient(y, x)
        return outer.gradient(first, x)

    with pytest.raises(NotImplementedError, match="version='fused' has first derivatives only: take another version"):
        (twice if mode == "eager" else tf.function(twice, autograph=False))(tensors["data"])


@built
def test_xla_is_refused_and_auto_keeps_away_from_it():
    inputs = small()
    expected = oracle(inputs)[0]
    tensors, plan = tensors_of(inputs), planned(inputs)

    def compiled(version):
        def function(x):
            parameters = (tensors[name] for name in PARAMETERS)
            options = {"version": version, "segment_sum_impl": "unsorted"}
            return feature_steered_convolution(x, plan, None, *parameters, **options)

        return tf.function(function, autograph=False, jit_compile=True)(tensors["data"])

    with pytest.raises(Unavailable, match=r"XLA \(jit_compile=True\) compiles TensorFlow's own operations only"):
        compiled("fused")
    assert_close(compiled("auto").numpy(), expected, 1e-12)


@built
def test_auto_is_fused():
    inputs = instance("sorted", "float32")[0]
    np.testing.assert_array_equal(convolve(inputs, "auto"), convolve(inputs, "fused"))


@built
def test_a_plan_can_be_an_argument_of_a_traced_function():
    inputs, expected, _, _ = instance("sorted", "float64")
    tensors = tensors_of(inputs)

    @tf.function(autograph=False)
    def traced(x, plan):
        return feature_steered_convolution(x, plan, None, *(tensors[name] for name in PARAMETERS), version="fused")

    assert_close(traced(tensors["data"], planned(inputs)).numpy(), expected, 1e-12)


@built
def test_a_saved_model_computes_the_same(tmp_path):
    inputs, expected, _, _ = instance("sorted", "float64")
    tensors, plan = tensors_of(inputs), planned(inputs)

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float64)])
        def call(self, x):
            return feature_steered_convolution(x, plan, None, *(tensors[name] for name in PARAMETERS), version="fused")

    tf.saved_model.save(Module(), str(tmp_path))
    assert_close(tf.saved_model.load(str(tmp_path)).call(tensors["data"]).numpy(), expected, 1e-12)


# Arguments.


def operands(inputs):
    tensors, plan = tensors_of(inputs), planned(inputs)
    packed = tensorflow_fused._packed(plan.pattern, "/CPU:0", schedule.TOUCHED)
    x, values = tensors["data"], tensors["values"]
    named = {"x": x, "centre": x, "values": values}
    named |= {name[-1]: tensors[name] for name in PARAMETERS}
    return {**named, "pattern": packed.words, "layout": packed.layout, "tied": True, "parts": packed.parts, "flags": 0}


@built
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": tf.zeros([3, 3], tf.float64)}, r"u has shape \[3,3\]: expected \[3,2\]"),
        ({"b": tf.zeros([5], tf.float64)}, r"b has shape \[5\]: expected \[4\]"),
        ({"x": tf.zeros([9, 3, 1], tf.float64)}, "must be rank 2|expected"),
        ({"pattern": tf.zeros([4], tf.int64)}, r"pattern has 4 words: expected \d+"),
        ({"layout": tf.zeros([3], tf.int64)}, r"layout has shape \[3\]: expected \[4\]"),
        ({"layout": tf.constant([9, -1, 1, 0], tf.int64)}, "a size of the pattern is impossible"),
        ({"layout": tf.constant([8, 30, 1, 0], tf.int64)}, "tied is true but there are 8 rows and 9 columns"),
        ({"parts": 0}, "packed without the chunks"),
        ({"core": "gpu"}, "core is 'gpu': allowed: '' and, on the CPU, 'emulated'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else ",".join(value),
)
def test_the_operator_checks_its_arguments(changes, message):
    forward = tensorflow_doors.operators("cpu").eqconv_feature_steered_forward
    arguments = operands(small())
    forward(**arguments)
    with pytest.raises((tf.errors.InvalidArgumentError, ValueError), match=message):
        forward(**{**arguments, **changes})


@built
def test_centres_that_share_their_memory_with_the_sources():
    inputs, expected, g, gradients = instance("sorted", "float64")
    tensors, plan = tensors_of(inputs), planned(inputs)
    x, centre = tensors["data"], tf.identity(tensors["data"])
    with tf.GradientTape() as tape:
        tape.watch([x, centre])
        parameters = (tensors[name] for name in PARAMETERS)
        y = feature_steered_convolution((x, centre), plan, None, *parameters, version="fused")
    by_sources, by_centres = tape.gradient(y, [x, centre], output_gradients=tf.constant(g))
    assert_close(y.numpy(), expected, 1e-12)
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
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_dtypes_that_are_refused(dtype):
    inputs = rounded(small(), "float32")
    tensors, plan = tensors_of(inputs), planned(inputs)
    with pytest.raises(TypeError, match=f"data has dtype {dtype.name}: allowed: float32, float64"):
        feature_steered_convolution(
            tf.cast(tensors["data"], dtype), plan, None, *(tensors[name] for name in PARAMETERS), version="fused"
        )


def test_without_kernels_auto_takes_another_version(monkeypatch):

    monkeypatch.setattr(kernels, "missing", lambda target: [f"{target} is not built"])
    doors.missing_kernels.cache_clear()
    inputs, expected, _, _ = instance("sorted", "float64")
    try:
        assert_close(convolve(inputs, "auto").numpy(), expected, 1e-12)
        with pytest.raises(Unavailable, match="version='fused': tensorflow is not built; cpu is not built"):
            convolve(inputs)
    finally:
        doors.missing_kernels.cache_clear()


# Keras.


@built
def test_layers_take_version_and_activation():
    inputs = rounded(small(), "float32")
    x, plan = tf.constant(inputs["data"]), planned(inputs)
    layer = FeatureSteeredConvolution(3, 5, version="fused", activation="relu")
    y = layer(x, plan)
    other = FeatureSteeredConvolution.from_config({**layer.get_config(), "version": "v1"})
    other(x, plan)
    other.set_weights(layer.get_weights())
    np.testing.assert_allclose(y, other(x, plan), rtol=0, atol=1e-5)
    assert (y.numpy() >= 0).all()
    conv = FeaStConv(3, 5, heads=2, version="fused", activation="relu")
    plain = FeaStConv.from_config({**conv.get_config(), "version": "v1", "activation": None})
    edges = inputs["indices"].T
    plain(x, edges)
    y = conv(x, edges)
    plain.set_weights(conv.get_weights())
    np.testing.assert_allclose(y, tf.nn.relu(plain(x, edges)), rtol=0, atol=1e-5)


@built
@pytest.mark.parametrize("eagerly", [False, True], ids=["graph", "eager"])
def test_keras_fit(eagerly):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    vertices, plan = 9, planned(rounded(small(), "float32"))
    data, labels = rng.normal(size=(1, vertices, 3)).astype("float32"), rng.integers(0, 4, (1, vertices))

    class Classifier(keras.Model):
        def __init__(self):
            super().__init__()
            self.model = MeshSegmentation(4, 2, version="fused")

        def call(self, x):
            return self.model(tf.reshape(x, [vertices, 3]), plan)[None]

    classifier = Classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.Adam(1e-2), loss, run_eagerly=eagerly)
    history = classifier.fit(data, labels, epochs=30, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


# The emulated device.


@needs("tensorflow", "emulated")
@pytest.mark.parametrize("deterministic", [False, True], ids=["atomics", "deterministic"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", ["ragged", "bipartite", "hard", "no edge", "no vertex", "isolated", "duplicates"])
def test_emulated(problem, dtype, deterministic):
    check(run, instance(problem, dtype), dtype, device="emulated", settings={"deterministic": deterministic})
