"""What averaging refuses: one line, exit status 2, and no file."""
# ruff: noqa: F811  (fixtures are imported)

import os
from pathlib import Path

import pytest
import torch

from src import average_checkpoints as averaging
from src.checkpoints.averaging import average_checkpoints
from src.errors import ending_program
from tests.support.averages import (
    assert_same,
    average,
    by_updates,
    edited,
    # noqa: F401
    weights,
)
from tests.support.translation import quiet_logging


def other_channels(state):
    ids = state["model"]["encoder.layers.1.ffn.channel_ids"]
    assert ids[-1] - ids[0] >= len(ids)  # there is a gap: some unit was cut
    gap = (ids.diff() > 1).nonzero()[0]
    ids[gap] += 1


def not_finite(state):
    state["model"]["decoder.layers.0.fc1.weight"][0, 0] = float("nan")


def other_key(state):
    state["model"]["decoder.extra"] = torch.zeros(2)


def no_bias(state):
    del state["model"]["decoder.layers.0.fc1.bias"]


def other_shape(state):
    state["model"]["decoder.layers.0.fc1.bias"] = torch.zeros(2)


def no_tensor(state):
    state["model"]["decoder.extra"] = "text"


def other_dtype(state):
    name = "decoder.layers.0.fc1.bias"
    state["model"][name] = state["model"][name].half()


def other_heads(state):
    state["cfg"]["model"].encoder_attention_heads = 4


def other_norm(state):
    state["cfg"]["model"].weighted_layernorm = False


def untied(state):
    table = state["model"]["decoder.output_projection.weight"]
    state["model"]["decoder.output_projection.weight"] = table + 1


def integers(state):
    state["model"]["encoder.positions"] = torch.arange(3)


def other_integers(state):
    state["model"]["encoder.positions"] = torch.arange(3) + 1


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


def payload(state):
    state["extra_state"]["payload"] = Payload()


EDITS = [other_channels, not_finite, other_key, other_shape, other_dtype, other_heads]
EDITS += [no_tensor, other_norm, no_bias]
EDITS = {edit.__name__: edit for edit in [*EDITS, untied, payload]}
TWO = ["--inputs", "{fifth}", "{edited}"]
REFUSALS = {
    "before and after the cut": (
        ["--inputs", "{first}", "{fifth}"],
        ["{fifth}", "other channels than {first}", "encoder.layers.0.self_attn.qk"],
    ),
    "other_channels": (
        TWO,
        ["{edited}", "other channels than {fifth}: encoder.layers.1.ffn"],
    ),
    "shrinking": (
        ["--inputs", "{fifth}", "{shrinking}"],
        ["{shrinking}", "under way", "after the cut"],
    ),
    "not_finite": (TWO, ["{edited}", "decoder.layers.0.fc1.weight", "NaN"]),
    "other_key": (TWO, ["{edited}", "{fifth}", "decoder.extra"]),
    "no_bias": (TWO, ["{edited}", "lacks decoder.layers.0.fc1.bias, unlike {fifth}"]),
    "no_tensor": (TWO, ["{edited}", "its weight decoder.extra is of type str"]),
    "other_shape": (TWO, ["{edited}", "{fifth}", "decoder.layers.0.fc1.bias", "[2]"]),
    "other_dtype": (TWO, ["{edited}", "{fifth}", "decoder.layers.0.fc1.bias", "float16"]),
    "other_heads": (TWO, ["{edited}", "--encoder-attention-heads 4", "{fifth} has 2"]),
    "other_norm": (TWO, ["{edited}", "--weighted-layernorm False", "{fifth} has True"]),
    "untied": (TWO, ["{edited}", "{fifth}", "output_projection", "decoder.embed_tokens"]),
    "damaged": (["--inputs", "{fifth}", "{damaged}"], ["{damaged}", "truncated"]),
    "payload": (TWO, ["{edited}", "--trust-checkpoint"]),
    "missing": (["--inputs", "{fifth}", "no.pt"], ["--inputs no.pt", "no such file"]),
    "too few": (
        ["--inputs", "{pruned}", "--num-epoch-checkpoints", "6"],
        ["--num-epoch-checkpoints 6", "{pruned} has 5", "checkpoint1.pt, checkpoint2.pt"],
    ),
    "too few up to": (
        [*("--inputs", "{pruned}", "--num-epoch-checkpoints", "3")]
        + ["--checkpoint-upper-bound", "2"],
        ["has 2", "up to epoch 2"],
    ),
    "one": (
        [*("--inputs", "{pruned}", "--num-epoch-checkpoints", "2")]
        + ["--checkpoint-upper-bound", "1"],
        ["{pruned} has 1 checkpoint checkpoint<epoch>.pt up to epoch 1"],
    ),
    "no updates": (
        ["--inputs", "{folder}", "--num-update-checkpoints", "2"],
        ["--num-update-checkpoints 2", "has 0", "--save-interval-updates"],
    ),
    "folder alone": (["--inputs", "{pruned}"], ["{pruned}", "--num-epoch-checkpoints"]),
    "files and number": (
        ["--inputs", "{fourth}", "{fifth}", "--num-epoch-checkpoints", "2"],
        ["--num-epoch-checkpoints 2", "one folder"],
    ),
    "none": (["--inputs", "{pruned}", "--num-epoch-checkpoints", "0"], ["at least 1"]),
    "both": (
        ["--inputs", "{pruned}", "--num-epoch-checkpoints", "2"]
        + ["--num-update-checkpoints", "2"],
        ["--num-update-checkpoints", "not allowed with"],
    ),
    "bound alone": (
        ["--inputs", "{fifth}", "--checkpoint-upper-bound", "3"],
        ["--checkpoint-upper-bound 3", "--num-epoch-checkpoints"],
    ),
    "output is an input": (
        ["--inputs", "{fourth}", "{linked}", "--output", "{fifth}"],
        ["--output {fifth}", "one of the inputs"],
    ),
    "output's folder": (
        ["--inputs", "{fifth}", "--output", "{folder}/no/a.pt"],
        ["--output {folder}/no/a.pt", "no folder {folder}/no"],
    ),
    "output is a folder": (
        ["--inputs", "{fifth}", "--output", "{folder}"],
        ["--output {folder}", "is a folder"],
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_in_one_line(pruned, case, tmp_path, capsys):
    numbers = {"first": 1, "fourth": 4, "fifth": 5}
    places = {w: str(pruned / f"checkpoint{n}.pt") for w, n in numbers.items()}
    places.update(pruned=str(pruned), folder=str(tmp_path))
    given, expected = REFUSALS[case]
    if case in EDITS:
        places["edited"] = edited(places["fifth"], tmp_path / "edited.pt", EDITS[case])
    shrinking = [p for p in by_updates(pruned) if p.stem.startswith("checkpoint_2_")]
    places["shrinking"] = str(shrinking[-1])
    places["damaged"] = str(tmp_path / "damaged.pt")
    Path(places["damaged"]).write_bytes(Path(places["fourth"]).read_bytes()[:-3000])
    places["linked"] = str(tmp_path / "link.pt")
    os.symlink(places["fifth"], places["linked"])
    given = [argument.format(**places) for argument in given]
    if "--output" not in given:
        given += ["--output", str(tmp_path / "average.pt")]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stopped, ending_program(), quiet_logging():
        averaging.main(given)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.split("\n") if line.startswith("error: ")]
    assert len(lines) == 1 and not captured.out
    for part in expected:
        assert part.format(**places) in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_integer_buffers_must_be_equal(base, tmp_path, capsys):
    first = edited(base, tmp_path / "1.pt", integers)
    assert torch.equal(
        average_checkpoints([first, first])["model"]["encoder.positions"], torch.arange(3)
    )
    with pytest.raises(SystemExit), ending_program():
        average_checkpoints([first, edited(base, tmp_path / "2.pt", other_integers)])
    assert "encoder.positions has other numbers" in capsys.readouterr().err


def test_a_trusted_pickle_is_averaged_and_left_out(pruned, tmp_path):
    path = edited(pruned / "checkpoint5.pt", tmp_path / "p.pt", payload)
    state = average(tmp_path / "a.pt", "--inputs", path, path, "--trust-checkpoint")
    assert_same(state["model"], weights(pruned / "checkpoint5.pt"))


def test_output_is_checked_and_interruptions_end_quietly(pruned, tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    command = ["--inputs", str(pruned / "checkpoint5.pt")]
    command += ["--output", str(tmp_path / "a.pt")]
    monkeypatch.setattr(averaging, "average_checkpoints", stop)
    with pytest.raises(SystemExit) as stopped, ending_program(), quiet_logging():
        averaging.main(command)
    assert stopped.value.code == 130 and "interrupted" in capsys.readouterr().err
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(SystemExit) as stopped, ending_program(), quiet_logging():
        averaging.main(command)
    assert stopped.value.code == 2 and "can't be written to" in capsys.readouterr().err
