"""Networks of several layers, for the published benchmarks of a model and of a layer stack, with their own oracle.

A stack is a list of linear and feature-steered layers, some followed by ReLU; the convolutions are translation
invariant (v = -u). The oracle runs them in float64 by the closed form, which is itself checked
against the plain formula by ``verify``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.feature_steered.graphs import random_pairs
from eqconv_cli.backends.feature_steered.meshes import mesh_graph
from eqconv_cli.backends.feature_steered.numpy import (
    feature_steered_convolution,
    feature_steered_convolution_gradients,
    plan_neighborhood,
)
from eqconv_cli.backends.feature_steered.plan import NeighborhoodPlan
from eqconv_cli.backends.feature_steered.problems import packaged_mesh

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Tensor = TypeVar("Tensor")

GRAPH = ("indices", "values", "dense_shape")


@dataclass(frozen=True)
class Layer:
    """One layer: parameters are named ``<name>_<letter>``, W and b for a linear one, u, c, W, b for a convolution."""

    kind: Literal["linear", "convolution"]
    name: str
    inputs: int
    outputs: int
    relu: bool


#: Section "mesh segmentation" of the tensorflow/graphics notebook; pull request #101 times one Adam step of it.
MODEL = (
    Layer("linear", "embed", 3, 16, relu=False),
    Layer("convolution", "steer1", 16, 32, relu=True),
    Layer("convolution", "steer2", 32, 64, relu=True),
    Layer("convolution", "steer3", 64, 128, relu=True),
    Layer("linear", "hidden", 128, 256, relu=True),
    Layer("linear", "classify", 256, 16, relu=False),
)


def layer_stack(layers: int, outputs: int) -> tuple[Layer, ...]:
    """Pull request #155's stack: convolutions 3 → D → D → ..., ReLU after each."""
    widths = [3, *[outputs] * layers]
    return tuple(Layer("convolution", f"steer{k + 1}", widths[k], widths[k + 1], relu=True) for k in range(layers))


def parameters(rng: np.random.Generator, layers: Sequence[Layer], matrices: int) -> dict[str, Array]:
    """Parameters of all layers, scaled so that activations neither vanish nor grow from layer to layer."""
    arrays: dict[str, Array] = {}
    for layer in layers:
        gain = (2.0 if layer.relu else 1.0) / layer.inputs
        if layer.kind == "linear":
            arrays[f"{layer.name}_W"] = rng.normal(size=(layer.inputs, layer.outputs)) * gain**0.5
        else:
            arrays[f"{layer.name}_u"] = rng.normal(size=(layer.inputs, matrices)) * 0.2 / layer.inputs**0.5
            arrays[f"{layer.name}_c"] = rng.normal(size=matrices) * 0.1
            shape = (matrices, layer.inputs, layer.outputs)
            arrays[f"{layer.name}_W"] = rng.normal(size=shape) * (gain * matrices) ** 0.5
        arrays[f"{layer.name}_b"] = rng.normal(size=layer.outputs) * 0.1
    return arrays


def parameter_names(layers: Sequence[Layer]) -> tuple[str, ...]:
    """The names of all parameters, in order."""
    letters = {"linear": ("W", "b"), "convolution": ("u", "c", "W", "b")}
    return tuple(f"{layer.name}_{letter}" for layer in layers for letter in letters[layer.kind])


def segmentation_batch(seed: int, batch: int, matrices: int) -> dict[str, Array]:
    """A batch of one real mesh (cow) in several random poses, with 16 part labels from the unposed coordinates."""
    rng = np.random.default_rng(seed)
    vertices, triangles = packaged_mesh("pymeshlab", "tests/sample_meshes/cow.obj")
    vertices = (vertices - vertices.mean(axis=0)) / vertices.std()
    pairs, weights = mesh_graph(len(vertices), triangles)
    block = np.repeat(np.arange(batch), len(pairs))
    poses = np.linalg.qr(rng.normal(size=(batch, 3, 3)))[0]
    return {
        "data": vertices @ poses,
        "indices": np.column_stack([block, np.tile(pairs, (batch, 1))]),
        "values": np.tile(weights, batch),
        "dense_shape": np.array([batch, len(vertices), len(vertices)]),
        "labels": np.tile(part_labels(vertices), (batch, 1)),
        **parameters(rng, MODEL, matrices),
    }


def part_labels(vertices: Array) -> npt.NDArray[np.int64]:
    """Sixteen parts of a shape: the quartile along its longest axis times the signs along the two others."""
    axes = np.argsort(-np.ptp(vertices, axis=0))
    longest, second, third = (vertices[:, axis] for axis in axes)
    quartile = np.searchsorted(np.quantile(longest, [0.25, 0.5, 0.75]), longest)
    labels: npt.NDArray[np.int64] = 4 * quartile + 2 * (second > np.median(second)) + (third > np.median(third))
    return labels


def stack_inputs(seed: int, vertices: int, degree: int, layers: int, outputs: int, matrices: int) -> dict[str, Array]:
    """Random pairs with replacement and three input channels.

    The weights have mean 0: averaging ten times over random pairs would make all vertices alike, and the gradient of u,
    which lives on their differences, would be nothing but rounding.
    """
    rng = np.random.default_rng(seed)
    graph = random_pairs(rng, vertices, degree * vertices)
    graph["values"] = rng.normal(size=degree * vertices) / degree**0.5
    return {
        "data": rng.normal(size=(vertices, 3)),
        **graph,
        **parameters(rng, layer_stack(layers, outputs), matrices),
    }


def layers_of(inputs: Mapping[str, Any]) -> tuple[Layer, ...]:
    """Which stack the inputs belong to."""
    if "labels" in inputs:
        return MODEL
    convolutions = sum(name.endswith("_u") for name in inputs)
    return layer_stack(convolutions, inputs["steer1_b"].shape[0])


def apply(
    layers: Sequence[Layer],
    x: Tensor,
    p: Mapping[str, Tensor],
    convolve: Callable[..., Tensor],
    relu: Callable[[Tensor], Tensor],
) -> Tensor:
    """The stack on arrays of any framework: ``convolve(x, u, v, c, W, b)`` is the operator on the stack's graph."""
    for layer in layers:
        w: Any = p[f"{layer.name}_W"]
        b: Any = p[f"{layer.name}_b"]
        if layer.kind == "linear":
            x = x @ w + b
        else:
            u: Any = p[f"{layer.name}_u"]
            x = convolve(x, u, -u, p[f"{layer.name}_c"], w, b)
        x = relu(x) if layer.relu else x
    return x


def reference(inputs: Arrays) -> dict[str, Array]:
    """``loss``, the mean cross-entropy of a batch with labels, or ``output``, the last layer; float64."""
    arrays, plan = _float64(inputs)
    activations = _forward(layers_of(inputs), arrays, plan)
    if "labels" not in inputs:
        return {"output": activations[-1]}
    log_p, at = _log_probabilities(activations[-1], inputs["labels"])
    return {"loss": np.asarray(-log_p[at].mean())}


def reference_gradients(inputs: Arrays, cotangents: Arrays) -> dict[str, Array]:
    """The gradients with respect to every parameter, back through the layers one by one; float64."""
    arrays, plan = _float64(inputs)
    layers = layers_of(inputs)
    activations = _forward(layers, arrays, plan)
    if "labels" in inputs:
        log_p, at = _log_probabilities(activations[-1], inputs["labels"])
        g = np.exp(log_p)
        g[at] -= 1
        g = (g * float(cotangents["loss"]) / len(g)).reshape(activations[-1].shape)
    else:
        g = cotangents["output"].astype(np.float64)
    gradients: dict[str, Array] = {}
    for layer, x, y in zip(reversed(layers), activations[-2::-1], activations[:0:-1], strict=True):
        if layer.relu:
            g = g * (y > 0)
        g = _backward(layer, x, g, arrays, plan, gradients)
    return {name: gradients[name] for name in parameter_names(layers)}


def _float64(inputs: Arrays) -> tuple[dict[str, Array], NeighborhoodPlan]:
    arrays = {n: a.astype(np.float64) for n, a in inputs.items() if np.issubdtype(a.dtype, np.floating)}
    plan = plan_neighborhood((inputs["indices"], arrays["values"], inputs["dense_shape"]))
    return arrays, plan


def _forward(layers: Sequence[Layer], p: Arrays, plan: NeighborhoodPlan) -> list[Array]:
    """The input and the result of each layer."""
    activations = [p["data"]]
    for layer in layers:
        activations.append(
            apply(
                [layer],
                activations[-1],
                p,
                lambda x, *rest: feature_steered_convolution(x, plan, None, *rest, version="v3", validate="none"),
                lambda x: np.maximum(x, 0),
            )
        )
    return activations


def _backward(
    layer: Layer, x: Array, g: Array, p: Arrays, plan: NeighborhoodPlan, gradients: dict[str, Array]
) -> Array:
    """Store the gradients of one layer's parameters and return that of its input."""
    name = layer.name
    w, b = p[f"{name}_W"], p[f"{name}_b"]
    if layer.kind == "linear":
        gradients[f"{name}_W"] = x.reshape(-1, layer.inputs).T @ g.reshape(-1, layer.outputs)
        gradients[f"{name}_b"] = g.reshape(-1, layer.outputs).sum(0)
        dx: Array = g @ w.T
        return dx
    u, c = p[f"{name}_u"], p[f"{name}_c"]
    operands = (g, x, plan, None, u, -u, c, w, b)
    d = feature_steered_convolution_gradients(*operands, version="closed_form", validate="none")
    gradients[f"{name}_u"] = d["var_u"] - d["var_v"]
    gradients |= {f"{name}_c": d["var_c"], f"{name}_W": d["var_w"], f"{name}_b": d["var_b"]}
    return d["data"]


def _log_probabilities(logits: Array, labels: Array) -> tuple[Array, tuple[Array, Array]]:
    """Log-softmax [vertices, classes], and the index of each vertex's label in it."""
    flat = logits.reshape(-1, logits.shape[-1])
    shifted = flat - flat.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return log_p, (np.arange(len(flat)), labels.reshape(-1))
