"""A synchronous grammar: every rule builds a German phrase and its English translation together.

The constituents the rules build are in the package itself, the words in the lexicon.
"""

from functools import cache

from demo_corpus import (
    IT,
    Clause,
    Pair,
    Part,
    form_name,
    form_noun_phrase,
    form_pronominal,
    form_pronoun,
    form_subject,
    lexicon,
    punctuate,
)
from demo_corpus.lexicon import contract

SHORTEST, LONGEST = 4, 22  # words in a sentence of either language

# How often each kind of determiner is drawn, for each role of a noun phrase.
SUBJECT = {
    "definite": 44,
    "possessive": 14,
    "indefinite": 10,
    "this": 8,
    "numeral": 6,
    "every": 4,
    "many": 3,
    "all": 4,
    "some": 3,
    "genitive": 4,
}
OBJECT = {
    "definite": 32,
    "indefinite": 32,
    "possessive": 14,
    "numeral": 7,
    "this": 5,
    "many": 3,
    "some": 3,
    "genitive": 4,
}
SPECIFIC = {"definite": 50, "possessive": 25, "this": 15, "genitive": 10}
NEGATED = {"negative": 45, "definite": 30, "possessive": 15, "this": 10}
VAGUE = {"indefinite": 80, "many": 10, "numeral": 10}
THEME = {
    "definite": 48,
    "possessive": 18,
    "this": 14,
    "genitive": 6,
    "all": 6,
    "numeral": 4,
    "many": 4,
}
SETTING = {"definite": 80, "indefinite": 10, "possessive": 10}
EXISTING = {"indefinite": 45, "numeral": 20, "many": 15, "negative": 20}
HEAD = {"definite": 70, "indefinite": 20, "numeral": 10}  # of a relative clause
# Each determiner as German stem, English singular, English plural; None: no such form.
DETERMINERS = {
    "definite": ("d", "the", "the"),
    "this": ("dies", "this", "these"),
    "every": ("jed", "every", None),
    "all": ("all", None, "all the"),
    "many": ("viel", None, "many"),
    "some": ("einig", None, "some"),
    "negative": ("kein", "a", "any"),
    "which": ("welch", "which", "which"),
    "how many": ("wie viel", None, "how many"),
}
FREE_POSSESSIVES = (("mein", "my"), ("dein", "your"), ("unser", "our"), ("euer", "your"))
DEFINITES = ("definite", "possessive", "this", "genitive", "name", "pronoun", "relative")
FRONTED = ("relative", "which", "how many")  # noun phrases that come first in their clause
# Subjects that cannot be taken for objects.
CLEAR_PRONOUNS = ((1, "sg", ""), (2, "sg", ""), (3, "sg", "m"), (1, "pl", ""), (2, "pl", ""))

# What a copula may say of its subject.
PREDICATES = {"adjective": 50, "comparative": 16, "equal": 8, "age": 8, "job": 6, "place": 8}
PLAIN, STATES = {"adjective": 75, "place": 25}, {"adjective": 50, "place": 50}

TENSES = {
    "any": {
        "past": 36,
        "habitual": 18,
        "present": 14,
        "progressive": 14,
        "future": 10,
        "modal": 14,
        "modal past": 4,
        "perfect": 5,
        "liking": 5,
    },
    "past": {"past": 85, "modal past": 15},
    "present": {"habitual": 35, "present": 30, "progressive": 25, "modal": 30},
    "plain": {"past": 50, "present": 30, "progressive": 25, "modal": 10},
    "bare": {"present": 1},
    "condition": {"present": 80, "modal": 20},
    "infinitive": {"past": 1},
    "will": {"future": 45, "modal": 40, "habitual": 10, "present": 10},
}
# How often a place is a city, how often home, and which nouns it is otherwise: by
# a trait of the verb, else for an animal, else by what the place is to the action.
PLACES = {
    "town": (1, 0, ""),
    "home": (0.5, 0, "house hotel village city"),
    "market": (0.2, 0, "supermarket village city"),
    "at": (0.3, 0.1, "building airport town beach island"),
    "region": (0.4, 0, "city village island"),
    "animal": (0, 0.1, "green house kitchen room village"),
    "loc": (0.08, 0.1, "building room green town far airport"),
    "dir": (0, 0.1, "building room green town far airport"),
    "from": (0.3, 0, "building room green town far airport"),
}
# How likely a clause in each tense is to say when.
TIMING = {"past": 0.65, "future": 0.75, "modal": 0.35, "modal past": 0.4}


@cache
def governing(tags):
    """Return the verbs that take a person as subject and such a noun as object, with the object's index."""
    return tuple(
        (verb, index)
        for verb in lexicon.VERBS
        if "person" in verb.subjects
        for index, (kind, wanted) in enumerate(verb.complements)
        if wanted & tags and kind not in ("loc", "dir", "from", "on/dat", "on/acc")
    )


@cache
def taking(*kinds):
    """Return the verbs that have a person as subject and a complement of one of these kinds, with its index."""
    return tuple(
        (verb, index)
        for verb in lexicon.VERBS
        if "person" in verb.subjects
        for index, (kind, _) in enumerate(verb.complements)
        if kind in kinds
    )


@cache
def things(tags):
    """Return the countable inanimate nouns with one of the tags; none if persons have one of them, too."""
    nouns = lexicon.nouns_with(tags)
    return (
        ()
        if any("person" in noun.tags for noun in nouns)
        else tuple(noun for noun in nouns if noun.plural and "animal" not in noun.tags)
    )


PLACE_VERBS = (
    *(
        (verb, None)
        for verb in lexicon.VERBS
        if "place" in verb.traits and "person" in verb.subjects
    ),
    *taking("loc"),
)
COLOUR_WORDS = {
    adjective.english for adjective in lexicon.ADJECTIVES if adjective.lemma in lexicon.COLOURS
}
# What one can mean to do.
VOLUNTARY = tuple(
    verb
    for verb in lexicon.VERBS
    if "person" in verb.subjects
    and not verb.traits & {"simple", "unwanted"}
    and not any(kind in ("dir", "from", "loc") for kind, _ in verb.complements)
)
# Verbs whose object ends the English clause, so that a relative clause on it does no harm.
DESCRIBABLE = tuple(
    (verb, index)
    for verb, index in taking("acc", "auf/acc", "mit/dat", "über/acc")
    if not verb.particle
    and "to" not in verb.traits
    and len(verb.complements) == index + 1
    and not any("bare" in noun.tags for noun in lexicon.nouns_with(verb.complements[index][1]))
)


class Grammar:
    """Draws sentence pairs at random."""

    def __init__(self, random):
        self.random = random
        self.used = set()  # English nouns, names and predicative adjectives of the sentence, so that none comes twice

    def sentence(self):
        """Return the next sentence pair."""
        while True:
            self.used.clear()
            rule = self.pick(RULES)
            german, english, mark = rule(self)
            pair = Pair(punctuate(german, mark), punctuate(english, mark))
            if all(SHORTEST <= len(text.split()) <= LONGEST for text in pair):
                return pair

    def chance(self, probability):
        """Return True that often."""
        return self.random.random() < probability

    def pick(self, weights):
        """Draw a key of a dictionary of weights."""
        return self.random.choices(list(weights), list(weights.values()))[0]

    # Noun phrases

    def noun(self, tags):
        """Draw a noun that carries one of the tags, one not used yet if possible."""
        nouns = lexicon.nouns_with(tags)
        noun = self.random.choice(
            [noun for noun in nouns if noun.english not in self.used] or nouns
        )
        self.used.add(noun.english)
        return noun

    def name(self):
        """Draw a name that is not used yet, with its gender."""
        gender = self.random.choice("mf")
        name = self.random.choice([name for name in lexicon.NAMES[gender] if name not in self.used])
        self.used.add(name)
        return name, gender

    def number_word(self):
        """Draw a numeral, a small one more often."""
        return lexicon.numeral(
            self.random.randint(2, 12) if self.chance(0.85) else self.random.randint(13, 99)
        )

    def adjectives(self, noun):
        """Draw no, one or two adjectives that go with a noun."""
        fitting = [
            adjective
            for adjective in lexicon.adjectives_for(noun)
            if adjective.english not in self.used
        ]
        if not fitting or not self.chance(0.22):
            return ()
        adjective = self.random.choice(fitting)
        colours = [other for other in fitting if other.lemma in lexicon.COLOURS]
        if adjective.lemma in ("groß", "klein") and colours and self.chance(0.3):
            return adjective, self.random.choice(colours)
        return (adjective,)

    def noun_phrase(self, tags, weights, owner=None, number=None, relative=False, noun=None):
        """Draw a noun phrase; owner is the phrase that "sein" and "ihr" may refer back to."""
        noun = noun or self.noun(tags)
        if "bare" in noun.tags:
            return form_noun_phrase(noun, "sg", "indefinite", "", "")
        kind, mass = self.pick(weights), noun.plural is None
        if kind in ("numeral", "many", "all", "some", "every") and (mass or number):
            kind = "indefinite" if mass else "definite"
        if (
            kind in ("possessive", "genitive")
            and noun.english in lexicon.UNOWNED
            or kind == "genitive"
            and (noun.plural == noun.lemma or noun.lemma in lexicon.WEAK_NOUNS)
        ):
            kind = "definite"  # "Annas Lehrer" may be one or several
        number = number or ("pl" if not mass and self.chance(0.3) else "sg")
        if kind in ("numeral", "many", "all", "some", "how many"):
            number = "pl"
        elif kind == "every":
            number = "sg"
        if kind == "numeral":
            stem, english = self.number_word()
        elif kind == "possessive":
            bound = (owner.owner,) if owner and owner.owner else ()
            stem, english = self.random.choice((*FREE_POSSESSIVES, *bound, *bound, *bound))
        elif kind == "genitive":
            name, _ = self.name()
            stem, english = name + "s", name + "'s"
        elif kind == "indefinite":
            stem, english = ("ein", "a") if number == "sg" and not mass else ("", "")
        else:
            stem, singular, plural = DETERMINERS[kind]
            english = plural if number == "pl" or (mass and kind == "negative") else singular
        phrase = form_noun_phrase(noun, number, kind, stem, english, self.adjectives(noun))
        if relative:
            phrase.relative = self.relative(noun, number)
        return phrase

    def subject(self, tags, weights=SUBJECT):
        """Draw a subject."""
        if "weather" in tags:
            return IT
        roll = self.random.random() if "person" in tags else 1
        if roll < 0.3:
            return form_pronoun(*self.random.choice(list(lexicon.PRONOUN_TABLE)))
        if roll < 0.45:
            return form_name([self.name() for _ in range(2 if roll < 0.33 else 1)])
        return self.noun_phrase(tags, weights)

    def other_person(self, case, subject, tags, weights):
        """Draw an object: a pronoun or name if the tags allow persons, else a noun phrase."""
        roll = self.random.random() if "person" in tags else 1
        if roll < 0.22:
            # "sie" as an object would be "her" as well as "them"; "ich ... mich" would be reflexive
            return form_pronoun(
                *self.random.choice(
                    [
                        key
                        for key in lexicon.PRONOUN_TABLE
                        if (key[0] == 3 or key[0] != subject.person)
                        and (key != (3, "pl", "") or case == "dat")
                    ]
                )
            )
        if roll < 0.34:
            return form_name([self.name()])
        return self.noun_phrase(tags, weights, owner=subject)

    # Parts of the clause

    def place(self, mode, verb=None, kind=None):
        """Draw a place as a German and English phrase; the mode is "loc", "dir" or "from"."""
        kind = kind or next((trait for trait in PLACES if verb and trait in verb.traits), mode)
        cities, home, kinds = PLACES[kind]
        roll = self.random.random()
        if roll < cities:
            german, english = self.random.choice(lexicon.CITIES)
            preposition = {"loc": ("in", "in"), "dir": ("nach", "to"), "from": ("aus", "from")}[
                mode
            ]
            return f"{preposition[0]} {german}", f"{preposition[1]} {english}"
        if roll < cities + home:
            return ("zu Hause", "at home") if mode == "loc" else ("nach Hause", "home")
        noun = self.noun(frozenset(kinds.split()))
        rest, motion, english = lexicon.PLACE_PREPOSITIONS[noun.lemma]
        phrase = self.noun_phrase((), SETTING, number="sg", noun=noun)
        if verb and "at" in verb.traits and "town" not in noun.tags:
            english = "at"
        if mode == "loc":
            return contract(rest, phrase.german["dat"]), f"{english} {phrase.english}"
        if mode == "dir":
            return contract(
                motion, phrase.german["dat" if motion == "zu" else "acc"]
            ), f"to {phrase.english}"
        return contract(
            "aus" if rest == "in" else "von", phrase.german["dat"]
        ), f"from {phrase.english}"

    def complement(self, kind, tags, clause, weights, phrase=None):
        """Draw a complement of the verb, or make one of the given noun phrase."""
        subject, verb = clause.subject.phrase, clause.verb
        if kind in ("loc", "dir", "from"):
            return Part(*self.place(kind, verb), 7, 3, role="place" if kind == "loc" else "")
        if kind.startswith("on/"):
            surface = self.noun_phrase(frozenset(["furniture"]), SPECIFIC, number="sg")
            preposition = ("auf", "on") if self.chance(0.75) else ("neben", "next to")
            return Part(
                f"{preposition[0]} {surface.german[kind[3:]]}",
                f"{preposition[1]} {surface.english}",
                7,
                3,
            )
        preposition, _, case = kind.rpartition("/")
        if kind != "acc":
            weights = SPECIFIC if weights is NEGATED else OBJECT
        phrase = phrase or self.other_person(case, subject, tags, weights)
        english = phrase.full_english(phrase.english_object)
        if preposition:
            return Part(contract(preposition, phrase.german[case]), english, 7, 2, phrase, "object")
        if kind == "dat":
            rank = 1 if phrase.kind == "pronoun" else 3
            if len(verb.complements) > 1 and phrase.kind in FRONTED:  # "whom we gave the book to"
                return Part(phrase.german["dat"], english, rank, 3, phrase, "dat", "to")
            if "to" in verb.traits:
                return Part(phrase.german["dat"], f"to {english}", rank, 3, phrase, "dat")
            return Part(phrase.german["dat"], english, rank, 1, phrase, "dat")
        # indefinite objects stay close to the verb, behind negation and adjuncts
        rank = 1 if phrase.kind == "pronoun" else 4 if phrase.kind in DEFINITES else 6.8
        return Part(phrase.german["acc"], english, rank, 2, phrase, "acc")

    def time(self, tense):
        """Draw an expression that says when."""
        tense = {"modal past": "past", "perfect": "past"}.get(tense, tense)
        if tense in ("past", "habitual", "future") and self.chance(0.12):
            number = lexicon.numeral(self.random.randint(2, 12))
            return Part(f"um {number[0]} Uhr", f"at {number[1]} o'clock", 2, 9, role="time")
        if tense in ("past", "future") and self.chance(0.15):
            number, unit = self.number_word(), self.random.choice(lexicon.TIME_UNITS)
            if tense == "past":
                return Part(
                    f"vor {number[0]} {unit[0]}", f"{number[1]} {unit[1]} ago", 2, 9, role="time"
                )
            return Part(f"in {number[0]} {unit[0]}", f"in {number[1]} {unit[1]}", 2, 9, role="time")
        return Part(*self.random.choice(lexicon.TIMES[tense]), 2, 9, role="time")

    def mark_tense(self, clause, density, timed):
        """Add the adverbs and times a clause needs for its tense."""
        tense, word = clause.tense, None
        if tense == "progressive" and not self.chance(0.15):
            word = ("gerade", "")
        elif tense == "liking":
            word = ("gern", "")
        elif tense == "perfect":
            word = self.random.choice((("schon", "already"), ("noch nie", "never")))
        elif tense == "habitual" and (not timed or self.chance(0.5)):
            word = self.random.choice(lexicon.FREQUENCIES)
        if word:
            clause.adverb = word[1]
            clause.parts.append(
                Part(word[0], "", 2, 0, role="frequency" if tense == "habitual" else "")
            )
        elif (
            tense in ("progressive", "habitual")
            or timed
            and self.chance(TIMING.get(tense, 0) * density)
        ):
            clause.parts.append(self.time(tense))

    def adjoin(self, clause, density):
        """Add adjuncts of manner, company, benefit and place."""
        traits, subject = clause.verb.traits, clause.subject.phrase
        person = frozenset(["person"])
        if "with" in traits and self.chance(0.25 * density):
            companion = self.other_person("dat", subject, person, SPECIFIC)
            clause.parts.append(
                Part(f"mit {companion.german['dat']}", f"with {companion.english_object}", 6, 4)
            )
        elif "for" in traits and self.chance(0.25 * density):
            friend = self.other_person("acc", subject, person, SPECIFIC)
            clause.parts.append(
                Part(f"für {friend.german['acc']}", f"for {friend.english_object}", 6, 4)
            )
        elif "manner" in traits and clause.tense != "liking" and self.chance(0.25 * density):
            clause.parts.append(Part(*self.random.choice(lexicon.MANNERS), 6, 4))
        if "place" in traits and not clause.front and self.chance(0.3 * density):
            place = self.place(
                "loc",
                clause.verb,
                None if clause.verb.subjects & {"person", "weather"} else "animal",
            )
            clause.parts.append(Part(*place, 6.5, 5, role="place"))

    # Clauses

    def tense(self, verb, group, timed=True):
        """Draw a tense that suits the verb."""
        traits = verb.traits
        while True:
            tense = self.pick(TENSES[group])
            if "present" in traits:
                return "present"
            if not timed and tense not in ("past", "future", "modal", "modal past"):
                continue
            if "simple" in traits and tense in ("progressive", "perfect", "liking"):
                continue
            if "once" in traits and tense in ("habitual", "liking"):
                continue
            if tense.startswith("modal") and (
                "unwanted" in traits or not verb.subjects & {"person", "animal"}
            ):
                continue
            if tense == "liking" and ("person" not in verb.subjects or "unwanted" in traits):
                continue
            if tense == "present" and group == "any" and "simple" not in traits:
                continue
            return tense

    def clause(
        self,
        group="any",
        subject=None,
        verb=None,
        density=1.0,
        negatable=True,
        timed=True,
        filler=None,
    ):
        """Draw a clause.

        Density thins out its adjuncts.  The filler is the index of a complement and the noun phrase to make
        that of, or the whole part, which an index of None makes an adjunct.
        """
        while verb is None or (group == "past" and "present" in verb.traits):
            verb = self.random.choice(lexicon.VERBS)
        tense = self.tense(verb, group, timed)
        modal = self.random.choice(
            [modal for modal in lexicon.MODALS if tense != "modal past" or modal[2]]
        )
        subject = subject or self.subject(verb.subjects, SUBJECT)
        clause = Clause(form_subject(subject), verb, tense, modal)
        clause.negated = (
            negatable
            and tense in ("past", "present", "future", "modal", "modal past")
            and subject.kind in DEFINITES
            and self.chance(0.15)
        )
        weights = NEGATED if clause.negated else VAGUE if tense == "liking" else OBJECT
        index, thing = filler or (None, None)
        for position, (kind, tags) in enumerate(verb.complements):
            if position == index and isinstance(thing, Part):
                continue
            part = self.complement(
                kind, tags, clause, weights, thing if position == index else None
            )
            clause.parts.append(part)
            if position == index and thing.kind in FRONTED:
                clause.front = part
        if isinstance(thing, Part):
            clause.parts.append(thing)
            clause.front = thing
        if verb.reflexive:
            key = (subject.person, subject.number)
            # "jetzt freut sich der Mann", but "jetzt freut er sich"
            rank = 1 if subject.kind in ("pronoun", "relative") else -1
            clause.parts.append(Part(lexicon.REFLEXIVES.get(key, "sich"), "", rank, 0))
        self.mark_tense(clause, density, timed)
        if not clause.negated or self.chance(0.3):
            self.adjoin(clause, density)
        self.negate(clause)
        return clause

    def negate(self, clause):
        """Add "nicht" to a negated clause, unless it has "kein"."""
        if clause.negated and not any(
            part.phrase and part.phrase.kind == "negative" for part in clause.parts
        ):
            clause.parts.append(Part("nicht", "", 5, 0))

    def copula(self, group="any", kinds=None, relative=False):
        """Draw a clause with "sein" (or about a price); on request, of few kinds or with a relative clause."""
        tense = {"past": "past", "any": self.pick({"present": 70, "past": 30})}.get(
            group, "present"
        )
        kind = self.pick(kinds or (PREDICATES if group == "past" else {**PREDICATES, "price": 6}))
        adjective = self.random.choice(
            [
                adjective
                for adjective in lexicon.ADJECTIVES
                if (adjective.comparative or kind not in ("comparative", "equal"))
                and (adjective.lemma in lexicon.PASSING or kinds is not STATES)
            ]
        )
        self.used |= COLOUR_WORDS if adjective.english in COLOUR_WORDS else {adjective.english}
        tags = {
            "age": {"person", "animal", "building"},
            "price": {"goods", "car"},
            "job": {"person"},
            "place": {"person"},
        }.get(kind, adjective.tags)
        if relative:
            subject = self.noun_phrase(frozenset(tags), HEAD, relative=True)
        else:
            subject = self.subject(frozenset(tags), SPECIFIC if kind == "job" else THEME)
        if kind == "job" and (
            subject.number == "pl" or subject.kind == "pronoun" or subject.gender == "n"
        ):
            kind = "place"
        clause = Clause(
            form_subject(subject),
            lexicon.COST if kind == "price" else lexicon.BE,
            "present" if kind == "price" else tense,
        )
        clause.negated = (
            subject.kind in DEFINITES
            and self.chance(0.15)
            and kind in ("adjective", "comparative", "place", "equal")
        )
        predicate = self.predicate(kind, adjective, subject, clause.negated)
        clause.parts.append(Part(*predicate, 7, 1))
        if (
            clause.tense == "past"
            and self.chance(0.4)
            and (kind == "place" or adjective.lemma in lexicon.PASSING)
        ):
            clause.parts.append(Part(*self.random.choice(lexicon.TIMES["past"]), 2, 9, role="time"))
        self.negate(clause)
        return clause

    def predicate(self, kind, adjective, subject, negated):
        """Draw what a copula says of its subject."""
        german, english = adjective.lemma, adjective.english
        if kind == "place":
            return self.place("loc")
        if kind == "job":
            jobs = [
                noun
                for noun in lexicon.nouns_with(frozenset(["job"]))
                if noun.gender == subject.gender
            ]
            noun = self.random.choice(jobs)
            return noun.lemma, f"{lexicon.indefinite_article(noun.english)} {noun.english}"
        if kind in ("age", "price"):
            number = lexicon.numeral(
                self.random.randint(2, 99)
                if kind == "age" or self.chance(0.6)
                else 100 * self.random.randint(2, 9)
            )
            return (
                (f"{number[0]} Jahre alt", f"{number[1]} years old")
                if kind == "age"
                else (f"{number[0]} Euro", f"{number[1]} euros")
            )
        if kind in ("comparative", "equal"):
            classes = (
                frozenset(["person"])
                if subject.noun is None
                else adjective.tags & subject.noun.tags
            )
            other = self.noun_phrase(classes, SPECIFIC)
            if kind == "equal":
                return f"so {german} wie {other.german['nom']}", f"as {english} as {other.english}"
            return (
                f"{adjective.comparative} als {other.german['nom']}",
                f"{adjective.english_comparative} than {other.english}",
            )
        degrees = lexicon.DEGREES[:2] if negated else lexicon.DEGREES  # hardly "nicht ziemlich"
        degree = (
            self.random.choice(degrees) if self.chance(0.4) and adjective.comparative else ("", "")
        )
        return f"{degree[0]} {german}".strip(), f"{degree[1]} {english}".strip()

    def any_clause(self, group, density=0.4):
        """Draw a clause with a verb or with the copula."""
        return (
            self.copula(group, PLAIN) if self.chance(0.2) else self.clause(group, density=density)
        )

    def relative(self, noun, number):
        """Draw a relative clause on a noun."""
        forms = {
            case: lexicon.ending(lexicon.RELATIVE, case, noun.gender, number)
            for case in lexicon.CASES
        }
        person, roll = "person" in noun.tags, self.random.random()
        governors, subjects = governing(noun.tags), lexicon.verbs_for(noun.tags)
        if noun.lemma in lexicon.PLACE_PREPOSITIONS and (roll < 0.6 or not governors):
            preposition, _, english = lexicon.PLACE_PREPOSITIONS[noun.lemma]
            place = Part(f"{preposition} {forms['dat']}", f"{english} which", 7, 3, role="place")
            clause = self.settled(place, "plain")
        elif subjects and (roll < 0.45 or not governors):
            owner = form_noun_phrase(noun, number, "definite", "d", "the").owner
            head = form_pronominal(forms, "who" if person else "that", number, noun.gender, owner)
            clause = self.clause("plain", head, self.random.choice(subjects), density=0.3)
        else:
            verb, index = self.random.choice(governors)
            head = form_pronominal(forms, "whom" if person else "that", number, noun.gender)
            subject = self.subject(verb.subjects, SPECIFIC)
            # "die Katze, die die Frau sieht" could be read both ways
            if noun.tags & {"person", "animal"} and (number == "pl" or noun.gender != "m"):
                subject = form_pronoun(*self.random.choice(CLEAR_PRONOUNS))
            clause = self.clause("plain", subject, verb, 0.3, negatable=False, filler=(index, head))
        return Pair(clause.german("final"), clause.english())

    def settled(self, place, group):
        """Draw a clause about what happens at a given place."""
        verb, index = self.random.choice(PLACE_VERBS)
        return self.clause(group, verb=verb, density=0.3, negatable=False, filler=(index, place))

    # Sentences: each rule returns the German and English words and the final mark

    def in_order(self, clause):
        """Put a clause in order as a statement, sometimes with another part than the subject first."""
        fronts = (
            []
            if clause.subject.phrase.relative
            else [
                part for part in clause.parts if self.chance(0.35) and self.may_front(part, clause)
            ]
        )
        front = fronts[0] if fronts else None
        if front and front.role == "frequency":
            adverb, clause.adverb = clause.adverb, ""
            return Pair(
                clause.german("v2", front), clause.english(front=front._replace(english=adverb))
            )
        return Pair(
            clause.german("v2", front),
            clause.english(front=front if front and not front.phrase else None),
        )

    def may_front(self, part, clause):
        """Tell whether a part may open a statement: its case or meaning must not leave a doubt."""
        if part.role in ("time", "frequency"):
            return part.role == "time" or part.german in lexicon.OPENING_FREQUENCIES
        if part.role == "place":
            return clause.verb.base != "wohnen" and self.chance(0.4)
        phrase = part.phrase
        if (
            not phrase
            or phrase.kind not in ("definite", "possessive", "this", "many")
            or clause.negated
        ):
            return False  # the determiner has to show the case
        return self.chance(0.4) and (
            part.role == "dat"
            or part.role == "acc"
            and phrase.number == "sg"
            and phrase.gender == "m"
        )

    def statement(self):
        """A simple main clause."""
        return *self.in_order(self.copula() if self.chance(0.15) else self.clause()), "."

    def yes_no_question(self):
        """A question that asks whether."""
        clause = self.copula() if self.chance(0.2) else self.clause(negatable=False)
        return clause.german("v1"), clause.english("question"), "?"

    def gap(self):
        """Draw a clause that asks for one of its parts."""
        kind = self.pick(
            {
                "who": 18,
                "whom": 12,
                "what": 16,
                "to whom": 10,
                "where": 10,
                "where to": 6,
                "when": 12,
                "why": 12,
                "which": 10,
                "how many": 8,
            }
        )
        if kind == "who":
            who = form_pronominal({"nom": "wer"}, "who")
            verb = self.random.choice([verb for verb in lexicon.VERBS if "person" in verb.subjects])
            clause = self.clause(subject=who, verb=verb, density=0.5, negatable=False)
            clause.front = clause.subject
            return clause
        if kind in ("when", "why"):
            part = Part("wann", "when", 2, 9) if kind == "when" else Part("warum", "why", 2, 9)
            verb = self.random.choice(
                [verb for verb in lexicon.VERBS if "present" not in verb.traits]
            )
            return self.clause(
                verb=verb, density=0.4, negatable=False, timed=kind == "why", filler=(None, part)
            )
        if kind == "where":
            return self.settled(Part("wo", "where", 7, 5, role="place"), "any")
        if kind == "where to":
            verb, index = self.random.choice(taking("dir"))
            return self.clause(
                verb=verb, negatable=False, filler=(index, Part("wohin", "where", 7, 3))
            )
        return self.object_gap(kind)

    def object_gap(self, kind):
        """Draw a clause that asks for an object."""
        cases = {
            "whom": ("acc", "auf/acc", "an/acc", "mit/dat", "über/acc"),
            "to whom": ("dat",),
        }.get(kind, ("acc",))
        verb, index = self.random.choice(
            [
                (verb, index)
                for verb, index in taking(*cases)
                if (
                    "person" in verb.complements[index][1]
                    if "whom" in kind
                    else things(verb.complements[index][1])
                )
            ]
        )
        if "whom" in kind:
            phrase = form_pronominal({"acc": "wen", "dat": "wem"}, "who")
        elif kind == "what":
            phrase = form_pronominal({"acc": "was"}, "what")
        else:
            phrase = self.noun_phrase(
                (), {kind: 1}, noun=self.random.choice(things(verb.complements[index][1]))
            )
        return self.clause(verb=verb, density=0.5, negatable=False, filler=(index, phrase))

    def wh_question(self):
        """A question for a part of the clause."""
        clause = self.gap()
        return clause.german("v2"), clause.english("question"), "?"

    def adverbial_clause(self):
        """A main clause with a clause of cause, concession, condition or time."""
        conjunction, english = self.pick(
            {
                ("weil", "because"): 30,
                ("obwohl", "although"): 18,
                ("wenn", "if"): 28,
                ("bevor", "before"): 10,
                ("als", "when"): 14,
            }
        )
        group = {"als": "past"}.get(conjunction) or self.random.choice(("past", "present"))
        if (
            conjunction == "als"
        ):  # before the preterite of "sein", as "als" and the perfect go ill together
            adjunct, main = self.copula("past", STATES), self.clause("past", density=0)
        elif conjunction == "bevor":
            adjunct = self.clause(
                "past" if group == "past" else "bare",
                verb=self.random.choice(VOLUNTARY),
                density=0,
                negatable=False,
            )
            main = self.clause(group, verb=self.random.choice(VOLUNTARY), density=0.5)
        elif conjunction == "wenn":
            adjunct, main = self.any_clause("condition"), self.any_clause("will")
        else:
            adjunct, main = self.any_clause(group), self.any_clause(group)
        if self.chance(0.4):
            return (
                f"{conjunction} {adjunct.german('final')} , {main.german('v1')}",
                f"{english} {adjunct.english()} , {main.english()}",
                ".",
            )
        main = self.in_order(main)
        return (
            f"{main.german} , {conjunction} {adjunct.german('final')}",
            f"{main.english} {english} {adjunct.english()}",
            ".",
        )

    def matrix(self, kind, negated=False):
        """Draw the main clause that governs another one."""
        verb = self.random.choice(lexicon.MATRIX_VERBS[kind])
        clause = self.clause(verb=verb._replace(traits=frozenset(["present"])), negatable=False)
        if negated and verb.base == "wissen" and clause.subject.phrase.kind in DEFINITES:
            clause.negated = True
            self.negate(clause)
        return clause

    def reported(self):
        """A clause as the object of a verb of saying or knowing."""
        kind = self.pick({"dass": 45, "ob": 20, "wh": 35})
        matrix = self.matrix(
            "ob" if kind == "wh" else kind, negated=kind != "dass" and self.chance(0.7)
        )
        content = self.gap() if kind == "wh" else self.any_clause("any", density=0.7)
        word = {"dass": ("dass", "that"), "ob": ("ob", "whether")}.get(kind, ("", ""))
        asked = matrix.subject.phrase.person == 2 and not matrix.negated and self.chance(0.6)
        order, english, mark = ("v1", "question", "?") if asked else ("v2", "statement", ".")
        return (
            f"{matrix.german(order)} , {word[0]} {content.german('final')}",
            f"{matrix.english(english)} {word[1]} {content.english()}",
            mark,
        )

    def infinitive(self, subject):
        """Draw a clause to be put in the infinitive, about something one can mean to do."""
        verb = self.random.choice(VOLUNTARY)
        return self.clause("infinitive", subject, verb, density=0.3, negatable=False, timed=False)

    def purpose(self):
        """A main clause with an infinitive of purpose."""
        verb, _ = self.random.choice(taking("dir", "from"))
        main = self.clause(
            subject=self.subject(frozenset(["person"])), verb=verb, density=0.6, negatable=False
        )
        goal = self.infinitive(main.subject.phrase)
        main_pair = self.in_order(main)
        return (
            f"{main_pair.german} , um {goal.german('infinitive')}",
            f"{main_pair.english} {goal.english('infinitive')}",
            ".",
        )

    def attempt(self):
        """A verb like "versuchen" with an infinitive."""
        verb = self.random.choice(lexicon.MATRIX_VERBS["zu"])
        main = self.clause(
            "plain",
            verb=verb._replace(traits=frozenset(["simple", "unwanted"])),
            negatable=verb.base == "versuchen",
        )
        goal = self.infinitive(main.subject.phrase)
        pair = self.in_order(main)
        return (
            f"{pair.german} , {goal.german('infinitive')}",
            f"{pair.english} {goal.english('infinitive')}",
            ".",
        )

    def contrast(self):
        """Two main clauses with "aber"."""
        group = self.random.choice(("past", "present"))
        first, second = (
            self.in_order(self.any_clause(group, 0.6)),
            self.in_order(self.any_clause(group, 0.6)),
        )
        return (
            f"{first.german} , aber {second.german}",
            f"{first.english} , but {second.english}",
            ".",
        )

    def described_subject(self):
        """A main clause with a relative clause on its subject."""
        if self.chance(0.4):
            return *self.in_order(self.copula(relative=True)), "."
        verb = self.random.choice(
            [verb for verb in lexicon.VERBS if "weather" not in verb.subjects]
        )
        subject = self.noun_phrase(verb.subjects, HEAD, relative=True)
        return *self.in_order(self.clause(subject=subject, verb=verb, density=0.3)), "."

    def described_object(self):
        """A main clause with a relative clause on its object, which German puts behind the verb."""
        verb, index = self.random.choice(DESCRIBABLE)
        head = self.noun_phrase(verb.complements[index][1], HEAD, relative=True)
        bare = verb._replace(traits=verb.traits - {"with", "for", "place", "manner"})
        clause = self.clause("plain", verb=bare, density=0, negatable=False, filler=(index, head))
        return f"{clause.german('v2')} , {head.relative.german}", clause.english(), "."

    def existence(self):
        """What there is somewhere."""
        german, english = self.place("loc", kind="region")
        thing = self.noun_phrase(frozenset(["sight", "airport", "park"]), EXISTING)
        be, word = ("is" if thing.number == "sg" else "are"), thing.english
        if thing.kind == "negative":
            word = "no " + word.split(" ", 1)[1]
        elif self.chance(0.25):
            return f"gibt es {german} {thing.german['acc']}", f"{be} there {word} {english}", "?"
        if self.chance(0.5):
            return f"{german} gibt es {thing.german['acc']}", f"{english} there {be} {word}", "."
        return f"es gibt {german} {thing.german['acc']}", f"there {be} {word} {english}", "."

    def pleasure(self):
        """A thing that pleases somebody: what German makes the subject is the English object."""
        thing = self.noun_phrase(
            frozenset(["work", "text", "clothes", "town", "building", "car"]), SPECIFIC
        )
        person = self.other_person("dat", thing, frozenset(["person"]), SPECIFIC)
        tense, negated = self.random.choice(("present", "present", "past")), self.chance(0.2)
        rank = -1 if person.kind == "pronoun" else 3  # "gefällt uns das Auto?"
        german = Clause(form_subject(thing), lexicon.PLEASE, tense, negated=negated)
        pleased = Part(person.german["dat"], "", rank, 0, person, "dat")
        german.parts.append(pleased)
        self.negate(german)
        english = Clause(form_subject(person), lexicon.PLEASE, tense, negated=negated)
        english.parts.append(Part("", thing.english, 0, 2, thing, "acc"))
        if self.chance(0.25):
            return german.german("v1"), english.english("question"), "?"
        return german.german("v2", pleased if self.chance(0.3) else None), english.english(), "."


# How often each rule is used.
RULES = {
    Grammar.statement: 22,
    Grammar.yes_no_question: 8,
    Grammar.wh_question: 9,
    Grammar.adverbial_clause: 18,
    Grammar.reported: 12,
    Grammar.purpose: 5,
    Grammar.attempt: 5,
    Grammar.contrast: 6,
    Grammar.described_subject: 7,
    Grammar.described_object: 6,
    Grammar.existence: 3,
    Grammar.pleasure: 4,
}
