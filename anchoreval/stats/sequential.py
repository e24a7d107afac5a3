"""An anytime-valid test of paired differences in -1..1: look after every sample, stop when the verdict is in.

Each difference is bet on once, and its mean must not depend on the differences before it. Samples that share a source
violate this, so the bet is on the mean of a source's differences, once all of them are in.

Grid-Kelly betting (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B
86(1), section 5 and the appendix on betting strategies). Against "the mean is m or less" the capital

    K_t(m) = sum over j of w_j * product over i <= t of (1 + l_j (d_i - m)),    0 <= l_j <= 1, m <= 0

is a non-negative supermartingale that starts at 1, so the probability that it ever reaches 1/a is at most a (Ville
1939), however often one looks. For right/wrong scores and m = 0 it is the mixture test on the pairs that differ
(Robbins 1970; Howard et al. 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Ann. Statist.
49(2)).

`worse` or `better`: the mean is not 0, each side at a/2. `equivalent`: the mean is above -margin and below +margin,
each side at a (two one-sided tests). All tests use the same bets l_j, so K_t(-margin) >= K_t(0) always (it holds for
each factor). The verdict is therefore false with probability a at most, whatever the mean is. If it is 0, only worse
and better are false, with a/2 each. If it is within the margin, only the other direction is false, with a/2. If it is
beyond the margin, the false verdicts (the other direction, equivalent) lie in one event of probability a.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from anchoreval.errors import AnchorEvalError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SequentialWord = Literal["worse", "better", "equivalent", "undecided"]
METHOD = "grid-Kelly betting test (Waudby-Smith & Ramdas 2024), each verdict at this level whenever it is looked at"
BETS = 24
FULL = 0.25  # weight of the boldest bet, l = 1


@dataclass(frozen=True, slots=True)
class Until:
    """Stop a cell when every arm's verdict is in: worse, better, or equivalent within `margin` (a fraction)."""

    margin: float
    level: float

    def __str__(self) -> str:
        """Return the spelling that `parse_until` reads."""
        return f"{100 * self.margin:g}pt@{100 * self.level:g}%"


def parse_until(text: str) -> Until:
    """Return the rule of `1pt@95%`: margin in points, level in percent; raise AnchorEvalError for another form."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)pts?@(\d+(?:\.\d+)?)%", text.replace(" ", ""))
    if not match:
        raise AnchorEvalError(f"--until {text!r} is no rule: margin in points and level in percent, e.g. 1pt@95%")
    margin, level = float(match[1]) / 100, float(match[2]) / 100
    if not 0 < margin < 1:
        raise AnchorEvalError(f"--until {text!r}: the margin is above 0 and below 100 points")
    if not 0.5 <= level < 1:
        raise AnchorEvalError(f"--until {text!r}: the level is from 50% to below 100%")
    return Until(margin, level)


def bets() -> tuple[tuple[float, float], ...]:
    """Return (l_j, w_j): 24 bets that are denser towards 0, and l = 1; the weights sum to 1."""
    small = [((j + 0.5) / BETS) ** 2 for j in range(BETS)]
    return (*((bet, (1 - FULL) / BETS) for bet in small), (1.0, FULL))


class Capital:
    """The capital of bets against "the mean is m or less" (m from -1 to 0), after the differences so far."""

    def __init__(self, m: float) -> None:
        if not -1 <= m <= 0:
            raise ValueError(f"m = {m} is not in -1..0")
        self._m = m
        self._logs = [0.0] * (BETS + 1)

    def add(self, difference: float) -> None:
        """Add a difference in -1..1."""
        for j, (bet, _) in enumerate(bets()):
            factor = 1 + bet * (difference - self._m)
            self._logs[j] += math.log(factor) if factor > 0 else -math.inf

    @property
    def log(self) -> float:
        """The natural logarithm of the capital."""
        top = max(self._logs)
        if top == -math.inf:
            return top
        pairs = zip(bets(), self._logs, strict=True)
        return top + math.log(math.fsum(weight * math.exp(log - top) for (_, weight), log in pairs))


@dataclass(frozen=True, slots=True)
class Sequential:
    """A verdict, the number of pairs after which it was reached (or of all pairs), and the mean of the values bet on.

    `bets` is the number of pairs, or of sources if pairs share them. `low` and `high` are the confidence sequence at
    that point: with the probability of the rule's level it contains the mean at all times at once.
    """

    word: SequentialWord
    pairs: int
    difference: float | None
    low: float
    high: float
    rule: Until
    bets: int

    def __str__(self) -> str:
        """Return `worse`, `better`, `equivalent within 1` (points) or `undecided`."""
        within = f" within {100 * self.rule.margin:g}"
        return self.word + (within if self.word == "equivalent" else "")


class Watcher:
    """The test of one arm against its baseline at one task and length; once reached, its verdict does not change."""

    def __init__(self, rule: Until) -> None:
        self._rule = rule
        self._up, self._down = Capital(0.0), Capital(0.0)  # bets against "not better", and against "not worse"
        self._above, self._below = Capital(-rule.margin), Capital(-rule.margin)
        self._reached = {"above": False, "below": False}
        self._seen: list[float] = []
        self._pairs = 0
        self.word: SequentialWord = "undecided"

    def add(self, differences: Iterable[float], pairs: int | None = None) -> None:
        """Add a round of differences in -1..1 and look once; do nothing after the verdict.

        `pairs` is the number of pairs behind them, if each difference is the mean of a source.
        """
        if self.word != "undecided":
            return
        before = len(self._seen)
        for difference in differences:
            self._seen.append(difference)
            for capital, sign in ((self._up, 1), (self._above, 1), (self._down, -1), (self._below, -1)):
                capital.add(sign * difference)
        self._pairs += len(self._seen) - before if pairs is None else pairs
        self._look()

    def _look(self) -> None:
        alpha = 1 - self._rule.level
        different, within = math.log(2 / alpha), math.log(1 / alpha)
        self._reached["above"] |= self._above.log >= within
        self._reached["below"] |= self._below.log >= within
        if self._up.log >= different or self._down.log >= different:
            self.word = "better" if self._up.log > self._down.log else "worse"
        elif all(self._reached.values()):
            self.word = "equivalent"

    @property
    def result(self) -> Sequential:
        """The verdict so far."""
        n = len(self._seen)
        low, high = confidence_sequence(self._seen, self._rule.level)
        return Sequential(self.word, self._pairs, math.fsum(self._seen) / n if n else None, low, high, self._rule, n)


def confidence_sequence(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return bounds of the mean from all differences so far; they hold at every n at once with probability `level`.

    They enclose all m for which the capital of bets that the mean is above (below) m is less than 2/(1 - level). The
    ends are found by bisection.
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    bound = math.log(2 / (1 - level))
    return _lower(values, bound), -_lower(-values, bound)


def _lower(values: NDArray[np.float64], bound: float) -> float:
    """Return the largest m that the capital rejects, to 1e-9; -1 if it rejects none."""
    low, high = -1.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        if log_capital(values, middle) >= bound:
            low = middle
        else:
            high = middle
    return low


def log_capital(values: NDArray[np.float64], m: float) -> float:
    """Return the log capital against "the mean is m or less" for m in -1..1; for m > 0, bets are divided by 1 + m."""
    import numpy as np
    from scipy.special import logsumexp

    grid = np.array(bets())
    factors = 1 + (grid[:, :1] / (1 + max(m, 0.0))) * (values[None, :] - m)
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(factors, 0.0)).sum(axis=1)
    return float(logsumexp(logs, b=grid[:, 1]))
