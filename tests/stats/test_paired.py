"""Cells, intervals and paired differences, against scipy and against simulated data with known truth."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as reference

from anchoreval import stats
from anchoreval.errors import RunError
from anchoreval.schema import Record

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def record(
    index: int,
    arm: str,
    score: float | None,
    task: str = "ruler/vt",
    length: int = 512,
    logprob: float | None = None,
    prompt: str = "same",
) -> Record:
    return Record(
        key=f"{arm}-{task}-{length}-{index}", sample_id=f"{task}@{length}#{index}", task=task, length=length,
        index=index, arm=arm, prompt_sha256=prompt, prompt_tokens=400, references=("1",),
        facts={}, output="1",
        output_tokens=1, finish="stop", score=score, why=None if score is not None else "error",
        reference_logprob=logprob, reference_tokens=2, seconds=0.1,
    )  # fmt: skip


def two_arms(a: Sequence[float | None], b: Sequence[float | None]) -> list[Record]:
    return [record(i, "a", x) for i, x in enumerate(a)] + [record(i, "b", x) for i, x in enumerate(b)]


@pytest.mark.parametrize(("right", "n"), [(0, 20), (1, 20), (13, 20), (20, 20), (3, 500)])
def test_right_or_wrong_scores_get_clopper_and_pearsons_interval(right: int, n: int) -> None:
    low, high, method = stats.mean_interval([1.0] * right + [0.0] * (n - right))
    expected = reference.binomtest(right, n).proportion_ci(method="exact")
    assert method == "clopper-pearson"
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_graded_scores_get_an_interval_about_as_wide_as_ts() -> None:
    scores = np.random.default_rng(1).choice([0.0, 0.25, 0.5, 0.75], 400).tolist()
    expected = reference.t.interval(0.95, len(scores) - 1, np.mean(scores), reference.sem(scores))
    low, high, method = stats.mean_interval(scores)
    assert method == "gaffke"
    assert (low, high) == pytest.approx(expected, abs=0.004)


def test_equal_graded_scores_do_not_look_certain() -> None:
    low, high, method = stats.mean_interval([0.5] * 10)
    hidden = 1 - 0.025 ** (1 / 10)
    assert method == "gaffke"
    assert (low, high) == pytest.approx((0.5 - 0.5 * hidden, 0.5 + 0.5 * hidden), abs=0.002)


def test_a_cell_counts_what_was_asked_and_averages_what_was_scored() -> None:
    (cell,) = stats.cells([record(0, "a", 1.0, logprob=-2.0), record(1, "a", None), record(2, "a", 0.0)])
    assert (cell.asked, cell.scored, cell.mean, cell.logprob) == (3, 2, 0.5, -1.0)


def test_a_cell_without_scores_has_no_mean() -> None:
    (cell,) = stats.cells([record(0, "a", None)])
    assert (cell.asked, cell.scored, cell.mean, cell.low, cell.method) == (1, 0, None, None, None)


def test_a_sample_recorded_twice_is_refused() -> None:
    with pytest.raises(RunError, match="two records of sample ruler/vt@512#0 under arm a"):
        stats.cells([record(0, "a", 1.0), record(0, "a", 1.0)])


@pytest.mark.parametrize(("up", "down"), [(0, 0), (0, 6), (1, 5), (3, 3), (40, 2), (0, 38)])
def test_p_is_the_exact_mcnemar_test(up: int, down: int) -> None:
    expected = reference.binomtest(up, up + down, 0.5).pvalue if up + down else 1.0
    assert stats.sign_test(up, down) == pytest.approx(expected, rel=1e-9)


def test_pairs_are_matched_by_sample_and_counted() -> None:
    records = [*two_arms([1.0, 0.0, 1.0, None], [0.0, 0.0, 1.0, 1.0]), record(9, "a", 1.0)]
    pooled = stats.paired(records[::-1], "a", "b").pooled
    assert (pooled.pairs, pooled.left_out, pooled.discordant) == (3, 2, 1)
    assert pooled.difference == pytest.approx(1 / 3)
    assert (pooled.mean_arm, pooled.mean_baseline) == pytest.approx((2 / 3, 1 / 3))


def test_different_prompts_are_not_paired() -> None:
    records = [record(0, "a", 1.0), record(0, "b", 1.0, prompt="other")]
    with pytest.raises(RunError, match="1 samples had different prompts"):
        stats.paired(records, "a", "b")


def test_arms_exchanged_give_the_negated_difference() -> None:
    records = two_arms([1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0])
    assert stats.paired(records, "b", "a").pooled == stats.paired(records, "a", "b").pooled.reversed()


def test_differences_are_pooled_by_length_and_over_everything() -> None:
    records = [
        record(i, arm, float(arm == "a" and length == 512), task, length)
        for arm in ("a", "b") for task in ("ruler/vt", "ruler/cwe")
        for length in (512, 1024) for i in range(10)
    ]  # fmt: skip
    found = stats.paired(records, "a", "b")
    assert [(one.task, one.length, one.pairs, one.difference) for one in found.lengths] == [
        (None, 512, 20, 1.0), (None, 1024, 20, 0.0),
    ]  # fmt: skip
    assert (found.pooled.pairs, found.pooled.difference, len(found.cells)) == (40, 0.5, 4)


@pytest.mark.parametrize("n", [1, 5, 20, 500])
def test_no_differing_pair_still_leaves_room_for_what_n_can_hide(n: int) -> None:
    low, high, method = stats.difference_interval([0.0] * n, binary=True)
    hidden = reference.binomtest(0, n, alternative="less").proportion_ci(0.95, method="exact").high
    assert method == "exact-bound"
    assert (low, high) == pytest.approx((-hidden, hidden))


def test_a_constant_difference_has_no_zero_width() -> None:
    for differences, binary in (([-1.0] * 20, True), ([-0.5] * 20, False)):
        low, high, _ = stats.difference_interval(differences, binary)
        assert low <= differences[0] <= high
        assert high - low > 0.05


def test_identical_log_probabilities_have_no_interval() -> None:
    records = [record(i, arm, 1.0, logprob=-1.0 * i) for arm in ("a", "b") for i in range(5)]
    pooled = stats.paired(records, "a", "b").pooled
    assert (pooled.logprob_pairs, pooled.logprob, pooled.logprob_low) == (5, 0.0, None)


def test_log_probability_differences_get_a_paired_t_interval() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(-2, 1, 30), rng.normal(-2.3, 1, 30)
    records = [record(i, "a", 1.0, logprob=float(x)) for i, x in enumerate(a)]
    records += [record(i, "b", 1.0, logprob=float(x)) for i, x in enumerate(b)]
    pooled = stats.paired(records, "a", "b").pooled
    expected = reference.ttest_rel(a / 2, b / 2).confidence_interval(0.95)
    assert (pooled.logprob_low, pooled.logprob_high) == pytest.approx((expected.low, expected.high))


def test_the_interval_of_many_graded_pairs_is_that_of_scipys_bootstrap() -> None:
    rng = np.random.default_rng(5)
    differences = rng.choice([-0.5, -0.25, 0.0, 0.25, 0.5], 1600, p=[0.1, 0.1, 0.5, 0.2, 0.1])
    expected = reference.bootstrap(
        (differences,), np.mean, n_resamples=2000, method="percentile", rng=rng
    ).confidence_interval
    low, high, method = stats.difference_interval(differences.tolist(), binary=False)
    assert method == "gaffke"
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.002)


def right_or_wrong(worse: float, better: float) -> Draw:
    return lambda rng, n: rng.choice([-1.0, 1.0, 0.0], size=n, p=[worse, better, 1 - worse - better])


def graded(parts: int, arm: float, baseline: float) -> Draw:
    """Differences of the share of `parts` right, where half the parts share their luck between the arms."""

    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        luck = rng.random((n, parts))
        own = np.where(rng.random((n, parts)) < 0.5, luck, rng.random((n, parts)))
        return np.asarray((luck < arm).mean(1) - (own < baseline).mean(1))

    return draw


@pytest.mark.parametrize(
    ("draw", "truth", "n", "binary"),
    [
        (right_or_wrong(0.3, 0.05), -0.25, 50, True),
        (right_or_wrong(0.15, 0.15), 0.0, 200, True),
        (graded(4, 0.8, 0.7), 0.1, 50, False),
        (graded(10, 0.6, 0.5), 0.1, 60, False),
    ],
)
def test_intervals_of_differences_cover_the_truth(draw: Draw, truth: float, n: int, binary: bool) -> None:
    rng = np.random.default_rng(11)
    covered, runs = 0, 1000 if binary else 400
    for _ in range(runs):
        low, high, _ = stats.difference_interval(draw(rng, n).tolist(), binary)
        covered += low <= truth <= high
    assert 0.93 <= covered / runs <= (0.97 if binary else 1)


def test_rare_differences_are_covered_at_least_at_the_nominal_level() -> None:
    rng = np.random.default_rng(12)
    draw, covered = right_or_wrong(0.05, 0.02), 0
    for _ in range(1000):
        low, high, _ = stats.difference_interval(draw(rng, 20).tolist(), True)
        covered += low <= -0.03 <= high
    assert covered >= 950


def test_mid_p_keeps_its_level_when_nothing_differs() -> None:
    rng, false = np.random.default_rng(13), 0
    for _ in range(1000):
        d = right_or_wrong(0.1, 0.1)(rng, 100)
        false += stats.mcnemar(int((d > 0).sum()), int((d < 0).sum())) < 0.05
    assert false <= 50 + 2 * (1000 * 0.05 * 0.95) ** 0.5


def detectable(scores: list[tuple[float, float]]) -> float | None:
    return stats.judged(stats.Difference("t", 1, "a", "b"), scores, range(len(scores))).detectable


@pytest.mark.parametrize("n", [20, 100, 400])
def test_the_detectable_difference_is_found_four_times_in_five(n: int) -> None:
    size = detectable([(1.0, 1.0)] * n)
    assert size is not None
    power = 1 - float(reference.binom.cdf(5, n, size))  # of five pairs, all one way, the interval holds 0
    assert power == pytest.approx(0.8, abs=1e-6) or (power > 0.8 and n > 100)


def test_the_detectable_difference_against_a_background_is_found_four_times_in_five() -> None:
    rng, n = np.random.default_rng(14), 300
    size = detectable([(max(d, 0.0), max(-d, 0.0)) for d in right_or_wrong(0.1, 0.1)(rng, n).tolist()])
    assert size is not None
    seen = 0
    for _ in range(1000):
        d = right_or_wrong(0.1 + size / 2, 0.1 - size / 2)(rng, n)
        seen += stats.mcnemar(int((d > 0).sum()), int((d < 0).sum())) < 0.05
    assert 700 <= seen <= 880


def test_five_pairs_can_show_nothing() -> None:
    assert detectable([(1.0, 0.0)] * 5) is None and detectable([(0.5, 0.0)] * 5) is None
    assert min(stats.sign_test(k, 5 - k) for k in range(6)) > 0.05
    for n in (10, 50, 1000):  # a mid-p of 3%, and an interval that holds 0
        low, high, _ = stats.difference_interval([-1.0] * 5 + [0.0] * (n - 5), True)
        assert stats.mcnemar(0, 5) < 0.05 and low < 0 < high
        assert stats.difference_interval([-1.0] * 6 + [0.0] * (n - 6), True)[1] < 0


@pytest.mark.parametrize(("up", "down"), [(0, 0), (0, 6), (1, 5), (3, 3), (40, 2), (0, 38)])
def test_mid_p_is_the_exact_p_less_half_the_chance_of_the_outcome(up: int, down: int) -> None:
    exact = reference.binomtest(up, up + down, 0.5).pvalue if up + down else 1.0
    here = float(reference.binom.pmf(up, up + down, 0.5))
    assert stats.mcnemar(up, down) == pytest.approx(exact - here if up != down else 1.0)


def test_mid_p_is_under_nominal_for_every_share_that_differs() -> None:
    told = np.zeros(301)  # by how many pairs differ: the chance of p < 0.05
    for m in range(301):
        few = next((k for k in range(m // 2, -1, -1) if stats.mcnemar(k, m - k) < 0.05), -1)
        told[m] = 2 * reference.binom.cdf(few, m, 0.5)
    for n in (8, 20, 50, 100, 260, 500):
        for differ in (0.01, 0.05, 0.2, 0.5):
            at = np.arange(min(n, 300) + 1)
            assert reference.binom.pmf(at, n, differ) @ told[at] <= 0.05


def test_p_is_under_nominal_where_almost_all_pairs_differ() -> None:
    for n in range(5, 60):
        told = sum(reference.binom.pmf(k, n, 0.5) for k in range(n + 1) if p_of(k, n - k, 0) < 0.05)
        assert told <= 0.05
    assert p_of(0, 6, 2) == stats.sign_test(0, 6) and p_of(0, 6, 4) == stats.mcnemar(0, 6)


def p_of(up: int, down: int, same: int) -> float:
    scores = [(1.0, 0.0)] * up + [(0.0, 1.0)] * down + [(1.0, 1.0)] * same
    p = stats.judged(stats.Difference("ruler/vt", 512, "a", "b"), scores, range(len(scores))).p
    assert p is not None
    return p


@pytest.mark.parametrize(
    ("n", "down", "up"),
    [(7, 0.5, 0.5), (10, 0.5, 0.5), (17, 0.6, 0.4), (17, 0.23, 0.0), (20, 0.2, 0.0), (41, 0.17, 0.0)],
)
def test_intervals_of_few_right_or_wrong_pairs_are_covered_in_at_least_93_of_100(
    n: int, down: float, up: float
) -> None:
    covered = 0.0
    for lost in range(n + 1):
        for gained in range(n - lost + 1):
            chance = float(reference.multinomial.pmf([lost, gained, n - lost - gained], n, [down, up, 1 - down - up]))
            if chance > 1e-7:
                values = [-1.0] * lost + [1.0] * gained + [0.0] * (n - lost - gained)
                low, high, _ = stats.difference_interval(values, True)
                covered += chance * (low <= up - down + 1e-9 and up - down - 1e-9 <= high)
    assert covered >= 0.93


def test_every_pair_of_arms_gives_finite_numbers() -> None:
    scores = {"a": [1.0, 0.5, 0.0], "b": [0.5, 0.5, 1.0], "c": [0.0, 0.0, 0.0]}
    records = [record(i, arm, value) for arm, values in scores.items() for i, value in enumerate(values)]
    for one, other in combinations(scores, 2):
        pooled = stats.paired(records, one, other).pooled
        assert pooled.low is not None and pooled.high is not None
        assert math.isfinite(pooled.low) and -1 <= pooled.low < pooled.high <= 1


def test_neither_torch_nor_scipy_is_imported_before_it_is_needed() -> None:
    code = "import sys, anchoreval.stats; print([m for m in ('torch', 'scipy', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
