"""What is asked of a law: the rates at which the package's own functions say something false, cover or find.

A question is a frozen line of a table (promises.py); `measure` calls the functions that `compare`, boards and `--until`
call. Rates of whole distributions have no error; the others that of so many simulated data sets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from statistics import fmean
from typing import NamedTuple
from zlib import crc32

import numpy as np
import pytest
from bench.sequential import WORDS, false_words, simulate
from numpy.typing import NDArray

from anchoreval import stats
from anchoreval.reports.board.cells import Mean, average
from anchoreval.runs.dealing import bets
from anchoreval.stats import Difference, Row
from anchoreval.stats.sequential import Until, Watcher
from simulation import laws
from simulation.laws import Drawn, Law, LogLaw

MARGIN = 0.01
TASKS = 13
EMPTY = Difference("task", 1, "arm", "baseline")


class Rate(NamedTuple):
    """A measured figure (a share, or a width in points), from so many simulated data sets (0: exact)."""

    value: float
    sims: int

    def error(self, nominal: float) -> float:
        """The Monte Carlo error of a share that is `nominal` in truth."""
        return math.sqrt(nominal * (1 - nominal) / self.sims) if self.sims else 0.0


Rates = Mapping[str, Rate]


def seeded(question: object) -> np.random.Generator:
    return np.random.default_rng(crc32(repr(question).encode()))


def row_of(drawn: Drawn) -> Row:
    """The row that compare shows of one task with these pairs."""
    return stats.family([judged(drawn)], MARGIN, [None])[0]


def judged(drawn: Drawn) -> Difference:
    return stats.judged(EMPTY, drawn.pairs, drawn.texts)


def false_said(row: Row, truth: float) -> bool:
    """Whether a word of the row is untrue: the wrong direction, or within the margin where the truth is not."""
    wrong = {"worse", "better"} if abs(truth) < 1e-9 else {"better" if truth < 0 else "worse"}
    return row.word in wrong or (row.verdict.within and abs(truth) > MARGIN - 1e-9)


def covers(low: float | None, high: float | None, truth: float) -> bool:
    return low is not None and high is not None and low - 1e-9 <= truth <= high + 1e-9


@dataclass(frozen=True)
class One:
    """One task of n pairs."""

    law: Law
    n: int
    sims: int = 1000

    def measure(self) -> Rates:
        """Shares of each word, of false ones, of intervals that hold the truth; their mean width in points."""
        exact, truth = self.law.enumerable, self.law.mean
        drawn = self.law.all(self.n) if exact else self.law.some(self.n, self.sims, seeded(self))
        found: Counter[str] = Counter()
        for each in drawn:
            row, weight = row_of(each), each.weight
            one = row.difference
            found["all"] += weight  # type: ignore[assignment]
            found[row.word] += weight  # type: ignore[assignment]
            found["within"] += weight * row.verdict.within
            found["false"] += weight * false_said(row, truth)
            found["coverage"] += weight * covers(one.low, one.high, truth)
            found["p"] += weight * (one.p is not None and one.p < 0.05)
            found["width"] += weight * ((one.high or 0.0) - (one.low or 0.0))
        found["told"] = found["worse"] + found["better"]
        found["any"] = found["told"] + found["equivalent"]
        sims = 0 if exact else self.sims
        names = ("worse", "better", "told", "any", "equivalent", "within", "false", "coverage", "p", "width")
        return {name: Rate(found[name] / found["all"], sims) for name in names}


#: (share that differs, true difference, pairs) -> share of words, width: by McNemar's test with adjusted Wald alone.
BEFORE = {
    (0.01, 0, 260): (0.0012, 0.03170),
    (0.01, 0, 500): (0.0088, 0.02038),
    (0.05, 0, 260): (0.0254, 0.05744),
    (0.05, 0, 500): (0.0298, 0.04037),
    (0.05, -0.02, 260): (0.2134, 0.05725),
    (0.05, -0.02, 500): (0.4398, 0.04022),
    (0.05, -0.05, 260): (0.9906, 0.05624),
    (0.05, -0.05, 500): (1.0000, 0.03945),
    (0.2, 0, 260): (0.0368, 0.10954),
    (0.2, 0, 500): (0.0395, 0.07871),
    (0.2, -0.02, 260): (0.0878, 0.10944),
    (0.2, -0.02, 500): (0.1455, 0.07863),
    (0.2, -0.05, 260): (0.3902, 0.10889),
    (0.2, -0.05, 500): (0.6764, 0.07823),
}


@dataclass(frozen=True)
class Against:
    """The power and the width of independent right/wrong pairs beside what McNemar and adjusted Wald give."""

    differ: float
    effect: float
    n: int

    def measure(self) -> Rates:
        """Both, what they were, and the larger cost: the share of power lost, or the share added to the width."""
        now, (told, width) = One(laws.right_wrong(self.differ, self.effect), self.n).measure(), BEFORE[astuple(self)]
        costs = [now["width"].value / width - 1, 1 - now["told"].value / told if self.effect else 0.0]
        found = {"told before": told, "width before": width, "cost": max(costs)}
        return {"told": now["told"], "width": now["width"]} | {name: Rate(value, 0) for name, value in found.items()}


@dataclass(frozen=True)
class Tasks:
    """13 tasks of n pairs each, all of one law, asked together."""

    law: Law
    n: int
    sims: int = 1000

    def measure(self) -> Rates:
        """Shares with any false word among the tasks, and those of the pooled row."""
        rng, truth = seeded(self), self.law.mean
        counts = rng.multinomial(self.n, self.law.chances, (self.sims, TASKS))
        task: dict[tuple[int, ...], Difference] = {}
        whole: dict[tuple[tuple[int, ...], ...], Row] = {}
        found: Counter[str] = Counter()
        for tasks in counts.tolist():
            keys = [tuple(each) for each in tasks]
            for key in keys:
                if key not in task:
                    task[key] = judged(self._spelled(key))
            rows = stats.family([task[key] for key in keys], MARGIN, [None] * TASKS)
            together = tuple(sorted(keys))
            if together not in whole:
                whole[together] = pooled_row([self._spelled(key) for key in together])
            pooled = whole[together]
            found["any"] += any(false_said(row, truth) for row in rows)
            found["pooled false"] += false_said(pooled, truth)
            found["pooled coverage"] += covers(pooled.difference.low, pooled.difference.high, truth)
            found["pooled within"] += pooled.verdict.within
            found["first"] += rows[0].word in ("worse", "better", "equivalent")
        return {
            name: Rate(found[name] / self.sims, self.sims)
            for name in ("any", "pooled false", "pooled coverage", "pooled within", "first")
        }

    def _spelled(self, counts: tuple[int, ...]) -> Drawn:
        pairs = laws.spelled(self.law.values, counts)
        return Drawn(1.0, pairs, self.law.texts(len(pairs)))


def pooled_row(tasks: Sequence[Drawn]) -> Row:
    """The row that compare shows of several tasks together."""
    pairs = [pair for task in tasks for pair in task.pairs]
    texts = [(i, text) for i, task in enumerate(tasks) for text in task.texts]
    strata = [i for i, task in enumerate(tasks) for _ in task.pairs]
    return stats.family([stats.judged(EMPTY, pairs, texts, strata)], MARGIN, [None])[0]


@dataclass(frozen=True)
class Spread:
    """13 tasks of 20 pairs that differ in effect: five lose nothing, five everything, three half."""

    sims: int = 300

    def measure(self) -> Rates:
        """Coverage and width of the pooled row."""
        rng, covered, width = seeded(self), 0, 0.0
        for _ in range(self.sims):
            lost = [0] * 5 + [20] * 5 + rng.binomial(20, 0.5, 3).tolist()
            pooled = pooled_row([
                Drawn(1.0, ((0.0, 1.0),) * k + ((1.0, 1.0),) * (20 - k), tuple(range(20))) for k in lost
            ]).difference  # fmt: skip
            covered += covers(pooled.low, pooled.high, -6.5 / 13)
            width += (pooled.high or 0.0) - (pooled.low or 0.0)
        return {"coverage": Rate(covered / self.sims, self.sims), "width": Rate(width / self.sims, self.sims)}


@dataclass(frozen=True)
class Detects:
    """What n pairs of which a share differ say they detect, and how often they would; among `tasks` that are alike."""

    differ: float
    n: int
    tasks: int = 1

    def measure(self) -> Rates:
        """The median of `detects` where nothing differs in truth, and how often so much is called worse."""
        others = [judged(Drawn(1.0, ((1.0, 1.0),) * self.n, tuple(range(self.n))))] * (self.tasks - 1)

        def row(drawn: Drawn) -> Row:
            return stats.family([judged(drawn), *others], MARGIN, [None] * self.tasks)[0]

        null = laws.right_wrong(self.differ).all(self.n)
        said = _median([(row(each).difference.detectable or 1.0, each.weight) for each in null])
        law = laws.right_wrong(max(self.differ, said), -said)
        found = [(row(each).word == "worse", each.weight) for each in law.all(self.n)]
        power = sum(weight for told, weight in found if told) / sum(weight for _, weight in found)
        return {"detects": Rate(said, 0), "power": Rate(power, 0)}


def _median(values: Sequence[tuple[float, float]]) -> float:
    total, seen = sum(weight for _, weight in values), 0.0
    for value, weight in sorted(values):
        seen += weight
        if seen >= total / 2:
            return value
    raise ValueError("no values")


@dataclass(frozen=True)
class Needs:
    """The number of samples that pilots say a verdict needs, in the median, and how often it then comes.

    Of one of `tasks` that all have the same law.
    """

    differ: float
    effect: float
    pilot: int
    tasks: int = 1
    sims: int = 312

    def measure(self) -> Rates:
        """The median of `needs about n` over pilots that cannot tell, and the share of any verdict at that n."""
        rng = seeded(self)
        pilots = [row.verdict.needs for row in self._rows(self.pilot, rng)]
        asked = [(float(needs), 1.0) for needs in pilots if needs]
        if not asked:
            return {}
        n = int(_median(asked))
        told = equal = count = 0
        for row in self._rows(n, rng):
            count += 1
            equal += row.verdict.within
            told += row.word in ("worse", "better") or row.verdict.within
        sims = self.sims
        return {"needs": Rate(n, sims), "told": Rate(told / count, sims), "within": Rate(equal / count, sims)}

    def _rows(self, n: int, rng: np.random.Generator) -> Iterator[Row]:
        law = laws.right_wrong(self.differ, self.effect)
        known: dict[tuple[int, ...], Difference] = {}
        for _ in range(self.sims // self.tasks):
            keys = [tuple(key) for key in rng.multinomial(n, law.chances, self.tasks).tolist()]
            for key in keys:
                if key not in known:
                    known[key] = judged(Drawn(1.0, laws.spelled(law.values, key), tuple(range(n))))
            yield from stats.family([known[key] for key in keys], MARGIN, [None] * self.tasks)


@dataclass(frozen=True)
class LogProbs:
    """Log-probability differences of n samples."""

    law: LogLaw
    n: int
    sims: int = 1000

    def measure(self) -> Rates:
        """Coverage of the interval, and how often it is said that the mean is not what it is."""
        texts, truth, found = self.law.texts(self.n), self.law.mean, Counter[str]()
        for values in self.law.some(self.n, self.sims, seeded(self)):
            shifted = [value - truth for value in values]
            one = logprob_row(shifted, texts)
            found["false"] += one.logprob_says in ("lower", "higher")
            found["coverage"] += covers(one.difference.logprob_low, one.difference.logprob_high, 0.0)
        return {name: Rate(found[name] / self.sims, self.sims) for name in ("false", "coverage")}


def logprob_row(
    values: Sequence[float],
    texts: Sequence[int],
    floor: stats.NoiseFloor | None = None,
    beyond: Sequence[Sequence[Difference]] = (),
) -> Row:
    return stats.family([stats.with_logprobs(EMPTY, values, texts)], MARGIN, [floor], beyond=beyond)[0]


@dataclass(frozen=True)
class LogPower:
    """How often a fall of all samples is told where one sample rises by 50 nats."""

    n: int
    sims: int = 500

    def measure(self) -> Rates:
        law = LogLaw("all fall by .1, one rises by 50")
        texts = law.texts(self.n)
        told = sum(
            "lower" in logprob_row(values, texts).logprob_says for values in law.some(self.n, self.sims, seeded(self))
        )
        return {"told": Rate(told / self.sims, self.sims)}


@dataclass(frozen=True)
class Score:
    """The interval of the mean of n scores."""

    law: Law
    n: int
    sims: int = 2000

    def measure(self) -> Rates:
        exact = self.law.enumerable
        drawn = self.law.all(self.n) if exact else self.law.some(self.n, self.sims, seeded(self))
        covered = whole = width = 0.0
        for each in drawn:
            low, high = score_interval([score for score, _ in each.pairs], each.texts)
            covered += each.weight * covers(low, high, self.law.mean)
            width += each.weight * (high - low)
            whole += each.weight
        sims = 0 if exact else self.sims
        return {"coverage": Rate(covered / whole, sims), "width": Rate(width / whole, sims)}


def score_interval(values: Sequence[float], texts: Sequence[int]) -> tuple[float, float]:
    """The interval that tables and boards show of these scores."""
    low, high, _ = stats.mean_interval(values, texts)
    return low, high


@dataclass(frozen=True)
class Averages:
    """The mean over 13 tasks of n right or wrong answers each."""

    shares: tuple[float, ...]
    n: int
    sims: int = 1000

    def measure(self) -> Rates:
        rng, covered = seeded(self), 0
        truth = fmean(self.shares)
        for right in rng.binomial(self.n, self.shares, (self.sims, TASKS)).tolist():
            means = {(str(i), 1): _mean_of(k, self.n) for i, k in enumerate(right)}
            found = average(means, [str(i) for i in range(TASKS)], {1: 1.0})
            covered += found is not None and covers(found.low, found.high, truth)
        return {"coverage": Rate(covered / self.sims, self.sims)}


@cache
def _mean_of(right: int, n: int) -> Mean:
    low, high, _ = stats.mean_interval([1.0] * right + [0.0] * (n - right))
    return Mean(0, asked=n, scored=n, mean=right / n, low=low, high=high)


@dataclass(frozen=True)
class Floor:
    """An arm and a placebo that differ from the baseline by noise alone: `swap` either way, `lose` for the worse."""

    swap: float
    lose: float
    n: int
    sims: int = 1000

    def measure(self) -> Rates:
        """How often the arm is called worse or better, with the placebo beside it and without."""
        rng, found = seeded(self), Counter[str]()
        for _ in range(self.sims):
            base = (rng.random(self.n) < 0.5) | (self.lose > 0)
            placebo, arm = (
                np.where(rng.random(self.n) < self.swap, rng.random(self.n) < 0.5, base)
                & (rng.random(self.n) >= self.lose)
                for _ in range(2)
            )
            effect = _answers(arm, base)
            floor = stats.noise_floor([_answers(placebo, base)])
            (row,) = stats.family([effect], MARGIN, [floor], beyond=[[_answers(arm, placebo)]])
            found["real"] += row.word in ("worse", "better")
            found["alone"] += stats.family([effect], MARGIN, [None])[0].word in ("worse", "better")
        return {name: Rate(found[name] / self.sims, self.sims) for name in ("real", "alone")}


def _answers(arm: NDArray[np.bool_], base: NDArray[np.bool_]) -> Difference:
    return _counted(int((base & ~arm).sum()), int((arm & ~base).sum()), len(arm))


@cache
def _counted(down: int, up: int, n: int) -> Difference:
    pairs = laws.spelled(((0.0, 1.0), (1.0, 0.0), (1.0, 1.0)), (down, up, n - down - up))
    return judged(Drawn(1.0, pairs, tuple(range(n))))


@dataclass(frozen=True)
class LogFloor:
    """The same for log-probabilities: both shifted alike, in standard deviations of one sample's noise."""

    shift: float
    n: int
    sims: int = 1000

    def measure(self) -> Rates:
        rng, found, texts = seeded(self), Counter[str](), range(self.n)
        for _ in range(self.sims):
            base, placebo, arm = rng.standard_normal((3, self.n)) / math.sqrt(2)
            one = stats.with_logprobs(EMPTY, (placebo - base + self.shift).tolist(), texts)
            floor = stats.noise_floor([replace(one, pairs=self.n, difference=0.0)])
            values = (arm - base + self.shift).tolist()
            beyond = stats.with_logprobs(EMPTY, (arm - placebo).tolist(), texts)
            found["real"] += logprob_row(values, texts, floor, [[beyond]]).logprob_says in ("lower", "higher")
            found["alone"] += logprob_row(values, texts).logprob_says in ("lower", "higher")
        return {name: Rate(found[name] / self.sims, self.sims) for name in ("real", "alone")}


@dataclass(frozen=True)
class Stops:
    """`--until` on independent right or wrong answers, a look after every 16 pairs, no more than `cap`."""

    down: float
    up: float
    margin: float
    cap: int
    sims: int = 2000

    def measure(self) -> Rates:
        """Shares of false and of missing verdicts, mean pairs used."""
        seed = crc32(repr(self).encode())
        word, used = simulate(
            self.down, self.up, Until(self.margin, 0.95), self.cap, simulations=self.sims, seed=seed
        )  # fmt: skip
        wrong = [WORDS.index(name) for name in false_words(round(self.up - self.down, 9), self.margin)]
        return {
            "false": Rate(float(np.isin(word, wrong).mean()), self.sims),
            "undecided": Rate(float((word == 0).mean()), self.sims),
            "used": Rate(float(used.mean()), self.sims),
        }


@dataclass(frozen=True)
class StopsTexts:
    """`--until` where pairs share texts: rounds of whole texts, 16 pairs or as many as end the last text."""

    law: Law
    n: int
    sims: int = 300

    def measure(self) -> Rates:
        found = Counter(self._word(row) for row in self.law.sequences(self.n, self.sims, seeded(self)).tolist())
        wrong = false_words(round(self.law.mean, 9), MARGIN)
        return {
            "false": Rate(sum(found[word] for word in wrong) / self.sims, self.sims),
            "undecided": Rate(found["undecided"] / self.sims, self.sims),
        }

    def _word(self, codes: Sequence[int]) -> str:
        watcher, texts = Watcher(Until(MARGIN, 0.95)), self.law.texts(self.n)
        rounds = -(-16 // self.law.each) * self.law.each  # whole texts, as they are dealt
        for start in range(0, self.n, rounds):
            pairs = [self.law.values[code] for code in codes[start : start + rounds]]
            arm, base = zip(*pairs, strict=True)
            watcher.add(*bets(arm, base, texts[start : start + rounds]))
            if watcher.word != "undecided":
                break
        return watcher.word


@dataclass(frozen=True)
class StoppedPooled:
    """The pooled row of 13 tasks without a difference, each of which `--until 5pt@95%` ended."""

    differ: float
    sims: int = 120

    def measure(self) -> Rates:
        law, false, rng = laws.right_wrong(self.differ), 0, seeded(self)
        for _ in range(self.sims):
            tasks = []
            for codes in law.sequences(256, TASKS, rng).tolist():
                pairs = [law.values[code] for code in codes]
                watcher, used = Watcher(Until(0.05, 0.95)), 0
                while used < len(pairs) and watcher.word == "undecided":
                    watcher.add([arm - base for arm, base in pairs[used : used + 16]])
                    used += 16
                pairs = pairs[:used]
                tasks.append(Drawn(1.0, tuple(pairs), tuple(range(len(pairs)))))
            false += pooled_row(tasks).word in ("worse", "better")
        return {"false": Rate(false / self.sims, self.sims)}


Question = (
    One | Against | Tasks | Spread | Detects | Needs | LogProbs | LogPower | Score | Averages | Floor | LogFloor | Stops
    | StopsTexts | StoppedPooled
)  # fmt: skip


def measured(question: Question) -> Rates:
    """The figures of a question, with fewer resamples where an answer takes long (F1's any value)."""
    law = getattr(question, "law", None)
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(law, laws.F1):
            patch.setitem(stats.sign_flip.__globals__, "FLIPS", 999)
        return question.measure()
