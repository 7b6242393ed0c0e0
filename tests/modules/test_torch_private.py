"""Functions of torch that no release promises: all are found, and their fallbacks equal them."""

import re
from pathlib import Path

import pytest
import torch

from src.modules import torch_private
from src.modules.torch_private import (
    fused_adamw_,
    has_avx512_bf16,
    onednn_linear,
    onednn_weight,
    threshold_backward,
)
from tests.support.onednn import needs_onednn

FOUND = ("LINEAR_POINTWISE", "REORDER_LINEAR_WEIGHT", "FUSED_ADAMW", "THRESHOLD_BACKWARD")
FOREACH = ("copy_", "mul_", "norm", "zero_")
# a library that stands alone looks its own up
ELSEWHERE = {"connectivity/freeze.py"}


@pytest.mark.parametrize("name", FOUND)
def test_each_is_found_on_this_torch(name):
    assert getattr(torch_private, name) is not None


@pytest.mark.parametrize("name", FOREACH)
def test_each_operator_for_many_tensors_is_found(name):
    assert getattr(torch_private, f"foreach_{name}") is getattr(torch, f"_foreach_{name}")


def test_capabilities_are_found():
    assert hasattr(torch.cpu, "get_capabilities")
    assert has_avx512_bf16() == torch.cpu._is_avx512_bf16_supported()


def test_no_other_file_calls_them():
    private = re.compile(r"torch\.(\w+\.)*_(?!_)\w+|torch\.ops\.")
    source = Path(torch_private.__file__).parents[1]
    users = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if private.search(path.read_text(encoding="utf-8"))
    }
    assert users - {"modules/torch_private.py"} == ELSEWHERE


@needs_onednn
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear_without_onednn(monkeypatch, with_bias):
    torch.manual_seed(1)
    x, weight = torch.randn(5, 37, 19), torch.randn(11, 19)
    bias = torch.randn(11) if with_bias else None
    expected = onednn_linear(x, weight, bias)
    torch.testing.assert_close(onednn_linear(x, onednn_weight(weight), bias), expected)
    monkeypatch.setattr(torch_private, "REORDER_LINEAR_WEIGHT", None)
    torch.testing.assert_close(onednn_linear(x, onednn_weight(weight.t().t()), bias), expected)
    monkeypatch.setattr(torch_private, "LINEAR_POINTWISE", None)
    torch.testing.assert_close(onednn_linear(x, onednn_weight(weight), bias), expected)
    assert not torch_private.has_onednn()


def test_threshold_backward_without_the_operator(monkeypatch):
    gradient = torch.tensor([1.0, -2, 3, 4, 5])
    output = torch.tensor([0.0, 1, -0.0, float("nan"), 2])
    expected = threshold_backward(gradient, output)
    monkeypatch.setattr(torch_private, "THRESHOLD_BACKWARD", None)
    assert torch.equal(threshold_backward(gradient, output), expected)
    assert expected.tolist() == [0, -2, 0, 4, 5]


def test_adamw_without_the_fused_operator(monkeypatch):
    """Three steps from the same start: every bit of weights, moments and counts is equal."""
    results = []
    for private in (True, False):
        if not private:
            monkeypatch.setattr(torch_private, "FUSED_ADAMW", None)
        torch.manual_seed(1)
        lists = [[torch.randn(7, 3), torch.randn(1000)] for _ in range(2)]
        moments = [[torch.zeros_like(x) for x in lists[0]] for _ in range(2)]
        counts = torch.zeros(2)
        for _ in range(3):
            counts.add_(1)
            fused_adamw_(
                *lists,
                *moments,
                list(counts.unbind()),
                lr=0.01,
                beta1=0.9,
                beta2=0.98,
                weight_decay=0.1,
                eps=1e-8,
            )
        results.append([*lists[0], *moments[0], *moments[1], counts])
    for one, other in zip(*results):
        assert torch.equal(one, other)
    assert results[0][-1].tolist() == [3, 3]


def test_loops_without_operators_for_many_tensors(monkeypatch):
    for name in FOREACH:
        monkeypatch.delattr(torch, f"_foreach_{name}")
    loops = {name: torch_private._on_all(name) for name in FOREACH}
    torch.manual_seed(1)
    tensors = [torch.randn(4, 3), torch.randn(9).bfloat16()]
    others = [torch.randn(4, 3), torch.randn(9)]
    for name, values in (("copy_", [others]), ("mul_", [torch.tensor(0.3)]), ("zero_", [])):
        ours, theirs = ([t.clone() for t in tensors] for _ in range(2))
        getattr(torch_private, f"foreach_{name}")(ours, *values)
        loops[name](theirs, *values)
        assert all(torch.equal(*pair) for pair in zip(ours, theirs))
    norms = [
        function(tensors, 2, dtype=torch.float32)
        for function in (torch_private.foreach_norm, loops["norm"])
    ]
    for one, other in zip(*norms):
        torch.testing.assert_close(one, other)


def test_capabilities_of_an_older_torch(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    for text, expected in (("flags: avx2 avx512_bf16", True), ("flags: avx2", False)):
        monkeypatch.setattr(torch_private.Path, "read_text", lambda *_, t=text, **__: t)
        assert has_avx512_bf16() is expected

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(torch_private.Path, "read_text", missing)
    assert has_avx512_bf16() is False
