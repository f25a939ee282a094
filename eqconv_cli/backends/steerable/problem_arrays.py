"""A problem's arrays: a layer described by words and whole numbers, and read back; the same for every framework.

Angles and radii are words: as floating-point arrays they would be rounded to the dtype of the run, and a reflection
axis rounded to float32 is another axis.
"""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable.fields import FieldType, Space
from eqconv_cli.backends.steerable.plan import Plan, make_plan
from eqconv_cli.catalog import Arrays

#: The real inputs of each operation; all are differentiated.
_REALS = {"expansion": ("weights",), "layer": ("x", "weights", "bias")}


class Described(NamedTuple):
    """A layer in words; "" stands for e2cnn's default."""

    group: str
    in_fields: str
    out_fields: str
    kernel_size: int
    #: In half turns, as a fraction: "1/2" is a vertical mirror line.
    axis: str = "1/2"
    dilation: int = 1
    groups: int = 1
    #: A number.
    frequencies_cutoff: str = ""
    #: Numbers, one for each ring, with commas between them.
    rings: str = ""
    sigma: str = ""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """As arrays by name, which :func:`described` reads."""
        return {name: np.asarray(value) for name, value in self._asdict().items()}


class Layer(NamedTuple):
    """What a convolution is told."""

    stride: int
    padding: int
    padding_mode: str
    dilation: int
    groups: int


def described(inputs: Arrays) -> Described:
    """The description among a problem's arrays."""
    return Described(*(inputs[name].item() for name in Described._fields))


@lru_cache(maxsize=64)
def planned(layer: Described) -> tuple[FieldType, FieldType, Plan]:
    """The input fields of all groups, the output fields, and the plan; kept, as the layers of a network keep theirs."""
    space = Space.of(layer.group, float(Fraction(layer.axis)) * math.pi)
    in_type, out_type = space.fields(layer.in_fields), space.fields(layer.out_fields)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "kernel_size=.* is even")
        plan = make_plan(
            in_type,
            out_type,
            layer.kernel_size,
            groups=layer.groups,
            dilation=layer.dilation,
            frequencies_cutoff=float(layer.frequencies_cutoff) if layer.frequencies_cutoff else None,
            rings=_numbers(layer.rings),
            sigma=_numbers(layer.sigma),
        )
    return in_type, out_type, plan


def plan_of(inputs: Arrays) -> Plan:
    """The plan that a problem's arrays describe."""
    return planned(described(inputs))[2]


def layer_of(inputs: Arrays) -> Layer:
    """What a problem's arrays tell the convolution."""
    return Layer(*(inputs[name].item() for name in Layer._fields))


def reals(inputs: Arrays, dtype: str, operation: str) -> dict[str, npt.NDArray[Any]]:
    """The real inputs in the dtype of the run, each of which is differentiated; a layer may have no bias."""
    return {name: inputs[name].astype(dtype) for name in _REALS[operation] if name in inputs}


def _numbers(words: str) -> list[float] | None:
    return [float(word) for word in words.split(",")] if words else None
