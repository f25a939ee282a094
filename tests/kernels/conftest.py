"""Every test here has a cache of its own and the small tree of sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from eqconv_cli.kernels import library, sources
from tests.kernels import support


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("EQCONV_CACHE", str(cache))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("MAX_JOBS", raising=False)
    library.load.cache_clear()
    return cache


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = support.make_tree(tmp_path / "sources")
    monkeypatch.setattr(sources, "root", lambda: root)
    return root
