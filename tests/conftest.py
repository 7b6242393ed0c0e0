"""Fixtures are made once a run, wherever the tests that use them stand."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = [
    "tests.support.training",
    "tests.support.translation",
    "tests.support.averages",
]
