"""Intervals of means and of paired differences, and the smallest difference that a number of pairs can show.

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

Unseen differences may be as large as a difference can be, so the ends for graded and clustered differences lie at least
1 - 0.025^(1/G) from the mean. With the normal quantile, the adjusted Wald interval covers 88 to 93% for 6 to 60 pairs
that almost all differ, or all differ in one direction; with the t quantile it covers at least 93%. The t interval of
log-probabilities, which are unbounded, holds for distributions that are not too skewed. No interval can account for
values that are too rare to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean
from typing import Literal

from anchoreval.stats.bounds import ROUNDED, Units, hidden, units_of

Method = Literal["clopper-pearson", "gaffke", "adjusted-wald", "exact-bound", "t"]

LEVEL = 0.95
ALPHA = 0.05
ONE_SIDED = ALPHA / 2
Z95 = 1.959963984540054
Z80 = 0.8416212335729143  # power 80%
SEED = 42
SAME = 1e-12  # scores closer than this are equal
FEW = 10  # the mid-p is used only from so many pairs upwards: of fewer, five that differ would be more than half


def mean_interval(scores: Sequence[float], clusters: Sequence[Hashable] | None = None) -> tuple[float, float, Method]:
    """Return the 95% interval of the mean of scores in 0..1, and its method.

    `clusters` names the source of each score; scores of one source count as one unit.
    """
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
    """Return the 95% interval of the mean of paired differences in -1..1, and its method.

    The interval never has zero width and always contains the mean. `binary`: all scores are right or wrong. `clusters`
    names the source of each pair, and `strata` its task if there are several: the tasks are then fixed, not sampled.
    """
    values, units = within_strata(differences, clusters, strata), units_within(differences, clusters, strata)
    return interval_within(differences, values, binary and not shared(clusters), units)


def interval_within(
    differences: Sequence[float], values: Sequence[float], wald: bool, units: Units
) -> tuple[float, float, Method]:
    """Return the `difference_interval` of differences, given their `values` from `within_strata`.

    `units` come from `units_within`. `wald`: all scores are right or wrong and share no source.
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
    """Return the number of sources that the values come from."""
    return len(values) if clusters is None else len(set(clusters))


def within_strata(
    values: Sequence[float], clusters: Sequence[Hashable] | None, strata: Sequence[Hashable] | None
) -> list[float]:
    """Return the values with the mean of every stratum moved to the mean of all, so that they vary only within strata.

    Deviations are scaled for the degrees of freedom that the means of strata cost (Cochran 1977, 5.4). Strata with one
    source are merged (5A.12). A source may lie in several strata.
    """
    moves = _moves(values, clusters, strata)
    mean = fmean(values) if moves else 0.0
    parts = zip(values, moves, strict=True)
    return [mean + (value - centre) * scale for value, (centre, scale) in parts] if moves else list(values)


def units_within(
    values: Sequence[float], clusters: Sequence[Hashable] | None, strata: Sequence[Hashable] | None
) -> Units:
    """Return the units of `within_strata` of values in -1..1, with how far each value may fall and rise.

    For example, in a stratum with mean 1 a value may fall by 2 and cannot rise.
    """
    moved, moves = within_strata(values, clusters, strata), _moves(values, clusters, strata)
    falls, rises = ([round((1 + sign * centre) * scale, ROUNDED) for centre, scale in moves] for sign in (1, -1))
    return units_of(moved, clusters, falls, rises)


def _moves(
    values: Sequence[float], clusters: Sequence[Hashable] | None, strata: Sequence[Hashable] | None
) -> list[tuple[float, float]]:
    """Return, for every value, the mean of its stratum and the factor of its deviation; empty for a single stratum."""
    if strata is None or len(set(strata)) < 2:
        return []
    units, moves = sources(values, clusters), [(0.0, 1.0)] * len(values)
    for members, count in _strata(strata, list(range(len(values))) if clusters is None else clusters):
        centre = math.fsum(values[i] for i in members) / len(members)
        scale = math.sqrt(count / (count - 1) * (units - 1) / units) if count > 1 else 1.0
        for i in members:
            moves[i] = centre, scale
    return moves


def _strata(strata: Sequence[Hashable], clusters: Sequence[Hashable]) -> list[tuple[list[int], int]]:
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


def detectable(
    differences: Sequence[float], clusters: Sequence[Hashable] | None = None, alpha: float = ALPHA
) -> float | None:
    """Return the smallest true mean difference that n pairs show with p < `alpha` at 80% power; None if none can."""
    binary = not shared(clusters) and all(d in (-1, 0, 1) for d in differences)
    mid = binary and by_mid_p(sum(d != 0 for d in differences), len(differences))
    units = units_of(differences, clusters)
    return detects(len(differences), units, deviation(differences, clusters), mid, alpha)


def detects(pairs: int, units: Units, size: float, mid: bool, alpha: float = ALPHA) -> float | None:
    """Return `detectable` for `pairs` pairs in `units` with the `deviation` `size`; `mid`: tested by McNemar's mid-p.

    It is the larger of two values: the normal approximation with the spread seen, less the part that the effect itself
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


def by_mid_p(differ: int, pairs: int) -> bool:
    """Return True if right/wrong pairs may be tested by McNemar's mid-p: at least 10, at most two thirds differing.

    The test keeps its level because the number of differing pairs varies too. If almost all pairs differ, its level
    reaches 7.7% (16 of 16).
    """
    return pairs >= FEW and 3 * differ <= 2 * pairs


def fewest(mid: bool, alpha: float = ALPHA) -> int:
    """Return how many sources must differ, all one way, so that the test reaches p < `alpha` and the interval omits 0.

    Five sources that differ have a mid-p of 3%, but an interval that contains 0.
    """
    least = math.floor(-math.log2(alpha)) + 1
    return max(6, least if mid else least + 1)


def spread(
    differences: Sequence[float], clusters: Sequence[Hashable] | None = None, size: float | None = None
) -> float:
    """Return the standard deviation of one pair's difference, after adding one pair of `size` on either side.

    `size` is by default the `typical_size` of the differences. If pairs share a source, the result is that of as many
    independent pairs whose mean is as uncertain.
    """
    n = len(differences) + 2
    mean = math.fsum(differences) / n
    squares = (math.fsum(d * d for d in differences) + 2 * (size or typical_size(differences)) ** 2) / n
    return math.sqrt(max(0.0, squares - mean * mean) * design_effect(differences, clusters))


def deviation(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Return the standard deviation of one pair's difference as seen, with no pair added."""
    mean = fmean(differences)
    squares = fmean((d - mean) ** 2 for d in differences)
    return math.sqrt(squares * design_effect(differences, clusters))


def typical_size(differences: Sequence[float]) -> float:
    """Return the root mean square of the differences that are not zero; 1.0, the largest possible, if all are zero."""
    squares = [d * d for d in differences if abs(d) >= SAME]
    return math.sqrt(fmean(squares)) if squares else 1.0


def t_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, strata: Sequence[Hashable] | None = None
) -> tuple[float | None, float | None]:
    """Return the paired t interval; (None, None) if the values do not vary, since their spread is then unknown."""
    error, df = standard_error(values, clusters, strata)
    if error is None:
        return None, None
    mean, half = fmean(values), t_quantile(df) * error
    return mean - half, mean + half


def standard_error(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, strata: Sequence[Hashable] | None = None
) -> tuple[float | None, float]:
    """Return the standard error of the mean and its degrees of freedom; (None, 0) if the values do not vary."""
    if sources(values, clusters) < 2 or max(values) == min(values):
        return None, 0
    units = units_of(within_strata(values, clusters, strata), clusters)
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


def shared(clusters: Sequence[Hashable] | None) -> bool:
    """Return True if any two values have the same source."""
    return clusters is not None and len(set(clusters)) < len(clusters)


def design_effect(values: Sequence[float], clusters: Sequence[Hashable] | None) -> float:
    """Return the variance of the mean of clustered values relative to independent ones; 1 without clusters.

    It uses the cluster-robust variance G/(G-1) * sum over clusters of (sum of residuals)^2 (Liang & Zeger 1986).
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
    """Return the two-sided 95% quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - ONE_SIDED))


def right_or_wrong(scores: Iterable[float]) -> bool:
    return all(score in (0, 1) for score in scores)
