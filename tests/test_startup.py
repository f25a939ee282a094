"""Help, usage errors and completion answer at once: no framework, no SciPy, little more than Typer and rich."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "tensorflow", "keras", "scipy", "matplotlib", "numpy")


def modules_after(code: str) -> set[str]:
    program = (
        f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["verify", "--help"],
        ["bench", "--help"],
        ["basis", "--help"],
        ["build-kernels", "--help"],
        ["info", "--help"],
    ],
)
def test_help_imports_no_framework(arguments: list[str]) -> None:
    loaded = modules_after(f"sys.argv[1:] = {arguments!r}; from eqconv_cli.app import main; main()")
    assert "eqconv_cli.app" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "--tol", "0"],
        ["verify", "--device", "toaster"],
        ["build-kernels", "--target", "x"],
        ["basis", "--group", "C8", "--rings", "x"],
        ["nonsense"],
    ],
)
def test_usage_errors_import_no_framework(arguments: list[str]) -> None:
    loaded = modules_after(f"sys.argv[1:] = {arguments!r}; from eqconv_cli.app import main; main()")
    assert not loaded & set(HEAVY)


def test_catalog_and_package_import_no_framework() -> None:
    loaded = modules_after("import eqconv_cli.catalog; eqconv_cli.catalog.family('feature_steered')")
    assert "eqconv_cli.backends.feature_steered" in loaded
    assert not loaded & {"torch", "tensorflow", "keras", "matplotlib"}


def test_numpy_face_imports_no_framework() -> None:
    assert not modules_after("import eqconv_cli.numpy") & {"torch", "tensorflow", "keras"}
