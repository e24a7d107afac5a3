"""RULER's eight needle-in-a-haystack tasks, byte-exact with NVIDIA/RULER c3f5e3b scripts/data/synthetic/niah.py."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from anchoreval.errors import CardError
from anchoreval.schema import Sample, Wrap
from anchoreval.suites.recipe import BASE, Recipe, options
from anchoreval.texts.draft import NIAH, NIAH_PREFIX, Draft, Piece, Tally, Template, interleaved
from anchoreval.texts.filling import Draws, Fit, Impossible
from anchoreval.texts.passage import Essay, Passage, Prose, Sentences
from anchoreval.texts.prose import sentences
from anchoreval.texts.wordlists import AdjectiveNouns, pairs

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = tuple(round(100 * step / 39) for step in range(40))  # percent
TOKENS_PER_SENTENCE = 4  # fewer than any real sentence has; this bounds the search in generated prose

Kind = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True, slots=True)
class NeedleTask:
    """The `args` of a task card: what is hidden in which haystack."""

    haystack: Literal["noise", "essay", "needle"]
    key_type: Kind = "words"
    value_type: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1


def needle(kind: Kind, key: str, value: str) -> str:
    """Return the sentence to be found."""
    return f"One of the special magic {kind} for {key} is: {value}."


def draw_one(kind: Kind, rng: Random, names: AdjectiveNouns) -> str:
    """Draw a key or a value."""
    if kind == "numbers":
        return str(rng.randint(10**6, 10**7 - 1))
    if kind == "words":
        return rng.choice(names)
    return uuid4(rng.getrandbits(128))


def uuid4(bits: int) -> str:
    """Return `str(uuid.UUID(int=bits, version=4))`, three times as fast."""
    digits = f"{bits & ~(0xF000 << 64) & ~(0xC000 << 48) | 4 << 76 | 0x8000 << 48:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class NeedleWording:
    """The prompt around a haystack with needles in it."""

    def __init__(self, task: NeedleTask, wrap: Wrap = BASE) -> None:
        singular = task.queries * task.values == 1
        self._template = Template.of(wrap, NIAH, NIAH_PREFIX, singular)
        self._word = task.value_type[:-1] if singular else task.value_type
        self._lines = task.haystack != "essay"

    def draft(
        self, asked: Sequence[str], references: tuple[str, ...], document: list[Piece], marks: Sequence[int]
    ) -> Draft:
        """Return the document and the question for the `asked` keys; `marks` count the pieces before each needle."""
        query = ", ".join(asked[:-1]) + ", and " + asked[-1] if len(asked) > 1 else asked[0]
        before, after, prefix = self._template.fill(values=self._word, query=query)
        places = [(0, mark) for mark in marks]
        return Draft([Piece(before)], [document], [Piece(after)], Piece(prefix), references, places, lines=self._lines)


def between_sentences(text: Sentences, needles: Sequence[str], places: Sequence[int]) -> tuple[list[Piece], list[int]]:
    """Put needle i before sentence `places[i]`, all joined by single spaces.

    Return the pieces, and the number of pieces before each needle.
    """
    pieces = text.chunk(0, places[0])
    marks = []
    for sentence, start, end in zip(needles, places, [*places[1:], len(text)], strict=True):
        marks.append(len(pieces))
        pieces += [Piece(f" {sentence} "), *text.chunk(start, end)]
    return pieces, marks


@dataclass
class NeedleMaker:
    """Draws texts of one needle task; `tally` is its only access to the tokenizer.

    `passage` is needed for the haystack "essay" only. `seed` is that of the one permutation that all samples share.
    """

    task: NeedleTask
    rng: Random
    names: AdjectiveNouns
    tally: Tally
    passage: Passage | None = None
    wrap: Wrap = BASE
    seed: int = 42

    def __post_init__(self) -> None:
        self._wording = NeedleWording(self.task, self.wrap)
        self._noise = Piece(NOISE + "\n")
        among = self.task.haystack == "needle"
        self._by_words = among and self.tally.cuts_after(string.ascii_letters + string.digits + ".:")

    def make(self, units: int) -> Draft:
        """Draw a new text with `units` words, sentences or lines of haystack.

        Raise Impossible if these are too few to hide the needles in.
        """
        task, rng = self.task, self.rng
        keys: list[str] = []
        values: list[list[str]] = []
        for _ in range(max(task.keys, task.queries)):  # in upstream's order
            keys.append(draw_one(task.key_type, rng, self.names))
            values.append([draw_one(task.value_type, rng, self.names) for _ in range(task.values)])
        needles = [needle(task.value_type, key, value) for key, own in zip(keys, values, strict=True) for value in own]
        Random(self.seed).shuffle(needles)
        document, marks = (self._in_sentences if task.haystack == "essay" else self._in_lines)(needles, units)
        asked = rng.sample(range(len(keys)), task.queries)
        references = tuple(value for index in asked for value in values[index])
        return self._wording.draft([keys[index] for index in asked], references, document, marks)

    def _in_sentences(self, needles: list[str], units: int) -> tuple[list[Piece], list[int]]:
        """Put the needles between the sentences of the passage, in list order, all joined by single spaces."""
        assert self.passage is not None, "an essay haystack needs a passage"
        text = self.passage.upto(units)
        places = sorted(int(len(text) * (depth / 100)) for depth in self.rng.sample(DEPTHS, len(needles)))
        return between_sentences(text, needles, places)

    def _in_lines(self, needles: list[str], units: int) -> tuple[list[Piece], list[int]]:
        """Put the needles among lines of noise or of other needles; as in upstream, the first needle is the deepest."""
        task, rng = self.task, self.rng
        if units < len(needles):
            raise Impossible
        lines = [] if task.haystack == "noise" else [self._distractor() for _ in range(units)]
        places = sorted(rng.sample(range(units), len(needles)))
        pieces, marks, start = interleaved(reversed(needles), places, lambda a, b: self._block(lines, a, b))
        if task.haystack == "noise":  # the last line, which follows every needle, has no newline
            return [*pieces, *self._block(lines, start, units - 1), Piece(NOISE)], marks
        return [*pieces, self._needles_piece(lines[start:], "")], marks

    def _distractor(self) -> tuple[str, str]:
        """Draw key and value of a line that is not asked for."""
        key = draw_one(self.task.key_type, self.rng, self.names)
        return key, draw_one(self.task.value_type, self.rng, self.names)

    def _block(self, lines: list[tuple[str, str]], start: int, end: int) -> list[Piece]:
        """Return lines start..end, each with its newline."""
        if start == end:
            return []
        if self.task.haystack == "noise":
            return [self.tally.repeat(self._noise, end - start)]
        return [self._needles_piece(lines[start:end], "\n")]

    def _needles_piece(self, lines: list[tuple[str, str]], ending: str) -> Piece:
        """Return needle sentences on lines of their own; only keys and values are tokenised, all in one call."""
        kind = self.task.value_type
        piece = Piece("\n".join(needle(kind, key, value) for key, value in lines) + ending)
        if self._by_words and piece.text.isascii():
            keys = "".join([f" {key}" for key, _ in lines])
            values = "".join([f" {value}.\nOne" for _, value in lines[:-1]])
            fixed = self.tally.following(f" of the special magic {kind} for") + self.tally.following(" is:")
            body = len(lines) * fixed + self.tally.following(keys + values)
            piece.parts = ("One", body, f" {lines[-1][1]}.{ending}")
        return piece


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of a needle task; raise LengthError if the length is too short for it."""
    task = options(recipe, NeedleTask)
    needles = max(task.keys, task.queries) * task.values
    if task.haystack == "essay" and needles > len(DEPTHS):
        raise CardError(f"{recipe.task}: args: {needles} needles do not fit {len(DEPTHS)} depths")
    tally, rng = Tally(recipe.tokenizer), Random(recipe.seed)
    prose = task.haystack == "essay" and recipe.sources.haystack == "generated"
    passage = _passage(recipe, tally) if task.haystack == "essay" else None
    maker = NeedleMaker(task, rng, pairs(recipe.sources.wordlists), tally, passage, recipe.wrap, recipe.seed)
    step = 500 if task.haystack == "essay" else 5 if recipe.length < 4096 else 25
    least = 1 if task.haystack == "essay" else needles
    evenly = prose and tally.adds_up
    fit = Fit(maker.make, tally.count, recipe.room, recipe.reserved, step, least, Draws(rng), evenly)
    units = 0 if prose else fit.search()
    unit = "sentences" if prose else "words" if passage else "lines"
    haystack = recipe.sources.haystack if passage else task.haystack
    for index in range(recipe.count):
        fitted = fit.refine(fit.room // TOKENS_PER_SENTENCE) if prose else fit.sample(units)
        yield recipe.fitted(index, fitted, unit, {"haystack": haystack, **fitted.draft.positions(tally)})


def _passage(recipe: Recipe, tally: Tally) -> Passage:
    if recipe.sources.haystack == "generated":
        return Prose(sentences(recipe.seed), tally)
    return Essay(recipe.sources.essay(), recipe.sources.sentence_splitter(), tally)
