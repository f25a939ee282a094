"""What pyproject.toml cannot say: the sources of the compiled core, ``cuda/``, are installed as ``eqconv_cli/cuda``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["eqconv_cli*"]), "eqconv_cli.cuda"],
    package_dir={"eqconv_cli.cuda": "cuda"},
)
