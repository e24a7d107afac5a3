"""Differences of trained variants with the seed as the unit: one paired difference per seed, a t interval over seeds.

Samples are averaged inside a seed, because a claim about a way of training is about further trainings, not about more
questions to the same weights. Two variants are paired by seed (the same data in the same order) and by sample. With n
seeds of standard deviation s, the half width of the interval is t(n-1) * s / sqrt(n), and the smallest difference that
is shown with 80% power follows from the noncentral t distribution:

| seeds | half width | shown with 80% power |
|---|---|---|
| 2 | 8.98 s | 11.5 s |
| 3 | 2.48 s | 3.26 s |
| 6 | 1.05 s | 1.43 s |

The checkpoints of one training vary less than seeds do; their mean has no interval here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any, Literal

from anchoreval.errors import RunError
from anchoreval.stats.contrasts import MARGIN, Contrast, Row, family
from anchoreval.stats.intervals import ALPHA, SAME, t_detects, t_test
from anchoreval.stats.paired import Difference, with_logprobs
from anchoreval.stats.verdicts import NoiseFloor

Values = Mapping[int, Mapping[Any, float]]  # seed -> sample -> value of a variant's model
Unit = Literal["score", "nats"]


@dataclass(frozen=True, slots=True)
class Seeds:
    """A difference per seed, samples averaged inside.

    `lone` are the seeds that only one side has, and `samples` is the smallest number of samples behind a seed.
    """

    by_seed: Mapping[int, float]
    samples: int = 0
    lone: tuple[int, ...] = ()

    @property
    def values(self) -> tuple[float, ...]:
        """The differences in the order of the seeds."""
        return tuple(self.by_seed[seed] for seed in sorted(self.by_seed))

    @property
    def mean(self) -> float | None:
        """The mean over seeds; None without any."""
        return fmean(self.values) if self.by_seed else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of a seed; None for a single one, which shows none."""
        return stdev(self.values) if len(self.by_seed) > 1 else None

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The 95% t interval over seeds; (None, None) for a single seed and for seeds that do not vary."""
        return t_test(self.values)[:2] if self.by_seed else (None, None)

    @property
    def p(self) -> float | None:
        """The two-sided p of the t test over seeds; None where there is no interval."""
        return t_test(self.values)[2] if self.by_seed else None

    def detectable(self, alpha: float = ALPHA) -> float | None:
        """Return the smallest true difference that so many seeds of this spread show with p < `alpha` at 80% power."""
        return t_detects(len(self.by_seed), self.deviation, alpha) if self.deviation else None

    def minus(self, other: Seeds) -> Seeds:
        """Return the contrast of two differences over the seeds that both have, such as (A - B at x) - (A - B at y)."""
        return self._with(other, -1)

    def plus(self, other: Seeds) -> Seeds:
        """Return the sum of two differences over the seeds that both have."""
        return self._with(other, 1)

    def _with(self, other: Seeds, sign: int) -> Seeds:
        both = [seed for seed in self.by_seed if seed in other.by_seed]
        lone = {*self.lone, *other.lone, *(self.by_seed.keys() ^ other.by_seed.keys())}
        values = {seed: self.by_seed[seed] + sign * other.by_seed[seed] for seed in both}
        return Seeds(values, min(self.samples, other.samples), tuple(sorted(lone)))


def seed_differences(arm: Values, baseline: Values) -> Seeds:
    """Return `arm` minus `baseline` of every seed that both have, over the samples that both have there.

    Raise RunError if a seed has no sample in common.
    """
    by_seed, counts = dict[int, float](), [0]
    for seed in sorted(arm.keys() & baseline.keys()):
        common = [sample for sample in arm[seed] if sample in baseline[seed]]
        if not common:
            raise RunError(f"seed {seed}: the two variants have no sample in common")
        by_seed[seed] = fmean(arm[seed][sample] - baseline[seed][sample] for sample in common)
        counts.append(len(common))
    return Seeds(by_seed, min(counts[1:] or counts), tuple(sorted(arm.keys() ^ baseline.keys())))


def over_seeds(unscored: Difference, scores: Seeds | None = None, nats: Seeds | None = None) -> Difference:
    """Return `unscored` filled in with seeds as its pairs; `nats` are log-probabilities per token."""
    difference = unscored
    if nats is not None and nats.by_seed:
        difference = with_logprobs(difference, nats.values, sorted(nats.by_seed))
    if scores is None or not scores.by_seed:
        return difference
    low, high = scores.interval
    return replace(
        difference,
        pairs=len(scores.by_seed),
        difference=scores.mean,
        low=low,
        high=high,
        method="t",
        discordant=sum(abs(value) > SAME for value in scores.values),
        p=scores.p,
        detectable=scores.detectable(),
        deviation=scores.deviation,
    )


Rows = Mapping[int, Sequence[Row]]  # seed -> its rows at one place; several are those of checkpoints of its training


def rows_over_seeds(places: Sequence[Rows], margin: float, arm: str = "", baseline: str = "") -> tuple[Row, ...]:
    """Return one row per place whose pairs are seeds, corrected together and worded as in `compare`.

    Checkpoints of one training are averaged first. The noise floor is the largest of the seeds'.
    """
    return family([_merged(rows, arm, baseline) for rows in places], margin, [_largest_floor(rows) for rows in places])


def _merged(by_seed: Rows, arm: str, baseline: str) -> Difference:
    every = [row.difference for rows in by_seed.values() for row in rows]
    lost = sum((Counter(difference.lost) for difference in every), Counter[str]())
    both = [(each.mean_arm, each.mean_baseline) for each in every if each.mean_arm is not None]
    unscored = Difference(
        every[0].task, every[0].length, arm or every[0].arm, baseline or every[0].baseline,
        left_out=sum(difference.left_out for difference in every), lost=dict(lost),
        mean_arm=fmean(mean for mean, _ in both) if both else None,
        mean_baseline=fmean(mean or 0.0 for _, mean in both) if both else None,
    )  # fmt: skip
    return over_seeds(unscored, _of_each(by_seed, "difference"), _of_each(by_seed, "logprob"))


def _of_each(by_seed: Rows, name: str) -> Seeds:
    values = {seed: [value for row in rows if (value := getattr(row.difference, name)) is not None]
              for seed, rows in by_seed.items()}  # fmt: skip
    return Seeds({seed: fmean(of) for seed, of in values.items() if of})


def _largest_floor(by_seed: Rows) -> NoiseFloor | None:
    floors = [row.floor for rows in by_seed.values() for row in rows if row.floor]
    nats = max((floor.logprob for floor in floors if floor.logprob is not None), default=None)
    return NoiseFloor(0.0, max(floor.difference for floor in floors), nats, nats) if floors else None


def contrast_over_seeds(
    arm: str, baseline: str, by_seed: Mapping[int, Contrast], notes: Sequence[str] = ()
) -> Contrast:
    """Return the contrast of two variants over seeds, given that of every seed."""

    def rows(part: Literal["cells", "lengths"]) -> tuple[Row, ...]:
        places: dict[tuple[str | None, int | None], dict[int, list[Row]]] = {}
        for seed, contrast in by_seed.items():
            for row in getattr(contrast, part):
                places.setdefault((row.difference.task, row.difference.length), {})[seed] = [row]
        return rows_over_seeds(list(places.values()), margin, arm, baseline)

    margin = next(iter(by_seed.values())).margin
    (pooled,) = rows_over_seeds([{seed: [each.pooled] for seed, each in by_seed.items()}], margin, arm, baseline)
    said = (f"pairs are {len(by_seed)} seeds: samples are averaged inside a seed, t intervals over seeds", *notes)
    return Contrast(arm, baseline, margin, rows("cells"), rows("lengths"), pooled, said)


@dataclass(frozen=True, slots=True)
class SeedRow:
    """A difference with its corrected p, the smallest one shown at the level that Holm leaves, and its verdict."""

    name: str
    seeds: Seeds
    p_holm: float | None
    detectable: float | None
    says: str


def seed_rows(
    differences: Mapping[str, Seeds],
    unit: Unit = "nats",
    floor: Seeds | None = None,
    beyond: Mapping[str, Seeds] | None = None,
    margin: float = MARGIN,
) -> list[SeedRow]:
    """Return a row per difference; Holm's correction is made over all of them.

    `floor` is the placebo minus its own variant. A difference counts only if its mean is larger, and if its `beyond`
    says the same: that is the difference with the placebo in place of its variant. By default it is `difference -
    floor`, for a placebo of the baseline; where that variant is added, as in an interaction, it is `difference + floor`
    and has to be given. `margin` is that of equivalence, for scores. The words are those of `compare`.
    """
    stand_ins = [] if floor is None else [(beyond or {}).get(name, seeds.minus(floor))
                                          for name, seeds in differences.items()]  # fmt: skip
    noise = None if floor is None else _floor(floor, unit)
    rows = family(
        [_of(name, seeds, unit) for name, seeds in differences.items()],
        margin,
        [noise] * len(differences),
        beyond=[[_of("", seeds, unit) for seeds in stand_ins]] if stand_ins else [],
    )
    asked = max(1, sum(_p(row, unit) is not None and (_p(row, unit) or 0) >= ALPHA for row in rows))
    shown = zip(differences.items(), rows, strict=True)
    return [
        SeedRow(name, seeds, _p(row, unit), seeds.detectable(ALPHA / asked), _says(row, unit))
        for (name, seeds), row in shown
    ]


def _of(name: str, seeds: Seeds, unit: Unit) -> Difference:
    unscored = Difference(None, None, name, "")
    return over_seeds(unscored, seeds) if unit == "score" else over_seeds(unscored, nats=seeds)


def _floor(placebo: Seeds, unit: Unit) -> NoiseFloor | None:
    """Return the noise floor of a placebo's seeds: how large its mean is, and for nats how large its seeds are."""
    if placebo.mean is None:
        return None
    size = abs(placebo.mean)
    return NoiseFloor(0.0, size, None, None) if unit == "score" else NoiseFloor(0.0, 0.0, size, _rms(placebo.values))


def _rms(values: Collection[float]) -> float:
    return math.sqrt(fmean(value * value for value in values))


def _p(row: Row, unit: Unit) -> float | None:
    return row.p_holm if unit == "score" else row.logprob_p_holm


def _says(row: Row, unit: Unit) -> str:
    return row.says if unit == "score" else row.logprob_says


def missing_seeds(seeds_of: Mapping[str, Collection[int]]) -> str:
    """Return, in words, which seeds each of several variants lacks that another has; empty if all have the same."""
    every = sorted({seed for seeds in seeds_of.values() for seed in seeds})
    lacks = {name: [seed for seed in every if seed not in seeds] for name, seeds in seeds_of.items()}
    return "; ".join(f"{name} lacks seed{'s' * (len(gone) > 1)} {', '.join(map(str, gone))}"
                     for name, gone in lacks.items() if gone)  # fmt: skip
