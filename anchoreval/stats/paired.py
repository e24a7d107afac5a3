"""Scores of two arms -> their paired difference. Pure: no files, no model.

Values are fractions 0..1 (differences -1..1). Pairs whose facts name the same source are not independent: intervals and
p values then use whole sources. The p value of right/wrong scores is McNemar's mid-p over the pairs that differ, if
these are at most two thirds, else the exact p. Graded or clustered scores get a sign-flip test. All these tests ask
whether the arms are exchangeable. Arms that are not may still have equal means; only the interval tells.

Rows over several tasks or lengths are about exactly these tasks and lengths: variation between them is not noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from anchoreval.errors import RunError
from anchoreval.schema import OUTCOMES, SCORED, Outcome
from anchoreval.stats.bounds import Units, units_of
from anchoreval.stats.intervals import (
    SAME,
    Method,
    by_mid_p,
    detects,
    deviation,
    interval_within,
    right_or_wrong,
    shared,
    spread,
    t_interval,
    typical_size,
    units_within,
    within_strata,
)
from anchoreval.stats.scores import Scores
from anchoreval.stats.significance import mcnemar, mean_p, sign_flip, sign_test

#: Reasons why a pair is left out, besides outcomes.
UNSCORED, ALONE, OTHER_PROMPT = "without a score", "on one side only", "with another prompt"


@dataclass(frozen=True, slots=True)
class Difference:
    """`arm` minus `baseline` over the samples that have a score in both; task or length is None in pooled rows.

    `left_out`          the number of samples that only one arm has, or that lack a score in one
    `lost`              the same by reason: an outcome, UNSCORED, ALONE or OTHER_PROMPT
    `discordant`        the number of pairs that differ in score
    `same_outputs`      the number of pairs with equal text; None if not known
    `detectable`        the smallest true difference that these pairs would show (p < 0.05) four times in five
    `clusters`          the number of sources of the pairs
    `spread`            the standard deviation of one pair (intervals.spread)
    `deviation`         the same as seen, with no pair added
    `typical`           the root mean square of the differences that are not zero
    `logprob_spread`    the root mean square of the differences of log-probability
    `logprob_lower`, `logprob_higher`, `logprob_sign_p`
                        the number of sources with a lower and a higher log-probability, and their sign test's p
    `mid`               True if `p` is McNemar's mid-p
    `units`             the differences by source, as they vary within tasks
    `environments_apart`  the number of pairs whose answers come from two environments
    """

    task: str | None
    length: int | None
    arm: str
    baseline: str
    pairs: int = 0
    left_out: int = 0
    mean_arm: float | None = None
    mean_baseline: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    method: Method | None = None
    discordant: int = 0
    p: float | None = None
    detectable: float | None = None
    logprob_pairs: int = 0
    logprob: float | None = None
    logprob_low: float | None = None
    logprob_high: float | None = None
    clusters: int = 0
    spread: float | None = None
    logprob_p: float | None = None
    logprob_spread: float | None = None
    same_outputs: int | None = None
    lost: Mapping[str, int] = field(default_factory=dict, hash=False)
    deviation: float | None = None
    logprob_lower: int = 0
    logprob_higher: int = 0
    logprob_sign_p: float | None = None
    mid: bool = False
    typical: float = 1.0
    units: Units | None = field(default=None, compare=False, repr=False)
    environments_apart: int = 0

    def reversed(self) -> Difference:
        """Return the difference of the same pairs the other way round: `baseline` minus `arm`."""
        low, high = _negated(self.high), _negated(self.low)
        lp_low, lp_high = _negated(self.logprob_high), _negated(self.logprob_low)
        return replace(
            self,
            arm=self.baseline,
            baseline=self.arm,
            mean_arm=self.mean_baseline,
            mean_baseline=self.mean_arm,
            difference=_negated(self.difference),
            low=low,
            high=high,
            logprob=_negated(self.logprob),
            logprob_low=lp_low,
            logprob_high=lp_high,
            logprob_lower=self.logprob_higher,
            logprob_higher=self.logprob_lower,
            units=self.units and self.units.negated(),
        )


def difference_of(both: Iterable[tuple[Scores, Scores]], unscored: Difference, apart: bool = False) -> Difference:
    """Return `unscored` filled in from pairs (scores of the arm, scores of the baseline), one pair per place.

    Raise RunError if the two saw different prompts for a sample; with `apart`, leave such samples out instead.
    """
    scores: list[tuple[float, float]] = []
    clusters: list[int] = []
    strata: list[int] = []
    logprobs: list[tuple[float, int, int]] = []
    reasons: list[str] = []
    same = environments = 0
    for place, (a, b) in enumerate(both):
        pairs, other = matched(a, b)
        if other and not apart:
            first = a.sample(other[0][0])
            raise RunError(f"{len(other)} samples had different prompts in the two arms, the first: {first}")
        reasons += [ALONE] * (len(a.index) + len(b.index) - 2 * len(pairs) - 2 * len(other))
        reasons += [OTHER_PROMPT] * len(other)
        for i, j in pairs:
            environments += a.environment[i] != b.environment[j]
            if (x := a.score[i]) == x and (y := b.score[j]) == y:
                scores.append((x, y))
                clusters.append(a.cluster[i])
                strata.append(place)
                same += a.output[i] == b.output[j]
            else:
                reasons.append(why_lost(a.outcome_at(i) if x != x else b.outcome_at(j)))
            if (value := a.logprob[i] - b.logprob[j]) == value:
                logprobs.append((value, a.cluster[i], place))
    difference = left_out(replace(unscored, same_outputs=same, environments_apart=environments), reasons)
    if logprobs:
        difference = with_logprobs(difference, *(list(column) for column in zip(*logprobs, strict=True)))
    return judged(difference, scores, clusters, strata)


def matched(a: Scores, b: Scores) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the positions (in `a`, in `b`) of common samples, in the order of `a`: same prompt, different prompt."""
    if a.index == b.index:
        both = [(i, i) for i in range(len(a.index))]
    else:
        at = {index: j for j, index in enumerate(b.index)}
        both = [(i, at[index]) for i, index in enumerate(a.index) if index in at]
    if not (other := [(i, j) for i, j in both if a.prompt[i] != b.prompt[j]]):
        return both, []
    apart = set(other)
    return [pair for pair in both if pair not in apart], other


def why_lost(outcome: Outcome | None) -> str:
    """Return the reason why a sample without a score is left out: its outcome, or UNSCORED if that is a scored one."""
    return UNSCORED if outcome is None or outcome in SCORED else outcome


def left_out(difference: Difference, reasons: Sequence[str]) -> Difference:
    """Return `difference` with the number of pairs that were left out; `reasons` has one entry for each."""
    counts = Counter(reasons)
    lost = {reason: counts[reason] for reason in (*OUTCOMES, UNSCORED, ALONE, OTHER_PROMPT) if counts[reason]}
    return replace(difference, left_out=len(reasons), lost=lost)


def with_logprobs(
    difference: Difference,
    values: Sequence[float],
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable] | None = None,
) -> Difference:
    """Return `difference` with its log-probability fields filled in from differences per token, in nats.

    `clusters` names the source of every value, `strata` its task and length if there are several.
    """
    if not values:
        return difference
    low, high = t_interval(values, clusters, strata)
    signs = units_of(values, clusters).sums
    lower, higher = sum(value < 0 for value in signs), sum(value > 0 for value in signs)
    return replace(
        difference,
        logprob_pairs=len(values),
        logprob=fmean(values),
        logprob_low=low,
        logprob_high=high,
        logprob_p=mean_p(values, clusters, strata),
        logprob_spread=fmean(value * value for value in values) ** 0.5,
        logprob_lower=lower,
        logprob_higher=higher,
        logprob_sign_p=sign_test(higher, lower),
    )


def judged(
    unscored: Difference,
    scores: Sequence[tuple[float, float]],
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable] | None = None,
) -> Difference:
    """Return `unscored` with its score fields filled in from pairs (arm, baseline); unchanged without pairs.

    `clusters` names the source of every pair (`cluster_of`), `strata` its task and length if there are several.
    """
    if not scores:
        return unscored
    differences = [a - b for a, b in scores]
    binary = right_or_wrong(x for pair in scores for x in pair)
    values = within_strata(differences, clusters, strata)
    units, alone = units_within(differences, clusters, strata), binary and not shared(clusters)
    low, high, method = interval_within(differences, values, alone, units)
    up = sum(d > SAME for d in differences)
    down = sum(d < -SAME for d in differences)
    mid, seen = alone and by_mid_p(up + down, len(scores)), deviation(values, clusters)
    return replace(
        unscored,
        pairs=len(scores),
        mean_arm=fmean(a for a, _ in scores),
        mean_baseline=fmean(b for _, b in scores),
        difference=fmean(differences),
        low=low,
        high=high,
        method=method,
        discordant=up + down,
        p=mcnemar(up, down) if mid else sign_flip(differences, clusters),
        detectable=detects(len(scores), units, seen, mid),
        clusters=len(units.sizes),
        spread=spread(values, clusters, 1.0 if binary else None),
        deviation=seen,
        mid=mid,
        typical=typical_size(values),
        units=units,
    )


def _negated(value: float | None) -> float | None:
    return None if value is None else 0.0 - value
