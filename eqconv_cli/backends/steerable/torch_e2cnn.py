"""QUVA-Lab/e2cnn 0.2.3 as a peer: its layers, and the expansion of the same weights by them.

e2cnn was written for NumPy and PyTorch of 2020. Names that both have dropped since are put right while it is imported;
nothing else of it is changed.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Sequence
from functools import cache
from types import CodeType, ModuleType
from typing import Any

import torch

from eqconv_cli.backends.steerable import problem_arrays
from eqconv_cli.backends.steerable.fields import FieldType, Space
from eqconv_cli.catalog import Arrays
from eqconv_cli.errors import Unavailable
from eqconv_cli.frameworks.torch import BoundRun

#: What is no more, and what stands for it.
_DROPPED = (
    (r"\bnp\.(float|int|bool|complex|object)\b", r"\1"),
    (r"\.tostring\(\)", ".tobytes()"),
    (r"np\.array\((\w+), copy=False\)", r"np.asarray(\1)"),
    (r"torch\.uint8", "torch.bool"),
    (r"\.astype\(np\.uint8\)", ".astype(bool)"),
)


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        text = importlib.util.decode_source(self.get_data(path))
        for pattern, now in _DROPPED:
            text = re.sub(pattern, now, text)
        return compile(text, path, "exec", dont_inherit=True)


class _Finder:
    """Finds the modules of e2cnn where they are, and gives them to the loader above."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name.split(".")[0] == "e2cnn" else None
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


@cache
def import_e2cnn() -> Any:
    """The package, with ``gspaces`` and ``nn`` imported.

    Raises:
        Unavailable: it is not installed.
    """
    sys.meta_path.insert(0, _Finder)
    try:
        package = importlib.import_module("e2cnn")
        for name in ("gspaces", "nn"):
            importlib.import_module(f"e2cnn.{name}")
    except ImportError as error:
        raise Unavailable("e2cnn", [f"{error}: pip install --no-deps e2cnn==0.2.3"]) from error
    finally:
        sys.meta_path.remove(_Finder)
    return package


def e2cnn_fields(space: Space, fields: Sequence[FieldType]) -> list[Any]:
    """Types of fields as e2cnn has them, on one space.

    Raises:
        Unavailable: e2cnn is not installed, or a field is neither regular nor an irrep: of others it chooses other
            coordinates.
    """
    nn = import_e2cnn().nn
    gspace = _gspace(space, max(irrep.frequency for t in fields for rep in t.representations for irrep in rep.members))

    def found(name: str, label: tuple[int, ...]) -> Any:
        if name == "regular":
            return gspace.regular_repr
        if name.startswith("irrep_"):
            return gspace.irrep(*label) if space.group != _TRIVIAL else gspace.trivial_repr
        raise Unavailable(
            "e2cnn", [f"the field {name} has other coordinates there: regular fields and irreps have not"]
        )

    return [nn.FieldType(gspace, [found(rep.name, rep.irreps[0]) for rep in t.representations]) for t in fields]


_TRIVIAL = Space.of("C1").group


def _gspace(space: Space, frequency: int) -> Any:
    gspaces, group = import_e2cnn().gspaces, space.group
    if group == _TRIVIAL:
        return gspaces.TrivialOnR2()
    if group.flips and group.rotations == 1:
        return gspaces.Flip2dOnR2(space.axis)
    if not group.is_finite:
        return (
            gspaces.FlipRot2dOnR2(-1, maximum_frequency=frequency, axis=space.axis)
            if group.flips
            else gspaces.Rot2dOnR2(-1, maximum_frequency=frequency)
        )
    return (
        gspaces.FlipRot2dOnR2(group.rotations, axis=space.axis) if group.flips else gspaces.Rot2dOnR2(group.rotations)
    )


def e2cnn(inputs: Arrays, dtype: str, device: str) -> BoundRun:
    """The expansion of a problem's weights by e2cnn's ``R2Conv``, built for them.

    Args:
        inputs: of the operation "expansion".
        dtype: "float32"; its bases are.
        device: "cpu" or "cuda".

    Raises:
        Unavailable: e2cnn is not installed or cannot have this layer.
    """
    if dtype != "float32":
        raise Unavailable("e2cnn", [f"it samples bases in float32, not {dtype}"])
    layer = problem_arrays.described(inputs)
    in_type, out_type, _ = problem_arrays.planned(layer)
    given, out = e2cnn_fields(out_type.space, [in_type, out_type])
    options: dict[str, Any] = {"dilation": layer.dilation, "groups": layer.groups, "bias": False, "initialize": False}
    for name, words in (("rings", layer.rings), ("sigma", layer.sigma)):
        if words:
            options[name] = [float(word) for word in words.split(",")]
    if layer.frequencies_cutoff:
        factor = float(layer.frequencies_cutoff)
        options["frequencies_cutoff"] = lambda r: factor * r
    peer = import_e2cnn().nn.R2Conv(given, out, layer.kernel_size, recompute=True, **options).to(device)

    def run(tensors: Any) -> dict[str, torch.Tensor]:
        made = peer.basisexpansion(tensors["weights"])
        return {"filter": made.reshape(made.shape[0], made.shape[1], layer.kernel_size, layer.kernel_size)}

    return BoundRun(run, problem_arrays.reals(inputs, dtype, "expansion"), ("weights",), device)
