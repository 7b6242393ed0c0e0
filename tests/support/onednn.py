"""Products on oneDNN in tests, on whatever processor."""

import importlib

import pytest

from src.modules import onednn
from src.modules.torch_private import has_onednn

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="PyTorch without oneDNN")


def record_onednn(monkeypatch, *modules: str) -> list:
    """Let everything of float32 run on oneDNN; a list that products of ``modules`` join."""
    made = []
    monkeypatch.setattr(onednn, "_LEAST_WORK", 1)
    monkeypatch.setattr(onednn, "uses_onednn", lambda: True)
    for name in modules:
        module = importlib.import_module(name)
        product = module.onednn_linear

        def recorded(*given, product=product):
            made.append(given)
            return product(*given)

        monkeypatch.setattr(module, "onednn_linear", recorded)
    return made
