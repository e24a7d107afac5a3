"""Generated English: a haystack of any length, and documents with questions, for runs without published sources.

Everything follows from a seed: the text for a longer context continues the text for a shorter one. The text has no
number and no hyphenated word, so no sentence can be mistaken for a RULER needle. Scores on it are not comparable with
published scores; the run header and the board say so. The vocabulary is prose_words.txt.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from anchoreval.errors import LengthError
from anchoreval.texts.questions import Question
from anchoreval.texts.wordlists import read_lists

SENTENCES_PER_PARAGRAPH = (4, 9)
DRAWS = 100  # draws of a new name: for each short name that exists, then before names become one syllable longer
MOST_MIDDLES = 9  # syllables between the first and the last of a name
_LISTS = read_lists(Path(__file__).with_name("prose_words.txt"))
TOPICS = {name.removeprefix("topic "): things for name, things in _LISTS.items() if name.startswith("topic ")}
PEOPLE, PLURAL_PEOPLE = _LISTS["people"], frozenset(_LISTS["plural people"])
ADJECTIVES = _LISTS["adjectives"]
TRANSITIVE = tuple(zip(_LISTS["transitive past"], _LISTS["transitive plain"], strict=True))
INTRANSITIVE = _LISTS["intransitive"]
TIMES, REASONS, OPINIONS, LINKS = (_LISTS[name] for name in ("times", "reasons", "opinions", "links"))
OPENINGS, SENTENCES = _LISTS["openings"], _LISTS["sentences"]
SYLLABLES = tuple(_LISTS[f"syllables {place}"] for place in (1, 2, 3))  # of names of towns
FIRST_NAMES, OCCUPATIONS, INSTRUMENTS = (_LISTS[name] for name in ("first names", "occupations", "instruments"))


@dataclass(frozen=True, slots=True)
class Quiz:
    """Generated documents (`title` line excluded) and questions about them."""

    titles: tuple[str, ...]
    documents: tuple[str, ...]
    questions: tuple[Question, ...]


def paragraphs(seed: int) -> Iterator[tuple[str, ...]]:
    """Yield paragraphs without end, each a tuple of sentences about one place; the same for the same seed."""
    rng = random.Random(f"prose-{seed}")
    while True:
        place = rng.choice(tuple(TOPICS))
        count = rng.randint(*SENTENCES_PER_PARAGRAPH)
        yield (_opening(rng, place), *(_sentence(rng, place) for _ in range(count - 1)))


def sentences(seed: int) -> Iterator[str]:
    """Yield sentences without end, the paragraphs of `paragraphs(seed)` one after the other."""
    for paragraph in paragraphs(seed):
        yield from paragraph


def _a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _things(rng: random.Random, place: str) -> dict[str, str]:
    """Draw two different things of a place, most of them with an adjective, by their fields in a sentence."""
    first, second = (
        f"{rng.choice(ADJECTIVES)} {noun}" if rng.random() < 0.6 else noun for noun in rng.sample(TOPICS[place], 2)
    )
    return {"thing": first, "other": second, "a_thing": _a(first), "an_other": _a(second)}


def _opening(rng: random.Random, place: str) -> str:
    """Draw a first sentence that names the place."""
    person = rng.choice(PEOPLE)
    fields = {"place": place, "person": person, "was": "were" if person in PLURAL_PEOPLE else "was"}
    fields |= _things(rng, place)
    fields |= {"time": rng.choice(TIMES), "another_time": rng.choice(TIMES)}
    text = rng.choice(OPENINGS).format(**fields)
    return f"{text[0].upper()}{text[1:]}."


def _sentence(rng: random.Random, place: str) -> str:
    """Draw one grammatical sentence about the things and people of a place."""
    person, friend = rng.sample(PEOPLE, 2)
    fields = {"person": person, "friend": friend} | _things(rng, place)
    fields["past"], fields["plain"] = rng.choice(TRANSITIVE)
    fields |= {"does": rng.choice(INTRANSITIVE), "time": rng.choice(TIMES), "reason": rng.choice(REASONS)}
    fields |= {"opinion": rng.choice(OPINIONS), "link": rng.choice(LINKS)}
    fields |= {"second_opinion": rng.choice(OPINIONS), "third_opinion": rng.choice(OPINIONS)}
    mark = "." if rng.random() < 0.97 else "!"
    text = rng.choice(SENTENCES).format(**fields)
    return f"{text[0].upper()}{text[1:]}{mark}"


@cache
def _short_towns() -> frozenset[str]:
    """Return every name of three syllables, in lower case."""
    return frozenset("".join(parts).lower() for parts in itertools.product(*SYLLABLES))


class _Names:
    """Gives out names of towns, or of people who are called after a town; no name is given twice.

    All names of three syllables come first, then names with more syllables in the middle. The longer names hold no name
    of three syllables and no name given before, so that no answer stands inside another name.
    """

    def __init__(self, rng: random.Random, people: bool) -> None:
        self._rng, self._people, self._middles = rng, people, 1
        self._short = len(_short_towns()) * (len(FIRST_NAMES) if people else 1)
        self._given: set[str] = set()

    def new(self) -> str:
        """Return the next name; raise LengthError if there are no more."""
        first, middle, last = SYLLABLES
        while self._middles <= MOST_MIDDLES:
            draws = DRAWS
            if self._middles == 1:  # short names are drawn until all are given
                draws = DRAWS * self._short if len(self._given) < self._short else 0
            for _ in range(draws):
                called = f"{self._rng.choice(FIRST_NAMES)} " if self._people else ""
                town = "".join(self._rng.choice(part) for part in (first, *[middle] * self._middles, last))
                name = called + town
                if name not in self._given and not self._holds_another(town):
                    self._given.add(name)
                    return name
            self._middles += 1
        raise LengthError("there are no more names of towns and people")

    def _holds_another(self, town: str) -> bool:
        if self._middles == 1:
            return False
        inner = (town[start:end] for start, end in itertools.combinations(range(len(town) + 1), 2))
        return any(part.lower() in _short_towns() or part.capitalize() in self._given for part in inner)


def quiz(seed: int, hops: int, size: int = 400) -> Quiz:
    """Return `size` documents about invented people and towns, and one question per person.

    With one hop the answer stands in the person's document; with two, the person's document names a town and the
    town's document holds the answer. Documents alternate person, town; a person's town is the one that follows.
    """
    rng = random.Random(f"quiz-{hops}-{seed}")
    towns, people = _Names(rng, people=False), _Names(rng, people=True)
    titles: list[str] = []
    documents: list[str] = []
    questions: list[Question] = []
    for index in range(0, size, 2):
        person, town, river = people.new(), towns.new(), towns.new()
        job, instrument = rng.choice(OCCUPATIONS), rng.choice(INSTRUMENTS)
        mentor = people.new()
        life = [
            f"{person} was {_a(job)} who was born in {town}.",
            f"As a child {person} learned to play the {instrument}.",
            f"The {job} was taught by {mentor}.",
        ]
        place = [f"{town} is a town on the river {river}.", f"The mayor of {town} was once {mentor}."]
        titles += [person, town]
        documents += [_document(rng, life), _document(rng, place)]
        choices = (
            (f"In which town was {person} born?", town),
            (f"Which instrument did {person} learn to play?", instrument),
            (f"Who taught {person}?", mentor),
            (f"What was the occupation of {person}?", job),
        )
        if hops == 1:
            text, answer = rng.choice(choices)
            questions.append(Question(text, (answer,), (index,)))
        else:
            text = f"On which river is the town where {person} was born?"
            questions.append(Question(text, (river,), (index, index + 1)))
    return Quiz(tuple(titles), tuple(documents), tuple(questions))


def _document(rng: random.Random, facts: list[str]) -> str:
    """Return the facts in order, with two to five sentences of ordinary prose between and after them."""
    place = rng.choice(tuple(TOPICS))
    filler = [_sentence(rng, place) for _ in range(rng.randint(2, 5))]
    slots = sorted(rng.randint(0, len(facts)) for _ in filler)
    out: list[str] = []
    for at, fact in enumerate(facts):
        out.append(fact)
        out += [text for text, slot in zip(filler, slots, strict=True) if slot == at]
    out += [text for text, slot in zip(filler, slots, strict=True) if slot == len(facts)]
    return " ".join(out)
