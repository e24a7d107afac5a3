"""The classic passkey: a number hidden among five repeated sentences (Mohtashami & Jaggi 2023), as in LongLoRA.

Source: JIA-Lab-research/LongLoRA, passkey_retrivial.py (Apache-2.0). As upstream, the noise is cut by characters and
the place of the key is drawn. Here the noise has as many characters as fill the length, and the place is drawn from ten
strata.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random

from anchoreval.schema import Sample, Segment
from anchoreval.suites.recipe import NoArgs, Recipe, options, sample_of
from anchoreval.suites.ruler.niah import NOISE
from anchoreval.texts.filling import depth

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n"
)
QUESTION = "What is the pass key?"
CUE = " The pass key is"
HIGHEST = 50_000


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples filled with noise to the character; raise LengthError if the texts around the noise do not fit."""
    options(recipe, NoArgs)
    for index in range(recipe.count):
        key, place = Random(f"{recipe.seed}-passkey-{index}").randint(1, HIGHEST), depth(recipe.seed, "passkey", index)
        tokens = partial(_tokens, recipe, key, place)
        each = recipe.tokenizer.count(NOISE) / len(NOISE)
        noise = recipe.most_units(tokens, 0, int(max(0, recipe.room - tokens(0)) / each))
        before = int(place * noise)
        position = recipe.tokenizer.count(f"{recipe.wrap.opening}{TASK}{_noise(before)}\n")
        facts = {"depths": [round(before / max(1, noise), 4)], "token_positions": [position]}
        yield sample_of(recipe, index, _segments(recipe, key, place, noise), str(key), facts)


def _segments(recipe: Recipe, key: int, place: float, noise: int) -> list[Segment]:
    """Return the prompt with the key behind the share `place` of so many characters of noise."""
    before = int(place * noise)
    information = f"The pass key is {key}. Remember it. {key} is the pass key."
    return [
        Segment("preamble", recipe.wrap.opening + TASK),
        Segment("document", f"{_noise(before)}\n{information}\n{_noise(noise - before)}\n"),
        Segment("query", QUESTION + recipe.wrap.closing),
        Segment("answer_prefix", CUE),
    ]


def _tokens(recipe: Recipe, key: int, place: float, noise: int) -> int:
    return recipe.tokens_of(_segments(recipe, key, place, noise))


def _noise(characters: int) -> str:
    """Return the first `characters` characters of the endless noise."""
    times = characters // (len(NOISE) + 1) + 1
    return " ".join([NOISE] * times)[:characters]
