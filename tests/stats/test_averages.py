"""Intervals of means over tasks: nominal near the ceiling, of clustered and of graded scores."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest

from anchoreval.schema import Record
from anchoreval.stats import Sampled, average_ends, cells, sampled
from anchoreval.stats.cells import average_interval

TASKS, RUNS, LEAST = 13, 400, 0.95 - 3 * (0.95 * 0.05 / 400) ** 0.5  # nominal less three Monte Carlo errors


def of_right_or_wrong(mean: float, count: int) -> Sampled:
    return Sampled(mean * (1 - mean), count, None)


@pytest.mark.parametrize("n", [5, 20, 100])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.99])
def test_the_mean_of_right_or_wrong_tasks_is_covered(p: float, n: int) -> None:
    rng, held = np.random.default_rng(n), 0
    for means in rng.binomial(n, p, size=(RUNS, TASKS)) / n:
        low, high = average_interval([(1.0, float(mean), of_right_or_wrong(float(mean), n)) for mean in means])
        held += low <= p <= high
    assert held / RUNS >= LEAST


def test_the_mean_of_tasks_whose_questions_share_texts_is_covered() -> None:
    rng, n, each, p, held = np.random.default_rng(1), 20, 4, 0.9, 0
    sources = [i // each for i in range(n)]
    for _ in range(RUNS):
        parts = []
        for _ in range(TASKS):
            texts = np.repeat(rng.random(n // each) < p, each)
            scores = np.where(rng.random(n) < 0.7**0.5, texts, rng.random(n) < p).astype(float).tolist()
            parts.append((1.0, fmean(scores), sampled(scores, sources)))
        low, high = average_interval(parts)
        held += low <= p <= high
    assert held / RUNS >= LEAST


def test_the_mean_of_tasks_of_which_a_few_texts_hold_most_questions_is_covered() -> None:
    rng, p, held, runs = np.random.default_rng(4), 0.97, 0, 200
    texts = np.repeat(np.arange(100), [50] * 10 + [2] * 30 + [1] * 60)
    for _ in range(runs):
        parts = []
        for task in range(3):
            scores = (rng.random(100) < p)[texts].astype(float).tolist()
            parts.append((1.0, fmean(scores), sampled(scores, [(task, int(text)) for text in texts])))
        low, high = average_interval(parts)
        held += low <= p <= high
    assert held / runs >= 0.93 - 3 * (0.93 * 0.07 / runs) ** 0.5


def test_the_mean_of_graded_tasks_is_covered() -> None:
    rng, truth, held = np.random.default_rng(2), 0.97 + 0.03 * 0.8, 0
    for draw in np.where(rng.random((RUNS, TASKS, 100)) < 0.97, 1.0, 0.8):
        low, high = average_interval([(1.0, fmean(one), sampled(one.tolist())) for one in draw])
        held += low <= truth <= high
    assert held / RUNS >= LEAST


def test_the_mean_over_lengths_at_which_the_needle_is_the_same_is_covered() -> None:
    rng, n, lengths, p, held, apart = np.random.default_rng(3), 20, 6, 0.7, 0, 0
    for _ in range(RUNS):
        parts, alone = [], []
        for task in range(2):
            needles = rng.random(n) < p
            for length in range(lengths):
                scores = np.where(rng.random(n) < 0.5**0.5, needles, rng.random(n) < p).astype(float).tolist()
                parts.append((1.0, fmean(scores), sampled(scores, [100 * task + i for i in range(n)])))
                alone.append((1.0, fmean(scores), sampled(scores, [(task, length, i) for i in range(n)])))
        low, high = average_interval(parts)
        held += low <= p <= high
        low, high = average_interval(alone)
        apart += low <= p <= high
    assert held / RUNS >= LEAST > 0.85 > apart / RUNS


def test_weights_are_those_of_the_mean_and_the_mean_lies_within() -> None:
    parts = [(3.0, 1.0, of_right_or_wrong(1.0, 50)), (1.0, 0.5, of_right_or_wrong(0.5, 50))]
    low, high = average_interval(parts)
    assert low < 0.875 < high <= 1
    assert average_interval([(6.0, *parts[0][1:]), (2.0, *parts[1][1:])]) == pytest.approx((low, high))


def test_a_single_task_keeps_its_own_interval() -> None:
    records = [
        Record(
            key=str(i), sample_id=f"ruler/vt@512#{i}", task="ruler/vt", length=512, index=i, arm="a",
            prompt_sha256="0", prompt_tokens=1, references=(str(i),), facts={}, output="1", output_tokens=1,
            finish="stop", score=float(i < 18), why=None, reference_logprob=None, reference_tokens=0, seconds=0.0,
        )
        for i in range(20)
    ]  # fmt: skip
    (cell,) = cells(records)
    assert average_ends([(2.0, cell)]) == (cell.low, cell.high)
    assert average_ends([(1.0, cell), (1.0, cell)]) != (cell.low, cell.high)
