"""The one loop that translates a set: batches, sentence by sentence, with the time taken."""

import time
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from fairseq import utils
from fairseq.data import BaseWrapperDataset
from fairseq.logging import progress_bar
from fairseq.logging.meters import TimeMeter
from torch import Tensor, nn


class Step(NamedTuple):
    """What the translation of a batch took."""

    seconds: float
    sentences: int
    tokens: int  # of the best hypotheses, with end of sentence


class Translation(NamedTuple):
    """A sentence and its hypotheses.

    Attributes:
        number: of the sentence in its set.
        source: its tokens ``[S]``, without padding.
        target: those of the data's own translation ``[T]``, or None.
        hypotheses: the generator's, best first.
    """

    number: int
    source: Tensor
    target: Optional[Tensor]
    hypotheses: List[Dict[str, Any]]


class _Remaining(BaseWrapperDataset):
    """A set without the sentences that need no translation."""

    def __init__(self, dataset, left_out: Sequence[int]):
        super().__init__(dataset)
        self.left_out = np.asarray(sorted(left_out), dtype=np.int64)

    def ordered_indices(self):
        indices = self.dataset.ordered_indices()
        return indices[~np.isin(indices, self.left_out)]


def make_generator(cfg, task, models: Sequence[nn.Module], language_model=None):
    """The task's generator, with the models ready for it, as in fairseq-generate.

    Args:
        models: are put on the GPU if there is one, and can't be trained afterwards.
        language_model: of ``--lm-path``.
    """
    for model in (*models, language_model):
        if model is None:
            continue
        if cfg.common.fp16:
            model.half()
        if torch.cuda.is_available() and not cfg.common.cpu:
            model.cuda()
        model.prepare_for_inference_(cfg)
    return task.build_generator(
        models,
        cfg.generation,
        extra_gen_cls_kwargs={"lm_model": language_model, "lm_weight": cfg.generation.lm_weight},
    )


def make_batches(cfg, task, models: Sequence[nn.Module], left_out: Sequence[int] = ()):
    """The batches of ``--gen-subset`` behind a bar that shows how far it has come.

    Args:
        left_out: numbers of sentences that need no translation.
    """
    dataset = task.dataset(cfg.dataset.gen_subset)
    iterator = task.get_batch_iterator(
        dataset=_Remaining(dataset, left_out) if left_out else dataset,
        max_tokens=cfg.dataset.max_tokens,
        max_sentences=cfg.dataset.batch_size,
        max_positions=utils.resolve_max_positions(
            task.max_positions(), *[model.max_positions() for model in models]
        ),
        ignore_invalid_inputs=cfg.dataset.skip_invalid_size_inputs_valid_test,
        required_batch_size_multiple=cfg.dataset.required_batch_size_multiple,
        seed=cfg.common.seed,
        num_workers=cfg.dataset.num_workers,
        data_buffer_size=cfg.dataset.data_buffer_size,
    ).next_epoch_itr(shuffle=False)
    return progress_bar.progress_bar(
        iterator,
        log_format=cfg.common.log_format,
        log_interval=cfg.common.log_interval,
        default_log_format="simple" if cfg.common.no_progress_bar else "tqdm",
    )


def translate(
    task,
    models: Sequence[nn.Module],
    generator,
    batches: Iterable[Dict[str, Any]],
    prefix_size: int = 0,
    steps: Optional[List[Step]] = None,
) -> Iterator[Translation]:
    """Translate batches of a set.

    Args:
        task: fairseq's, whose ``inference_step`` runs the generator.
        models: where their weights are, there goes a batch.
        generator: ``SequenceGenerator`` or whatever stands in for it.
        batches: as fairseq's data sets collate them; a progress bar shows the speed.
        prefix_size: how many tokens of the target every hypothesis begins with.
        steps: gets the time of each batch.

    Returns:
        The sentences in the order of the batches.
    """
    on_gpu = next(models[0].parameters()).is_cuda
    pad = task.target_dictionary.pad()  # fairseq has one for both sides
    words = TimeMeter()
    for sample in batches:
        sample = utils.move_to_cuda(sample) if on_gpu else sample
        target = sample["target"]
        begin = time.perf_counter()
        found = task.inference_step(
            generator,
            models,
            sample,
            prefix_tokens=target[:, :prefix_size] if prefix_size > 0 else None,
            constraints=sample.get("constraints"),
        )
        if on_gpu:
            torch.cuda.synchronize()
        tokens = sum(len(hypotheses[0]["tokens"]) for hypotheses in found)
        if steps is not None:
            steps.append(Step(time.perf_counter() - begin, len(found), tokens))
        for i, number in enumerate(sample["id"].tolist()):
            yield Translation(
                number,
                utils.strip_pad(sample["net_input"]["src_tokens"][i], pad),
                None if target is None else utils.strip_pad(target[i], pad).int().cpu(),
                found[i],
            )
        words.update(tokens)
        if hasattr(batches, "log"):
            batches.log({"wps": round(words.avg)})
