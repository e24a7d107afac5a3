"""The classic passkey: a number hidden among five repeated sentences (Mohtashami & Jaggi 2023), as in LongLoRA.

Source: JIA-Lab-research/LongLoRA, passkey_retrivial.py (Apache-2.0). As upstream, the noise is cut by characters and
the place of the key is drawn. Here the noise has as many characters as fill the length, and the place is drawn from ten
strata.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from anchoreval.schema import Sample, Segment
from anchoreval.suites.recipe import Recipe, options, sample_of
from anchoreval.texts.filling import depth, most, too_short

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
QUESTION = "What is the pass key?"
CUE = " The pass key is"
HIGHEST = 50_000


@dataclass(frozen=True, slots=True)
class PasskeyTask:
    """The `args` of a task card: none."""


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples filled with noise to the character; raise LengthError if the texts around the noise do not fit."""
    options(recipe, PasskeyTask)
    for index in range(recipe.count):
        yield _sample(recipe, index)


def _sample(recipe: Recipe, index: int) -> Sample:
    key, place = Random(f"{recipe.seed}-passkey-{index}").randint(1, HIGHEST), depth(recipe.seed, "passkey", index)

    def segments(noise: int) -> list[Segment]:
        before = int(place * noise)
        document = f"{_noise(before)}\n{information(key)}\n{_noise(noise - before)}\n"
        return [
            Segment("preamble", recipe.wrap.opening + TASK),
            Segment("document", document),
            Segment("query", QUESTION + recipe.wrap.closing),
            Segment("answer_prefix", CUE),
        ]

    def tokens(noise: int) -> int:
        return recipe.tokenizer.count("".join(segment.text for segment in segments(noise)))

    room = recipe.room
    each = recipe.tokenizer.count(NOISE) / len(NOISE)
    noise = most(tokens, room, 0, int(max(0, room - tokens(0)) / each))
    if noise is None:
        raise too_short(recipe.length, tokens(0) + recipe.reserved)
    before = int(place * noise)
    position = recipe.tokenizer.count(f"{recipe.wrap.opening}{TASK}{_noise(before)}\n")
    facts = {"depths": [round(before / max(1, noise), 4)], "token_positions": [position]}
    return sample_of(recipe, index, segments(noise), str(key), facts)


def information(key: int) -> str:
    """Return the sentence to be found."""
    return f"The pass key is {key}. Remember it. {key} is the pass key."


def _noise(characters: int) -> str:
    """Return the first `characters` characters of the endless noise."""
    times = characters // (len(NOISE) + 1) + 1
    return " ".join([NOISE] * times)[:characters]
