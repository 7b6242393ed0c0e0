"""plan.py on a tiny model: what is cut, what is timed, what is written and refused."""

import csv
import json

import pytest
import torch

from src import plan
from src.checkpoints.rebuild import load_model
from src.connectivity.groups import channel_groups
from src.connectivity.stage import StagePlan
from src.errors import UserError
from src.planning.candidates import candidates, cut_to, rebuilt, usual_depths
from src.planning.rows import Candidate
from src.planning.sentences import Sentence, choose, in_batches
from tests.support.translation import (  # noqa: F401  fixtures among them
    checkpoints,
    corpus,
    run_tool,
)

PLAN = StagePlan(1.0, decreasing=None)
FEW = ["--sentences", "4", "--rounds", "2", "--beam", "2", "--cpu-threads", "1"]


@pytest.fixture(scope="module")
def model(checkpoints):  # noqa: F811
    return load_model(checkpoints.dense)


def share(found):
    return sum(p.numel() for p in found.parameters())


@pytest.mark.parametrize(
    "candidate, rate", [(Candidate(2, 2, 0.5), 0.5), (Candidate(2, 1, 0.4), 0.4)]
)
def test_candidates_have_their_layers_and_rate(model, candidate, rate):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = cut_to(candidate, model, PLAN)
    assert (len(found.encoder.layers), len(found.decoder.layers)) == candidate.depths
    assert abs(share(found) / share(model) - rate) < 0.005
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_what_would_cut_nothing_is_no_candidate(model):
    assert cut_to(Candidate(2, 2, 1.0), model, PLAN) is None
    assert cut_to(Candidate(2, 1, 0.99), model, PLAN) is None  # beyond the layers that stay
    assert cut_to(Candidate(2, 2, 1e-6), model, PLAN) is None


def test_the_uncut_model_of_a_cut_one(model, checkpoints):  # noqa: F811
    cut = load_model(checkpoints.cut)
    sides = cut.encoder.dictionary, cut.decoder.dictionary
    state = torch.get_rng_state()
    found = rebuilt("srp", cut, sides)
    assert torch.equal(torch.get_rng_state(), state)  # a training goes on with its numbers
    assert [tuple(p.shape) for p in found.parameters()] == [
        tuple(p.shape) for p in model.parameters()
    ]
    assert all(g.width == g.original_width for g in channel_groups(found).values())


def test_depths_that_are_planned_with(model):
    assert usual_depths(model, PLAN) == [(2, 2), (2, 1)]
    assert usual_depths(model, StagePlan(1.0, keep_encoder_layers=1)) == [(1, 2), (1, 1)]
    assert usual_depths(model, StagePlan(1.0, keep_decoder_layers=2)) == [(2, 2)]
    assert usual_depths(model, StagePlan(1.0, stage=1)) == [(2, 2)]
    assert candidates([(2, 1)], [0.5, 1.0]) == [Candidate(2, 1, 1.0), Candidate(2, 1, 0.5)]


def test_batches_take_the_steps_and_tokens_of_a_search_that_sentences_leave():
    sentences = [Sentence(torch.tensor([n, 2]), steps) for n, steps in enumerate([4, 8, 10, 6, 3])]
    first, second = in_batches(sentences, 4)
    assert (first.steps, len(first.sources)) == (10, 3)  # 28 of 30 tokens
    assert (second.steps, len(second.sources)) == (3, 1)


class Lengths:
    """A set with sources of these lengths."""

    def __init__(self, *sizes):
        self.src_sizes = sizes
        self.src = [torch.arange(size) for size in sizes]


def test_sentences_are_whole_batches_of_all_lengths():
    found = choose(Lengths(*range(1, 101)), 20, 10, (80, 90))
    lengths = [len(x) for x in found]
    assert len(found) == 20 and lengths == sorted(lengths)
    assert lengths[:10] == list(range(lengths[0], lengths[0] + 10))  # neighbours share a batch
    assert 15 < lengths[0] < 25 and 50 < lengths[10] < 60
    assert [len(x) for x in choose(Lengths(1, 3, 2, 1), 20, 10, (80, 90))] == [2, 3]
    assert choose(Lengths(1, 90), 20, 10, (80, 90)) == []


@pytest.mark.slow
def test_table_files_and_choice(corpus, checkpoints, tmp_path):  # noqa: F811
    files = {kind: str(tmp_path / f"plan.{kind}") for kind in ("csv", "json", "picture")}
    options = [corpus, "--path", checkpoints.dense, *FEW, "--gen-subset", "test"]
    options += ["--rates", "0.4", "--engines", "pytorch,ctranslate2-int8"]
    for kind, path in files.items():
        options += [f"--{kind}", path]
    output = run_tool(lambda: plan.main(options), options)
    with open(files["json"], encoding="utf-8") as stream:
        facts = json.load(stream)
    rows = facts["rows"]
    assert [
        (r["engine"], r["encoder_layers"], r["decoder_layers"], r["rate"])
        for r in rows
    ] == [
        (engine, 2, decoder, rate)
        for decoder, rate in ((2, 1.0), (2, 0.4), (1, 1.0), (1, 0.4))
        for engine in ("pytorch", "ctranslate2-int8")
    ]  # fmt: skip
    assert [r["as_given"] for r in rows] == [True] * 2 + [False] * 6
    for found in rows:
        assert found["speed_up_low"] <= found["speed_up"] <= found["speed_up_high"]
        assert found["times_fairseq"] > 0
        assert (found["export_bytes"] is None) == (found["engine"] == "pytorch")
        if found["rate"] == 0.4:
            assert abs(found["share"] - 0.4) < 0.005 and not found["as_given"]
        if found["as_given"]:
            assert found["speed_up"] == found["speed_up_low"] == 1
    with open(files["csv"], encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == len(rows)
    with open(files["picture"], "rb") as stream:
        assert stream.read(8) == b"\x89PNG\r\n\x1a\n"
    assert output.count("quartiles") == 2 and "2+1" in output


@pytest.mark.parametrize(
    "options, message",
    [
        ("--depths 3+1", r"--depths 3\+1: the model has 2\+2 layers"),
        ("--depths 2", "--depths 2: must be layers of encoder and decoder"),
        ("--depths 0+1", r"--depths 0\+1: the model has 2\+2 layers; give from 1"),
        ("--rates 0.5,2", r"--rates 2: must be in \(0, 1\]"),
        ("--rates half", "--rates half: must be in"),
        ("--engines fast", "--engines fast: must be one of pytorch, ctranslate2-float32"),
        ("--engines pytorch --vocabulary-map", "--vocabulary-map 20: needs an engine"),
        ("--engines ctranslate2-int8-vmap", "-vmap needs --vocabulary-map"),
        ("--speed-up 1", "--speed-up 1: must be above 1"),
        ("--rounds 1", "--rounds 1: must be at least 2"),
        ("--gen-subset no", "--gen-subset no: "),
        ("--embedding-ratio 0", "--embedding-ratio 0: must be from"),
        ("--json no/plan.json", "--json no/plan.json: "),
    ],
)
def test_refusals(options, message, corpus, checkpoints):  # noqa: F811
    arguments = [corpus, "--path", checkpoints.dense, *options.split()]
    with pytest.raises(UserError, match=message):
        run_tool(lambda: plan.main(arguments), arguments)


def test_a_model_that_is_shrinking_is_refused(corpus, checkpoints):  # noqa: F811
    arguments = [corpus, "--path", checkpoints.gated]
    with pytest.raises(UserError, match="a pruning stage is under way, channels of .* shrinking"):
        run_tool(lambda: plan.main(arguments), arguments)


def test_engines_that_are_not_there(corpus, checkpoints, monkeypatch):  # noqa: F811
    monkeypatch.setitem(__import__("sys").modules, "ctranslate2", None)
    arguments = [corpus, "--path", checkpoints.dense, "--engines", "ctranslate2-int8"]
    with pytest.raises(UserError, match="--engines ctranslate2-int8: needs the package"):
        run_tool(lambda: plan.main(arguments), arguments)
    arguments[-2:] = ["--device", "cuda"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: PyTorch finds no GPU"):
        run_tool(lambda: plan.main(arguments), arguments)
