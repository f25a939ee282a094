"""The variants of the block-sparse family: one record for each way of computing each operation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from eqconv_cli.catalog import Variant

PREPARE = "eqconv_cli.backends.block_sparse.{}_runs:prepare"
FRAMEWORKS = ("numpy", "torch", "tensorflow")

#: The compositions of each operation, then those that only some frameworks have.
COMPOSITIONS: dict[str, tuple[str, ...]] = {
    "reduce_mask": ("indexed",),
    "pixel_index": ("indexed",),
    "gather": ("indexed",),
    "scatter": ("indexed",),
    "convolution": ("blocks",),
    "masked": ("dense", "matmul", "blocks", "upsample", "rulebook"),
    "residual": ("dense", "blocks", "pixels"),
    "masked_residual": ("dense", "pixels"),
    "submanifold": ("dense", "rulebook", "table"),
    "strided": ("dense", "rulebook", "table"),
}
_ALSO: dict[tuple[str, str], tuple[str, ...]] = {
    **{(operation, "numpy"): ("sliced",) for operation in ("reduce_mask", "pixel_index", "gather", "scatter")},
    **{("masked", framework): ("auto",) for framework in FRAMEWORKS},
}
#: What the hand-written gradients of NumPy go with.
_CLOSED = {
    "gather": "indexed",
    "scatter": "indexed",
    "convolution": "blocks",
    "masked": "matmul",
    "residual": "blocks",
    "masked_residual": "pixels",
    "submanifold": "rulebook",
    "strided": "rulebook",
}
_WITHOUT_GRADIENT = ("reduce_mask", "pixel_index")
_NO_AUTOGRAD = "values only: NumPy does not differentiate, closed_form@numpy has the gradients"
_DISCRETE = "a list of indices has no derivative"
_STATISTICS = {"statistics": "it takes given statistics, not those of the batch"}
_PROJECTION = {"projection": "it has no strides and no projection"}
_IN_PLACE = "it writes into an output that is there already"
_FORWARD_ONLY = "a peer of the forward pass"
_RING = {"ring": "the dense unit has the dense border"}
_PLAIN_BLOCKS = {"transposed": "it has channels last"}
_SUMS = {"sums": "sums would grow from run to run"}
#: Problems that a peer is not made for.
_PEER_LIMITS: dict[str, dict[str, str]] = {
    "conv2d": {
        **_RING,
        **_STATISTICS,
        **_PROJECTION,
        **{f"{axes}d": "it convolves images, of two axes" for axes in (1, 3, 4)},
    },
    "index_blocks": {**_RING, "strides": "it is made for stride 1"},
    "pool": {"first": "an empty mask gives it no block"},
    "index_select": _PLAIN_BLOCKS,
    "index_copy": {**_PLAIN_BLOCKS, "overlap": "it is made for blocks that do not overlap", **_SUMS},
    "spconv": {"grouped": "it has no groups on the CPU", **{f"{axes}d": "it has 2 or 3 axes" for axes in (1, 4)}},
}

_SOURCES = {
    "indexed": "uber-research/sbnet sbnet_ops, by indexing",
    "sliced": "Ren et al., CVPR 2018, sections 3.1 and 3.2, block by block",
    "blocks": "Ren et al., CVPR 2018, section 3.2",
    "upsample": "uber-research/sbnet benchmark/sparse_conv_lib.py, upsample_indices",
    "matmul": "uber-research/sbnet benchmark/sparse_conv_lib.py, sparse_conv2d_matmul",
    "dense": "the dense operation of the framework, then the wanted pixels",
    "pixels": "Ren et al., CVPR 2018, section 3.3, on compact rows",
    "rulebook": "Graham, van der Maaten, arXiv 1706.01307",
    "table": "Graham, van der Maaten, arXiv 1706.01307, all taps in one product",
    "closed_form": "differentiated by hand",
    "auto": "the cost model",
    "fused": "cuda/block_sparse",
    "conv2d": "PyTorch, the whole image in channels-last memory",
    "index_blocks": "PyTorch's index_select, conv2d and index_copy_, at the best of five block sizes",
    "spconv": "traveller59/spconv",
    "pool": "PyTorch's max_pool2d or avg_pool2d, and nonzero",
    "index_select": "PyTorch's index_select",
    "index_copy": "PyTorch's index_copy_",
}
#: Algorithm, options and arguments of the peers of each operation.
_PEERS: dict[str, tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...]] = {
    "convolution": (("conv2d", (), {}),),
    "residual": (("conv2d", (), {}),),
    "masked": (("conv2d", (), {}), ("index_blocks", (), {})),
    "masked_residual": (("conv2d", (), {}), ("conv2d", ("folded",), {"folded": True}), ("index_blocks", (), {})),
    "submanifold": (("conv2d", (), {}), ("spconv", (), {})),
    "reduce_mask": (("pool", (), {}),),
    "gather": (("index_select", (), {}),),
    "scatter": (("index_copy", (), {}), ("index_copy", ("out",), {"in_place": True})),
}

#: Compositions that ``bench`` times when nothing else is asked for, beside the compiled kernels and the peers.
_HEADLINES = {
    *((operation, "indexed") for operation in ("reduce_mask", "pixel_index", "gather", "scatter")),
    ("convolution", "blocks"),
    ("residual", "blocks"),
    ("residual", "dense"),
    ("masked", "dense"),
    ("masked", "blocks"),
    ("masked_residual", "pixels"),
    ("submanifold", "rulebook"),
    ("strided", "dense"),
    ("strided", "rulebook"),
}

_ON_ROWS = ("residual", "pixels")


def _refuses(operation: str, algorithm: str) -> dict[str, str]:
    """Residual units that an algorithm is not made for."""
    if operation not in ("residual", "masked_residual"):
        return {}
    if algorithm == "dense":
        return {**_RING, **_STATISTICS, **_PROJECTION}
    return {**_STATISTICS, **_PROJECTION} if algorithm == "fused" or (operation, algorithm) == _ON_ROWS else {}


def _composition(operation: str, framework: str, algorithm: str) -> Variant:
    discrete, numpy = operation in _WITHOUT_GRADIENT, framework == "numpy"
    return Variant(
        algorithm=algorithm,
        framework=framework,
        prepare=PREPARE.format(framework),
        arguments={"operation": operation, "version": algorithm},
        devices=("cpu",) if numpy else ("cpu", "cuda"),
        gradient=not (discrete or numpy),
        why_no_gradient=_DISCRETE if discrete else _NO_AUTOGRAD,
        refuses=_refuses(operation, algorithm),
        headline=(operation, algorithm) in _HEADLINES and not numpy,
        operation=operation,
        source=_SOURCES[algorithm],
    )


def _fused(
    operation: str, framework: str, *options: str, settings: dict[str, Any] | None = None, **arguments: Any
) -> Variant:
    discrete, numpy = operation in _WITHOUT_GRADIENT, framework == "numpy"
    every = ("cpu", "emulated") if numpy else ("cpu", "cuda", "emulated")
    gradients = {"gradients": True} if numpy and not discrete else {}
    return Variant(
        algorithm="fused",
        framework=framework,
        prepare=PREPARE.format(framework),
        options=options,
        arguments={"operation": operation, "fused": settings or {}, **gradients, **arguments},
        devices=("cpu",) if settings else every,
        needs=("{device}",) if numpy else (framework, "{device}"),
        gradient=not discrete,
        why_no_gradient=_DISCRETE,
        refuses=_refuses(operation, "fused"),
        headline=not options,
        operation=operation,
        source=_SOURCES["fused"],
    )


def _in_place(operation: str) -> Variant:
    """The compiled kernel that writes into an output which is there already, as SBNet's scatter_var does."""
    made = _fused(operation, "torch", "out", in_place=True)
    refuses = {**made.refuses, **(_SUMS if operation == "scatter" else {})}
    return replace(made, gradient=False, why_no_gradient=_IN_PLACE, headline=True, refuses=refuses)


def _peers(operation: str) -> Iterator[Variant]:
    """What there is without eqconv."""
    for algorithm, options, arguments in _PEERS.get(operation, ()):
        yield Variant(
            algorithm=algorithm,
            framework="torch",
            prepare=f"eqconv_cli.backends.block_sparse.torch_peers:{algorithm}",
            options=options,
            arguments={"operation": operation, **arguments},
            devices=("cpu", "cuda"),
            gradient=False,
            why_no_gradient=_FORWARD_ONLY,
            refuses=_PEER_LIMITS[algorithm],
            headline=True,
            operation=operation,
            peer=True,
            requires=("spconv",) if algorithm == "spconv" else (),
            source=_SOURCES[algorithm],
        )


def _closed_form(operation: str) -> Variant:
    arguments = {"operation": operation, "version": _CLOSED[operation], "gradients": True}
    return replace(_composition(operation, "numpy", "closed_form"), arguments=arguments, gradient=True)


def _of(operation: str) -> Iterator[Variant]:
    for framework in FRAMEWORKS:
        for algorithm in (*COMPOSITIONS[operation], *_ALSO.get((operation, framework), ())):
            yield _composition(operation, framework, algorithm)
        yield _fused(operation, framework)
    if operation in _CLOSED:
        yield _closed_form(operation)
    for instructions in ("avx512", "avx2", "portable"):
        yield _fused(operation, "numpy", instructions, settings={"instructions": instructions})
    yield _fused(operation, "tensorflow", "function", mode="function")
    if operation in ("masked", "masked_residual", "scatter"):
        yield _in_place(operation)
    yield from _peers(operation)


VARIANTS = tuple(variant for operation in COMPOSITIONS for variant in _of(operation))
