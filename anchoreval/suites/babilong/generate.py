"""BABILong at any length, in tokens of the model under test: bAbI's facts between the sentences of a longer text.

Samples are made as NoiseInjectionDataset of booydar/babilong at 7a6efee makes them (babilong/babilong_utils.py):

- a story has at most an eighth as many lines as the length has tokens;
- a background sentence has ten tokens or more;
- each fact goes before a sentence that is drawn uniformly, and the facts keep their order;
- the last sentence is cut where the length is reached.

Unlike upstream, a length is in tokens of the model under test and holds the whole prompt and the answer (upstream
counts GPT-2's tokens, less 300), and each sample has its own random draws. The background is PG-19 if the haystack is
the published one, else generated prose.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from anchoreval.errors import SourceError
from anchoreval.schema import Json, Sample, Segment
from anchoreval.suites.babilong.books import background
from anchoreval.suites.babilong.prompts import DataSet, judged_by, prompt_of
from anchoreval.suites.babilong.stories import Story, stories
from anchoreval.suites.recipe import Recipe, options
from anchoreval.texts.filling import most, too_short

TOKENS_PER_LINE = 8  # of a story: longer stories than this allows are left out
LEAST_TOKENS = 10  # of a sentence of the background
MOST_SHORT = 10_000  # too short sentences in a row that are skipped before it is an error


@dataclass(frozen=True, slots=True)
class BabilongTask:
    """The `args` of a task card: which of bAbI's tasks."""

    data: DataSet


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield the first stories that fit, in an order that the seed draws; raise LengthError if too few of them fit."""
    task = options(recipe, BabilongTask)
    known = stories(recipe.sources, task.data)
    if len(known) < recipe.count:
        raise SourceError(f"{recipe.task}: {recipe.count} stories were asked for, there are {len(known)}: --limit")
    order = list(range(len(known)))
    Random(f"{recipe.seed}-babilong-{task.data}").shuffle(order)
    drawn = (Mixture(recipe, task.data, number, known[number]) for number in order)
    index = 0
    for mixture in drawn:
        if mixture.smallest <= recipe.length:
            yield mixture.sample(index)
            index += 1
        if index == recipe.count:
            return
    raise too_short(recipe.length, _enough(recipe, task.data, known))


def _enough(recipe: Recipe, data: DataSet, known: Sequence[Story]) -> int:
    """Return a length in tokens that suits the `recipe.count` shortest stories."""
    shortest = sorted(known, key=lambda story: (len(story.facts), sum(map(len, story.facts))))[: recipe.count]
    return max(Mixture(recipe, data, 0, story).smallest for story in shortest)


def _long(sentences: Iterator[str], recipe: Recipe) -> Iterator[str]:
    short = 0
    for text in sentences:
        short = 0 if recipe.tokenizer.count(f" {text}") >= LEAST_TOKENS else short + 1
        if not short:
            yield text
        if short > MOST_SHORT:
            said = f"{MOST_SHORT} sentences of the background in a row are shorter than {LEAST_TOKENS} tokens"
            raise SourceError(f"{recipe.task}: {said}: use other texts")


class Mixture:
    """One story between background sentences. All its random draws follow from the seed and the story's number."""

    def __init__(self, recipe: Recipe, data: DataSet, number: int, story: Story) -> None:
        self.recipe, self.data, self.number, self.story = recipe, data, number, story
        self.room = recipe.room
        self._sentences: list[str] = []

    @cached_property
    def smallest(self) -> int:
        """The shortest length, in tokens, at which this story is used."""
        bare = self._count("") + TOKENS_PER_LINE * (len(self.story.facts) + 1)
        return max(bare, self._count(" ".join(self.story.facts))) + self.recipe.reserved

    @cached_property
    def _draws(self) -> tuple[list[float], Iterator[str]]:
        """(places of the facts as shares of the sentences, the background sentences)."""
        rng = Random(f"{self.recipe.seed}-babilong-{self.data}-{self.number}")
        shares = sorted(rng.random() for _ in self.story.facts)
        return shares, background(self.recipe.sources, rng, self.recipe.length)

    def sample(self, index: int) -> Sample:
        """Return the sample with as much background as fits."""
        recipe, tokenizer = self.recipe, self.recipe.tokenizer
        count = most(lambda n: self._count(self._text(n)), self.room, 0, self.room // (2 * LEAST_TOKENS)) or 0
        parts = self.parts(count)
        ends = [0, *(end for _, end in tokenizer.spans(self._upto(count + 1)[count]))]
        kept = most(lambda n: self._count(self._text(count + 1, ends[n])), self.room, 0, len(ends) // 2, len(ends) - 1)
        if kept:
            parts = self.parts(count + 1, ends[kept])
        context = " ".join(text for text, _ in parts)
        segments = self._segments(context)
        tokens = recipe.counted(tokenizer.count("".join(segment.text for segment in segments)))
        facts: dict[str, Json] = {"tokens": tokens, "story": self.number, "facts": len(self.story.facts)}
        facts |= {"source": f"bAbI {self.data} {self.story.number}"}  # several questions ask of one story
        facts |= {"background": recipe.sources.haystack} | self._places(parts, segments[0].text, len(context))
        facts |= judged_by(self.data, self.story.question)
        return recipe.sample(index, segments, (self.story.answer,), facts)

    def parts(self, count: int, cut: int | None = None) -> list[tuple[str, int | None]]:
        """Return the facts between `count` sentences, the last of them cut to `cut` characters.

        Each part is (text, index of the fact in the story; None for a sentence of the background).
        """
        sentences = list(self._upto(count)[:count])
        if cut is not None:
            sentences[-1] = sentences[-1][:cut]
        slots = [int(share * (count + 1)) for share in self._draws[0]]
        parts: list[tuple[str, int | None]] = []
        at = 0
        for slot in range(count + 1):
            while at < len(slots) and slots[at] == slot:
                parts.append((self.story.facts[at], at))
                at += 1
            if slot < count and sentences[slot]:
                parts.append((sentences[slot], None))
        return parts

    def _text(self, count: int, cut: int | None = None) -> str:
        return " ".join(text for text, _ in self.parts(count, cut))

    def _upto(self, count: int) -> list[str]:
        """Return at least the first `count` sentences of the background."""
        self._sentences += itertools.islice(self._long, max(0, count - len(self._sentences)))
        return self._sentences

    @cached_property
    def _long(self) -> Iterator[str]:
        """The background sentences that are long enough; SourceError if they are too rare."""
        return _long(self._draws[1], self.recipe)

    def _segments(self, context: str) -> tuple[Segment, ...]:
        return prompt_of(self.data, context, self.story.question, self.recipe.wrap)

    def _count(self, context: str) -> int:
        return self.recipe.tokenizer.count("".join(segment.text for segment in self._segments(context)))

    def _places(self, parts: Sequence[tuple[str, int | None]], before: str, size: int) -> dict[str, Json]:
        """Return where the facts that the question needs stand: as shares of the context's characters and in tokens.

        `before` is the text in front of the context and `size` the context's characters.
        """
        starts = itertools.accumulate((len(text) + 1 for text, _ in parts), initial=0)
        needed = [start for start, (_, at) in zip(starts, parts, strict=False) if at in self.story.supporting]
        context = " ".join(text for text, _ in parts)
        return {
            "depths": [round(start / max(1, size), 4) for start in needed],
            "token_positions": [self.recipe.tokenizer.count(before + context[:start]) for start in needed],
        }
