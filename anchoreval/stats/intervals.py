"""Intervals of means and of paired differences, and the smallest difference that so many pairs can show.

Values are fractions 0..1 (differences -1..1). Every interval is two-sided, 95%.

| what | interval | source |
|---|---|---|
| mean of right/wrong scores | exact | Clopper & Pearson 1934 |
| mean of graded scores, or of scores that share a source | the same bound for any law (bounds.py) | Gaffke 2005 |
| difference of right/wrong scores | adjusted Wald: one pair added on either side, t | Bonett & Price 2012 |
| difference of graded scores, or of pairs that share a source | the bound for any law (bounds.py) | Gaffke 2005 |
| difference, no pair differs | +- the share that sources can hide, 1 - 0.05^(1/G) of G alike | Clopper & Pearson 1934 |
| the same over several tasks | variance within tasks only: the tasks are fixed | Cochran 1977, 5.4 |
| difference of log-probabilities | t, jackknife over sources | Efron & Stein 1981 |

What was not seen may be as large as a difference can be: ends of graded and clustered differences lie at least
1 - 0.025^(1/G) from the mean. With the normal quantile in place of t's the adjusted Wald interval covers 88 to 93% of 6
to 60 pairs that almost all differ, or differ in one direction; with t's at least 93. The t interval of
log-probabilities, which have no bound, holds for laws that are not too skewed; a value that is too rare to be seen is
in no interval.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean
from typing import Literal

from anchoreval.stats.bounds import ROUNDED, Units, hidden, units_of

Method = Literal["clopper-pearson", "gaffke", "adjusted-wald", "exact-bound"]

LEVEL = 0.95
ALPHA = 0.05
ONE_SIDED = ALPHA / 2
Z95 = 1.959963984540054
Z80 = 0.8416212335729143  # power 80%
SEED = 42
SAME = 1e-12  # scores closer than this are equal
FEW = 10  # pairs below which the mid-p is not used: of five that differ more than half do


def mean_interval(scores: Sequence[float], clusters: Sequence[Hashable] | None = None) -> tuple[float, float, Method]:
    """95% interval of the mean of scores in 0..1; `clusters` names each score's source, whole sources count as one."""
    from scipy.special import betaincinv

    if right_or_wrong(scores) and not shared(clusters):
        n, right = len(scores), round(sum(scores))
        low = float(betaincinv(right, n - right + 1, ONE_SIDED)) if right else 0.0
        high = float(betaincinv(right + 1, n - right, 1 - ONE_SIDED)) if right < n else 1.0
        return low, high, "clopper-pearson"
    units = units_of(scores, clusters)
    return max(0.0, units.lower(ONE_SIDED, 0.0)), min(1.0, -units.negated().lower(ONE_SIDED, -1.0)), "gaffke"


def difference_interval(
    differences: Sequence[float],
    binary: bool,
    clusters: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
) -> tuple[float, float, Method]:
    """95% interval of the mean of paired differences in -1..1; never of zero width, always holds the mean.

    `binary`: all scores are right or wrong. `clusters` names each pair's source, `strata` its task, where there are
    several: the mean is then that of these very tasks.
    """
    values, units = within_strata(differences, clusters, strata), units_within(differences, clusters, strata)
    return interval_within(differences, values, binary and not shared(clusters), units)


def interval_within(
    differences: Sequence[float], values: Sequence[float], wald: bool, units: Units
) -> tuple[float, float, Method]:
    """`difference_interval` of differences that vary within strata as `values` do (`within_strata`).

    `units` are those of `units_within`; `wald`: all scores are right or wrong and share no source.
    """
    n, mean = len(differences), fmean(differences)
    if all(abs(d) < SAME for d in differences):
        share = hidden(units.sizes, ALPHA)
        return -share, share, "exact-bound"
    if wald:
        centre = math.fsum(differences) / (n + 2)
        half = t_quantile(max(1, n - 1)) * spread(values, None, 1.0) / math.sqrt(n + 2)
        low, high, method = centre - half, centre + half, "adjusted-wald"
    else:
        low, method = units.lower(ONE_SIDED, -1.0, mid=True), "gaffke"
        high = -units.negated().lower(ONE_SIDED, -1.0, mid=True)
    return max(-1.0, min(low, mean)), min(1.0, max(high, mean)), method  # type: ignore[return-value]


def sources(values: Sequence[float], clusters: Sequence[Hashable] | None) -> int:
    """How many sources the values come from."""
    return len(values) if clusters is None else len(set(clusters))


def within_strata(
    values: Sequence[float], clusters: Sequence[Hashable] | None, strata: Sequence[Hashable] | None
) -> list[float]:
    """Return the values with every stratum moved to the mean of all, so that they vary as they do within strata.

    With the degrees of freedom that the means of strata cost (Cochran 1977, 5.4); strata of one source are put together
    (5A.12). A source may lie in several strata: its values move together.
    """
    moves = _moves(values, clusters, strata)
    mean = fmean(values) if moves else 0.0
    parts = zip(values, moves, strict=True)
    return [mean + (value - centre) * scale for value, (centre, scale) in parts] if moves else list(values)


def units_within(
    values: Sequence[float], clusters: Sequence[Hashable] | None, strata: Sequence[Hashable] | None
) -> Units:
    """The units of `within_strata` of values in -1..1: where a stratum's mean is 1, a value may fall by 2."""
    found, moves = within_strata(values, clusters, strata), _moves(values, clusters, strata)
    falls, rises = ([round((1 + sign * centre) * scale, ROUNDED) for centre, scale in moves] for sign in (1, -1))
    return units_of(found, clusters, falls, rises)


def _moves(
    values: Sequence[float], clusters: Sequence[Hashable] | None, strata: Sequence[Hashable] | None
) -> list[tuple[float, float]]:
    """The mean of every value's stratum, and by how much the deviation from it is stretched; none of one stratum."""
    if strata is None or len(set(strata)) < 2:
        return []
    units, found = sources(values, clusters), [(0.0, 1.0)] * len(values)
    for members, own in _strata(strata, list(range(len(values))) if clusters is None else clusters):
        centre = math.fsum(values[i] for i in members) / len(members)
        scale = math.sqrt(own / (own - 1) * (units - 1) / units) if own > 1 else 1.0
        for i in members:
            found[i] = centre, scale
    return found


def _strata(strata: Sequence[Hashable], clusters: Sequence[Hashable]) -> list[tuple[list[int], int]]:
    """Positions and number of sources of every stratum, those of one source put together."""
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


def detectable(
    differences: Sequence[float], clusters: Sequence[Hashable] | None = None, alpha: float = ALPHA
) -> float | None:
    """The smallest true mean difference that n pairs show with p < `alpha` at 80% power; None when none can be."""
    binary = not shared(clusters) and all(d in (-1, 0, 1) for d in differences)
    mid = binary and by_mid_p(sum(d != 0 for d in differences), len(differences))
    units = units_of(differences, clusters)
    return detects(len(differences), units, deviation(differences, clusters), mid, alpha)


def detects(pairs: int, units: Units, size: float, mid: bool, alpha: float = ALPHA) -> float | None:
    """`detectable` of so many pairs from these sources with this `deviation`; `mid`: by McNemar's mid-p.

    The larger of two: the normal approximation with the spread seen, less the part that the effect itself explains
    (Connor 1987), and the floor of the exact test, which needs `fewest` sources that differ:
    P(Binomial(sources, d) >= fewest) = 0.8, each by 1, as large as what was not seen may be.
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


def by_mid_p(differ: int, pairs: int) -> bool:
    """Whether so many right/wrong pairs, of which so many differ, may be tested by McNemar's mid-p.

    It keeps its size since the number that differ varies too; where almost all do it has up to 7.7% (16 of 16).
    """
    return pairs >= FEW and 3 * differ <= 2 * pairs


def fewest(mid: bool, alpha: float = ALPHA) -> int:
    """How many sources must differ, all one way, before the exact test can reach p < `alpha` and the interval leave 0.

    Five that differ have a mid-p of 3%, but an interval that holds 0.
    """
    least = math.floor(-math.log2(alpha)) + 1
    return max(6, least if mid else least + 1)


def spread(
    differences: Sequence[float], clusters: Sequence[Hashable] | None = None, size: float | None = None
) -> float:
    """Standard deviation of one pair's difference, after one pair of this size has been added on either side.

    The size is by default the root mean square of the differences that are not zero; 1.0, the largest possible, when
    all are. Where pairs share a source it is that of as many independent pairs with a mean as uncertain.
    """
    n = len(differences) + 2
    mean = math.fsum(differences) / n
    squares = (math.fsum(d * d for d in differences) + 2 * (size or typical_size(differences)) ** 2) / n
    return math.sqrt(max(0.0, squares - mean * mean) * design_effect(differences, clusters))


def deviation(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Standard deviation of one pair's difference as it was seen, with no pair added."""
    mean = fmean(differences)
    squares = fmean((d - mean) ** 2 for d in differences)
    return math.sqrt(squares * design_effect(differences, clusters))


def typical_size(differences: Sequence[float]) -> float:
    """Root mean square of the differences that are not zero; 1.0, the largest possible, when all are."""
    squares = [d * d for d in differences if abs(d) >= SAME]
    return math.sqrt(fmean(squares)) if squares else 1.0


def t_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, strata: Sequence[Hashable] | None = None
) -> tuple[float | None, float | None]:
    """Paired t interval; (None, None) where the values do not vary and so tell nothing of their spread."""
    error, df = standard_error(values, clusters, strata)
    if error is None:
        return None, None
    mean, half = fmean(values), t_quantile(df) * error
    return mean - half, mean + half


def standard_error(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, strata: Sequence[Hashable] | None = None
) -> tuple[float | None, float]:
    """Standard error of the mean and its degrees of freedom; None where the values do not vary."""
    if sources(values, clusters) < 2 or max(values) == min(values):
        return None, 0
    units = units_of(within_strata(values, clusters, strata), clusters)
    df = degrees(units.sizes) + 1 - _parts(clusters, strata)
    error = jackknife(units.sums, units.sizes)
    return (error, max(1.0, df)) if error > SAME * abs(units.mean) else (None, 0)


def jackknife(sums: Sequence[float], sizes: Sequence[float]) -> float:
    """Standard error of sum(sums) / sum(sizes) by leaving out one unit at a time (Efron & Stein 1981).

    With units of equal size that of the ordinary t test; with unequal ones it errs on the wide side ("CR3" of MacKinnon
    & White 1985).
    """
    total, size, n = math.fsum(sums), math.fsum(sizes), len(sums)
    without = [(total - value) / (size - own) for value, own in zip(sums, sizes, strict=True)]
    centre = fmean(without)
    return math.sqrt((n - 1) / n * math.fsum((value - centre) ** 2 for value in without))


def degrees(sizes: Sequence[float]) -> float:
    """Degrees of freedom of a mean over units of these sizes: as many equal units as weigh so, less one (Kish 1965)."""
    return math.fsum(sizes) ** 2 / math.fsum(size * size for size in sizes) - 1


def _parts(clusters: Sequence[Hashable] | None, strata: Sequence[Hashable] | None) -> int:
    """Into how many parts strata fall that have no source in common: each costs a degree of freedom."""
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
    alone = math.fsum((value - mean) ** 2 for value in values)
    if len(sums) < 2 or alone < SAME:
        return float(len(values)) / len(sums)
    n, g = len(values), len(sums)
    return g / (g - 1) * (n - 1) / n * math.fsum(value * value for value in sums.values()) / alone


def within_p(units: Units, margin: float) -> float:
    """Return p of "the mean is not within +-margin": the larger of two one-sided exact tests (Schuirmann 1987)."""
    return max(units.below(-margin, -1.0), units.negated().below(-margin, -1.0))


def t_quantile(df: float) -> float:
    """Two-sided 95% quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - ONE_SIDED))


def right_or_wrong(scores: Iterable[float]) -> bool:
    return all(score in (0, 1) for score in scores)
