"""Means over tasks: what is averaged of every task, and the interval of the average.

The interval adds 4 / T pseudo-scores, half of them right, to each of T tasks, and is Wald's about the mean of those
(Agresti & Coull 1998 for one proportion, Price & Bonett 2004 for several), with the unbiased variance of each task.
Where scores share sources, what is added are whole sources, as large as hides as much as these can (bounds.py).
Putting the intervals of 13 tasks together instead (MOVER) covered 86 to 90% where tasks are near the ceiling.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from anchoreval.stats.bounds import units_of
from anchoreval.stats.intervals import LEVEL, Z95, degrees, right_or_wrong, shared

PSEUDO = 4.0  # scores that are added to all tasks together


@dataclass(frozen=True, slots=True)
class Sampled:
    """How the scores of one task vary: their variance, as how many independent ones they count, degrees of freedom.

    Where they share sources these count, and the variance is that of so many with a mean as uncertain. `df` is None for
    right/wrong scores that share no source, whose variance follows from their mean. `sources` names what the scores
    come from, and `shares` what each adds to the deviation of their mean.
    """

    variance: float
    independent: float
    df: float | None
    sources: Sequence[Hashable] = field(default=(), repr=False)
    shares: Sequence[float] = field(default=(), repr=False)


def sampled(scores: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Sampled:
    """What scores say of their mean; `clusters` names the source of every one."""
    mean = fmean(scores)
    variance = max(0.0, fmean(score * score for score in scores) - mean * mean)
    shares = dict.fromkeys(clusters or (), 0.0)
    for score, source in zip(scores, clusters or (), strict=bool(clusters)):
        shares[source] += (score - mean) / len(scores)
    own = _packed(list(shares)), array("d", shares.values())
    if shared(clusters):
        units = units_of(scores, clusters)
        alone, together = variance / len(scores), math.fsum(share * share for share in shares.values())
        return Sampled(max(alone, together) * units.effective, units.effective, degrees(units.sizes), *own)
    return Sampled(variance, len(scores), None if right_or_wrong(scores) else len(scores) - 1, *own)


def _packed(sources: Sequence[Hashable]) -> Sequence[Hashable]:
    """The same in eight bytes each where all are 64-bit marks."""
    marks = [source for source in sources if type(source) is int and 0 <= source < 2**64]
    return array("Q", marks) if len(marks) == len(sources) else sources


def of_right_or_wrong(mean: float, count: int) -> Sampled:
    """The same of `count` independent right/wrong scores."""
    return Sampled(mean * (1 - mean), count, None)


def average_interval(parts: Sequence[tuple[float, float, Sampled]]) -> tuple[float, float]:
    """95% interval of the mean of several tasks in 0..1; `parts` are weight, mean and scores of each.

    A source of several parts, a needle that is the same at every length, widens it.
    """
    total, added = math.fsum(weight for weight, _, _ in parts), PSEUDO / len(parts)
    centre, errors = 0.0, []
    for weight, mean, scores in parts:
        n = scores.independent + added
        pseudo = (scores.independent * mean + added / 2) / n
        square = (scores.independent * (scores.variance + mean * mean) + added / 2) / n
        centre += weight / total * pseudo
        few = max(2.0, scores.independent)  # a variance of few scores is too small by one in so many
        errors.append(((weight / total) ** 2 * max(0.0, square - pseudo * pseudo) / n * few / (few - 1), scores.df))
    again = _overlap(parts)
    half = _quantile(errors, again) * math.sqrt(again * math.fsum(error for error, _ in errors))
    value = math.fsum(weight * mean for weight, mean, _ in parts) / total
    return max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value))


def _overlap(parts: Sequence[tuple[float, float, Sampled]]) -> float:
    """The variance of the mean where sources are those of several parts, over that of parts with their own; 1 at least.

    From the sums over parts of what each source adds, as for clusters (Liang & Zeger 1986).
    """
    together: dict[Hashable, float] = {}
    apart = 0.0
    for weight, _, scores in parts:
        for source, share in zip(scores.sources, scores.shares, strict=True):
            together[source] = together.get(source, 0.0) + weight * share
            apart += (weight * share) ** 2
    return max(1.0, math.fsum(share * share for share in together.values()) / apart) if apart > 0 else 1.0


def _quantile(errors: Sequence[tuple[float, float | None]], again: float) -> float:
    """Student's quantile with the degrees of freedom of a sum of variances (Satterthwaite 1946), or the normal one.

    Those of sources that count `again` times are so many times fewer.
    """
    from scipy.special import stdtrit

    estimated = math.fsum(error * error / max(1, df) for error, df in errors if df is not None)
    whole = math.fsum(error for error, _ in errors)
    if not estimated:
        return Z95
    return float(stdtrit(max(1.0, whole * whole / estimated / again), 1 - (1 - LEVEL) / 2))
