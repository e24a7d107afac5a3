"""RULER's needle tasks, balanced: needles are stratified over depth, keys and values occur once, lengths are filled."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from random import Random

from anchoreval.schema import Json, Sample
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
from anchoreval.texts.passage import Essay, Prose, Sentences, nearest
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


class Distinct:
    """Draws keys and values of a task; none is drawn twice, and no guarded one is a part of another."""

    def __init__(self, rng: Random, names: AdjectiveNouns) -> None:
        self._rng, self._names = rng, names
        self._seen: set[str] = set()
        self._guarded: list[str] = []

    def draw(self, kind: Kind, guarded: bool = False) -> str:
        """Draw a new key or value; later draws neither contain a guarded one nor are a part of it."""
        drawn = new(lambda: draw_one(kind, self._rng, self._names), self._apart, f"{kind} to be keys and values")
        self._seen.add(drawn)
        self._guarded += [drawn] if guarded else []
        return drawn

    def _apart(self, drawn: str) -> bool:
        return drawn not in self._seen and not any(drawn in each or each in drawn for each in self._guarded)


class Needles:
    """The needles of one sample in the order of their depths, with the keys that are asked for and the references."""

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
        """The needle sentences in the order of their depths."""
        return [text for _, text, _ in self.rows]

    @property
    def aims(self) -> list[float]:
        """The aimed depths of the needle sentences, 0..1."""
        return [aim for aim, _, _ in self.rows]

    def answering(self, marks: Sequence[int]) -> list[int]:
        """Select from `marks`, one per needle, those of the needles that are asked for."""
        return [mark for mark, (_, _, asked) in zip(marks, self.rows, strict=True) if asked]


class InSentences:
    """Needles between the sentences of an essay or of prose, whose last sentence is cut."""

    least = 1

    def __init__(self, needles: Needles, wording: NeedleWording, passage: Essay | Prose, most: int) -> None:
        self._needles, self._wording, self._passage, self.most = needles, wording, passage, most

    def draft(self, units: int, words: int) -> Draft:
        """Return the draft; units are the words of an essay, or sentences of prose."""
        text = self._text(units, words)
        sizes = list(accumulate((len(needle) + 1 for needle in self._needles.texts), initial=0))
        rows = zip(self._needles.rows, sizes, strict=False)
        where = sorted(text.boundary(aim, before, sizes[-1]) for (aim, _, _), before in rows)
        document, marks = between_sentences(text, self._needles.texts, where)
        needles = self._needles
        return self._wording.draft(needles.asked, needles.references, document, needles.answering(marks))

    def _text(self, units: int, words: int) -> Sentences:
        return self._passage.cut(units, words) if isinstance(self._passage, Prose) else self._passage.upto(units)

    def words(self, units: int) -> int:
        """Return the words of a sentence of prose less one; 0 for an essay, whose unit is the word."""
        return self._passage.words_of(units) - 1 if isinstance(self._passage, Prose) else 0

    def finish(self, draft: Draft, units: int) -> dict[str, Json]:
        """Return the name of the unit."""
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
        """Return the draft; units are lines."""
        full, rest = divmod(words, len(NOISE_WORDS))
        lines = [*self._others_upto(units), *[self._noise] * full]
        last = Piece(noise(rest)) if rest else Piece(lines.pop().text[:-1])
        starts = list(accumulate((len(line.text) for line in lines), initial=0))
        needles, texts = self._needles, self._needles.texts
        where = places(starts, starts[-1] + len(last.text), needles.aims, [len(text) + 1 for text in texts])
        pieces, marks, start = interleaved(texts, where, lambda a, b: self._joined(lines[a:b]))
        pieces += [*self._joined(lines[start:]), last]
        return self._wording.draft(needles.asked, needles.references, pieces, needles.answering(marks))

    def _others_upto(self, units: int) -> list[Piece]:
        if self._task.haystack == "noise":
            return [self._noise] * units
        while len(self._others) < units:
            key = self._needles.distinct.draw(self._task.key_type)
            value = self._needles.distinct.draw(self._task.value_type)
            self._others.append(Piece(needle(self._task.value_type, key, value) + "\n"))
        return self._others[:units]

    def _joined(self, lines: list[Piece]) -> list[Piece]:
        """Return the lines as pieces; the lines of noise at their end are one piece."""
        first = next((at for at, line in enumerate(lines) if line is self._noise), len(lines))
        return lines[:first] + ([self._tally.repeat(self._noise, len(lines) - first)] if first < len(lines) else [])

    def words(self, units: int) -> int:
        """Return the number of words of the lines of noise that may follow."""
        return len(NOISE_WORDS) * (1 if self._task.haystack == "noise" else FILLER_LINES)

    def finish(self, draft: Draft, units: int) -> dict[str, Json]:
        """Return the name of the unit."""
        return {"unit": "lines"}


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
