"""Exports in memory, and how far they are from PyTorch."""

import os

from src.deployment.comparison import deviation, load_translator
from src.deployment.comparison import random_pairs as pairs_of
from src.deployment.export import export
from tests.support.training import DictionaryTask

SHORT = 70  # rows of position tables: the default of 1024 takes most of the tests' time


def dictionaries(shared=False):
    task = DictionaryTask(shared)
    return task.source_dictionary, task.target_dictionary


def exported(model, folder, quantization="float32", shared=False, length=SHORT):
    """The translator of an export that has passed its own check."""
    os.makedirs(folder, exist_ok=True)
    export(model, dictionaries(shared), str(folder), quantization, "model", None, length)
    return load_translator(str(folder), "model")


def found_deviation(translator, model, shared=False):
    both = dictionaries(shared)
    return deviation(translator, model, *both, pairs_of(*both, (SHORT, SHORT), seed=2))
