"""Samples that share a source: intervals and p values of whole clusters, on simulated data with known truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as reference
from statsmodels.api import OLS

from anchoreval import stats
from anchoreval.schema import Record
from anchoreval.stats.intervals import design_effect, standard_error

GROUPS, EACH, TRUTH = 40, 5, -0.1


def drawn(rng: np.random.Generator, truth: float = TRUTH) -> tuple[NDArray[np.float64], list[int]]:
    """Differences of -1, 0 or 1 with mean `truth` that pull together within a cluster, and the clusters."""
    lean = rng.random(GROUPS) < 0.3
    sign = np.where(rng.random(GROUPS) < 0.5, 1.0, -1.0)[:, None]  # which way a leaning cluster goes
    values = np.where(rng.random((GROUPS, EACH)) < 0.6 * lean[:, None], sign, 0.0)
    shift = np.where(rng.random((GROUPS, EACH)) < abs(truth), np.sign(truth), 0.0)
    return np.where(values == 0.0, shift, values).ravel(), [i for i in range(GROUPS) for _ in range(EACH)]


def true_mean(truth: float = TRUTH) -> float:
    return truth * (1 - 0.3 * 0.6)


def test_clustered_intervals_cover_the_truth_and_others_do_not() -> None:
    rng, runs, covered, naive = np.random.default_rng(1), 400, 0, 0
    for _ in range(runs):
        values, clusters = drawn(rng)
        low, high, method = stats.difference_interval(values.tolist(), True, clusters)
        assert method == "gaffke"
        covered += low <= true_mean() <= high
        low, high, _ = stats.difference_interval(values.tolist(), True)
        naive += low <= true_mean() <= high
    assert 0.93 <= covered / runs <= 0.99
    assert naive / runs < 0.88


def test_the_p_of_clustered_pairs_keeps_its_level_and_mcnemars_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stats.sign_flip.__globals__, "FLIPS", 399)
    rng, runs, false, naive = np.random.default_rng(2), 1000, 0, 0
    for _ in range(runs):
        values, clusters = drawn(rng, 0.0)
        false += stats.sign_flip(values.tolist(), clusters) < 0.05
        naive += stats.sign_test(int((values > 0).sum()), int((values < 0).sum())) < 0.05
    assert false <= 50 + 2 * (runs * 0.05 * 0.95) ** 0.5
    assert naive > 100


def test_the_p_of_graded_pairs_keeps_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stats.sign_flip.__globals__, "FLIPS", 399)
    rng, runs = np.random.default_rng(3), 1000
    values = rng.choice([-0.5, -0.25, 0.0, 0.25, 0.5], size=(runs, 60), p=[0.1, 0.1, 0.6, 0.1, 0.1])
    false = sum(stats.sign_flip(row.tolist()) < 0.05 for row in values)
    assert false <= 50 + 2 * (runs * 0.05 * 0.95) ** 0.5


def test_the_p_of_graded_pairs_is_scipys_permutation_test() -> None:
    values = [0.5, -0.25, 0.75, 0.25, 0.0, 0.5, 0.25, -0.5, 1.0]
    found = reference.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert stats.sign_flip(values) == pytest.approx(found.pvalue)
    many = np.random.default_rng(4).normal(0.15, 0.5, 50)
    rng = np.random.default_rng(5)
    found = reference.permutation_test((many,), np.mean, permutation_type="samples", n_resamples=9999, rng=rng)
    assert stats.sign_flip(many.tolist()) == pytest.approx(found.pvalue, abs=0.01)


def test_identical_scores_have_p_1() -> None:
    assert stats.sign_flip([0.0] * 5, [1, 1, 2, 2, 3]) == 1.0


def test_the_p_of_log_probabilities_is_students_and_with_equal_clusters_that_of_a_robust_regression() -> None:
    values, clusters = drawn(np.random.default_rng(6))
    expected = reference.ttest_1samp(values, 0)
    assert stats.t_test(values.tolist())[2] == pytest.approx(expected.pvalue)
    fit = OLS(values, np.ones(len(values))).fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_t": True})
    found = standard_error(values.tolist(), clusters)
    assert found == (pytest.approx(fit.bse[0], rel=1e-9), GROUPS - 1)
    assert stats.t_test(values.tolist(), clusters)[2] == pytest.approx(fit.pvalues[0], rel=1e-6)


def test_the_design_effect_is_about_one_for_independent_pairs_and_the_cluster_size_for_copies() -> None:
    rng = np.random.default_rng(7)
    clusters = [i // 5 for i in range(5000)]
    assert design_effect(rng.normal(size=5000).tolist(), clusters) == pytest.approx(1, abs=0.15)
    assert design_effect(np.repeat(rng.normal(size=1000), 5).tolist(), clusters) == pytest.approx(5, rel=0.01)
    assert design_effect([1.0, 2.0], None) == 1.0


def record(index: int, arm: str, score: float, facts: dict[str, int], length: int = 512) -> Record:
    return Record(
        key=f"{arm}{length}{index}", sample_id=f"ruler/qa_1@{length}#{index}", task="ruler/qa_1", length=length,
        index=index, arm=arm, prompt_sha256="same", prompt_tokens=1, references=("1",), facts=facts, output="1",
        output_tokens=1, finish="stop", score=score, why=None, reference_logprob=-score, reference_tokens=1,
        seconds=0.0,
    )  # fmt: skip


def test_samples_that_name_one_source_are_one_cluster_and_detect_less() -> None:
    rng = np.random.default_rng(8)
    values, clusters = drawn(rng)

    def made(shared: bool) -> stats.Difference:
        records = [
            record(i, arm, float(arm == "b" and d < 0) or float(arm == "a" and d > 0), {"source": c} if shared else {})
            for arm in ("a", "b") for i, (d, c) in enumerate(zip(values, clusters, strict=True))
        ]  # fmt: skip
        return stats.paired(records, "a", "b").pooled

    alone, together = made(False), made(True)
    assert (alone.clusters, together.clusters) == (GROUPS * EACH, GROUPS)
    assert (alone.method, together.method) == ("adjusted-wald", "gaffke")
    assert alone.detectable and together.detectable and together.detectable > 1.3 * alone.detectable
    assert together.p and alone.p and together.p > alone.p


def test_one_question_at_two_lengths_is_one_cluster_where_lengths_are_pooled() -> None:
    records = [
        record(i, arm, float(arm == "a" and i < 3), {"question": i}, length)
        for arm in ("a", "b") for length in (512, 1024) for i in range(10)
    ]  # fmt: skip
    found = stats.paired(records, "a", "b")
    assert [one.method for one in found.lengths] == ["adjusted-wald"] * 2
    assert (found.pooled.clusters, found.pooled.pairs, found.pooled.method) == (10, 20, "gaffke")
