"""Means over tasks: the statistics of each task, and the interval of their average.

The interval adds 4 / T pseudo-scores, half of them right, to each of T tasks, and is Wald's interval about the mean of
those (Agresti & Coull 1998 for one proportion, Price & Bonett 2004 for several), with the unbiased variance of each
task. If scores share sources, whole sources are added, of the effective size of the task's sources (bounds.py).
Combining the intervals of 13 tasks instead (MOVER) covered only 86 to 90% when tasks are near the ceiling.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from anchoreval.stats.bounds import units_of
from anchoreval.stats.intervals import LEVEL, Z95, degrees, right_or_wrong, shared

PSEUDO = 4.0  # total number of pseudo-scores over all tasks


@dataclass(frozen=True, slots=True)
class Sampled:
    """How the scores of one task vary: variance, number of independent scores, degrees of freedom.

    If scores share sources, `independent` counts sources, and `variance` is that of so many independent scores whose
    mean is as uncertain. `df` is None for right/wrong scores that share no source, because their variance follows from
    their mean. `sources` names the sources, and `shares` holds what each adds to the deviation of the mean.
    """

    variance: float
    independent: float
    df: float | None
    sources: Sequence[Hashable] = field(default=(), repr=False)
    shares: Sequence[float] = field(default=(), repr=False)


def sampled(scores: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Sampled:
    """Return how scores vary; `clusters` names the source of each score."""
    mean = fmean(scores)
    variance = max(0.0, fmean(score * score for score in scores) - mean * mean)
    shares = dict.fromkeys(clusters or (), 0.0)
    for score, source in zip(scores, clusters or (), strict=bool(clusters)):
        shares[source] += (score - mean) / len(scores)
    columns = _packed(list(shares)), array("d", shares.values())
    if shared(clusters):
        units = units_of(scores, clusters)
        alone, together = variance / len(scores), math.fsum(share * share for share in shares.values())
        return Sampled(max(alone, together) * units.effective, units.effective, degrees(units.sizes), *columns)
    return Sampled(variance, len(scores), None if right_or_wrong(scores) else len(scores) - 1, *columns)


def _packed(sources: Sequence[Hashable]) -> Sequence[Hashable]:
    """Return the sources in eight bytes each if all are 64-bit marks, else as they are."""
    marks = [source for source in sources if type(source) is int and 0 <= source < 2**64]
    return array("Q", marks) if len(marks) == len(sources) else sources


def of_right_or_wrong(mean: float, count: int) -> Sampled:
    """Return how `count` independent right/wrong scores with this mean vary."""
    return Sampled(mean * (1 - mean), count, None)


def average_interval(parts: Sequence[tuple[float, float, Sampled]]) -> tuple[float, float]:
    """Return the 95% interval of the mean of several tasks in 0..1; `parts` are (weight, mean, Sampled) of each.

    A source that several parts share (such as the same needle at every length) widens the interval.
    """
    total, added = math.fsum(weight for weight, _, _ in parts), PSEUDO / len(parts)
    centre, errors = 0.0, []
    for weight, mean, scores in parts:
        n = scores.independent + added
        pseudo = (scores.independent * mean + added / 2) / n
        square = (scores.independent * (scores.variance + mean * mean) + added / 2) / n
        centre += weight / total * pseudo
        few = max(2.0, scores.independent)  # for the unbiased variance: n / (n - 1)
        errors.append(((weight / total) ** 2 * max(0.0, square - pseudo * pseudo) / n * few / (few - 1), scores.df))
    overlap = _overlap(parts)
    half = _quantile(errors, overlap) * math.sqrt(overlap * math.fsum(error for error, _ in errors))
    value = math.fsum(weight * mean for weight, mean, _ in parts) / total
    return max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value))


def _overlap(parts: Sequence[tuple[float, float, Sampled]]) -> float:
    """Return the variance of the mean relative to parts without common sources; at least 1.

    It follows from the sum over parts of what each source adds, as for clusters (Liang & Zeger 1986).
    """
    together: dict[Hashable, float] = {}
    apart = 0.0
    for weight, _, scores in parts:
        for source, share in zip(scores.sources, scores.shares, strict=True):
            together[source] = together.get(source, 0.0) + weight * share
            apart += (weight * share) ** 2
    return max(1.0, math.fsum(share * share for share in together.values()) / apart) if apart > 0 else 1.0


def _quantile(errors: Sequence[tuple[float, float | None]], again: float) -> float:
    """Return Student's quantile for a sum of variances (Satterthwaite 1946), or the normal one if none is estimated.

    `again` is the factor of `_overlap`; it divides the degrees of freedom.
    """
    from scipy.special import stdtrit

    estimated = math.fsum(error * error / max(1, df) for error, df in errors if df is not None)
    whole = math.fsum(error for error, _ in errors)
    if not estimated:
        return Z95
    return float(stdtrit(max(1.0, whole * whole / estimated / again), 1 - (1 - LEVEL) / 2))
