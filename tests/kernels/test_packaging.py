"""What is shipped holds every source of the compiled core, and an installed wheel builds without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def copy_of_the_checkout(folder: Path) -> Path:
    """So that building leaves nothing in the checkout."""
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("eqconv_cli", "cuda"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def sources() -> set[str]:
    files = (path for path in (ROOT / "cuda").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)) for path in files}


@pytest.mark.slow
def test_wheel_and_sdist_hold_the_sources_and_the_wheel_builds(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "70.1")
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    make = "import sys; from setuptools import build_meta as b; d = sys.argv[1]; b.build_wheel(d); b.build_sdist(d)"
    dist = tmp_path / "dist"
    dist.mkdir()
    subprocess.run([sys.executable, "-c", make, str(dist)], cwd=checkout, check=True, capture_output=True)
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {
            name.removeprefix("eqconv_cli/") for name in archive.namelist() if name.startswith("eqconv_cli/cuda/")
        }
    assert inside == sources()
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        assert {name.split("/", 1)[1] for name in tar.getnames() if "/cuda/" in name and "." in name} >= sources()

    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The dependencies of this environment, but not its eqconv: a .pth file does not run those it leads to.
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    code = "from eqconv_cli.app import main; main()"
    done = subprocess.run(
        [str(python), "-c", code, "build-kernels", "--target", "cpu", "--check", "--json", "-"],
        cwd=tmp_path,
        env={**os.environ, "EQCONV_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"check": "pass"' in done.stdout
    assert str(ROOT) not in done.stdout
