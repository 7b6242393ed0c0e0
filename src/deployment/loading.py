"""A compressed or exported model for translating text from Python."""

import json
import os
from importlib.util import find_spec
from typing import List, Optional, Sequence, Union

from ..errors import UserError
from .translator import Text, Translator, read_text

RESULT = "result.json"  # in the folder of a compression: where its parts are, and its figures
MODEL = "model.bin"  # in an exported folder


class Hub:
    """A checkpoint in PyTorch, with the same call.

    Args:
        checkpoint: its file.
        data: folder with its dictionaries.
        text: makes tokens of raw text and text of tokens; None where sentences are tokens.
    """

    def __init__(self, checkpoint: str, data: str, text: Optional[Text]):
        from fairseq import hub_utils

        folder, name = os.path.split(checkpoint)
        found = hub_utils.from_pretrained(folder, name, os.path.abspath(data))
        self.hub = hub_utils.GeneratorHubInterface(found["args"], found["task"], found["models"])
        self.hub.eval()
        self.text = text

    def translate(
        self, sentences: Sequence[str], beam: int = 5, prefix: Optional[str] = None
    ) -> List[str]:
        """As :meth:`Translator.translate`, without prefixes."""
        if prefix:
            raise ValueError("prefix: the exported model has it; install ctranslate2")
        lines = [" ".join(self.text.encode(x)) if self.text else x for x in sentences]
        numbers = [n for n, line in enumerate(lines) if line.strip()]
        sources = [self.hub.binarize(lines[n]) for n in numbers]
        found = self.hub.generate(sources, beam=beam) if numbers else []
        texts = [""] * len(lines)
        for number, hypotheses in zip(numbers, found):
            tokens = self.hub.string(hypotheses[0]["tokens"])
            texts[number] = self.text.decode(tokens.split()) if self.text else tokens
        return texts


def load(folder: str, threads: int = 0) -> Union[Translator, Hub]:
    """The model of a folder: its export where the engine is installed, else in PyTorch.

    Args:
        folder: ``--output`` of compress.py or of export.py.
        threads: of the engine, 0 for all cores.

    Returns:
        Something whose ``translate(sentences, beam=5)`` gives a list of texts.

    Raises:
        UserError: the folder holds no finished model, a damaged one, or one whose engine is not
            installed.
    """
    if os.path.isfile(os.path.join(folder, MODEL)):
        return _exported(folder, threads)
    try:
        with open(os.path.join(folder, RESULT), encoding="utf-8") as stream:
            result = json.load(stream)
        parts = {name: os.path.join(folder, result[name] or "") for name in ("model", "data")}
        export = result["export"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            f"{folder}: holds no compressed model; give the --output of compress.py, when it has "
            "come to its end, or of export.py"
        ) from None
    if export and find_spec("ctranslate2"):
        return _exported(os.path.join(folder, export), threads)
    return Hub(parts["model"], parts["data"], read_text(folder))


def _exported(folder: str, threads: int) -> Translator:
    if not find_spec("ctranslate2"):
        raise UserError(f"{folder}: is an exported model, which needs ctranslate2; install it")
    try:
        return Translator(folder, threads)
    except ValueError as error:
        raise UserError(str(error)) from None
