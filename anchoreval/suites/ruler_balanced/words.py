"""RULER's word-counting tasks, balanced: each sample orders words its own way, answers are stratified over depth."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from random import Random

from anchoreval.schema import Json, Sample
from anchoreval.suites.recipe import Recipe, options
from anchoreval.suites.ruler import words as ruler
from anchoreval.suites.ruler_balanced.balanced import Sampler, Text, mark_words, sample, spread, wrapped
from anchoreval.texts.draft import Draft, Tally
from anchoreval.texts.filling import new
from anchoreval.texts.wordlists import distinct_words, pairs

ITEM_TOKENS = 3  # fewer than any numbered word has
PROBES = 4  # texts that a form must fit to be taken
SHARE = 0.95  # of the room that these texts may take
LEAST_WORDS = 2 * ruler.COMMON
VOCABULARY_SHARE = 50  # tokens for each coded word of the vocabulary, as in upstream
ANSWERS = ruler.ANSWER_RANKS.stop - ruler.ANSWER_RANKS.start
SPARE = 1000  # words that may be skipped because an answer is a part of them


class Pool:
    """The words of a list, followed by pairs of an adjective and a noun if the list is too short (`paired`)."""

    def __init__(self, words: Sequence[str], pairs: Sequence[str]) -> None:
        self._words, self._pairs, self.paired = words, pairs, False

    def draw(self, rng: Random, wanted: int) -> list[str]:
        """Draw `wanted` words, or all, in random order; pairs are drawn separately and come last."""
        drawn = rng.sample(self._words, min(len(self._words), wanted))
        if not self.paired:
            return drawn
        return drawn + Random(" ".join(drawn[: ruler.COMMON])).sample(self._pairs, max(0, wanted - len(drawn)))


class CommonWords(Text):
    """A numbered list of common and other words; the unit is a different word."""

    unit = "words"

    def __init__(
        self, form: ruler.Form, pool: Pool, rng: Random, aims: Sequence[float], wording: ruler.CommonWording, most: int
    ) -> None:
        self._form, self._aims, self._wording = form, aims, wording
        self.least, self.most = form.least, most
        shown, often, other = form.example or (0, 0, 0)
        drawn = _apart(pool.draw(rng, most + shown + SPARE))
        self._common, rest = drawn[: ruler.COMMON], drawn[ruler.COMMON :]
        self._example = None
        if form.example:
            listed = rest[: ruler.COMMON] * often + rest[ruler.COMMON : shown] * other
            self._example = rng.sample(listed, len(listed)), rest[: ruler.COMMON]
        self._others = rest[shown:]
        self.most = min(most, ruler.COMMON + len(self._others))
        self._order = rng.getrandbits(64)

    def _listed(self, units: int) -> tuple[list[str], list[int]]:
        others = self._others[: units - ruler.COMMON] * self._form.other
        again = self._common * (self._form.common - 1)
        rest = [*again, *others]
        aims = _slots(self._aims, [*self._common, *rest])
        return spread(self._common, aims, rest, Random(f"{self._order}/{units}"))

    def draft(self, units: int, words: int) -> Draft:
        """Return the text with `units` different words."""
        return self._wording.draft(self._listed(units)[0], self._common, self._example)

    def finish(self, draft: Draft, units: int) -> dict[str, Json]:
        """Mark the occurrence of each answer whose place was drawn."""
        listed, slots = self._listed(units)
        mark_words(draft, [f"{at}. {word}" for at, word in enumerate(listed, 1)], slots)
        return {}


def _slots(aims: Sequence[float], words: Sequence[str]) -> list[float]:
    """Convert shares of a numbered list's characters to shares of its words; they differ as later labels are longer."""
    mean = sum(map(len, words)) / len(words)
    ends = list(accumulate(len(str(at)) + len(". ") + mean + 1 for at in range(1, len(words) + 1)))
    return [bisect_right(ends, aim * ends[-1]) / len(words) for aim in aims]


def _apart(words: Sequence[str]) -> list[str]:
    """Return ten answers, followed by the words that neither contain an answer nor are a part of one, in order."""
    answers: list[str] = []
    rest: list[str] = []
    for word in words:
        if any(answer in word or word in answer for answer in answers):
            continue
        (answers if len(answers) < ruler.COMMON else rest).append(word)
    return [*answers, *rest]


def common_sampler(recipe: Recipe) -> Sampler:
    """Return the function that makes one sample of common words by its index."""
    task = options(recipe, ruler.CommonTask)
    tally, lists = Tally(recipe.tokenizer), recipe.sources.wordlists
    pool = Pool(distinct_words(lists), pairs(lists))
    wording, room = ruler.CommonWording(tally), recipe.room

    def text(form: ruler.Form, rng: Random, aims: Sequence[float]) -> CommonWords:
        most = ruler.COMMON + max(0, room // ITEM_TOKENS - ruler.COMMON * form.common) // form.other
        return CommonWords(form, pool, rng, aims, wording, max(most, form.least))

    def tokens(form: ruler.Form, probe: object, all_words: bool = False) -> int:
        drawn = text(form, Random(f"form/{probe}"), [0.0] * ruler.COMMON)
        draft = drawn.draft(drawn.most if all_words else drawn.least, 0)
        return tally.count(wrapped(draft, recipe.wrap).pieces())

    def fits(form: ruler.Form) -> bool:
        return max(tokens(form, probe) for probe in range(PROBES)) <= SHARE * room

    ladder = [replace(form, least=max(form.least, LEAST_WORDS)) for form in ruler.forms(task, recipe.length)]
    form = next(filter(fits, ladder), ladder[-1])
    pool.paired = tokens(form, "words", all_words=True) < room
    facts = form.facts(recipe, pool.paired)

    def draw(rng: Random, aims: Sequence[float]) -> Text:
        return text(form, rng, aims)

    def make(index: int) -> Sample:
        return sample(recipe, tally, index, draw, ruler.COMMON, facts)

    return make


class CodedWords(Text):
    """Coded words by frequency; the unit is one word of the text."""

    unit = "words"

    def __init__(
        self, maker: ruler.CodedWordsMaker, vocabulary: Sequence[str], aims: Sequence[float], order: int
    ) -> None:
        self._maker, self._vocabulary, self._aims, self._order = maker, vocabulary, aims, order
        self.least, self.most = least_clear(maker.alpha), 0

    def _spread(self, listed: Sequence[str]) -> tuple[list[str], list[int]]:
        answers, others = list(self._vocabulary[ruler.ANSWER_RANKS]), list(listed)
        for answer in answers:
            others.remove(answer)
        rng = Random(f"{self._order}/{len(listed)}")
        return spread(answers, self._aims, others, rng)

    def draft(self, units: int, words: int) -> Draft:
        """Return the text of about `units` words."""
        return self._maker.text(self._vocabulary, units, lambda listed: self._spread(listed)[0])

    def finish(self, draft: Draft, units: int) -> dict[str, Json]:
        """Mark the occurrence of each answer whose place was drawn."""
        counts = ruler.appearances(units, len(self._vocabulary), self._maker.alpha)
        ranked = [word for word, often in zip(self._vocabulary, counts, strict=True) for _ in range(often)]
        mark_words(draft, *self._spread(ranked))
        return {}


def least_clear(alpha: float) -> int:
    """Return the fewest words in all from which on the third answer appears more often than the next word."""
    last = float(ruler.ANSWER_RANKS.stop)
    return math.ceil(ruler.zeta(alpha) / (math.pow(last, -alpha) - math.pow(last + 1, -alpha)))


def coded_sampler(recipe: Recipe) -> Sampler:
    """Return the function that makes one sample of coded words by its index."""
    task = options(recipe, ruler.CodedTask)
    tally, room = Tally(recipe.tokenizer), recipe.room
    size = max(room // VOCABULARY_SHARE, ruler.ANSWER_RANKS.stop)
    wording = ruler.CodedWordsMaker(size, Random(), tally, alpha=task.alpha)

    def draw(rng: Random, aims: Sequence[float]) -> Text:
        drawn: dict[str, None] = {ruler.NOISE_WORD: None}
        for _ in range(size - 1):
            drawn[new(lambda: ruler.coded(rng), lambda word: word not in drawn, "coded words")] = None
        text = CodedWords(wording, list(drawn), aims, rng.getrandbits(64))
        text.most = room
        return text

    def make(index: int) -> Sample:
        return sample(recipe, tally, index, draw, ANSWERS, {"haystack": "coded words", "vocabulary": size})

    return make
