"""Intervals of means and of paired differences, and the smallest difference that so many pairs can show.

Values are fractions 0..1 (differences -1..1). Every interval is two-sided, 95%.

| what | interval | source |
|---|---|---|
| mean of right/wrong scores | Wilson | Wilson 1927 |
| mean of graded scores | t, cut to 0..1; Wilson on the mean where the scores do not vary (or n < 2) | |
| difference of right/wrong scores | adjusted Wald: one pair added on either side | Bonett & Price 2012 |
| difference of graded scores | paired bootstrap, two pairs added, expanded percentiles | Hesterberg 2015 |
| difference, samples that share a source | the same, whole clusters drawn | Davison & Hinkley 1997, 3.8 |
| difference, no pair differs | +- the share of differing pairs n can hide, 1 - 0.05^(1/n) | Clopper 1934 |
| difference of log-probabilities | paired t, cluster-robust where samples share a source | Liang & Zeger 1986 |

Without the two added pairs the percentile bootstrap covered 87% where 7% of 20 pairs differ; with them
95-100%. Where all differences are multiples of one step the percentiles are those of every possible resample
(`exact`), else those of 5,000.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

from anchoreval.stats.exact import resampled

if TYPE_CHECKING:
    from numpy.typing import NDArray

Method = Literal["wilson", "t", "adjusted-wald", "bootstrap", "cluster-bootstrap", "exact-bound"]

LEVEL = 0.95
Z95 = 1.959963984540054
Z80 = 0.8416212335729143  # power 80%
RESAMPLES = 5_000
SEED = 42
SAME = 1e-12  # scores closer than this are equal
FEWEST_ONE_SIDED = 6  # pairs that must differ, all one way, before the exact test can reach p < 0.05


def mean_interval(scores: Sequence[float], clusters: Sequence[Hashable] | None = None) -> tuple[float, float, Method]:
    """95% interval of the mean of scores in 0..1: Wilson for 0/1, t cut to 0..1 for graded ones."""
    n, mean = len(scores), fmean(scores)
    if right_or_wrong(scores) or n < 2 or max(scores) - min(scores) < SAME:
        low, high = wilson(mean, n)
        return low, high, "wilson"
    half = _t_quantile(n - 1) * stdev(scores) / math.sqrt(n)
    return max(0.0, mean - half), min(1.0, mean + half), "t"


def wilson(mean: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion `mean` of n (conservative for graded scores in 0..1)."""
    shrink = 1 + Z95**2 / n
    centre = (mean + Z95**2 / (2 * n)) / shrink
    half = Z95 / shrink * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n * n))
    return (0.0 if mean <= 0 else max(0.0, centre - half)), (1.0 if mean >= 1 else min(1.0, centre + half))


def difference_interval(
    differences: Sequence[float], binary: bool, clusters: Sequence[Hashable] | None = None
) -> tuple[float, float, Method]:
    """95% interval of the mean of paired differences in -1..1; never of zero width, always holds the mean.

    `binary`: all scores are right or wrong. `clusters` names each pair's source; whole sources are drawn where
    several pairs share one.
    """
    n, mean = len(differences), fmean(differences)
    if all(abs(d) < SAME for d in differences):
        hidden = 1 - (1 - LEVEL) ** (1 / n)
        return -hidden, hidden, "exact-bound"
    if shared(clusters):
        low, high = _cluster_bootstrap(differences, clusters or ())
        return max(-1.0, min(low, mean)), min(1.0, max(high, mean)), "cluster-bootstrap"
    if binary:
        centre, half = sum(differences) / (n + 2), Z95 * spread(differences) / math.sqrt(n + 2)
        low, high = centre - half, centre + half
    else:
        low, high = _bootstrap(differences)
    method: Method = "adjusted-wald" if binary else "bootstrap"
    return max(-1.0, min(low, mean)), min(1.0, max(high, mean)), method


def detectable(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float | None:
    """The smallest true mean difference that n pairs show with p < 0.05 at 80% power; None when none can be.

    The larger of two: the normal approximation with the spread seen here, and the floor of the exact test,
    which needs six pairs that differ: P(Binomial(n, d) >= 6) = 0.8, times the typical size of a difference.
    """
    from scipy.special import betaincinv

    n = len(differences)
    if n < FEWEST_ONE_SIDED:
        return None
    floor = float(betaincinv(FEWEST_ONE_SIDED, n - FEWEST_ONE_SIDED + 1, 0.8)) * typical_size(differences)
    return min(1.0, max((Z95 + Z80) * spread(differences, clusters) / math.sqrt(n + 2), floor))


def spread(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard deviation of one pair's difference, after one pair has been added on either side.

    Where pairs share a source it is that of as many independent pairs with a mean as uncertain (design effect).
    """
    n = len(differences) + 2
    mean = sum(differences) / n
    squares = (sum(d * d for d in differences) + 2 * typical_size(differences) ** 2) / n
    return math.sqrt(max(0.0, squares - mean * mean) * design_effect(differences, clusters))


def typical_size(differences: Sequence[float]) -> float:
    """Root mean square of the differences that are not zero; 1.0, the largest possible, when all are."""
    squares = [d * d for d in differences if abs(d) >= SAME]
    return math.sqrt(fmean(squares)) if squares else 1.0


def _bootstrap(differences: Sequence[float]) -> tuple[float, float]:
    """Expanded percentile interval over pairs plus two added; of the exact distribution where there is one."""
    import numpy as np
    from scipy.special import ndtr

    typical, n = typical_size(differences), len(differences)
    tail = float(ndtr(-math.sqrt((n + 2) / (n + 1)) * _t_quantile(n + 1)))
    values: NDArray[np.float64]
    values, counts = np.unique(np.round(differences, 12), return_counts=True)
    if (ends := resampled(values, counts, typical, (tail, 1 - tail))) is not None:
        return ends[0], ends[1]
    values, counts = np.unique(np.round([*differences, typical, -typical], 12), return_counts=True)
    rng = np.random.default_rng(SEED)
    means = rng.multinomial(n + 2, counts / (n + 2), size=RESAMPLES) @ values / (n + 2)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _cluster_bootstrap(differences: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """Expanded percentile interval of the mean where whole clusters are drawn; two clusters of one pair are added."""
    import numpy as np
    from scipy.special import ndtr

    typical = typical_size(differences)
    sums = {"+": typical, "-": -typical} | dict.fromkeys(clusters, 0.0)
    sizes = {"+": 1, "-": 1} | dict.fromkeys(clusters, 0)
    for difference, cluster in zip(differences, clusters, strict=True):
        sums[cluster] += difference
        sizes[cluster] += 1
    kinds, counts = np.unique(
        np.round(np.stack([list(sums.values()), list(sizes.values())]), 12), axis=1, return_counts=True
    )
    rng, units = np.random.default_rng(SEED), len(sums)
    drawn = rng.multinomial(units, counts / units, size=RESAMPLES)
    means = (drawn @ kinds[0]) / (drawn @ kinds[1])
    tail = float(ndtr(-math.sqrt(units / (units - 1)) * _t_quantile(units - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def t_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> tuple[float | None, float | None]:
    """Paired t interval; (None, None) where the values do not vary and so tell nothing of their spread."""
    error, df = standard_error(values, clusters)
    if error is None:
        return None, None
    mean, half = fmean(values), _t_quantile(df) * error
    return mean - half, mean + half


def standard_error(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> tuple[float | None, int]:
    """Standard error of the mean and its degrees of freedom; None where the values do not vary."""
    units = len(set(clusters)) if clusters and shared(clusters) else len(values)
    if units < 2 or max(values) == min(values):
        return None, 0
    return stdev(values) / math.sqrt(len(values)) * math.sqrt(design_effect(values, clusters)), units - 1


def shared(clusters: Sequence[Hashable] | None) -> bool:
    """Whether any two pairs have the same source."""
    return clusters is not None and len(set(clusters)) < len(clusters)


def design_effect(values: Sequence[float], clusters: Sequence[Hashable] | None) -> float:
    """The variance of the mean of values drawn in clusters, over that of as many independent ones; 1 without.

    The cluster-robust variance G/(G-1) * sum over clusters of (sum of residuals)^2 (Liang & Zeger 1986).
    """
    if not shared(clusters) or clusters is None:
        return 1.0
    mean, sums = fmean(values), dict.fromkeys(clusters, 0.0)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    alone = sum((value - mean) ** 2 for value in values)
    if len(sums) < 2 or alone < SAME:
        return float(len(values)) / len(sums)
    n, g = len(values), len(sums)
    return g / (g - 1) * (n - 1) / n * sum(value * value for value in sums.values()) / alone


def _t_quantile(df: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - (1 - LEVEL) / 2))


def right_or_wrong(scores: Iterable[float]) -> bool:
    return all(score in (0, 1) for score in scores)
