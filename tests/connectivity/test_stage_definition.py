"""A shrinking stage against a loop that is written out."""

import copy

import pytest
import torch
from fairseq.optim.adam import Adam

from src.connectivity.groups import channel_groups
from src.trainer import SRPTrainer
from src.training.channel_pruning import ChannelPruning
from tests.support.training import RUN, TINY, run_training, stage_of

CLIP, RATE, EPSILON = 0.4, 3e-3, 1e-4
OPTIMIZERS = {"srp_adam": torch.optim.AdamW, "adam": Adam}


class Recorded(SRPTrainer):
    """Keeps the model before the first update, and the batches."""

    def train_step(self, samples, raise_oom=False):
        if not Recorded.batches:
            Recorded.first = copy.deepcopy(self.get_model())
            Recorded.removed = dict(stage_of(self).shrinking)
        Recorded.batches.append(copy.deepcopy(samples))
        return super().train_step(samples, raise_oom)


class RecordedCut(ChannelPruning):
    """Keeps the model before the cut."""

    def cut(self, trainer):
        Recorded.last = copy.deepcopy(trainer.get_model())
        super().cut(trainer)


def frozen(model, removed):
    masks = {p: torch.zeros_like(p, dtype=torch.bool) for p in model.parameters()}
    for name, positions in removed.items():
        for piece in channel_groups(model)[name].slices:
            masks[piece.parameter].index_fill_(piece.dim, positions, True)
    return masks


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updates_of_a_stage_are_those_of_its_definition(
    data, base, tmp_path, monkeypatch, optimizer
):
    """Connectivity, distillation, accumulation, clipping and frozen weights together."""
    monkeypatch.setattr("src.trainer.SRPTrainer", Recorded)
    monkeypatch.setattr("src.training.build_pruning.ChannelPruning", RecordedCut)
    Recorded.batches = []
    options = ["--srp", "--compression-rate", "0.4", "--pruning-period", "2"]
    options += ["--prob-kd", "0.7", "--attn-kd", "0.3", "--T", "2", "--update-freq", "2"]
    options += ["--optimizer", optimizer, "--lr", RATE, "--adam-eps", EPSILON]
    # the decay that srp_adam puts off has tests of its own
    options += ["--clip-norm", CLIP, "--weight-decay", "0", "--dropout", "0"]
    trainer = run_training(
        [data, *TINY, *RUN, *options, "--pretrained-model", base, "--save-dir", tmp_path]
    )
    model, updates = Recorded.first.train(), Recorded.batches
    assert len(updates) == 4 and all(len(samples) == 2 for samples in updates)
    groups, masks = channel_groups(model), frozen(model, Recorded.removed)
    start = {p: p.detach().clone() for p in model.parameters()}
    adam = OPTIMIZERS[optimizer](
        model.parameters(), lr=RATE, betas=(0.9, 0.98), eps=EPSILON, weight_decay=0
    )
    for done, samples in enumerate(updates):
        for name, positions in Recorded.removed.items():
            connectivity = torch.ones(groups[name].width)
            connectivity[positions] = 1 - done / len(updates)
            groups[name].set_connectivity(connectivity)
        adam.zero_grad()
        tokens = 0
        for sample in samples:
            loss, size, _ = trainer.criterion(model, sample)
            loss.backward()
            tokens += size
        for parameter, mask in masks.items():
            parameter.grad.div_(tokens).masked_fill_(mask, 0)
        norm = torch.cat([p.grad.flatten() for p in masks]).norm()
        assert norm > CLIP
        for parameter in masks:
            parameter.grad.mul_(CLIP / norm)
        adam.step()
    for parameter, found in zip(masks, Recorded.last.parameters()):
        mask = masks[parameter]
        assert torch.equal(found[mask], start[parameter][mask])
        torch.testing.assert_close(found, parameter, rtol=0, atol=1e-6)
    for name, positions in Recorded.removed.items():
        connectivity = channel_groups(Recorded.last)[name].connectivity
        gone = torch.zeros_like(connectivity, dtype=torch.bool)
        gone[positions] = True
        assert torch.equal(connectivity, (~gone).float())
