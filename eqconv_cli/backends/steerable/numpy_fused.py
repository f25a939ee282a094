"""The compiled expansion for NumPy arrays, called through ctypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from eqconv_cli import kernels
from eqconv_cli.backends.steerable.options import Flag, Fused
from eqconv_cli.backends.steerable.packed import Packed
from eqconv_cli.kernels.doors import missing_kernels

Array = npt.NDArray[Any]
Fields = Mapping[str, Any]

#: The sizes of a layer, named as in the struct.
_SIZES = [field.name for field in fields(Packed) if field.name not in ("words", "reals", "direct")]
#: EQC_ST_RECORD.
_RECORD = 8
#: What the struct says of a layer in one dtype, made once.
_known: WeakKeyDictionary[Packed, dict[np.dtype[Any], Fields]] = WeakKeyDictionary()


def missing(settings: Fused, device: str) -> list[str]:
    """Why NumPy cannot have something computed by the compiled kernels on such a device; empty when it can."""
    if device not in ("cpu", "emulated"):
        return [f"NumPy arrays are on the cpu, not on {device}"]
    return list(missing_kernels(settings.core or device))


def expand(packed: Packed, weights: Array, settings: Fused, out: Array | None = None) -> Array:
    """The filter of the weights.

    Args:
        packed: the layer.
        weights: [weights_size], float32 or float64, C-contiguous.
        settings: of the kernels.
        out: [out_channels, in_channels, pixels] in the dtype of the weights, C-contiguous, to write to; None makes it.

    Returns:
        [out_channels, in_channels, pixels], ``out`` when it is given.

    Raises:
        ValueError, TypeError: an array is not as it must be.
        Unavailable: the kernels are not built.
    """
    _check("weights", weights, (packed.weights_size,))
    shape = (packed.out_channels, packed.in_channels, packed.pixels)
    if out is None:
        out = np.empty(shape, weights.dtype)
    _check("out", out, shape, weights.dtype.name)
    _call("expand_forward", packed, {"weights": weights, "filter": out}, weights.dtype, settings)
    return out


def expand_transposed(packed: Packed, filter: Array, settings: Fused) -> Array:
    """The transposed map: the gradient of the weights [weights_size] for that of the filter.

    Args:
        packed: the layer.
        filter: [out_channels, in_channels, pixels], float32 or float64, C-contiguous.
        settings: of the kernels.

    Raises:
        ValueError, TypeError: an array is not as it must be.
        Unavailable: the kernels are not built.
    """
    _check("filter", filter, (packed.out_channels, packed.in_channels, packed.pixels))
    weights = np.empty(packed.weights_size, filter.dtype)
    _call("expand_backward", packed, {"weights": weights, "filter": filter}, filter.dtype, settings)
    return weights


def _call(operation: str, packed: Packed, arrays: Fields, dtype: np.dtype[Any], settings: Fused) -> None:
    general = {"flags": Flag.DIRECT * packed.direct + settings.processor_flags, "threads": settings.threads}
    kernels.core(settings.core or "cpu").call(operation, dtype, {**_tables(packed, dtype), **arrays, **general})


def _check(name: str, array: Array, shape: tuple[int, ...], *dtypes: str) -> None:
    allowed = dtypes or ("float32", "float64")
    if array.dtype.name not in allowed:
        raise TypeError(f"{name} has dtype {array.dtype}: allowed: {', '.join(allowed)}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}: expected {shape}")


def _tables(packed: Packed, dtype: np.dtype[Any]) -> Fields:
    made = _known.setdefault(packed, {})
    if dtype not in made:
        made[dtype] = _unpacked(packed, dtype)
    return made[dtype]


def _unpacked(packed: Packed, dtype: np.dtype[Any]) -> Fields:
    words = {
        "pairs": 2 * packed.out_fields * packed.in_fields,
        "out_starts": packed.out_fields + 1,
        "in_starts": packed.in_fields + 1,
        "table": packed.table_size,
        "permutation": packed.permutations * packed.pixels,
    }
    reals = {"values": packed.values_size, "harmonic": packed.harmonics * packed.pixels}
    sizes = dict(zip(_SIZES, packed.sizes, strict=True))
    negative = {name: size for name, size in sizes.items() if size < 0}
    if negative:
        raise ValueError(f"packed has sizes below 0: {negative}")
    if packed.types > packed.table_size // _RECORD:
        raise ValueError(f"packed.table_size is {packed.table_size}: {packed.types} types have more numbers")
    return {
        **sizes,
        **_parts("words", packed.words, words),
        **_parts("reals", packed.reals.astype(dtype, copy=False), reals),
    }


def _parts(name: str, array: Array, lengths: Mapping[str, int]) -> dict[str, Array]:
    """The parts of an array, one after the other."""
    if array.shape != (sum(lengths.values()),):
        raise ValueError(f"packed.{name} has shape {array.shape}: expected ({sum(lengths.values())},)")
    ends = np.cumsum(list(lengths.values()))
    return dict(zip(lengths, np.split(array, ends[:-1]), strict=True))
