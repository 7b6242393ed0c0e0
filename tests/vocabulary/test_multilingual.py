"""Imitations of M2M-100 and mBART: tags, SentencePiece, one dictionary for all languages."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, data_utils
from fairseq.data.indexed_dataset import make_builder
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from src import average_checkpoints, export_sparse
from src.errors import UserError
from tests.support.training import RUN, TINY, run_training
from tests.support.translation import hypotheses, run_tool, translate
from tests.support.vocabulary import (
    Corpus,
    dictionary,
    scores,
    sentences,
    translation,
    trim,
    without_types,
)

FOREIGN = ["zug", "brot", "kase", "wein", "milch", "apfel"]  # of languages that are left out


class Multilingual(NamedTuple):
    """Two directions in one model.

    Attributes:
        folder: data of one direction by its target language.
        text: sentences by direction, split and side.
        model: the SentencePiece model.
        path: the checkpoint.
    """

    folder: dict
    text: dict
    model: str
    path: str


def make(folder: Path, tags: dict, kind: str) -> Multilingual:
    """A model of both directions; a source begins with the tag of its target."""
    trained = io.BytesIO()
    everything = [*sentences(1, 200), *map(translation, sentences(1, 200))]
    everything += [" ".join(FOREIGN[i:] + FOREIGN[:i]) for i in range(6)] * 10
    SentencePieceTrainer.train(
        sentence_iterator=iter(everything), model_writer=trained, vocab_size=120,
        model_type=kind, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    path = folder / "pieces.model"
    path.write_bytes(trained.getvalue())
    pieces = SentencePieceProcessor(model_proto=trained.getvalue())
    words = Dictionary()
    for number in range(pieces.get_piece_size()):
        if not (pieces.is_control(number) or pieces.is_unknown(number)):
            words.add_symbol(pieces.id_to_piece(number), 1)
    for tag in (*tags.values(), "__fr__", "[fr_XX]"):
        words.add_symbol(tag, 1)
    text, folders = {}, {}
    for target in ("en", "de"):
        for seed, (split, number) in enumerate((("train", 200), ("valid", 9), ("test", 9))):
            lines = sentences(seed + 1, number)
            pair = [lines, list(map(translation, lines))]
            text[target, split] = pair if target == "en" else pair[::-1]
    directions = {"en": ["en"], "de": ["de"], "both": ["en", "de"]}
    for name, targets in directions.items():
        folders[name] = str(folder / name)
        Path(folders[name]).mkdir()
        for side, lang in enumerate(("src", "tgt")):
            words.save(f"{folders[name]}/dict.{lang}.txt")
            for split in ("train", "valid", "test"):
                prefix = f"{folders[name]}/{split}.src-tgt.{lang}"
                builder = make_builder(f"{prefix}.bin", "mmap", len(words))
                for target in targets:
                    for line in text[target, split][side]:
                        tokens = " ".join(pieces.encode(line, out_type=str))
                        tagged = f"{tags[target]} {tokens}" if side == 0 else tokens
                        builder.add_item(words.encode_line(tagged, add_if_not_exist=False))
                builder.finalize(f"{prefix}.idx")
    run = [folders["both"], *TINY, *RUN, "--share-all-embeddings", "--label-smoothing", "0"]
    run_training(
        [
            *run,
            "--lr",
            "1e-2",
            "--max-tokens",
            "400",
            "--max-epoch",
            "14",
            "--save-dir",
            folder / "run",
        ]
    )
    checkpoint = str(folder / "run/checkpoint_last.pt")
    return Multilingual(folders, text, str(path), checkpoint)


@pytest.fixture(scope="module", params=["m2m", "mbart"])
def multilingual(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "m2m":
        return make(folder, {"en": "__en__", "de": "__de__"}, "bpe")
    return make(folder, {"en": "[en_XX]", "de": "[de_DE]"}, "unigram")


@pytest.mark.parametrize("target", ["en", "de"])
def test_each_direction_translates_as_before(multilingual, target, tmp_path):
    """Unused types go, those of other languages; then the model is cut."""
    data, path = multilingual.folder[target], multilingual.path
    new, trimmed, _ = trim(None, path, tmp_path, data=data)
    old_words, new_words = dictionary(data, "src"), dictionary(new, "src")
    assert len(new_words) < len(old_words) - 5
    assert {"__fr__", "[fr_XX]"} <= set(new_words.symbols)
    search = ["--prefix-size", "1", "--fairseq-search"]
    after = translate(new, trimmed, *search)
    with without_types(old_words, new_words):
        before = translate(data, path, *search)
    assert hypotheses(before) == hypotheses(after)
    assert np.allclose(scores(before), scores(after), atol=1e-5)
    shared = [o for o in TINY if o != "--share-decoder-input-output-embed"]
    trainer = run_training(
        [new, *shared, *RUN, "--share-all-embeddings", "--pretrained-model", trimmed]
        + [
            "--compression-rate",
            "0.6",
            "--max-tokens",
            "800",
            "--max-epoch",
            "1",
            "--save-dir",
            tmp_path / "cut",
        ]
    )
    assert trainer.model.encoder.embed_tokens.weight.shape[0] == len(new_words)
    cut = str(tmp_path / "cut/checkpoint_last.pt")
    uncut_words = translate(new, cut)
    assert len(hypotheses(uncut_words)) == 9
    # averaging and sparse files take the trimmed model, and keep its history
    average = ["--inputs", trimmed, trimmed, "--output", str(tmp_path / "average.pt")]
    run_tool(lambda: average_checkpoints.main(average), average)
    assert torch.load(tmp_path / "average.pt")["vocabulary"][0]["how"] == "trimmed"
    sparse = ["--path", trimmed, "--output", str(tmp_path / "trimmed.sparse")]
    run_tool(lambda: export_sparse.main(sparse), sparse)
    assert hypotheses(translate(new, str(tmp_path / "trimmed.sparse"))) == hypotheses(
        translate(new, trimmed)
    )


def test_pieces_are_split_as_the_trimmed_model_does(multilingual, tmp_path):
    data, path = multilingual.folder["en"], multilingual.path
    options = ["--sentencepiece-model", multilingual.model, "--max-types", "70"]
    new, _, printed = trim(None, path, tmp_path, *options, data=data)
    for side, lang in enumerate(("src", "tgt")):
        words = dictionary(new, lang)
        assert len(words) <= 70
        pieces = SentencePieceProcessor(model_file=f"{new}/sentencepiece.{lang}.model")
        for split in ("train", "valid", "test"):
            dataset = data_utils.load_indexed_dataset(f"{new}/{split}.src-tgt.{lang}", words)
            for number, line in enumerate(multilingual.text["en", split][side]):
                tokens = words.string(dataset[number]).split()
                if side == 0:
                    assert tokens.pop(0) in ("__en__", "[en_XX]")
                assert tokens == pieces.encode(line, out_type=str)
                assert pieces.decode(tokens) == line
    listed = Path(f"{new}/vocabulary.src").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == words.symbols[words.nspecial :]
    assert "unknown 0 -> 0" in printed


def test_a_model_of_other_text_is_refused(multilingual, tmp_path):
    other = io.BytesIO()
    lines = ["quark xylophon yacht jux " * 3] * 20
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=other, vocab_size=40,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "other.model").write_bytes(other.getvalue())
    options = ["--sentencepiece-model", str(tmp_path / "other.model")]
    with pytest.raises((UserError, SystemExit), match="of the dictionary's"):
        trim(None, multilingual.path, tmp_path, *options, data=multilingual.folder["en"])


def test_codes_are_no_model(multilingual, tmp_path):
    codes = Corpus(tmp_path / "corpus", joined=True).codes
    with pytest.raises((UserError, SystemExit), match="of the dictionary's"):
        options = ["--bpe-codes", codes]
        trim(None, multilingual.path, tmp_path, *options, data=multilingual.folder["en"])


def test_a_cut_model_and_a_sparse_file_are_trimmed(multilingual, tmp_path):
    data, path = multilingual.folder["en"], multilingual.path
    sparse = ["--path", path, "--output", str(tmp_path / "sparse")]
    run_tool(lambda: export_sparse.main(sparse), sparse)
    tiny = [o for o in TINY if o != "--share-decoder-input-output-embed"]
    cut = tmp_path / "cut"
    run_training(
        [data, *tiny, *RUN, "--share-all-embeddings", "--pretrained-model", path]
        + ["--compression-rate", "0.6", "--max-tokens", "800", "--max-epoch", "1"]
        + ["--save-dir", cut]
    )
    for number, model in enumerate((str(tmp_path / "sparse"), str(cut / "checkpoint_last.pt"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        new, trimmed, _ = trim(None, model, folder, data=data)
        with without_types(dictionary(data, "src"), dictionary(new, "src")):
            before = translate(data, model, "--fairseq-search")
        after = translate(new, trimmed, "--fairseq-search")
        assert hypotheses(before) == hypotheses(after)
        assert np.allclose(scores(before), scores(after), atol=1e-5)
