"""The compiled core seen from Python: what is built, why something is not, how to build it and how to call it.

The sources in ``cuda/`` are compiled on the user's machine by ``eqconv build-kernels`` into a cache
(:mod:`~eqconv_cli.kernels.cache`). Importing this package loads no library, no NumPy and no framework, and nothing but
:func:`build` ever runs a compiler.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels import targets as _targets

if TYPE_CHECKING:
    from eqconv_cli.events import Event
    from eqconv_cli.kernels.library import Core

TARGETS = _targets.NAMES


def built(target: str) -> Path | None:
    """The valid, current library of a target in the cache, or None.

    Never builds, and raises only for a target that there is not.
    """
    from eqconv_cli.kernels import cache, sources

    try:
        root = sources.root()
        entry = cache.newest(target, sources.key(_targets.target(target), root))
    except (Unavailable, OSError):
        return None
    return entry.library if entry else None


def missing(target: str) -> list[str]:
    """Why the library of a target cannot be used, each reason with its remedy; empty when it can."""
    from eqconv_cli.kernels import cache, toolchain

    record = _targets.target(target)
    reasons = toolchain.missing_framework(record.framework)
    if not reasons and built(target) is None:
        stale = "is older than its sources or than what it was built for" if cache.any_entry(target) else "is not built"
        reasons = [f"the compiled {record.noun} {stale}: eqconv build-kernels --target {target}"]
    return reasons


def core(device: str) -> Core:
    """The compiled core that computes on "cpu", "cuda" or "emulated"; loaded once.

    Raises:
        Unavailable: it is not built here, or its library does not load.
    """
    from eqconv_cli.kernels.library import load

    return load(device)


def build(
    targets: Sequence[str] = TARGETS, *, arch: Sequence[str] | None = None, jobs: int | None = None, force: bool = False
) -> Generator[Event, None, None]:
    """Compile what is not in the cache yet, and tell about it while it happens.

    Args:
        targets: names out of :data:`TARGETS`.
        arch: GPU architectures for the target "cuda", e.g. ``["sm_80", "sm_90"]``; None takes the usual ones.
        jobs: compilers at a time; None takes what cores, memory and the variable MAX_JOBS allow.
        force: compile what is in the cache, too.

    Yields:
        ``RunStarted`` with the number of steps, ``CompileStarted`` and ``UnitFinished`` for each, ``TargetFinished``
        for each target and ``RunFinished``.
    """
    from eqconv_cli.kernels.builder import build as run

    yield from run(targets, arch=arch, jobs=jobs, force=force)
