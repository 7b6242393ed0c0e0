"""Stages with --prune-heads in fairseq's training loop, and what comes after them."""

import pytest
import torch
from fairseq import checkpoint_utils

from src import average_checkpoints
from src.checkpoints import adapters as adaptation
from src.checkpoints.rebuild import load_model
from src.connectivity.budget import ParameterCount
from src.connectivity.groups import attention_groups, channel_groups
from src.errors import UserError
from src.training import build_pruning
from src.training.channel_pruning import ChannelPruning
from tests.support.heads import heads
from tests.support.runs import stop_at
from tests.support.training import RUN, TINY, batch, run_training

FOUR_HEADS = ["--encoder-attention-heads", "4", "--decoder-attention-heads", "4"]


@pytest.fixture(scope="module")
def dense(data, tmp_path_factory):
    """Checkpoint of a tiny model with four heads a module."""
    folder = tmp_path_factory.mktemp("four")
    run = [data, *TINY, *FOUR_HEADS, *RUN, "--max-epoch", "1"]
    run_training([*run, "--save-dir", folder])
    return str(folder / "checkpoint_last.pt")


def stage(data, pretrained, folder, *options, rate="0.6"):
    return [
        *(data, *TINY, *FOUR_HEADS, *RUN, "--pretrained-model", pretrained),
        *("--compression-rate", rate, "--prune-heads", "--save-dir", folder, *options),
    ]


SHRINK = [
    *("--srp", "--pruning-iter", "2", "--max-epoch", "3", "--clip-norm", "0.5"),
    *("--attn-kd", "1", "--prob-kd", "1", "--no-epoch-checkpoints", "--keep-interval-updates"),
    *("2", "--save-interval-updates", "2", "--weighted-layernorm"),
]


def content(folder):
    return torch.load(folder / "checkpoint_last.pt")


def loaded(trainer, folder):
    """The checkpoint's model as fairseq's tools load it."""
    path = str(folder / "checkpoint_last.pt")
    (model,), _ = checkpoint_utils.load_model_ensemble([path], task=trainer.task)
    return model.eval()


@pytest.fixture(scope="module")
def shrunk(data, dense, tmp_path_factory):
    """A stage of two iterations with distillation, and what its cuts left of the moments."""
    seen = []

    class Watched(ChannelPruning):
        def cut(self, trainer):
            model, moments = trainer.get_model(), {}
            state = trainer.optimizer.optimizer.state
            for name, parameter in model.named_parameters():
                moments[name] = state[parameter]["exp_avg_sq"].clone()
            removed = dict(self.stage.shrinking)
            zeros = channel_groups(model)
            assert all((zeros[n].connectivity[r] == 0).all() for n, r in removed.items())
            with torch.no_grad():
                before = model.eval()(*batch())[0]
                super().cut(trainer)
                difference = (model(*batch())[0] - before).abs().max().item()
            model.train()
            after = {n: state[p]["exp_avg_sq"].clone() for n, p in model.named_parameters()}
            seen.append((removed, moments, after, difference))

    folder = tmp_path_factory.mktemp("shrunk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_pruning, "ChannelPruning", Watched)
        trainer = run_training(stage(data, dense, folder, *SHRINK))
    return trainer, folder, seen


def test_srp_removes_heads_in_iterations(shrunk, dense):
    trainer, folder, seen = shrunk
    model = trainer.get_model()
    total = sum(p.numel() for p in load_model(dense).parameters())
    now = sum(p.numel() for p in model.parameters())
    assert abs(now - 0.6 * total) <= 0.01 * 0.6 * total
    assert sum(heads(model)) < 24 and all(
        g.head_width == 4 for pair in attention_groups(channel_groups(model)) for g in pair
    )
    assert len(seen) == 2
    for removed, _, _, difference in seen:
        assert difference < 1e-5  # float32
        assert any(name.endswith("qk") for name in removed)
    assert torch.equal(loaded(trainer, folder)(*batch())[0], model.eval()(*batch())[0])
    assert heads(loaded(trainer, folder)) == heads(model)
    assert heads(load_model(str(folder / "checkpoint_last.pt"))) == heads(model)
    with open(folder / "results.csv") as stream:
        names, *_, last = (line.strip().split(",") for line in stream)
    row = dict(zip(names, last))
    assert int(row["parameters"]) == now
    for qk, vo in attention_groups(channel_groups(model)):
        assert int(row[f"width:{qk.name}"]) == 4 * qk.heads == int(row[f"width:{vo.name}"])


def test_moments_are_cut_like_the_weights(shrunk):
    """Against the removed positions, parameter by parameter."""
    _, _, seen = shrunk
    checked = 0
    for removed, before, after, _ in seen:
        for name, moments in before.items():
            module, _, rest = name.partition("_attn.")
            if rest not in ("q_proj.weight", "v_proj.weight", "out_proj.weight", "k_proj.bias"):
                continue
            heads_of = f"{module}_attn.{'qk' if rest[0] in 'qk' else 'vo'}"
            memory = "encoder" if rest == "v_proj.weight" else name.split(".")[0]
            if "self" in name:
                memory = name.split(".")[0]
            dims = [heads_of, f"{memory}.embedding"]
            dims = dims[::-1] if rest.startswith("out") else dims
            expected = moments
            for dim, group in enumerate(dims[: moments.dim()]):
                gone = removed.get(group, torch.tensor([], dtype=torch.long))
                assert moments.index_select(dim, gone).count_nonzero() == 0  # frozen
                stays = torch.ones(moments.shape[dim], dtype=torch.bool)
                stays[gone] = False
                expected = expected.index_select(dim, stays.nonzero()[:, 0])
            assert torch.equal(after[name], expected) and expected.abs().max() > 0
            checked += heads_of in removed
    assert checked > 12


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_stopped_stage_resumes_bit_identically(data, dense, tmp_path, shrunk, monkeypatch, share):
    trainer, folder, _ = shrunk

    update = int(share * trainer.get_num_updates())
    stop_at(update, stage(data, dense, tmp_path, *SHRINK), monkeypatch)
    run_training(stage(data, dense, tmp_path, *SHRINK))
    expected, found = content(folder), content(tmp_path)
    assert expected["model"].keys() == found["model"].keys()
    assert all(torch.equal(v, found["model"][k]) for k, v in expected["model"].items())
    states = [c["last_optimizer_state"]["state"] for c in (expected, found)]
    for number, state in states[0].items():
        assert torch.equal(state["exp_avg"], states[1][number]["exp_avg"])


def test_one_shot_then_dims_then_heads_then_adapters(data, dense, tmp_path):
    """Every later stage works on a model that lost heads."""
    with pytest.raises(SystemExit) as stop:
        run_training(stage(data, dense, tmp_path / "1"))
    assert stop.value.code == 0
    last = str(tmp_path / "1" / "checkpoint_last.pt")
    one = heads(load_model(last))
    state, before = content(tmp_path / "1")["model"], torch.load(dense)["model"]
    name = "encoder.layers.0.self_attn."
    rows = state[f"{name}qk.channel_ids"].long()
    columns = state["encoder.embedding.channel_ids"].long()
    expected = before[f"{name}q_proj.weight"][rows][:, columns]
    assert torch.equal(state[f"{name}q_proj.weight"], expected)  # nothing was trained

    dims = list(stage(data, last, tmp_path / "2", "--srp", rate="0.45"))
    dims.remove("--prune-heads")
    two = run_training([*dims, "--attn-kd", "1"]).get_model()
    assert heads(two) == one
    pairs = attention_groups(channel_groups(two))
    assert any(qk.head_width < 4 for qk, _ in pairs)

    last = str(tmp_path / "2" / "checkpoint_last.pt")
    options = ["--adapter", "splora", "--adapter-rank", "2", "--pruning-stage", "2", "--srp"]
    three = run_training(stage(data, last, tmp_path / "3", *options, rate="0.4"))
    assert sum(heads(three.get_model())) < sum(one)
    assert torch.equal(
        loaded(three, tmp_path / "3")(*batch())[0], three.get_model().eval()(*batch())[0]
    )
    count = ParameterCount(three.get_model())
    total = count(count.original)
    assert abs(count(count.current) - 0.4 * total) <= 0.01 * 0.4 * total

    # the adapters alone bring the heads that they were trained with
    path, pruned = str(tmp_path / "adapters.pt"), three.get_model()
    adaptation.write_adapters(pruned, path, {})
    other = load_model(last)
    content_of = adaptation.read_adapters(path, "--adapter-path")
    adaptation.apply_adapters(other, content_of, "--adapter-path")
    assert heads(other) == heads(pruned)
    assert torch.equal(other(*batch())[0], pruned(*batch())[0])


def test_checkpoints_of_one_cut_average(shrunk, tmp_path):
    trainer, folder, _ = shrunk
    inputs = [str(folder / f"checkpoint_{name}.pt") for name in ("last", "best")]
    mean = str(tmp_path / "mean.pt")
    average_checkpoints.main(["--inputs", *inputs, "--output", mean])
    assert heads(load_model(mean)) == heads(trainer.get_model())
    states = [torch.load(path)["model"] for path in (*inputs, mean)]
    name = "encoder.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(states[2][name], (states[0][name] + states[1][name]) / 2)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--pruning-stage", "1"], "--prune-heads: needs --pruning-stage 0 or 2"),
        (["--compression-rate", "1"], "--prune-heads: needs --compression-rate below 1"),
        (["--compression-rate", "0.01"], "one head per attention module"),
    ],
)
def test_refused(data, dense, tmp_path, options, words):
    with pytest.raises(UserError, match=words) as error:
        run_training([*stage(data, dense, tmp_path), *options])
    assert "\n" not in str(error.value)


def test_single_heads_are_refused(data, dense, tmp_path):
    single = ["--encoder-attention-heads", "1", "--decoder-attention-heads", "1"]
    run_training([data, *TINY, *single, *RUN, "--max-update", "1", "--save-dir", tmp_path])
    command = stage(data, str(tmp_path / "checkpoint_last.pt"), tmp_path / "no")
    with pytest.raises(UserError, match="--prune-heads: every attention module"):
        run_training([*command, *single])
