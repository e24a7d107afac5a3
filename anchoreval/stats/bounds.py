"""Bounds of a mean that ask nothing of the law of values but its range, from few values as from many.

The values and one more at the far end of the range are weighted at random, all weightings that sum to 1 alike; the
bound is a quantile of the weighted mean (Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis
on the mean of a nonnegative variable", Math. Methods Statist. 14; Learned-Miller & Thomas 2019, arXiv 1905.06208). Of
right/wrong values it is Clopper & Pearson's; where all of G values are alike it lies 1 - a^(1/G) of the way to the far
end, since that share of what was not seen may lie there. That it holds for every law is proven for some and has no
counterexample. Values that share a source are one unit: its sum and size are drawn together. What is added is a unit
as large as hides as much as units of these very sizes can (`hidden`): of their size where all are alike, and almost
that of the largest where a few hold most values, for these may all have come out alike by chance.

A weighted mean is at most t where a sum of gamma variables is at most 0; its tail is that of the saddlepoint (Lugannani
& Rice 1980 in the form of Barndorff-Nielsen 1986), within 3% of a tail of 2.5% for one value and 0.3% for 20.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

CLOSE = 1e-9  # of the range: bounds are found to this
ROUNDED = 12  # digits to which units are alike
TAIL = 0.025  # of a bound, at which what units can hide is counted


@dataclass(frozen=True)
class Units:
    """Values in units that are independent: the sum of each unit and how many values it has.

    `falls` and `rises` say how far its sum may lie below and above the mean, where that is not as its size has it.
    """

    sums: tuple[float, ...]
    sizes: tuple[int, ...]
    falls: tuple[float, ...] = ()
    rises: tuple[float, ...] = ()

    @cached_property
    def mean(self) -> float:
        """The mean over values."""
        return math.fsum(self.sums) / sum(self.sizes)

    @cached_property
    def effective(self) -> float:
        """How many units of one size can hide as much as these; their number where all are of one size."""
        return alike(self.sizes)

    @cached_property
    def _added(self) -> float:
        """The size of what is added to a lower bound."""
        return sum(self.sizes) / (alike(self.falls) if any(self.falls) else self.effective)

    @cached_property
    def _kinds(self) -> tuple[Numbers, Numbers, Numbers]:
        """Sum, size and number of the units that are alike."""
        import numpy as np

        kinds, counts = np.unique(
            np.round(np.array([self.sums, self.sizes], np.float64), ROUNDED), axis=1, return_counts=True
        )
        return kinds[0], kinds[1], counts.astype(np.float64)

    def negated(self) -> Units:
        """The same units with every value's sign turned."""
        return Units(tuple(-value for value in self.sums), self.sizes, self.rises, self.falls)

    def below(self, mean: float, least: float) -> float:
        """One-sided p of "the mean is `mean` or less", for values that are `least` or more."""
        from scipy.special import ndtr

        return float(ndtr(self._root(mean, least)))

    def lower(self, tail: float, least: float, mid: bool = False) -> float:
        """The mean's lower bound with this probability of an error, for values that are `least` or more.

        `mid`: of the mean of two tails, with the value that is added and without it, as a mid-p is.
        """
        from scipy.special import ndtri

        aim, low, high = float(ndtri(tail)), least, self.mean
        if high - low < CLOSE:
            return least
        width = high - low
        root = self._middle if mid else self._root
        guess, before, last = high - min(width / 2, 2 * self._error()), high, root(high, least)
        for _ in range(60):
            at = root(guess, least)
            low, high = (guess, high) if at < aim else (low, guess)
            if high - low < CLOSE * width or abs(at - aim) < CLOSE:
                break
            slope = (
                (at - last) / (guess - before) if math.isfinite(at) and math.isfinite(last) and guess != before else 0.0
            )
            before, last = guess, at
            guess = guess + (aim - at) / slope if slope else (low + high) / 2
            if not low < guess < high:
                guess = (low + high) / 2
        return guess

    def _error(self) -> float:
        sums, sizes, counts = self._kinds
        return math.sqrt(float(counts @ (sums - self.mean * sizes) ** 2)) / sum(self.sizes) + 1 / (len(self.sums) + 1)

    def _middle(self, mean: float, least: float) -> float:
        """`_root` of the mean of the probabilities with the value that is added and without it."""
        from scipy.special import ndtr, ndtri

        return float(ndtri((ndtr(self._root(mean, least)) + ndtr(self._root(mean, None))) / 2))

    def _root(self, mean: float, least: float | None) -> float:
        """The normal quantile of the probability that the weighted mean is at most `mean`; None adds no value."""
        import numpy as np

        sums, sizes, counts = self._kinds
        steps = sums - mean * sizes
        if least is not None:
            steps, counts = np.append(steps, self._added * (least - mean)), np.append(counts, 1.0)
        lowest, highest = float(steps.min()), float(steps.max())
        if lowest >= 0 or highest <= 0:
            return -math.inf if highest > 0 else math.inf
        return _signed_root(steps, counts, 1 / lowest, 1 / highest)


def _signed_root(steps: Numbers, counts: Numbers, low: float, high: float) -> float:
    """r* of "the sum of `steps` times gamma variables of shape `counts` is at most 0" (Barndorff-Nielsen 1986).

    The cumulants are K(s) = -sum of counts * log(1 - s * steps), for s between `low` and `high`.
    """
    import numpy as np

    s = 0.0
    for _ in range(100):
        terms = steps / (1 - s * steps)
        first, second = float(counts @ terms), float(counts @ (terms * terms))
        low, high = (low, s) if first > 0 else (s, high)
        step = first / second
        following = s - step if low < s - step < high else (low + high) / 2
        if abs(following - s) * math.sqrt(second) < 1e-9:
            break
        s = following
    terms = steps / (1 - s * steps)
    second = float(counts @ (terms * terms))
    w = math.copysign(math.sqrt(max(0.0, 2 * float(counts @ np.log1p(-s * steps)))), s)
    if abs(w) < 1e-4:
        return float(counts @ terms**3) / float(3 * second**1.5)
    return w + math.log(s * math.sqrt(second) / w) / w


def alike(sizes: Sequence[float]) -> float:
    """How many units of one size can hide as much as those of these sizes."""
    return math.log(TAIL) / math.log1p(-hidden(sizes, TAIL))


def hidden(sizes: Sequence[float], tail: float) -> float:
    """The largest share of all values that are lost, in the mean, where with this chance no unit is seen to be.

    Every unit is lost with a chance of its own. The worst are 1 - rest / size, for the units larger than `rest`, as
    Lagrange's multiplier has it; of G units alike that is 1 - tail^(1/G).
    """
    logs, values, ordered = math.log(tail), 0.0, sorted((size for size in sizes if size > 0), reverse=True)
    for k, size in enumerate(ordered, 1):
        logs, values = logs + math.log(size), values + size
        rest = math.exp(logs / k)
        if k == len(ordered) or rest >= ordered[k]:
            break
    return (values - k * rest) / math.fsum(ordered)


def units_of(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None,
    falls: Sequence[float] = (),
    rises: Sequence[float] = (),
) -> Units:
    """The values by the source that `clusters` names; each by itself where it names none.

    `falls` and `rises` say of every value how far below and above the mean one may lie, where values differ in it.
    """
    if clusters is None:
        return Units(tuple(values), (1,) * len(values), tuple(falls), tuple(rises))
    counts = Counter(clusters)
    by_source = (_summed(each, clusters) if each else () for each in (values, falls, rises))
    sums, low, high = by_source
    return Units(sums, tuple(counts.values()), low, high)


def _summed(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, ...]:
    """The sums over sources, in the order in which these come."""
    sums: dict[Hashable, float] = dict.fromkeys(clusters, 0.0)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value
    return tuple(sums.values())
