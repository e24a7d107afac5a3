"""RULER's needle tasks, balanced: needles are stratified over depth, keys and values occur once, lengths are filled."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random

from anchoreval.schema import Sample
from anchoreval.suites.recipe import BASE, Recipe, options
from anchoreval.suites.ruler.niah import (
    NOISE,
    Kind,
    NeedleTask,
    NeedleWording,
    between_sentences,
    draw_one,
    needle,
    passage_of,
)
from anchoreval.suites.ruler_balanced.balanced import Sampler, Text, sample
from anchoreval.texts.draft import NIAH, NIAH_PREFIX, Draft, Piece, Tally, Template, interleaved
from anchoreval.texts.filling import new
from anchoreval.texts.passage import Essay, Prose, nearest
from anchoreval.texts.wordlists import AdjectiveNouns, pairs

NOISE_WORDS = tuple(NOISE.split(" "))
FILLER_LINES = 12  # lines of noise with more tokens than a line with a needle
LINE_TOKENS = 10  # fewer than any line has


def noise(words: int) -> str:
    """Return the first `words` words of endless lines of noise."""
    lines, rest = divmod(words, len(NOISE_WORDS))
    return "\n".join([NOISE] * lines + ([" ".join(NOISE_WORDS[:rest])] if rest else []))


def places(starts: Sequence[int], total: int, aims: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """Return for each sentence the line to put it before, so that it begins nearest to its share of all characters.

    `starts` are the start characters of the lines, ascending; `total` is the number of characters of the lines; `aims`
    and `sizes` are the shares and the characters of the sentences.
    """
    whole, inserted, lines = total + sum(sizes), 0, list[int]()
    for aim, size in zip(aims, sizes, strict=True):
        after = bisect_right(starts, aim * whole - inserted)
        around = range(max(0, after - 1), min(len(starts), after + 1))
        lines.append(nearest([(inserted + starts[at], at) for at in around], aim * whole, whole))
        inserted += size
    return sorted(lines)


class Needles:
    """The needles of one sample in the order of their depths, with the keys that are asked for and the references.

    `texts` are the needle sentences and `aims` their aimed depths, 0..1. No key or value is drawn twice.
    """

    def __init__(self, task: NeedleTask, rng: Random, names: AdjectiveNouns, aims: Sequence[float]) -> None:
        self._rng, self._names = rng, names
        self._seen: set[str] = set()
        self._guarded: list[str] = []
        count = max(task.keys, task.queries)
        keys = [self.draw(task.key_type, guarded=True) for _ in range(count)]
        values = [[self.draw(task.value_type, guarded=True) for _ in range(task.values)] for _ in keys]
        self.asked = keys[: task.queries]
        self.references = tuple(value for own in values[: task.queries] for value in own)
        texts = [needle(task.value_type, key, value) for key, own in zip(keys, values, strict=True) for value in own]
        answering, others = texts[: len(aims)], texts[len(aims) :]
        rng.shuffle(answering)
        rows = [(aim, text, True) for aim, text in zip(aims, answering, strict=True)]
        rows += [(rng.random(), text, False) for text in others]
        self.aims, self.texts, self._answers = zip(*sorted(rows), strict=True)

    def draw(self, kind: Kind, guarded: bool = False) -> str:
        """Draw a new key or value; later draws neither contain a guarded one nor are a part of it."""

        def apart(text: str) -> bool:
            return text not in self._seen and not any(text in each or each in text for each in self._guarded)

        drawn = new(lambda: draw_one(kind, self._rng, self._names), apart, f"{kind} to be keys and values")
        self._seen.add(drawn)
        self._guarded += [drawn] if guarded else []
        return drawn

    def answering(self, marks: Sequence[int]) -> list[int]:
        """Select from `marks`, one per needle, those of the needles that are asked for."""
        return [mark for mark, asked in zip(marks, self._answers, strict=True) if asked]


class InSentences(Text):
    """Needles between the sentences of an essay or of prose, whose last sentence is cut."""

    def __init__(self, needles: Needles, wording: NeedleWording, passage: Essay | Prose, most: int) -> None:
        self._needles, self._wording, self._passage, self.most = needles, wording, passage, most
        self.unit = "sentences" if isinstance(passage, Prose) else "words"

    def draft(self, units: int, words: int) -> Draft:
        """Return the draft; units are the words of an essay, or sentences of prose."""
        passage, needles = self._passage, self._needles
        text = passage.cut(units, words) if isinstance(passage, Prose) else passage.upto(units)
        sizes = list(accumulate((len(needle) + 1 for needle in needles.texts), initial=0))
        where = [text.boundary(aim, before, sizes[-1]) for aim, before in zip(needles.aims, sizes, strict=False)]
        document, marks = between_sentences(text, needles.texts, sorted(where))
        return self._wording.draft(needles.asked, needles.references, document, needles.answering(marks))

    def words(self, units: int) -> int:
        """Return the words of a sentence of prose less one; 0 for an essay, whose unit is the word."""
        return self._passage.words_of(units) - 1 if isinstance(self._passage, Prose) else 0


class InLines(Text):
    """Needles among lines of noise or of other needles; the last line is noise, cut after a word."""

    unit = "lines"

    def __init__(
        self, task: NeedleTask, needles: Needles, wording: NeedleWording, names: AdjectiveNouns, tally: Tally, most: int
    ) -> None:
        self._task, self._needles, self._wording, self._tally, self.most = task, needles, wording, tally, most
        self._noise = Piece(NOISE + "\n")
        self._others: list[Piece] = []

    def draft(self, units: int, words: int) -> Draft:
        """Return the draft; units are lines."""
        task, needles, texts = self._task, self._needles, self._needles.texts
        while task.haystack == "needle" and len(self._others) < units:
            key, value = needles.draw(task.key_type), needles.draw(task.value_type)
            self._others.append(Piece(needle(task.value_type, key, value) + "\n"))
        full, rest = divmod(words, len(NOISE_WORDS))
        others = [self._noise] * units if task.haystack == "noise" else self._others[:units]
        lines = [*others, *[self._noise] * full]
        last = Piece(noise(rest)) if rest else Piece(lines.pop().text[:-1])
        starts = list(accumulate((len(line.text) for line in lines), initial=0))
        where = places(starts, starts[-1] + len(last.text), needles.aims, [len(text) + 1 for text in texts])
        pieces, marks, start = interleaved(texts, where, lambda a, b: self._joined(lines[a:b]))
        pieces += [*self._joined(lines[start:]), last]
        return self._wording.draft(needles.asked, needles.references, pieces, needles.answering(marks))

    def _joined(self, lines: list[Piece]) -> list[Piece]:
        """Return the lines as pieces; the lines of noise at their end are one piece."""
        first = next((at for at, line in enumerate(lines) if line is self._noise), len(lines))
        return lines[:first] + ([self._tally.repeat(self._noise, len(lines) - first)] if first < len(lines) else [])

    def words(self, units: int) -> int:
        """Return the number of words of the lines of noise that may follow."""
        return len(NOISE_WORDS) * (1 if self._task.haystack == "noise" else FILLER_LINES)


def sampler(recipe: Recipe) -> Sampler:
    """Return the function that makes one sample of a needle task by its index."""
    task = options(recipe, NeedleTask)
    tally, names = Tally(recipe.tokenizer), pairs(recipe.sources.wordlists)
    wording = NeedleWording(task, Template.of(BASE, NIAH, NIAH_PREFIX, task.queries * task.values == 1))
    room, passage = recipe.room, passage_of(recipe, tally) if task.haystack == "essay" else None
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
