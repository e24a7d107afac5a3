"""BABILong at any length, in tokens of the model under test: bAbI's facts between the sentences of a longer text.

Samples are made as NoiseInjectionDataset of booydar/babilong at 7a6efee makes them (babilong/babilong_utils.py):

- a story has at most an eighth as many lines as the length has tokens;
- a background sentence has ten tokens or more;
- each fact goes before a sentence that is drawn uniformly, and the facts keep their order;
- the last sentence is cut where the length is reached.

Unlike upstream, a length is in tokens of the model under test and holds the whole prompt and the answer (upstream
counts GPT-2's tokens, less 300), and each sample has its own random draws. The background is PG-19 if the haystack is
the published one, else generated prose. The prompts and labels are prompts.yaml.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from random import Random
from typing import Any, Literal

from anchoreval.errors import SourceError
from anchoreval.schema import Json, Sample, Segment, Wrap
from anchoreval.suites.babilong.stories import Story, background, stories
from anchoreval.suites.recipe import Recipe, options
from anchoreval.texts.filling import most, too_short

DataSet = Literal[
    "qa1", "qa2", "qa3", "qa4", "qa5", "qa6", "qa7", "qa8", "qa9", "qa10",
    "qa11", "qa12", "qa13", "qa14", "qa15", "qa16", "qa17", "qa18", "qa19", "qa20",
]  # fmt: skip
TOKENS_PER_LINE = 8  # of a story: longer stories than this allows are left out
LEAST_TOKENS = 10  # of a sentence of the background
MOST_SHORT = 10_000  # too short sentences in a row that are skipped before it is an error


@dataclass(frozen=True, slots=True)
class BabilongTask:
    """The `args` of a task card: which of bAbI's tasks."""

    data: DataSet


@cache
def wording() -> dict[str, dict[str, Any]]:
    """Return task -> `instruction`, `examples` and `post_prompt`, which stand before the context, and `labels`."""
    from anchoreval.cards.strict_yaml import read_yaml

    rows: dict[str, dict[str, Any]] = read_yaml(Path(__file__).with_name("prompts.yaml"))
    return rows


def opening(data: str) -> str:
    """Return the prompt of a task up to the context."""
    row = wording()[data]
    return f"{row['instruction']}\n\n{row['examples']}\n\n{row['post_prompt']}\n\n<context>\n"


def labels(data: str) -> list[str]:
    """Return the possible answers to a task."""
    return list(wording()[data]["labels"])


def prompt_of(data: DataSet, context: str, question: str, wrap: Wrap) -> tuple[Segment, ...]:
    """Return upstream's prompt with all its parts (get_formatted_input); the context is one document."""
    segments = (
        Segment("preamble", wrap.opening + opening(data)),
        Segment("document", context.strip()),
        Segment("query", f"\n</context>\n\nQuestion: {question.rstrip()}"),
        Segment("answer_prefix", wrap.closing),
    )
    return tuple(segment for segment in segments if segment.text)


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
    # a length that suits the shortest stories
    shortest = sorted(known, key=lambda story: (len(story.facts), sum(map(len, story.facts))))[: recipe.count]
    raise too_short(recipe.length, max(Mixture(recipe, task.data, 0, story).smallest for story in shortest))


class Mixture:
    """One story between background sentences. All its random draws follow from the seed and the story's number."""

    def __init__(self, recipe: Recipe, data: DataSet, number: int, story: Story) -> None:
        self.recipe, self.data, self.number, self.story = recipe, data, number, story
        self._sentences: list[str] = []
        self._long = self._long_sentences()

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
        room = recipe.room
        count = most(lambda n: self._count(self._text(n)), room, 0, room // (2 * LEAST_TOKENS)) or 0
        parts = self.parts(count)
        ends = [0, *(end for _, end in tokenizer.spans(self._upto(count + 1)[count]))]
        kept = most(lambda n: self._count(self._text(count + 1, ends[n])), room, 0, len(ends) // 2, len(ends) - 1)
        if kept:
            parts = self.parts(count + 1, ends[kept])
        context = " ".join(text for text, _ in parts)
        segments = prompt_of(self.data, context, self.story.question, recipe.wrap)
        tokens = recipe.counted(recipe.tokens_of(segments))
        # where the facts that the question needs stand: as shares of the context's characters, and in tokens
        starts = itertools.accumulate((len(text) + 1 for text, _ in parts), initial=0)
        needed = [start for start, (_, at) in zip(starts, parts, strict=False) if at in self.story.supporting]
        facts: dict[str, Json] = {"tokens": tokens, "story": self.number, "facts": len(self.story.facts)}
        facts |= {"source": f"bAbI {self.data} {self.story.number}"}  # several questions ask of one story
        facts |= {"background": recipe.sources.haystack}
        facts |= {"depths": [round(start / max(1, len(context)), 4) for start in needed]}
        facts |= {"token_positions": [tokenizer.count(segments[0].text + context[:start]) for start in needed]}
        facts |= {"labels": labels(self.data), "question": self.story.question}
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

    def _long_sentences(self) -> Iterator[str]:
        """Yield the background sentences that are long enough; raise SourceError if they are too rare."""
        short = 0
        for text in self._draws[1]:
            short = 0 if self.recipe.tokenizer.count(f" {text}") >= LEAST_TOKENS else short + 1
            if not short:
                yield text
            if short > MOST_SHORT:
                said = f"{MOST_SHORT} sentences of the background in a row are shorter than {LEAST_TOKENS} tokens"
                raise SourceError(f"{self.recipe.task}: {said}: use other texts")

    def _count(self, context: str) -> int:
        return self.recipe.tokens_of(prompt_of(self.data, context, self.story.question, self.recipe.wrap))
