"""Training data whose target side a model has translated."""
# ruff: noqa: F811  (fixtures are imported)

import gzip
import shutil
from pathlib import Path

import pytest
from fairseq.data import Dictionary, data_utils
from sacrebleu import sentence_bleu

from src import distill_data, export, generate
from src.distillation import translations
from src.errors import UserError, ending_program
from src.files import sole_process
from tests.support.training import RUN, run_training
from tests.support.translation import (
    ARCH,
    EMPTY,
    hypotheses,
    make_checkpoints,
    random_pairs,
    write_data,
)

PAIRS = 23
OPTIONS = ["--beam", "2", "--max-len-b", "10", "--batch-size", "4", "--cpu"]


@pytest.fixture(scope="module")
def data(corpus, tmp_path_factory):
    """A folder with training, validation and test data."""
    folder = tmp_path_factory.mktemp("distilling") / "data"
    shutil.copytree(corpus, folder)
    for split, pairs in (("train", random_pairs(5, PAIRS)), ("test", random_pairs(5, PAIRS))):
        write_data(folder, pairs, split)
    (folder / "raw.test.en").write_text("x\n")
    return folder


def distill(data, path, output, *options):
    distill_data.main([str(data), "--path", path, "--output", str(output), *OPTIONS, *options])


def read(folder, split, language):
    prefix = str(Path(folder) / f"{split}.de-en.{language}")
    dataset = data_utils.load_indexed_dataset(prefix, None)
    return [dataset[i].tolist() for i in range(len(dataset))]


@pytest.mark.parametrize("engine", [[], ["--engine", "ctranslate2"]], ids=["pytorch", "ct2"])
def test_pairs_are_the_models_translations(data, checkpoints, tmp_path, engine, capsys):
    output = tmp_path / "new"
    distill(data, checkpoints.dense, output, *engine)
    said = capsys.readouterr().out
    assert f"{PAIRS - 1} of {PAIRS} sentences translated" in said
    assert ", 1 empty lines left out" in said
    assert not (tmp_path / "new.part").exists()
    source, target = read(output, "train", "de"), read(output, "train", "en")
    assert source[:PAIRS] == read(data, "train", "de")
    assert target[:PAIRS] == read(data, "train", "en")
    # what generate.py prints for them
    folder = str(tmp_path / "printed")
    printed = [str(data), "--path", checkpoints.dense, *OPTIONS, *engine]
    generate.main([*printed, "--gen-subset", "train", "--results-path", folder])
    found = hypotheses((tmp_path / "printed" / "generate-train.txt").read_text(), "H")
    words = Dictionary.load(str(data / "dict.en.txt"))
    expected = {
        i: words.encode_line(text, add_if_not_exist=False).tolist() for i, text in found.items()
    }
    assert len(expected[EMPTY]) > 1  # what the model makes of an empty line
    kept = [i for i in range(PAIRS) if len(expected[i]) > 1 and i != EMPTY]
    assert source[PAIRS:] == [source[i] for i in kept]
    assert target[PAIRS:] == [expected[i] for i in kept]
    for name in ("dict.de.txt", "valid.de-en.en.bin", "raw.test.en"):
        if (data / name).exists():
            assert (output / name).read_bytes() == (data / name).read_bytes()


def test_without_the_original(data, checkpoints, tmp_path):
    distill(data, checkpoints.dense, tmp_path / "both")
    distill(data, checkpoints.dense, tmp_path / "one", "--without-original")
    for language in ("de", "en"):
        both = read(tmp_path / "both", "train", language)
        assert read(tmp_path / "one", "train", language) == both[PAIRS:]


def test_an_empty_translation_is_no_pair(data, checkpoints, tmp_path, monkeypatch):
    found = {number: [5, 6, 2] for number in range(PAIRS)}
    found[1] = [2]
    monkeypatch.setattr(distill_data, "translate_set", lambda *args: found)
    distill(data, checkpoints.dense, tmp_path / "new", "--without-original")
    assert read(tmp_path / "new", "train", "en") == [[5, 6, 2]] * (PAIRS - 1)
    sources = read(data, "train", "de")
    assert read(tmp_path / "new", "train", "de") == [sources[0], *sources[2:]]


def test_an_interrupted_run_goes_on(data, checkpoints, tmp_path, monkeypatch, capsys):
    distill(data, checkpoints.dense, tmp_path / "whole")
    original, calls = translations.make_batches, []

    def stopping(*args):
        for number, sample in enumerate(original(*args)):
            if number == 3 and not calls:
                calls.append(number)
                raise KeyboardInterrupt
            yield sample

    monkeypatch.setattr(translations, "make_batches", stopping)
    with pytest.raises(SystemExit) as stop, ending_program():
        distill(data, checkpoints.dense, tmp_path / "new")
    assert stop.value.code == 130 and not (tmp_path / "new").exists()
    partial = tmp_path / "new.part" / distill_data.TRANSLATIONS
    assert len(partial.read_text().splitlines()) == 12
    with partial.open("a") as stream:
        stream.write("5 6 7")  # a kill has cut a line short
    distill(data, checkpoints.dense, tmp_path / "new")
    assert "12 sentences were translated before" in capsys.readouterr().err
    for language in ("de", "en"):
        assert read(tmp_path / "new", "train", language) == read(
            tmp_path / "whole", "train", language
        )


def distill_but_stop(monkeypatch, *given):
    """Distil, and be stopped when all is translated and nothing written."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(distill_data, "write_data", stop)
        with pytest.raises(SystemExit), ending_program():
            distill(*given)


def test_a_run_that_was_stopped_after_the_last_sentence_goes_on(
    data, checkpoints, tmp_path, monkeypatch
):
    distill_but_stop(monkeypatch, data, checkpoints.dense, tmp_path / "new")
    distill(data, checkpoints.dense, tmp_path / "new")
    assert len(read(tmp_path / "new", "train", "en")) > PAIRS


@pytest.mark.parametrize(
    "line",
    [
        "23 5 6 2",
        "-1 5 2",
        "5 21 2",
        "5 -3 2",
        "5 6",
        "5",
        "",
        "x 5 2",
        "5  6 2",
        "\xff",
        "5 6 2\n5 2",
    ],
)
def test_lines_that_it_did_not_write(data, checkpoints, tmp_path, monkeypatch, line):
    """Beyond the set or the dictionary, without an end, twice, or nonsense."""
    distill_but_stop(monkeypatch, data, checkpoints.dense, tmp_path / "new")
    partial = tmp_path / "new.part" / distill_data.TRANSLATIONS
    partial.write_bytes(f"4 5 6 2\n{line}\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"translations.txt: line [23] .* remove the file") as error:
        distill(data, checkpoints.dense, tmp_path / "new")
    assert "\n" not in str(error.value)
    partial.unlink()
    distill(data, checkpoints.dense, tmp_path / "new")


def test_settings_that_are_no_text_start_over(data, checkpoints, tmp_path, monkeypatch, capsys):
    distill_but_stop(monkeypatch, data, checkpoints.dense, tmp_path / "new")
    (tmp_path / "new.part" / distill_data.SETTINGS).write_bytes(b"\xff\xfe")
    distill(data, checkpoints.dense, tmp_path / "new")
    assert "starting over" in capsys.readouterr().err


def test_too_long_sentences_are_left_out(data, checkpoints, tmp_path, capsys):
    limit = ["--max-source-positions", "9", "--skip-invalid-size-inputs-valid-test"]
    distill(data, checkpoints.dense, tmp_path / "new", *limit, "--without-original")
    short = [source for source in read(data, "train", "de") if 1 < len(source) <= 9]
    assert 0 < len(short) < PAIRS
    assert f"{len(short)} of {PAIRS} sentences translated" in capsys.readouterr().out
    found = read(tmp_path / "new", "train", "de")
    assert found and all(source in short for source in found)


def test_the_other_direction_of_the_data(corpus, data, tmp_path):
    """fairseq finds the files by either order of the languages."""
    path = make_checkpoints(corpus, tmp_path, [*ARCH, "-s", "en", "-t", "de"]).dense
    languages = ["-s", "en", "-t", "de"]
    distill(data, path, tmp_path / "new", *languages)
    source, target = read(tmp_path / "new", "train", "en"), read(tmp_path / "new", "train", "de")
    assert source[:PAIRS] == read(data, "train", "en") and len(source) == len(target) > PAIRS
    assert target[:PAIRS] == read(data, "train", "de")


def test_what_another_model_translated_is_not_taken_over(
    data, checkpoints, tmp_path, monkeypatch, capsys
):
    distill_but_stop(monkeypatch, data, checkpoints.dense, tmp_path / "new")
    distill(data, checkpoints.cut, tmp_path / "new")
    assert "starting over" in capsys.readouterr().err
    distill(data, checkpoints.cut, tmp_path / "fresh")
    assert read(tmp_path / "new", "train", "en") == read(tmp_path / "fresh", "train", "en")


def test_other_options_are_other_settings(data, checkpoints, monkeypatch):
    digests = set()

    def collect(args, cfg):
        digests.add(distill_data.settings(args, cfg))

    monkeypatch.setattr(distill_data, "run", collect)
    languages = ["-s", "de", "-t", "en"]
    others = [["--max-source-positions", "9"], ["--fairseq-search"], ["-s", "en"]]
    others += [["--beam", "3"], ["--lenpen", "0.5"], ["--max-len-b", "9"]]  # of the search
    for options in ([], *others):
        distill(data, checkpoints.dense, "new", *languages, *options)
    assert len(digests) == 7


def test_a_model_exported_anew_is_another(data, checkpoints, tmp_path, monkeypatch):
    digests, folder = [], tmp_path / "exported"
    monkeypatch.setattr(
        distill_data, "run", lambda *given: digests.append(distill_data.settings(*given))
    )
    for how in ("float32", "int8", "int8"):
        made = [data, "--path", checkpoints.dense, "--output", folder, "--quantization", how]
        export.main([*map(str, made), "--force", "-s", "de", "-t", "en"])
        engine = ["--engine", "ctranslate2", "--ctranslate2-model", str(folder)]
        distill(data, checkpoints.dense, "new", *engine)
    assert digests[0] != digests[1] == digests[2]


def test_a_model_trains_on_it(data, checkpoints, tmp_path):
    distill(data, checkpoints.dense, tmp_path / "new")
    run = [*RUN, "--max-epoch", "1", "--save-dir", tmp_path / "run", "--no-save"]
    trainer = run_training([tmp_path / "new", *ARCH, *run])
    assert trainer.get_num_updates() > 0
    assert len(trainer.task.dataset("train")) > PAIRS


@pytest.mark.parametrize(
    "options, words",
    [
        (["--gen-subset", "test"], "--gen-subset test: the training data"),
        (["--prefix-size", "1"], "--prefix-size 1: has no part"),
        (["--report", "x.json"], "--report x.json: has no part"),
        (["--remove-bpe"], "--remove-bpe/--post-process subword_nmt: has no part"),
        (["--sacrebleu-lowercase"], "--sacrebleu-lowercase True: has no part"),
        (["--nbest", "2"], "--nbest 2: the best translation"),
        (["--score-reference"], "--score-reference True: has no part"),
        (["--lm-path", "/nope"], "--lm-path /nope: has no part"),
        (["--model-overrides", "{'dropout': 1}"], "--model-overrides .*: has no part"),
        (["--model-overrides", "{"], "--model-overrides {: must be a dictionary"),
        (["--tokenizer", "space"], "--tokenizer space: has no part"),
        (["--truncate-source"], "--truncate-source: would change the sentences"),
        (["--num-batch-buckets", "2"], "--num-batch-buckets: would change the sentences"),
        (["--required-batch-size-multiple", "8"], "--required-batch-size-multiple 8: leaves"),
        (["--beam", "0"], "--beam 0"),
        (["--log-file", "/nope/log"], "--log-file /nope/log: there is no folder /nope"),
    ],
)
def test_refused(data, checkpoints, tmp_path, options, words):
    with pytest.raises(UserError, match=words) as error:
        distill(data, checkpoints.dense, tmp_path / "new", *options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_shrinking_is_no_teacher(data, checkpoints, tmp_path):
    with pytest.raises(UserError, match="--path .* a pruning stage is under way"):
        distill(data, checkpoints.gated, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_output_is_checked_first(data, checkpoints, tmp_path, monkeypatch):
    for output, words in ((data, "exists"), (tmp_path / "no" / "new", "there is no folder")):
        with pytest.raises(UserError, match=f"--output .*{words}"):
            distill(data, checkpoints.dense, output)
    (tmp_path / "new.part").touch()
    with pytest.raises(UserError, match="--output .*new.part is no folder"):
        distill(data, checkpoints.dense, tmp_path / "new")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="--output .* can't be written to"):
        distill(data, checkpoints.dense, tmp_path / "other")


def test_data_in_parts_is_refused(data, checkpoints, tmp_path):
    folder = tmp_path / "parts"
    shutil.copytree(data, folder)
    (folder / "train1.de-en.de.idx").touch()
    with pytest.raises(UserError, match="several parts"):
        distill(folder, checkpoints.dense, tmp_path / "new")


def test_sources_without_translations(data, checkpoints, tmp_path, capsys):
    sources = tmp_path / "sources"
    shutil.copytree(data, sources, ignore=shutil.ignore_patterns("train.de-en.en.*"))
    languages = ["-s", "de", "-t", "en"]
    with pytest.raises(UserError, match="no target side; add --without-original"):
        distill(sources, checkpoints.dense, tmp_path / "new", *languages)
    for folder in (sources, data):
        output = tmp_path / f"of-{folder.name}"
        distill(folder, checkpoints.dense, output, "--without-original", *languages)
    assert f"{PAIRS - 1} of {PAIRS} sentences translated" in capsys.readouterr().out
    for language in ("de", "en"):
        found = read(tmp_path / "of-sources", "train", language)
        assert found == read(tmp_path / "of-data", "train", language)


def test_one_process_at_a_time(data, checkpoints, tmp_path):
    """Two would overwrite each other's lines."""
    output, part = tmp_path / "new", tmp_path / "new.part"
    part.mkdir()
    with sole_process(str(part), RuntimeError):
        with pytest.raises(UserError, match="--output .*another process is making it"):
            distill(data, checkpoints.dense, output)
    assert not (part / "translations.txt").exists()
    distill(data, checkpoints.dense, output)
    assert output.is_dir() and not part.exists()


def add_text(folder):
    """Lines of the data's tokens: new ones, one twice, known ones, an empty and a long one."""
    known = random_pairs(5, PAIRS)
    lines = ["Hund rot", "ein Ba@@ um läuft .", "Hund rot", known[0][0], "", "Hund " * 40]
    path = folder / "more.de"
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    packed = folder / "more.de.gz"
    packed.write_bytes(gzip.compress("eine Frau steht\nHund rot\n".encode()))
    return str(path), str(packed)


@pytest.mark.parametrize("engine", [[], ["--engine", "ctranslate2"]], ids=["pytorch", "ct2"])
def test_source_text_is_translated_too(data, checkpoints, tmp_path, engine, capsys):
    distill(data, checkpoints.dense, tmp_path / "without", *engine)
    files = add_text(tmp_path)
    distill(data, checkpoints.dense, tmp_path / "new", *engine, "--source-text", *files)
    said = capsys.readouterr().out
    words = Dictionary.load(str(data / "dict.de.txt"))
    lines = ["Hund rot", "ein Ba@@ um läuft .", "eine Frau steht"]
    expected = [words.encode_line(x, add_if_not_exist=False).tolist() for x in lines]
    source, before = (
        read(tmp_path / "new", "train", "de"),
        read(tmp_path / "without", "train", "de"),
    )
    assert source[: len(before)] == before and source[len(before) :] == expected
    assert "3 of them of 3 sentences of --source-text" in said
    # what generate.py makes of them
    folder = shutil.copytree(data, tmp_path / "as test data")
    write_data(folder, [(line, "the") for line in lines], "test")
    printed = [str(folder), "--path", checkpoints.dense, *OPTIONS, *engine]
    generate.main([*printed, "--results-path", str(tmp_path)])
    found = hypotheses((tmp_path / "generate-test.txt").read_text(), "H")
    target = Dictionary.load(str(data / "dict.en.txt"))
    texts = [target.encode_line(found[n], add_if_not_exist=False).tolist() for n in range(3)]
    assert read(tmp_path / "new", "train", "en")[len(before) :] == texts


def test_source_text_that_scores_low_is_left_out(data, checkpoints, tmp_path, capsys):
    files = add_text(tmp_path)
    options = ["--source-text", *files, "--least-score", "0"]
    distill(data, checkpoints.dense, tmp_path / "none", *options)
    assert "0 of them of 3 sentences of --source-text" in capsys.readouterr().out
    options[-1] = "-100"
    distill(data, checkpoints.dense, tmp_path / "all", *options)
    assert "3 of them of 3 sentences of --source-text" in capsys.readouterr().out


def test_a_run_with_source_text_goes_on_and_notices_other_text(
    data, checkpoints, tmp_path, monkeypatch, capsys
):
    files = add_text(tmp_path)
    options = ["--source-text", *files, "--batch-size", "1"]
    distill(data, checkpoints.dense, tmp_path / "whole", *options)
    original = translations.make_batches

    def stopping(cfg, *args):
        for number, sample in enumerate(original(cfg, *args)):
            if cfg.dataset.gen_subset == "source-text" and number == 2:
                raise KeyboardInterrupt
            yield sample

    monkeypatch.setattr(translations, "make_batches", stopping)
    with pytest.raises(SystemExit), ending_program():
        distill(data, checkpoints.dense, tmp_path / "new", *options)
    part = tmp_path / "new.part"
    assert len((part / distill_data.ADDED).read_text().splitlines()) == 2
    monkeypatch.setattr(translations, "make_batches", original)
    distill(data, checkpoints.dense, tmp_path / "new", *options)
    for language in ("de", "en"):
        assert read(tmp_path / "new", "train", language) == read(
            tmp_path / "whole", "train", language
        )


def test_the_hypothesis_closest_to_the_data_is_chosen(data, checkpoints, tmp_path):
    distill(data, checkpoints.dense, tmp_path / "bleu", "--choose", "bleu", "--without-original")
    folder = str(tmp_path / "printed")
    printed = [str(data), "--path", checkpoints.dense, *OPTIONS, "--nbest", "2"]
    generate.main([*printed, "--gen-subset", "train", "--results-path", folder])
    words = Dictionary.load(str(data / "dict.en.txt"))
    candidates = {}
    for line in (tmp_path / "printed/generate-train.txt").read_text().splitlines():
        if line.startswith("H-"):
            number, _, text = line[2:].split("\t")
            tokens = words.encode_line(text, add_if_not_exist=False).tolist()
            candidates.setdefault(int(number), []).append((text, tokens))
    targets, sources = read(data, "train", "en"), read(data, "train", "de")
    chosen = dict(
        zip(
            map(str, read(tmp_path / "bleu", "train", "de")), read(tmp_path / "bleu", "train", "en")
        )
    )
    different = 0
    for number, found in candidates.items():
        if number == EMPTY or str(sources[number]) not in chosen:
            continue
        reference = words.string(targets[number], "@@ ")
        scores = [
            sentence_bleu(f"{text} ".replace("@@ ", "").strip(), [reference], tokenize="none").score
            for text, _ in found
        ]
        best = scores.index(max(scores))
        different += best != 0
        assert chosen[str(sources[number])] == found[best][1]
    assert different


@pytest.mark.parametrize(
    "options, said",
    [
        (["--lowercase"], "--lowercase: is of --source-text"),
        (["--least-score", "-1"], "--least-score -1.0: is of --source-text"),
        (["--source-text", "/nothing"], "--source-text /nothing: no such file"),
        (["--source-text", "{latin}"], "--source-text .*latin: can't be read as UTF-8 text"),
        (["--source-text", "{known}"], "nothing to translate is left: 0 sentences"),
    ],
)
def test_source_text_that_is_refused(data, checkpoints, tmp_path, options, said):
    (tmp_path / "latin").write_bytes("läuft\n".encode("latin-1"))
    (tmp_path / "known").write_text(random_pairs(5, PAIRS)[0][0] + "\n")
    places = {name: str(tmp_path / name) for name in ("latin", "known")}
    with pytest.raises(UserError, match=said):
        distill(data, checkpoints.dense, tmp_path / "new", *(x.format(**places) for x in options))
    assert not (tmp_path / "new").exists()
