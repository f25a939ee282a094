"""From the weights of a steerable layer to its filter, in NumPy: every algorithm, and its transposed pipeline.

Weiler, Cesa, arXiv 1911.08251, eq. 4. ``dense`` is what QUVA-Lab/e2cnn ``nn/modules/r2_conv/basisexpansion_*.py``
computes, ``irreps_loop`` what its authors tried first (issue 12, where ``packed`` was proposed). For each type of
pair of fields an algorithm is a linear map of weights [out occurrences, in occurrences, d] to a part of the filter
[out occurrences, so, in occurrences, si, S].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from eqconv_cli.backends.steerable import arguments, numpy_fused, tables
from eqconv_cli.backends.steerable.basis import SteerableBasis
from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.backends.steerable.plan import PairType, Plan

Array = npt.NDArray[Any]


def expand(
    plan: Plan,
    weights: Array,
    *,
    algorithm: str = "auto",
    settings: Fused | None = None,
    out: Array | None = None,
) -> Array:
    """The filter of the weights.

    Args:
        plan: of the layer.
        weights: [plan.weights_size], float32 or float64.
        algorithm: one of ``arguments.ALGORITHMS``; "auto" takes "fused_orbit" where the kernels are built, else
            "harmonic".
        settings: of the compiled kernels, with "fused", "fused_orbit" and "fused_direct".
        out: [out channels, in channels / groups, k, k] in the dtype of the weights, C-contiguous, to write to; None
            makes it.

    Returns:
        [out channels, in channels / groups, k, k] in the dtype of the weights; ``out`` where it is given.

    Raises:
        TypeError, ValueError: an argument is not allowed.
        Unavailable: a compiled algorithm is asked for and the kernels are not built.
    """
    arguments.check_float("weights", weights.dtype.name)
    plan.check_weights(weights.shape)
    made = _checked_out(out, plan, weights.dtype)
    name, how = arguments.choose(algorithm, settings, _missing)
    flat = made.reshape(*made.shape[:2], -1)
    if how is not None:
        numpy_fused.expand(getattr(plan, name), np.ascontiguousarray(weights), how, out=flat)
        return made
    pipeline = _PIPELINES[name]
    if not (tables.covers(plan) and (pipeline.overwrites or len(plan.pairs) == 1)):
        flat.fill(0)
    for pair, place in zip(plan.pairs, tables.places(plan), strict=True):
        mine = weights[pair.start : pair.start + pair.weights].reshape(pair.shape)
        constants = _constants(pipeline, pair, weights.dtype)
        if place.contiguous:
            pipeline.forward(constants, mine, _part(flat, pair, place))
        else:
            block = np.empty((*place.rows.shape, *place.columns.shape, flat.shape[2]), weights.dtype)
            pipeline.forward(constants, mine, block)
            flat[place.rows[:, :, None, None], place.columns] = block
    return made


def expand_backward(plan: Plan, grad_filter: Array, *, algorithm: str = "auto", settings: Fused | None = None) -> Array:
    """The transposed map: the gradient of the weights for that of the filter, by the algorithm's own pipeline.

    Args:
        plan: of the layer.
        grad_filter: [out channels, in channels / groups, k, k], float32 or float64.
        algorithm, settings: as for :func:`expand`.

    Returns:
        [plan.weights_size] in the dtype of ``grad_filter``.

    Raises:
        TypeError, ValueError: an argument is not allowed.
        Unavailable: a compiled algorithm is asked for and the kernels are not built.
    """
    arguments.check_float("grad_filter", grad_filter.dtype.name)
    arguments.check_filter("grad_filter", grad_filter.shape, plan)
    name, how = arguments.choose(algorithm, settings, _missing)
    flat = np.ascontiguousarray(grad_filter).reshape(*grad_filter.shape[:2], -1)
    if how is not None:
        return numpy_fused.expand_transposed(getattr(plan, name), flat, how)
    pipeline = _PIPELINES[name]
    made = np.empty(plan.weights_size, grad_filter.dtype)
    for pair, place in zip(plan.pairs, tables.places(plan), strict=True):
        part = _part(flat, pair, place) if place.contiguous else flat[place.rows[:, :, None, None], place.columns]
        constants = _constants(pipeline, pair, grad_filter.dtype)
        made[pair.start : pair.start + pair.weights] = pipeline.transposed(constants, part).reshape(-1)
    return made


def _missing(settings: Fused) -> list[str]:
    return numpy_fused.missing(settings, "cpu")


def _checked_out(out: Array | None, plan: Plan, dtype: np.dtype[Any]) -> Array:
    if out is None:
        return np.empty(plan.filter_shape, dtype)
    arguments.check_filter("out", out.shape, plan)
    if out.dtype != dtype:
        raise TypeError(f"out has dtype {out.dtype} but weights has dtype {dtype}: they must be equal")
    if not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError("out must be C-contiguous and writable")
    return out


def _part(filter: Array, pair: PairType, place: tables.Place) -> Array:
    """The blocks of a pair type, a view [out occurrences, so, in occurrences, si, S]: splitting axes copies nothing."""
    rows, columns = place.rows.ravel(), place.columns.ravel()
    part = filter[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return part.reshape(*place.rows.shape, *place.columns.shape, filter.shape[2])


class Pipeline(NamedTuple):
    """An algorithm for one type of pair."""

    #: Its constants, from a basis and a dtype.
    constants: Callable[[SteerableBasis, np.dtype[Any]], Any]
    #: ``forward(constants, weights [a, b, d], out [a, so, b, si, S])`` writes ``out``. Next to one another in memory
    #: are b, si and S: they can be merged.
    forward: Callable[[Any, Array, Array], None]
    #: ``transposed(constants, grad [a, so, b, si, S])`` gives [a · b, d].
    transposed: Callable[[Any, Array], Array]
    #: False: like the original it clears a filter of several pair types before it writes the blocks.
    overwrites: bool = True


def _constants(pipeline: Pipeline, pair: PairType, dtype: np.dtype[Any]) -> Any:
    basis = pair.basis
    return tables.kept(basis, (pipeline.constants, dtype), lambda: pipeline.constants(basis, dtype))


def _rows(weights: Array) -> Array:
    """[a, b, d] as one row for each pair of fields."""
    return weights.reshape(-1, weights.shape[-1])


def _put(blocks: Array, out: Array) -> None:
    """Blocks [a · b, so · si · S] to their place."""
    a, so, b, si, pixels = out.shape
    out[...] = blocks.reshape(a, b, so, si, pixels).transpose(0, 2, 1, 3, 4)


def _take(grad: Array) -> Array:
    """The way back of :func:`_put`, [a · b, so, si, S]."""
    a, so, b, si, pixels = grad.shape
    return np.ascontiguousarray(grad.transpose(0, 2, 1, 3, 4)).reshape(a * b, so, si, pixels)


# dense: one product with the sampled basis, then the reordering.


def _flat_dense(basis: SteerableBasis, dtype: np.dtype[Any]) -> Array:
    return basis.dense.reshape(len(basis), -1).astype(dtype, copy=False)


def _dense(basis: Array, weights: Array, out: Array) -> None:
    _put(_rows(weights) @ basis, out)


def _dense_transposed(basis: Array, grad: Array) -> Array:
    return _flat(_take(grad)) @ basis.T


def _flat(blocks: Array) -> Array:
    return blocks.reshape(len(blocks), -1)


# dense_direct: a product for each output channel, which writes rows of the filter.


def _dense_rows(basis: SteerableBasis, dtype: np.dtype[Any]) -> Array:
    """[so, d, si · S]."""
    so, si, pixels = basis.block_shape
    rows = basis.dense.transpose(1, 0, 2, 3).reshape(so, len(basis), si * pixels)
    return np.ascontiguousarray(rows, dtype)


def _dense_direct(rows: Array, weights: Array, out: Array) -> None:
    a, so, b, si, pixels = out.shape
    merged = out.reshape(a, so, b, si * pixels)
    for o in range(so):
        np.matmul(weights, rows[o], out=merged[:, o])


def _dense_direct_transposed(rows: Array, grad: Array) -> Array:
    a, so, b, si, pixels = grad.shape
    merged = grad.reshape(a, so, b, si * pixels)
    made: Array = sum(merged[:, o] @ rows[o].T for o in range(so))
    return _rows(made)


# irreps_loop, irreps_vec, packed, csr: a kernel in the coordinates of the irreps, then Q_out and Q_in^-1.


class Change(NamedTuple):
    """Q_out and Q_in^-1; None for the identity."""

    left: Array | None
    right: Array | None


def _change(basis: SteerableBasis, dtype: np.dtype[Any]) -> Change:
    out_rep, in_rep = basis.out_rep, basis.in_rep
    left = None if out_rep.is_identity else out_rep.change_of_basis.astype(dtype)
    return Change(left, None if in_rep.is_identity else in_rep.inverse.astype(dtype))


def _recombined(change: Change, khat: Array) -> Array:
    """Q_out khat Q_in^-1 for [K, so, si, n]."""
    if change.left is not None:
        khat = (change.left @ khat.reshape(*khat.shape[:2], -1)).reshape(khat.shape)
    return khat if change.right is None else change.right.T @ khat


def _recombined_back(change: Change, grad: Array) -> Array:
    """Q_out^T grad Q_in^-T."""
    if change.right is not None:
        grad = change.right @ grad
    return grad if change.left is None else (change.left.T @ grad.reshape(*grad.shape[:2], -1)).reshape(grad.shape)


class ByIrreps(NamedTuple):
    """The constants of an algorithm in the coordinates of the irreps."""

    change: Change
    #: (so, si, S).
    shape: tuple[int, int, int]
    basis: Any


def _by_irreps(
    made: Callable[[SteerableBasis, np.dtype[Any]], Any], basis: SteerableBasis, dtype: np.dtype[Any]
) -> ByIrreps:
    return ByIrreps(_change(basis, dtype), basis.block_shape, made(basis, dtype))


def _through_irreps(fill: Callable[[ByIrreps, Array], Array], constants: ByIrreps, weights: Array, out: Array) -> None:
    khat = fill(constants, _rows(weights)).reshape(-1, *constants.shape)
    _put(_recombined(constants.change, khat), out)


def _back_through_irreps(read: Callable[[ByIrreps, Array], Array], constants: ByIrreps, grad: Array) -> Array:
    return read(constants, _recombined_back(constants.change, _take(grad)))


def _irreps_pipeline(
    made: Callable[[SteerableBasis, np.dtype[Any]], Any],
    fill: Callable[[ByIrreps, Array], Array],
    read: Callable[[ByIrreps, Array], Array],
) -> Pipeline:
    """``fill`` makes khat of weights [K, d]; ``read`` is its transpose, from [K, so, si, S]."""
    return Pipeline(partial(_by_irreps, made), partial(_through_irreps, fill), partial(_back_through_irreps, read))


def _irrep_blocks(basis: SteerableBasis, dtype: np.dtype[Any]) -> list[tables.IrrepBlock]:
    return [block._replace(values=block.values.astype(dtype)) for block in tables.irrep_blocks(basis)]


def _fill_blocks(constants: ByIrreps, weights: Array) -> Array:
    khat = np.zeros((len(weights), *constants.shape), weights.dtype)
    for elements, rows, columns, values in constants.basis:
        khat[:, rows, columns] = (weights[:, elements] @ _flat(values)).reshape(-1, *values.shape[1:])
    return khat


def _read_blocks(constants: ByIrreps, grad: Array) -> Array:
    made = np.empty((len(grad), sum(len(block.elements) for block in constants.basis)), grad.dtype)
    for elements, rows, columns, values in constants.basis:
        made[:, elements] = _flat(grad[:, rows, columns]) @ _flat(values).T
    return made


def _flat_padded(basis: SteerableBasis, dtype: np.dtype[Any]) -> Array:
    return basis.padded.reshape(len(basis), -1).astype(dtype, copy=False)


def _fill_padded(constants: ByIrreps, weights: Array) -> Array:
    made: Array = weights @ constants.basis
    return made


def _read_padded(constants: ByIrreps, grad: Array) -> Array:
    made: Array = _flat(grad) @ constants.basis.T
    return made


def _slices(basis: SteerableBasis, dtype: np.dtype[Any]) -> tables.Slices:
    """Values as [so, si, L, S] and elements as [so, si, L]: a small product for each entry of khat."""
    found = tables.slices(basis)
    values = np.ascontiguousarray(np.moveaxis(found.values, 0, 2), dtype)
    return found._replace(values=values, elements=np.moveaxis(found.elements, 0, 2))


def _fill_slices(constants: ByIrreps, weights: Array) -> Array:
    values, elements, _ = constants.basis
    khat = np.empty((len(weights), *constants.shape), weights.dtype)
    np.matmul(weights.T[elements].swapaxes(2, 3), values, out=np.moveaxis(khat, 0, 2))
    return khat


def _read_slices(constants: ByIrreps, grad: Array) -> Array:
    values, _, back = constants.basis
    entries = values @ np.moveaxis(grad, 0, 3)
    # [so, si, L, K]; the packed basis counts its entries with L first.
    return _summed(np.moveaxis(entries, 2, 0).reshape(-1, len(grad)), back)


def _csr(basis: SteerableBasis, dtype: np.dtype[Any]) -> Any:
    from scipy import sparse  # 0.1 s that nothing else here needs

    starts, columns, values = basis.csr
    return sparse.csr_matrix((values.astype(dtype), columns, starts), shape=(len(basis), math.prod(basis.block_shape)))


def _fill_csr(constants: ByIrreps, weights: Array) -> Array:
    return np.ascontiguousarray(weights @ constants.basis)


def _read_csr(constants: ByIrreps, grad: Array) -> Array:
    made: Array = (constants.basis @ _flat(grad).T).T
    return made


def _summed(entries: Array, by: tables.Segments) -> Array:
    """[n, K] to [K, targets]: sums of rows, which are one piece of memory each."""
    made: Array = np.add.reduceat(entries[by.order], by.first, axis=0)
    return made.T


# harmonic: coefficients of the harmonics in the coordinates of the irreps, Q_out and Q_in^-1, then the harmonics.


class ByHarmonics(NamedTuple):
    """The constants of ``harmonic``."""

    change: Change
    #: (so, si, H).
    shape: tuple[int, int, int]
    coupled: tables.Coupled
    #: [H, S].
    harmonic: Array


def _by_harmonics(basis: SteerableBasis, dtype: np.dtype[Any]) -> ByHarmonics:
    found = tables.coupled(basis)
    so, si, _ = basis.block_shape
    return ByHarmonics(
        _change(basis, dtype),
        (so, si, len(basis.harmonics)),
        found._replace(factor=found.factor.astype(dtype)[:, None]),
        basis.harmonic.astype(dtype, copy=False),
    )


def _harmonic(constants: ByHarmonics, weights: Array, out: Array) -> None:
    a, so, b, si, pixels = out.shape
    coupled = constants.coupled
    # Entries come in the order of their places.
    entries = _rows(weights).T[coupled.element] * coupled.factor
    chat = np.zeros((math.prod(constants.shape), a * b), weights.dtype)
    chat[coupled.at.target] = np.add.reduceat(entries, coupled.at.first, axis=0)
    mixed = _recombined(constants.change, chat.reshape(1, so, si, -1))
    ordered = mixed.reshape(so, si, -1, a, b).transpose(3, 0, 4, 1, 2).reshape(a, so, b * si, -1)
    np.matmul(ordered, constants.harmonic, out=out.reshape(a, so, b * si, pixels))


def _harmonic_transposed(constants: ByHarmonics, grad: Array) -> Array:
    a, so, b, si, _ = grad.shape
    coupled = constants.coupled
    sums = (grad @ constants.harmonic.T).transpose(1, 3, 4, 0, 2).reshape(1, so, si, -1)
    chat = _recombined_back(constants.change, sums).reshape(-1, a * b)
    return _summed(chat[coupled.place] * coupled.factor, coupled.back)


# orbit: dense for one row of each orbit of the grid's symmetries, then copies with their signs.


def _orbits(basis: SteerableBasis, dtype: np.dtype[Any]) -> tables.Orbits:
    found = tables.orbits(basis)
    return found._replace(values=_flat(found.values).astype(dtype, copy=False), sign=found.sign.astype(dtype))


def _orbit(constants: tables.Orbits, weights: Array, out: Array) -> None:
    originals = _rows(weights) @ constants.values
    _, so, _, si, pixels = out.shape
    copies = originals[:, constants.source].reshape(-1, so, si, pixels)
    _put(copies * constants.sign, out)


def _orbit_transposed(constants: tables.Orbits, grad: Array) -> Array:
    a, so, b, si, pixels = grad.shape
    copies = grad.transpose(1, 3, 4, 0, 2).reshape(so, si, pixels, -1) * constants.sign[..., None]
    return _summed(copies.reshape(-1, a * b), constants.back) @ constants.values.T


_PIPELINES = {
    "dense": Pipeline(_flat_dense, _dense, _dense_transposed, overwrites=False),
    "dense_direct": Pipeline(_dense_rows, _dense_direct, _dense_direct_transposed),
    "irreps_loop": _irreps_pipeline(_irrep_blocks, _fill_blocks, _read_blocks),
    "irreps_vec": _irreps_pipeline(_flat_padded, _fill_padded, _read_padded),
    "packed": _irreps_pipeline(_slices, _fill_slices, _read_slices),
    "csr": _irreps_pipeline(_csr, _fill_csr, _read_csr),
    "harmonic": Pipeline(_by_harmonics, _harmonic, _harmonic_transposed),
    "orbit": Pipeline(_orbits, _orbit, _orbit_transposed),
}
