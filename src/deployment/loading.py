"""A compressed or exported model for translating text from Python."""

import json
import os
from importlib.util import find_spec
from typing import Any, Dict, List, Optional, Sequence, Union

from ..errors import UserError
from .translator import Translator

RESULT = "result.json"  # in the folder of a compression: where its parts are, and its figures
MODEL = "model.bin"  # in an exported folder


class Hub:
    """A checkpoint in PyTorch, with the same call.

    Args:
        checkpoint: its file.
        data: folder with its dictionaries.
        text: fairseq's options of tokenizer and codes; none where sentences are tokens.
    """

    def __init__(self, checkpoint: str, data: str, text: Dict[str, Any]):
        from fairseq import hub_utils

        folder, name = os.path.split(checkpoint)
        options = {name: value for name, value in text.items() if value and name != "lowercase"}
        found = hub_utils.from_pretrained(folder, name, os.path.abspath(data), **options)
        self.hub = hub_utils.GeneratorHubInterface(found["args"], found["task"], found["models"])
        self.hub.eval()
        self.lowercase = text.get("lowercase", False)

    def translate(
        self, sentences: Sequence[str], beam: int = 5, prefix: Optional[str] = None
    ) -> List[str]:
        """As :meth:`Translator.translate`, without prefixes."""
        if prefix:
            raise ValueError("prefix: the exported model has it; install ctranslate2")
        lines = [line.lower() if self.lowercase else line for line in sentences]
        numbers = [n for n, line in enumerate(lines) if line.strip()]
        found = self.hub.translate([lines[n] for n in numbers], beam=beam) if numbers else []
        texts = [""] * len(lines)
        for number, text in zip(numbers, found):
            texts[number] = text
        return texts


def load(folder: str, threads: int = 0) -> Union[Translator, Hub]:
    """The model of a folder: its export where the engine is installed, else in PyTorch.

    Args:
        folder: ``--output`` of compress.py or of export.py.
        threads: of the engine, 0 for all cores.

    Returns:
        Something whose ``translate(sentences, beam=5)`` gives a list of texts.

    Raises:
        UserError: the folder holds no finished model.
    """
    if os.path.isfile(os.path.join(folder, MODEL)):
        return Translator(folder, threads)
    try:
        with open(os.path.join(folder, RESULT), encoding="utf-8") as stream:
            result = json.load(stream)
        parts = {name: os.path.join(folder, result[name] or "") for name in ("model", "data")}
        export, text = result["export"], result["text"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(
            f"{folder}: holds no compressed model; give the --output of compress.py, when it has "
            "come to its end, or of export.py"
        ) from None
    if export and find_spec("ctranslate2"):
        return Translator(os.path.join(folder, export), threads)
    files = {
        n: os.path.join(folder, text[n]) for n in ("bpe_codes", "sentencepiece_model") if text[n]
    }
    return Hub(parts["model"], parts["data"], {**text, **files})
