"""What is allowed: algorithms, shapes and dtypes, checked before any work on extents and names alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eqconv_cli.backends.steerable.options import Fused
from eqconv_cli.backends.steerable.plan import Plan
from eqconv_cli.errors import Unavailable

#: Made of a framework's own operations.
COMPOSITIONS = ("dense", "dense_direct", "irreps_loop", "irreps_vec", "packed", "csr", "harmonic", "orbit")
#: Compiled.
COMPILED = ("fused", "fused_orbit", "fused_direct")
ALGORITHMS = (*COMPOSITIONS, *COMPILED)
#: What "auto" is where the kernels can compute, and where they cannot.
AUTO, AUTO_COMPOSITION = "fused_orbit", "harmonic"
FLOATS = ("float32", "float64")


def choose(
    algorithm: str, settings: Fused | None, missing: Callable[[Fused], Sequence[str]]
) -> tuple[str, Fused | None]:
    """The algorithm that is meant, and the settings of the compiled kernels; None for a composition.

    Args:
        algorithm: one of ``ALGORITHMS``, or "auto": "fused_orbit" where the kernels can compute, else "harmonic".
        settings: of the compiled kernels; only with "auto" and those of ``COMPILED``.
        missing: says why the kernels cannot compute with such settings here; empty when they can.

    Raises:
        ValueError: there is no such algorithm, or it has no settings.
        Unavailable: the kernels are asked for and something is missing.
    """
    if algorithm != "auto" and algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm={algorithm!r} is unknown: allowed: auto, {', '.join(ALGORITHMS)}")
    if algorithm in COMPOSITIONS:
        if settings is not None:
            raise ValueError(f"settings={settings} with algorithm={algorithm!r}: only {', '.join(COMPILED)} have them")
        return algorithm, None
    how = settings or Fused()
    reasons = missing(how)
    if algorithm == "auto":
        if not reasons:
            return AUTO, how
        if settings is None:
            return AUTO_COMPOSITION, None
    if reasons:
        raise Unavailable(f"algorithm={algorithm!r}", reasons)
    return algorithm, how


def check_float(name: str, dtype: str, allowed: Sequence[str] = FLOATS) -> None:
    """Raises TypeError for any other dtype."""
    if dtype not in allowed:
        raise TypeError(f"{name} has dtype {dtype}: allowed: {', '.join(allowed)}")


def check_filter(name: str, shape: Sequence[int | None], plan: Plan) -> None:
    """Raises ValueError unless ``shape`` is that of the filter; an extent that a graph does not know is None."""
    wanted = plan.filter_shape
    if len(shape) != 4 or any(n is not None and n != m for n, m in zip(shape, wanted, strict=True)):
        raise ValueError(
            f"{name} has shape {tuple(shape)}: expected {wanted}, [out channels, in channels / groups, k, k]"
        )
