"""What the tests of the PyTorch side share: instances of odd shapes, compared with the oracle in float64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from eqconv_cli.backends.block_sparse import reference, torch_runs
from eqconv_cli.backends.block_sparse.geometry import block_params, block_params_chain, out_extent

Arrays = dict[str, Any]

N, H, W, C, K, M = 2, 7, 11, 3, 4, 2
#: (bsize, bstride, boffset): overlaps, gaps, windows that start before the image and end behind it.
WINDOWS = [
    ((2, 3), (3, 4), (-1, -2)),
    ((3, 3), (1, 1), (0, 0)),
    ((4, 5), (2, 5), (1, 0)),
    ((3, 2), (4, 5), (-6, -2)),
    ((3, 4), (3, 4), (-3, 2)),
]


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def check(operation: str, inputs: Arrays, version: str, tolerance: float = 1e-12, **options: Any) -> None:
    """Values and, of real results, gradients in float64 against the oracle."""
    expected = getattr(reference, operation)(inputs)
    run = torch_runs.prepare(inputs, "float64", "cpu", operation=operation, version=version, **options)
    found = run.run()
    assert set(found) == set(expected)
    for name, array in expected.items():
        close(run.download(found[name]), array, tolerance, name)
    reals = [name for name, array in expected.items() if array.dtype == np.float64]
    if not reals:
        return
    rng = np.random.default_rng(1)
    cotangents = {name: rng.normal(size=expected[name].shape) for name in reals}
    gradients = getattr(reference, f"{operation}_gradients")(inputs, cotangents)
    got = run.run_backward({name: run.upload(array) for name, array in cotangents.items()})
    assert set(got) == set(gradients) & set(inputs)
    for name, gradient in got.items():
        close(run.download(gradient), gradients[name], 100 * tolerance, f"gradient of {name}")


def close(found: np.ndarray, expected: np.ndarray, tolerance: float, name: str) -> None:
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    error = np.abs(found - expected).max(initial=0)
    assert error <= tolerance * max(1, np.abs(expected).max(initial=0)), (name, error)


def window(at: Any) -> Arrays:
    return {name: ints(*pair) for name, pair in zip(("bsize", "bstride", "boffset"), at, strict=True)}


def mask_instance(at: Any, average: bool, tol: float, on_empty: str = "none") -> Arrays:
    rng = np.random.default_rng(0)
    counts = [max(1, 1 + (n - o - 1) // s) for n, o, s in zip((H, W), at[2], at[1], strict=True)]
    words = {"tol": np.float64(tol), "avgpool": np.bool_(average), "on_empty": np.array(on_empty)}
    mask = rng.normal(size=(N, H, W)).astype(np.float32)
    return {"mask": mask, "bcount": ints(*counts), **window(at), **words}


def rows(at: Any) -> np.ndarray:
    """Active blocks out of order, three of them twice."""
    found = reference.reduce_mask(mask_instance(at, False, 0.0))["active_block_indices"].astype(np.int32)
    mixed = np.random.default_rng(2).permutation(found)
    return np.concatenate([mixed, mixed[:3]])


def gather_instance(at: Any, transpose: bool) -> Arrays:
    x = np.random.default_rng(3).normal(size=(N, H, W, C))
    return {"x": x, "index": rows(at), **window(at), "transpose": np.bool_(transpose)}


def scatter_instance(at: Any, transpose: bool, add: bool) -> Arrays:
    rng, index = np.random.default_rng(4), rows(at)
    shape = (len(index), C, *at[0]) if transpose else (len(index), *at[0], C)
    flags = {"transpose": np.bool_(transpose), "add": np.bool_(add), "atomic": np.bool_(True)}
    reals = {"blocks": rng.normal(size=shape), "ybase": rng.normal(size=(N, H, W, C))}
    return {**reals, "index": index, **window(at), **flags}


def convolution_instance(k: int, strides: Any, padding: str, activation: str, bias: bool = True) -> Arrays:
    rng = np.random.default_rng(5)
    height, width = (out_extent(n, k, s, padding) for n, s in zip((H, W), strides, strict=True))
    words = {"strides": ints(*strides), "padding": np.array(padding), "activation": np.array(activation)}
    reals = {
        "x": rng.normal(size=(N, H, W, C)),
        "w": rng.normal(size=(k, k, C, K)),
        **({"bias": rng.normal(size=K)} if bias else {}),
        "base": rng.normal(size=(N, height, width, K)),
    }
    return {**reals, **words}


def some_pixels(grid: tuple[int, ...], share: float = 0.4) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(6).random(int(np.prod(grid))) < share).astype(np.int32)


def on_pixels(inputs: Arrays, share: float = 0.4) -> Arrays:
    return {**inputs, "pixels": some_pixels(inputs["base"].shape[:3], share)}


def on_blocks(inputs: Arrays, coverage: str) -> Arrays:
    k, strides = inputs["w"].shape[0], inputs["strides"].tolist()
    bsize = [k + 2 * strides[0], k + strides[1]]
    params = block_params((H, W), bsize, (k, k), strides, str(inputs["padding"]), coverage)
    index = np.argwhere(np.random.default_rng(7).random((N, *params.bcount)) < 0.5).astype(np.int32)
    return {**inputs, "index": index, "bsize": ints(*bsize), "coverage": np.array(coverage)}


def unit_instance(border: str, no_activation: bool = False, channels: int = C, project: bool = False) -> Arrays:
    rng = np.random.default_rng(8)

    def norm(extent: int) -> np.ndarray:
        return np.stack([rng.normal(size=extent) + 1, *rng.normal(size=(2, extent)), rng.random(extent) + 0.5])

    out = 5 if project else channels
    unit = {
        "x": rng.normal(size=(N, H, W, channels)),
        "w1": rng.normal(size=(channels, M)),
        "w2": rng.normal(size=(3, 3, M, M)),
        "w3": rng.normal(size=(M, out)),
        "bn2": norm(M),
        "bn3": norm(M),
        "border": np.array(border),
    }
    extra = ({} if no_activation else {"bn1": norm(channels)}) | (
        {"w_project": rng.normal(size=(C, 5))} if project else {}
    )
    return {**unit, **extra}


def unit_on_blocks(inputs: Arrays, bn: str, strides: Any, repeats: bool = False) -> Arrays:
    params = block_params_chain((H, W), (5, 7), [(1, 1), (3, 3), (1, 1)], strides)
    index = np.argwhere(np.random.default_rng(9).random((N, *params.bcount)) < 0.5).astype(np.int32)
    index = np.concatenate([index, index[:2]]) if repeats else index
    return {**inputs, "index": index, "bsize": ints(5, 7), "bn": np.array(bn), "strides": ints(*strides)}


def sites_instance(axes: int, channels: int = 4, filters: int = 6) -> Arrays:
    rng, shape = np.random.default_rng(axes), (6, 5, 4, 3)[:axes]
    coords = rng.permutation(np.argwhere(rng.random((2, *shape)) < 0.4).astype(np.int32))
    return {
        "coords": coords,
        "feats": rng.normal(size=(len(coords), channels)),
        "shape": ints(*shape),
        "batch": ints(2)[0],
    }


def submanifold_instance(axes: int, k: int, dilation: int, groups: int) -> Arrays:
    rng, sites = np.random.default_rng(10), sites_instance(axes)
    reals = {"w": rng.normal(size=(*[k] * axes, 4 // groups, 6)), "bias": rng.normal(size=6)}
    return {**sites, **reals, "dilation": ints(dilation)[0], "groups": ints(groups)[0]}


def strided_instance(axes: int, k: int, stride: int, padding: int, dilation: int, inverse: bool) -> Arrays:
    rng, sites = np.random.default_rng(11), sites_instance(axes)
    geometry = {"stride": ints(stride)[0], "padding": ints(padding)[0], "dilation": ints(dilation)[0]}
    inputs = {**sites, "w": rng.normal(size=(*[k] * axes, 4, 6)), **geometry, "inverse": np.bool_(False)}
    if inverse:
        outputs = reference.strided(inputs)["coords"]
        inputs |= {"feats": rng.normal(size=(len(outputs), 4)), "inverse": np.bool_(True)}
    return inputs


def strided_geometries() -> Iterator[tuple[int, int, int, int, int]]:
    """(axes, kernel, stride, padding, dilation)."""
    yield from [(1, 3, 2, 1, 1), (2, 2, 2, 0, 1), (2, 3, 1, 1, 2), (2, 3, 2, 1, 1), (2, 3, 3, 0, 1)]
    yield from [(3, 2, 2, 0, 1), (3, 3, 2, 1, 1), (4, 2, 1, 0, 2)]
