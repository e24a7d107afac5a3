"""Needles in prose, asked about six times per document and scored by log-probability, without generation.

Six neighbouring samples share a document, so that backend hf prefills it once. Every seed here is below those of
training text (`anchoreval.training.tiny.ruler.TRAINING_SEED`): no training text is ever an evaluation text.

anchoreval run --model anchor-tiny --tasks examples/family/needles.yaml --lengths 512,2048 --arms fp32
anchoreval verify RUN --tasks examples/family/needles.yaml
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from random import Random

from anchoreval.errors import LengthError
from anchoreval.schema import Choice, Json, Role, Sample, Score, Segment
from anchoreval.suites import Generator, Recipe, Scorer, Suite
from anchoreval.suites.recipe import sample_of
from anchoreval.suites.ruler.niah import draw_one, needle
from anchoreval.texts.draft import NIAH, NIAH_PREFIX, Template
from anchoreval.texts.filling import most
from anchoreval.texts.prose import sentences
from anchoreval.texts.wordlists import pairs

NEEDLES, QUESTIONS = 8, 6
ROLES: tuple[Role, ...] = ("preamble", "document", "query", "answer_prefix")


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield the questions of one document after the other."""
    for first in range(0, recipe.count, QUESTIONS):
        yield from islice(_of_document(recipe, first // QUESTIONS), recipe.count - first)


def _of_document(recipe: Recipe, number: int) -> Iterator[Sample]:
    rng = Random(f"family-{recipe.seed}-{recipe.length}-{number}")
    names = pairs(recipe.sources.wordlists)
    facts = {draw_one("words", rng, names): draw_one("numbers", rng, names) for _ in range(NEEDLES)}
    shares = [rng.random() for _ in facts]
    prose = list(islice(sentences(1000 * recipe.seed + number), recipe.length // 4))  # more than fits
    template = Template.of(recipe.wrap, NIAH, NIAH_PREFIX, singular=True)

    def parts(units: int, key: str) -> tuple[str, str, str, str]:
        lines = prose[:units]
        for share, (hidden, value) in zip(shares, facts.items(), strict=True):
            lines.insert(round(share * len(lines)), needle("numbers", hidden, value))
        before, after, prefix = template.fill(values="number", query=key)
        return before, " ".join(lines), after, prefix

    longest = max(facts, key=lambda key: recipe.tokenizer.count("".join(parts(0, key)) + f" {facts[key]}"))

    def tokens(units: int) -> int:
        return recipe.tokenizer.count("".join(parts(units, longest)) + f" {facts[longest]}")

    units = most(tokens, recipe.room, 0, recipe.room // 16, len(prose))
    if units is None:
        raise LengthError(f"{recipe.length} tokens", tokens(0) + recipe.reserved)
    for at, key in enumerate(list(facts)[:QUESTIONS]):
        segments = [Segment(role, text) for role, text in zip(ROLES, parts(units, key), strict=True)]
        stated: dict[str, Json] = {"gold": 0, "source": number, "depths": [round(shares[at], 4)]}
        sample = sample_of(recipe, QUESTIONS * number + at, segments, facts[key], stated)
        yield replace(sample, choices=(Choice(f" {facts[key]}"),))  # the one choice is what is scored


def each_token_likeliest(_: str, __: Sequence[str], facts: Mapping[str, Json] = {}) -> Score:
    """Return 1 if each token of the right answer was the most likely one, else 0."""
    return Score(float(facts["choices"][0][1]))


SUITE = Suite(
    generators={"needles": Generator(generate, own_texts="examples/family")},
    scorers={"each_token_likeliest": Scorer(each_token_likeliest)},
)
