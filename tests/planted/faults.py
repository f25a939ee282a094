"""Variants with one fault each: a right implementation, wrapped so that exactly one thing is wrong.

``variant(fault, base)`` gives the catalog record; ``base`` names the right variant underneath.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from eqconv_cli.backends.feature_steered.variants import VARIANTS
from eqconv_cli.catalog import Variant

BY_NAME = {v.name: v for v in VARIANTS}
Array = np.ndarray
_previous: dict[str, Array] = {}


def variant(fault: str, base: str) -> Variant:
    right = BY_NAME[base]
    return Variant(
        algorithm="planted",
        framework=right.framework,
        prepare="tests.planted.faults:prepare",
        options=(fault,),
        arguments={"fault": fault, "base": base},
    )


def prepare(inputs: Mapping[str, Array], dtype: str, device: str, fault: str, base: str) -> Any:
    right = BY_NAME[base]
    if fault in BEFORE:
        inputs = BEFORE[fault](dict(inputs))
    return Planted(right.bind(inputs, dtype, device), inputs, fault)


class Planted:
    def __init__(self, right: Any, inputs: Mapping[str, Array], fault: str) -> None:
        self.right, self.raw, self.fault, self.calls = right, inputs, fault, 0
        self.upload, self.download = right.upload, right.download
        self.synchronize, self.inputs, self.peak_bytes = right.synchronize, right.inputs, right.peak_bytes

    def run(self) -> Mapping[str, Any]:
        self.calls += 1
        outputs = self.right.run()
        if self.fault in VALUE:
            y = self.right.download(outputs["output"]).copy()
            y = VALUE[self.fault](y, self)
            return {"output": y if self.fault == "wrong_dtype" else self.native(y)}
        if self.fault == "missing_output":
            return {}
        if self.fault == "extra_output":
            return {**outputs, "more": outputs["output"]}
        if self.fault == "raises":
            raise RuntimeError("planted")
        if self.fault == "modified_input":
            self.raw["data"].reshape(-1)[0] += 1
        return outputs

    def run_backward(self, cotangents: Mapping[str, Any]) -> Mapping[str, Any]:
        self.calls += 1
        if self.fault == "ones_as_cotangent":
            ones = np.ones_like(self.right.download(cotangents["output"]))
            cotangents = {"output": self.right.upload(ones)}
        gradients = dict(self.right.run_backward(cotangents))
        if self.fault == "modified_cotangent":
            self.right.download(cotangents["output"]).reshape(-1)[0] += 1
        if self.fault in GRADIENT:
            return GRADIENT[self.fault](gradients, self)
        return gradients

    def native(self, array: Array) -> Any:
        return self.right.upload(array)


def _nan_in_one_element(y: Array, run: Planted) -> Array:
    y.reshape(-1)[y.size // 2] = np.nan
    return y


def _infinity_in_the_last_element(y: Array, run: Planted) -> Array:
    y.reshape(-1)[-1] = np.inf
    return y


def _zeros(y: Array, run: Planted) -> Array:
    return np.zeros_like(y)


def _last_kept_row_dropped(y: Array, run: Planted) -> Array:
    y[0, -1] = 0
    return y


def _one_element_slightly_off(y: Array, run: Planted) -> Array:
    y.reshape(-1)[0] += 5e-5 * max(1, np.abs(y).max())
    return y


def _float16_inside(y: Array, run: Planted) -> Array:
    return y.astype(np.float16).astype(y.dtype)


def _wrong_dtype(y: Array, run: Planted) -> Any:
    other = "float64" if y.dtype == np.float32 else "float32"
    run.download = lambda native: np.asarray(native).astype(other)
    return y


def _result_of_the_previous_call(y: Array, run: Planted) -> Array:
    previous = _previous.get("y", y)
    _previous["y"] = y
    return previous if previous.shape == y.shape and previous.dtype == y.dtype else y


def _first_result_kept(y: Array, run: Planted) -> Array:
    kept = _previous.setdefault(str(y.dtype), y)
    return kept.copy()


def _output_not_cleared(y: Array, run: Planted) -> Array:
    return y * run.calls


def _noise(y: Array, run: Planted) -> Array:
    return y + 1e-3 * np.random.default_rng().normal(size=y.shape).astype(y.dtype)


def _bias_in_the_padding(y: Array, run: Planted) -> Array:
    y[1] = 1
    return y


def _depends_on_batch_neighbour(y: Array, run: Planted) -> Array:
    y[2, 0] += y[0, 0]
    return y


def _bias_forgotten(y: Array, run: Planted) -> Array:
    kept = np.arange(y.shape[1]) < np.asarray(run.raw["sizes"])[:, None]
    return y - np.where(kept[..., None], run.raw["var_b"], 0).astype(y.dtype)


def _transposed(y: Array, run: Planted) -> Array:
    return np.swapaxes(y, -1, -2).copy()


VALUE: dict[str, Callable[[Array, Planted], Any]] = {
    f.__name__[1:]: f
    for f in (
        _nan_in_one_element,
        _infinity_in_the_last_element,
        _zeros,
        _last_kept_row_dropped,
        _one_element_slightly_off,
        _float16_inside,
        _wrong_dtype,
        _result_of_the_previous_call,
        _first_result_kept,
        _output_not_cleared,
        _noise,
        _bias_in_the_padding,
        _depends_on_batch_neighbour,
        _bias_forgotten,
        _transposed,
    )
}


def _weights_ignored(inputs: dict[str, Array]) -> dict[str, Array]:
    return {**inputs, "values": np.ones_like(inputs["values"])}


def _duplicates_merged(inputs: dict[str, Array]) -> dict[str, Array]:
    _, first = np.unique(inputs["indices"], axis=0, return_index=True)
    return {**inputs, "indices": inputs["indices"][first], "values": inputs["values"][first]}


def _tail_of_edges_dropped(inputs: dict[str, Array]) -> dict[str, Array]:
    values = inputs["values"].copy()
    values[len(values) // 8 * 8 :] = 0
    return {**inputs, "values": values}


def _border_index_off_by_one(inputs: dict[str, Array]) -> dict[str, Array]:
    indices = inputs["indices"].copy()
    last = indices[:, -1] == indices[:, -1].max()
    indices[last, -1] -= 1
    return {**inputs, "indices": indices}


def _square_matrices_transposed(inputs: dict[str, Array]) -> dict[str, Array]:
    return {**inputs, "var_w": np.ascontiguousarray(inputs["var_w"].transpose(0, 2, 1))}


def _u_and_v_swapped(inputs: dict[str, Array]) -> dict[str, Array]:
    return {**inputs, "var_u": inputs["var_v"], "var_v": inputs["var_u"]}


def _offset_of_c_forgotten(inputs: dict[str, Array]) -> dict[str, Array]:
    return {**inputs, "var_c": np.zeros_like(inputs["var_c"])}


BEFORE: dict[str, Callable[[dict[str, Array]], dict[str, Array]]] = {
    f.__name__[1:]: f
    for f in (
        _weights_ignored,
        _duplicates_merged,
        _tail_of_edges_dropped,
        _border_index_off_by_one,
        _square_matrices_transposed,
        _u_and_v_swapped,
        _offset_of_c_forgotten,
    )
}


def _gradient_missing(g: dict[str, Any], run: Planted) -> dict[str, Any]:
    del g["values"]
    return g


def _gradient_doubled(g: dict[str, Any], run: Planted) -> dict[str, Any]:
    return {**g, "var_c": g["var_c"] * 2}


def _gradient_for_the_wrong_argument(g: dict[str, Any], run: Planted) -> dict[str, Any]:
    return {**g, "var_u": g["var_v"], "var_v": g["var_u"]}


def _gradient_transposed(g: dict[str, Any], run: Planted) -> dict[str, Any]:
    w = run.right.download(g["var_w"])
    return {**g, "var_w": run.native(np.ascontiguousarray(w.transpose(0, 2, 1)))}


def _gradient_nan(g: dict[str, Any], run: Planted) -> dict[str, Any]:
    d = run.right.download(g["data"]).copy()
    d.reshape(-1)[0] = np.nan
    return {**g, "data": run.native(d)}


def _gradient_accumulates(g: dict[str, Any], run: Planted) -> dict[str, Any]:
    return {name: value * run.calls for name, value in g.items()}


def _gradient_leaks_into_padding(g: dict[str, Any], run: Planted) -> dict[str, Any]:
    d = run.right.download(g["data"]).copy()
    d[1] = 1
    return {**g, "data": run.native(d)}


GRADIENT: dict[str, Callable[[dict[str, Any], Planted], dict[str, Any]]] = {
    f.__name__[1:]: f
    for f in (
        _gradient_missing,
        _gradient_doubled,
        _gradient_for_the_wrong_argument,
        _gradient_transposed,
        _gradient_nan,
        _gradient_accumulates,
        _gradient_leaks_into_padding,
    )
}

OTHER = ("missing_output", "extra_output", "raises", "modified_input")
ALL_VALUE = (*VALUE, *BEFORE, *OTHER)
ALL_GRADIENT = (*GRADIENT, "ones_as_cotangent", "modified_cotangent")


def forget() -> None:
    """Clear what the stateful faults remember."""
    _previous.clear()


def broken(name: str) -> Variant:
    """A variant of the catalog with its name, computing something else."""
    return replace(BY_NAME[name], prepare="tests.planted.faults:prepare", arguments={"fault": "zeros", "base": name})
