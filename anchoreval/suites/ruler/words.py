"""RULER's two word-counting tasks, byte-exact with NVIDIA/RULER c3f5e3b: common words (cwe) and coded words (fwe)."""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from random import Random
from typing import Literal

from anchoreval.errors import LengthError
from anchoreval.schema import Json, Sample, Wrap
from anchoreval.suites.recipe import BASE, Recipe, options
from anchoreval.texts.draft import CWE, CWE_PREFIX, FWE, FWE_PREFIX, Draft, Piece, Tally, Template
from anchoreval.texts.filling import Draws, Fit, Fitted, Impossible, new, too_short
from anchoreval.texts.wordlists import distinct_words, pairs

LONG_FORM = 4096  # from this length on upstream shows a longer example and repeats words more often
ESTIMATE_WORDS = 4096
COMMON = 10
STEP = 10
NOISE_WORD = "..."
LETTERS = 6
MOST_WORDS = 16  # per token of a text: no tokenizer joins more words into one token
ANSWER_RANKS = slice(1, 4)
PAIRS = "adjective-noun pairs"  # value of the fact `words`: the text also has words that no word list of RULER holds
Order = Callable[[Sequence[str]], list[str]]


class Shuffles:
    """One permutation per number of words, shared by all samples because upstream re-seeds its shuffle each time."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._orders: dict[int, list[int]] = {}

    def apply(self, words: Sequence[str]) -> list[str]:
        """Return the words in shuffled order."""
        if len(words) not in self._orders:
            if len(self._orders) > 64:
                self._orders.clear()
            order = list(range(len(words)))
            Random(self._seed).shuffle(order)
            self._orders[len(words)] = order
        return [words[index] for index in self._orders[len(words)]]


class WordList:
    """Makes pieces of lists of words; if the tokenizer allows it, their tokens are summed word by word."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._fast = tally.cuts_after(string.ascii_letters + string.digits + ".")
        self._tokens: dict[str, int] = {}
        self._labels: list[str] = []
        self._label_tokens = [0]

    def numbered(self, words: Sequence[str]) -> Piece:
        """Return the words as a numbered list: 1. first 2. second, and so on."""
        while len(self._labels) < len(words):
            self._labels.append(label := f"{len(self._labels) + 1}.")
            tokens = self._tally.following(f" {label}") if self._fast else 0
            self._label_tokens.append(self._label_tokens[-1] + tokens)
        piece = Piece(" ".join(f"{label} {word}" for label, word in zip(self._labels, words, strict=False)))
        if self._fast and words and all(map(str.isascii, words)) and words[-1][:1] not in ("", " "):
            body = self._label_tokens[len(words)] - self._label_tokens[1] + sum(map(self.tokens, words[:-1]))
            piece.parts = ("1.", body, f" {words[-1]}")
        return piece

    def tokens(self, word: str) -> int:
        """Return the number of tokens of a word that follows a space."""
        if word not in self._tokens:
            if len(self._tokens) > 100_000:
                self._tokens.clear()
            self._tokens[word] = self._tally.following(f" {word}")
        return self._tokens[word]

    def plain(self, words: Sequence[str], counts: Sequence[int], order: Order) -> Piece:
        """Return each word as often as `counts` says, in the given order, joined by spaces."""
        listed = order([word for word, count in zip(words, counts, strict=True) for _ in range(count)])
        piece = Piece(" ".join(listed))
        if self._fast and len(listed) > 1:
            total = sum(count * self.tokens(word) for word, count in zip(words, counts, strict=True))
            piece.parts = (listed[0], total - self.tokens(listed[0]) - self.tokens(listed[-1]), f" {listed[-1]}")
        return piece


@dataclass(frozen=True, slots=True)
class CommonTask:
    """The `args` of a common-words card; below 4,096 tokens upstream ignores the repeats and uses fewer."""

    common_repeats: int = 30
    uncommon_repeats: int = 3
    common_words: Literal[10] = 10  # the template's own number


@dataclass(frozen=True, slots=True)
class CodedTask:
    """The `args` of a coded-words card: rank k appears with a share of 1/k^alpha."""

    alpha: float = 2.0


@dataclass(frozen=True, slots=True)
class Form:
    """How a common-words text is built.

    `example` is (words, common repeats, other repeats) of the example; `common` and `other` are the repeats of the
    task; `least` is the smallest number of different words.
    """

    name: str
    example: tuple[int, int, int] | None
    common: int
    other: int
    least: int

    def facts(self, recipe: Recipe, paired: bool) -> dict[str, Json]:
        """Return the facts of a sample of the form; `paired` says whether its words go on in pairs."""
        repeats: dict[str, Json] = {"form": self.name, "common_repeats": self.common, "other_repeats": self.other}
        return {
            "haystack": f"wonderwords {recipe.sources.wordlists}",
            **repeats,
            **({"words": PAIRS} if paired else {}),
        }


def forms(task: CommonTask, length: int) -> tuple[Form, ...]:
    """Return upstream's form at a length, followed by smaller forms for lengths at which it does not fit."""
    upstream = Form("short", (20, 3, 1), 6, 1, COMMON + 1)
    if length >= LONG_FORM:
        upstream = Form("long", (40, 10, 3), task.common_repeats, task.uncommon_repeats, COMMON + 1)
    return (
        upstream,
        Form("short, fewer repeats", (20, 3, 1), 3, 1, COMMON + 3),
        Form("no example", None, 6, 1, COMMON + 3),
        Form("no example, fewer repeats", None, 3, 1, COMMON + 3),
    )


class CommonWording:
    """The prompt around a numbered list of words."""

    def __init__(self, tally: Tally, wrap: Wrap = BASE) -> None:
        before, after, prefix = Template.of(wrap, CWE, CWE_PREFIX).fill()
        self._before, self._after, self._prefix = Piece(before), Piece(after), Piece(prefix)
        self._lists, self._newline = WordList(tally), Piece("\n")

    def draft(
        self, listed: Sequence[str], common: Sequence[str], example: tuple[Sequence[str], Sequence[str]] | None
    ) -> Draft:
        """Return the question about the listed words, behind an example (its list, its answer) if there is one."""
        shown: list[Piece] = []
        if example is not None:
            shown = [self._before, self._lists.numbered(example[0]), self._after, self._prefix]
            shown += [Piece(" "), self._lists.numbered(example[1]), self._newline]
        document = [self._lists.numbered(listed)]
        return Draft([self._before], [document], [self._after], self._prefix, tuple(common), example=shown)


@dataclass
class CommonWordsMaker:
    """Draws common-words texts of one form.

    `more` returns the longer word list that huge texts need. `paired` are the words that are used once the last list is
    exhausted; it may be empty.
    """

    form: Form
    rng: Random
    words: Sequence[str]
    more: Callable[[], Sequence[str]]
    tally: Tally
    wrap: Wrap = BASE
    seed: int = 42
    paired: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._wording, self._shuffles = CommonWording(self.tally, self.wrap), Shuffles(self.seed)

    def make(self, units: int) -> Draft:
        """Draw a new text with `units` different words; raise Impossible if the lists have fewer words."""
        example = self._listed(*self.form.example) if self.form.example is not None else None
        return self._wording.draft(*self._listed(units, self.form.common, self.form.other), example)

    def _listed(self, units: int, common_repeats: int, other_repeats: int) -> tuple[list[str], list[str]]:
        pool = self.words if units <= len(self.words) else self.more() or self.words
        behind = max(0, units - len(pool))
        if behind > len(self.paired):
            raise Impossible
        drawn = self.rng.sample(pool, units - behind) + self.rng.sample(self.paired, behind)
        common, other = drawn[:COMMON], drawn[COMMON:]
        return self._shuffles.apply(common * common_repeats + other * other_repeats), common


def generate_common(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of common words; raise LengthError if not even the smallest form fits.

    Upstream's word list is exhausted near 230,000 tokens. Upstream then goes on with the file english_words.json, and
    so does this generator if the haystack is the published one. Once the last list is exhausted, pairs of an adjective
    and a noun follow.
    """
    task = options(recipe, CommonTask)
    tally, rng = Tally(recipe.tokenizer), Random(recipe.seed)
    words = list(distinct_words(recipe.sources.wordlists))
    Random(recipe.seed).shuffle(words)

    paired: Sequence[str] = ()

    def more() -> Sequence[str]:
        return recipe.sources.english_words if recipe.sources.haystack == "published" else ()

    def fit_of(form: Form) -> Fit:
        maker = CommonWordsMaker(form, rng, words, more, tally, recipe.wrap, recipe.seed, paired)
        return Fit(maker.make, tally.count, recipe.room, recipe.reserved, STEP, form.least, Draws(rng))

    ladder = iter(forms(task, recipe.length))
    form = next(ladder)
    fit = fit_of(form)
    highest = int(recipe.length // (fit.measure(ESTIMATE_WORDS) / ESTIMATE_WORDS)) * 2
    units = fit.search(highest)
    if units >= len(words) and units >= len(more()):
        paired = pairs(recipe.sources.wordlists)
        fit = fit_of(form)
        units = fit.search(highest)
    upstream = form
    for index in range(recipe.count):
        while True:
            try:
                fitted = fit.sample(units) if form is upstream else fit.refine(units)
                break
            except LengthError:
                following = next(ladder, None)
                if following is None:
                    raise
                form, fit = following, fit_of(following)
                units = max(form.least, fit.room // 3)
        yield recipe.fitted(index, fitted, "words", form.facts(recipe, bool(paired)))


def coded(rng: Random) -> str:
    """Draw a coded word."""
    return "".join(rng.choices(string.ascii_lowercase, k=LETTERS))


@dataclass
class CodedWordsMaker:
    """Draws vocabularies of coded words and makes texts in which rank k appears with a share of 1/k^alpha."""

    size: int
    rng: Random
    tally: Tally
    wrap: Wrap = BASE
    seed: int = 42
    alpha: float = 2.0

    def __post_init__(self) -> None:
        before, after, prefix = Template.of(self.wrap, FWE, FWE_PREFIX).fill()
        self._before, self._after, self._prefix = Piece(before), Piece(after), Piece(prefix)
        self._lists, self._shuffles = WordList(self.tally), Shuffles(self.seed)

    def vocabulary(self) -> list[str]:
        """Draw new words by rank; the first is the noise word."""
        rng = self.rng
        words = {coded(rng) for _ in range(self.size)}
        for _ in range(self.size - len(words)):
            words.add(new(lambda: coded(rng), lambda word: word not in words, "coded words"))
        ranked = self._shuffles.apply(sorted(words))
        ranked[0] = NOISE_WORD
        return ranked

    def text(self, vocabulary: Sequence[str], units: int, order: Order | None = None) -> Draft:
        """Return a text of about `units` words in all, in the given or else upstream's order.

        As in upstream, ranks that are too rare to appear are left out.
        """
        counts = appearances(units, len(vocabulary), self.alpha)
        listed = self._lists.plain(vocabulary, counts, order or self._shuffles.apply)
        answers = tuple(vocabulary[ANSWER_RANKS])
        return Draft([self._before], [[listed]], [self._after], self._prefix, answers)


def appearances(units: int, ranks: int, alpha: float = 2.0) -> list[int]:
    """Return how often each rank k appears: `units` times the share of 1/k^alpha in zeta(alpha), rounded down."""
    total = zeta(alpha)
    return [max(0, int(units * float(rank) ** -alpha / total)) for rank in range(1, ranks + 1)]


@lru_cache
def zeta(alpha: float) -> float:
    """Return Riemann's zeta; scipy is imported only for exponents other than RULER's."""
    if alpha == 2.0:
        return math.pi**2 / 6
    from scipy.special import zeta as any_zeta

    return float(any_zeta(alpha))


def least_coded(alpha: float) -> int:
    """Return the fewest words in all with which the third answer appears once."""
    return next(units for units in count(1) if appearances(units, ANSWER_RANKS.stop, alpha)[-1])


def generate_coded(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of coded words; raise LengthError if the third answer could not appear even once."""
    task = options(recipe, CodedTask)
    tally, rng = Tally(recipe.tokenizer), Random(recipe.seed)
    room = recipe.room
    if room // 50 < ANSWER_RANKS.stop:
        raise too_short(recipe.length, ANSWER_RANKS.stop * 50 + recipe.reserved)
    maker, step = CodedWordsMaker(room // 50, rng, tally, recipe.wrap, recipe.seed, task.alpha), room // 32
    vocabulary, sizes = maker.vocabulary(), range(room // LETTERS, MOST_WORDS * room, step)
    fuller = (size for size in sizes if tally.count(maker.text(vocabulary, size).pieces()) >= room)
    units = next(fuller, sizes[-1]) - step
    least = least_coded(task.alpha)
    for index in range(recipe.count):
        vocabulary, size = maker.vocabulary(), units
        while size >= least:  # as upstream does
            draft = maker.text(vocabulary, size)
            tokens = tally.count(draft.pieces())
            if tokens <= room:
                fitted = Fitted(draft, tokens, size, "upstream")
                break
            size -= step
        else:  # to the word, because upstream's steps would leave an answer out of the text
            make = partial(maker.text, vocabulary)
            fitted = Fit(make, tally.count, room, recipe.reserved, step, least, Draws(rng)).refine(size + step)
        yield recipe.fitted(index, fitted, "words", {"haystack": "coded words", "vocabulary": maker.size})
