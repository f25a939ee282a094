"""The comparison behind every "pass": structure first, then positions of non-finite values, then the error.

A comparison passes only when ``error <= tolerance`` is true, so a NaN can never pass. What the oracle gives as integers
or booleans must be met exactly, and so must everything whose tolerance is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from eqconv_cli.events import Part

Array = npt.NDArray[Any]


def compare(name: str, actual: Array, expected: Array, tolerance: float, floor: float) -> Part:
    """Compare an array with the oracle's.

    Args:
        name: what is compared, for the report.
        actual: the variant's array, in its own dtype.
        expected: the oracle's array: float64, or integers or booleans, of which ``actual`` must be too; the width of
            an integer may differ.
        tolerance: largest allowed max|actual - expected| / max(floor, max|expected|); 0 for integers and booleans,
            whatever is given. At 0 a number that is not finite must be equal as well, above it only not finite.
        floor: the scale below which a difference counts as absolute.

    Returns:
        The largest errors and whether they are allowed. Where they are not, ``detail`` says where the largest error is,
        both values there, the 99.9th percentile, the share above tolerance and the mean signed error.
    """
    if is_discrete(expected):
        tolerance = 0.0

    def failed(detail: str) -> Part:
        return Part(name, float("nan"), float("nan"), tolerance, False, detail)

    if is_discrete(expected) and not same_kind(actual, expected):
        return failed(f"has dtype {actual.dtype}, expected {_KINDS[expected.dtype.kind]}")

    if actual.shape != expected.shape:
        return failed(f"has shape {list(actual.shape)}, expected {list(expected.shape)}")
    if actual.size == 0:
        return Part(name, 0.0, 0.0, tolerance, True)
    # Integers beyond 2^53 may be equal as float64 only.
    unequal = actual != expected
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    mismatch = np.isfinite(actual) != finite
    if tolerance == 0:
        mismatch |= ~finite & unequal & ~(np.isnan(actual) & np.isnan(expected))
    if mismatch.any():
        at = tuple(int(k) for k in np.argwhere(mismatch)[0])
        return failed(
            f"is {actual[at]} at {list(at)}, expected {expected[at]:.6g} "
            f"({int(mismatch.sum())} of {actual.size} elements differ in being finite)"
        )
    scale = max(floor, float(np.abs(expected[finite]).max(initial=0.0)))
    with np.errstate(invalid="ignore"):
        error = np.where(finite, np.abs(actual - expected), 0.0)
    if tolerance == 0:
        error = np.where(finite & unequal & (error == 0), 1.0, error)
    max_abs = float(error.max())
    max_rel = max_abs / scale
    if max_rel <= tolerance:
        return Part(name, max_abs, max_rel, tolerance, True)
    at = tuple(int(k) for k in np.unravel_index(int(error.argmax()), error.shape))
    share = float((error > tolerance * scale).mean())
    detail = (
        f"is {actual[at]:.9g} at {list(at)}, expected {expected[at]:.9g}; 99.9th percentile "
        f"{np.quantile(error, 0.999) / scale:.1e}, {share:.2%} above tolerance, "
        f"bias {float((actual - expected)[finite].mean()) / scale:+.1e}"
    )
    return Part(name, max_abs, max_rel, tolerance, False, detail)


_KINDS = {"i": "integers", "u": "integers", "b": "booleans"}


def is_discrete(array: Array) -> bool:
    """Whether an array holds integers or booleans, which are met exactly or not at all."""
    return array.dtype.kind in _KINDS


def same_kind(actual: Array, expected: Array) -> bool:
    """Whether both hold integers of any width, or both booleans."""
    return _KINDS.get(actual.dtype.kind) == _KINDS.get(expected.dtype.kind)


def same_arrays(before: Array, now: Array) -> bool:
    """Whether two arrays hold the same bits (NaN equals NaN)."""
    return before.shape == now.shape and before.dtype == now.dtype and before.tobytes() == now.tobytes()
