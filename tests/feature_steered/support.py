"""What the tests of the feature-steered family share: random problems, the oracle's answers, runs, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eqconv_cli.backends.feature_steered.problems import parameters
from eqconv_cli.backends.feature_steered.reference import reference, reference_gradients

Arrays = dict[str, np.ndarray]
PARAMETERS = ("var_u", "var_v", "var_c", "var_w", "var_b")
FLOATS = ("data", "data_out", "values", *PARAMETERS)
#: Tolerance of a run, relative to max(floor, max|reference|): floor 1 for values, 1e-3 for gradients.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def random_problem(
    seed: int,
    batch: Sequence[int] = (),
    centres: int = 7,
    sources: int | None = None,
    edges: int = 30,
    channels: int = 3,
    outputs: int = 4,
    matrices: int = 2,
    sizes: Sequence[int] | None = None,
) -> Arrays:
    """Random edges, some twice, in random order; with ``sizes`` (for one batch dimension) only those inside."""
    rng = np.random.default_rng(seed)
    sources = centres if sources is None else sources
    shape = (*batch, centres, sources)
    indices = np.stack([rng.integers(0, extent, edges) for extent in shape], axis=1)
    inputs = {
        "data": rng.normal(size=(*batch, sources, channels)),
        "indices": indices,
        "values": rng.normal(size=edges),
        "dense_shape": np.array(shape),
        **parameters(rng, channels, outputs, matrices),
    }
    if sizes is not None:
        inputs["sizes"] = np.array(sizes)
        inside = (indices[:, 1:] < inputs["sizes"][indices[:, 0], None]).all(axis=1)
        inputs["indices"], inputs["values"] = indices[inside], inputs["values"][inside]
    return inputs


def tied(inputs: Mapping[str, np.ndarray]) -> Arrays:
    """The translation-invariant form, v = -u."""
    return {**inputs, "var_v": -inputs["var_u"]}


def rounded(inputs: Mapping[str, np.ndarray], dtype: str) -> Arrays:
    """The floating-point arrays in a dtype; the oracle then works on these very numbers."""
    return {name: array.astype(dtype) if name in FLOATS else array for name, array in inputs.items()}


def cotangent(inputs: Mapping[str, np.ndarray], seed: int = 1) -> np.ndarray:
    """A random ∂L/∂y."""
    output = reference(inputs)["output"]
    return np.random.default_rng(seed).normal(size=output.shape).astype(inputs["data"].dtype)


def oracle(inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, Arrays]:
    """The reference output, a cotangent, and the reference gradients."""
    g = cotangent(inputs)
    return reference(inputs)["output"], g, reference_gradients(inputs, {"output": g.astype(np.float64)})


def run_torch(
    inputs: Mapping[str, np.ndarray], g: np.ndarray | None = None, device: str = "cpu", **options: Any
) -> tuple[np.ndarray, Arrays]:
    """Output and, for a cotangent, the gradients of every floating-point input."""
    from eqconv_cli.backends.feature_steered.torch_runs import prepare

    run = prepare(inputs, str(inputs["data"].dtype), device, **options)
    output = run.download(run.run()["output"])
    if g is None:
        return output, {}
    gradients = run.run_backward({"output": run.upload(g)})
    return output, {name: run.download(gradient) for name, gradient in gradients.items()}


def error(actual: np.ndarray, expected: np.ndarray, floor: float) -> float:
    """max|actual - expected| / max(floor, max|expected|); NaN when anything is not finite."""
    assert actual.shape == expected.shape
    if expected.size == 0:
        return 0.0
    difference = np.abs(actual.astype(np.float64) - expected).max()
    return float(difference / max(floor, np.abs(expected).max()))


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, floor: float = 1.0) -> None:
    """An error that is NaN is too large."""
    found = error(actual, expected, floor)
    assert found <= tolerance, f"error {found:.3g} is above {tolerance:.3g}"


def assert_gradients(
    actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tolerance: float, floor: float = 1e-3
) -> None:
    """All gradients are there, and right."""
    assert set(actual) == set(expected)
    for name, gradient in expected.items():
        found = error(actual[name], gradient, floor)
        assert found <= tolerance, f"{name}: error {found:.3g} is above {tolerance:.3g}"
