"""The folder src/ is the package srp; pyproject.toml has everything else."""

from pathlib import Path

from setuptools import find_packages, setup

# the one home of the pins, each with its reason behind a #
pins = Path("requirements/run.txt").read_text(encoding="utf-8").splitlines()

setup(
    package_dir={"srp": "src", "srp.scripts": "scripts"},  # compress.py runs preprocess.py
    packages=["srp", "srp.scripts", *(f"srp.{name}" for name in find_packages("src"))],
    install_requires=[pin for pin in (line.partition("#")[0].strip() for line in pins) if pin],
)
