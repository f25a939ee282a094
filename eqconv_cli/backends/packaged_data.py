"""Data files that installed packages carry: real inputs without a download."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def packaged_file(package: str, relative: str) -> Path | None:
    """A data file inside an installed package, found without importing it; None when it is not there."""
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(location) / relative).is_file():
            return Path(location) / relative
    return None


def needed_file(package: str, relative: str) -> Path:
    """The same, where :func:`missing_file` has said that it is there; raises FileNotFoundError."""
    path = packaged_file(package, relative)
    if path is None:
        raise FileNotFoundError(f"{relative} of the package {package}")
    return path


def missing_file(package: str, relative: str, extra: str = "data") -> list[str]:
    """Why a packaged file cannot be used, and the extra of eqconv that installs it; empty when it is there."""
    if packaged_file(package, relative) is None:
        return [f'the package {package} with {relative} is not installed (pip install "eqconv[{extra}]")']
    return []
