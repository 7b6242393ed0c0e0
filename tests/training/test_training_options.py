"""fairseq's options that reach into the model, beside the plug-in's own."""

import os
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.data.indexed_dataset import make_builder, make_dataset
from fairseq.distributed import ModuleProxyWrapper
from fairseq.logging import metrics, progress_bar
from fairseq_cli import train as fairseq_train
from omegaconf import open_dict

from src.checks.fairseq_options import ALIGNED
from src.connectivity.budget import ParameterCount
from src.criterions.srp import SRPCriterion
from src.errors import UserError
from src.models.srp_config import SRPConfig
from src.modules.multihead_attention import SRPMultiheadAttention
from src.trainer import SRPTrainer
from src.training.run_length import check_has_updates, updates_in_epochs
from tests.support.training import (
    RUN,
    TINY,
    DictionaryTask,
    batch,
    build,
    make_dictionary,
    run_training,
    write_corpus,
)


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


def test_tensorboard_shows_the_size_while_it_shrinks(data, base, tmp_path, monkeypatch):
    curves = defaultdict(dict)

    class Writer:
        def __init__(self, folder):
            self.name = os.path.basename(folder)

        def add_scalar(self, key, value, step):
            curves[self.name, key][step] = value

        def add_text(self, *args): ...
        def flush(self): ...
        def close(self): ...

    monkeypatch.setattr(progress_bar, "SummaryWriter", Writer)
    monkeypatch.setattr(progress_bar, "_tensorboard_writers", {})
    command = [data, *TINY, *RUN, "--pretrained-model", base, "--save-dir", tmp_path]
    command += ["--srp", "--compression-rate", "0.5", "--pruning-stage", "0", "--log-interval", "1"]
    command += ["--pruning-period", "1", "--max-epoch", "2", "--tensorboard-logdir", tmp_path]
    model = run_training(command).get_model()
    count = ParameterCount(model)
    parameters, connectivity, width = (
        list(curves["train_inner", key].values())
        for key in ("parameters", "connectivity", "width_ffn")
    )
    assert parameters[0] == count.uncut and parameters[-1] == count(count.current)
    assert connectivity[0] < 1 and connectivity[-1] == 1  # 1 again when the channels are cut
    shrinking = connectivity[: connectivity.index(1)]
    assert shrinking == sorted(shrinking, reverse=True)
    widths = [group.width for group in count.groups.values() if group.kind == "ffn"]
    assert width[-1] == pytest.approx(sum(widths) / len(widths), abs=0.1) and width[0] == 24


def test_a_loss_of_alignments_is_fairseqs(tmp_path):
    """It is of the last layer's attention, which other losses let go in training."""
    data = write_corpus(tmp_path)
    for split in ("train", "valid"):
        source = make_dataset(f"{data}/{split}.de-en.de", "mmap")
        builder = make_builder(f"{data}/{split}.align.de-en.bin", "mmap")
        for sentence in source:
            numbers = torch.arange(len(sentence) - 1)
            builder.add_item(torch.stack([numbers, numbers.flip(0)], 1).flatten())
        builder.finalize(f"{data}/{split}.align.de-en.idx")
    trainer = run_training(
        [data, *TINY, *RUN, "--criterion", ALIGNED, "--load-alignments", "--dropout", "0"]
        + ["--max-update", "1", "--no-save", "--save-dir", tmp_path / "run"]
    )
    mine, theirs = trainer.get_model().train(), build("transformer").float().train()
    shared = theirs.state_dict()
    theirs.load_state_dict({n: w for n, w in mine.state_dict().items() if n in shared})
    dataset = trainer.task.dataset("train")
    sample = dataset.collater([dataset[i] for i in range(4)])
    losses, gradients = [], []
    for model in (mine, theirs):
        model.zero_grad()
        loss, _, log = trainer.get_criterion()(model, sample)
        loss.backward()
        losses.append([loss.item(), log["alignment_loss"]])
        gradients.append(model.decoder.layers[-1].encoder_attn.q_proj.weight.grad)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][1] > 0
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_run_of_hydras_is_checked_and_has_its_results(data, tmp_path):
    """fairseq-hydra-train gives a model none of the run's options but the model's."""

    def run(cfg):
        own = SRPConfig.__dataclass_fields__
        options = {name: value for name, value in vars(cfg.model).items() if name in own}
        with open_dict(cfg):
            cfg.model = {"_name": "srp", **options}
        fairseq_train.main(cfg)

    command = [data, *TINY, *RUN, "--max-update", "1", "--save-dir", tmp_path]
    run_training(command, run)
    assert (tmp_path / "results.csv").read_text().count("\n") == 2
    with pytest.raises(UserError, match="--save-interval 0"):
        run_training([*command, "--save-interval", "0"], run)


def test_retained_dropout_reaches_attention():
    model = build(attention_dropout=0.5).float()
    inputs = batch()
    with torch.no_grad():
        assert torch.equal(model(*inputs)[0], model(*inputs)[0])
        model.make_generation_fast_(retain_dropout=True)
        memories = [model.encoder(*inputs[:2])["encoder_out"][0] for _ in range(2)]
    assert not torch.equal(*memories)


@pytest.mark.parametrize("option", ["dropout", "attention_dropout", "activation_dropout"])
def test_dropout_of_every_layer(option):
    """In training; that of attention also where its maps are asked for."""
    model, x = build(**{option: 0.5}).train(), torch.randn(5, 3, 16, dtype=torch.float64)
    drops = {}

    def run(name, function):
        drops[name] = not torch.equal(function(), function())

    for name, layer in model.named_modules():
        if name.endswith("_attn"):
            for maps in (False, True):
                run((name, maps), lambda: layer(x, x, x, need_weights=maps)[0])
        elif name.startswith("encoder.layers.") and hasattr(layer, "fc1"):
            run(name, lambda: layer(x, None))
        elif hasattr(layer, "fc1"):
            run(name, lambda: layer(x, x)[0])
    layers = {name for name in drops if isinstance(name, str)}
    assert len(layers) == 4 and len(drops) == 4 + 2 * 6
    dropping = {name for name in drops if drops[name]}
    assert dropping == (set(drops) if option == "attention_dropout" else layers)


def test_attention_makes_no_maps_in_training(monkeypatch):
    """fairseq asks for the last layer's, which takes longer, and drops it."""
    made = []
    attend = SRPMultiheadAttention._attention_with_weights
    monkeypatch.setattr(
        SRPMultiheadAttention,
        "_attention_with_weights",
        lambda *given: made.append(given) or attend(*given),
    )
    model = build()
    model.train()(*batch())
    assert not made
    model.eval()(*batch())
    assert made


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


def test_the_criterion_sees_through_distributed_wrappers(monkeypatch):
    """Layers that keep their attention for it, and that it needs no logits."""

    class Wrapped(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **inputs):
            return self.module(**inputs)

    source, lengths, previous = batch()
    inputs = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}
    sample = {"net_input": inputs, "target": previous.roll(-1, 1), "ntokens": 30}
    criterion = SRPCriterion(Taught(), False, 0.1, prob_kd=1.0, attn_kd=1.0)
    student = build().train()
    (plain, *_), (wrapped, *_) = (
        criterion(model, sample) for model in (student, ModuleProxyWrapper(Wrapped(student)))
    )
    assert torch.equal(plain, wrapped)
    monkeypatch.setattr(student.decoder, "output_layer", lambda *_: pytest.fail("logits"))
    SRPCriterion(Taught(), False, 0.1)(ModuleProxyWrapper(Wrapped(student)), sample)


def inputs_and_target():
    source, lengths, previous = batch()
    inputs = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}
    return {"net_input": inputs, "target": previous.roll(-1, 1), "ntokens": 30}


def sharpened(part, method="get_normalized_probs"):
    """Let a model or a decoder have a class whose distribution is of twice its output."""

    def of_twice(self, output, log_probs, sample=None):
        doubled = (output[0] * 2).double()
        return doubled.log_softmax(-1) if log_probs else doubled.softmax(-1)

    part.__class__ = type("Sharpened", (type(part),), {method: of_twice})


@pytest.mark.parametrize("place", ["model", "decoder", "scriptable"])
@pytest.mark.parametrize("arch", ["srp", "transformer"])
def test_a_models_own_distribution_is_trained_and_distilled(arch, place):
    sample, task = inputs_and_target(), Taught()
    model, plain = build(arch).train(), build(arch).train()
    part = model if place == "model" else model.decoder
    sharpened(part, "get_normalized_probs" + ("_scriptable" if place == "scriptable" else ""))
    stock = LabelSmoothedCrossEntropyCriterion(task, False, 0.1)
    ours = SRPCriterion(task, False, 0.1)
    losses = [criterion(model, sample)[0] for criterion in (ours, stock)]
    torch.testing.assert_close(*losses)
    assert (losses[0] - ours(plain, sample)[0]).abs() > 1
    # of twice the output at temperature 2 as of the output at 1
    kl = [SRPCriterion(task, False, 0.1, prob_kd=1.0)(plain, sample)[2]["prob_kd_loss"]]
    sharpened(task.model)
    kl.append(SRPCriterion(task, False, 0.1, prob_kd=1.0, T=2.0)(model, sample)[2]["prob_kd_loss"])
    assert kl[1].item() / 4 == pytest.approx(kl[0].item(), rel=1e-5)


def test_an_adaptive_softmax_needs_its_criterion(data, tmp_path):
    """fairseq's has no gradient by any other."""
    untied = [option for option in TINY if not option.startswith("--share")]
    run = [data, *untied, "--arch", "transformer", "--adaptive-softmax-cutoff", "[10, 20]"]
    run += [*RUN, "--max-epoch", "1", "--save-dir", tmp_path]
    with pytest.raises(UserError, match="--criterion srp: --adaptive-softmax-cutoff has no grad"):
        run_training(run)
    place = run.index("--label-smoothing")
    run[place : place + 2] = ["--criterion", "adaptive_loss"]
    with pytest.raises(UserError, match="--criterion adaptive_loss: .*--ddp-backend=legacy_ddp"):
        run_training(run)
    run_training([*run, "--ddp-backend", "legacy_ddp"])


@pytest.mark.parametrize(
    "option, todo",
    [
        ("--finetune-from-model", "--finetune-from-model another checkpoint"),
        ("--restore-file", "--restore-file another checkpoint"),
        (None, "another --save-dir to start anew"),
    ],
)
@pytest.mark.parametrize("name", ["--encoder-layers", "--encoder-ffn-embed-dim"])
def test_other_dimensions_than_the_checkpoints(data, base, tmp_path, option, todo, name):
    """More layers would load, as if some had been cut."""
    command = [data, *TINY, *RUN, name, "32", "--max-epoch", "4", "--save-dir", tmp_path]
    if option is None:
        (tmp_path / "checkpoint_last.pt").write_bytes(open(base, "rb").read())
    else:
        command += [option, base]
    words = f"^{name} 32: the run of checkpoint .* has (2|24); give that, or {todo}$"
    with pytest.raises(UserError, match=words):
        run_training(command)


def test_distillation_needs_a_task_with_a_teacher():
    with pytest.raises(UserError, match="--attn-kd: need --task SRPtranslation"):
        SRPCriterion(DictionaryTask(), False, 0.1, attn_kd=1.0)


def test_divergences_of_steps_are_averaged_over_tokens():
    steps = ({"ntokens": 10, "prob_kd_loss": 10.0}, {"ntokens": 30, "prob_kd_loss": 90.0})
    with metrics.aggregate() as logged:
        for step in steps:
            common = {"loss": 1.0, "nll_loss": 1.0, "sample_size": step["ntokens"]}
            SRPCriterion.reduce_metrics([{**common, **step}])
    assert logged.get_smoothed_values()["prob_kd_loss"] == 2.5


def attention_maps(model, inputs):
    """Cross-attention of every layer [B, T, S], mean over heads, and the logits."""
    seen = {}
    hooks = [
        projection.register_forward_hook(lambda m, args, out: seen.update({m: out}))
        for layer in model.decoder.layers
        for projection in (layer.encoder_attn.q_proj, layer.encoder_attn.k_proj)
    ]
    logits, maps = model(**inputs)[0], []
    for hook in hooks:
        hook.remove()
    for layer in model.decoder.layers:
        attention = layer.encoder_attn
        q, k = (
            seen[projection].unflatten(2, (attention.num_heads, -1))
            for projection in (attention.q_proj, attention.k_proj)
        )
        scores = torch.einsum("tbhk,sbhk->bhts", q, k) * attention.scaling
        padding = inputs["src_tokens"].eq(1)[:, None, None]
        maps.append(scores.masked_fill(padding, -torch.inf).softmax(-1).mean(1))
    return maps, logits


@pytest.mark.parametrize("sentence_avg", [False, True])
def test_distillation_losses_are_added_by_their_weights(sentence_avg):
    source, lengths, previous = batch()
    inputs = {"src_tokens": source, "src_lengths": lengths, "prev_output_tokens": previous}
    target = torch.randint(4, 40, previous.shape)
    target[previous.eq(1)] = 1
    present = target.ne(1)
    tokens = int(present.sum())
    sample = {"net_input": inputs, "target": target, "ntokens": tokens}
    task, student = Taught(), build()
    plain = SRPCriterion(task, sentence_avg, 0.1)
    taught = SRPCriterion(task, sentence_avg, 0.1, prob_kd=0.5, attn_kd=0.25, T=2.0)
    with torch.no_grad():
        expected, size, _ = plain(student.eval(), sample)
        assert torch.equal(taught(student, sample)[0], expected)  # none in evaluation
        (mine, logits), (its, goal) = (attention_maps(m, inputs) for m in (student, task.model))
        loss, found, log = taught(student.train(), sample)
    assert size == found == (len(target) if sentence_avg else tokens)

    def divergence(p, log_p, log_q):
        return F.kl_div(log_q, p, reduction="none").sum(-1)[present].sum()

    goal = (goal / 2).log_softmax(-1)
    prob = 4 * divergence(goal.exp(), goal, (logits / 2).log_softmax(-1))
    attn = sum(divergence(b, None, a.clamp_min(1e-30).log()) for a, b in zip(mine, its)) / 2
    # the divergences are computed in float32
    torch.testing.assert_close(loss, expected + prob / 2 + attn / 4, rtol=1e-5, atol=0)
    with metrics.aggregate() as logged:
        SRPCriterion.reduce_metrics([log, log])
    values = logged.get_smoothed_values()
    assert values["prob_kd_loss"] == pytest.approx(prob.item() / tokens, rel=1e-2)
    assert values["attn_kd_loss"] == pytest.approx(attn.item() / tokens, rel=1e-2)


@pytest.mark.parametrize("skip, option", [(False, "--grouped-s"), (True, "--skip-rem")])
def test_an_epoch_without_updates_names_the_option(skip, option):
    """One batch for two processes."""

    class Iterator(SimpleNamespace):
        def __len__(self):
            return 1

    cfg = SimpleNamespace(
        optimization=SimpleNamespace(update_freq=[1], skip_remainder_batch=skip),
        dataset=SimpleNamespace(grouped_shuffling=not skip),
    )
    with pytest.raises(UserError, match=f"^{option}.*: epoch 1 has 1 batches, too few"):
        check_has_updates(
            cfg, Iterator(frozen_batches=[[0]], num_shards=2, epoch=1, iterations_in_epoch=0), 1
        )


@pytest.mark.parametrize(
    "options",
    [
        ["--update-freq", "1,3,2"],
        ["--skip-remainder-batch", "--update-freq", "2,1"],
        ["--grouped-shuffling"],
    ],
)
def test_updates_are_counted_ahead(data, tmp_path, monkeypatch, options):
    counted = {}

    class Counting(SRPTrainer):
        def begin_epoch(self, epoch):
            super().begin_epoch(epoch)
            left = updates_in_epochs(self.cfg, self.epoch_itr, epoch, 3)
            counted[epoch] = self.get_num_updates() + left

    monkeypatch.setattr("src.trainer.SRPTrainer", Counting)
    trainer = run_training(
        [data, *TINY, *RUN, *options, "--max-epoch", "3", "--no-save"]
        + ["--save-dir", tmp_path, "--disable-validation"]
    )
    assert counted == dict.fromkeys((1, 2, 3), trainer.get_num_updates())


def test_the_share_of_a_process_that_runs_out_of_batches(data, base, tmp_path):
    """Its last accumulated update is of the batches that it has, by their number of tokens."""
    weights = []
    for more in ([], [[]]):  # what fairseq fills up with
        trainer = run_training(
            [data, *TINY, *RUN, "--pretrained-model", base, "--max-update", "1", "--no-save"]
            + ["--adam-eps", "1", "--dropout", "0", "--save-dir", tmp_path]
        )
        batches = trainer.get_train_iterator(1).next_epoch_itr(shuffle=False)
        log = trainer.train_step([next(batches), *more])
        state = {k: v.clone() for k, v in trainer.get_model().state_dict().items()}
        weights.append(({k: log[k] for k in ("loss", "nll_loss", "sample_size")}, state))
    (log, state), (found, filled) = weights
    assert log == found
    assert all(torch.equal(state[key], filled[key]) for key in state)


def test_validation_is_of_every_sentence(data, tmp_path):
    """fairseq leaves out a last batch whose size is no multiple of 8."""
    trainer = run_training(
        [data, *TINY, *RUN, "--required-batch-size-multiple", "8", "--max-update", "1"]
        + ["--no-save", "--save-dir", tmp_path]
    )
    batches = trainer.get_valid_iterator("valid").next_epoch_itr(shuffle=False)
    assert sorted(i for b in batches for i in b["id"].tolist()) == list(range(11))
    assert trainer.cfg.dataset.required_batch_size_multiple == 8


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
