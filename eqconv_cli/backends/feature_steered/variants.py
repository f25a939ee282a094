"""The variants of the feature-steered family: one record for each way of computing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from eqconv_cli.backends.feature_steered.arguments import SEGMENT_SUMS
from eqconv_cli.catalog import Variant

PREPARE = {
    "numpy": "eqconv_cli.backends.feature_steered.numpy:prepare",
    "torch": "eqconv_cli.backends.feature_steered.torch_runs:prepare",
    "tensorflow": "eqconv_cli.backends.feature_steered.tensorflow_runs:prepare",
}
DEVICES = {"numpy": ("cpu",), "torch": ("cpu", "cuda"), "tensorflow": ("cpu", "cuda")}
ORDERS: dict[str, bool | str] = {"last": False, "first": True, "edges": "edges"}
SOURCES = {
    "v1": "tensorflow/graphics, released operator and pull request #101",
    "v2": "tensorflow/graphics pull request #101",
    "v3": "tensorflow/graphics pull request #101",
    "gather_sum": "tensorflow/graphics pull request #155",
    "sparse_matmul": "tensorflow/graphics pull request #155",
    "pyg": "pyg-team/pytorch_geometric FeaStConv",
    "auto": "the cost model",
    "closed_form": "Verma, Boyer, Verbeek, CVPR 2018, differentiated by hand",
    "fused": "cuda/feature_steered",
}
_NO_AUTOGRAD = "values only: NumPy does not differentiate, closed_form@numpy has the gradients"
_RAW_OVERFLOWS = "the plain (published) exponentials overflow or lose all digits here; that is why there are others"


def variant(
    framework: str,
    algorithm: str,
    *,
    order: str | None = None,
    segment_sum: str | None = None,
    fold: bool = True,
    softmax: str = "stable",
    mode: str | None = None,
    slow: bool = False,
) -> Variant:
    """The record of an algorithm with its options; what is not said stays at the operator's default."""
    arguments: dict[str, Any] = {"version": algorithm, "memory_efficient": fold, "softmax": softmax}
    if order is not None:
        arguments["transform_data_first"] = ORDERS[order]
    if segment_sum is not None:
        arguments["segment_sum_impl"] = segment_sum
    if mode is not None:
        arguments |= {"compiled": True} if framework == "torch" else {"mode": mode}
    shown = (
        segment_sum,
        order,
        None if fold else "nofold",
        None if softmax == "stable" else softmax,
        mode,
    )
    return Variant(
        algorithm=algorithm,
        framework=framework,
        prepare=PREPARE[framework],
        options=tuple(option for option in shown if option is not None),
        arguments=arguments,
        devices=DEVICES[framework],
        gradient=framework != "numpy",
        why_no_gradient=_NO_AUTOGRAD,
        refuses={"hard": _RAW_OVERFLOWS} if softmax == "raw" else {},
        slow=slow,
        source=SOURCES[algorithm],
    )


def _on_every_framework(framework: str) -> Iterator[Variant]:
    folds = (True,) if framework == "numpy" else (True, False)
    for segment_sum in SEGMENT_SUMS:
        for order in ORDERS:
            for fold in folds:
                yield variant(framework, "v1", order=order, segment_sum=segment_sum, fold=fold)
    yield variant(framework, "v1", order="last", segment_sum="sorted", softmax="guarded")
    yield variant(framework, "v1", order="last", segment_sum="sorted", softmax="raw")
    for order in ("last", "first"):
        yield variant(framework, "v2", order=order)
    yield variant(framework, "v2", order="last", softmax="raw")
    for order in ("last", "first"):
        for fold in folds:
            yield variant(framework, "v3", order=order, fold=fold)
    yield variant(framework, "v3", order="last", softmax="raw")
    for order in ("last", "first"):
        for fold in folds:
            yield variant(framework, "sparse_matmul", order=order, fold=fold)
    yield variant(framework, "pyg")
    yield variant(framework, "gather_sum")
    yield variant(framework, "auto")


#: TensorFlow Graphics' operator as it was last released, eager.
RELEASED = variant("tensorflow", "v1", order="last", segment_sum="unsorted", fold=False, softmax="raw")


def _compiled() -> Iterator[Variant]:
    tf = "tensorflow"
    for segment_sum in ("sorted", "unsorted"):
        yield variant(tf, "v1", order="last", segment_sum=segment_sum, mode="function")
    for algorithm in ("v2", "v3", "sparse_matmul"):
        yield variant(tf, algorithm, order="last", mode="function")
    yield variant(tf, "pyg", mode="function")
    yield variant(tf, "v1", order="last", segment_sum="unsorted", mode="xla", slow=True)
    yield variant(tf, "pyg", segment_sum="unsorted", mode="xla", slow=True)
    yield variant("torch", "v1", order="last", segment_sum="unsorted", mode="compile", slow=True)


def _fused_variant(
    framework: str,
    *options: str,
    devices: tuple[str, ...] = (),
    settings: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    slow: bool = False,
) -> Variant:
    """The record of the compiled kernels; ``settings`` as in ``Fused``, ``arguments`` for ``prepare``."""
    every = ("cpu", "emulated") if framework == "numpy" else ("cpu", "cuda", "emulated")
    gradients = {"gradients": True} if framework == "numpy" else {}
    return Variant(
        algorithm="fused",
        framework=framework,
        prepare=PREPARE[framework],
        options=options,
        arguments={"fused": settings or {}, **gradients, **(arguments or {})},
        devices=devices or every,
        needs=("{device}",) if framework == "numpy" else (framework, "{device}"),
        slow=slow,
        source=SOURCES["fused"],
    )


def _fused() -> Iterator[Variant]:
    on_gpu = {"numpy": ("emulated",), "torch": ("cuda", "emulated"), "tensorflow": ("cuda", "emulated")}
    for framework in ("numpy", "torch", "tensorflow"):
        yield _fused_variant(framework)
        for order in ("last", "first"):
            yield _fused_variant(framework, order, arguments={"transform_data_first": ORDERS[order]})
        yield _fused_variant(framework, "stable", settings={"edge_softmax": True})
        yield _fused_variant(framework, "deterministic", settings={"deterministic": True}, devices=on_gpu[framework])
    for instructions in ("avx512", "avx2", "portable"):
        yield _fused_variant("numpy", instructions, settings={"instructions": instructions}, devices=("cpu",))
    yield _fused_variant("torch", "compile", arguments={"compiled": True}, devices=("cpu", "cuda"), slow=True)
    yield _fused_variant("tensorflow", "function", arguments={"mode": "function"}, devices=("cpu", "cuda"))


CLOSED_FORM = Variant(
    algorithm="closed_form",
    framework="numpy",
    prepare=PREPARE["numpy"],
    arguments={"gradients": True, "version": "v3"},
    source=SOURCES["closed_form"],
)

#: What a user would choose among, each algorithm at its usual best.
_HEADLINES = frozenset(
    [
        RELEASED.name,
        "closed_form@numpy",
        "fused@numpy",
        "fused@torch",
        "fused@tensorflow",
        "v1+unsorted+last+compile@torch",
        "v1+unsorted+last+xla@tensorflow",
        "v1+sorted+last+function@tensorflow",
        *(
            f"{algorithm}@{framework}"
            for algorithm in ("v1+sorted+last", "v2+last", "v3+last", "sparse_matmul+last", "pyg", "gather_sum", "auto")
            for framework in ("torch", "tensorflow")
        ),
    ]
)
_ALL = (
    CLOSED_FORM,
    *_on_every_framework("numpy"),
    *_on_every_framework("torch"),
    *_on_every_framework("tensorflow"),
    RELEASED,
    *_compiled(),
    *_fused(),
)
VARIANTS = tuple(replace(v, headline=v.name in _HEADLINES) for v in _ALL)
