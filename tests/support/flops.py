"""FLOPs counted by hand."""

import argparse

import torch
from fairseq import models
from fairseq.data import Dictionary
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

SMALL = dict(
    encoder_embed_dim=32, encoder_ffn_embed_dim=48, encoder_attention_heads=4,
    encoder_layers=2, decoder_embed_dim=32, decoder_ffn_embed_dim=40,
    decoder_attention_heads=4, decoder_layers=2,
)  # fmt: skip


FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class DictionariesTask:
    def __init__(self, source_types, target_types):
        self.source_dictionary = self._dictionary(source_types)
        self.target_dictionary = (
            self.source_dictionary
            if source_types == target_types
            else self._dictionary(target_types)
        )

    @staticmethod
    def _dictionary(types):
        dictionary = Dictionary()
        for number in range(types - len(dictionary)):
            dictionary.add_symbol(f"w{number}")
        return dictionary


def build(arch="srp", source_types=60, target_types=60, **arguments):
    torch.manual_seed(1)
    task = DictionariesTask(source_types, target_types)
    namespace = argparse.Namespace(arch=arch, _name=arch, **arguments)
    return models.build_model(namespace, task).eval()


def attention_flops(query, key, value, *args, **kwargs):
    return sdpa_flop_count(query, key, value)


def counter():
    # torch has no formula for the fused attention of CPUs
    return FlopCounterMode(display=False, custom_mapping={FUSED: attention_flops})


def tokens(*shape):
    return torch.randint(4, 60, shape, generator=torch.Generator().manual_seed(1))


def teacher_forced(model, source, target):
    with counter() as flops, torch.no_grad():
        model(tokens(1, source), torch.tensor([source]), tokens(1, target))
    return flops
