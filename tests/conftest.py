"""Fixtures are made once a run, wherever the tests that use them stand; marks by folder."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

pytest_plugins = [
    "tests.support.training",
    "tests.support.translation",
    "tests.support.averages",
]

TRAINED = {"base", "pruned"}  # fixtures that train a model
STARTS_PROGRAMS = {"scripts", "benchmarks", "package"}


def pytest_collection_modifyitems(config, items):
    for item in items:
        folder = item.path.relative_to(config.rootpath / "tests").parts[0]
        if folder == "training" or TRAINED & set(item.fixturenames):
            item.add_marker(pytest.mark.training)
        if folder in STARTS_PROGRAMS:
            item.add_marker(pytest.mark.slow)
