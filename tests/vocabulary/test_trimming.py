"""Trimming a vocabulary: what stays computes the same, and text comes back as it was."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import data_utils
from subword_nmt.apply_bpe import BPE

from src.errors import UserError
from tests.support.training import RUN, TINY, run_training
from tests.support.translation import hypotheses, translate
from tests.support.vocabulary import (
    LANGUAGES,
    Corpus,
    decoded,
    dictionary,
    scores,
    train,
    trim,
    without_types,
)


def model_of(data: str, path: str):
    overrides = {"data": data}
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([path], overrides)
    return model.eval()


@pytest.fixture(scope="module", params=["separate", "joined", "untied"])
def trained(request, tmp_path_factory):
    """(corpus, checkpoint, options of the model)."""
    folder = tmp_path_factory.mktemp(request.param)
    corpus = Corpus(folder / "data", joined=request.param != "separate")
    options = {"joined": ["--share-all-embeddings"], "separate": [], "untied": []}[request.param]
    if request.param == "untied":  # TINY ties the output projection to the table
        arguments = [o for o in TINY if o != "--share-decoder-input-output-embed"]
        arguments = [corpus.folder, *arguments, *RUN, "--label-smoothing", "0"]
        run_training([*arguments, "--max-epoch", "2", "--save-dir", folder / "run"])
        return corpus, str(folder / "run/checkpoint_last.pt")
    return corpus, train(corpus.folder, folder / "run", *options)


def test_without_unused_types_everything_is_computed_alike(trained, tmp_path):
    corpus, path = trained
    data, trimmed, printed = trim(corpus, path, tmp_path)
    before, after = model_of(corpus.folder, path), model_of(data, trimmed)
    old, new = dictionary(corpus.folder, "en"), dictionary(data, "en")
    assert len(new) < len(old) - 6 and "__en__" in new and "madeupword0000" not in new
    # the numbers of parameters are those of the built models
    counts = [sum(p.numel() for p in model.parameters()) for model in (before, after)]
    assert f"parameters: {counts[0]:,} -> {counts[1]:,}" in printed
    tables = {
        p
        for module in (before.encoder.embed_tokens, before.decoder.embed_tokens)
        for p in module.parameters()
    } | {before.decoder.output_projection.weight}
    gone = [len(dictionary(corpus.folder, x)) - len(dictionary(data, x)) for x in LANGUAGES]
    removed = sum(16 * gone[table is not before.encoder.embed_tokens.weight] for table in tables)
    assert counts[0] - counts[1] == removed
    # logits are the same: probabilities among the types that stay
    rows = torch.tensor([old.index(symbol) for symbol in new.symbols])
    source = torch.tensor(
        [[dictionary(corpus.folder, "de").index(s) for s in ("h@@", "a@@", "u")] + [2]]
    )
    new_source = torch.tensor(
        [[dictionary(data, "de").index(s) for s in ("h@@", "a@@", "u")] + [2]]
    )
    previous = torch.tensor([[2, old.index("o@@"), old.index("z")]])
    new_previous = torch.tensor([[2, new.index("o@@"), new.index("z")]])
    lengths = torch.tensor([4])
    with torch.no_grad():
        expected = before(source, lengths, previous)[0][..., rows].log_softmax(-1)
        found = after(new_source, lengths, new_previous)[0].log_softmax(-1)
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)
    # and so are translations, where the types that went had no probability
    found = translate(data, trimmed, "--fairseq-search")
    with without_types(old, new):
        expected = translate(corpus.folder, path, "--fairseq-search")
    assert hypotheses(found) == hypotheses(expected)
    assert np.allclose(scores(found), scores(expected), atol=1e-5)


def test_text_split_anew_is_the_same_text(trained, tmp_path):
    corpus, path = trained
    most = {lang: len(dictionary(corpus.folder, lang)) - 25 for lang in LANGUAGES}["en"]
    options = ["--max-types", str(most), "--bpe-codes", corpus.codes]
    data, trimmed, printed = trim(corpus, path, tmp_path, *options)
    longer = 0
    for lang in LANGUAGES:
        words = dictionary(data, lang)
        assert len(words) <= most
        vocabulary = set(words.symbols)
        listed = [
            line.split(" ") for line in Path(f"{data}/vocabulary.{lang}").read_text().splitlines()
        ]
        assert [symbol for symbol, _ in listed] == words.symbols[words.nspecial :]
        bpe = BPE(open(corpus.codes), vocab=vocabulary)
        for split in ("train", "valid", "test"):
            assert decoded(data, split, lang) == corpus.text[split, lang]
            # as the encoder splits text with the vocabulary that was written
            dataset = data_utils.load_indexed_dataset(f"{data}/{split}.de-en.{lang}", words)
            again = [words.string(dataset[i]) for i in range(len(dataset))]
            assert again == [bpe.segment(line) for line in corpus.text[split, lang]]
            old = dictionary(corpus.folder, lang)
            before = data_utils.load_indexed_dataset(f"{corpus.folder}/{split}.de-en.{lang}", old)
            longer += sum(dataset.sizes) > sum(before.sizes)
            assert not any((dataset[i] == words.unk()).any() for i in range(len(dataset)))
        # dictionaries count what was written
        train_set = data_utils.load_indexed_dataset(f"{data}/train.de-en.{lang}", words)
        if "joined" not in str(path) and "untied" not in str(path):
            counted = np.bincount(
                np.concatenate([train_set[i] for i in range(len(train_set))]), minlength=len(words)
            )
            assert counted[words.nspecial :].tolist() == words.count[words.nspecial :]
    assert longer == 6 and "decoding steps" in printed
    assert (
        Path(f"{data}/raw.test.en").read_text() == Path(f"{corpus.folder}/raw.test.en").read_text()
    )
    assert len(hypotheses(translate(data, trimmed))) == 9
    # and the trimmed model prunes: one shot, then trains on
    folder = tmp_path / "pruned"
    shared = [o for o in ("--share-all-embeddings",) if "joined" in str(path)]
    tiny = [
        o for o in TINY if o != "--share-decoder-input-output-embed" or "untied" not in str(path)
    ]
    trainer = run_training(
        [data, *tiny, *RUN, *shared, "--pretrained-model", trimmed, "--compression-rate", "0.6"]
        + ["--max-epoch", "1", "--save-dir", folder]
    )
    assert trainer.model.encoder.embed_tokens.weight.shape[1] < 16
    assert len(hypotheses(translate(data, str(folder / "checkpoint_last.pt")))) == 9


def test_dry_run_shows_what_limits_bring(trained, tmp_path):
    corpus, path = trained
    _, _, printed = trim(corpus, path, tmp_path, "--dry-run", "--bpe-codes", corpus.codes)
    rows = [line for line in printed.splitlines() if line.startswith("| ")][1:]
    assert rows[0].startswith("| as it is") and rows[1].startswith("| all used types")
    assert any("--max-types" in row for row in rows)
    assert not list(tmp_path.iterdir())
    state = torch.load(path)
    total = sum(
        {
            v.data_ptr(): v.numel()
            for n, v in state["model"].items()
            if v.dim() and v.numel() > 1 and "channel_ids" not in n and "connectivity" not in n
        }.values()
    )
    assert f"{total:,}" in rows[0]


@pytest.fixture(scope="module")
def separate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    corpus = Corpus(folder / "data", joined=False)
    run_training([corpus.folder, *TINY, *RUN, "--max-update", "1", "--save-dir", folder / "run"])
    return corpus, str(folder / "run/checkpoint_last.pt")


def refusal(corpus, path, folder, *options, data=None) -> str:
    with pytest.raises((UserError, SystemExit)) as caught:
        trim(corpus, path, folder, *options, data=data)
    assert [p for p in folder.iterdir() if p.name in ("data", "data.part", "trimmed.pt")] == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_refused_in_one_line(separate, tmp_path):
    corpus, path = separate
    few = refusal(corpus, path, tmp_path, "--max-types", "12", "--bpe-codes", corpus.codes)
    assert "--max-types 12" in few and "characters" in few and "special types and tags" in few
    lacking = refusal(corpus, path, tmp_path, "--max-types", "60")
    assert "--bpe-codes" in lacking
    assert "--bpe-codes" in refusal(corpus, path, tmp_path, "--min-count", "3")
    for value in ("--max-types", "--min-count"):
        assert f"{value} 0" in refusal(corpus, path, tmp_path, value, "0")
    other = tmp_path / "other.codes"
    other.write_text("#version: 0.2\nx y\nxy z</w>\n")
    assert "makes 0 of" in refusal(corpus, path, tmp_path, "--bpe-codes", str(other))
    other.write_text("a b 12\n")
    assert "line 1" in refusal(corpus, path, tmp_path, "--bpe-codes", str(other))
    other.write_text("")
    assert "is empty" in refusal(corpus, path, tmp_path, "--bpe-codes", str(other))
    assert "no such" in refusal(corpus, path, tmp_path, "--bpe-codes", "nowhere").lower()
    both = ["--bpe-codes", corpus.codes, "--sentencepiece-model", corpus.codes]
    assert "leave the other out" in refusal(corpus, path, tmp_path, *both)
    model = refusal(corpus, path, tmp_path, "--sentencepiece-model", corpus.codes)
    assert "no SentencePiece model" in model
    keep = tmp_path / "keep"
    keep.write_text("nowhere@@\n")
    assert "nowhere@@" in refusal(corpus, path, tmp_path, "--keep-types", str(keep))
    assert "no such file" in refusal(corpus, "nowhere.pt", tmp_path)


def test_codes_of_other_text_are_refused(separate, tmp_path):
    """They make the dictionary's types, but other tokens of the words."""
    corpus, path = separate
    lines = Path(corpus.codes).read_text().splitlines()
    other = tmp_path / "codes"
    other.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    assert "have other tokens" in refusal(corpus, path, tmp_path, "--bpe-codes", str(other))


def test_outputs_that_exist_are_left_alone(separate, tmp_path):
    corpus, path = separate
    (tmp_path / "data").mkdir()
    with pytest.raises((UserError, SystemExit), match="exists"):
        trim(corpus, path, tmp_path)
    (tmp_path / "data").rmdir()
    (tmp_path / "trimmed.pt").write_text("mine")
    with pytest.raises((UserError, SystemExit), match="exists"):
        trim(corpus, path, tmp_path)
    assert (tmp_path / "trimmed.pt").read_text() == "mine" and not (tmp_path / "data").exists()


def test_data_of_another_model_are_refused(separate, tmp_path):
    _, path = separate
    other = Corpus(tmp_path / "others", joined=True, unused=1)
    assert "dictionary has" in refusal(other, path, tmp_path)


def test_a_failure_on_the_way_leaves_nothing(separate, tmp_path, monkeypatch):
    corpus, path = separate

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("src.vocabulary.output.torch.save", fail)
    with pytest.raises(SystemExit):
        trim(corpus, path, tmp_path)
    assert list(tmp_path.iterdir()) == []
