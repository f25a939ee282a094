"""A problem's arrays read as the arguments of its operation, the same for the runs of every framework."""

from __future__ import annotations

from typing import Any

import numpy as np

from eqconv_cli.backends.block_sparse.geometry import output_grid
from eqconv_cli.catalog import Arrays

_UNIT = ("w1", "w2", "w3", "bn1", "bn2", "bn3", "w_project")
#: The real inputs of each operation, of which all but masks are differentiated.
_REALS: dict[str, tuple[str, ...]] = {
    "reduce_mask": ("mask",),
    "pixel_index": ("mask",),
    "gather": ("x",),
    "scatter": ("blocks", "ybase"),
    "convolution": ("x", "w", "bias", "base"),
    "masked": ("x", "w", "bias", "base"),
    "residual": ("x", *_UNIT),
    "masked_residual": ("x", *_UNIT),
    "submanifold": ("feats", "w", "bias"),
    "strided": ("feats", "w", "bias"),
}


def reals(inputs: Arrays, dtype: str, operation: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The real inputs in the dtype of the run, masks of truth values as they are, and which are differentiated."""
    names = tuple(name for name in _REALS[operation] if name in inputs)
    arrays = {n: inputs[n] if inputs[n].dtype == np.bool_ else inputs[n].astype(dtype, copy=False) for n in names}
    return arrays, () if "mask" in names else names


def window(inputs: Arrays) -> dict[str, Any]:
    """Where the blocks lie."""
    return {name: inputs[name].tolist() for name in ("bsize", "bstride", "boffset")}


def threshold(inputs: Arrays) -> dict[str, Any]:
    """What makes a block active."""
    return {"tol": float(inputs["tol"]), "avgpool": bool(inputs["avgpool"])}


def steps(inputs: Arrays) -> dict[str, Any]:
    """Strides and padding of a convolution."""
    return {"strides": inputs["strides"].tolist(), "padding": str(inputs["padding"])}


def activation(inputs: Arrays) -> str | None:
    """The activation of a convolution; a problem has the word "none" for None."""
    word = str(inputs["activation"])
    return None if word == "none" else word


def grid(inputs: Arrays) -> tuple[int, int, int]:
    """(N, Hout, Wout) of a convolution."""
    return output_grid(inputs["x"].shape, inputs["w"].shape[:2], **steps(inputs))


def base(inputs: Arrays, dtype: str, operation: str) -> np.ndarray:
    """What an operation gives where nothing is written: a new array [N, Hout, Wout, K]."""
    name = {"masked_residual": "x", "residual": "x", "scatter": "ybase"}.get(operation, "base")
    if name in inputs:
        return inputs[name].astype(dtype)
    return np.zeros((*grid(inputs), inputs["w"].shape[3]), dtype)
