"""A CTranslate2 model written into a folder, compared with PyTorch before it is kept."""

import os
from typing import Callable, Dict, Optional, Sequence, Tuple

from fairseq.data import Dictionary
from torch import nn

from ..checks import checksums
from . import vocabulary_map
from .comparison import Pair, check_same, load_translator, random_pairs
from .model import build_spec, check_exportable, plain, weights_digest
from .vocabulary_map import VocabularyMap


def export(
    model: nn.Module,
    dictionaries: Tuple[Dictionary, Dictionary],
    folder: str,
    quantization: str = "float32",
    origin: str = "--path",
    pairs: Optional[Dict[str, Sequence[Pair]]] = None,
    max_length: Optional[int] = None,
    candidates: Optional[VocabularyMap] = None,
    complete: Callable[[str], None] = lambda folder: None,
) -> str:
    """Write a CTranslate2 model into an existing folder and compare it with PyTorch.

    The float32 model is always compared, whatever is written in the end: it shows that
    the function is the same, where quantization would hide a small mistake.

    Args:
        model: in evaluation mode, not changed.
        dictionaries: of source and target.
        origin: option and file of the model, for messages.
        pairs: what to compare on, beside random sentences, by name.
        max_length: longest source and target, with end of sentence (default: the
            model's own limits).
        candidates: what each source type can become; the comparison is without them.
        complete: writes what else belongs into the folder.

    Returns:
        The type that CTranslate2 computes in on this CPU.

    Raises:
        UserError: the model can't be exported, or the exported one differs.
    """
    model = plain(model)
    check_exportable(model, origin)
    digest = weights_digest(model)
    limits = [side.max_positions() for side in (model.encoder, model.decoder)]
    if max_length is not None:
        limits = [min(limit, max_length) for limit in limits]
    pairs = {"random sentences": random_pairs(*dictionaries, limits), **(pairs or {})}
    for kind in dict.fromkeys(("float32", quantization)):
        for name in os.listdir(folder):
            os.remove(os.path.join(folder, name))
        spec = build_spec(model, *dictionaries, origin, limits)
        spec.config.add_attribute("quantization", kind)
        spec.config.add_attribute("weights_sha256", digest)
        spec.optimize(kind)
        spec.save(folder)
        translator = load_translator(folder, origin)
        for name, some in pairs.items():
            check_same(translator, kind, model, dictionaries, some, name, origin)
    if candidates is not None:
        vocabulary_map.write(folder, candidates, dictionaries)
        translator = load_translator(folder, origin)
        sources = [source for source, _ in pairs["random sentences"]]
        vocabulary_map.check(translator, candidates, dictionaries, sources, limits[1], origin)
    complete(folder)
    checksums.write(folder)
    return translator.compute_type
