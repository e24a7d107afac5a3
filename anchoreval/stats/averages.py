"""Means over tasks: what is averaged of every task, and the interval of the average.

The interval adds 4 / T pseudo-scores, half of them right, to each of T tasks, and is Wald's about the mean of those
(Agresti & Coull 1998 for one proportion, Price & Bonett 2004 for several), with the unbiased variance of each task.
Putting the intervals of 13 tasks together instead (MOVER) covered 86 to 90% where tasks are near the ceiling.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean

from anchoreval.stats.intervals import LEVEL, Z95, design_effect, right_or_wrong, shared

PSEUDO = 4.0  # scores that are added to all tasks together


@dataclass(frozen=True, slots=True)
class Sampled:
    """How the scores of one task vary: their variance, as how many independent ones they count, degrees of freedom.

    `df` is None for right/wrong scores that share no source, whose variance follows from their mean.
    """

    variance: float
    independent: float
    df: int | None


def sampled(scores: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Sampled:
    """What scores say of their mean; `clusters` names the source of every one."""
    mean = fmean(scores)
    variance = max(0.0, fmean(score * score for score in scores) - mean * mean)
    if shared(clusters):
        effect = max(1.0, design_effect(scores, clusters))
        return Sampled(variance, len(scores) / effect, len(set(clusters or ())) - 1)
    return Sampled(variance, len(scores), None if right_or_wrong(scores) else len(scores) - 1)


def of_right_or_wrong(mean: float, count: int) -> Sampled:
    """The same of `count` independent right/wrong scores."""
    return Sampled(mean * (1 - mean), count, None)


def average_interval(parts: Sequence[tuple[float, float, Sampled]]) -> tuple[float, float]:
    """95% interval of the mean of several tasks in 0..1; `parts` are weight, mean and scores of each."""
    total, added = sum(weight for weight, _, _ in parts), PSEUDO / len(parts)
    centre, errors = 0.0, []
    for weight, mean, scores in parts:
        n = scores.independent + added
        pseudo = (scores.independent * mean + added / 2) / n
        square = (scores.independent * (scores.variance + mean * mean) + added / 2) / n
        centre += weight / total * pseudo
        few = max(2.0, scores.independent)  # a variance of few scores is too small by one in so many
        errors.append(((weight / total) ** 2 * max(0.0, square - pseudo * pseudo) / n * few / (few - 1), scores.df))
    half = _quantile(errors) * math.sqrt(sum(error for error, _ in errors))
    value = sum(weight * mean for weight, mean, _ in parts) / total
    return max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value))


def _quantile(errors: Sequence[tuple[float, int | None]]) -> float:
    """Student's quantile with the degrees of freedom of a sum of variances (Satterthwaite 1946), or the normal one."""
    from scipy.special import stdtrit

    estimated = sum(error * error / max(1, df) for error, df in errors if df is not None)
    whole = sum(error for error, _ in errors)
    return Z95 if not estimated else float(stdtrit(whole * whole / estimated, 1 - (1 - LEVEL) / 2))
