"""A framework's library of operators, which opens the core of the place where it computes."""

from __future__ import annotations

import ctypes

from eqconv_cli import kernels


def open_core(operators: ctypes.CDLL, place: str) -> str:
    """Put the built core of a place ("cpu", "cuda" or "emulated") behind a library of operators.

    Returns:
        Why it cannot be opened; empty when it is.
    """
    operators.eqc_open_core.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    operators.eqc_open_core_error.restype = ctypes.c_char_p
    if operators.eqc_open_core(place.encode(), str(kernels.built(place)).encode()) == 0:
        return ""
    return str(operators.eqc_open_core_error().decode())
