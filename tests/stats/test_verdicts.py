"""Holm, the noise floor, equivalence and verdicts, against statsmodels and against simulated data with known truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from anchoreval import stats
from anchoreval.stats import Difference, NoiseFloor
from anchoreval.stats.intervals import t_test

PAIRS = Difference("ruler/vt", 512, "a", "b", pairs=100, difference=-0.1, low=-0.17, high=-0.03, discordant=10, p=0.002,
                   spread=0.3, typical=0.95)  # fmt: skip


def test_holm_gives_statsmodels_numbers_and_leaves_out_what_was_not_tested() -> None:
    rng = np.random.default_rng(1)
    for m in (1, 2, 13, 40):
        ps = (rng.random(m) ** 3).tolist()
        expected = multipletests(ps, method="holm")[1]
        assert stats.holm(ps) == pytest.approx(expected)
        assert stats.holm([None, *ps, None])[1:-1] == pytest.approx(expected)
    assert stats.holm([None, 0.04]) == [None, 0.04]


@pytest.mark.parametrize(("up", "down"), [(0, 6), (1, 5), (12, 30), (40, 2)])
def test_p_of_right_or_wrong_pairs_is_statsmodels_exact_mcnemar(up: int, down: int) -> None:
    expected = mcnemar([[50, up], [down, 50]], exact=True).pvalue
    assert stats.sign_test(up, down) == pytest.approx(expected, rel=1e-9)


def test_equivalence_is_two_one_sided_tests_at_half_the_level() -> None:
    rng, agreed = np.random.default_rng(2), set()
    for shift in np.linspace(0, 0.12, 40):
        values = rng.normal(shift, 0.2, 60)
        low, high, _ = t_test(values.tolist())
        p = DescrStatsW(values).ttost_mean(-0.1, 0.1)[0]
        assert stats.equivalent(low, high, 0.1) == (p < 0.025)
        agreed.add(bool(p < 0.025))
    assert agreed == {True, False}


def test_nothing_is_equivalent_without_an_interval() -> None:
    assert not stats.equivalent(None, None, 0.1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "worse"),
        ({"difference": 0.1, "low": 0.03, "high": 0.17}, "better"),
        ({"difference": -0.005, "low": -0.008, "high": -0.002}, "worse (within 1)"),
        ({"difference": 0.0, "low": -0.009, "high": 0.009, "p": 1.0}, "equivalent within 1"),
        ({"difference": -0.02, "low": -0.04, "high": 0.0},
         "cannot tell (the interval holds 0; needs about 11,378 samples)"),
        ({"difference": -0.05, "low": -0.3, "high": 0.1, "p": 0.4}, "cannot tell (needs about 11,378 samples)"),
        ({"difference": 0.0, "low": -0.1, "high": 0.1, "p": 1.0, "discordant": 0},
         "identical (equivalence within 1 needs about 368 samples)"),
        ({"difference": 0.0, "low": -0.009, "high": 0.009, "p": 1.0, "discordant": 0, "pairs": 400},
         "identical (equivalent within 1)"),
        ({"difference": 0.0, "low": -0.776, "high": 0.776, "p": 1.0, "discordant": 0, "pairs": 2},
         "identical (too few pairs; equivalence within 1 needs about 368 samples)"),
        ({"difference": -0.6, "low": -0.9, "high": 0.1, "p": 0.06, "discordant": 3, "pairs": 5},
         "cannot tell (too few pairs; needs about 12 samples)"),
        ({"pairs": 0, "p": None, "low": None, "high": None}, "cannot tell (no pairs)"),
    ],
)  # fmt: skip
def test_the_verdict_in_words(changes: dict[str, float | None], says: str) -> None:
    assert str(stats.verdict(replace(PAIRS, **changes), 0.01)) == says  # type: ignore[arg-type]


def test_an_effect_that_holms_correction_takes_away_is_no_verdict() -> None:
    found = stats.verdict(PAIRS, 0.01, p=0.06)
    assert found.word == "cannot tell" and "not after Holm's correction" in str(found)


@pytest.mark.parametrize(
    ("floor", "word"),
    [
        (NoiseFloor(0.09, 0.02, None, None), "worse"),
        (NoiseFloor(0.10, 0.02, None, None), "cannot tell"),  # as many samples differ in the placebo
        (NoiseFloor(0.02, 0.10, None, None), "cannot tell"),  # its mean differs by as much
    ],
)
def test_an_effect_counts_only_above_the_noise_floor(floor: NoiseFloor, word: str) -> None:
    found = stats.verdict(PAIRS, 0.01, floor)
    assert found.word == word and ("not above the noise floor" in str(found)) is (word == "cannot tell")


def test_a_placebo_that_changes_no_bit_gives_a_floor_of_zero() -> None:
    same = replace(PAIRS, difference=0.0, discordant=0, same_outputs=100, logprob=0.0, logprob_spread=0.0)
    others = replace(same, same_outputs=99), replace(same, logprob_spread=1e-9)
    floors = [stats.noise_floor([one]) for one in (same, *others)]
    assert [floor.zero for floor in floors if floor] == [True, False, False]


def test_the_floor_is_the_largest_of_several_placebos() -> None:
    quiet = replace(PAIRS, difference=0.001, discordant=1, logprob=1e-7, logprob_spread=1e-6)
    loud = replace(PAIRS, difference=-0.02, discordant=4, logprob=-1e-8, logprob_spread=2e-5)
    assert stats.noise_floor([quiet, loud]) == NoiseFloor(0.04, 0.02, 1e-7, 2e-5)
    assert stats.noise_floor([]) is None and stats.noise_floor([replace(quiet, pairs=0)]) is None


def test_log_probabilities_get_a_word_of_their_own() -> None:
    one = replace(PAIRS, logprob=-0.1, logprob_spread=0.3, logprob_p=1e-6)
    assert stats.logprob_word(one) == "lower"
    assert stats.logprob_word(replace(one, logprob=0.1)) == "higher"
    assert stats.logprob_word(one, NoiseFloor(0, 0, 0.01, 0.4)) == "at the floor"
    assert stats.logprob_word(one, NoiseFloor(0, 0, 0.2, 0.1)) == "at the floor"
    assert stats.logprob_word(one, NoiseFloor(0, 0, 0.01, 0.1)) == "lower"
    assert stats.logprob_word(one, p=0.2) == "cannot tell"
    assert stats.logprob_word(replace(one, logprob=0.0, logprob_spread=0.0)) == "the same"
    assert stats.logprob_word(PAIRS) == ""


@pytest.mark.parametrize("truth", [0.0, -0.025, -0.05])
def test_so_many_pairs_as_are_said_to_be_needed_give_a_verdict_four_times_in_five(truth: float) -> None:
    rng, margin = np.random.default_rng(3), 0.05
    needed = stats.verdict(drawn([6, 6, 48]), margin).needs
    assert needed is not None
    chances = [0.1 - truth / 2, 0.1 + truth / 2, 0.8]
    told = [stats.verdict(drawn(each), margin).word != "cannot tell" for each in rng.multinomial(needed, chances, 300)]
    assert np.mean(told) >= 0.8 - 3 * (0.8 * 0.2 / 300) ** 0.5


def drawn(counts: Sequence[int]) -> stats.Difference:
    """So many pairs for the worse, for the better and alike."""
    down, up, alike = (int(count) for count in counts)
    scores = [(0.0, 1.0)] * down + [(1.0, 0.0)] * up + [(1.0, 1.0)] * alike
    return stats.judged(stats.Difference("ruler/vt", 4096, "a", "b"), scores, range(len(scores)))


def test_what_holm_takes_away_needs_a_few_more_pairs_and_not_thousands() -> None:
    assert str(stats.verdict(drawn([6, 0, 0]), 0.01, p=13 / 64)) == (
        "cannot tell (not after Holm's correction; needs about 9 samples)"
    )
    assert stats.verdict(drawn([10, 0, 0]), 0.01, p=13 / 1024).word == "worse"
    assert stats.verdict(drawn([1, 0, 0]), 0.01).needs == 6
    assert [stats.verdict(drawn([n, 0, 0]), 0.01).word for n in (5, 6)] == ["cannot tell", "worse"]


def test_what_pairs_detect_and_need_counts_the_questions_of_holms_correction() -> None:
    cells = [drawn([10, 10, 180]) for _ in range(13)]
    alone, among = (stats.family(each, 0.05, [None] * len(each)) for each in (cells[:1], cells))
    assert among[0].difference.detectable > alone[0].difference.detectable  # type: ignore[operator]
    assert among[0].verdict.needs > alone[0].verdict.needs  # type: ignore[operator]
    told = stats.family([*[drawn([60, 0, 40])] * 12, cells[0]], 0.05, [None] * 13)
    assert [row.word for row in told[:12]] == ["worse"] * 12
    assert told[12].difference.detectable == alone[0].difference.detectable


def test_equivalence_is_corrected_over_the_tasks_that_are_asked_together() -> None:
    same = drawn([0, 0, 400])
    assert stats.family([same], 0.01, [None])[0].says == "identical (equivalent within 1)"
    of_thirteen = stats.family([same] * 13, 0.01, [None] * 13)[0]
    assert of_thirteen.says == (
        "identical (equivalence not after Holm's correction; equivalence within 1 needs about 623 samples)"
    )


def test_a_shift_that_the_placebo_has_too_is_no_effect() -> None:
    rng, real = np.random.default_rng(6), 0
    for _ in range(200):
        arm, placebo = (rng.random((2, 260)) >= 0.05).astype(float)
        row = stats.family(
            [between(arm, np.ones(260))], 0.01, [stats.noise_floor([between(placebo, np.ones(260))])],
            beyond=[[between(arm, placebo)]],
        )[0]  # fmt: skip
        real += row.word in ("worse", "better")
    assert real <= 10 + 3 * (200 * 0.05 * 0.95) ** 0.5


def test_an_effect_beside_a_placebo_that_shifts_less_is_real() -> None:
    placebo, arm = np.array([0.0] * 5 + [1.0] * 255), np.array([1.0] * 5 + [0.0] * 40 + [1.0] * 215)
    floor = stats.noise_floor([between(placebo, np.ones(260))])
    row = stats.family([between(arm, np.ones(260))], 0.01, [floor], beyond=[[between(arm, placebo)]])[0]
    assert row.says == "worse"
    lost = stats.family([between(arm, np.ones(260))], 0.01, [floor], beyond=[[between(placebo, placebo)]])[0]
    assert lost.says.startswith("cannot tell (not above the noise floor")


def test_what_a_rule_calls_worse_is_above_the_noise_floor_too() -> None:
    rng, base = np.random.default_rng(7), np.ones(96)
    arm, alike, better = ((rng.random((3, 96))).T > [0.3, 0.3, 0.02]).astype(float).T
    told = []
    for placebo in (alike, better):
        floor, beyond = stats.noise_floor([between(placebo, base)]), [[between(arm, placebo)]]
        stopped = ["worse (5pt@95% after 96)"]
        told += stats.family([between(arm, base)], 0.01, [floor], stopped=stopped, beyond=beyond)
    assert [row.word for row in told] == ["cannot tell", "worse"]
    assert told[0].says == "cannot tell (not above the noise floor; worse, 5pt@95% after 96)"
    assert told[1].says == "worse (5pt@95% after 96)"


def test_few_clustered_pairs_need_more_as_a_source_may_differ_whole() -> None:
    scores = [(0.0, 1.0), (1.0, 0.0)] + [(1.0, 1.0)] * 158
    one = stats.Difference("longbench/qasper", 0, "a", "b")
    alone, texts = stats.judged(one, scores, range(160)), stats.judged(one, scores, [i // 20 for i in range(160)])
    needed = [stats.verdict(each, 0.01).needs for each in (alone, texts)]
    assert needed[0] and needed[1] and needed[1] > 50 * needed[0]  # of whole texts that differ nothing was seen


def between(arm: NDArray[np.float64], base: NDArray[np.float64]) -> stats.Difference:
    scores = list(zip(arm.tolist(), base.tolist(), strict=True))
    return stats.judged(stats.Difference("ruler/vt", 4096, "a", "b"), scores, range(len(scores)))


def test_one_sample_of_50_nats_does_not_silence_the_log_probabilities() -> None:
    values = [-0.1] * 80 + [0.05] * 20 + [50.0]
    one = stats.with_logprobs(PAIRS, values, range(101))
    assert stats.logprob_word(one) == "cannot tell (most are lower)"
    assert stats.logprob_word(one.reversed()) == "cannot tell (most are higher)"
    assert stats.logprob_word(one, beyond=["cannot tell"]) == "cannot tell"
    assert stats.logprob_word(one, sign_p=0.06) == "cannot tell"


def test_over_thirteen_tasks_without_a_difference_a_false_verdict_falls_in_at_most_one_comparison_of_twenty() -> None:
    rng, false, runs = np.random.default_rng(4), 0, 1000
    ups = rng.binomial(200, 0.05, size=(runs, 13))
    downs = rng.binomial(200, 0.05, size=(runs, 13))
    for up, down in zip(ups, downs, strict=True):
        ps = stats.holm([stats.mcnemar(int(u), int(d)) for u, d in zip(up, down, strict=True)])
        false += any(p is not None and p < 0.05 for p in ps)
    assert false <= 50 + 2 * (1000 * 0.05 * 0.95) ** 0.5


def test_arms_that_differ_by_the_margin_are_called_equivalent_at_most_one_time_in_forty() -> None:
    rng, margin, n, false = np.random.default_rng(5), 0.03, 1500, 0
    for down, up, _ in rng.multinomial(n, [0.065, 0.035, 0.9], size=1000):
        differences = [-1.0] * int(down) + [1.0] * int(up) + [0.0] * (n - int(down) - int(up))
        low, high, _ = stats.difference_interval(differences, True)
        false += stats.equivalent(low, high, margin)
    assert false <= 25 + 2 * (1000 * 0.025 * 0.975) ** 0.5
