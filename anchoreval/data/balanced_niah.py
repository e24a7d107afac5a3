"""RULER's needle tasks, balanced: needles stratified over depth, keys and values that occur once, full length."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random

from anchoreval.data.balanced import Sampler, Text, sample
from anchoreval.data.interleave import interleaved
from anchoreval.data.passage import Essay, Prose, Sentences, nearest
from anchoreval.data.prose import sentences
from anchoreval.data.recipe import Recipe, options
from anchoreval.data.ruler_niah import (
    NOISE,
    Kind,
    NeedleTask,
    NeedleWording,
    between_sentences,
    draw_one,
    needle,
)
from anchoreval.data.ruler_templates import Draft
from anchoreval.data.tally import Piece, Tally
from anchoreval.data.words import AdjectiveNouns, pairs
from anchoreval.schema import Json, Sample

NOISE_WORDS = tuple(NOISE.split(" "))
FILLER_LINES = 12  # more lines of noise than a line of needle has the tokens of
LINE_TOKENS = 10  # fewer than any line has


def noise(words: int) -> str:
    """So many words of the lines of noise, which follow each other."""
    lines, rest = divmod(words, len(NOISE_WORDS))
    return "\n".join([NOISE] * lines + ([" ".join(NOISE_WORDS[:rest])] if rest else []))


def line_at(starts: Sequence[int], aim: float, total: int) -> int:
    """The line that begins nearest to the share `aim` of the `total` characters; `starts` are theirs, ascending."""
    after = bisect_right(starts, aim * total)
    around = range(max(0, after - 1), min(len(starts), after + 1))
    return nearest([(starts[at], at) for at in around], aim * total, total)


class Distinct:
    """Keys and values of a task, none drawn twice and none a part of another."""

    def __init__(self, rng: Random, names: AdjectiveNouns) -> None:
        self._rng, self._names = rng, names
        self._seen: set[str] = set()
        self._guarded: list[str] = []

    def draw(self, kind: Kind, guarded: bool = False) -> str:
        """A new one; later ones neither hold a guarded one nor are a part of it."""
        while True:
            drawn = draw_one(kind, self._rng, self._names)
            if drawn not in self._seen and not any(drawn in each or each in drawn for each in self._guarded):
                self._seen.add(drawn)
                self._guarded += [drawn] if guarded else []
                return drawn


class Needles:
    """The needles of one sample in the order of their depths, and what is asked."""

    def __init__(self, task: NeedleTask, rng: Random, names: AdjectiveNouns, aims: Sequence[float]) -> None:
        self.distinct = Distinct(rng, names)
        count = max(task.keys, task.queries)
        keys = [self.distinct.draw(task.key_type, guarded=True) for _ in range(count)]
        values = [[self.distinct.draw(task.value_type, guarded=True) for _ in range(task.values)] for _ in keys]
        self.asked = keys[: task.queries]
        self.references = tuple(value for own in values[: task.queries] for value in own)
        texts = [needle(task.value_type, key, value) for key, own in zip(keys, values, strict=True) for value in own]
        answering, others = texts[: len(aims)], texts[len(aims) :]
        rng.shuffle(answering)
        rows = [(aim, text, True) for aim, text in zip(aims, answering, strict=True)]
        rows += [(rng.random(), text, False) for text in others]
        self.rows = sorted(rows)

    @property
    def texts(self) -> list[str]:
        """The needle sentences by depth."""
        return [text for _, text, _ in self.rows]

    def answering(self, marks: Sequence[int]) -> list[int]:
        """Those of the marks, one per needle, whose needle is asked for."""
        return [mark for mark, (_, _, asked) in zip(marks, self.rows, strict=True) if asked]


class InSentences:
    """Needles between the sentences of an essay or of prose, whose last sentence is cut."""

    least = 1

    def __init__(self, needles: Needles, wording: NeedleWording, passage: Essay | Prose, most: int) -> None:
        self._needles, self._wording, self._passage, self.most = needles, wording, passage, most

    def draft(self, units: int, words: int) -> Draft:
        """Units are the words of an essay, else sentences."""
        text = self._text(units, words)
        places = [text.boundary(aim) for aim, _, _ in self._needles.rows]
        document, marks = between_sentences(text, self._needles.texts, places)
        found = self._needles
        return self._wording.draft(found.asked, found.references, document, found.answering(marks))

    def _text(self, units: int, words: int) -> Sentences:
        return self._passage.cut(units, words) if isinstance(self._passage, Prose) else self._passage.upto(units)

    def words(self, units: int) -> int:
        """An essay is fitted to the word at once."""
        return self._passage.words_of(units) - 1 if isinstance(self._passage, Prose) else 0

    def finish(self, draft: Draft, units: int) -> dict[str, Json]:
        """The unit."""
        return {"unit": "sentences" if isinstance(self._passage, Prose) else "words"}


class InLines:
    """Needles among lines of noise or of other needles; the last line is noise, cut after a word."""

    least = 1

    def __init__(
        self, task: NeedleTask, needles: Needles, wording: NeedleWording, names: AdjectiveNouns, tally: Tally, most: int
    ) -> None:
        self._task, self._needles, self._wording, self._tally, self.most = task, needles, wording, tally, most
        self._noise = Piece(NOISE + "\n")
        self._others: list[Piece] = []

    def draft(self, units: int, words: int) -> Draft:
        """Units are lines."""
        last = Piece(noise(words)) if words else Piece(self._line(units - 1).text[:-1])
        before = units if words else units - 1
        starts = list(accumulate((len(self._line(at).text) for at in range(before)), initial=0))
        total = starts[-1] + len(last.text)
        places = [line_at(starts, aim, total) for aim, _, _ in self._needles.rows]
        pieces, marks, start = interleaved(self._needles.texts, places, self._block)
        pieces += [*self._block(start, before), last]
        found = self._needles
        return self._wording.draft(found.asked, found.references, pieces, found.answering(marks))

    def _line(self, at: int) -> Piece:
        if self._task.haystack == "noise":
            return self._noise
        while len(self._others) <= at:
            key = self._needles.distinct.draw(self._task.key_type)
            value = self._needles.distinct.draw(self._task.value_type)
            self._others.append(Piece(needle(self._task.value_type, key, value) + "\n"))
        return self._others[at]

    def _block(self, start: int, end: int) -> list[Piece]:
        if self._task.haystack == "noise":
            return [self._tally.repeat(self._noise, end - start)] if end > start else []
        return [self._line(at) for at in range(start, end)]

    def words(self, units: int) -> int:
        """Words of the line of noise."""
        return len(NOISE_WORDS) * (1 if self._task.haystack == "noise" else FILLER_LINES)

    def finish(self, draft: Draft, units: int) -> dict[str, Json]:
        """The unit."""
        return {"unit": "lines"}


def sampler(recipe: Recipe) -> Sampler:
    """Makes any one sample of a needle task."""
    task = options(recipe, NeedleTask)
    tally, names, wording = Tally(recipe.tokenizer), pairs(recipe.sources.wordlists), NeedleWording(task)
    room, passage = recipe.length - recipe.max_new_tokens, _passage(recipe, tally) if task.haystack == "essay" else None
    haystack = recipe.sources.haystack if passage else task.haystack
    most = room if isinstance(passage, Essay) else max(1, room // (4 if passage else LINE_TOKENS))

    def draw(rng: Random, aims: Sequence[float]) -> Text:
        needles = Needles(task, rng, names, aims)
        if passage is not None:
            return InSentences(needles, wording, passage, most)
        return InLines(task, needles, wording, names, tally, most)

    def make(index: int) -> Sample:
        return sample(recipe, tally, index, draw, task.queries * task.values, {"haystack": haystack})

    return make


def _passage(recipe: Recipe, tally: Tally) -> Essay | Prose:
    if recipe.sources.haystack == "generated":
        return Prose(sentences(recipe.seed), tally)
    return Essay(recipe.sources.essay(), recipe.sources.sentence_splitter(), tally)
