"""Options of a training that the checkpoint it starts from knows, and nobody need give again."""

import argparse
import logging
from typing import Any, Dict, List, Optional, Sequence

from omegaconf import DictConfig, OmegaConf

from ..checkpoint_utils import load_checkpoint
from ..checkpoints import dictionary_record
from ..checkpoints.pretrained import STRUCTURE, read_model_config
from ..checks.values import spell
from ..commandline.parsing import ArgumentParser
from ..errors import UserError

logger = logging.getLogger(__name__)

REGULARIZATION = ("dropout", "attention_dropout", "activation_dropout", "relu_dropout")
LANGUAGES = ("source_lang", "target_lang")
# fairseq's criteria that have --label-smoothing, and this plug-in's, which is the same loss
SMOOTHED = ("srp", "label_smoothed_cross_entropy")


def as_dict(part: Any) -> Dict[str, Any]:
    """A part of a checkpoint's options, whichever form they have there."""
    if isinstance(part, DictConfig):
        return OmegaConf.to_container(part)
    return dict(vars(part) if isinstance(part, argparse.Namespace) else part or {})


def known_options(
    state: Dict[str, Any], arch: Optional[str], criterion: Optional[str]
) -> Dict[str, Any]:
    """What a checkpoint says about a training that starts from it.

    Args:
        state: as ``load_checkpoint`` returns it.
        arch: what ``--arch`` names; another one than ``srp`` has dimensions of its own.
        criterion: what ``--criterion`` names.

    Returns:
        Options and their values. What is as in ``--arch srp`` without further options is left
        out.
    """
    options: Dict[str, Any] = {}
    if arch is None:
        options["arch"] = "srp"
    config = read_model_config(state)
    names = STRUCTURE if arch in (None, "srp") else ()
    if arch is None or arch.startswith("srp"):
        names += REGULARIZATION
    usual = read_model_config({"cfg": {"model": argparse.Namespace()}})
    for name in names:
        value = getattr(config, name)
        if str(value) != str(getattr(usual, name)):
            options[name] = value
    if criterion is None:
        options["criterion"] = "srp"
    smoothing = as_dict(state["cfg"].get("criterion")).get("label_smoothing")
    if smoothing and (criterion or "srp") in SMOOTHED:
        options["label_smoothing"] = smoothing
    languages = zip(LANGUAGES, dictionary_record.languages_of(state))
    options.update({name: language for name, language in languages if language})
    return options


def with_inherited(arguments: Sequence[str]) -> List[str]:
    """A command line, completed by what the checkpoint of ``--pretrained-model`` knows.

    What is given stays: where it contradicts the weights, the task refuses it.

    Raises:
        UserError: the checkpoint can't be read, and there is no ``--arch``.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--pretrained-model")
    parser.add_argument("--trust-checkpoint", action="store_true")
    parser.add_argument("-a", "--arch")
    parser.add_argument("--criterion")
    parser.add_argument("-s", "--source-lang")
    parser.add_argument("-t", "--target-lang")
    given, _ = parser.parse_known_args(arguments)
    path = given.pretrained_model
    if path is None:
        return list(arguments)
    try:
        state = load_checkpoint(path, "--pretrained-model", given.trust_checkpoint, mmap=True)
    except UserError:
        if given.arch is None:
            raise
        return list(arguments)  # refused by the task, after mistakes in options
    named = {argument.partition("=")[0] for argument in arguments}
    named |= {spell(name) for name, value in vars(given).items() if value}
    added: List[str] = []
    for name, value in known_options(state, given.arch, given.criterion).items():
        if spell(name) not in named and value is not False:
            added += [spell(name)] if value is True else [spell(name), str(value)]
    if added:
        logger.info(f"options taken from {path}: {' '.join(added)}")
    return [*arguments, *added]
