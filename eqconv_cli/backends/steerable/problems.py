"""The problems of the steerable family: small ones that hold every special case, a photograph, and the benchmarks'."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.packaged_data import missing_file, needed_file
from eqconv_cli.backends.pictures import picture
from eqconv_cli.backends.steerable.bias import bias_map
from eqconv_cli.backends.steerable.problem_arrays import Described, planned
from eqconv_cli.catalog import Parameter, Problem

Arrays = dict[str, npt.NDArray[Any]]

#: Irreps of frequencies 0 to 3, each a field of its own.
_SO2 = "+".join(f"irrep:{k}" for k in range(4))
_O2 = "+".join(["irrep:0,0", *(f"irrep:1,{k}" for k in range(4))])


def expansion(seed: int, layer: Described) -> Arrays:
    """Weights of unit variance."""
    _, _, plan = planned(layer)
    return {"weights": np.random.default_rng(seed).normal(size=plan.weights_size), **layer.arrays()}


def convolution(
    seed: int,
    layer: Described,
    batch: int,
    height: int,
    width: int,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
) -> Arrays:
    """Random images through a layer."""
    in_type, _, _ = planned(layer)
    x = np.random.default_rng([seed, 1]).normal(size=(batch, in_type.size, height, width))
    return on_images(seed, layer, x, stride, padding, padding_mode)


def on_images(
    seed: int, layer: Described, x: npt.NDArray[Any], stride: int = 1, padding: int = 0, padding_mode: str = "zeros"
) -> Arrays:
    """Given images through a layer with outputs of order 1; a bias where an out field holds a trivial irrep."""
    in_type, out_type, plan = planned(layer)
    rng = np.random.default_rng(seed)
    biases = bias_map(out_type).parameters
    # The elements are of norm about 1: as many of them as a field has in irreps add up in each channel.
    scale = math.sqrt(out_type.size * plan.in_type.size / plan.weights_size / in_type.size)
    told = {"stride": stride, "padding": padding, "padding_mode": padding_mode}
    return {
        "x": x,
        "weights": scale * rng.normal(size=plan.weights_size),
        **({"bias": rng.normal(size=biases)} if biases else {}),
        **layer.arrays(),
        **{name: np.asarray(value) for name, value in told.items()},
    }


# Real data.


def photograph(seed: int, side: int, fields: int) -> Arrays:
    """The portrait of Grace Hopper in Matplotlib's samples (public domain), lifted to regular fields of C8."""
    return on_picture(seed, picture(needed_file(*_PHOTOGRAPH)), "C8", side, fields)


def on_picture(seed: int, colours: npt.NDArray[Any], group: str, side: int, fields: int) -> Arrays:
    """The middle square of a picture, resized to ``side`` pixels, through a layer to regular fields."""
    from eqconv_cli.backends.steerable.equivariance import resized  # SciPy's images, which no other problem needs

    height, width, _ = colours.shape
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    square = colours[top : top + least, left : left + least].transpose(2, 0, 1)
    layer = Described(group, "3*trivial", f"{fields}*regular", 5)
    return on_images(seed, layer, resized(square, side)[None], padding=2)


def image_file(path: Path) -> Problem:
    """A user's picture through a layer that lifts its colours to regular fields of a group."""
    parameters: dict[str, Parameter] = {"group": "C8", "side": 65, "fields": 4}
    make = partial(_on_picture, picture(path))
    return Problem(
        f"image:{path.name}", make, parameters, title=str(path), traits=frozenset({"real"}), operation="layer"
    )


def _on_picture(colours: npt.NDArray[Any], seed: int, group: str, side: int, fields: int) -> Arrays:
    return on_picture(seed, colours, group, side, fields)


# Benchmarks.


def regular(seed: int, group: str, kernel_size: int, fields: int) -> Arrays:
    """As many regular fields in as out."""
    return expansion(seed, Described(group, f"{fields}*regular", f"{fields}*regular", kernel_size))


def irreps(seed: int, group: str, kernel_size: int, fields: int) -> Arrays:
    """As many fields of each irrep of frequency 0 to 3 in as out."""
    each = "+".join(f"{fields}*{irrep}" for irrep in (_O2 if group == "O(2)" else _SO2).split("+"))
    return expansion(seed, Described(group, each, each, kernel_size))


def wide_residual(seed: int, group: str, fields: int, kernel_size: int, lifting: bool) -> Arrays:
    """A layer of QUVA-Lab/e2cnn ``examples/e2wrn.py``, whose frequencies go up to 3 r."""
    return expansion(seed, _wide(group, fields, kernel_size, lifting))


def wide_residual_layer(
    seed: int, group: str, fields: int, kernel_size: int, lifting: bool, batch: int, side: int
) -> Arrays:
    """The same with images."""
    layer = _wide(group, fields, kernel_size, lifting)
    return convolution(seed, layer, batch, side, side, padding=kernel_size // 2)


def _wide(group: str, fields: int, kernel_size: int, lifting: bool) -> Described:
    given = "3*trivial" if lifting else f"{fields}*regular"
    return Described(group, given, f"{fields}*regular", kernel_size, frequencies_cutoff="3")


#: Group, fields, kernel size and side of the images of the stages of WRN-28-10 d8d4d1 and c8c4c1.
_STAGES = (
    ("D8", 40, 5, 32),
    ("D4", 113, 3, 16),
    ("D1", 452, 3, 8),
    ("C8", 56, 5, 32),
    ("C4", 160, 3, 16),
    ("C1", 640, 3, 8),
)
_KERNEL_SIZES = (3, 5, 7, 9)
#: What ``bench`` times when nothing else is asked for.
_USUAL = ("c8-regular-k5", "d8-regular-k5", "so2-irreps-k5", "wrn-c8", "layer-wrn-c8")


def _benchmarks() -> Iterator[Problem]:
    for make, kind, groups in (
        (regular, "regular", ("C4", "C8", "C16", "D4", "D8")),
        (irreps, "irreps", ("SO(2)", "O(2)")),
    ):
        for group in groups:
            for k in _KERNEL_SIZES:
                word = group.lower().replace("(", "").replace(")", "")
                title = f"{group}, {'regular fields' if kind == 'regular' else 'irreps 0 to 3'}, {k} x {k}"
                yield _benchmark(
                    f"{word}-{kind}-k{k}", "expansion", partial(make, group=group, kernel_size=k), title, fields=16
                )
    for group, fields, k, side in _STAGES:
        for lifting in (False, True) if k == 5 else (False,):
            fixed: dict[str, Any] = {"group": group, "kernel_size": k, "lifting": lifting}
            name = f"wrn-{group.lower()}{'-lift' if lifting else ''}"
            given = "3 colours" if lifting else f"{fields} fields"
            title = f"WRN-28-10, {given} to {fields} regular fields of {group}, {k} x {k}"
            yield _benchmark(name, "expansion", partial(wide_residual, **fixed), title, fields=fields)
            yield _benchmark(
                f"layer-{name}", "layer", partial(wide_residual_layer, **fixed), f"{title}, {side} x {side} pixels",
                fields=fields, batch=1, side=side,
            )  # fmt: skip


def _benchmark(name: str, operation: str, make: Any, title: str, **parameters: Parameter) -> Problem:
    tiny: dict[str, Parameter] = {"fields": 2, **({"side": 8} if "side" in parameters else {})}
    traits = frozenset({"bench"} if name in _USUAL else ())
    return Problem(name, make, parameters, title, traits, tiny=tiny, operation=operation)


# The small ones.

_PHOTOGRAPH = ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg")
_PLAIN = frozenset({"verify"})
_DEFAULT = _PLAIN | {"invariants"}
_SMALLEST = _DEFAULT | {"quick", "tiny"}
_FULL = frozenset({"full", "invariants"})
#: Whose coordinates e2cnn chooses otherwise.
_QUOTIENTS = frozenset({"quotients"})


def missing_photograph() -> list[str]:
    """Why the photograph cannot be read; empty when it can."""
    return [*missing_file(*_PHOTOGRAPH, "plots"), *missing_file("PIL", "Image.py", "plots")]


def _expansion(name: str, title: str, traits: frozenset[str], *words: Any, **options: Any) -> Problem:
    return Problem(name, partial(expansion, layer=Described(*words, **options)), {}, title, traits)


def _layer(
    name: str, title: str, traits: frozenset[str], layer: Described, height: int, width: int, **told: Any
) -> Problem:
    return Problem(
        name,
        partial(convolution, layer=layer, **told),
        {"batch": 2, "height": height, "width": width},
        title,
        traits,
        operation="layer",
    )


_SMALL = (
    _expansion("c8-regular", "C8, regular fields, 5 x 5", _SMALLEST, "C8", "2*regular", "3*regular", 5),
    _expansion(
        "d4-mixed", "D4 about a diagonal: regular, irreps and quotients in no order", _DEFAULT | _QUOTIENTS,
        "D4", "regular+irrep:1,1+quotient:0,1+regular", "quotient:2+regular+irrep:1,0+quotient:2", 5, axis="1/4",
    ),
    _expansion(
        "d4-tilted", "D4 about an axis off the grid", _PLAIN, "D4", "regular+irrep:1,1", "regular+trivial", 3,
        axis="1/10",
    ),
    _expansion("so2-irreps", "SO(2), irreps 0 to 3 as fields, 7 x 7", _PLAIN, "SO(2)", f"{_SO2}+irrep:1", _SO2, 7),
    _expansion("o2-irreps", "O(2), irreps 0 to 3 as fields", _DEFAULT, "O(2)", _O2, f"irrep:1,1+{_O2}", 5, axis="2/5"),
    _expansion("c1-plain", "no symmetry at all", _PLAIN, "C1", "2*trivial", "3*trivial", 3),
    _expansion(
        "flip-diagonal", "reflections about a diagonal, 7 x 7", _DEFAULT, "flip", "regular+irrep:1",
        "irrep:0+2*regular", 7, axis="1/4",
    ),
    _expansion(
        "c4-groups", "two groups, dilation 2", _PLAIN, "C4", "regular+irrep:1+regular+irrep:1", "regular+regular", 3,
        dilation=2, groups=2,
    ),
    _expansion("c8-k1", "1 x 1: what commutes with the group", _PLAIN, "C8", "2*regular", "regular+irrep:2", 1),
    _expansion(
        "c8-k2", "2 x 2 on a ring through the pixels", _PLAIN, "C8", "regular", "2*regular", 2,
        frequencies_cutoff="2", rings="0.7", sigma="0.5",
    ),
    _expansion("d2-k4", "4 x 4", _DEFAULT | _QUOTIENTS, "D2", "regular+quotient:0,1", "regular", 4),
    _expansion(
        "c6-k6", "6 x 6, a group off the grid", _PLAIN | _QUOTIENTS, "C6", "regular+irrep:3", "quotient:2+regular", 6
    ),
    _expansion("d8-k9", "D8, 9 x 9", _FULL, "D8", "regular+irrep:1,2", "2*regular", 9),
    _expansion("c3-k7", "C3, frequencies up to 3 r, 7 x 7", _FULL, "C3", "regular", "2*regular", 7,
               frequencies_cutoff="3"),
    _layer(
        "layer-c4", "C4, regular fields, 3 x 3", _SMALLEST, Described("C4", "2*regular", "regular+trivial", 3), 9, 9,
        padding=1,
    ),
    _layer(
        "layer-d4-strided", "D4 with stride 2, mirrored at the border", _DEFAULT,
        Described("D4", "regular+irrep:1,1", "regular+quotient:0,1", 3), 9, 9, stride=2, padding=1,
        padding_mode="reflect",
    ),
    _layer(
        "layer-so2", "SO(2), irreps, on a torus", _DEFAULT, Described("SO(2)", _SO2, f"{_SO2}+irrep:0", 5), 7, 7,
        padding=2, padding_mode="circular",
    ),
    _layer(
        "layer-c8-groups", "two groups, dilation 2, last pixels repeated, an image that is no square", _DEFAULT,
        Described("C8", "2*regular", "regular+regular", 3, dilation=2, groups=2), 8, 11, padding=2,
        padding_mode="replicate",
    ),
    _layer(
        "layer-o2-k4", "O(2) about a diagonal, 4 x 4, no trivial irrep and so no bias", _DEFAULT,
        Described("O(2)", _O2, "irrep:1,1+irrep:1,2", 4, axis="1/4"), 8, 8,
    ),
    Problem(
        "photograph", photograph, {"side": 33, "fields": 2},
        "a portrait of Grace Hopper (Matplotlib's samples), lifted to C8", frozenset({"verify", "real", "invariants"}),
        missing_photograph, operation="layer",
    ),
)  # fmt: skip

PROBLEMS = (*_SMALL, *_benchmarks())
