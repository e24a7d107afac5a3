"""Seeds as the unit of a difference: means, t intervals, contrasts, Holm, the smallest difference, words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import pytest
from scipy import stats

from anchoreval.errors import RunError
from anchoreval.stats import Difference, holm
from anchoreval.stats.intervals import t_detects
from anchoreval.stats.seeds import (
    SeedRow,
    Seeds,
    missing_seeds,
    over_seeds,
    seed_differences,
    seed_rows,
)

#: Extra hours of sleep under two drugs, ten patients (Student 1908, The probable error of a mean, p. 20).
SLEEP = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)
ANCHOR = (0.31, 0.28, 0.36, 0.25, 0.33, 0.29)  # six seeds, in nats
NOISE = (0.02, -0.03, 0.01, -0.01, 0.03, -0.04)


def of(values: Sequence[float]) -> Seeds:
    return Seeds(dict(enumerate(values)), 8)


def only(row: list[SeedRow]) -> SeedRow:
    assert len(row) == 1
    return row[0]


def test_students_own_table_gives_his_t() -> None:
    seeds = of(SLEEP)
    low, high = seeds.interval
    theirs = stats.ttest_1samp(SLEEP, 0)
    assert seeds.mean == pytest.approx(1.58)
    assert seeds.p == pytest.approx(theirs.pvalue) == pytest.approx(0.00283, abs=5e-6)
    assert (low, high) == pytest.approx(tuple(theirs.confidence_interval()))


@pytest.mark.parametrize(("seeds", "sizes"), [(3, 3.26), (5, 1.68), (6, 1.43), (10, 0.996)])
def test_the_smallest_difference_has_80_percent_power(seeds: int, sizes: float) -> None:
    """The powers are those of the noncentral t distribution of scipy, and the sizes those of G*Power's tables."""
    effect = t_detects(seeds, 2.0)
    df, critical = seeds - 1, stats.t.ppf(0.975, seeds - 1)
    assert stats.nct.sf(critical, df, effect / 2 * math.sqrt(seeds)) == pytest.approx(0.8, abs=1e-6)
    assert effect / 2 == pytest.approx(sizes, abs=5e-3)
    assert t_detects(seeds, 2.0, 0.05 / 6) > effect


def test_samples_are_averaged_inside_a_seed_over_those_that_both_have() -> None:
    arm = {0: {"a": 0.9, "b": 0.5, "only here": 9.0}, 1: {"a": 0.4, "b": 0.0}, 2: {"a": 1.0}}
    base = {1: {"a": 0.1, "b": 0.1}, 0: {"b": 0.1, "a": 0.3}, 7: {"a": 0.0}}
    seeds = seed_differences(arm, base)
    assert seeds.by_seed == pytest.approx({0: 0.5, 1: 0.1})
    assert (seeds.samples, seeds.lone) == (2, (2, 7))
    assert missing_seeds({"anchor": arm, "full": base}) == "anchor lacks seed 7; full lacks seed 2"
    assert missing_seeds({"anchor": [3, 1], "full": [1, 3]}) == ""
    with pytest.raises(RunError, match=r"seed 1: the two variants have no sample in common"):
        seed_differences(arm, {1: {"z": 0.0}})


def test_many_samples_of_few_seeds_stay_few() -> None:
    """A thousand samples of three seeds have the interval of three numbers."""
    arm = {seed: {i: shift + 0.01 * (i % 7) for i in range(1000)} for seed, shift in enumerate((0.1, 0.2, 0.6))}
    base = {seed: dict.fromkeys(range(1000), 0.0) for seed in range(3)}
    seeds = seed_differences(arm, base)
    theirs = stats.ttest_1samp([fmean(of.values()) for of in arm.values()], 0).confidence_interval()
    assert seeds.interval == pytest.approx(tuple(theirs))


def test_an_interaction_is_a_difference_of_differences_over_the_seeds_of_all_four() -> None:
    bf16, fp32 = Seeds({0: 0.5, 1: 0.7, 2: 0.6}, 8, (5,)), Seeds({1: 0.1, 2: 0.3, 3: 0.2}, 4)
    both = bf16.minus(fp32)
    assert both.by_seed == pytest.approx({1: 0.6, 2: 0.3})
    assert (both.samples, both.lone) == (4, (0, 3, 5))
    assert bf16.plus(fp32).by_seed == pytest.approx({1: 0.8, 2: 0.9})


def test_holm_is_over_all_rows_and_the_smallest_effect_at_the_level_that_it_leaves() -> None:
    arms = {"anchor": of(ANCHOR), "full": of(NOISE), "tag": of([value + 0.03 for value in NOISE])}
    rows = seed_rows(arms)
    assert [row.p_holm for row in rows] == holm([seeds.p for seeds in arms.values()])
    assert [row.says for row in rows] == ["higher", "cannot tell", "cannot tell"]
    assert rows[1].detectable == pytest.approx(t_detects(6, stats.tstd(NOISE), 0.025))
    assert only(seed_rows({"full": of(NOISE)})).detectable == pytest.approx(t_detects(6, stats.tstd(NOISE)))


def test_an_effect_counts_only_above_the_placebo() -> None:
    small = of([0.04 + value / 10 for value in NOISE])
    assert only(seed_rows({"x": small})).says == "higher"
    assert only(seed_rows({"x": small}, floor=of(NOISE))).says == "higher"
    assert only(seed_rows({"x": small}, floor=of([-0.05, -0.06, -0.05, -0.04, -0.05, -0.05]))).says == "at the floor"
    assert only(seed_rows({"x": small}, floor=of([0.9, -0.9, 0.1, -0.2, 0.8, -0.7]))).says == "at the floor"


def test_the_placebo_must_agree_in_place_of_its_variant() -> None:
    """An interaction whose placebo would turn it is no finding; the sign of the floor in it is the caller's."""
    arm, floor = of([0.05, 0.07, 0.06, 0.05, 0.06, 0.06]), of([0.06, 0.04, 0.05, 0.05, 0.06, 0.04])
    assert only(seed_rows({"x": arm}, floor=floor)).says == "at the floor"
    assert only(seed_rows({"x": arm}, floor=floor, beyond={"x": arm.plus(floor)})).says == "higher"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (ANCHOR, "better"),
        ([-value for value in ANCHOR], "worse"),
        ([0.001, -0.002, 0.001, 0.0, -0.001, 0.002], "equivalent within 1"),
        ([0.3, -0.3, 0.2], "cannot tell"),
        ([0.4, 0.41, 0.39], "better"),
        ([0.4], "cannot tell (one seed)"),
        ([0.0, 0.0, 0.0], "identical"),
    ],
)
def test_scores_have_the_words_of_compare(values: Sequence[float], says: str) -> None:
    assert only(seed_rows({"x": of(values)}, "score")).says == says


def test_one_seed_has_no_interval_and_no_p() -> None:
    row = only(seed_rows({"x": of([0.4])}))
    assert (row.seeds.interval, row.p_holm, row.detectable, row.says) == ((None, None), None, None, "cannot tell")
    none = only(seed_rows({"x": of([])}))
    assert (none.seeds.mean, none.says) == (None, "")


def test_a_difference_over_seeds_has_seeds_for_pairs() -> None:
    difference = over_seeds(Difference("ruler/vt", 512, "anchor", "full"), of([0.1, 0.2, 0.0]), of(ANCHOR))
    assert (difference.pairs, difference.discordant, difference.logprob_pairs) == (3, 2, 6)
    assert (difference.low, difference.high) == pytest.approx(of([0.1, 0.2, 0.0]).interval)
    assert (difference.logprob_low, difference.logprob_high) == pytest.approx(of(ANCHOR).interval)
    assert difference.reversed().difference == pytest.approx(-0.1)
