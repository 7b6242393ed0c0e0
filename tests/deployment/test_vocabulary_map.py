"""The vocabulary map: candidates, its file, export and translation with it."""
# ruff: noqa: F811  (fixtures are imported)

import json
import os
import random
import shutil

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.data_utils import collate_tokens
from fairseq.dataclass.configs import GenerationConfig

from src import export, generate
from src.deployment import export as deployment
from src.deployment import vocabulary_map
from src.deployment.comparison import load_translator
from src.deployment.generator import CTranslate2Generator
from src.deployment.model import vocabulary
from src.deployment.vocabulary_map import VocabularyMap, build_map, from_text, to_text
from src.errors import UserError, ending_program
from tests.support.training import build, make_dictionary
from tests.support.translation import (
    WORDS,
    hypotheses,
    random_pairs,
    run_tool,
    write_data,
)


def arrays(sentences):
    return [np.array(x, np.int32) for x in sentences]


# -- candidates ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lexicon():
    """Pairs where source type n becomes target type m(n), in another order."""
    generator = random.Random(3)
    source, target = make_dictionary("de"), make_dictionary("en")
    meaning = dict(zip(range(4, 40), generator.sample(range(4, 40), 36)))
    words = range(4, 40)
    sources = [generator.choices(words, k=generator.randint(2, 7)) for _ in range(500)]
    targets = [generator.sample(m := [meaning[s] for s in x], len(m)) for x in sources]
    return (source, target), meaning, arrays(sources), arrays(targets)


def test_the_true_translation_is_a_candidate(lexicon):
    dictionaries, meaning, sources, targets = lexicon
    found = build_map(sources, targets, dictionaries, number=1)
    for type_, translation in meaning.items():
        assert found.candidates[type_] == [translation]
    assert len(found.common) == 4 + 5 and set(found.common[:4]) == {0, 1, 2, 3}
    counts = np.bincount(np.concatenate(targets), minlength=40)
    assert min(counts[found.common[4:]]) == sorted(counts)[-5]


def test_more_candidates_are_a_larger_map(lexicon):
    dictionaries, _, sources, targets = lexicon
    small, large = (build_map(sources, targets, dictionaries, n) for n in (2, 6))
    assert large.mean_size(sources) > small.mean_size(sources)
    for sentence in sources:
        assert small.of(sentence) <= large.of(sentence)


def test_a_symbol_of_both_dictionaries_becomes_itself(lexicon):
    (source, target), _, sources, targets = lexicon
    names = Dictionary(), Dictionary()
    for copy, dictionary in zip(names, (source, target)):
        for symbol in dictionary.symbols[4:]:
            copy.add_symbol(symbol)
        copy.add_symbol("1984")
    seen = names[0].add_symbol("Paris"), names[1].add_symbol("Paris")
    never = names[0].add_symbol("nie")
    sources, targets = [*sources, arrays([[seen[0]]])[0]], [*targets, targets[0]]
    found = build_map(sources, targets, names, number=1)
    assert found.candidates[names[0].index("1984")] == [names[1].index("1984")]
    assert len(found.candidates[seen[0]]) == 2 and seen[1] in found.candidates[seen[0]]
    assert never not in found.candidates
    assert found.of([never]) == set(found.common)


# -- its text --------------------------------------------------------------------------


def names_of(dictionaries):
    return tuple(map(vocabulary, dictionaries))


def test_text_and_back(lexicon):
    dictionaries, _, sources, targets = lexicon
    found = build_map(sources, targets, dictionaries, 4)
    names = names_of(dictionaries)
    text = to_text(found, names)
    assert text.startswith("\t<s> <pad> </s> <unk> ")
    assert from_text(text, names, dictionaries[1], "x") == found


def test_a_map_of_another_program_gets_what_the_search_needs(lexicon):
    dictionaries = lexicon[0]
    found = from_text("\ten3\nde1\ten2 en3\n", names_of(dictionaries), dictionaries[1], "x")
    assert found == VocabularyMap([0, 1, 2, 3, 7], {5: [6, 7]})


# -- translation -----------------------------------------------------------------------


def whole(dictionaries):
    return VocabularyMap(list(range(len(dictionaries[1]))), {})


SEARCHES = {
    "beam": dict(beam=4, max_len_b=15),
    "greedy": dict(beam=1, max_len_b=15),
    "to the limit": dict(beam=3, max_len_b=3),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("search", SEARCHES)
def test_a_map_of_everything_changes_nothing(search, shared, tmp_path):
    """In several batches of CTranslate2, an empty sentence among them."""
    source = make_dictionary("de")
    dictionaries = source, source if shared else make_dictionary("en")
    model = build(shared=shared, share_all_embeddings=shared).float()
    place = str(tmp_path)
    everything = whole(dictionaries)
    deployment.export(model, dictionaries, place, "int8", "x", None, 40, everything)
    options = GenerationConfig(min_len=0, **SEARCHES[search])
    generator = torch.Generator().manual_seed(4)
    lengths = [0, *torch.randint(1, 12, (40,), generator=generator).tolist()]
    sources = [torch.tensor([*torch.randint(4, 44, (n,), generator=generator), 2]) for n in lengths]
    sample = {"net_input": {"src_tokens": collate_tokens(sources, 1, left_pad=True)}}
    results = []
    for use_map in (True, False):
        engine = CTranslate2Generator(place, dictionaries, options, 40, "x", use_map)
        assert (engine.map is not None) == use_map
        results.append(
            [
                [(h["tokens"].tolist(), float(h["score"])) for h in found]
                for found in engine.generate([model], sample)
            ]
        )
    assert results[0] == results[1]


def test_scores_of_all_types_after_a_search_among_candidates(tmp_path, lexicon):
    """The end at the limit is scored so, by the same translator."""
    dictionaries, _, sources, targets = lexicon
    model, place = build().float(), str(tmp_path)
    found = build_map(sources, targets, dictionaries, 1)
    deployment.export(model, dictionaries, place, "float32", "x", None, 40, found)
    translator = load_translator(place, "x")
    pairs = [[[f"de{i}", "de9"] for i in range(9)], [[f"en{i}", "en7"] for i in range(9)]]
    before = [result.log_probs for result in translator.score_batch(*pairs)]
    options = dict(max_decoding_length=4, suppress_sequences=[["<pad>"]])
    results = [
        [
            result.hypotheses[0]
            for result in translator.translate_batch(pairs[0], use_vmap=x, **options)
        ]
        for x in (True, False, True, False)
    ]
    assert results[0] == results[2] != results[1] == results[3]
    translator.translate_batch(pairs[0], use_vmap=True, **options)
    assert [result.log_probs for result in translator.score_batch(*pairs)] == before


def test_what_ctranslate2_reads_is_checked(tmp_path, lexicon):
    dictionaries, _, sources, targets = lexicon
    model, place = build().float(), str(tmp_path)
    found = build_map(sources, targets, dictionaries, 4)
    deployment.export(model, dictionaries, place, "float32", "x", None, 40, found)
    translator = load_translator(place, "x")
    vocabulary_map.check(translator, found, dictionaries, sources[:9], 40, "x")
    nothing = VocabularyMap([0, 1, 2, 3], {})
    with pytest.raises(UserError, match="x: CTranslate2 does not read vmap.txt"):
        vocabulary_map.check(translator, nothing, dictionaries, sources[:9], 40, "x")


@pytest.fixture(scope="module")
def training(corpus, tmp_path_factory) -> str:
    """The tiny corpus with a training set."""
    folder = tmp_path_factory.mktemp("training") / "data"
    shutil.copytree(corpus, folder)
    write_data(folder, random_pairs(5, 80), "train")
    return str(folder)


def run_export(data, path, output, *extra):
    arguments = [data, "--path", path, "--output", str(output), "--max-length", "80"]
    arguments += extra
    return run_tool(lambda: export.main(list(arguments)), arguments)


@pytest.fixture(scope="module")
def folder(training, checkpoints, tmp_path_factory) -> str:
    """An export with one candidate of a source type."""
    place = tmp_path_factory.mktemp("export") / "model"
    output = run_export(training, checkpoints.cut, place, "--vocabulary-map", "1")
    assert "of 21 target types (4 sentences of set valid)" in output
    return str(place)


def the_map(folder, data):
    dictionaries = [Dictionary.load(f"{data}/dict.{x}.txt") for x in ("de", "en")]
    with open(f"{folder}/vmap.txt", encoding="utf-8") as stream:
        return from_text(stream.read(), names_of(dictionaries), dictionaries[1], "x")


def test_an_exported_map(folder, training, checkpoints, tmp_path):
    found = the_map(folder, training)
    assert len(found.common) == 4 + 5
    # punctuation of both languages is a candidate of itself
    comma = 4 + WORDS["de"].index(","), 4 + WORDS["en"].index(",")
    assert comma[1] in found.candidates[comma[0]]
    again = tmp_path / "model"
    run_export(training, checkpoints.cut, again, "--vocabulary-map", "1")
    assert (again / "vmap.txt").read_text() == open(f"{folder}/vmap.txt").read()
    run_export(training, checkpoints.cut, again, "--vocabulary-map", "--force")
    assert len(the_map(again, training).of([5])) == 21  # by default 20 of 17
    run_export(training, checkpoints.cut, again, "--force")
    assert "vmap.txt" not in os.listdir(again)


SEARCH = ["--beam", "3", "--min-len", "0", "--max-len-a", "1", "--max-len-b", "6"]
SEARCH += ["--no-progress-bar", "--cpu"]


def translate(data, path, *extra):
    arguments = [data, "--path", path, *SEARCH, "--engine", "ctranslate2", *extra]
    return run_tool(lambda: generate.main(list(arguments)), arguments)


def test_generate_with_it(folder, training, checkpoints, tmp_path):
    report = tmp_path / "report.json"
    given = ["--ctranslate2-model", folder, "--batch-size", "1", "--report", str(report)]
    with_map = translate(training, checkpoints.cut, *given)
    assert json.loads(report.read_text())["vocabulary_map"] is True
    found = the_map(folder, training)
    source, target = ({word: 4 + i for i, word in enumerate(WORDS[x])} for x in WORDS)
    sources, translations = hypotheses_and_sources(with_map)
    for number, text in translations.items():
        candidates = found.of([source[word] for word in sources[number].split()])
        for word in text.split():
            assert target.get(word, 3) in candidates
    off = [*given, "--ctranslate2-vocabulary-map", "off"]
    without = translate(training, checkpoints.cut, *off)
    assert "vocabulary_map" not in json.loads(report.read_text())
    assert hypotheses_and_sources(without)[1] != translations
    fresh = translate(training, checkpoints.cut, "--batch-size", "1")
    assert hypotheses_and_sources(without)[1] == hypotheses_and_sources(fresh)[1]


def hypotheses_and_sources(output):
    sources = {}
    for line in output.split("\n"):
        if line.startswith("S-"):
            number, text = line[2:].split("\t")
            sources[int(number)] = text
    return sources, hypotheses(output, "H")


# -- refusals --------------------------------------------------------------------------


def refused(run, capsys):
    """The one line of a tool that stops with status 2."""
    with pytest.raises(SystemExit) as stopped, ending_program():
        run()
    assert stopped.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.split("\n") if x.startswith("error: ")]
    return line


def no_training_set(corpus, training, place):
    return corpus, ["20"], ["--vocabulary-map 20", "no training set"]


def no_candidates(corpus, training, place):
    return training, ["0"], ["--vocabulary-map 0", "at least 1"]


def no_number(corpus, training, place):
    return training, ["some"], ["--vocabulary-map", "'some'"]


def empty_training_set(corpus, training, place):
    shutil.copytree(corpus, place / "data")
    write_data(place / "data", [("", "the man")], "train")
    return str(place / "data"), ["2"], ["--vocabulary-map 2", "no pairs"]


@pytest.mark.parametrize("case", [no_training_set, no_candidates, no_number, empty_training_set])
def test_export_refuses(case, corpus, training, checkpoints, tmp_path, capsys):
    data, given, expected = case(corpus, training, tmp_path)
    output = tmp_path / "model"
    given = ["--vocabulary-map", *given]
    line = refused(lambda: run_export(data, checkpoints.cut, output, *given), capsys)
    for part in expected:
        assert part in line
    assert not output.exists()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("symbol", ["a b", "tab\t", ""])
def test_symbols_that_no_line_can_hold(side, symbol):
    dictionaries = make_dictionary("de"), make_dictionary("en")
    vocabulary_map.check_names(dictionaries, "x")
    number = dictionaries[side].add_symbol(symbol)
    name = ("source", "target")[side]
    with pytest.raises(UserError, match=f"x: type {number} of the {name} dictionary"):
        vocabulary_map.check_names(dictionaries, "x")


DAMAGES = {
    "cut off": (lambda text: text[:-9], "not complete"),
    "another token": (lambda text: f"{text[:-1]} hound\n", "'hound' is in no"),
    "another source": (lambda text: f"{text}Wolf\tman\n", "'Wolf' is in no"),
    "no tab": (lambda text: text.replace("Hund\t", "Hund "), "it has no tab"),
    "no common line": (lambda text: text.partition("\n")[2], "not complete"),
    "binary": (lambda text: "\udcff" + text, "damaged"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_generate_refuses_a_damaged_map(case, folder, training, checkpoints, tmp_path, capsys):
    damage, expected = DAMAGES[case]
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "SHA256SUMS").unlink()  # as of a folder without checksums
    path = tmp_path / "model" / "vmap.txt"
    text = damage(path.read_text(encoding="utf-8"))
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    given = ["--ctranslate2-model", str(tmp_path / "model")]
    line = refused(lambda: translate(training, checkpoints.cut, *given), capsys)
    assert "--ctranslate2-model" in line and expected in line and "export anew" in line
