"""Which zeros of a model are pruned weights."""

import torch
from torch import nn

from src.checkpoints.zeros import count_zeros, is_sparse
from src.sparsity import prune_by_pct
from tests.support.training import build


def test_a_row_for_padding_is_no_pruned_weight():
    """Also not that of a table which is the output layer too."""
    model = build(share_decoder_input_output_embed=True)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight[module.padding_idx] = 0
    assert set(count_zeros(model).values()) == {0} and not is_sparse(model)
    with torch.no_grad():
        model.encoder.embed_tokens.weight[7, 3] = 0
    assert count_zeros(model)["encoder.embed_tokens.weight"] == 17
    assert not is_sparse(model)  # by chance, not by pruning


def test_zeros_are_counted_once_and_without_biases():
    model = prune_by_pct(build(share_decoder_input_output_embed=True), 0.5)
    with torch.no_grad():
        model.encoder.layers[0].fc1.bias.zero_()
    counts = count_zeros(model)
    assert "decoder.output_projection.weight" not in counts
    assert counts["encoder.layers.0.fc1.weight"] == 24 * 16 // 2
    assert is_sparse(model) and not any(name.endswith("bias") for name in counts)


def test_a_model_without_matrices_is_dense():
    assert not is_sparse(nn.LayerNorm(3))
