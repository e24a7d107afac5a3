"""Needles of the suite `niah`: sentences whose answer is drawn anew for every sample, and the question for them.

The kinds are: `single`, a sentence to be recalled as in gkamradt's needle in a haystack; `multi`, several sentences
(LangChain's multi-needle retrieval in the same repository); `number`, the number of EasyContext's eval_needle.py, with
near misses; and `passkey`, LongLoRA's passkey.
"""

from __future__ import annotations

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
_OTHER_NAMES = ("lucky", "secret", "postal", "winning", "royal", "golden", "hidden", "final")
MOST_NEAR = 2 * len(_OTHER_NAMES)


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
        place = rng.choice(PLACES)
        answer = f"{rng.choice(DEEDS)} a {rng.choice(QUALITIES)} {rng.choice(THINGS)}"
        lead = f"The best thing to do in {place} is to"
        return Hidden((f"{lead} {answer}.",), (answer,), f"What is the best thing to do in {place}?", lead)

    if kind == "multi":
        place = rng.choice(PLACES)
        answers = tuple(f"{rng.choice(MANNERS)} {food}" for food in rng.sample(FOODS, needles))
        of, (are, s) = f"of the perfect {place} stew", ("are", "s") if needles > 1 else ("is", "")
        sentences = tuple(f"{text[0].upper()}{text[1:]} are one of the secret ingredients {of}." for text in answers)
        question = f"What {are} the secret ingredient{s} {of}?"
        return Hidden(sentences, answers, question, f"The secret ingredient{s} {of} {are}")

    if kind == "passkey":  # always with five digits: upstream's 1 to 50,000 has short numbers, easy to guess
        value = str(rng.randrange(10**4, 10**5))
        text = f"The pass key is {value}. Remember it. {value} is the pass key."
        return Hidden((text,), (value,), "What is the pass key?", "The pass key is")

    # A city's number. Near misses are, in turn, another city's number and this city's under another name.
    place, *others = rng.sample(PLACES, 1 + distractors)
    value, *values = map(str, rng.sample(range(10**6, 10**7), 1 + distractors))
    near = [
        f"The special {'magic' if at % 2 == 0 else _OTHER_NAMES[at // 2 % len(_OTHER_NAMES)]} "
        f"{other if at % 2 == 0 else place} number is: {another}."
        for at, (other, another) in enumerate(zip(others, values, strict=True))
    ]
    lead = f"The special magic {place} number is:"
    return Hidden((f"{lead} {value}.",), (value,), f"What is the special magic {place} number?", lead, tuple(near))
