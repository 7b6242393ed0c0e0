"""fairseq's options that reach into the model, beside the plug-in's own."""

import pytest
import torch
from conftest import (
    RUN,
    TINY,
    DictionaryTask,
    batch,
    build,
    make_dictionary,
    run_training,
    write_corpus,
)

from src.criterions.srp import SRPCriterion
from src.trainer import SRPTrainer


@pytest.mark.parametrize("fp32", [[], ["--ema-fp32"]])
def test_average_of_weights_has_the_channels_as_they_are(data, base, tmp_path, monkeypatch, fp32):
    averages, name = [], "encoder.layers.0.fc1.weight"

    class Recorded(SRPTrainer):
        def train_step(self, samples, raise_oom=False):
            start = dict(self.ema.get_model().named_parameters())[name].clone()
            output = super().train_step(samples, raise_oom)
            after = dict(self.get_model().named_parameters())[name]
            averages.append(0.9 * start + 0.1 * after.detach())
            return output

    monkeypatch.setattr("src.trainer.SRPTrainer", Recorded)
    command = [data, *TINY, *RUN, "--store-ema", "--ema-decay", "0.9", *fp32]
    command += ["--pretrained-model", base, "--save-dir", tmp_path]
    run_training([*command, "--max-epoch", "1"])
    trainer = run_training([*command, "--max-epoch", "2"])  # resumed
    model, average = trainer.get_model(), trainer.ema.get_model()
    state = average.state_dict()
    torch.testing.assert_close(state[name], averages[-1])
    assert not torch.equal(state[name], model.state_dict()[name])
    for key, value in model.state_dict().items():
        if key.endswith(("channel_ids", "connectivity")):
            assert torch.equal(state[key], value), key


def test_retained_dropout_reaches_attention():
    model = build(attention_dropout=0.5).float()
    inputs = batch()
    with torch.no_grad():
        assert torch.equal(model(*inputs)[0], model(*inputs)[0])
        model.make_generation_fast_(retain_dropout=True)
        memories = [model.encoder(*inputs[:2])["encoder_out"][0] for _ in range(2)]
    assert not torch.equal(*memories)


class Taught(DictionaryTask):
    """A task with a teacher."""

    def __init__(self):
        super().__init__()
        self.model = build(seed=2)

    def check_teacher(self):
        pass

    def teacher(self, device):
        return self.model


def test_an_ignored_prefix_is_not_distilled():
    source, lengths, previous = batch()
    inputs = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}
    target = torch.randint(4, 40, previous.shape)
    padded = target.clone()
    padded[:, :2] = 1  # what is padding is distilled nowhere
    task, student, losses = Taught(), build().train(), []
    for prefix, goal in ((2, target), (0, padded), (0, target)):
        criterion = SRPCriterion(task, False, 0.1, prefix, prob_kd=1.0, attn_kd=1.0)
        sample = {"net_input": inputs, "target": goal, "ntokens": goal.numel()}
        loss, _, log = criterion(student, sample)
        losses.append([loss.item(), log["prob_kd_loss"], log["attn_kd_loss"]])
    ignored, padded, whole = torch.tensor(losses)
    assert torch.allclose(ignored, padded) and (ignored < whole).all()


@pytest.mark.parametrize("anew", [True, False])
def test_batches_are_drawn_anew_for_every_epoch_if_asked(data, tmp_path, anew):
    trainer = run_training(
        [data, *TINY, *RUN, "--max-epoch", "1", "--save-dir", tmp_path]
        + ["--update-epoch-batch-itr", str(anew)]
    )
    epochs = [trainer.get_train_iterator(epoch).frozen_batches for epoch in (1, 2, 2)]
    first, second, again = [[list(batch) for batch in batches] for batches in epochs]
    assert (first != second) == anew and second == again


@pytest.mark.parametrize("arch", ["srp", "transformer"])
def test_one_table_of_embeddings_is_pruned_and_finetuned(tmp_path, arch):
    """--share-all-embeddings implies --share-decoder-input-output-embed."""
    corpus = write_corpus(tmp_path)
    for language in ("de", "en"):
        make_dictionary("de").save(str(tmp_path / f"dict.{language}.txt"))
    tiny = [o for o in TINY if o != "--share-decoder-input-output-embed"]
    run = [corpus, *tiny, *RUN, "--share-all-embeddings", "--max-epoch", "1"]
    run_training([*run, "--arch", arch, "--save-dir", tmp_path / "base"])
    stages = {"cut": ["--srp", "--compression-rate", "0.5"], "finetuned": ["--prob-kd", "1"]}
    before = "base"
    for after, options in stages.items():
        options += ["--pretrained-model", tmp_path / before / "checkpoint_last.pt"]
        trainer = run_training([*run, *options, "--save-dir", tmp_path / after])
        before = after
    model = trainer.get_model()
    assert model.encoder.embedding.width < model.encoder.embedding.original_width
    assert model.decoder.output_projection.weight is model.encoder.embed_tokens.weight


@pytest.mark.parametrize("times", [1, 3])
def test_data_in_several_parts(base, tmp_path, times):
    """train and train1 in one folder, and validation sets that are made one."""
    sizes = (("train", 40), ("train1", 20), ("valid", 11), ("valid1", 5), ("test", 9))
    data = write_corpus(tmp_path, sizes)
    command = [data, *TINY, *RUN, "--pretrained-model", base, "--combine-valid-subsets"]
    command += ["--compression-rate", "0.5", "--max-epoch", "1", "--save-dir", tmp_path]
    options = [] if times == 1 else ["--upsample-primary", times]
    datasets = run_training([*command, *options]).task.datasets
    assert len(datasets["train"]) == 40 * times + 20
    assert len(datasets["valid"]) == 11 * times + 5
