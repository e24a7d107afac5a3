"""Intervals of means and of paired differences, and the smallest difference that a number of pairs can show.

Values are fractions 0..1 (differences -1..1). Every interval is two-sided, 95%.

| what | interval | source |
|---|---|---|
| mean of right/wrong scores | exact | Clopper & Pearson 1934 |
| mean of graded scores, or of scores that share a source | the same bound for any law (`Units`) | Gaffke 2005 |
| difference of right/wrong scores | adjusted Wald: one pair added on either side, t | Bonett & Price 2012 |
| difference of graded scores, or of pairs that share a source | the bound for any law (`Units`) | Gaffke 2005 |
| difference, no pair differs | +- the share that sources can hide, 1 - 0.05^(1/G) of G alike | Clopper & Pearson 1934 |
| the same over several tasks | variance within tasks only: the tasks are fixed | Cochran 1977, 5.4 |
| difference of log-probabilities | t, jackknife over sources | Efron & Stein 1981 |

Unseen differences may be as large as a difference can be, so the ends for graded and clustered differences lie at least
1 - 0.025^(1/G) from the mean. With the normal quantile, the adjusted Wald interval covers 88 to 93% for 6 to 60 pairs
that almost all differ, or all differ in one direction; with the t quantile it covers at least 93%. The t interval of
log-probabilities, which are unbounded, holds for distributions that are not too skewed. No interval can account for
values that are too rare to be seen.

The bound for any law assumes only the range of the values, not their distribution, and holds for few values too. The
values and one more value at the far end of the range get random weights, uniform over all weights that sum to 1. The
bound is a quantile of the weighted mean (Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis
on the mean of a nonnegative variable", Math. Methods Statist. 14; Learned-Miller & Thomas 2019, arXiv 1905.06208). For
right/wrong values it is Clopper & Pearson's bound. If all G values are equal, it lies 1 - a^(1/G) of the way to the far
end, since that share of the unseen values may lie there. Coverage is proven for some distributions, and no
counterexample is known.

Values that share a source form one unit: its sum and size are drawn together. The added unit has the size at which
units of equal size could hide as much as the given units can (`hidden`). That is the common size if all are equal, and
almost the largest size if a few units hold most values, because these few may agree by chance.

The weighted mean is at most t if and only if a sum of gamma variables is at most 0. The tail of that sum is computed by
the saddlepoint approximation (Lugannani & Rice 1980 in the form of Barndorff-Nielsen 1986), whose error in a tail of
2.5% is within 3% for one value and 0.3% for 20.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

Method = Literal["clopper-pearson", "gaffke", "adjusted-wald", "exact-bound", "t"]

LEVEL = 0.95
ALPHA = 0.05
ONE_SIDED = ALPHA / 2
Z95 = 1.959963984540054
Z80 = 0.8416212335729143  # power 80%
SAME = 1e-12  # scores closer than this are equal
CLOSE = 1e-9  # precision of a bound, as a share of the range
ROUNDED = 12  # units that are equal to so many digits are grouped
TAIL = 0.025  # the tail probability at which `effective` and the added unit are computed


@dataclass(frozen=True)
class Units:
    """Values grouped into independent units: the sum of each unit's values, and their number.

    `falls` and `rises` tell how far each sum may lie below and above the mean, if that does not follow from the size.
    """

    sums: tuple[float, ...]
    sizes: tuple[int, ...]
    falls: tuple[float, ...] = ()
    rises: tuple[float, ...] = ()

    @cached_property
    def mean(self) -> float:
        """The mean over all values."""
        return math.fsum(self.sums) / sum(self.sizes)

    @cached_property
    def effective(self) -> float:
        """The number of equal-sized units that can hide as much as these; their own number if all sizes are equal."""
        return math.log(TAIL) / math.log1p(-hidden(self.sizes, TAIL))

    @cached_property
    def _added(self) -> float:
        """The size of the unit that is added for a lower bound."""
        alike = math.log(TAIL) / math.log1p(-hidden(self.falls, TAIL)) if any(self.falls) else self.effective
        return sum(self.sizes) / alike

    @cached_property
    def _kinds(self) -> tuple[Numbers, Numbers, Numbers]:
        """Sum, size and count of each group of equal units."""
        import numpy as np

        kinds, counts = np.unique(
            np.round(np.array([self.sums, self.sizes], np.float64), ROUNDED), axis=1, return_counts=True
        )
        return kinds[0], kinds[1], counts.astype(np.float64)

    def negated(self) -> Units:
        """Return the units with the sign of every value turned."""
        return Units(tuple(-value for value in self.sums), self.sizes, self.rises, self.falls)

    def below(self, mean: float, least: float) -> float:
        """Return the one-sided p of "the mean is `mean` or less"; no value can be less than `least`."""
        from scipy.special import ndtr

        return float(ndtr(self._root(mean, least)))

    def lower(self, tail: float, least: float, mid: bool = False) -> float:
        """Return the lower bound of the mean with error probability `tail`; no value can be less than `least`.

        With `mid`, the tail is the mean of the tails with and without the added value, in the manner of a mid-p.
        """
        from scipy.special import ndtr, ndtri

        def root(mean: float) -> float:
            added = self._root(mean, least)
            return float(ndtri((ndtr(added) + ndtr(self._root(mean, None))) / 2)) if mid else added

        aim, low, high = float(ndtri(tail)), least, self.mean
        if high - low < CLOSE:
            return least
        width = high - low
        sums, sizes, counts = self._kinds
        error = math.sqrt(float(counts @ (sums - high * sizes) ** 2)) / sum(self.sizes) + 1 / (len(self.sums) + 1)
        guess, before, last = high - min(width / 2, 2 * error), high, root(high)
        for _ in range(60):  # the secant method, and bisection where it leaves the bracket
            at = root(guess)
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

    def _root(self, mean: float, least: float | None) -> float:
        """Return the normal quantile of P(weighted mean <= `mean`); no value is added if `least` is None."""
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
    """Return r* of "the sum of `steps` times gamma variables of shape `counts` is at most 0" (Barndorff-Nielsen 1986).

    The cumulant function is K(s) = -sum of counts * log(1 - s * steps), for s between `low` and `high`.
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


def hidden(sizes: Sequence[float], tail: float) -> float:
    """Return the largest expected share of values in lost units, given that with probability `tail` no unit is lost.

    Each unit is lost with a probability of its own. The worst case has the probabilities 1 - rest / size for units
    larger than `rest` (by a Lagrange multiplier). For G equal units the share is 1 - tail^(1/G).
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
    """Return the values grouped by their source in `clusters`; each value is a unit if `clusters` is None.

    `falls` and `rises` tell how far each value may lie below and above the mean, if that differs between values.
    """
    if clusters is None:
        return Units(tuple(values), (1,) * len(values), tuple(falls), tuple(rises))
    sums = []
    for column in (values, falls, rises):
        by_source: dict[Hashable, float] = dict.fromkeys(clusters if column else (), 0.0)
        for value, source in zip(column, clusters, strict=bool(column)):
            by_source[source] += value
        sums.append(tuple(by_source.values()))
    return Units(sums[0], tuple(Counter(clusters).values()), *sums[1:])


def within_strata(
    values: Sequence[float], clusters: Sequence[Hashable] | None, strata: Sequence[Hashable] | None
) -> tuple[list[float], Units]:
    """Return the values with the mean of every stratum moved to the mean of all, so that they vary only within strata.

    Deviations are scaled for the degrees of freedom that the means of strata cost (Cochran 1977, 5.4). Strata with one
    source are merged (5A.12). A source may lie in several strata. The units of the values, which are in -1..1, tell how
    far each may fall and rise: for example, in a stratum with mean 1 a value may fall by 2 and cannot rise.
    """
    if strata is None or len(set(strata)) < 2:
        return list(values), units_of(values, clusters)
    named = range(len(values)) if clusters is None else clusters
    mean, sources = fmean(values), len(set(named))
    moved, falls, rises = ([0.0] * len(values) for _ in range(3))
    for members, count in _merged_strata(strata, named):
        centre = math.fsum(values[i] for i in members) / len(members)
        scale = math.sqrt(count / (count - 1) * (sources - 1) / sources) if count > 1 else 1.0
        for i in members:
            moved[i] = mean + (values[i] - centre) * scale
            falls[i], rises[i] = round((1 + centre) * scale, ROUNDED), round((1 - centre) * scale, ROUNDED)
    return moved, units_of(moved, clusters, falls, rises)


def _merged_strata(strata: Sequence[Hashable], clusters: Sequence[Hashable]) -> list[tuple[list[int], int]]:
    """Return the positions and number of sources of every stratum; strata with one source are merged."""
    members: dict[Hashable, list[int]] = {}
    for i, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(i)
    alone = [at for at in members.values() if len({clusters[i] for i in at}) < 2]
    groups = [at for at in members.values() if len({clusters[i] for i in at}) > 1]
    if together := [i for at in alone for i in at]:
        if len({clusters[i] for i in together}) < 2 and groups:
            together += groups.pop()
        groups.append(together)
    return [(at, len({clusters[i] for i in at})) for at in groups]


def mean_interval(scores: Sequence[float], clusters: Sequence[Hashable] | None = None) -> tuple[float, float, Method]:
    """Return the 95% interval of the mean of scores in 0..1, and its method.

    `clusters` names the source of each score; scores of one source count as one unit.
    """
    from scipy.special import betaincinv

    n, units = len(scores), units_of(scores, clusters)
    if len(units.sizes) == n and all(score in (0, 1) for score in scores):
        right = round(sum(scores))
        low = float(betaincinv(right, n - right + 1, ONE_SIDED)) if right else 0.0
        high = float(betaincinv(right + 1, n - right, 1 - ONE_SIDED)) if right < n else 1.0
        return low, high, "clopper-pearson"
    return max(0.0, units.lower(ONE_SIDED, 0.0)), min(1.0, -units.negated().lower(ONE_SIDED, -1.0)), "gaffke"


def difference_interval(
    differences: Sequence[float],
    binary: bool,
    clusters: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
) -> tuple[float, float, Method]:
    """Return the 95% interval of the mean of paired differences in -1..1, and its method.

    The interval never has zero width and always contains the mean. `binary`: all scores are right or wrong. `clusters`
    names the source of each pair, and `strata` its task if there are several: the tasks are then fixed, not sampled.
    """
    return interval_within(differences, *within_strata(differences, clusters, strata), binary)


def interval_within(
    differences: Sequence[float], values: Sequence[float], units: Units, binary: bool
) -> tuple[float, float, Method]:
    """Return the `difference_interval` of differences whose values and units `within_strata` has returned."""
    n, mean = len(differences), fmean(differences)
    if all(abs(d) < SAME for d in differences):
        share = hidden(units.sizes, ALPHA)
        return -share, share, "exact-bound"
    if binary and len(units.sizes) == n:
        centre = math.fsum(differences) / (n + 2)
        half = t_quantile(max(1, n - 1)) * spreads(values, None, 1.0)[0] / math.sqrt(n + 2)
        return max(-1.0, min(centre - half, mean)), min(1.0, max(centre + half, mean)), "adjusted-wald"
    low = units.lower(ONE_SIDED, -1.0, mid=True)
    high = -units.negated().lower(ONE_SIDED, -1.0, mid=True)
    return max(-1.0, min(low, mean)), min(1.0, max(high, mean)), "gaffke"


def detects(pairs: int, units: Units, size: float, mid: bool, alpha: float = ALPHA) -> float | None:
    """Return the smallest true mean difference that the pairs show with p < `alpha` at 80% power; None if none can.

    `size` is the deviation of a pair, and `mid` tells that they are tested by McNemar's mid-p. It is the larger of two
    values: the normal approximation with the spread seen, less the part that the effect itself
    explains (Connor 1987); and the floor of the exact test, which needs `fewest` sources that differ:
    P(Binomial(sources, d) >= fewest) = 0.8, each by 1, since unseen differences may be that large.
    """
    from scipy.special import betaincinv, ndtri

    least = fewest(mid, alpha)
    if len(units.sizes) < least:
        return None
    floor = float(betaincinv(least, max(least, units.effective) - least + 1, 0.8))
    effect = 0.0
    for _ in range(4):
        rest = math.sqrt(max(0.0, size**2 - effect**2))
        effect = (float(ndtri(1 - alpha / 2)) * size + Z80 * rest) / math.sqrt(pairs)
    return min(1.0, max(effect, floor))


def t_detects(units: int, size: float, alpha: float = ALPHA) -> float:
    """Return the true mean that a two-sided t test over `units` of standard deviation `size` shows with 80% power.

    It follows from the noncentral t distribution.
    """
    from scipy.special import nctdtrinc, stdtrit

    critical = float(stdtrit(units - 1, 1 - alpha / 2))
    return float(nctdtrinc(units - 1, 0.2, critical)) * size / math.sqrt(units)


def fewest(mid: bool, alpha: float = ALPHA) -> int:
    """Return how many sources must differ, all one way, so that the test reaches p < `alpha` and the interval omits 0.

    Five sources that differ have a mid-p of 3%, but an interval that contains 0.
    """
    least = math.floor(-math.log2(alpha)) + 1
    return max(6, least if mid else least + 1)


def spreads(
    differences: Sequence[float], clusters: Sequence[Hashable] | None, size: float | None = None
) -> tuple[float, float, float]:
    """Return how much one pair's difference varies: its `spread`, its `deviation`, and its `typical` size.

    The spread is the standard deviation after adding one pair of `size` on either side, by default of the typical size;
    the deviation is the same as seen, with no pair added. If pairs share a source, both are those of as many
    independent pairs whose mean is as uncertain. The typical size is the root mean square of the differences that are
    not zero, and 1.0, the largest possible, if all are.
    """
    not_zero = [d * d for d in differences if abs(d) >= SAME]
    typical, effect = math.sqrt(fmean(not_zero)) if not_zero else 1.0, design_effect(differences, clusters)
    n, mean = len(differences) + 2, fmean(differences)
    centre = math.fsum(differences) / n
    squares = (math.fsum(d * d for d in differences) + 2 * (size or typical) ** 2) / n
    spread = math.sqrt(max(0.0, squares - centre * centre) * effect)
    return spread, math.sqrt(fmean((d - mean) ** 2 for d in differences) * effect), typical


def design_effect(values: Sequence[float], clusters: Sequence[Hashable] | None) -> float:
    """Return the variance of the mean of clustered values relative to independent ones; 1 without clusters.

    It uses the cluster-robust variance G/(G-1) * sum over clusters of (sum of residuals)^2 (Liang & Zeger 1986).
    """
    mean, sums = fmean(values), dict.fromkeys(clusters or (), 0.0)
    if clusters is None or len(sums) == len(values):
        return 1.0
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    alone = math.fsum((value - mean) ** 2 for value in values)
    if len(sums) < 2 or alone < SAME:
        return float(len(values)) / len(sums)
    n, g = len(values), len(sums)
    return g / (g - 1) * (n - 1) / n * math.fsum(value * value for value in sums.values()) / alone


def t_test(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, strata: Sequence[Hashable] | None = None
) -> tuple[float | None, float | None, float | None]:
    """Return the paired t interval and the two-sided p of a mean against 0, both robust to clusters.

    All three are None if the values do not vary, since their spread is then unknown.
    """
    from scipy.special import stdtr

    error, df = standard_error(values, clusters, strata)
    if error is None:
        return None, None, None
    mean, half = fmean(values), t_quantile(df) * error
    return mean - half, mean + half, float(2 * stdtr(df, -abs(mean) / error))


def standard_error(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, strata: Sequence[Hashable] | None = None
) -> tuple[float | None, float]:
    """Return the standard error of the mean and its degrees of freedom; (None, 0) if the values do not vary."""
    _, units = within_strata(values, clusters, strata)
    if len(units.sizes) < 2 or max(values) == min(values):
        return None, 0
    df = degrees(units.sizes) + 1 - _parts(clusters, strata)
    error = jackknife(units.sums, units.sizes)
    return (error, max(1.0, df)) if error > SAME * abs(units.mean) else (None, 0)


def jackknife(sums: Sequence[float], sizes: Sequence[float]) -> float:
    """Return the standard error of sum(sums) / sum(sizes) by leaving out one unit at a time (Efron & Stein 1981).

    For units of equal size it is that of the ordinary t test. For unequal sizes it errs on the wide side ("CR3" of
    MacKinnon & White 1985).
    """
    total, size, n = math.fsum(sums), math.fsum(sizes), len(sums)
    without = [(total - value) / (size - own) for value, own in zip(sums, sizes, strict=True)]
    centre = fmean(without)
    return math.sqrt((n - 1) / n * math.fsum((value - centre) ** 2 for value in without))


def degrees(sizes: Sequence[float]) -> float:
    """Return the degrees of freedom of a mean over units of these sizes: Kish's effective number less 1 (Kish 1965)."""
    return math.fsum(sizes) ** 2 / math.fsum(size * size for size in sizes) - 1


def _parts(clusters: Sequence[Hashable] | None, strata: Sequence[Hashable] | None) -> int:
    """Return the number of groups of strata without a common source; each group costs a degree of freedom."""
    if strata is None:
        return 1
    part: dict[Hashable, Hashable] = {stratum: stratum for stratum in strata}

    def root(stratum: Hashable) -> Hashable:
        while part[stratum] != stratum:
            stratum = part[stratum]
        return stratum

    first: dict[Hashable, Hashable] = {}
    for stratum, cluster in dict.fromkeys(zip(strata, clusters or (), strict=False)):
        part[root(stratum)] = root(first.setdefault(cluster, stratum))
    return len({root(stratum) for stratum in part})


def t_quantile(df: float) -> float:
    """Return the two-sided 95% quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - ONE_SIDED))
