"""A lexical shortlist for CTranslate2: which target types can translate a source type.

The output layer then scores only these candidates of a batch's tokens, and the most
frequent types, instead of the whole vocabulary. Candidates are the most probable ones
of IBM model 1; such shortlists are in Jean et al., 2015, On Using Very Large Target
Vocabulary for Neural Machine Translation, section 3.3.
"""

import os
from typing import Dict, Iterable, List, NamedTuple, Sequence, Set, Tuple

import numpy as np
from fairseq.data import Dictionary

from ..checks.ctranslate2_package import VOCABULARY_MAP
from ..checks.data import load_set
from ..errors import UserError
from .ibm_model1 import LONGEST, Sentences, lexical_table, read_pairs
from .model import vocabulary

CANDIDATES = 20  # of a source type
FREQUENT = 5  # times as many are candidates of any sentence

Dictionaries = Tuple[Dictionary, Dictionary]  # of source and target


class VocabularyMap(NamedTuple):
    """Numbers of target types.

    Attributes:
        common: candidates of any sentence.
        candidates: of a source type; one that is missing has none of its own.
    """

    common: List[int]
    candidates: Dict[int, List[int]]

    def of(self, tokens: Iterable[int]) -> Set[int]:
        """The candidates of a sentence, or of several together."""
        found = set(self.common)
        for token in set(tokens):
            found.update(self.candidates.get(token, ()))
        return found

    def mean_size(self, sentences: Sequence[Sequence[int]]) -> float:
        """Candidates of a sentence on average."""
        return sum(len(self.of(tokens)) for tokens in sentences) / len(sentences)


def build_map(
    sources: Sentences,
    targets: Sentences,
    dictionaries: Dictionaries,
    number: int = CANDIDATES,
) -> VocabularyMap:
    """Candidates of each source type, and ``FREQUENT * number`` common ones.

    A symbol that both dictionaries have (a name, a number) is always a candidate of
    itself: this is also what a source type has that occurs in no pair.

    Args:
        number: most candidates of a source type, the most probable ones.
    """
    source, target = dictionaries
    table = lexical_table(sources, targets, len(source), len(target))
    order = np.lexsort((table.target, -table.probability, table.source))
    starts = np.searchsorted(table.source[order], np.arange(len(source) + 1))
    candidates = {}
    for type_, (symbol, begin, end) in enumerate(zip(vocabulary(source), starts[:-1], starts[1:])):
        found = table.target[order[begin : min(end, begin + number)]].tolist()
        same = target.indices.get(symbol)
        if same is not None and same >= target.nspecial and same not in found:
            found.append(same)
        if found:
            candidates[type_] = found
    counts = np.bincount(np.concatenate(targets), minlength=len(target))
    frequent = np.argsort(-counts, kind="stable")[: FREQUENT * number]
    return VocabularyMap(_with_special(frequent.tolist(), target), candidates)


def _with_special(common: List[int], target: Dictionary) -> List[int]:
    """With the types that a search needs, padding among them.

    CTranslate2 goes wrong when told to suppress a type that is no candidate, and
    expects the end of sentence in the same place in every batch.
    """
    special = [target.bos(), target.pad(), target.eos(), target.unk()]
    return [*special, *(type_ for type_ in common if type_ not in special)]


def check_names(dictionaries: Dictionaries, origin: str) -> None:
    """Refuse symbols that a line of the map can't hold.

    Args:
        origin: the option, for the message.

    Raises:
        UserError: names the first one.
    """
    for side, dictionary in zip(("source", "target"), dictionaries):
        for number, symbol in enumerate(vocabulary(dictionary)):
            if not symbol or set(symbol) & set(" \t\n"):
                raise UserError(
                    f"{origin}: type {number} of the {side} dictionary is {symbol!r}, and "
                    "a vocabulary map has no white space in symbols; leave the option out"
                )


def to_text(found: VocabularyMap, names: Tuple[Sequence[str], Sequence[str]]) -> str:
    """CTranslate2's form: a line with the source type, a tab, and the candidates.

    Args:
        names: symbols of the source and target types by number.
    """
    source, target = names
    lines = [("", found.common)]
    lines += [(source[type_], types) for type_, types in found.candidates.items()]
    return "".join(
        f"{symbol}\t{' '.join(target[type_] for type_ in types)}\n" for symbol, types in lines
    )


def from_text(
    text: str, names: Tuple[Sequence[str], Sequence[str]], target: Dictionary, origin: str
) -> VocabularyMap:
    """What :func:`to_text` wrote, or another program.

    Args:
        names: symbols of the source and target types by number.
        origin: option and folder, for the message.

    Raises:
        UserError: it is damaged, or of other dictionaries.
    """
    numbers = [{symbol: i for i, symbol in enumerate(side)} for side in names]
    found = VocabularyMap([], {})
    for number, line in enumerate(text.split("\n")[:-1]):
        symbol, tab, rest = line.partition("\t")
        types = [name for name in rest.split(" ") if name]
        unknown = [name for name in types if name not in numbers[1]]
        if symbol and symbol not in numbers[0]:
            unknown.insert(0, symbol)
        if unknown or not tab:
            reason = f"{unknown[0]!r} is in no vocabulary" if tab else "it has no tab"
            raise UserError(
                f"{origin}: line {number + 1} of its {VOCABULARY_MAP} is damaged ({reason}); "
                "export "
                "anew"
            )
        listed = [numbers[1][name] for name in types]
        if symbol:
            found.candidates[numbers[0][symbol]] = listed
        else:
            found.common.extend(listed)
    if not found.common or not text.endswith("\n"):
        raise UserError(f"{origin}: its {VOCABULARY_MAP} is not complete; export anew")
    return found._replace(common=_with_special(found.common, target))


def learn(task, number: int) -> VocabularyMap:
    """The map of ``--vocabulary-map``, from the training set of a fairseq task.

    Args:
        number: most candidates of a source type.

    Raises:
        UserError: there is no training set of pairs, or a symbol has white space.
    """
    option = f"--vocabulary-map {number}"
    dictionaries = task.source_dictionary, task.target_dictionary
    check_names(dictionaries, option)
    try:
        dataset = load_set(task, "train", option)
    except FileNotFoundError:
        raise UserError(
            f"{option}: DATA has no training set (train.*.bin) to learn it from; give "
            "the folder that the model was trained with, or leave it out"
        ) from None
    pairs = read_pairs(dataset) if dataset.tgt is not None else ([], [])
    if not pairs[0]:
        raise UserError(
            f"{option}: the training set of DATA has no pairs of 1 to {LONGEST} tokens "
            "to learn from; leave it out"
        )
    return build_map(*pairs, dictionaries, number)


def write(folder: str, found: VocabularyMap, dictionaries: Dictionaries) -> None:
    """Add the map to an exported model."""
    names = tuple(map(vocabulary, dictionaries))
    path = os.path.join(folder, VOCABULARY_MAP)
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        stream.write(to_text(found, names))


def check(
    translator,
    found: VocabularyMap,
    dictionaries: Dictionaries,
    sources: Sequence[Sequence[int]],
    limit: int,
    origin: str,
) -> None:
    """See that CTranslate2 reads the map as it was meant.

    Args:
        translator: ``ctranslate2.Translator`` of a folder that has the map.
        sources: type numbers of sentences, without end of sentence.
        limit: most target tokens.
        origin: option and file of the model, for the message.

    Raises:
        UserError: another type than the candidates was generated.
    """
    names = tuple(map(vocabulary, dictionaries))
    for source in sources:
        (result,) = translator.translate_batch(
            [[names[0][type_] for type_ in source]],
            beam_size=5,
            num_hypotheses=5,
            max_decoding_length=min(limit, 10),
            max_input_length=0,
            use_vmap=True,
            suppress_sequences=[[dictionaries[1].pad_word]],
        )
        words = {word for hypothesis in result.hypotheses for word in hypothesis}
        others = words - {names[1][type_] for type_ in found.of(source)}
        if others:
            raise UserError(
                f"{origin}: CTranslate2 does not read {VOCABULARY_MAP} as it was written "
                f"({min(others)!r} is no candidate); leave --vocabulary-map out"
            )
