"""The model of a checkpoint, rebuilt from its options and weights, without any data."""

from typing import Any, Dict

from fairseq import models
from fairseq.data import Dictionary
from torch import nn

from ..checkpoint_utils import load_checkpoint
from ..errors import UserError
from .pretrained import srp_arguments


class _Dictionaries:
    """What building a model needs of a task: dictionaries of the right lengths."""

    def __init__(self, state: Dict[str, Any]):
        self.source_dictionary = self._of_size(state, "encoder")
        self.target_dictionary = self._of_size(state, "decoder")
        arguments = srp_arguments(state)
        if arguments.share_all_embeddings:
            self.target_dictionary = self.source_dictionary

    @staticmethod
    def _of_size(state, side: str) -> Dictionary:
        dictionary = Dictionary()
        types = len(state["model"][f"{side}.embed_tokens.weight"])
        for number in range(types - len(dictionary)):
            dictionary.add_symbol(f"type{number}")
        return dictionary


def load_model(path: str, trust: bool = False) -> nn.Module:
    """The model of a checkpoint, without the data it was trained on.

    Args:
        path: checkpoint of an SRP model or of fairseq's Transformer.
        trust: unpickle arbitrary objects.

    Raises:
        UserError: missing, damaged, unsafe, or of another kind of model.
    """
    return model_of(load_checkpoint(path, "CHECKPOINT", trust), f"CHECKPOINT {path}")


def model_of(state: Dict[str, Any], origin: str) -> nn.Module:
    """The model of a checkpoint's state, in evaluation mode.

    Args:
        origin: option and file of the checkpoint, for messages.

    Raises:
        UserError: it is another kind of model.
    """
    try:
        model = models.build_model(srp_arguments(state), _Dictionaries(state))
        model.load_state_dict(state["model"], strict=True)
    except (KeyError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{origin}: its weights are not those of an SRP model or fairseq "
            f"Transformer ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    return model.eval()
