"""Needles of the suite `niah`: sentences whose answer is drawn anew for every sample, and the question for them.

The kinds are: `single`, a sentence to be recalled as in gkamradt's needle in a haystack; `multi`, several sentences
(LangChain's multi-needle retrieval in the same repository); `number`, the number of EasyContext's eval_needle.py, with
near misses; and `passkey`, LongLoRA's passkey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from anchoreval.texts.wordlists import read_lists

Kind = Literal["single", "multi", "number", "passkey"]

_LISTS = read_lists(Path(__file__).with_suffix(".txt"))
PLACES, DEEDS, QUALITIES, THINGS = (_LISTS[name] for name in ("places", "deeds", "qualities", "things"))
MANNERS, FOODS = _LISTS["manners"], _LISTS["foods"]
MOST = len(FOODS)  # needles of the kind "multi"


@dataclass(frozen=True, slots=True)
class Hidden:
    """The needles of a sample: `sentences` by depth, an answer for each of them in `answers`, and `near` misses."""

    sentences: tuple[str, ...]
    answers: tuple[str, ...]
    question: str
    lead: str
    near: tuple[str, ...] = ()


def draw(kind: Kind, rng: Random, needles: int = 1, distractors: int = 0) -> Hidden:
    """Draw needles; `needles` applies to the kind "multi" only and `distractors` to "number" only."""
    if kind == "single":
        return _deed(rng)
    if kind == "multi":
        return _ingredients(rng, needles)
    return _passkey(rng) if kind == "passkey" else _number(rng, distractors)


def _deed(rng: Random) -> Hidden:
    place = rng.choice(PLACES)
    answer = f"{rng.choice(DEEDS)} a {rng.choice(QUALITIES)} {rng.choice(THINGS)}"
    lead = f"The best thing to do in {place} is to"
    return Hidden((f"{lead} {answer}.",), (answer,), f"What is the best thing to do in {place}?", lead)


def _ingredients(rng: Random, needles: int) -> Hidden:
    place = rng.choice(PLACES)
    answers = tuple(f"{rng.choice(MANNERS)} {food}" for food in rng.sample(FOODS, needles))
    several = needles > 1
    of = f"of the perfect {place} stew"
    sentences = tuple(f"{_capital(answer)} are one of the secret ingredients {of}." for answer in answers)
    question = f"What {'are' if several else 'is'} the secret ingredient{'s' * several} {of}?"
    return Hidden(sentences, answers, question, f"The secret ingredient{'s' * several} {of} {_are(several)}")


def _are(several: bool) -> str:
    return "are" if several else "is"


def _number(rng: Random, distractors: int) -> Hidden:
    """Draw a city's number; near misses are, in turn, another city's number and this city's under another name."""
    place, *others = rng.sample(PLACES, 1 + distractors)
    values = _different(rng, 10**6, 10**7, 1 + distractors)
    near = [
        f"The special {'magic' if at % 2 == 0 else _OTHER_NAMES[at // 2 % len(_OTHER_NAMES)]} "
        f"{other if at % 2 == 0 else place} number is: {value}."
        for at, (other, value) in enumerate(zip(others, values[1:], strict=True))
    ]
    lead = f"The special magic {place} number is:"
    question = f"What is the special magic {place} number?"
    return Hidden((f"{lead} {values[0]}.",), (values[0],), question, lead, tuple(near))


_OTHER_NAMES = ("lucky", "secret", "postal", "winning", "royal", "golden", "hidden", "final")
MOST_NEAR = 2 * len(_OTHER_NAMES)


def _passkey(rng: Random) -> Hidden:
    """Draw LongLoRA's sentence, always with five digits: upstream's 1 to 50,000 has short numbers, easy to guess."""
    value = str(rng.randrange(10**4, 10**5))
    needle = f"The pass key is {value}. Remember it. {value} is the pass key."
    return Hidden((needle,), (value,), "What is the pass key?", "The pass key is")


def _different(rng: Random, low: int, high: int, count: int) -> list[str]:
    return [str(value) for value in rng.sample(range(low, high), count)]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def found_in(answers: Sequence[str], text: str) -> bool:
    """Return True if any answer occurs in the text, ignoring case, as the scorer looks for answers."""
    lowered = text.lower()
    return any(answer.lower() in lowered for answer in answers)
