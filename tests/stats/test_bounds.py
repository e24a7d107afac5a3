"""Bounds of a mean that hold for any law: against Clopper & Pearson, against weights drawn, against known truths."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as reference

from anchoreval import stats
from anchoreval.stats.intervals import Units, degrees, hidden, jackknife, standard_error, units_of, within_strata
from anchoreval.stats.verdicts import equivalence_p


@pytest.mark.parametrize(("right", "n"), [(0, 5), (0, 299), (1, 20), (10, 20), (3, 100), (20, 20), (495, 500)])
def test_the_bound_of_right_or_wrong_values_is_clopper_and_pearsons(right: int, n: int) -> None:
    expected = reference.binomtest(right, n).proportion_ci(method="exact")
    units = units_of([1.0] * right + [0.0] * (n - right), None)
    assert units.lower(0.025, 0.0) == pytest.approx(expected.low, rel=0.03, abs=1e-4)
    assert -units.negated().lower(0.025, -1.0) == pytest.approx(expected.high, rel=0.005)


@pytest.mark.parametrize("n", [5, 20, 200])
def test_the_bound_of_graded_values_is_the_quantile_of_means_with_weights_drawn(n: int) -> None:
    rng = np.random.default_rng(n)
    values = rng.choice([-1.0, -0.2, 0.0, 0.2], n, p=[0.1, 0.1, 0.7, 0.1])
    means = rng.dirichlet(np.ones(n + 1), 40_000) @ np.append(values, -1.0)
    found = units_of(values.tolist(), None)
    low = found.lower(0.025, -1.0)
    assert (means <= low).mean() == pytest.approx(0.025, abs=0.004)  # four deviations of 40,000 draws, and r*'s 3%
    assert found.below(low, -1.0) == pytest.approx(0.025, abs=1e-6)


def test_values_of_one_source_are_drawn_together() -> None:
    alone, copied = (
        units_of([1.0, 0.0, 0.0, 1.0, 0.0], None),
        units_of([1.0, 0.0, 0.0, 1.0, 0.0] * 4, [0, 1, 2, 3, 4] * 4),
    )
    assert copied.lower(0.025, -1.0) == pytest.approx(alone.lower(0.025, -1.0))
    assert copied == Units((4.0, 0.0, 0.0, 4.0, 0.0), (4, 4, 4, 4, 4))


@pytest.mark.parametrize("sources", [20, 80])
def test_pairs_that_do_not_differ_hide_what_their_sources_can(sources: int) -> None:
    low, high, method = stats.difference_interval([0.0] * 4 * sources, True, [i // 4 for i in range(4 * sources)])
    hidden = 1 - 0.05 ** (1 / sources)
    assert (low, high, method) == (pytest.approx(-hidden), pytest.approx(hidden), "exact-bound")


@pytest.mark.parametrize("sizes", [[4] * 20, [10] + [1] * 200, [50] * 10 + [2] * 30 + [1] * 60, [7]])
def test_sources_hide_what_the_worst_of_their_laws_loses_unseen(sizes: list[int]) -> None:
    share, sized = hidden(sizes, 0.025), np.array(sizes)
    worst = max(
        float(np.maximum(0, 1 - rest / sized) @ sized / sized.sum())
        for rest in np.geomspace(0.01, 50, 20_000)
        if np.log(np.minimum(1, rest / sized)).sum() >= np.log(0.025)
    )  # losses of a chance 1 - rest / size, all unseen with at least 2.5%
    assert share == pytest.approx(worst, abs=0.001)
    rng = np.random.default_rng(3)
    for _ in range(200):  # no other law with that chance hides more
        logs = rng.dirichlet(rng.uniform(0.01, 2, len(sizes))) * np.log(0.025)
        assert (1 - np.exp(logs)) @ sized / sized.sum() <= share + 1e-9


@pytest.mark.parametrize("large", [2, 10])
def test_a_few_sources_that_hold_most_pairs_are_covered(large: int) -> None:
    rng, held, scored, runs = np.random.default_rng(11), 0, 0, 150
    sizes = np.array([50] * large + [2] * 30 + [1] * 60)
    texts = np.repeat(np.arange(len(sizes)), sizes)
    for _ in range(runs):
        drawn = rng.choice([-1.0, 1.0, 0.0], len(sizes), p=[0.1, 0.1, 0.8])[texts]
        low, high, _ = stats.difference_interval(drawn.tolist(), True, texts.tolist())
        held += low <= 0 <= high
        low, high, _ = stats.mean_interval((drawn > -1).astype(float).tolist(), texts.tolist())
        scored += low <= 0.9 <= high
    assert min(held, scored) >= 0.93 * runs - 3 * (runs * 0.93 * 0.07) ** 0.5


def test_whole_texts_of_unequal_sizes_that_are_lost_are_not_called_equivalent() -> None:
    rng, said = np.random.default_rng(12), 0
    sizes = np.array([50] * 100 + [1] * 900)
    texts = np.repeat(np.arange(1000), sizes).tolist()
    for _ in range(100):
        lost = rng.random(1000) < 0.01
        scores = [(0.0 if lost[text] else 1.0, 1.0) for text in texts]
        one = stats.judged(stats.Difference("t", 1, "a", "b"), scores, texts)
        said += stats.verdict(one, 0.01).within
    assert said <= 2.5 + 3 * (100 * 0.025 * 0.975) ** 0.5


def test_a_task_of_two_sources_among_others_is_covered_in_the_pooled_row() -> None:
    rng, held = np.random.default_rng(13), 0
    texts, tasks = [0] * 40 + [1] * 40 + list(range(2, 152)), [0] * 80 + [1] * 150
    for _ in range(100):
        values = np.append(np.repeat(rng.choice([-1.0, 1.0, 0.0], 2, p=[0.3, 0.3, 0.4]), 40), np.zeros(150))
        values[80 + rng.integers(150)] = rng.choice([-1.0, 1.0])
        low, high, _ = stats.difference_interval(values.tolist(), True, texts, tasks)
        held += low <= 0 <= high
    assert held >= 93 - 3 * (100 * 0.93 * 0.07) ** 0.5


def test_where_a_task_gained_all_its_values_may_fall_twice_as_far() -> None:
    values, tasks = [1.0] * 20 + [0.0] * 20, [0] * 20 + [1] * 20
    _, units = within_strata(values, None, tasks)
    assert units.falls[0] == pytest.approx(2 * units.falls[20]) and units.rises[0] == 0
    assert units.negated().falls == units.rises
    both = stats.judged(stats.Difference(None, None, "a", "b"), [(0.0, 1.0)] * 40, [i // 2 for i in range(40)], tasks)
    assert both.low == -1 and both.high is not None and -0.8 < both.high < -0.5


def test_a_small_difference_makes_no_interval_narrower() -> None:
    same = stats.difference_interval([0.0] * 100, False)
    one = stats.difference_interval([-0.2] + [0.0] * 99, False)
    assert one[0] < same[0] and one[1] > same[1] - 0.002
    judged = stats.judged(stats.Difference("t", 1, "a", "b"), [(0.8, 1.0)] + [(1.0, 1.0)] * 99, range(100))
    assert judged.detectable and judged.detectable > 0.07
    assert stats.verdict(judged, 0.01).word == "cannot tell"


def test_a_few_large_losses_that_were_not_seen_are_not_called_equivalent() -> None:
    rng, said, covered = np.random.default_rng(1), 0, 0
    for kinds in rng.multinomial(400, [0.01, 0.01, 0.01, 0.97], size=300):
        differences = np.repeat([-1.0, -0.1, 0.1, 0.0], kinds).tolist()
        scores = [(0.5 + d / 2, 0.5 - d / 2) for d in differences]
        one = stats.judged(stats.Difference("t", 1, "a", "b"), scores, range(400))
        said += stats.verdict(one, 0.01).word == "equivalent"
        low, high, _ = stats.difference_interval(differences, False)
        covered += low <= -0.01 <= high
    assert said <= 7.5 + 3 * (300 * 0.025 * 0.975) ** 0.5
    assert covered >= 0.93 * 300 - 3 * (300 * 0.93 * 0.07) ** 0.5


def test_few_large_losses_beside_many_small_gains_are_no_gain() -> None:
    rng, false = np.random.default_rng(2), 0
    for kinds in rng.multinomial(100, [0.01, 0.05, 0.94], size=200):
        scores = [(0.0, 1.0)] * int(kinds[0]) + [(0.7, 0.5)] * int(kinds[1]) + [(1.0, 1.0)] * int(kinds[2])
        one = stats.judged(stats.Difference("t", 1, "a", "b"), scores, range(100))
        false += stats.verdict(one, 0.01).word in ("worse", "better")
    assert false <= 10 + 3 * (200 * 0.05 * 0.95) ** 0.5


@pytest.mark.parametrize(("right", "n"), [(9, 20), (95, 100)])
def test_scores_that_share_a_source_have_wider_intervals(right: int, n: int) -> None:
    scores = [1.0] * right + [0.0] * (n - right)
    alone, shared = stats.mean_interval(scores), stats.mean_interval(scores, [i // 4 for i in range(n)])
    assert alone[2] == "clopper-pearson" and shared[2] == "gaffke"
    assert shared[0] < alone[0] and shared[1] > alone[1]


def test_intervals_of_clustered_scores_hold_the_truth() -> None:
    rng, texts, held = np.random.default_rng(3), np.repeat(np.arange(25), 4), 0
    for _ in range(300):
        shared = (rng.random(25) < 0.5)[texts]
        scores = np.where(rng.random(100) < 0.7**0.5, shared, rng.random(100) < 0.5).astype(float)
        low, high, _ = stats.mean_interval(scores.tolist(), texts.tolist())
        held += low <= 0.5 <= high
    assert held >= 0.93 * 300 - 3 * (300 * 0.93 * 0.07) ** 0.5


def test_pooled_rows_have_the_variance_within_their_tasks() -> None:
    values = [0.0] * 100 + [-1.0] * 100 + [-1.0, 0.0] * 30
    strata = [i // 20 for i in range(260)]
    moved, _ = within_strata(values, None, strata)
    expected = sum(
        (20 / 260) ** 2 * np.var(values[20 * i : 20 * i + 20], ddof=1) / 20 for i in range(13)
    )  # Cochran 5.6
    assert pytest.approx(expected) == np.var(moved, ddof=1) / 260
    assert np.mean(moved) == pytest.approx(np.mean(values))
    bag, tasks = (stats.difference_interval(values, True, None, at) for at in (None, strata))
    assert tasks[1] - tasks[0] < 0.07 < 0.12 < bag[1] - bag[0]


def test_strata_of_one_source_are_put_together() -> None:
    values = [0.0, 1.0, 0.25, 0.75]
    assert within_strata(values, None, ["a", "b", "c", "c"])[0] == pytest.approx(
        [0.5 + (v - 0.5) * (2 / 1 * 3 / 4) ** 0.5 for v in values]
    )
    assert within_strata(values, [0, 0, 1, 1], None)[0] == values


def test_one_question_at_several_lengths_is_one_unit_in_the_rows_of_all_lengths() -> None:
    rng, held = np.random.default_rng(4), 0
    questions, lengths = np.tile(np.arange(40), 6), np.repeat(np.arange(6), 40)
    places = [(int(q) // 20, int(at)) for q, at in zip(questions, lengths, strict=True)]
    for _ in range(300):
        values = rng.normal(size=40)[questions] * 0.37**0.5 + rng.normal(size=240) * 0.63**0.5
        one = stats.with_logprobs(stats.Difference(None, None, "a", "b"), values.tolist(), questions.tolist(), places)
        held += one.logprob_low is not None and one.logprob_low <= 0 <= (one.logprob_high or 0)
    assert held >= 0.93 * 300 - 3 * (300 * 0.93 * 0.07) ** 0.5


def test_the_standard_error_of_unequal_sources_leaves_out_one_at_a_time() -> None:
    values, clusters = [1.0, 2.0, 4.0, 3.0, 0.5, 2.5], [0, 0, 0, 1, 2, 2]
    without = [np.mean([v for v, c in zip(values, clusters, strict=True) if c != out]) for out in range(3)]
    expected = (2 / 3 * np.sum((without - np.mean(without)) ** 2)) ** 0.5
    error, df = standard_error(values, clusters)
    assert error == pytest.approx(expected) == jackknife([7.0, 3.0, 3.0], [3, 1, 2])
    assert df == pytest.approx(36 / 14 - 1) == degrees([3, 1, 2])


def test_log_probabilities_of_very_unequal_texts_are_covered() -> None:
    rng, held = np.random.default_rng(5), 0
    texts = np.array([0] * 16 + list(range(1, 35)))
    for _ in range(400):
        values = 0.7**0.5 * rng.normal(size=35)[texts] + 0.3**0.5 * rng.normal(size=50)
        one = stats.with_logprobs(stats.Difference("t", 1, "a", "b"), values.tolist(), texts.tolist())
        held += one.logprob_low is not None and one.logprob_low <= 0 <= (one.logprob_high or 0)
    assert held >= 0.93 * 400 - 3 * (400 * 0.93 * 0.07) ** 0.5


def test_equivalence_is_an_exact_test_of_the_margin() -> None:
    for n, p in ((299, 0.99**299), (400, 0.99**400)):
        same = stats.Difference(None, None, "a", "b", low=0.0, high=0.0, units=units_of([0.0] * n, None))
        assert equivalence_p(same, 0.01) == pytest.approx(p, rel=0.03)
