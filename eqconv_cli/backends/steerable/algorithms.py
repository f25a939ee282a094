"""The names of the ways from weights to a filter, and which of them a caller gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.errors import Unavailable

#: Made of the framework's own operations.
COMPOSITIONS: Final = (
    "dense",
    "dense_direct",
    "irreps_loop",
    "irreps_vec",
    "packed",
    "csr",
    "harmonic",
    "orbit",
)
#: The compiled kernels, each with the table of a plan that has its name.
FUSED: Final = ("fused", "fused_orbit", "fused_direct")
ALGORITHMS: Final = (*COMPOSITIONS, *FUSED)

#: What "auto" takes where the compiled kernels are there, and where they are not.
_BEST, _BEST_COMPOSITION = "fused_orbit", "harmonic"
_DEFAULT = Fused()


def chosen(
    algorithm: str, settings: Fused | None, missing: Callable[[Fused], Sequence[str]]
) -> tuple[str, Fused | None]:
    """The algorithm that a name stands for, and the settings of the compiled kernels if it is one of them.

    Args:
        algorithm: "auto" or one of :data:`ALGORITHMS`.
        settings: only with one of :data:`FUSED`.
        missing: says why the compiled kernels cannot compute with such settings here; empty when they can.

    Raises:
        TypeError: ``settings`` are of another class.
        ValueError: there is no such algorithm, or it has no settings.
        Unavailable: a compiled kernel is asked for and something is missing.
    """
    if algorithm not in ("auto", *ALGORITHMS):
        raise ValueError(f"algorithm={algorithm!r} is unknown: allowed: auto, {', '.join(ALGORITHMS)}")
    if settings is not None and not isinstance(settings, Fused):
        raise TypeError(f"settings is of {type(settings)}: Fused is needed")
    if settings is not None and algorithm not in FUSED:
        raise ValueError(f"settings={settings} with algorithm={algorithm!r}: allowed with {', '.join(FUSED)}")
    if algorithm in COMPOSITIONS:
        return algorithm, None
    if algorithm == "auto":
        return (_BEST_COMPOSITION, None) if missing(_DEFAULT) else (_BEST, _DEFAULT)
    wanted = settings or _DEFAULT
    reasons = missing(wanted)
    if reasons:
        raise Unavailable(f"algorithm={algorithm!r}", reasons)
    return algorithm, wanted
