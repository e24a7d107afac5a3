from __future__ import annotations

from statistics import fmean

import pytest

from anchoreval.suites.ruler.scoring import (
    LENGTHS,
    effective_length,
    task_score,
    weighted_decreasing,
    weighted_increasing,
)

# Rows of the table in NVIDIA/RULER's README: six scores, effective length, Avg., wAvg. (inc), wAvg. (dec).
PUBLISHED = [
    ("Gemini-1.5-pro", (96.7, 95.8, 96.0, 95.9, 95.9, 94.4), ">128K", 95.8, 95.5, None),
    ("GPT-4-1106-preview", (96.6, 96.3, 95.2, 93.2, 87.0, 81.2), "64K", 91.6, 89.0, 94.1),
    ("Llama3.1 (70B)", (96.5, 95.8, 95.4, 94.8, 88.4, 66.6), "64K", 89.6, 85.5, 93.7),
    ("Command-R-plus-0824", (96.0, 95.1, 94.0, 92.4, 85.4, 64.6), "32K", 87.9, 83.4, 92.4),
    ("Llama3.1 (8B)", (95.5, 93.8, 91.6, 87.4, 84.7, 77.0), "32K", 88.3, 85.4, 91.3),
    ("InternLM2.5", (88.1, 85.5, 84.5, 82.7, 75.5, 68.9), "4K", 80.9, 77.8, 83.9),
    ("LWM", (82.3, 78.4, 73.7, 69.1, 68.1, 65.0), "<4K", 72.8, 69.9, 75.7),
    ("DBRX", (95.1, 93.8, 83.6, 63.1, 2.4, 0.0), "8K", 56.3, 38.0, 74.7),
]


@pytest.mark.parametrize("model, scores, effective, mean, increasing, decreasing", PUBLISHED)
def test_published_rows_are_reproduced(
    model: str,
    scores: tuple[float, ...],
    effective: str,
    mean: float,
    increasing: float,
    decreasing: float | None,
) -> None:
    by_length = dict(zip(LENGTHS, scores, strict=True))
    assert effective_length(by_length) == effective
    assert fmean(scores) == pytest.approx(mean, abs=0.1)
    assert weighted_increasing(by_length) == pytest.approx(increasing, abs=0.1)
    if decreasing is not None:
        assert weighted_decreasing(by_length) == pytest.approx(decreasing, abs=0.1)


def test_an_average_over_lengths_of_which_one_is_missing_is_none() -> None:
    by_length = dict.fromkeys(LENGTHS[:-1], 90.0)
    assert weighted_increasing(by_length) is weighted_decreasing(by_length) is None
    assert effective_length(by_length) is None
    assert effective_length({4096: 95.0, 8192: 80.0}) == "4K", "the longer lengths can no longer matter"
    assert effective_length({8192: 95.0}) is None


def test_the_threshold_itself_is_enough() -> None:
    assert effective_length({4096: 85.6, 8192: 85.59}) == "4K"


def test_task_scores_are_rounded_to_two_digits_and_skip_what_has_no_score() -> None:
    assert task_score([1.0, 0.0, 0.0]) == 33.33
    assert task_score([1.0, None, 0.0, 0.0]) == 33.33
    assert task_score([None]) is task_score([]) is None
