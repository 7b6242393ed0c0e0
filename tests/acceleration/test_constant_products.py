"""Products with constant weights: packed or without zeros, the same as F.linear's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src.acceleration import constant_products as module
from src.acceleration.constant_products import ConstantLinear, PackedLinear, use_sparse_products
from src.modules.linear import Linear
from tests.support.onednn import needs_onednn, record_onednn

# types that oneDNN takes on this processor
WIDE = int(torch.backends.cpu.get_cpu_capability() == "AVX512")


@needs_onednn
@pytest.mark.parametrize(
    "dtype, packed, error",
    [(torch.float32, 1, 1e-5), (torch.bfloat16, WIDE, 1e-2), (torch.float64, 0, 0)],
)
def test_packed_weights(monkeypatch, dtype, packed, error):
    """Products that are worth it run on oneDNN, in the types that it takes."""
    made_on_onednn = record_onednn(monkeypatch, "src.acceleration.constant_products")
    monkeypatch.setattr(module, "uses_onednn", lambda: True)
    monkeypatch.setattr(module, "_LEAST_PACKED_WORK", 1000)
    torch.manual_seed(1)
    x, weight, bias = (torch.randn(*n).to(dtype) for n in ((40, 19), (11, 19), (11,)))
    for given in (bias, None):
        product = PackedLinear(weight, given)
        for rows, made in ((1, 0), (40, packed)):
            made_on_onednn.clear()
            found, exact = product(x[:rows]), F.linear(x[:rows].double(), weight.double())
            exact = exact if given is None else exact + given
            assert (found - exact).abs().max() <= max(error, 1e-14) * exact.abs().max()
            assert len(made_on_onednn) == made


def test_weights_lie_by_inputs_where_mkl_multiplies(monkeypatch):
    """From four rows on, and only float32 ones on a CPU; the result is F.linear's."""
    monkeypatch.setattr(module, "uses_onednn", lambda: False)
    torch.manual_seed(1)
    x, weight, bias = torch.randn(40, 19), torch.randn(11, 19), torch.randn(11)
    for given in (bias, None):
        product = PackedLinear(weight, given)
        assert product._by_inputs.is_contiguous() and product._by_inputs.shape == (19, 11)
        for rows in (0, 1, 3, 4, 40):
            torch.testing.assert_close(product(x[:rows]), F.linear(x[:rows], weight, given))
        product._by_inputs.zero_()  # which tells what multiplied
        assert product(x[:3]).any() and torch.equal(
            product(x), torch.zeros(40, 11) if given is None else given.expand(40, 11)
        )
    for dtype in (torch.float64, torch.bfloat16):
        assert PackedLinear(weight.to(dtype))._by_inputs is None
    assert PackedLinear(weight[:0])(x).shape == (40, 0)


def test_layers_with_a_product_of_their_own_keep_it_in_sparse_inference():
    class Special(Linear):
        pass

    model = nn.Module()
    model.encoder = nn.Sequential(Linear(3, 4), nn.Sequential(Special(4, 5), Linear(5, 2)))
    use_sparse_products(model)
    kinds = [type(m) for m in model.encoder.modules() if not isinstance(m, nn.Sequential)]
    assert kinds == [ConstantLinear, Special, ConstantLinear]
