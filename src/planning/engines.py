"""Translations that are timed: a model in an engine, with the sentences it translates."""

import copy
import logging
import os
import tempfile
from contextlib import contextmanager
from typing import Iterator, List, Optional, Sequence, Tuple

import torch
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from ..checks.speed import MAP, QUANTIZATIONS
from ..deployment.comparison import load_translator
from ..deployment.model import build_spec, check_exportable, vocabulary
from ..deployment.spec import logger as spec_logger
from ..deployment.vocabulary_map import VocabularyMap
from ..deployment.vocabulary_map import write as write_map
from ..errors import UserError
from ..sequence_generator import FastSequenceGenerator
from .sentences import STOCK, Batch, Sentence, Translation, Work, choose, in_batches

SENTENCES = 64  # that a model translates in a round
CTRANSLATE2_BATCH = 16  # as generate.py has it
# A model that finds no end would keep the timing waiting.
MOST_STEPS = {"max_len_a": 2, "max_len_b": 10}


def with_steps(
    model: nn.Module, target: Dictionary, sources: Sequence[Tensor], beam: int, batch_size: int
) -> List[Sentence]:
    """How many steps a model's search takes for each source.

    Args:
        model: trained, in evaluation mode.
        target: the target dictionary, whose padding is the source's too.
    """
    generator = FastSequenceGenerator([model], target, beam_size=beam, **MOST_STEPS)
    device, found = next(model.parameters()).device, []
    for begin in range(0, len(sources), batch_size):
        some = Batch(list(sources[begin : begin + batch_size]), 0)
        tokens = some.padded(target).to(device)
        sample = {
            "net_input": {"src_tokens": tokens, "src_lengths": tokens.ne(target.pad()).sum(1)}
        }
        with torch.no_grad():
            results = generator.generate([model], sample)
        # the last of its hypotheses ends a sentence's search
        steps = (max(len(h["tokens"]) for h in hypotheses) for hypotheses in results)
        found += map(Sentence, some.sources, steps)
    return found


def make_work(
    model: nn.Module,
    dataset,
    dictionaries: Tuple[Dictionary, Dictionary],
    number: int = SENTENCES,
    beam: int = 5,
    batch_size: int = 64,
    device: str = "cpu",
    vocabulary_map: Optional[VocabularyMap] = None,
    option: str = "--gen-subset",
) -> Work:
    """Sentences of a set, with the steps that a model takes for them.

    Args:
        model: trained, in evaluation mode on the CPU.
        number: of sentences.
        option: what named the set, for messages.

    Raises:
        UserError: no sentence fits the model.
    """
    limits = [side.max_positions() for side in (model.encoder, model.decoder)]
    sources = choose(dataset, number, batch_size, limits)
    if not sources:
        raise UserError(
            f"{option}: has no sentence of 2 to {min(limits)} source tokens, which the model "
            "could translate"
        )
    beam = min(beam, len(dictionaries[1]) - 1)
    sentences = with_steps(model, dictionaries[1], sources, beam, batch_size)
    return Work(sentences, dictionaries, beam, batch_size, device, vocabulary_map)


def translation(engine: str, model: nn.Module, work: Work, origin: str) -> Translation:
    """A model in an engine.

    Args:
        engine: one of ``ENGINES`` or with ``MAP``, ``pytorch-fp16`` or ``STOCK``.
        model: in evaluation mode, not changed.
        origin: option and file of the model, for messages.

    Raises:
        UserError: CTranslate2 can't compute the model.
    """
    if engine.removesuffix(MAP) in QUANTIZATIONS:
        return _in_ctranslate2(engine, model, work, origin)
    return _in_pytorch(engine, model, work)


def _in_pytorch(engine: str, model: nn.Module, work: Work) -> Translation:
    target = work.dictionaries[1]
    model = copy.deepcopy(model).to(work.device)
    if engine.endswith("-fp16"):
        model.half()
    model.make_generation_fast_(beamable_mm_beam_size=None, need_attn=False)
    search = SequenceGenerator if engine == STOCK else FastSequenceGenerator
    generator = search([model], target, beam_size=work.beam, max_len_a=0)
    batches = in_batches(work.sentences, work.batch_size)
    samples = []
    for batch in batches:
        tokens = batch.padded(work.dictionaries[0]).to(work.device)
        lengths = tokens.ne(work.dictionaries[0].pad()).sum(1)
        samples.append({"net_input": {"src_tokens": tokens, "src_lengths": lengths}})

    @torch.no_grad()
    def run() -> None:
        for batch, sample in zip(batches, samples):
            # the end of sentence is a token, which fairseq does not count
            generator.min_len = generator.max_len_b = batch.steps - 1
            _check(generator.generate([model], sample), batch)
        if work.device == "cuda":
            torch.cuda.synchronize()

    return Translation(run, sum(batch.tokens for batch in batches))


def _check(results: List[List[dict]], batch: Batch) -> None:
    tokens = sum(len(hypotheses[0]["tokens"]) for hypotheses in results)
    if tokens != batch.tokens:
        raise RuntimeError(f"{tokens} tokens were generated instead of {batch.tokens}")


@contextmanager
def _saying_little() -> Iterator[None]:
    """No warnings of each candidate's shape, which would be those of all others."""
    level = spec_logger.level
    spec_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        spec_logger.setLevel(level)


def _in_ctranslate2(engine: str, model: nn.Module, work: Work, origin: str) -> Translation:
    source, target = work.dictionaries
    check_exportable(model, origin)
    limits = [side.max_positions() for side in (model.encoder, model.decoder)]
    with _saying_little():
        spec = build_spec(model, source, target, origin, limits)
    spec.optimize(QUANTIZATIONS[engine.removesuffix(MAP)])
    with tempfile.TemporaryDirectory(prefix="srp-plan-") as folder:
        spec.save(folder)
        if engine.endswith(MAP):
            write_map(folder, work.vocabulary_map, work.dictionaries)
        size = sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder))
        translator = load_translator(folder, origin)
    symbols, batches = vocabulary(source), in_batches(work.sentences, CTRANSLATE2_BATCH)
    texts = [[[symbols[word] for word in x[:-1].tolist()] for x in b.sources] for b in batches]
    search = {
        "beam_size": work.beam,
        "suppress_sequences": [[target.pad_word]],
        "max_input_length": 0,
        "use_vmap": engine.endswith(MAP),
    }

    def run() -> None:
        for batch, text in zip(batches, texts):
            # a step each: no end of sentence among them
            lengths = {"min_decoding_length": batch.steps, "max_decoding_length": batch.steps}
            results = translator.translate_batch(text, **search, **lengths)
            _check([[{"tokens": r.hypotheses[0]}] for r in results], batch)

    return Translation(run, sum(batch.tokens for batch in batches), size)
