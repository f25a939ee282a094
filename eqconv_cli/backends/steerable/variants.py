"""The variants of the steerable family: one record for each way of computing each operation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from eqconv_cli.backends.steerable.arguments import COMPILED, COMPOSITIONS
from eqconv_cli.catalog import Variant

PREPARE = "eqconv_cli.backends.steerable.{}_runs:prepare"
FRAMEWORKS = ("numpy", "torch", "tensorflow")
#: The layer is the same convolution whatever made its filter: these stand for all.
_LAYERS = ("dense", "harmonic")
_HEADLINES = ("dense", "dense_direct", "harmonic")

_SOURCES = {
    "dense": "QUVA-Lab/e2cnn nn/modules/r2_conv/basisexpansion_singleblock.py",
    "dense_direct": "the same product, straight into the rows of the filter",
    "irreps_loop": "QUVA-Lab/e2cnn issue 12, irrep by irrep",
    "irreps_vec": "QUVA-Lab/e2cnn issue 12, all irreps in one product",
    "packed": "QUVA-Lab/e2cnn issue 12, without the zeros between the irreps",
    "csr": "QUVA-Lab/e2cnn issue 12, a sparse product",
    "harmonic": "Weiler, Cesa, arXiv 1911.08251, eq. 4, by circular harmonics",
    "orbit": "dense for one entry of each orbit of the grid's symmetries",
    "fused": "cuda/steerable, by circular harmonics",
    "fused_orbit": "cuda/steerable, by circular harmonics and orbits",
    "fused_direct": "cuda/steerable, by the sampled basis",
}


def _composition(operation: str, framework: str, algorithm: str) -> Variant:
    return Variant(
        algorithm=algorithm,
        framework=framework,
        prepare=PREPARE.format(framework),
        arguments={"operation": operation, "algorithm": algorithm},
        devices=("cpu",) if framework == "numpy" else ("cpu", "cuda"),
        headline=algorithm in _HEADLINES and framework != "numpy",
        operation=operation,
        source=_SOURCES[algorithm],
    )


def _compiled(
    operation: str, framework: str, algorithm: str, *options: str, settings: dict[str, Any] | None = None, **more: Any
) -> Variant:
    numpy = framework == "numpy"
    every = ("cpu", "emulated") if numpy else ("cpu", "cuda", "emulated")
    return Variant(
        algorithm=algorithm,
        framework=framework,
        prepare=PREPARE.format(framework),
        options=options,
        arguments={"operation": operation, "algorithm": algorithm, "fused": settings or {}, **more},
        devices=("cpu",) if settings else every,
        needs=("{device}",) if numpy else (framework, "{device}"),
        headline=not options,
        operation=operation,
        source=_SOURCES[algorithm],
    )


def _expansions() -> Iterator[Variant]:
    for framework in FRAMEWORKS:
        for algorithm in COMPOSITIONS:
            yield _composition("expansion", framework, algorithm)
        for algorithm in COMPILED:
            yield _compiled("expansion", framework, algorithm)
    for algorithm in COMPILED:
        for instructions in ("avx512", "avx2", "portable"):
            settings = {"instructions": instructions}
            yield _compiled("expansion", "numpy", algorithm, instructions, settings=settings)
    yield _compiled("expansion", "tensorflow", "fused_orbit", "function", mode="function")


def _layers() -> Iterator[Variant]:
    for framework in FRAMEWORKS:
        for algorithm in _LAYERS:
            yield _composition("layer", framework, algorithm)
        yield _compiled("layer", framework, "fused_orbit")


def _peers() -> Iterator[Variant]:
    yield Variant(
        algorithm="e2cnn",
        framework="torch",
        prepare="eqconv_cli.backends.steerable.torch_e2cnn:e2cnn",
        devices=("cpu", "cuda"),
        headline=True,
        operation="expansion",
        peer=True,
        refuses={"quotients": "e2cnn chooses other coordinates for quotients"},
        requires=("e2cnn",),
        source="QUVA-Lab/e2cnn 0.2.3 nn/modules/r2_conv/basisexpansion_blocks.py",
    )
    yield Variant(
        algorithm="conv2d",
        framework="torch",
        prepare=f"{PREPARE.format('torch')}_plain",
        devices=("cpu", "cuda"),
        gradient=False,
        why_no_gradient="its filter is made before the first run",
        headline=True,
        operation="layer",
        peer=True,
        source="PyTorch's convolution by a filter that is there already",
    )


VARIANTS = (*_expansions(), *_layers(), *_peers())
