"""Candidates of the model that a training is about to prune."""

import copy
import logging
from functools import partial
from typing import List, Tuple

from fairseq.trainer import Trainer

from ..adapters import adapted_layers, fuse
from ..checks.speed import MAP
from ..connectivity.stage import StagePlan
from ..deployment.ibm_model1 import read_pairs
from ..deployment.vocabulary_map import CANDIDATES, build_map, check_names
from .candidates import candidates, usual_depths
from .engines import make_work, translation
from .measure import Planner
from .rows import Measure, Row

logger = logging.getLogger(__name__)


def measure_for(
    trainer: Trainer, plan: StagePlan, engine: str, stock: bool = False
) -> Tuple[List[Row], Measure]:
    """Time what a stage could leave of a trainer's model.

    Sentences are those of the first validation set, or of the training data without one. The
    training itself does not change: neither its model nor its random numbers.

    Args:
        plan: the stage, with the numbers of layers that are given.
        engine: PyTorch's runs on the device of the training.
        stock: time stock fairseq's search, too.

    Returns:
        What was measured, and what measures others.

    Raises:
        UserError: CTranslate2 can't compute the model.
    """
    task, cfg = trainer.task, trainer.cfg
    model = copy.deepcopy(trainer.get_model()).cpu().float().eval()
    if adapted_layers(model):
        model = fuse(model)
    dictionaries, found = (task.source_dictionary, task.target_dictionary), None
    training = task.datasets[cfg.dataset.train_subset]
    subset = cfg.dataset.valid_subset.split(",")[0]
    if engine.endswith(MAP):
        check_names(dictionaries, f"--speed-engine {engine}")
        found = build_map(*read_pairs(training), dictionaries, CANDIDATES)
    work = make_work(
        model,
        task.datasets.get(subset, training),
        dictionaries,
        device=trainer.device.type,
        vocabulary_map=found,
        option=f"--valid-subset {subset}",
    )
    make = partial(translation, work=work, origin="--pretrained-model")
    planner = Planner(model, plan, work, make, [engine], stock=stock)
    depths = usual_depths(model, plan)
    if engine != "pytorch" and not model.cfg.weighted_layernorm:
        logger.warning(
            f"--speed-engine {engine}: a model cut without --weighted-layernorm has zeros in the "
            "place of the embedding channels that are gone, which costs speed there"
        )
    logger.info(f"measuring what is fast enough in {engine} on this machine")
    return planner(candidates(depths)), planner
