"""Records -> paired differences: per (task, length), per length, over everything. Pure: no files, no model.

Values are fractions 0..1 (differences -1..1). Pairs whose facts name one source are not independent: intervals and p
are then those of whole sources. The p value of right/wrong scores is McNemar's mid-p over the pairs that differ, where
those are at most two thirds, else the exact one; of graded or clustered ones that of a sign-flip test. All ask whether
the arms are exchangeable: where they are not, their means may still be equal, which only the interval tells.

Rows over several tasks or lengths are of these very tasks and lengths: what differs between them is no noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from anchoreval.errors import RunError
from anchoreval.schema import OUTCOMES, SCORED, Outcome, Record
from anchoreval.stats.bounds import Units, units_of
from anchoreval.stats.cells import per_token, put
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
from anchoreval.stats.significance import mcnemar, mean_p, sign_flip, sign_test
from anchoreval.stats.sources import cluster_of

Place = tuple[str, int]  # (task, length)
Pair = tuple[Record, Record]
_Sourced = tuple[Record, Record, Hashable]  # a pair and its source
_Group = tuple[list[_Sourced], list[Record]]
UNSCORED, ALONE = "without a score", "on one side only"  # why a pair is left out, where no outcome says it


@dataclass(frozen=True, slots=True)
class Difference:
    """`arm` minus `baseline` over the samples that both have scored; task or length is None where pooled.

    `left_out` counts samples that only one arm has, or that lack a score in one, `lost` the same by reason (an outcome,
    UNSCORED or ALONE); `discordant` pairs differ in score, `same_outputs` counts pairs of equal text (None: not known).
    `detectable` is the smallest true difference that these pairs would show (p < 0.05) four times in five; `clusters`
    counts the sources they come from, `spread` is one pair's standard deviation (intervals.spread), `deviation` the one
    seen, with no pair added, `typical` the root mean square of the differences that are not zero, and `logprob_spread`
    that of the differences of log-probability. `logprob_lower` and `logprob_higher` count sources, and
    `logprob_sign_p` is their sign test's; `mid` tells whether p is McNemar's mid-p, and `units` hold the differences by
    source, as they vary within tasks.
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

    def reversed(self) -> Difference:
        """The same pairs read the other way round: `baseline` minus `arm`."""
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


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences of one arm to a baseline: per (task, length), per length over tasks, over all."""

    arm: str
    baseline: str
    cells: tuple[Difference, ...]
    lengths: tuple[Difference, ...]
    pooled: Difference

    def reversed(self) -> Comparison:
        """The same comparison with the arms exchanged."""
        return Comparison(
            self.baseline,
            self.arm,
            tuple(cell.reversed() for cell in self.cells),
            tuple(cell.reversed() for cell in self.lengths),
            self.pooled.reversed(),
        )


def paired(records: Iterable[Record], arm_a: str, arm_b: str) -> Comparison:
    """`arm_a` minus `arm_b` (the baseline) over the samples they share.

    Raises RunError when the two arms saw different prompts for one sample, or one arm has a sample twice.
    """
    arms: dict[str, dict[str, Record]] = {arm_a: {}, arm_b: {}}
    for record in records:
        if record.arm in arms:
            put(arms[record.arm], record)
    return paired_sides(arms[arm_a], arms[arm_b], arm_a, arm_b)


def paired_sides(a: Mapping[str, Record], b: Mapping[str, Record], arm: str, baseline: str) -> Comparison:
    """The records `a` (by sample id) minus `b`, called `arm` and `baseline`; RunError as for `paired`."""
    pairs, lone = matched(a, b)
    places = list(dict.fromkeys((record.task, record.length) for record in [a for a, _ in pairs] + lone))
    by_place: dict[Place, _Group] = {place: ([], []) for place in places}
    for one, other in pairs:
        by_place[one.task, one.length][0].append((one, other, cluster_of(one)))
    for record in lone:
        by_place[record.task, record.length][1].append(record)
    return _comparison(by_place, arm, baseline)


def _comparison(by_place: Mapping[Place, _Group], arm: str, baseline: str) -> Comparison:
    lengths = sorted({length for _, length in by_place})

    def pooled(length: int | None) -> Difference:
        groups = [group for place, group in by_place.items() if length in (None, place[1])]
        pairs = [pair for group in groups for pair in group[0]]
        lone = [record for group in groups for record in group[1]]
        return _difference((None, length), (arm, baseline), pairs, lone)

    return Comparison(
        arm,
        baseline,
        tuple(_difference(place, (arm, baseline), *group) for place, group in by_place.items()),
        tuple(pooled(length) for length in lengths),
        pooled(None),
    )


def matched(a: Mapping[str, Record], b: Mapping[str, Record]) -> tuple[list[Pair], list[Record]]:
    """Pairs in the order of `a`, and the records whose sample only one arm has."""
    pairs = [(record, b[key]) for key, record in a.items() if key in b]
    differ = [left.sample_id for left, right in pairs if left.prompt_sha256 != right.prompt_sha256]
    if differ:
        raise RunError(f"{len(differ)} samples had different prompts in the two arms, the first: {differ[0]}")
    lone = [record for key, record in a.items() if key not in b]
    return pairs, lone + [record for key, record in b.items() if key not in a]


def _difference(
    place: tuple[str | None, int | None],
    arms: tuple[str, str],
    pairs: Sequence[_Sourced],
    lone: Sequence[Record],
) -> Difference:
    scored = [(a, b, source) for a, b, source in pairs if a.score is not None and b.score is not None]
    missing = [why_lost(a.outcome if a.score is None else b.outcome) for a, b, _ in pairs if None in (a.score, b.score)]
    same = sum(a.output == b.output for a, b, _ in scored)
    unscored = replace(left_out(Difference(*place, *arms), [*missing, *[ALONE] * len(lone)]), same_outputs=same)
    values, clusters, strata = [], [], []
    for a, b, source in pairs:
        if (x := per_token(a)) is not None and (y := per_token(b)) is not None:
            values.append(x - y)
            clusters.append(source)
            strata.append((a.task, a.length))
    return judged(
        with_logprobs(unscored, values, clusters, strata),
        [(a.score or 0.0, b.score or 0.0) for a, b, _ in scored],
        [source for *_, source in scored],
        [(a.task, a.length) for a, *_ in scored],
    )


def why_lost(outcome: Outcome | None) -> str:
    """The reason for which a sample without a score is left out: its outcome, unless that is one that is scored."""
    return UNSCORED if outcome is None or outcome in SCORED else outcome


def left_out(difference: Difference, reasons: Sequence[str]) -> Difference:
    """`difference` with the number of pairs that were left out, one for each of `reasons`."""
    found = Counter(reasons)
    lost = {reason: found[reason] for reason in (*OUTCOMES, UNSCORED, ALONE) if found[reason]}
    return replace(difference, left_out=len(reasons), lost=lost)


def with_logprobs(
    difference: Difference,
    values: Sequence[float],
    clusters: Sequence[Hashable],
    strata: Sequence[Hashable] | None = None,
) -> Difference:
    """`difference` with the fields that differences of log-probability per token, in nats, fill in.

    `clusters` names the source of every value, `strata` its task and length where there are several.
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
    """`unscored` with the fields that scores (arm, baseline) fill in; as it is when there are none.

    `clusters` names the source of every pair (`cluster_of`), `strata` its task and length where there are several.
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
