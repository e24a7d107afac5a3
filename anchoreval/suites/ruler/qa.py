"""RULER's two question-answering tasks, byte-exact with NVIDIA/RULER c3f5e3b scripts/data/synthetic/qa.py."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from anchoreval.errors import LengthError, SourceError
from anchoreval.schema import Sample, Wrap
from anchoreval.suites.recipe import BASE, Recipe, options
from anchoreval.texts.draft import QA, QA_PREFIX, Draft, Piece, Tally, Template
from anchoreval.texts.filling import Draws, Fit, Impossible
from anchoreval.texts.prose import quiz
from anchoreval.texts.questions import Question, Questions

STEP = 10
SENTENCE_TOKENS = 5  # fewer than any generated sentence has
DOCUMENT_TOKENS = 40  # fewer than any generated document has


@dataclass(frozen=True, slots=True)
class QuestionTask:
    """The `args` of a task card: which questions."""

    questions: Literal["squad", "hotpot"]


@dataclass
class QuestionMaker:
    """Draws the documents around a question. `question` is the index of the current question."""

    source: Questions
    rng: Random
    wrap: Wrap = BASE
    seed: int = 42
    question: int = 0

    def __post_init__(self) -> None:
        self._template = Template.of(self.wrap, QA, QA_PREFIX)
        self._bodies: dict[int, Piece] = {}
        self._gap = Piece("\n\n")
        self._titles: list[Piece] = []

    @property
    def asked(self) -> Question:
        """The current question."""
        return self.source.questions[self.question]

    def make(self, units: int) -> Draft:
        """Return the question among `units` documents; raise Impossible if fewer than the documents that answer it.

        They are, in upstream's order, those that answer, others of the article, then any others.
        """
        asked, size = self.asked, len(self.source.documents)
        chosen, missing = [*asked.gold], units - len(asked.gold)
        if units >= size:
            chosen = (list(range(size)) * -(-units // size))[:units]
        elif missing < 0:
            raise Impossible
        elif missing <= len(asked.related):
            chosen += self.rng.sample(asked.related, missing)
        else:
            chosen += asked.related
            chosen += _sample_without(self.rng, size, sorted(set(chosen)), missing - len(asked.related))
        return self._shuffled(chosen)

    def alone(self) -> Draft:
        """Return the question with only the documents that answer it."""
        return self._shuffled(list(self.asked.gold))

    def _shuffled(self, chosen: list[int]) -> Draft:
        Random(self.seed).shuffle(chosen)
        return self.compose([(index, self.body(index)) for index in chosen])

    def compose(self, documents: Sequence[tuple[int, Piece]]) -> Draft:
        """Return the prompt with these documents, (index in the source, text), in this order."""
        while len(self._titles) < len(documents):
            self._titles.append(Piece(f"Document {len(self._titles) + 1}:\n"))
        blocks = [[title, body, self._gap] for title, (_, body) in zip(self._titles, documents, strict=False)]
        blocks[-1].pop()
        gold = set(self.asked.gold)
        marks = [(place, 0) for place, (index, _) in enumerate(documents) if index in gold]
        before, after, prefix = self._template.fill(query=self.asked.text)
        return Draft([Piece(before)], blocks, [Piece(after)], Piece(prefix), self.asked.answers, marks)

    def body(self, index: int) -> Piece:
        """Return a document of the source."""
        if index not in self._bodies:
            self._bodies[index] = Piece(self.source.documents[index])
        return self._bodies[index]


def _sample_without(rng: Random, size: int, excluded: Sequence[int], count: int) -> list[int]:
    """Return `rng.sample([i for i in range(size) if i not in excluded], count)` without building the list."""
    gaps = [place - before for before, place in enumerate(excluded)]  # free places before each excluded one
    if count > size - len(excluded):
        raise Impossible
    return [free + bisect_right(gaps, free) for free in rng.sample(range(size - len(excluded)), count)]


@dataclass
class GeneratedMaker(QuestionMaker):
    """Draws generated documents. The unit is a sentence of a document that does not answer; the last one may be cut.

    Unlike in upstream, the documents of every sample have their own random order.
    """

    most: int = 0
    lines: dict[int, list[str]] = field(default_factory=dict)  # document -> its sentences
    drawn: tuple[Any, list[int], int, Any] | None = None  # random state before, documents, seed of their order, after

    def make(self, units: int) -> Draft:
        """Return the question among `units` sentences of other documents."""
        gold, before = self.asked.gold, self.rng.getstate()
        if self.drawn is None or self.drawn[0] != before:  # from the same state of the generator only once
            others = _sample_without(self.rng, len(self.source.documents), sorted(gold), self.most)
            self.drawn = before, others, self.rng.getrandbits(64), self.rng.getstate()
        _, others, seed, after = self.drawn
        self.rng.setstate(after)
        documents = [(index, self.body(index)) for index in gold]
        for index in others:
            if units <= 0:
                break
            if index not in self.lines:
                self.lines[index] = re.split(r"(?<=[.!]) ", self.source.documents[index])
            lines = self.lines[index]
            whole = len(lines) <= units
            documents.append((index, self.body(index) if whole else Piece(" ".join(lines[:units]))))
            units -= len(lines)
        Random(seed).shuffle(documents)
        return self.compose(documents)


def generated(seed: int, task: QuestionTask, size: int) -> Questions:
    """Return questions about invented people, with `size` documents in the form of SQuAD's or HotpotQA's."""
    drawn = quiz(seed, 1 if task.questions == "squad" else 2, size)
    titled = [f"{title}\n{text}" for title, text in zip(drawn.titles, drawn.documents, strict=True)]
    return Questions(drawn.documents if task.questions == "squad" else titled, drawn.questions)


def published(recipe: Recipe, task: QuestionTask) -> Questions:
    """Return SQuAD's or HotpotQA's questions; raise SourceError if they are fewer than `recipe.count`."""
    source = recipe.sources.squad if task.questions == "squad" else recipe.sources.hotpot
    if (total := len(source.questions)) < recipe.count:
        said = f"{recipe.task}: there are only {total} questions, {recipe.count} were asked for: --limit {total}"
        raise SourceError(said)
    return source


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of question answering. A question whose own documents do not fit is skipped.

    Raise LengthError if too few questions fit, SourceError if the source has fewer than `recipe.count` questions.
    """
    task = options(recipe, QuestionTask)
    tally, rng, room = Tally(recipe.tokenizer), Random(recipe.seed), recipe.room
    invented = recipe.sources.haystack == "generated"
    if invented:
        most = max(2, room // DOCUMENT_TOKENS)
        source = generated(recipe.seed, task, _people(recipe, most))
        maker: QuestionMaker = GeneratedMaker(source, rng, recipe.wrap, recipe.seed, most=most)
    else:
        maker = QuestionMaker(published(recipe, task), rng, recipe.wrap, recipe.seed)
    total, needed, fitting = len(maker.source.questions), list[int](), 0
    for maker.question in range(total):  # enough questions fit, so that no run fails half-way
        needed.append(tally.count(maker.alone().pieces()))
        fitting += needed[-1] <= room
        if fitting == recipe.count:
            break
    else:
        enough = sorted(needed)[recipe.count - 1] + recipe.reserved
        raise LengthError(f"only {fitting} of {total} questions fit", enough)

    fit = Fit(maker.make, tally.count, room, recipe.reserved, STEP, 0, Draws(rng), evenly=invented and tally.adds_up)
    maker.question = 0
    units = room // SENTENCE_TOKENS if invented else fit.search()
    made, passed = 0, 0
    for maker.question in range(total):
        if made == recipe.count:
            return
        fit.least = 0 if invented else len(maker.asked.gold)
        try:
            fitted = fit.refine(units) if invented else fit.sample(units)
        except LengthError:
            passed += 1
            continue
        facts = {
            "haystack": recipe.sources.haystack, "documents": len(fitted.draft.documents), "question": maker.question,
            "source": maker.asked.gold[0], "questions_passed_over": passed, **fitted.draft.positions(tally),
        }  # fmt: skip
        yield recipe.fitted(made, fitted, "sentences" if invented else "documents", facts)
        made += 1
    if made < recipe.count:
        raise LengthError(f"only {made} of {recipe.count} questions can be made at {recipe.length} tokens")


def pool(recipe: Recipe) -> int | None:
    """Return the number of people that generated questions are about, or None for published questions."""
    if recipe.sources.haystack != "generated":
        return None
    return _people(recipe, max(2, (recipe.length - recipe.max_new_tokens) // DOCUMENT_TOKENS))


def _people(recipe: Recipe, most: int) -> int:
    return 2 * max(recipe.count, most) + 2
