"""The sources of the compiled core: where they are, which belong to a target, and their fingerprint."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from eqconv_cli import __version__
from eqconv_cli.errors import Unavailable
from eqconv_cli.kernels import toolchain
from eqconv_cli.kernels.targets import Rule, Target

_HEADERS = (".h", ".hpp", ".cuh", ".inl", ".inc")
_fingerprints: dict[tuple[object, ...], str] = {}


def root() -> Path:
    """The folder of the sources: inside the installed package, or beside it in a checkout.

    Raises:
        Unavailable: they are in neither place.
    """
    package = Path(__file__).resolve().parent.parent
    places = (package / "cuda", package.parent / "cuda")
    for folder in places:
        if (folder / "common" / "contract.h").is_file():
            return folder
    looked = " or ".join(str(place) for place in places)
    raise Unavailable(
        "the sources of the kernels", [f"they are not in {looked}"], "pip install --force-reinstall eqconv"
    )


def of_rule(rule: Rule, root: Path) -> list[Path]:
    """The sources that a rule compiles, sorted."""
    found = (path for path in root.glob(rule.sources) if path.relative_to(root).parts[0] not in rule.without)
    return sorted(path for path in found if not rule.containing or rule.containing in path.read_text(encoding="utf-8"))


def of_target(target: Target, root: Path) -> list[Path]:
    """Every source that a target compiles and every header that one of them could include, sorted."""
    compiled = {path for rule in target.rules for path in of_rule(rule, root)}
    return sorted(compiled | {path for path in _headers(root) if path.relative_to(root).parts[0] not in target.foreign})


def _headers(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        # The headers of the emulation carry the names of CUDA's, which may have no suffix.
        everything = "emulation" in Path(folder).relative_to(root).parts
        for name in names:
            if name.endswith(_HEADERS) or (everything and "." not in name):
                yield Path(folder, name)


def key(target: Target, root: Path) -> str:
    """What a library of this target must have been built from to be used here: 16 hexadecimal digits.

    Covers the contents of the sources, how they are compiled, eqconv's version, the system, and, where they decide,
    the framework's version and the processor. It asks no compiler. Contents are read again only when a file's size or
    time has changed.
    """
    files = of_target(target, root)
    states = tuple((str(path), stat.st_size, stat.st_mtime_ns) for path in files for stat in (path.stat(),))
    found = toolchain.framework(target.framework) if target.framework else None
    framework = found.identity if found else None
    memo = (target, states, framework)
    if memo not in _fingerprints:
        digest = hashlib.sha256(repr((target, framework, __version__, _system())).encode())
        if target.for_this_cpu:
            digest.update(_processor().encode())
        for path in files:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root)} {len(content)}\n".encode())
            digest.update(content)
        _fingerprints[memo] = digest.hexdigest()[:16]
    return _fingerprints[memo]


@cache
def _system() -> tuple[str, str, str]:
    return platform.system(), platform.machine(), "-".join(platform.libc_ver())


@cache
def _processor() -> str:
    """What the processor can do, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
