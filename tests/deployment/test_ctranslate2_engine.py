"""Translating with --engine ctranslate2: fairseq's hypotheses, lines and BLEU."""
# ruff: noqa: F811  (fixtures are imported)

import argparse
import json
import math
import os
import re
import shutil
import sys

import ctranslate2
import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data.data_utils import collate_tokens
from fairseq.dataclass.configs import CommonConfig, CommonEvalConfig, GenerationConfig
from fairseq.sequence_generator import SequenceGenerator

from src import export, generate
from src.checks import checksums
from src.checks.engine import check_engine_options
from src.connectivity.cut import cut
from src.deployment import export as deployment
from src.deployment.generator import CTranslate2Generator
from src.errors import UserError, ending_program
from src.sequence_generator import FastSequenceGenerator
from src.tasks.srp_translation import SRPTranslationConfig, SRPTranslationTask
from tests.support.translation import (
    ARCH,
    SENTENCES,
    make_trainer,
    random_cut,
    run_tool,
    save,
    score_of,
    sentence_lines,
)

SEARCH = ["--batch-size", "4", "--no-progress-bar", "--cpu", "--remove-bpe"]
SEARCH += ["--num-workers", "0"]  # a worker of torch takes five seconds to end

LENGTH = ["--max-len-a", "1", "--max-len-b", "6"]


@pytest.fixture(scope="module")
def searchable(corpus, tmp_path_factory):
    """Checkpoints, dense and cut, whose padding has probability 0.

    CTranslate2 leaves out padding before it normalizes, fairseq after; in a trained
    model that is no difference, in a random one of 21 types it is.
    """
    place = tmp_path_factory.mktemp("searchable")
    trainer = make_trainer(corpus, [*ARCH, "--weighted-layernorm"])
    model = trainer.get_model()
    norm, table = model.decoder.layers[-1].final_layer_norm, model.decoder.embed_tokens
    with torch.no_grad():  # the first channel of the output says "not padding"
        norm.weight[0], norm.bias[0] = 0, 10
        table.weight[:, 0] = 0
        table.weight[1, 0] = -100
    dense = save(trainer, place / "dense.pt")
    keep = random_cut(model)
    name = model.decoder.embedding.name
    keep[name] = torch.cat([torch.tensor([0]), keep[name][keep[name] > 0]])
    cut(model, keep)
    return {"dense": dense, "cut": save(trainer, place / "cut.pt")}


SEARCHES = {
    "beam 5": dict(beam=5, max_len_b=25),
    "greedy": dict(beam=1, max_len_b=30),
    "greedy to the limit": dict(beam=1, max_len_b=4),
    "n best": dict(beam=4, nbest=3, max_len_b=20),
    "n best to the limit": dict(beam=4, nbest=4, max_len_b=5),
    "source length": dict(beam=3, max_len_a=1, max_len_b=6),
    "length penalty": dict(beam=3, lenpen=1.5, max_len_b=20),
    "no penalty": dict(beam=3, lenpen=0, max_len_b=20),
    "unnormalized": dict(beam=3, unnormalized=True, max_len_b=20),
    "one token": dict(beam=2, max_len_b=1),
}


@pytest.fixture(scope="module", params=["dense", "cut"])
def both_engines(request, corpus, searchable, tmp_path_factory):
    """Task, model, and the folder of its export."""
    config = SRPTranslationConfig(
        data=corpus, train_subset="train", dataset_impl=None, required_seq_len_multiple=1
    )
    task = SRPTranslationTask.setup_task(config)
    path = searchable[request.param]
    (model,), _ = checkpoint_utils.load_model_ensemble([path], task=task)
    folder = str(tmp_path_factory.mktemp("exported"))
    deployment.export(model.eval(), (task.source_dictionary, task.target_dictionary), folder)
    return task, model, folder


@pytest.mark.parametrize("search", SEARCHES)
def test_the_same_hypotheses_as_fairseqs_generator(search, both_engines):
    task, model, folder = both_engines
    options = GenerationConfig(min_len=0, **SEARCHES[search])
    theirs = task.build_generator([model], options, seq_gen_cls=SequenceGenerator)
    dictionaries = task.source_dictionary, task.target_dictionary
    limit = model.max_decoder_positions()
    ours = CTranslate2Generator(folder, dictionaries, options, limit, "model")
    eos = task.source_dictionary.eos()
    generator = torch.Generator().manual_seed(4)
    for longest in (1, 12):
        # the first is empty; the same length now and then needs no padding
        sources = [
            torch.tensor([*torch.randint(4, 21, (n,), generator=generator), eos])
            for n in [0, *torch.randint(0, longest + 1, (20,), generator=generator)]
        ]
        lengths = torch.tensor([len(x) for x in sources])
        tokens = collate_tokens(sources, 1, left_pad=True)
        sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
        for mine, its in zip(
            ours.generate([model], sample), theirs.generate([model], sample), strict=True
        ):
            mine, its = mine[: options.nbest], its[: options.nbest]
            tokens = [h["tokens"].tolist() for h in its]
            assert [h["tokens"].tolist() for h in mine] == tokens
            scores = [float(h["score"]) for h in its]
            assert [float(h["score"]) for h in mine] == pytest.approx(scores, abs=1e-4)


def batch(pairs):
    """Sentences of fairseq's data set, from lists of source and target words' numbers."""
    sources, targets = ([torch.tensor([*x, 2]) for x in side] for side in zip(*pairs))
    tokens = collate_tokens(sources, 1, left_pad=True)
    lengths = torch.tensor([len(x) for x in sources])
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": lengths}}
    return sample, collate_tokens(targets, 1)


def random_batch(sentences=20, longest=9, seed=6):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (sentences, 2), generator=generator).tolist()
    return batch(
        [[torch.randint(4, 21, (n,), generator=generator).tolist() for n in x] for x in lengths]
    )


def both_generators(both_engines, reference=SequenceGenerator, **search):
    task, model, folder = both_engines
    options = GenerationConfig(**{"min_len": 0, **search})
    theirs = task.build_generator([model], options, seq_gen_cls=reference)
    dictionaries = task.source_dictionary, task.target_dictionary
    limit = model.max_decoder_positions()
    return CTranslate2Generator(folder, dictionaries, options, limit, "model"), theirs, model


@pytest.mark.parametrize("search", ["beam 5", "greedy", "n best to the limit", "length penalty"])
@pytest.mark.parametrize("size", [1, 4])
def test_the_same_with_prefixes(search, size, both_engines):
    """Some targets are as short as the prefix or shorter; some limits are, too.

    A word comes after the prefix, for which fairseq needs its option.
    """
    options = {**SEARCHES[search], "nbest": 1, "min_len": size + 1}
    ours, theirs, model = both_generators(both_engines, prefix_size=size, **options)
    sample, targets = random_batch()
    prefix = targets[:, :size]
    assert (prefix == 2).any() == (size == 4)  # an end within
    found = ours.generate([model], sample, prefix_tokens=prefix)
    expected = theirs.generate([model], sample, prefix_tokens=prefix)
    for mine, its in zip(found, expected, strict=True):
        assert mine[0]["tokens"].tolist() == its[0]["tokens"].tolist()
        assert float(mine[0]["score"]) == pytest.approx(float(its[0]["score"]), abs=1e-4)


@pytest.mark.parametrize("search", ["beam 5", "greedy"])
def test_no_repeated_n_grams(search, both_engines):
    """As in this plug-in's search; fairseq's own forbids nothing on a CPU."""
    options = {"no_repeat_ngram_size": 2, **SEARCHES[search]}
    ours, theirs, model = both_generators(both_engines, FastSequenceGenerator, **options)
    plain, _, _ = both_generators(both_engines, **SEARCHES[search])
    sample, _ = random_batch()
    found = ours.generate([model], sample)
    blocked = 0
    for mine, its, free in zip(
        found, theirs.generate([model], sample), plain.generate([model], sample), strict=True
    ):
        tokens = mine[0]["tokens"].tolist()
        pairs = list(zip(tokens, tokens[1:]))
        assert len(set(pairs)) == len(pairs)
        blocked += tokens != free[0]["tokens"].tolist()
        if search == "greedy":  # with a beam the forbidden part changes what else is kept
            assert tokens == its[0]["tokens"].tolist()
        if tokens == its[0]["tokens"].tolist():
            assert float(mine[0]["score"]) == pytest.approx(float(its[0]["score"]), abs=1e-4)
    assert blocked > 5


def test_samples(both_engines):
    sample, _ = random_batch()
    greedy, _, model = both_generators(both_engines, beam=1, max_len_b=12)
    best = dict(sampling=True, sampling_topk=1, beam=1, max_len_b=12)
    ours, _, _ = both_generators(both_engines, **best)
    for mine, its in zip(ours.generate([model], sample), greedy.generate([model], sample)):
        assert mine[0]["tokens"].tolist() == its[0]["tokens"].tolist()
        assert float(mine[0]["score"]) == pytest.approx(float(its[0]["score"]), abs=1e-4)

    # first words are drawn with the model's probabilities
    one, _ = batch([([4, 5, 6], [4])])
    drawn = dict(sampling=True, beam=600, nbest=600, max_len_b=1, temperature=0.7)
    ours, _, _ = both_generators(both_engines, **drawn)
    ctranslate2.set_random_seed(3)
    first = [h["tokens"][0].item() for h in ours.generate([model], one)[0]]
    previous = torch.tensor([[2]])
    with torch.no_grad():
        logits, _ = model.eval()(**one["net_input"], prev_output_tokens=previous)
    logits[..., 1] = -math.inf
    expected = (logits[0, 0] / 0.7).softmax(0)
    share = torch.bincount(torch.tensor(first), minlength=21) / 600
    assert (share - expected).abs().max() < 0.08
    assert len(set(first)) > 2


def test_a_nucleus_of_samples(both_engines):
    one, _ = batch([([4, 5, 6], [4])])
    drawn = dict(sampling=True, beam=200, nbest=200, max_len_b=1, sampling_topp=0.5)
    ours, _, model = both_generators(both_engines, **drawn)
    first = {h["tokens"][0].item() for h in ours.generate([model], one)[0]}
    with torch.no_grad():
        logits, _ = model.eval()(**one["net_input"], prev_output_tokens=torch.tensor([[2]]))
    order = logits[0, 0].softmax(0).sort(descending=True)
    kept = int((order.values.cumsum(0) < 0.5).sum()) + 1
    assert first <= set(order.indices[:kept].tolist())


def translate(corpus, path, *extra):
    arguments = [corpus, "--path", path, *SEARCH, "--min-len", "0", *extra]
    return run_tool(lambda: generate.main(list(arguments)), arguments)


def lines_and_scores(output):
    """Lines but H- and D- as they are; of these their text, and the scores."""
    lines, scores = [], []
    for line in sentence_lines(output, "STHD"):
        parts = line.split("\t")
        if line[0] in "HD":
            scores.append(float(parts.pop(1)))
        lines.append(parts)
    return lines, scores


def test_the_same_lines_and_bleu(corpus, searchable):
    path, options = searchable["cut"], ["--beam", "3", "--nbest", "2", *LENGTH]
    ours = translate(corpus, path, *options)
    theirs = translate(corpus, path, *options, "--engine", "ctranslate2")
    lines, scores = lines_and_scores(ours)
    their_lines, their_scores = lines_and_scores(theirs)
    assert their_lines == lines  # in the same order
    assert their_scores == pytest.approx(scores, abs=1e-4)
    assert score_of(theirs) == score_of(ours)
    assert not sentence_lines(theirs, "P") and sentence_lines(ours, "P")


def test_prefixes_and_samples_on_the_command_line(corpus, searchable):
    options = [*LENGTH, "--engine", "ctranslate2"]
    output = translate(corpus, searchable["cut"], *options, "--prefix-size", "1")
    kinds = [
        {
            line.split("\t")[0][2:]: line.split("\t")[-1].split()
            for line in sentence_lines(output, kind)
        }
        for kind in "TH"
    ]
    for number, target in kinds[0].items():
        assert "".join(kinds[1][number]).startswith(target[0])
    assert "Generate test with" in output
    drawn = [*options, "--sampling", "--beam", "2", "--nbest", "2", "--temperature", "2"]
    one, same, other = (
        sentence_lines(translate(corpus, searchable["cut"], *drawn, "--seed", seed), "H")
        for seed in ("3", "3", "4")
    )
    assert one == same != other


def test_unknown_words_are_replaced(corpus, searchable, tmp_path):
    """Of a model that writes them: by the source's words, or what a file has for them."""
    state = torch.load(searchable["dense"])
    state["model"]["decoder.embed_tokens.weight"][3] *= 3
    path = str(tmp_path / "unknown.pt")
    torch.save(state, path)
    options = ["--beam", "2", *LENGTH, "--engine", "ctranslate2"]
    plain = translate(corpus, path, *options)
    pairs = tmp_path / "words"
    pairs.write_text("Hund DOG\nein A\n", encoding="utf-8")
    copied = translate(corpus, path, *options, "--replace-unk")
    mapped = translate(corpus, path, *options, "--replace-unk", str(pairs))
    sources = {x[2:].split("\t")[0]: x.split("\t")[1].split() for x in sentence_lines(copied, "S")}
    replaced = 0
    for lines in zip(*(sentence_lines(x, "H") for x in (plain, copied, mapped)), strict=True):
        names, scores, texts = zip(*(line.split("\t") for line in lines))
        assert len(set(scores)) == len(set(names)) == 1
        words = [text.split() for text in texts]
        if len({*map(len, words)}) > 1:  # a piece of a word was put in, and joined
            continue
        for before, after, other in zip(*words):
            if before != "<unk>":
                assert before == after == other
            elif sources[names[0][2:]]:
                assert after in sources[names[0][2:]]
                assert other == {"Hund": "DOG", "ein": "A"}.get(after, after)
                replaced += 1
    assert replaced >= 3
    with pytest.raises(UserError, match="--replace-unk .*: can't be read"):
        translate(corpus, path, *options, "--replace-unk", "no/file")
    pairs.write_text("Hund\n", encoding="utf-8")
    with pytest.raises(UserError, match="--replace-unk .*: every line must have"):
        translate(corpus, path, *options, "--replace-unk", str(pairs))
    with pytest.raises(UserError, match="--replace-unk: .* translate with --engine ctranslate2"):
        translate(corpus, path, "--replace-unk")


def test_quantized_translation_and_its_report(corpus, searchable, tmp_path):
    reports = {}
    for name, options in (
        ("pytorch", []),
        ("int8", ["--engine", "ctranslate2", "--quantization", "int8"]),
    ):
        report = tmp_path / f"{name}.json"
        arguments = ["--beam", "2", *LENGTH, *options, "--report", str(report)]
        output = translate(corpus, searchable["cut"], *arguments)
        reports[name] = json.loads(report.read_text())
        assert reports[name]["bleu"] == pytest.approx(score_of(output), abs=0.01)
    ours, theirs = reports["pytorch"], reports["int8"]
    assert ours["engine"] == "pytorch" and "quantization" not in ours
    assert theirs["engine"] == f"ctranslate2 {ctranslate2.__version__}"
    assert theirs["quantization"] == "int8" and theirs["device"] == "cpu"
    assert set(theirs) - set(ours) == {"quantization", "compute_type"}
    assert theirs["sentences"] == SENTENCES and theirs["tokens_per_second"] > 0
    for name in ("parameters", "widths", "flops"):
        assert theirs[name] == ours[name]


def export_cut(corpus, checkpoints, place, *extra) -> str:
    """The cut checkpoint exported by the command line tool."""
    arguments = [corpus, "--path", checkpoints.cut, "--output", str(place), *extra]
    run_tool(lambda: export.main(arguments), arguments)
    return str(place)


@pytest.fixture(scope="module")
def folder(corpus, checkpoints, tmp_path_factory) -> str:
    place = tmp_path_factory.mktemp("export") / "model"
    return export_cut(corpus, checkpoints, place, "--max-length", "100")


def test_an_exported_folder(corpus, checkpoints, folder, tmp_path):
    options = ["--beam", "2", *LENGTH, "--engine", "ctranslate2"]
    temporary = translate(corpus, checkpoints.cut, *options)
    report = tmp_path / "report.json"
    options += ["--ctranslate2-model", folder, "--report", str(report)]
    given = translate(corpus, checkpoints.cut, *options)
    assert sentence_lines(given) == sentence_lines(temporary)
    facts = json.loads(report.read_text())
    assert facts["model_bytes"] == os.path.getsize(f"{folder}/model.bin")
    assert facts["quantization"] == "float32"


def test_a_quantized_folder_of_an_earlier_model(corpus, checkpoints, tmp_path, capsys):
    path, folder = str(tmp_path / "model.pt"), tmp_path / "int8"
    shutil.copyfile(checkpoints.cut, path)
    export.main(
        [corpus, "--path", path, "--output", str(folder), "--quantization", "int8"]
        + ["-s", "de", "-t", "en"]
    )
    options = [*LENGTH, "--engine", "ctranslate2", "--ctranslate2-model", str(folder)]
    translate(corpus, path, *options)
    state = torch.load(path)
    state["model"]["decoder.layers.0.fc1.weight"] *= 1.001  # training went on
    torch.save(state, path)
    with pytest.raises(UserError, match="int8: is not of .*model.pt: it was exported"):
        translate(corpus, path, *options)


@pytest.mark.parametrize("engine", ["pytorch", "ctranslate2"])
def test_threads_of_either_engine(engine, corpus, checkpoints, tmp_path):
    before, report = torch.get_num_threads(), tmp_path / "report.json"
    options = ["--engine", engine, "--cpu-threads", "2", "--report", str(report)]
    try:
        # loading a CTranslate2 model sets OpenMP's threads behind torch's back
        translate(corpus, checkpoints.cut, "--max-len-b", "1", "--beam", "1", *options)
    finally:
        torch.set_num_threads(before)
    assert json.loads(report.read_text())["threads"] == 2


def options_of(**changed):
    given = dict(
        engine="ctranslate2",
        quantization=None,
        ctranslate2_model=None,
        ctranslate2_vocabulary_map=None,
        cpu_threads=None,
    )
    return argparse.Namespace(**{**given, **changed})


def configuration(path="model.pt", common=None, evaluation=None, task=None, **search):
    cfg = argparse.Namespace(
        common=CommonConfig(),
        common_eval=CommonEvalConfig(path=path),
        generation=GenerationConfig(),
        task=argparse.Namespace(**(task or {})),
    )
    for part, changed in (
        (cfg.common, common or {}),
        (cfg.common_eval, evaluation or {}),
        (cfg.generation, search),
    ):
        for name, value in changed.items():
            assert hasattr(part, name)
            setattr(part, name, value)
    return cfg


OPTIONS = {
    "quantization alone": (
        dict(engine="pytorch", quantization="int8"),
        {},
        "--quantization int8: needs",
    ),
    "folder alone": (
        dict(engine="pytorch", ctranslate2_model="x"),
        {},
        "--ctranslate2-model x: needs",
    ),
    "quantization of a folder": (
        dict(quantization="int8", ctranslate2_model="x"),
        {},
        "--quantization int8: .* own",
    ),
    "map alone": (
        dict(engine="pytorch", ctranslate2_vocabulary_map="off"),
        {},
        "--ctranslate2-vocabulary-map off: needs --engine",
    ),
    "map without folder": (
        dict(ctranslate2_vocabulary_map="auto"),
        {},
        "--ctranslate2-vocabulary-map auto: needs --ctranslate2-model",
    ),
    "no folder": (dict(ctranslate2_model="x"), {}, "--ctranslate2-model x: has no model"),
    "threads": (dict(engine="pytorch", cpu_threads=0), {}, "--cpu-threads 0: .* least 1"),
    "two models": ({}, dict(path="a.pt:b.pt"), "names several"),
    "diverse beams": ({}, dict(diverse_beam_groups=5), "--diverse-beam-groups 5"),
    "unknown words": ({}, dict(unkpen=0.5), "--unkpen 0.5"),
    "temperature": ({}, dict(temperature=0.5), "--temperature 0.5"),
    "alignment": ({}, dict(print_alignment="hard"), "--print-alignment hard"),
    "steps": ({}, dict(print_step=True), "--print-step"),
    "source length": ({}, dict(match_source_len=True), "--match-source-len"),
    "language model": ({}, dict(lm_path="lm.pt"), "--lm-path lm.pt"),
    "least length": ({}, dict(min_len=5), "--min-len 5: .* at most 1"),
    "no length": ({}, dict(max_len_b=0), "--max-len-b 0"),
    "half": ({}, dict(common=dict(fp16=True)), "--fp16"),
    "bfloat16": ({}, dict(task=dict(cpu_bf16=True)), "--cpu-bf16"),
    "search": ({}, dict(task=dict(fairseq_search=True)), "--fairseq-search"),
    "overrides": ({}, dict(evaluation=dict(model_overrides="{'dropout': 0}")), "--model-overrides"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_refused_options(case):
    given, configured, expected = OPTIONS[case]
    with pytest.raises(UserError, match=expected):
        check_engine_options(options_of(**given), configuration(**configured))


def test_options_that_mean_the_same():
    same = dict(beam=3, nbest=2, lenpen=0.6, unnormalized=True, max_len_a=1.5, max_len_b=9)
    check_engine_options(options_of(), configuration(min_len=0, **same))
    check_engine_options(options_of(engine="pytorch"), configuration(unkpen=1))


CT2 = ["--engine", "ctranslate2"]
REFUSALS = {
    "another model": (
        [*CT2, "--ctranslate2-model", "{folder}", "--path", "{dense}"],
        ["--ctranslate2-model", "is not of", "exported from other weights"],
    ),
    "damaged folder": (
        [*CT2, "--ctranslate2-model", "{broken}"],
        ["--ctranslate2-model", "model.bin is damaged"],
    ),
    "other vocabulary": (
        [*CT2, "--ctranslate2-model", "{renamed}"],
        ["--ctranslate2-model", "target vocabulary", "export with this data"],
    ),
    "short positions": (
        [*CT2, "--ctranslate2-model", "{short}"],
        ["--ctranslate2-model", "6 source tokens", "--max-length"],
    ),
    "gated": ([*CT2, "--path", "{gated}"], ["--path", "not finished"]),
    "diverse beams": ([*CT2, "--diverse-beam-groups", "2", "--beam", "4"], ["--diverse-beam"]),
    "not installed": ([*CT2, "missing"], ["--engine", "pip install ctranslate2=="]),
}


def generator_of(folder, task):
    dictionaries = task.source_dictionary, task.target_dictionary
    return CTranslate2Generator(str(folder), dictionaries, GenerationConfig(), 100, "--model")


def test_every_damage_to_an_export_is_noticed(corpus, checkpoints, tmp_path, caplog):
    """300 of them: bits, cuts, zeros, files that are gone, emptied or of another export."""
    data = shutil.copytree(corpus, tmp_path / "data")
    for path in data.glob("test.*"):
        shutil.copy(path, data / path.name.replace("test", "train"))
    config = SRPTranslationConfig(data=str(data), source_lang="de", target_lang="en")
    task = SRPTranslationTask.setup_task(config)
    folder = tmp_path / "model"
    export_cut(str(data), checkpoints, folder, "--max-length", "20", "--vocabulary-map", "4")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert checksums.NAME in whole and "vmap.txt" in whole and len(whole) >= 5
    generator_of(folder, task)  # as it is
    random = np.random.default_rng(1)

    def damage(name):
        content, kind = bytearray(whole[name]), random.integers(5)
        place = int(random.integers(len(content)))
        if kind == 0:
            content[place] ^= 1 << int(random.integers(8))
        elif kind == 1:
            content = content[:place]
        elif kind == 2:
            content[place : place + 64] = bytes(len(content[place : place + 64]))
        elif kind == 3:
            return None
        else:
            content += b"\n"
        return bytes(content) if bytes(content) != whole[name] else None

    for number in range(300):
        name = sorted(whole)[number % len(whole)]
        damaged = damage(name)
        if damaged is None:
            if name == checksums.NAME:
                continue  # an older export has none, see below
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(damaged)
        with pytest.raises(UserError, match="--model: its .*(damaged|missing|another export)"):
            generator_of(folder, task)
        (folder / name).write_bytes(whole[name])

    (folder / "shared_vocabulary.json").write_text("[]")
    with pytest.raises(UserError, match="its shared_vocabulary.json is of another export"):
        generator_of(folder, task)
    (folder / "shared_vocabulary.json").unlink()
    (folder / checksums.NAME).unlink()
    generator_of(folder, task)
    assert "has no SHA256SUMS (an older export)" in caplog.text
    for content in ("[", "[]", "3"):
        (folder / "config.json").write_text(content)
        with pytest.raises(UserError, match="its config.json"):
            generator_of(folder, task)


def test_the_lengths_to_give_an_engine_with_short_tables(corpus, checkpoints, tmp_path, capsys):
    arguments = [corpus, "--path", checkpoints.cut, "--output", str(tmp_path / "short")]
    printed = run_tool(lambda: export.main([*arguments, "--max-length", "6"]), arguments)
    line = next(line for line in printed.splitlines() if "translate_batch" in line)
    options = {name: int(value) for name, value in re.findall(r"(max_\w+_length)=(\d+)", line)}
    assert options == {"max_input_length": 6, "max_decoding_length": 6}
    translator = ctranslate2.Translator(str(tmp_path / "short"))
    source = [["hund"] * 9, ["hund"]]
    assert len(translator.translate_batch(source, beam_size=2, **options)) == 2
    with pytest.raises(RuntimeError):
        translator.translate_batch(source, beam_size=2)


@pytest.fixture(scope="module")
def folders(folder, corpus, checkpoints, tmp_path_factory):
    """The same damaged, with another vocabulary, and for short sentences."""
    place = tmp_path_factory.mktemp("folders")
    for name in ("broken", "renamed"):
        shutil.copytree(folder, place / name)
    model = place / "broken" / "model.bin"
    model.write_bytes(model.read_bytes()[:-2000])
    words = place / "renamed" / "target_vocabulary.json"
    words.write_text(words.read_text().replace("dog", "hound"))
    (place / "renamed" / checksums.NAME).unlink()  # an older export
    export_cut(corpus, checkpoints, place / "short", "--max-length", "6")
    return {name: str(place / name) for name in ("broken", "renamed", "short")}


@pytest.mark.parametrize("case", REFUSALS)
def test_generate_refuses_before_any_work(
    case, corpus, checkpoints, folder, folders, capsys, monkeypatch
):
    def no_work(*args, **kwargs):
        raise AssertionError("translation has begun")

    monkeypatch.setattr(generate, "translate", no_work)
    given, expected = REFUSALS[case]
    if given[-1] == "missing":
        given = given[:-1]
        monkeypatch.setitem(sys.modules, "ctranslate2", None)
    places = {"folder": folder, **folders, **checkpoints._asdict()}
    given = [a.format(**places) for a in given]
    with pytest.raises(SystemExit) as stopped, ending_program():
        translate(corpus, checkpoints.cut, *given)
    assert stopped.value.code == 2
    messages = [m for m in capsys.readouterr().err.split("\n") if m.startswith("error: ")]
    assert len(messages) == 1
    for part in expected:
        assert part in messages[0]
