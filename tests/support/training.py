"""A tiny corpus, tiny models and training in this process."""

import argparse
import random
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

from fairseq import models  # noqa: E402
from fairseq.data import Dictionary  # noqa: E402
from fairseq.data.indexed_dataset import make_builder  # noqa: E402

import src  # noqa: E402,F401

TYPES = {"de": 44, "en": 40}

TINY = [
    *("--arch", "srp", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "24"),
    *("--encoder-layers", "2", "--decoder-layers", "2", "--encoder-attention-heads", "2"),
    *("--decoder-attention-heads", "2", "--dropout", "0.1"),
    "--share-decoder-input-output-embed",
]
RUN = [
    *("--task", "SRPtranslation", "--criterion", "srp", "--optimizer", "srp_adam"),
    *("--label-smoothing", "0.1", "--lr", "1e-3", "--weight-decay", "0.01"),
    *("--adam-betas", "(0.9, 0.98)", "--max-tokens", "200", "--cpu", "--num-workers", "0"),
    *("--scoring-batches", "6", "--scoring-tokens", "40", "--no-progress-bar"),
    *("--required-batch-size-multiple", "1", "--log-interval", "1000"),
]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Sums in one order: results can be compared bit by bit."""
    torch.set_num_threads(1)


def make_dictionary(language: str) -> Dictionary:
    dictionary = Dictionary()
    for i in range(TYPES[language] - dictionary.nspecial):
        dictionary.add_symbol(f"{language}{i}", n=100 - i)
    return dictionary


def write_corpus(folder: Path, sizes=(("train", 60), ("valid", 11), ("test", 9))) -> str:
    """A corpus whose target repeats the source's words, shifted by one."""
    generator = random.Random(1)
    for language in TYPES:
        make_dictionary(language).save(str(folder / f"dict.{language}.txt"))
    for split, size in sizes:
        sentences = [
            [generator.randrange(4, 38) for _ in range(generator.randint(3, 12))]
            for _ in range(size)
        ]
        for language in TYPES:
            prefix = str(folder / f"{split}.de-en.{language}")
            builder = make_builder(prefix + ".bin", "mmap", vocab_size=TYPES[language])
            for words in sentences:
                shift = 0 if language == "de" else 1
                builder.add_item(torch.tensor([w + shift for w in words] + [2]))
            builder.finalize(prefix + ".idx")
    return str(folder)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data-bin folder."""
    return write_corpus(tmp_path_factory.mktemp("data-bin"))


def run_training(arguments, main=None):
    """fairseq-train in this process; returns the trainer it made."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli import train as fairseq_train

    from src import trainer
    from src.commandline import parsing as cli

    made = []

    class Recorded(trainer.SRPTrainer):  # tests may have replaced SRPTrainer
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    parser = options.get_training_parser(default_task="SRPtranslation")
    args = cli.parse(parser, [str(a) for a in arguments])
    before, fairseq_train.Trainer = fairseq_train.Trainer, Recorded
    try:
        (main or fairseq_train.main)(convert_namespace_to_omegaconf(args))
    finally:
        fairseq_train.Trainer = before
    return made[0]


def run_named(trainer, name: str):
    """The pruning run of that name, None if a trainer has none."""
    return next((run for run in trainer.pruning_runs if run.name == name), None)


def stage_of(trainer):
    """The stage of a training that prunes channels, else None."""
    run = run_named(trainer, "stage")
    return run and run.stage


def weights_of(trainer):
    """The weight pruning of a training with ``--sparsity-config``, else None."""
    return run_named(trainer, "weight_pruning")


@pytest.fixture(scope="session")
def base(data, tmp_path_factory):
    """Checkpoint of a tiny model trained for three epochs."""
    folder = tmp_path_factory.mktemp("base")
    run_training([data, *TINY, *RUN, "--max-epoch", "3", "--save-dir", folder])
    return str(folder / "checkpoint_last.pt")


class DictionaryTask:
    """The part of a task that building a model needs."""

    def __init__(self, shared: bool = False):
        self.source_dictionary = make_dictionary("de")
        self.target_dictionary = self.source_dictionary if shared else make_dictionary("en")


def build(arch="srp", shared=False, seed=1, **options):
    """A small float64 model in evaluation mode with random, non-trivial weights."""
    torch.manual_seed(seed)
    defaults = {
        "encoder_embed_dim": 16,
        "encoder_ffn_embed_dim": 24,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "dropout": 0.0,
    }
    args = argparse.Namespace(arch=arch, _name=arch, **{**defaults, **options})
    model = models.build_model(args, DictionaryTask(shared)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # layer norms and biases start at 1 and 0, where a forgotten slice hides
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batch(sentences=5, source=9, target=7, seed=1):
    """source [B, S] padded left, prev_output_tokens [B, T] padded right."""
    generator = torch.Generator().manual_seed(seed)
    src_tokens = torch.randint(4, 40, (sentences, source), generator=generator)
    previous = torch.randint(4, 40, (sentences, target), generator=generator)
    src_tokens[0, :3] = 1
    src_tokens[2, :5] = 1
    previous[1, 5:] = 1
    return src_tokens, None, previous
