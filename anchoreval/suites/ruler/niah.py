"""RULER's eight needle-in-a-haystack tasks, byte-exact with NVIDIA/RULER c3f5e3b scripts/data/synthetic/niah.py."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from anchoreval.errors import CardError
from anchoreval.schema import Sample
from anchoreval.suites.recipe import Recipe, options
from anchoreval.texts.draft import NIAH, NIAH_PREFIX, Draft, Piece, Tally, Template, interleaved
from anchoreval.texts.filling import Draws, Fit, Impossible
from anchoreval.texts.passage import Essay, Passage, Prose, Sentences
from anchoreval.texts.prose import sentences
from anchoreval.texts.wordlists import AdjectiveNouns, pairs

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DEPTHS = tuple(round(100 * step / 39) for step in range(40))  # percent
CUTS = string.ascii_letters + string.digits + ".:"  # what stands before the spaces of a needle
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


@dataclass(frozen=True, slots=True)
class NeedleWording:
    """The prompt around a haystack with needles in it."""

    task: NeedleTask
    template: Template

    def draft(
        self, asked: Sequence[str], references: tuple[str, ...], document: list[Piece], marks: Sequence[int]
    ) -> Draft:
        """Return the document and the question for the `asked` keys; `marks` count the pieces before each needle."""
        kind = self.task.value_type
        values = kind[:-1] if self.template.singular else kind
        query = ", ".join(asked[:-1]) + ", and " + asked[-1] if len(asked) > 1 else asked[0]
        before, after, prefix = self.template.fill(values=values, query=query)
        places, lines = [(0, mark) for mark in marks], self.task.haystack != "essay"
        return Draft([Piece(before)], [document], [Piece(after)], Piece(prefix), references, places, lines=lines)


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
    wording: NeedleWording
    passage: Passage | None = None
    seed: int = 42
    noise: Piece = field(default_factory=lambda: Piece(NOISE + "\n"))

    def make(self, units: int) -> Draft:
        """Draw a new text with `units` words, sentences or lines of haystack.

        Raise Impossible if these are too few to hide the needles in.
        """
        task, rng, names = self.task, self.rng, self.names
        keys: list[str] = []
        values: list[list[str]] = []
        for _ in range(max(task.keys, task.queries)):  # in upstream's order
            keys.append(draw_one(task.key_type, rng, names))
            values.append([draw_one(task.value_type, rng, names) for _ in range(task.values)])
        needles = [needle(task.value_type, key, value) for key, own in zip(keys, values, strict=True) for value in own]
        Random(self.seed).shuffle(needles)

        if task.haystack == "essay":  # between sentences, in list order
            assert self.passage is not None, "an essay haystack needs a passage"
            text = self.passage.upto(units)
            places = sorted(int(len(text) * (depth / 100)) for depth in rng.sample(DEPTHS, len(needles)))
            document, marks = between_sentences(text, needles, places)
        else:  # among lines; as in upstream, the first needle is the deepest
            if units < len(needles):
                raise Impossible
            others: list[tuple[str, str]] = []  # keys and values of lines that are not asked for
            for _ in range(0 if task.haystack == "noise" else units):
                others.append((draw_one(task.key_type, rng, names), draw_one(task.value_type, rng, names)))
            places = sorted(rng.sample(range(units), len(needles)))
            document, marks, start = interleaved(reversed(needles), places, lambda a, b: self._block(others, a, b))
            document += self._block(others, start, units, last=True)

        asked = rng.sample(range(len(keys)), task.queries)
        references = tuple(value for index in asked for value in values[index])
        return self.wording.draft([keys[index] for index in asked], references, document, marks)

    def _block(self, others: list[tuple[str, str]], start: int, end: int, last: bool = False) -> list[Piece]:
        """Return lines start..end of the haystack, each with its newline but for the `last` line of all.

        Of lines of needles only keys and values are tokenised, all in one call.
        """
        if start == end:
            return []
        if self.task.haystack == "noise":
            whole = [self.tally.repeat(self.noise, end - start - last)] if end - start > last else []
            return [*whole, Piece(NOISE)] if last else whole
        kind, lines, ending = self.task.value_type, others[start:end], "" if last else "\n"
        piece = Piece("\n".join(needle(kind, key, value) for key, value in lines) + ending)
        if self.tally.cuts_after(CUTS) and piece.text.isascii():
            keys = "".join([f" {key}" for key, _ in lines])
            values = "".join([f" {value}.\nOne" for _, value in lines[:-1]])
            fixed = self.tally.following(f" of the special magic {kind} for") + self.tally.following(" is:")
            body = len(lines) * fixed + self.tally.following(keys + values)
            piece.parts = ("One", body, f" {lines[-1][1]}.{ending}")
        return [piece]


def passage_of(recipe: Recipe, tally: Tally) -> Essay | Prose:
    """Return the text of the haystack "essay": the published essays, or generated prose."""
    if recipe.sources.haystack == "generated":
        return Prose(sentences(recipe.seed), tally)
    return Essay(recipe.sources.essay(), recipe.sources.sentence_splitter(), tally)


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of a needle task; raise LengthError if the length is too short for it."""
    task = options(recipe, NeedleTask)
    needles, essay = max(task.keys, task.queries) * task.values, task.haystack == "essay"
    if essay and needles > len(DEPTHS):
        raise CardError(f"{recipe.task}: args: {needles} needles do not fit {len(DEPTHS)} depths")
    tally, rng = Tally(recipe.tokenizer), Random(recipe.seed)
    passage = passage_of(recipe, tally) if essay else None
    prose = isinstance(passage, Prose)
    wording = NeedleWording(task, Template.of(recipe.wrap, NIAH, NIAH_PREFIX, task.queries * task.values == 1))
    maker = NeedleMaker(task, rng, pairs(recipe.sources.wordlists), tally, wording, passage, recipe.seed)
    step = 500 if essay else 5 if recipe.length < 4096 else 25
    least, evenly = 1 if essay else needles, prose and tally.adds_up
    fit = Fit(maker.make, tally.count, recipe.room, recipe.reserved, step, least, Draws(rng), evenly)
    units = 0 if prose else fit.search()
    unit = "sentences" if prose else "words" if essay else "lines"
    haystack = recipe.sources.haystack if essay else task.haystack
    for index in range(recipe.count):
        fitted = fit.refine(fit.room // TOKENS_PER_SENTENCE) if prose else fit.sample(units)
        yield recipe.fitted(index, fitted, unit, {"haystack": haystack, **fitted.draft.positions(tally)})
