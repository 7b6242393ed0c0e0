"""The one loop: fairseq-generate's lines, to the letter, whatever the options."""

import shutil

import pytest
import torch
from fairseq import checkpoint_utils, tasks
from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from fairseq_cli import generate as fairseq_generate

from src import generate
from src.tasks.srp_translation import SRPTranslationTask
from src.translation import loading
from tests.support.translation import (
    SEARCH,
    USER_DIR,
    quiet_logging,
    run_tool,
    save,
    sentence_lines,
)

VARIANTS = (
    "--beam 1",
    "--beam 3 --nbest 2 --lenpen 0.3",
    "--unnormalized --temperature 2 --unkpen -3 --remove-bpe",
    "--print-alignment --nbest 2",
    "--print-alignment hard --remove-bpe",
    "--print-alignment soft --quiet",
    "--print-alignment soft --max-tokens 60",
    "--prefix-size 2 --no-repeat-ngram-size 2",
    "--scoring sacrebleu",
    "--sacrebleu --remove-bpe --quiet",
    "--scoring chrf --remove-bpe=sentencepiece",
    "--post-process letter --beam 1",
    "--tokenizer moses -s de -t en --remove-bpe",
    "--score-reference --print-alignment",
    "--sampling --nbest 2 --seed 3",
    "--sampling --sampling-topk 3 --nbest 2 --seed 5 --report {folder}/report.json",
    "--diverse-beam-groups 2 --beam 4",
    "--diversity-rate 0.5",
    "--required-batch-size-multiple 8",
    "--truncate-source --max-source-positions 6",
    "--cpu-bf16",
    "--lm-path {lm} --lm-weight 0.3",
    "--path {dense}:{cut}",
)


@pytest.fixture(scope="module")
def data(corpus, tmp_path_factory):
    """The corpus, with the dictionary of a language model beside."""
    folder = tmp_path_factory.mktemp("translating") / "data"
    shutil.copytree(corpus, folder)
    shutil.copy(folder / "dict.en.txt", folder / "dict.txt")
    return str(folder)


@pytest.fixture(scope="module")
def language_model(data, tmp_path_factory) -> str:
    """A checkpoint of fairseq's transformer_lm with the target's dictionary."""
    arguments = [data, "--task", "language_modeling", "--arch", "transformer_lm", "--cpu"]
    arguments += ["--decoder-layers", "1", "--decoder-attention-heads", "2", "--optimizer", "adam"]
    arguments += ["--decoder-embed-dim", "8", "--decoder-ffn-embed-dim", "8", "--max-tokens", "9"]
    path = tmp_path_factory.mktemp("language_model") / "lm.pt"
    with quiet_logging():
        args = fairseq_options.parse_args_and_arch(
            fairseq_options.get_training_parser(), input_args=arguments
        )
        cfg = convert_namespace_to_omegaconf(args)
        task = tasks.setup_task(cfg.task)
        torch.manual_seed(2)
        trainer = Trainer(
            cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion)
        )
    return save(trainer, path)


def run_both(data, options):
    """What generate.py and fairseq-generate print, without the lines that only ours has."""
    given = [data, *SEARCH, *options]
    ours = run_tool(lambda: generate.main(list(given)), given)
    if "--report" in given:
        place = given.index("--report")
        given = given[:place] + given[place + 2 :]
    given += ["--user-dir", USER_DIR, "--task", "SRPtranslation", "--num-workers", "0"]
    if "--required-batch-size-multiple" not in given:
        given += ["--required-batch-size-multiple", "1"]
    stock = run_tool(fairseq_generate.cli_main, given)
    only_ours = ("BLEU|", "chrF")
    return [line for line in ours.split("\n") if not line.startswith(only_ours)], stock.split("\n")


@pytest.mark.parametrize("variant", VARIANTS)
def test_lines_are_those_of_fairseq_generate(variant, data, checkpoints, language_model, tmp_path):
    places = {"folder": tmp_path, "lm": language_model, **checkpoints._asdict()}
    options = variant.format(**places).split()
    if "--path" not in options:
        options += ["--path", checkpoints.dense]
    ours, stock = run_both(data, options)
    assert ours == stock
    assert any(line.startswith("Generate test with beam=") for line in ours)
    assert ("--quiet" in options) == (not sentence_lines("\n".join(ours)))


def test_data_and_model_are_read_once(data, checkpoints, monkeypatch):
    read, load_dataset = [], SRPTranslationTask.load_dataset

    def counted(self, split, *args, **kwargs):
        read.append(split)
        return load_dataset(self, split, *args, **kwargs)

    def load_checkpoint(path, *args):
        read.append(path)
        return loading_checkpoint(path, *args)

    def not_again(*args, **kwargs):
        raise AssertionError("read again by fairseq")

    loading_checkpoint = loading.load_checkpoint
    monkeypatch.setattr(SRPTranslationTask, "load_dataset", counted)
    monkeypatch.setattr(loading, "load_checkpoint", load_checkpoint)
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint_to_cpu", not_again)
    arguments = [data, "--path", checkpoints.dense, *SEARCH, "--quiet", "--beam", "1"]
    run_tool(lambda: generate.main(list(arguments)), arguments)
    assert sorted(read) == sorted(["test", checkpoints.dense])
