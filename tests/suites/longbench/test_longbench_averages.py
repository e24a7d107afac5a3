"""LongBench's averages against the rows of its README (THUDM/LongBench 2e00731, LongBench/README.md)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from anchoreval.cards import load_tasks
from anchoreval.suites.longbench.scoring import AVERAGES, FLAT_16, FLAT_21, Language, bucket_scores, category_scores

ORDER = (
    "narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh", "hotpotqa", "2wikimqa", "musique", "dureader",
    "gov_report", "qmsum", "multi_news", "vcsum", "trec", "triviaqa", "samsum", "lsht", "passage_count",
    "passage_retrieval_en", "passage_retrieval_zh", "lcc", "repobench-p",
)  # fmt: skip
# data sets in this order, then the six English categories in the order of `category_scores`, then Avg en and zh
SIXES: tuple[tuple[str, Language], ...] = (("six_en", "en"), ("six_zh", "zh"))
ROWS = {
    "GPT-3.5-Turbo-16k": (
        (23.6, 43.3, 52.3, 61.2, 51.6, 37.7, 26.9, 28.7, 29.5, 23.4, 26.7, 16.0, 68.0, 91.4, 41.7, 29.2, 4.5, 71.0,
         77.5, 54.7, 53.6),
        (39.8, 38.7, 26.5, 67.1, 37.8, 54.1), 44.0, 44.5,
    ),
    "Llama2-7B-chat-4k": (
        (18.7, 19.2, 36.8, 11.9, 25.4, 32.8, 9.4, 5.2, 27.3, 20.8, 25.8, 0.2, 61.5, 77.8, 40.7, 19.8, 2.1, 9.8, 0.5,
         52.4, 43.8),
        (24.9, 22.6, 24.7, 60.0, 5.9, 48.1), 31.0, 14.3,
    ),
}  # fmt: skip


def average(name: str, scores: Mapping[str, float | None]) -> float | None:
    return AVERAGES[f"longbench_{name}"].of({f"longbench/{task}": score for task, score in scores.items()})


@pytest.mark.parametrize("model", ROWS)
def test_published_rows_are_reproduced(model: str) -> None:
    values, categories, english, chinese = ROWS[model]
    scores: dict[str, float | None] = dict(zip(ORDER, values, strict=True))
    assert list(category_scores(scores).values()) == pytest.approx(categories, abs=0.1)
    assert average("six_en", scores) == pytest.approx(english, abs=0.1)
    assert average("six_zh", scores) == pytest.approx(chinese, abs=0.1)
    assert average("flat_21", scores) == pytest.approx(sum(values) / 21)
    assert average("flat_16", scores) == pytest.approx((sum(values) - sum(values[i] for i in (3, 7, 11, 15, 18))) / 16)


def test_the_flat_averages_run_over_the_cards_own_tasks() -> None:
    sets = load_tasks()[1]
    assert {f"longbench/{name}" for name in FLAT_16} == set(sets["longbench-16"]) and len(FLAT_16) == 16
    assert {f"longbench/{name}" for name in FLAT_21} == set(sets["longbench"]) and len(FLAT_21) == 21


def test_an_average_of_which_a_data_set_is_missing_is_none() -> None:
    scores: dict[str, float | None] = dict.fromkeys(ORDER, 50.0)
    assert {average(name, scores) for name in ("six_en", "six_zh", "flat_16", "flat_21")} == {50.0}
    scores["lcc"] = None
    assert {average(name, scores) for name in ("six_en", "six_zh", "flat_16", "flat_21")} == {None}
    del scores["dureader"]
    assert category_scores(scores, "zh")["multi-document QA"] is None
    assert category_scores(scores)["multi-document QA"] == 50.0


def test_six_categories_weigh_the_same_whatever_their_number_of_data_sets() -> None:
    scores: dict[str, float | None] = {name: float(at) for at, name in enumerate(ORDER)}
    for name, language in SIXES:
        of = [score for score in category_scores(scores, language).values() if score is not None]
        assert len(of) == 6 and average(name, scores) == pytest.approx(sum(of) / 6)


def test_buckets_are_rounded_means_and_an_empty_one_is_none() -> None:
    values = [("0-4k", 1.0), ("0-4k", 0.0), ("0-4k", 0.0), ("8k+", 1.0), ("8k+", None)]
    assert bucket_scores(values) == {"0-4k": 33.33, "4-8k": None, "8k+": 100.0}
