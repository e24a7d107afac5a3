"""RULER's question answering, balanced: documents that answer are stratified over depth, no other holds the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from random import Random

from anchoreval.errors import LengthError
from anchoreval.schema import Json, Sample
from anchoreval.suites.recipe import Recipe, options
from anchoreval.suites.ruler.qa import DOCUMENT_TOKENS, QuestionMaker, QuestionTask, generated, published
from anchoreval.suites.ruler_balanced.balanced import Sampler, Text, sample, wrapped
from anchoreval.suites.ruler_balanced.niah import places
from anchoreval.texts.draft import Draft, Piece, Tally
from anchoreval.texts.questions import Question, Questions

SHARE = 0.85  # of the prompt that a question may take together with the documents that answer it
BLOCK = 24  # samples whose generated questions are drawn together
TRIES = 16  # generated questions per sample; the first that fits is asked
UNSAID = frozenset({"yes", "no", "noanswer"})  # answers that no document states

Asked = Callable[[int], tuple[QuestionMaker, int]]  # sample index -> (maker, index of its question)


class AmongDocuments(Text):
    """A question whose documents stand among others; the unit is one of the others, and the last may be cut."""

    unit, least = "documents", 0

    def __init__(self, maker: QuestionMaker, question: int, rng: Random, aims: Sequence[float], room: int) -> None:
        self._maker, self._question, self._aims = maker, question, aims
        self._asked = maker.source.questions[question]
        self._gold = rng.sample(self._asked.gold, len(self._asked.gold))
        self._others = list(_others(maker.source, self._asked, rng, room))
        self._order = [rng.random() for _ in self._others]
        self.most = max(0, len(self._others) - 1)

    def draft(self, units: int, words: int) -> Draft:
        """Return the question among `units` whole documents and the first `words` words of one more."""
        documents = [(index, self._maker.body(index)) for index in self._others[:units]]
        if words:
            index = self._others[units]
            text = self._maker.source.documents[index]
            documents.append((index, Piece(text[: _words(text)[words - 1][1]])))
        documents = [documents[at] for at in sorted(range(len(documents)), key=self._order.__getitem__)]
        starts = list(accumulate((len(body.text) for _, body in documents), initial=0))
        where = places(starts, max(1, starts[-1]), self._aims, [0] * len(self._gold))
        for place, gold in reversed(list(zip(where, self._gold, strict=True))):
            documents.insert(place, (gold, self._maker.body(gold)))
        self._maker.question = self._question
        return self._maker.compose(documents)

    def words(self, units: int) -> int:
        """Return the words of the document that is cut, less one; 0 if there is no further document."""
        return len(_words(self._maker.source.documents[self._others[units]])) - 1 if units < len(self._others) else 0

    def finish(self, draft: Draft, units: int) -> dict[str, Json]:
        """Return the number of documents, the question's index, and the first of its documents as `source`."""
        source = self._asked.gold[0]
        return {"documents": len(draft.documents), "question": self._question, "source": source}


def _words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def _others(source: Questions, asked: Question, rng: Random, room: int) -> Iterator[int]:
    """Yield documents without the answer until they surely fill `room`, in random order, those of the article first."""
    answers = [re.escape(answer) for answer in asked.answers if answer.lower() not in UNSAID]
    answered = re.compile(rf"(?<!\w)(?:{'|'.join(answers)})(?!\w)", re.IGNORECASE) if answers else None
    size, left, taken = len(source.documents), room, set(asked.gold)
    related = rng.sample(asked.related, len(asked.related))
    for index in (*related, *_shuffled(size, rng)):
        if left <= 0:
            return
        if index not in taken and not (answered and answered.search(source.documents[index])):
            taken.add(index)
            left -= len(_words(source.documents[index]))
            yield index


def _shuffled(size: int, rng: Random) -> Iterator[int]:
    """Yield 0..size in random order; each is drawn only when it is needed."""
    swapped: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        at = rng.randint(0, last)
        yield swapped.get(at, at)
        swapped[at] = swapped.get(last, last)


def sampler(recipe: Recipe) -> Sampler:
    """Return the function that makes one sample of question answering by its index.

    Raise LengthError if too few questions leave room for other documents, SourceError if the source has fewer than
    `recipe.count` questions.
    """
    task = options(recipe, QuestionTask)
    tally, room = Tally(recipe.tokenizer), recipe.room
    asked = (_generated if recipe.sources.haystack == "generated" else _published)(recipe, task, tally)

    def make(index: int) -> Sample:
        maker, question = asked(index)

        def draw(rng: Random, aims: Sequence[float]) -> Text:
            return AmongDocuments(maker, question, rng, aims, room)

        answers = len(maker.source.questions[question].gold)
        return sample(recipe, tally, index, draw, answers, {"haystack": recipe.sources.haystack})

    return make


def _alone(recipe: Recipe, tally: Tally, maker: QuestionMaker, question: int) -> int:
    """Return the tokens of a question with only its own documents."""
    maker.question = question
    return tally.count(wrapped(maker.alone(), recipe.wrap).pieces())


def _published(recipe: Recipe, task: QuestionTask, tally: Tally) -> Asked:
    """Return published questions in a seeded order, without those that leave no room for other documents."""
    source, allowed = published(recipe, task), SHARE * recipe.room
    supported = []  # with only the documents that the answer needs; the others become related ones
    for each in source.questions:
        others = tuple(index for index in each.gold if index not in each.supporting)
        supported.append(replace(each, gold=each.supporting, related=others) if each.supporting else each)
    maker, total = QuestionMaker(Questions(source.documents, supported), Random()), len(supported)
    order = Random(f"{recipe.seed}/{recipe.task}/questions").sample(range(total), total)
    fitting = (question for question in order if _alone(recipe, tally, maker, question) <= allowed)
    questions: list[int] = []

    def asked(index: int) -> tuple[QuestionMaker, int]:
        while len(questions) <= index:
            following = next(fitting, None)
            if following is None:
                needed = sorted(_alone(recipe, tally, maker, question) for question in order)[index]
                raise LengthError("too few questions fit", int(needed / SHARE) + recipe.reserved + 1)
            questions.append(following)
        return maker, questions[index]

    asked(recipe.count - 1)
    return asked


def _generated(recipe: Recipe, task: QuestionTask, tally: Tally) -> Asked:
    """Return questions about invented people, drawn in blocks; each sample takes the first of its own that fits."""
    room = recipe.room

    @lru_cache(maxsize=2)
    def block(number: int) -> QuestionMaker:
        seed = Random(f"{recipe.seed}/{recipe.task}/{number}").getrandbits(32)
        return QuestionMaker(generated(seed, task, max(2 * BLOCK * TRIES, 4 * room // DOCUMENT_TOKENS)), Random())

    def asked(index: int) -> tuple[QuestionMaker, int]:
        maker, needed = block(index // BLOCK), []
        for question in range(index % BLOCK, BLOCK * TRIES, BLOCK):
            needed.append(_alone(recipe, tally, maker, question))
            if needed[-1] <= SHARE * room:
                return maker, question
        raise LengthError("no question fits", int(min(needed) / SHARE) + recipe.reserved + 1)

    return asked
