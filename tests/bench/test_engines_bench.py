"""`bench engines`: the ratio of pairs and its interval."""

from __future__ import annotations

import pytest

from anchoreval.bench.engines import OURS, interval, jobs, line, report_engines
from anchoreval.errors import UnknownName


def test_the_interval_of_a_median_covers_95_of_100() -> None:
    """Of 9 values both but the outermost: 1 - 2 * (1 + 9) / 512 = 0.961; of 15 the fourth from either end, 0.965."""
    assert interval(range(9)) == (1, 7)
    assert interval(range(15)) == (3, 11)
    assert interval(range(5)) == (0, 4) and interval([7.0]) == (7.0, 7.0)


def test_a_line_ends_with_the_ratio_of_pairs_and_its_interval() -> None:
    assert line("stock", [1.0, 2.0, 4.0], [2.0, 2.0, 2.0]).split() == ["stock", "2.000", "1.000", "[0.500,", "2.000]"]
    assert line(OURS, [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]).split() == [OURS, "2.000"]


def test_prompts_of_pairs_share_nothing_and_questions_share_their_context() -> None:
    made = jobs(64, 3, 2)
    apart = [prompt for pair in (*made["score"].pairs, *made["generate"].pairs) for prompt in pair]
    assert len(set(apart)) == 3 + 3 * 2
    for first, second in made["questions"].pairs:
        assert first != second and first.split(".")[:2] == second.split(".")[:2]


def test_an_unknown_job_is_named_before_anything_is_loaded() -> None:
    with pytest.raises(UnknownName, match="generate"):
        report_engines([64], ["generat"])
