"""Is an exported model the same function? Log-probabilities against PyTorch's."""

import logging
from typing import List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.data.data_utils import collate_tokens
from torch import nn

from ..checks.ctranslate2_package import require_ctranslate2
from ..errors import UserError
from .model import vocabulary

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # nats, of a token's log-probability in float32
# Quantization moves a token's log-probability by a few hundredths of a nat on average;
# this is far outside, and about what a wrong model shows.
GROSS = 0.5

# Token numbers of a source and a target without their end of sentence.
Pair = Tuple[List[int], List[int]]

RANDOM_LENGTHS = ((1, 30), (2, 3), (3, 12), (5, 5), (9, 1), (17, 20), (30, 2), (60, 0))
BATCH = 32


class Deviation(NamedTuple):
    """How far the log-probabilities of tokens are from PyTorch's, in nats."""

    largest: float
    mean: float
    tokens: int

    def __str__(self):
        return f"{self.largest:.1e} at most, {self.mean:.1e} on average"


def random_pairs(source: Dictionary, target: Dictionary, limits, seed=1) -> List[Pair]:
    """Sentences of random words, two of each of several lengths.

    Args:
        limits: most tokens of a source and a target, with end of sentence.
    """
    generator = np.random.default_rng(seed)
    pairs = []
    for lengths in RANDOM_LENGTHS * 2:
        pair = []
        for dictionary, length, limit in zip((source, target), lengths, limits):
            words = generator.integers(dictionary.nspecial, len(dictionary), length)
            pair.append(words.tolist()[: limit - 1])
        pairs.append(tuple(pair))
    return pairs


def subset_pairs(dataset, limits, number: int = 200) -> List[Pair]:
    """The first pairs of a binarized set that are not too long."""
    pairs = []
    for index in range(len(dataset)):
        item = dataset[index]
        pair = (item["source"].tolist(), item["target"].tolist())
        if all(1 < len(x) <= limit for x, limit in zip(pair, limits)):
            pairs.append(tuple(x[:-1] for x in pair))
        if len(pairs) == number:
            break
    return pairs


@torch.no_grad()
def pytorch_scores(model: nn.Module, target: Dictionary, pairs: Sequence[Pair]):
    """Log-probabilities of each target's tokens and its end, in batches."""
    pad, eos = target.pad(), target.eos()
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    scores = []
    for begin in range(0, len(pairs), BATCH):
        batch = pairs[begin : begin + BATCH]
        sources = [torch.tensor([*source, eos]) for source, _ in batch]
        previous = [torch.tensor([eos, *words]) for _, words in batch]
        expected = [torch.tensor([*words, eos]) for _, words in batch]
        output = model(
            collate_tokens(sources, pad, left_pad=True).to(device),
            torch.tensor([len(x) for x in sources], device=device),
            collate_tokens(previous, pad).to(device),
        )
        rows = model.get_normalized_probs(output, log_probs=True).cpu()
        scores += [
            row[: len(words)].gather(-1, words[:, None])[:, 0].double().numpy()
            for row, words in zip(rows, expected)
        ]
    model.train(training)
    return scores


def load_translator(folder: str, origin: str, **options):
    """``ctranslate2.Translator`` of a folder, on the CPU with torch's number of threads.

    Args:
        origin: option and file of the model, for messages.

    Raises:
        UserError: CTranslate2 is not installed or can't load the folder.
    """
    ctranslate2 = require_ctranslate2(origin)
    ctranslate2.set_log_level(logging.ERROR)  # check_same says what it computes in
    threads = torch.get_num_threads()
    try:
        return ctranslate2.Translator(folder, device="cpu", intra_threads=threads, **options)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{origin}: CTranslate2 can't load it ({reason})") from None
    finally:
        torch.set_num_threads(threads)  # they share OpenMP's setting


def deviation(
    translator,
    model: nn.Module,
    source: Dictionary,
    target: Dictionary,
    pairs: Sequence[Pair],
) -> Deviation:
    """Compare a translator with the model it was made from.

    CTranslate2 scores the pairs in batches, which pads them, and every fourth one
    alone as well.

    Args:
        translator: ``ctranslate2.Translator``.
    """
    names = vocabulary(source), vocabulary(target)
    texts = [
        tuple([symbols[i] for i in side] for symbols, side in zip(names, pair)) for pair in pairs
    ]
    expected = pytorch_scores(model, target, pairs)
    results = []
    for begin in range(0, len(texts), BATCH):
        results += translator.score_batch(
            *map(list, zip(*texts[begin : begin + BATCH])), max_input_length=0
        )
    for text in texts[::4]:
        results += translator.score_batch([text[0]], [text[1]], max_input_length=0)
    differences = np.concatenate(
        [
            np.abs(np.asarray(result.log_probs, np.float64) - scores)
            for result, scores in zip(results, [*expected, *expected[::4]])
        ]
    )
    return Deviation(differences.max(), differences.mean(), len(differences))


def check_same(translator, quantization, model, dictionaries, pairs, name, origin) -> None:
    """Compare a translator with its model and log the deviation.

    Args:
        quantization: how its weights are stored: float32 must be the same function.
        dictionaries: of source and target.
        name: what the pairs are, for messages.
        origin: option and file of the translator, for messages.

    Raises:
        UserError: it is not the same function; says how far off it is.
    """
    found = deviation(translator, model, *dictionaries, pairs)
    if quantization == "float32":
        allowed, same = f"{TOLERANCE:g} at most", found.largest <= TOLERANCE
    else:
        allowed, same = f"{GROSS:g} on average", found.mean <= GROSS
    if not same:  # NaN is not
        raise UserError(
            f"{origin}: the {quantization} model in CTranslate2 is not the same: "
            f"log-probabilities of {name} differ from PyTorch's by {found}, allowed is "
            f"{allowed}"
        )
    logger.info(
        f"{quantization} (computed in {translator.compute_type}): log-probabilities of "
        f"{found.tokens} tokens of {name} differ from PyTorch's by {found}"
    )
