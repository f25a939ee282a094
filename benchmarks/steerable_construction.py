"""What a steerable layer costs before its first call, beside e2cnn's: building it, its initial weights, what it keeps;
and its training step's forward pass beside a plain convolution. Rounds are interleaved; ratios are of medians.

    pip install --no-deps e2cnn==0.2.3
    python benchmarks/steerable_construction.py --threads 2 --json construction.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from eqconv_cli.backends.steerable.basis import forget_bases
from eqconv_cli.backends.steerable.fields import FieldType, Space
from eqconv_cli.backends.steerable.plan import make_plan
from eqconv_cli.backends.steerable.torch_e2cnn import e2cnn_fields, import_e2cnn
from eqconv_cli.engine.machine import fingerprint
from eqconv_cli.torch import R2Conv

Work = Callable[[], Any]


def timed(work: Work) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    made = work()
    seconds = time.perf_counter() - begin
    del made
    return seconds


def medians(works: dict[str, Work], rounds: int) -> dict[str, float]:
    """Seconds of each, one after the other in every round; the first round is not counted."""
    samples: dict[str, list[float]] = {name: [] for name in works}
    for k in range(rounds + 1):
        for name, work in works.items():
            seconds = timed(work)
            if k:
                samples[name].append(seconds)
    return {name: statistics.median(found) for name, found in samples.items()}


def forget_all() -> None:
    """Both libraries build their bases anew."""
    forget_bases()
    single = import_e2cnn().nn.modules.r2_conv.basisexpansion_singleblock
    single._stored_filters.clear()


def regular(group: str, count: int) -> FieldType:
    """So many regular fields."""
    return Space.of(group).regular_fields(count)


def peers(types: list[FieldType]) -> list[Any]:
    """The same types in e2cnn."""
    return e2cnn_fields(types[0].space, types)


def construction(rounds: int) -> dict[str, dict[str, float]]:
    """Building a layer whose basis is there, a cold plan, and the initial weights."""
    nn = import_e2cnn().nn
    fields = regular("C8", 32)
    (theirs,) = peers([fields])
    rows = {
        "layer, C8, k = 5, 32 fields, basis kept": medians(
            {
                "e2cnn": lambda: nn.R2Conv(theirs, theirs, 5),
                "eqconv": lambda: R2Conv(fields, fields, 5),
            },
            max(3, rounds // 3),
        )
    }
    wide = regular("C16", 8)
    (wide_theirs,) = peers([wide])

    def cold_theirs() -> Any:
        forget_all()
        return nn.R2Conv(wide_theirs, wide_theirs, 9, initialize=False)

    def cold() -> Any:
        forget_all()
        return make_plan(wide, wide, 9).fused_orbit

    rows["plan, C16, k = 9, 8 fields, nothing kept"] = medians({"e2cnn": cold_theirs, "eqconv": cold}, 3)
    layer, peer = R2Conv(fields, fields, 5), nn.R2Conv(theirs, theirs, 5, initialize=False)
    rows[f"initial weights, {layer.plan.weights_size}"] = medians(
        {
            "e2cnn": lambda: nn.init.generalized_he_init(peer.weights.data, peer.basisexpansion),
            "eqconv": layer.reset_parameters,
        },
        max(3, rounds // 3),
    )
    return rows


def kept() -> dict[str, float]:
    """Bytes of constants of a C16, k = 9 layer with 8 fields, and in its checkpoint."""
    fields = regular("C16", 8)
    (theirs,) = peers([fields])
    layer, peer = R2Conv(fields, fields, 9), import_e2cnn().nn.R2Conv(theirs, theirs, 9, initialize=False)
    layer(torch.zeros(1, fields.size, 9, 9))
    packed = layer.plan.fused_orbit
    parameters = {name for name, _ in layer.named_parameters()}

    def size(tensors: Any) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    return {
        "e2cnn": size(peer.buffers()),
        "eqconv, tensors": 4 * packed.reals.size + packed.words.nbytes,
        "eqconv, with the tables in NumPy": 4 * packed.reals.size + 2 * packed.words.nbytes + packed.reals.nbytes,
        "eqconv, constants in the checkpoint": size(t for n, t in layer.state_dict().items() if n not in parameters),
    }


def training(rounds: int) -> dict[str, dict[str, float]]:
    """Forward passes that record a graph, beside a plain convolution by a parameter of the same shape."""
    rows = {}
    cases: list[tuple[str, FieldType, int]] = [("C8 regular, k = 5, 16 fields", regular("C8", 16), 5)]
    irreps = "+".join(f"16*irrep:{k}" for k in range(4))
    cases.append(("SO(2), k = 5, 16 fields of irreps 0 to 3", Space.of("SO(2)").fields(irreps), 5))
    for name, fields, k in cases:
        layer = R2Conv(fields, fields, k, padding=k // 2, bias=False)
        filter = torch.nn.Parameter(layer.filter.detach().clone())
        for side, batch in ((32, 16), (8, 64)):
            x = torch.randn(batch, fields.size, side, side)
            rows[f"{name}, {batch} x {side} x {side}"] = medians(
                {
                    "conv2d": lambda x=x, k=k, filter=filter: functional.conv2d(x, filter, padding=k // 2),
                    "eqconv": lambda x=x, layer=layer: layer(x),
                },
                rounds,
            )
    return rows


def main() -> None:
    """Print all of it, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")
    rows = {**construction(options.rounds), **training(options.rounds)}
    memory = kept()
    for name, seconds in rows.items():
        base, ours = seconds.values()
        other = next(iter(seconds))
        print(f"{name}: {other} {1e3 * base:.3f} ms, eqconv {1e3 * ours:.3f} ms: {base / ours:.2f} times as fast")
    for name, size in memory.items():
        print(f"bytes kept, C16, k = 9, 8 fields: {name} {size:,.0f}")
    if options.json:
        report = {"machine": fingerprint(), "threads": options.threads, "seconds": rows, "bytes": memory}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
