"""The package under its two names."""

import importlib.util
import sys

import src
from tests.support.training import ROOT


def test_two_names_register_nothing_twice(monkeypatch):
    """As where srp is installed and a clone is given as --user-dir src."""
    path = ROOT / "src" / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        "srp", path, submodule_search_locations=[str(path.parent)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "srp", module)
    before = set(sys.modules)
    spec.loader.exec_module(module)
    try:
        assert sys.modules["srp"] is src
        assert importlib.import_module("srp.tasks.srp_translation") is src.tasks.srp_translation
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]
