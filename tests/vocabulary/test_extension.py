"""New types for a trained model: old rows as they were, text as it was."""

import io
from pathlib import Path

import pytest
import torch
from fairseq.data import data_utils
from subword_nmt.learn_bpe import learn_bpe

from src.checkpoint_utils import load_checkpoint
from src.checkpoints import dictionary_record
from src.errors import UserError
from tests.support.training import RUN, TINY, run_training
from tests.support.translation import hypotheses, translate
from tests.support.vocabulary import LANGUAGES, Corpus, decoded, dictionary, trim


@pytest.fixture(scope="module", params=[False, True], ids=["separate", "joined"])
def model(request, tmp_path_factory):
    """(corpus, checkpoint)."""
    folder = tmp_path_factory.mktemp("extension")
    corpus = Corpus(folder / "data", joined=request.param)
    shared = ["--share-all-embeddings"] if request.param else []
    arguments = [corpus.folder, *TINY, *RUN, *shared, "--max-update", "2"]
    run_training([*arguments, "--save-dir", folder / "run"])
    return corpus, str(folder / "run/checkpoint_last.pt")


def more_merges(corpus: Corpus, folder: Path):
    """Codes that go further than the corpus's, and the types that they add."""
    learnt = io.StringIO()
    train = [line for lang in LANGUAGES for line in corpus.text["train", lang]]
    learn_bpe(train, learnt, 90)
    codes, types = folder / "codes", folder / "types"
    codes.write_text(learnt.getvalue())
    new = []
    for line in learnt.getvalue().splitlines()[1:]:
        merged = line.replace(" ", "")
        new.append(merged[:-4] if merged.endswith("</w>") else f"{merged}@@")
    types.write_text("".join(f"{symbol} 1\n" for symbol in new))
    return str(codes), str(types)


@pytest.mark.parametrize("how", ["mean", "random"])
def test_old_rows_stay_and_text_gets_shorter(model, how, tmp_path):
    corpus, path = model
    codes, types = more_merges(corpus, tmp_path)
    options = ["--extend", types, "--bpe-codes", codes, "--initialize", how]
    data, extended, printed = trim(corpus, path, tmp_path, *options)
    before, after = torch.load(path)["model"], torch.load(extended)["model"]
    for side, lang in (("encoder", "de"), ("decoder", "en")):
        old, new = dictionary(corpus.folder, lang), dictionary(data, lang)
        assert new.symbols[: len(old)] == old.symbols and len(new) > len(old) + 10
        name = f"{side}.embed_tokens.weight"
        assert torch.equal(after[name][: len(old)], before[name])
        added = after[name][len(old) :]
        assert len(added) == len(new) - len(old) and added.std() > 0
        if how == "mean":
            # merges are learnt in order: the first new one is of two types there were
            first = new.symbols[len(old)]
            halves = [line.split(" ") for line in Path(codes).read_text().splitlines()[1:]]
            left, right = next(
                (f"{a}@@", b[:-4] if b.endswith("</w>") else f"{b}@@")
                for a, b in halves
                if (f"{a}{b}"[:-4] if b.endswith("</w>") else f"{a}{b}@@") == first
            )
            if left in old and right in old:
                mean = before[name][[old.index(left), old.index(right)]].mean(0)
                assert torch.allclose(added[0], mean)
        for split in ("train", "valid", "test"):
            assert decoded(data, split, lang) == corpus.text[split, lang]
        sizes = []
        for folder, words in ((corpus.folder, old), (data, new)):
            dataset = data_utils.load_indexed_dataset(f"{folder}/train.de-en.{lang}", words)
            sizes.append(int(dataset.sizes.sum()))  # a view of the file that it has open
        assert sizes[1] < sizes[0]
    assert ("at random" in printed) and "-> " in printed
    assert len(hypotheses(translate(data, extended))) == 9


def test_a_tag_is_added_without_splitting_text(model, tmp_path):
    corpus, path = model
    types = tmp_path / "types"
    types.write_text("__fr__\n")
    data, extended, printed = trim(corpus, path, tmp_path, "--extend", str(types))
    assert "1 types added, 0 begin as the mean" in printed
    for lang in LANGUAGES:
        assert dictionary(data, lang).symbols[-1] == "__fr__"
        assert decoded(data, "train", lang) == corpus.text["train", lang]
    noted = dictionary_record.kept(load_checkpoint(extended, "--path"))
    new = [dictionary(data, lang) for lang in LANGUAGES]
    assert noted == dictionary_record.describe(new, LANGUAGES)
    # the old types' logits are bit for bit the same, so are the translations' words
    assert len(hypotheses(translate(data, extended))) == 9
    # and what was added is trimmed away again
    shorter = tmp_path / "again"
    shorter.mkdir()
    trim(corpus, extended, shorter, data=data)
    assert "__fr__" in dictionary(f"{shorter}/data", "de"), "a tag stays"


def test_what_can_not_be_added_is_refused(model, tmp_path):
    corpus, path = model
    types = tmp_path / "types"

    def refusal(*options):
        with pytest.raises((UserError, SystemExit)) as caught:
            trim(corpus, path, tmp_path, *options)
        assert not (tmp_path / "data").exists() and not (tmp_path / "trimmed.pt").exists()
        return str(caught.value)

    types.write_text("a@@\n")
    assert "no type that" in refusal("--extend", str(types))
    types.write_text("")
    assert "is empty" in refusal("--extend", str(types))
    assert "can't be read" in refusal("--extend", "nowhere")
    types.write_text("__fr__\n")
    assert "no part in --extend" in refusal("--extend", str(types), "--max-types", "90")
    assert "no part in --extend" in refusal("--extend", str(types), "--dry-run")
    assert "two" in refusal("--extend", str(types), str(types), str(types))
