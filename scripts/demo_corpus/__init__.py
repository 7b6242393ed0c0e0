"""A German-English corpus drawn from a synchronous grammar: the constituents that its rules build.

A clause is a bag of parts, each in both languages, with its rank in the German
middle field and its slot in the English verb phrase.  One clause can thus be
put in order as a main clause, a question, a subordinate clause or an infinitive.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from demo_corpus import lexicon


class Pair(NamedTuple):
    """A phrase or sentence in both languages."""

    german: str
    english: str


@dataclass
class NounPhrase:
    """A noun phrase or pronoun with the features it agrees in."""

    german: dict  # by case
    english: str
    english_object: str = ""
    person: int = 3
    number: str = "sg"
    gender: str = "n"
    kind: str = "definite"
    noun: lexicon.Noun | None = None
    owner: tuple | None = None  # the possessives that refer back to it
    relative: Pair | None = None

    def full_english(self, text):
        """Return the English text of the phrase followed by its relative clause, if it has one."""
        return f"{text} {self.relative.english}" if self.relative else text


class Part(NamedTuple):
    """A constituent of a clause; ranks and slots say where each language puts it."""

    german: str
    english: str
    rank: float
    slot: float
    phrase: NounPhrase | None = None
    role: str = ""
    stranded: str = ""  # the preposition an English question leaves behind


@dataclass
class Clause:
    """A clause whose parts are not in order yet."""

    subject: Part
    verb: lexicon.Verb
    tense: str
    modal: tuple = ()
    parts: list = field(default_factory=list)
    negated: bool = False
    adverb: str = ""  # the English adverb before the main verb
    front: Part | None = None  # a relative or interrogative that has to come first

    def german(self, order, front=None):
        """Put the German clause in order: "v2", "v1", "final" (finite verb) or "infinitive"."""
        phrase = self.subject.phrase
        finite, closing, prefix = lexicon.german_predicate(
            self.verb, self.tense, self.modal, phrase.person, phrase.number
        )
        front = front or self.front or (self.subject if order == "v2" else None)
        parts = [part for part in [self.subject, *self.parts] if part is not front]
        if order == "infinitive":
            parts.remove(self.subject)
        middle = [part.german for part in sorted(parts, key=lambda part: part.rank)]
        if order == "infinitive":
            return " ".join([*middle, self.verb.zu_infinitive])
        opening = [front.german] if front else []
        if front and front is self.subject and phrase.relative:
            opening.append(f", {phrase.relative.german} ,")
        if order == "final":
            return " ".join(filter(None, [*opening, *middle, closing, prefix + finite]))
        return " ".join(filter(None, [*opening, finite, *middle, closing, prefix]))

    def english(self, order="statement", front=None):
        """Put the English clause in order: "statement", "question" or "infinitive"."""
        phrase, verb = self.subject.phrase, self.verb
        auxiliary, head, after = lexicon.english_predicate(
            verb, self.tense, self.modal, phrase.person, phrase.number
        )
        front = front or self.front
        inverted = order == "question" and front is not self.subject
        if auxiliary is None and (self.negated or inverted):
            past = self.tense in ("past", "modal past")
            auxiliary = (
                "did" if past else "does" if (phrase.person, phrase.number) == (3, "sg") else "do"
            )
        subject = [phrase.full_english(phrase.english)]
        words = [front.english] if front and front is not self.subject else []
        if order == "infinitive":
            words = ["to", after]
        elif auxiliary is None:
            words += [*subject, self.adverb, head]
        else:
            negation = ["not"] if self.negated else []
            words += (
                [auxiliary, *subject, *negation] if inverted else [*subject, auxiliary, *negation]
            )
            words += [self.adverb, after]
        words.append(verb.preposition)
        pronoun = any(part.role == "acc" and part.phrase.kind == "pronoun" for part in self.parts)
        words += [] if pronoun else [verb.particle]
        for part in sorted(self.parts, key=lambda part: part.slot):
            words.append(part.stranded if part is front else part.english)
            if part.role == "acc" and pronoun:
                words.append(verb.particle)
        return " ".join(filter(None, words)).replace("can not", "cannot")


def punctuate(words, mark):
    """Make a sentence of a clause whose commas still stand alone."""
    text = " ".join(words.split()).replace(" ,", ",").replace(",,", ",").rstrip(",")
    return text[0].upper() + text[1:] + mark


def form_pronoun(person, number, gender=""):
    """Return a personal pronoun as a noun phrase."""
    *german, english, english_object, possessive, stem = lexicon.PRONOUN_TABLE[
        person, number, gender
    ].split()
    possessives = (stem, possessive) if person == 3 else None
    return NounPhrase(
        dict(zip(lexicon.CASES, german)),
        english,
        english_object,
        person,
        number,
        gender,
        "pronoun",
        owner=possessives,
    )


def form_name(names):
    """Return a noun phrase for one (name, gender) or for several joined by "and"."""
    german, english = (
        " und ".join(name for name, _ in names),
        " and ".join(name for name, _ in names),
    )
    single = len(names) == 1
    owner = (
        (("sein", "his") if names[0][1] == "m" else ("ihr", "her")) if single else ("ihr", "their")
    )
    return NounPhrase(
        dict.fromkeys(lexicon.CASES, german),
        english,
        english,
        3,
        "sg" if single else "pl",
        names[0][1],
        "name",
        owner=owner,
    )


def form_noun_phrase(noun, number, kind, stem, english, adjectives=()):
    """Inflect determiner, adjectives and noun in both languages."""
    german = {}
    for case in lexicon.CASES:
        suffix = lexicon.adjective_ending(stem, case, noun.gender, number)
        german[case] = " ".join(
            filter(
                None,
                [
                    lexicon.determiner(stem, case, noun.gender, number),
                    *(adjective.german(suffix) for adjective in adjectives),
                    noun.german(case, number),
                ],
            )
        )
    words = [
        *(adjective.english for adjective in adjectives),
        noun.english if number == "sg" else noun.english_plural,
    ]
    if english == "a":
        english = lexicon.indefinite_article(words[0])
    text = " ".join(filter(None, [english, *words]))
    owner = None
    if "person" in noun.tags:
        owner = {"m": ("sein", "his"), "f": ("ihr", "her"), "n": None}[noun.gender]
        owner = owner if number == "sg" else ("ihr", "their")
    return NounPhrase(german, text, text, 3, number, noun.gender, kind, noun, owner)


def form_pronominal(german, english, number="sg", gender="n", owner=None):
    """Return a relative or interrogative pronoun as a noun phrase."""
    return NounPhrase(german, english, english, 3, number, gender, "relative", owner=owner)


def form_subject(phrase):
    """Return the part that a noun phrase is as a subject."""
    return Part(phrase.german["nom"], phrase.english, 0, 0, phrase, "subject")


# The subject of the weather.
IT = NounPhrase(dict.fromkeys(lexicon.CASES, "es"), "it", kind="pronoun")
