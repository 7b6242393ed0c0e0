"""The folder src/ is the package srp; pyproject.toml has everything else."""

from setuptools import find_packages, setup

setup(
    package_dir={"srp": "src"},
    packages=["srp", *(f"srp.{name}" for name in find_packages("src"))],
)
