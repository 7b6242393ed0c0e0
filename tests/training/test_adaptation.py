"""Adapters inside training, pruning stages and translation."""

import hashlib
import logging
import shutil

import pytest
import torch

from src import export, export_adapters
from src.adapters import adapted_layers
from src.checkpoints import adapters as adaptation
from src.checkpoints.rebuild import load_model
from src.connectivity.budget import ParameterCount
from src.connectivity.cut import cut
from src.connectivity.groups import base_parameters, channel_groups
from src.errors import UserError
from src.training.channel_pruning import ChannelPruning
from tests.support.training import RUN, TINY, run_training, stage_of
from tests.support.translation import hypotheses, sentence_lines, translate

SPLORA = ["--adapter", "splora", "--adapter-rank", "2"]
SPLOPA = [
    *("--adapter", "splopa", "--adapter-block-size", "5"),
    *("--adapter-prototypes", "3"),
]
KINDS = pytest.mark.parametrize("options", [SPLORA, SPLOPA], ids=["splora", "splopa"])


def finetune(data, pretrained, folder, *options):
    arguments = [data, *TINY, *RUN, "--pretrained-model", pretrained, "--lr", "0.02"]
    return run_training([*arguments, "--save-dir", folder, *options])


@pytest.fixture(scope="module")
def cut_model(data, base, tmp_path_factory):
    """Checkpoint of a model cut to a half."""
    folder = tmp_path_factory.mktemp("cut")
    finetune(data, base, folder, "--compression-rate", "0.5", "--max-epoch", "1")
    return str(folder / "checkpoint_last.pt")


def test_a_layer_may_be_cut_below_the_rank_of_its_adapter(data, base, tmp_path, capsys):
    rank = ["--adapter", "splora", "--adapter-rank", "8"]
    stage = [*rank, "--compression-rate", "0.2", "--max-epoch"]
    trainer = finetune(data, base, tmp_path, *stage, "1")
    expected = logits(trainer.get_model())
    last = str(tmp_path / "checkpoint_last.pt")
    layers = adapted_layers(load_model(last)).values()
    assert any(layer.rank > min(layer.weight.shape) for layer in layers)

    file, fused = str(tmp_path / "adapters.pt"), str(tmp_path / "fused.pt")
    export_adapters.main(["--path", last, "--output", file])
    export_adapters.main(["--path", last, "--output", fused, "--fuse"])
    uncut = load_model(base)
    adaptation.apply_adapters(uncut, adaptation.read_adapters(file, "FILE"), "FILE")
    for model in (uncut, load_model(last), load_model(fused)):
        torch.testing.assert_close(logits(model), expected)
    tuned = finetune(data, last, tmp_path / "tuned", "--max-epoch", "1", "--lr", "1e-9")
    torch.testing.assert_close(logits(tuned.get_model()), expected, rtol=1e-3, atol=1e-4)
    resumed = finetune(data, base, tmp_path, *stage, "2")
    assert resumed.get_num_updates() == 2 * trainer.get_num_updates()


def test_adapters_of_a_model_that_is_shrinking_are_not_exported(data, base, tmp_path):
    stage = ["--srp", "--compression-rate", "0.5", "--save-interval-updates", "2"]
    finetune(data, base, tmp_path, *stage, *SPLORA)
    for more in ([], ["--fuse"]):
        output = tmp_path / "adapters.pt"
        path = str(tmp_path / "checkpoint_1_2.pt")
        with pytest.raises(UserError, match=f"{path}: a pruning stage is under way"):
            export_adapters.main(["--path", path, "--output", str(output), *more])
        assert not output.exists()


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def logits(model):
    tokens = torch.arange(4, 10).unsqueeze(0)
    with torch.no_grad():
        return model.eval()(tokens, None, tokens.flip(1))[0]


@KINDS
def test_only_adapters_and_biases_are_trained(data, cut_model, tmp_path, options, caplog):
    caplog.set_level(logging.INFO)
    trainer = finetune(data, cut_model, tmp_path, "--max-epoch", "2", *options)
    before, after = weights(cut_model), weights(tmp_path / "checkpoint_last.pt")
    layers = adapted_layers(trainer.model)
    assert len(layers) == 2 * 6 + 2 * 10  # the output projection is tied
    biases = {f"{name}.bias" for name in layers}
    for name, value in before.items():
        assert torch.equal(value, after[name]) != (name in biases), name
    learned = set(after) - set(before)
    assert learned and {k.rsplit(".", 1)[1] for k in learned} <= {
        *("rows", "cols", "pos_weights"),
        *("row_ids", "column_ids", "block_mask", "layout"),
    }
    assert "layers adapted" in caplog.text
    count = ParameterCount(trainer.model)
    assert count(count.current) == sum(v.numel() for v in base_parameters(trainer.model))
    assert count(count.current) == ParameterCount(load_model(cut_model))(count.current)


@KINDS
def test_every_adapter_learns(data, cut_model, tmp_path, options):
    trainer = finetune(data, cut_model, tmp_path, "--max-epoch", "2", *options)
    trained = weights(tmp_path / "checkpoint_last.pt")
    for optimizer_state in trainer.optimizer.optimizer.state.values():
        assert optimizer_state["exp_avg_sq"].abs().max() > 0
    names = [n for n, p in trainer.model.named_parameters() if p.requires_grad]
    assert len(names) == len(trainer.optimizer.optimizer.state)
    assert all(torch.isfinite(trained[name]).all() for name in names)


@KINDS
def test_a_resumed_run_is_the_uninterrupted_one(data, cut_model, tmp_path, options):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    finetune(data, cut_model, whole, "--max-epoch", "3", *options)
    finetune(data, cut_model, halves, "--max-epoch", "1", *options)
    finetune(data, cut_model, halves, "--max-epoch", "3", *options)
    expected = weights(whole / "checkpoint_last.pt")
    found = weights(halves / "checkpoint_last.pt")
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@KINDS
@pytest.mark.parametrize("rate", ["0.4", "0.7"])
def test_a_stage_with_adapters(data, base, tmp_path, options, rate):
    stage = [*("--srp", "--compression-rate", rate, "--pruning-period", "2")]
    stage += ["--weighted-layernorm"]
    gated = []

    def watch(trainer):  # the model just before its cut
        model = trainer.get_model()
        gated.append((ParameterCount(model).current, logits(model.float())))

    original = ChannelPruning.cut

    def cut_and_compare(self, trainer):
        watch(trainer)
        original(self, trainer)
        model = trainer.get_model()
        mode = model.training
        torch.testing.assert_close(logits(model), gated[0][1], rtol=1e-4, atol=1e-5)
        model.train(mode)

    ChannelPruning.cut = cut_and_compare
    try:
        trainer = finetune(data, base, tmp_path, *stage, *options)
    finally:
        ChannelPruning.cut = original
    assert len(gated) == 1
    model = trainer.get_model()
    count = ParameterCount(model)
    assert count(count.current) / count(count.original) == pytest.approx(float(rate), abs=0.02)
    # the base is what it was, without the channels that were cut
    uncut = load_model(base)
    adaptation.write_adapters(model, str(tmp_path / "adapters.pt"), {})
    content = adaptation.read_adapters(str(tmp_path / "adapters.pt"), "FILE")
    adaptation.apply_adapters(uncut, content, "FILE")
    assert torch.equal(logits(uncut), logits(model))
    # and the checkpoint rebuilds all of it
    again = load_model(str(tmp_path / "checkpoint_last.pt"))
    assert torch.equal(logits(again), logits(model))
    assert ParameterCount(again).current == count.current


def test_a_base_with_all_its_layers_has_the_fingerprint_of_before_layers_could_go(base):
    model = load_model(base)
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if ".depth." not in name:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    assert adaptation.base_digest(model, {}) == digest.hexdigest()
    cut(model, {"decoder.depth": torch.tensor([1])})
    first = adaptation.base_digest(model, {})
    model.decoder.depth.channel_ids.fill_(0)  # another layer is left
    assert adaptation.base_digest(model, {}) != first


# The commands of the channel-SPA experiments' README, in this plug-in's words.
PRUNING_COMMANDS = {
    "--prune --splora --splora-rank 8": ["--adapter", "splora", "--adapter-rank", "8"],
    "--method-type lrp": ["--importance", "lrp"],
    "--method-type grad --norm": ["--importance", "grad", "--importance-norm", "l2"],
    "--method-type taylor --norm": ["--importance", "taylor", "--importance-norm", "l2"],
    "--method-type weight --norm": ["--importance", "weight", "--importance-norm", "l2"],
}


@pytest.mark.parametrize("given", PRUNING_COMMANDS)
@pytest.mark.parametrize("adapter", [[], ["--adapter", "splora", "--adapter-rank", "8"]])
def test_rank_remove_recover(data, base, tmp_path, given, adapter):
    options = [*PRUNING_COMMANDS[given], *adapter, "--compression-rate", "0.4"]
    options += ["--pruning-iter", "2", "--max-epoch", "3"]  # an epoch more to recover
    trainer = finetune(data, base, tmp_path, *options)
    assert stage_of(trainer).done and stage_of(trainer).finished_iterations == 2
    model = load_model(str(tmp_path / "checkpoint_last.pt"))
    count = ParameterCount(model)
    assert count(count.current) / count(count.original) == pytest.approx(0.4, abs=0.02)
    adapted = "--adapter" in options
    assert bool(adapted_layers(model)) == adapted
    if adapted:  # the channels that are left have their weights of the base
        learned = {n for n, p in trainer.get_model().named_parameters() if p.requires_grad}
        assert learned and not any(n.endswith(("q_proj.weight", "fc1.weight")) for n in learned)


@KINDS
def test_files_of_adapters_and_fused_checkpoints(data, cut_model, base, tmp_path, options, capsys):
    finetune(data, cut_model, tmp_path, "--max-epoch", "1", *options)
    adapted = str(tmp_path / "checkpoint_last.pt")
    file, fused = str(tmp_path / "adapters.pt"), str(tmp_path / "fused.pt")
    export_adapters.main(["--path", adapted, "--output", file])
    export_adapters.main(["--path", adapted, "--output", fused, "--fuse"])
    assert "adapters of 32 layers" in capsys.readouterr().out

    expected = logits(load_model(adapted))
    model = load_model(cut_model)
    assert not torch.equal(logits(model), expected)
    content = adaptation.read_adapters(file, "--adapter-path")
    adaptation.apply_adapters(model, content, "--adapter-path")
    assert torch.equal(logits(model), expected)
    plain = load_model(fused)
    assert not adapted_layers(plain)
    torch.testing.assert_close(logits(plain), expected)
    assert weights(fused).keys() == weights(cut_model).keys()

    mixed, half = load_model(cut_model), (content, 0.5, "FILE")
    adaptation.apply_weighted_adapters(mixed, [half, half])
    torch.testing.assert_close(logits(mixed), expected)
    mixed = load_model(cut_model)
    adaptation.apply_weighted_adapters(mixed, [half, (content, -0.5, "FILE")])
    torch.testing.assert_close(logits(mixed), logits(load_model(cut_model)))

    with pytest.raises(UserError, match="adapters already"):
        adaptation.apply_adapters(model, content, "--adapter-path")
    with pytest.raises(UserError, match="adapters already"):
        adaptation.apply_weighted_adapters(model, [half, half])
    with pytest.raises(UserError, match="has no adapters"):
        export_adapters.main(["--path", fused, "--output", file])
    for apply in (
        lambda net: adaptation.apply_adapters(net, content, "FILE"),
        lambda net: adaptation.apply_weighted_adapters(net, [half, half]),
    ):
        other = load_model(cut_model)
        with torch.no_grad():
            other.encoder.layers[0].fc1.weight.add_(1)
        with pytest.raises(UserError, match="FILE: was trained on another base"):
            apply(other)
    channels = {**content["channels"], "encoder.layers.0.ffn": [2, torch.ones(2).bool()]}
    others = {**content, "channels": channels}, 1.0, "B.pt"
    with pytest.raises(UserError, match="B.pt: was pruned to other channels than FILE"):
        adaptation.apply_weighted_adapters(load_model(cut_model), [half, others])
    learned = {n: v for n, v in content["adapters"].items() if "decoder" not in n}
    broken = {**content, "adapters": {**learned, "more": torch.ones(1)}}, 1.0, "B.pt"
    with pytest.raises(UserError, match="B.pt: does not fit .*more"):
        adaptation.apply_weighted_adapters(load_model(cut_model), [half, broken])
    with pytest.raises(UserError, match="holds no adapters"):
        adaptation.read_adapters(cut_model, "--adapter-path")


def test_files_and_weights_of_adapters(tmp_path):
    odd = str(tmp_path / "odd,a.pt:0.5")
    open(odd, "w").close()
    assert adaptation.adapter_files(odd) == [(odd, 1.0)]
    assert adaptation.adapter_files("a.pt") == [("a.pt", 1.0)]
    assert adaptation.adapter_files("a.pt:0.7,b.pt:-1e-1,c.pt") == [
        ("a.pt", 0.7),
        ("b.pt", -0.1),
        ("c.pt", 1.0),
    ]
    for text in ("a.pt:", "a.pt:x", ":0.5", "a.pt,", "a.pt:nan,b.pt"):
        with pytest.raises(UserError, match=f"--adapter-path {text}: expected a file"):
            adaptation.adapter_files(text)


@KINDS
def test_translation_with_an_adapter_file(data, cut_model, tmp_path, options):
    finetune(data, cut_model, tmp_path, "--max-epoch", "2", *options)
    adapted = str(tmp_path / "checkpoint_last.pt")
    file, fused = str(tmp_path / "adapters.pt"), str(tmp_path / "fused.pt")
    export_adapters.main(["--path", adapted, "--output", file])
    export_adapters.main(["--path", adapted, "--output", fused, "--fuse"])
    whole = translate(data, adapted)
    assert sentence_lines(whole) != sentence_lines(translate(data, cut_model))
    onto_base = translate(data, cut_model, "--adapter-path", file)
    assert sentence_lines(onto_base) == sentence_lines(whole)
    parts = translate(data, cut_model, "--adapter-path", f"{file}:0.75,{file}:0.25")
    assert hypotheses(parts) == hypotheses(whole)
    none = translate(data, cut_model, "--adapter-path", f"{file}:0")
    assert sentence_lines(none) == sentence_lines(translate(data, cut_model))
    assert hypotheses(translate(data, fused)) == hypotheses(whole)
    stock = translate(data, adapted, "--fairseq-search")
    assert hypotheses(stock) == hypotheses(whole)


@KINDS
def test_adapters_are_added_to_a_plain_transformer(data, tmp_path, options):
    plain, adapted, fused = (str(tmp_path / n) for n in ("plain", "adapted", "fused.pt"))
    arch = ["--arch", "transformer", "--max-epoch", "1", "--activation-fn", "gelu"]
    run_training([data, *TINY, *RUN, *arch, "--save-dir", plain])
    plain, last = (f"{folder}/checkpoint_last.pt" for folder in (plain, adapted))
    finetune(data, plain, adapted, *options, "--activation-fn", "gelu", "--max-epoch", "2")
    file = str(tmp_path / "adapters.pt")
    export_adapters.main(["--path", last, "--output", file])
    whole = hypotheses(translate(data, last))
    assert hypotheses(translate(data, plain, "--adapter-path", file)) == whole
    assert hypotheses(translate(data, plain)) != whole
    export_adapters.main(["--path", last, "--output", fused, "--fuse"])
    assert hypotheses(translate(data, fused)) == whole


@KINDS
def test_export_of_adapted_models(data, cut_model, tmp_path, options):
    finetune(data, cut_model, tmp_path, "--max-epoch", "1", *options)
    adapted = str(tmp_path / "checkpoint_last.pt")
    # it is compared with PyTorch's model, adapters and all, before it is kept
    export.main([data, "--path", adapted, "--output", str(tmp_path / "exported")])
    assert (tmp_path / "exported" / "model.bin").is_file()


def test_adapters_of_the_checkpoint_are_fused_before_it_is_pruned(data, cut_model, tmp_path):
    finetune(data, cut_model, tmp_path, "--max-epoch", "1", *SPLORA)
    adapted = tmp_path / "adapted.pt"
    shutil.move(tmp_path / "checkpoint_last.pt", adapted)
    expected = logits(load_model(str(adapted)))
    trainer = finetune(data, adapted, tmp_path / "next", "--max-epoch", "1", "--lr", "1e-9")
    assert not adapted_layers(trainer.model)
    assert all(p.requires_grad for p in trainer.model.parameters())
    torch.testing.assert_close(logits(trainer.model), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--adapter-rank", "2"], "--adapter-rank 2: needs --adapter"),
        (["--adapter-prototypes", "64"], "--adapter-prototypes 64: needs --adapter splopa"),
        (["--adapter", "splora", "--adapter-block-size", "8"], "needs --adapter splopa"),
        (["--adapter-path", "adapters.pt"], "--adapter-path: is for translation"),
        (["--adapter", "splora", "--adapter-rank", "2.5"], "whole number"),
        (["--adapter", "splora", "--adapter-rank", "inf"], "whole number"),
        (["--adapter", "splopa", "--adapter-rank", "0.5"], "whole number"),
        (["--adapter", "splora", "--adapter-rank", "500"], "--adapter splora: .*rank 500"),
        (["--adapter", "splopa", "--adapter-prototypes", "0"], "--adapter-prototypes 0"),
        (["--adapter", "splopa", "--adapter-block-size", "-1"], "--adapter-block-size -1"),
        (["--adapter", "splora", "--adapter-include", "nothing.*"], "matches no layer"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_refusals(data, base, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        finetune(data, base, tmp_path, "--max-epoch", "1", *options)
    assert not list(tmp_path.glob("*.pt"))


def test_adapters_need_a_base(data, tmp_path):
    with pytest.raises(UserError, match="needs --pretrained-model"):
        run_training([data, *TINY, *RUN, "--save-dir", tmp_path, *SPLORA])


def test_which_layers(data, base, tmp_path):
    chosen = ["--adapter-include", "decoder.*", "--adapter-exclude", "*.k_proj,*.fc2"]
    trainer = finetune(data, base, tmp_path, "--max-epoch", "1", *SPLORA, *chosen)
    names = set(adapted_layers(trainer.model))
    kinds = {name.rsplit(".", 1)[1] for name in names}
    assert kinds == {"q_proj", "v_proj", "out_proj", "fc1"}
    assert all(name.startswith("decoder.layers") for name in names)
    assert set(channel_groups(trainer.model))  # groups stay what they were
