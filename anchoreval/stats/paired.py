"""Scores of two arms -> their paired difference. Pure: no files, no model.

Values are fractions 0..1 (differences -1..1). Pairs whose facts name the same source are not independent: intervals and
p values then use whole sources. The p value of right/wrong scores is McNemar's mid-p over the pairs that differ, if
these are at most two thirds, else the exact p. Graded or clustered scores get a sign-flip test. All these tests ask
whether the arms are exchangeable. Arms that are not may still have equal means; only the interval tells. Holm's
correction is for tests that are made together.

Rows over several tasks or lengths are about exactly these tasks and lengths: variation between them is not noise.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING

from anchoreval.errors import RunError
from anchoreval.schema import OUTCOMES, SCORED, Outcome
from anchoreval.stats.cells import Scores
from anchoreval.stats.intervals import (
    SAME,
    Method,
    Units,
    detects,
    interval_within,
    spreads,
    t_test,
    units_of,
    within_strata,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Reasons why a pair is left out, besides outcomes.
UNSCORED, ALONE, OTHER_PROMPT = "without a score", "on one side only", "with another prompt"
FEW = 10  # the mid-p is used only from so many pairs upwards: of fewer, five that differ would be more than half
SEED = 42
FLIPS = 9_999
ENUMERATED = 12  # up to so many clusters that differ, all sign patterns are enumerated
FINEST = 2520  # steps in 1: a share k/q with q up to 10 is a whole number of steps
LONGEST = 4096  # largest number of values in the distribution of a sum


@dataclass(frozen=True, slots=True)
class Difference:
    """`arm` minus `baseline` over the samples that have a score in both; task or length is None in pooled rows.

    `left_out`          the number of samples that only one arm has, or that lack a score in one
    `lost`              the same by reason: an outcome, UNSCORED, ALONE or OTHER_PROMPT
    `discordant`        the number of pairs that differ in score
    `same_outputs`      the number of pairs with equal text; None if not known
    `detectable`        the smallest true difference that these pairs would show (p < 0.05) four times in five
    `clusters`          the number of sources of the pairs
    `spread`, `deviation`, `typical`
                        how much one pair varies (intervals.spreads)
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
        names = ("difference", "low", "high", "logprob", "logprob_low", "logprob_high")
        turned = {name: None if (value := getattr(self, name)) is None else 0.0 - value for name in names}
        return replace(
            self,
            arm=self.baseline,
            baseline=self.arm,
            mean_arm=self.mean_baseline,
            mean_baseline=self.mean_arm,
            difference=turned["difference"],
            low=turned["high"],
            high=turned["low"],
            logprob=turned["logprob"],
            logprob_low=turned["logprob_high"],
            logprob_high=turned["logprob_low"],
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
    counts = Counter(reasons)
    lost = {reason: counts[reason] for reason in (*OUTCOMES, UNSCORED, ALONE, OTHER_PROMPT) if counts[reason]}
    difference = replace(unscored, same_outputs=same, environments_apart=environments, left_out=len(reasons), lost=lost)
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
    low, high, p = t_test(values, clusters, strata)
    signs = units_of(values, clusters).sums
    lower, higher = sum(value < 0 for value in signs), sum(value > 0 for value in signs)
    return replace(
        difference,
        logprob_pairs=len(values),
        logprob=fmean(values),
        logprob_low=low,
        logprob_high=high,
        logprob_p=p,
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
    n, differences = len(scores), [a - b for a, b in scores]
    binary = all(score in (0, 1) for pair in scores for score in pair)
    values, units = within_strata(differences, clusters, strata)
    low, high, method = interval_within(differences, values, units, binary)
    spread, deviation, typical = spreads(values, clusters, 1.0 if binary else None)
    up, down = sum(d > SAME for d in differences), sum(d < -SAME for d in differences)
    # McNemar's test keeps its level because the number of differing pairs varies too. If almost all pairs differ, its
    # level reaches 7.7% (16 of 16).
    mid = binary and len(units.sizes) == n and n >= FEW and 3 * (up + down) <= 2 * n
    return replace(
        unscored,
        pairs=n,
        mean_arm=fmean(a for a, _ in scores),
        mean_baseline=fmean(b for _, b in scores),
        difference=fmean(differences),
        low=low,
        high=high,
        method=method,
        discordant=up + down,
        p=mcnemar(up, down) if mid else sign_flip(differences, clusters),
        detectable=detects(n, units, deviation, mid),
        clusters=len(units.sizes),
        spread=spread,
        deviation=deviation,
        mid=mid,
        typical=typical,
        units=units,
    )


def sign_test(up: int, down: int) -> float:
    """Return the two-sided exact p of `up` against `down` fair coin throws; 1.0 without throws."""
    from scipy.special import bdtr

    return 1.0 if up + down == 0 else min(1.0, 2 * float(bdtr(min(up, down), up + down, 0.5)))


def mcnemar(up: int, down: int) -> float:
    """Return the two-sided mid-p of `up` against `down` right/wrong pairs that differ; 1.0 if none does.

    It is the exact p less half the probability of exactly this outcome (Fagerland, Lydersen & Laake 2013). Its size is
    under 5% in every cell of docs/statistics.md, where the exact test has 1 to 4%, and up to 7.7% if almost all pairs
    differ; `judged` then takes another test.
    """
    from scipy.special import bdtr

    few, n = min(up, down), up + down
    if up == down:
        return 1.0
    return float(bdtr(few, n, 0.5) + (bdtr(few - 1, n, 0.5) if few else 0.0))


def sign_flip(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Return the two-sided p of "the arms are exchangeable" by flipping the sign of each cluster's sum (Fisher 1935).

    It is exact for up to 12 clusters that differ, and if all sums are multiples of one step (`flipped`). Otherwise it
    comes from 9,999 random flips with a fixed seed, and the observed sum is counted too.
    """
    import numpy as np

    named = clusters if clusters is not None else range(len(differences))
    sums: dict[Hashable, float] = dict.fromkeys(named, 0.0)
    for difference, cluster in zip(differences, named, strict=True):
        sums[cluster] += difference
    sizes, counts = np.unique(
        [round(abs(value), 12) for value in sums.values() if abs(value) > SAME], return_counts=True
    )
    observed, units = abs(math.fsum(sums.values())), int(counts.sum())
    if units == 0:
        return 1.0
    if units <= ENUMERATED:
        signs = 1 - 2 * (np.arange(2**units)[:, None] >> np.arange(units) & 1)
        return float(np.mean(np.abs(signs @ np.repeat(sizes, counts)) >= observed - 1e-9))
    if (exact := flipped(sizes, counts, observed)) is not None:
        return exact
    thrown = np.random.default_rng(SEED).binomial(counts, 0.5, size=(FLIPS, len(sizes)))
    reached = int((np.abs((2 * thrown - counts) @ sizes) >= observed - 1e-9).sum())
    return (1 + reached) / (1 + FLIPS)


def flipped(sizes: NDArray[np.float64], counts: NDArray[np.int64], observed: float) -> float | None:
    """Return the share of all sign patterns whose sum is at least `observed` away from 0.

    There are `counts[i]` values of size `sizes[i]`. Scores that count right parts (k of q references) have differences
    that are all whole multiples of one step, so the distribution of their sum is a convolution. Return None for other
    values, and if the distribution is so long that random flips are cheaper.
    """
    import numpy as np
    from scipy.special import gammaln

    fine = np.rint(sizes * FINEST)
    if not fine.any() or np.abs(sizes * FINEST - fine).max() > 1e-6:
        return None
    whole = fine.astype(np.int64)
    step = int(np.gcd.reduce(whole))
    multiples = whole // step
    if int(multiples @ counts) >= LONGEST:
        return None
    plus = np.ones(1)  # the probability of each sum of those with a plus
    for multiple, count in zip(multiples.tolist(), counts.tolist(), strict=True):
        heads = np.arange(count + 1)  # in `count` fair throws
        ways = gammaln(count + 1) - gammaln(heads + 1) - gammaln(count - heads + 1)
        spaced = np.zeros(multiple * count + 1)
        spaced[::multiple] = np.exp(ways - count * math.log(2))
        plus = np.convolve(plus, spaced)
    sums = 2 * np.arange(len(plus)) - (len(plus) - 1)
    return min(1.0, float(plus[np.abs(sums) >= round(observed / (step / FINEST))].sum()))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down adjusted p values in the given order; None (no test) stays None and is not counted.

    The k-th smallest of m values is multiplied by m - k + 1, cut to 1 and made monotone (Holm 1979).
    """
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted
