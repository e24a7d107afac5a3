"""Laws of data: score pairs (arm, baseline), log-probability differences and scores whose mean is known.

A law with `each` above 1 draws texts of so many pairs: every pair says what its text says with a chance whose square
is `alike`, else what it says alone, so that two pairs of a text have the correlation `alike`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Pair = tuple[float, float]
Numbers = NDArray[np.float64]
LEAST = 1e-8  # rarer outcomes of a whole distribution are left out, together less than 1e-5


@dataclass(frozen=True)
class Drawn:
    """A data set: its chance among all, score pairs, and the number of the text that each is about."""

    weight: float
    pairs: tuple[Pair, ...]
    texts: tuple[int, ...]

    @property
    def differences(self) -> list[float]:
        return [arm - base for arm, base in self.pairs]


@dataclass(frozen=True)
class Law:
    """Score pairs with their chances; `mean` is the true difference."""

    values: tuple[Pair, ...]
    chances: tuple[float, ...]
    each: int = 1
    alike: float = 0.0

    @property
    def mean(self) -> float:
        return sum(p * (arm - base) for (arm, base), p in zip(self.values, self.chances, strict=True))

    @property
    def enumerable(self) -> bool:
        """Whether all data sets of a size can be listed: independent pairs of up to three kinds."""
        return self.each == 1 and len(self.values) <= 3

    def texts(self, n: int) -> tuple[int, ...]:
        return tuple(i // self.each for i in range(n))

    def all(self, n: int) -> Iterator[Drawn]:
        """Every data set of n pairs, in an order that does not matter, with its chance."""
        kinds, chances = self.values, self.chances
        texts = self.texts(n)
        for head in product(*(_likely(n, p) for p in chances[:-1])):
            counts = (*head, n - sum(head))
            if counts[-1] >= 0 and (weight := _multinomial(counts, chances)) > LEAST:
                yield Drawn(weight, spelled(kinds, counts), texts)

    def some(self, n: int, sims: int, rng: np.random.Generator) -> Iterator[Drawn]:
        """`sims` data sets of n pairs, equal ones put together."""
        for codes, count in self.codes(n, sims, rng):
            yield Drawn(count / sims, tuple(self.values[code] for code in codes), self.texts(n))

    def codes(self, n: int, sims: int, rng: np.random.Generator) -> Iterator[tuple[tuple[int, ...], int]]:
        """The same as indices into `values`, texts in order, and how often each data set was drawn."""
        if self.each == 1:
            found, times = np.unique(rng.multinomial(n, self.chances, sims), axis=0, return_counts=True)
            for counts, count in zip(found, times, strict=True):
                yield tuple(np.repeat(np.arange(len(counts)), counts).tolist()), int(count)
            return
        drawn = self.sequences(n, sims, rng)
        whole = n - n % self.each
        texts = np.sort(drawn[:, :whole].reshape(sims, -1, self.each), axis=2)
        order = np.lexsort(texts.transpose(2, 0, 1), axis=1)
        texts = np.take_along_axis(texts, order[:, :, None], axis=1).reshape(sims, whole)
        found, times = np.unique(np.concatenate([texts, drawn[:, whole:]], axis=1), axis=0, return_counts=True)
        for row, count in zip(found, times, strict=True):
            yield tuple(row.tolist()), int(count)

    def sequences(self, n: int, sims: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Indices into `values`, a row for each data set, in the order in which pairs come."""
        alone = rng.choice(len(self.values), (sims, n), p=self.chances)
        if self.each == 1:
            return alone
        text = rng.choice(len(self.values), (sims, -(-n // self.each)), p=self.chances)
        joined = rng.random((sims, n)) < math.sqrt(self.alike)
        found: NDArray[np.int64] = np.where(joined, np.repeat(text, self.each, axis=1)[:, :n], alone)
        return found


def _likely(n: int, p: float) -> range:
    """The counts of n that come about with a chance above LEAST, and some more."""
    width = 6 * math.sqrt(n * p * (1 - p)) + 7
    return range(max(0, math.floor(n * p - width)), min(n, math.ceil(n * p + width)) + 1)


def _multinomial(counts: tuple[int, ...], chances: tuple[float, ...]) -> float:
    log = math.lgamma(sum(counts) + 1)
    for count, p in zip(counts, chances, strict=True):
        if count:
            log += count * math.log(p) - math.lgamma(count + 1) if p else -math.inf
    return math.exp(log)


def spelled(kinds: tuple[Pair, ...], counts: tuple[int, ...]) -> tuple[Pair, ...]:
    """So many pairs of each kind."""
    return tuple(kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count))


def law(*values: tuple[float, float, float], each: int = 1, alike: float = 0.0) -> Law:
    """The law of (arm, baseline, chance), those of no chance left out; the rest are two right answers."""
    kept = [value for value in values if value[2] > 1e-12]
    rest = 1 - sum(chance for *_, chance in kept)
    kept += [(1.0, 1.0, rest)] if rest > 1e-12 else []
    return Law(tuple((a, b) for a, b, _ in kept), tuple(p for *_, p in kept), each, alike)


def right_wrong(differ: float, effect: float = 0.0, each: int = 1, alike: float = 0.0) -> Law:
    """Right or wrong answers: a share `differ` of pairs differ, and the true difference is `effect`."""
    return law((0, 1, (differ - effect) / 2), (1, 0, (differ + effect) / 2), each=each, alike=alike)


def six_steps(differ: float, each: int = 1, alike: float = 0.0) -> Law:
    """Scores 0, .2 .. 1, arms exchangeable: a share `differ` of pairs hold two different ones."""
    steps = [i / 5 for i in range(6)]
    return law(*((a, b, differ / 30) for a in steps for b in steps if a != b), each=each, alike=alike)


def lose_and_gain(lost: float, size: float, gain: float, gained: float) -> Law:
    """A few pairs lose `size`, many gain `gain`."""
    return law((1 - size, 1, lost), (0.5 + gain, 0.5, gained))


def lose_and_move(lost: float, moved: float, by: float) -> Law:
    """A few pairs lose everything, others move by a little either way."""
    return law((0, 1, lost), (0.5 + by, 0.5, moved / 2), (0.5 - by, 0.5, moved / 2))


@dataclass(frozen=True)
class F1(Law):
    """Scores of any value: 10% lose .5 to 1, the rest gain so little that the mean difference is 0."""

    enumerable = False

    def some(self, n: int, sims: int, rng: np.random.Generator) -> Iterator[Drawn]:
        for _ in range(sims):
            lost, loss, gain = rng.random(n) < 0.1, rng.uniform(0.5, 1, n), rng.uniform(0, 1 / 6, n)
            pairs = tuple(
                (1 - float(x), 1.0) if hit else (0.5 + float(y), 0.5)
                for hit, x, y in zip(lost, loss, gain, strict=True)
            )
            yield Drawn(1 / sims, pairs, self.texts(n))


F1_SKEWED = F1(((0.25, 1.0), (0.5 + 1 / 12, 0.5)), (0.1, 0.9))  # its mean is that of the two kinds: 0


@dataclass(frozen=True)
class LogLaw:
    """Differences of log-probability by name (LOGPROBS), texts of `each` pairs with correlation 0.7.

    `third`: the first text holds a third of all pairs.
    """

    name: str
    each: int = 1
    third: bool = False

    @property
    def mean(self) -> float:
        return LOGPROBS[self.name][1]

    def texts(self, n: int) -> tuple[int, ...]:
        large = n // 3 if self.third else 0
        return (*[0] * large, *(1 + i // self.each for i in range(n - large)))

    def some(self, n: int, sims: int, rng: np.random.Generator) -> Iterator[list[float]]:
        draw, texts = LOGPROBS[self.name][0], np.array(self.texts(n))
        for _ in range(sims):
            values = draw(rng, n)
            if self.each > 1 or self.third:
                values = math.sqrt(0.7) * draw(rng, texts.max() + 1)[texts] + math.sqrt(0.3) * values
            yield values.tolist()


def _lognormal(s: float) -> tuple[Callable[[np.random.Generator, int], Numbers], float]:
    return lambda rng, n: -np.exp(s * rng.standard_normal(n)), -math.exp(s * s / 2)


def _outlier(rng: np.random.Generator, n: int) -> Numbers:
    return np.where(rng.random(n) < 1 / 200, -50.0, 0.01 * rng.standard_normal(n))


def _falls(rng: np.random.Generator, n: int) -> Numbers:
    return np.where(rng.random(n) < 0.05, -2.0, rng.uniform(-0.01, 0.01, n))


def _muted(rng: np.random.Generator, n: int) -> Numbers:
    values = rng.normal(-0.1, 0.3, n)
    values[rng.integers(n)] = 50.0
    return values


LOGPROBS: dict[str, tuple[Callable[[np.random.Generator, int], Numbers], float]] = {
    "normal": (lambda rng, n: rng.standard_normal(n), 0.0),
    "t, 3 df": (lambda rng, n: rng.standard_t(3, n), 0.0),
    "- exponential": (lambda rng, n: -rng.exponential(1.0, n), -1.0),
    "lognormal, s = 1": _lognormal(1.0),
    "lognormal, s = 1.5": _lognormal(1.5),
    "5% fall by 2 nats, rest +- .01": (_falls, -0.1),
    "50 nats with probability 1/200": (_outlier, -0.25),
    "all fall by .1, one rises by 50": (_muted, -0.1),
}


def scores(*values: tuple[float, float], each: int = 1) -> Law:
    """Scores with their chances, written as pairs with a baseline of 0; texts of `each` with correlation 0.7."""
    return Law(tuple((score, 0.0) for score, _ in values), tuple(p for _, p in values), each, 0.7 if each > 1 else 0.0)


@dataclass(frozen=True)
class Beta(Law):
    """Scores of any value: beta(.3, 3), or beta(.5, .5) where texts have several, which is as wide as F1 is."""

    enumerable = False

    def some(self, n: int, sims: int, rng: np.random.Generator) -> Iterator[Drawn]:
        texts = self.texts(n)
        for _ in range(sims):
            alone = rng.beta(0.3, 3.0, n) if self.each == 1 else rng.beta(0.5, 0.5, n)
            if self.each > 1:
                text = rng.beta(0.5, 0.5, texts[-1] + 1)[list(texts)]
                alone = np.where(rng.random(n) < math.sqrt(self.alike), text, alone)
            yield Drawn(1 / sims, tuple((float(x), 0.0) for x in alone), texts)


BETA = Beta(((0.3 / 3.3, 0.0),), (1.0,))
F1_TEXTS = Beta(((0.5, 0.0),), (1.0,), 4, 0.7)
