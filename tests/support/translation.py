"""A tiny binarized corpus, checkpoints, and fairseq's tools run in this process."""

import contextlib
import io
import logging
import random
import re
import sys
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple

import pytest
import torch
from fairseq import options, tasks
from fairseq.data import Dictionary
from fairseq.data.indexed_dataset import make_builder
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq_cli import validate as fairseq_validate
from sacremoses import MosesDetokenizer

import src  # noqa: F401  registers the plug-in
from src import generate
from src.connectivity.cut import cut
from src.connectivity.groups import channel_groups
from src.trainer import SRPTrainer

USER_DIR = str(Path(src.__file__).parent)
WORDS = {
    "de": "ein eine Mann Frau Hund Ha@@ us Ba@@ um läuft steht rot groß und , . &apos;s",
    "en": "a the man woman dog ho@@ use tr@@ ee runs stands red big and , . &apos;s",
}
WORDS = {language: words.split() for language, words in WORDS.items()}
SENTENCES = 11  # no multiple of 8
EMPTY = 3  # the number of the sentence whose source is empty


def write_data(folder: Path, pairs: List[tuple], split: str = "test") -> None:
    """Dictionaries and a binarized split of (source, target) lines."""
    for side, language in enumerate(("de", "en")):
        dictionary = Dictionary()
        for number, word in enumerate(WORDS[language]):
            dictionary.add_symbol(word, n=100 - number)
        dictionary.save(str(folder / f"dict.{language}.txt"))
        prefix = str(folder / f"{split}.de-en.{language}")
        builder = make_builder(f"{prefix}.bin", "mmap", vocab_size=len(dictionary))
        for pair in pairs:
            builder.add_item(dictionary.encode_line(pair[side], add_if_not_exist=False))
        builder.finalize(f"{prefix}.idx")


def random_pairs(seed: int, number: int = SENTENCES) -> List[tuple]:
    """Pairs of lines of random words; one of them has an empty source."""
    generator = random.Random(seed)
    pairs = []
    for sentence in range(number):
        length = 0 if sentence == EMPTY else generator.randint(2, 12)
        source = " ".join(generator.choices(WORDS["de"], k=length))
        target = " ".join(generator.choices(WORDS["en"], k=generator.randint(2, 12)))
        pairs.append((source, target))
    return pairs


def make_trainer(data: str, extra: List[str]) -> SRPTrainer:
    """A trainer as fairseq-train makes it, with a randomly initialized model."""
    arguments = [data, "-s", "de", "-t", "en", "--cpu", "--max-tokens", "4096"]
    arguments += ["--lr", "1e-3", "--optimizer", "adam", "--criterion", "cross_entropy"]
    arguments += ["--task", "SRPtranslation", "--user-dir", USER_DIR] + extra
    with quiet_logging():
        parser = options.get_training_parser()
        args = options.parse_args_and_arch(parser, input_args=arguments)
        cfg = convert_namespace_to_omegaconf(args)
        task = tasks.setup_task(cfg.task)
        torch.manual_seed(3)
        model = task.build_model(cfg.model)
        with torch.no_grad():
            for parameter in model.parameters():  # otherwise it repeats words
                parameter.add_(0.1 * torch.randn_like(parameter))
        return SRPTrainer(cfg, task, model, task.build_criterion(cfg.criterion))


def random_cut(model, seed: int = 1, minimum: float = 0.3) -> Dict[str, torch.Tensor]:
    """Positions to keep, a random number of every width's (the same for each head)."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for name, group in channel_groups(model).items():
        if group.kind == "layer":
            continue
        per_head = group.width // group.heads
        least = max(2 if group.kind == "embedding" else 1, int(minimum * per_head))
        kept = int(torch.randint(least, per_head, (), generator=generator))
        keep[name] = torch.cat(
            [
                h * per_head + torch.randperm(per_head, generator=generator)[:kept].sort().values
                for h in range(group.heads)
            ]
        )
    return keep


def close_gates(model, keep: Dict[str, torch.Tensor]) -> None:
    """Connectivity 0 for the channels that a cut would remove."""
    for name, group in channel_groups(model).items():
        if name not in keep:
            continue
        connectivity = torch.zeros(group.width)
        connectivity[keep[name]] = 1
        group.set_connectivity(connectivity)


def save(trainer: SRPTrainer, path: Path) -> str:
    trainer.consolidate_optimizer()  # as fairseq's own saving does first
    trainer.save_checkpoint(str(path), {"val_loss": 1.0})
    return str(path)


class Checkpoints(NamedTuple):
    dense: str
    gated: str
    cut: str


def make_checkpoints(data: str, folder: Path, extra: List[str]) -> Checkpoints:
    """One model three times: whole, with closed gates, and cut there."""
    trainer = make_trainer(data, extra)
    model = trainer.get_model()
    dense = save(trainer, folder / "dense.pt")
    keep = random_cut(model)
    close_gates(model, keep)
    gated = save(trainer, folder / "gated.pt")
    cut(model, keep)
    return Checkpoints(dense, gated, save(trainer, folder / "cut.pt"))


@contextlib.contextmanager
def quiet_logging():
    """Log handlers and levels as before, whatever the tools set."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def run_tool(function: Callable, arguments: List[str]) -> str:
    """Standard output of a tool that reads ``sys.argv``, run here."""
    output = io.StringIO()
    before, sys.argv = sys.argv, ["tool", *arguments]
    try:
        with quiet_logging(), contextlib.redirect_stdout(output):
            function()
    finally:
        sys.argv = before
    return output.getvalue()


def stock_loss(data, path):
    """Loss of the validation data by fairseq-validate."""
    arguments = [data, "--path", path, "--user-dir", USER_DIR, "--cpu"]
    arguments += ["--task", "SRPtranslation", "--batch-size", "4", "--no-progress-bar"]
    arguments += ["--required-batch-size-multiple", "1", "--valid-subset", "valid"]
    lines = []

    class Recorder(fairseq_validate.progress_bar.SimpleProgressBar):
        def print(self, stats, tag=None, step=None):
            lines.append(stats)

    before = fairseq_validate.progress_bar.progress_bar
    fairseq_validate.progress_bar.progress_bar = lambda itr, **_: Recorder(itr)
    try:
        run_tool(fairseq_validate.cli_main, arguments)
    finally:
        fairseq_validate.progress_bar.progress_bar = before
    return float(lines[0]["loss"])


def sentence_lines(output: str, kinds: str = "STHDP") -> List[str]:
    """fairseq-generate's lines of these kinds."""
    lines = output.split("\n")
    return [line for line in lines if line[:1] in kinds and line[1:2] == "-"]


def hypotheses(output: str, kind: str = "D") -> Dict[int, str]:
    """Sentence number to its best hypothesis."""
    found: Dict[int, str] = {}
    for line in sentence_lines(output, kind):
        number, _, text = line[2:].split("\t", 2)
        found.setdefault(int(number), text)
    return found


SEARCH = ["--beam", "2", "--max-len-a", "1", "--max-len-b", "6", "--min-len", "5"]
SEARCH += ["--batch-size", "4", "--no-progress-bar", "--cpu"]


def translate(corpus: str, path: str, *extra: str) -> str:
    """Standard output of generate.py."""
    arguments = [corpus, "--path", path, *SEARCH, "--remove-bpe", *extra]
    return run_tool(lambda: generate.main(list(arguments)), arguments)


def without_bpe(line: str) -> str:
    return f"{line} ".replace("@@ ", "").rstrip()


def score_of(output: str) -> float:
    """The BLEU that generate.py printed."""
    return float(re.search(r"^BLEU\|\S+ = ([\d.]+)", output, re.MULTILINE)[1])


def detokenized(output: str) -> List[str]:
    """The translations as text, in the order of the test set."""
    moses = MosesDetokenizer("en")
    found = hypotheses(output)
    return [moses.detokenize(found[n].split()) for n in sorted(found)]


# -- fixtures, imported by the tests that use them --------------------------------------

ARCH = ["--arch", "srp_demo_de_en", "--share-decoder-input-output-embed"]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> str:
    """A data-bin folder with splits valid and test."""
    folder = tmp_path_factory.mktemp("corpus")
    write_data(folder, random_pairs(1), "test")
    write_data(folder, random_pairs(2, 5), "valid")
    return str(folder)


@pytest.fixture(scope="session")
def checkpoints(corpus, tmp_path_factory) -> Checkpoints:
    """Of the demo's architecture, with the README's --weighted-layernorm."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return make_checkpoints(corpus, folder, [*ARCH, "--weighted-layernorm"])
