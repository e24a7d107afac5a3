"""The three averages under which LongBench scores are published, and the buckets of LongBench-E. All are 0..100.

Upstream's eval.py gives only the scores of the data sets. The first average (six categories) is that of LongBench's
paper and leaderboard, the second (flat over 16) is common in papers on RoPE and on caches, the third (flat over 21) is
lm-eval's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Literal

from anchoreval.suites.ruler.averages import task_score

Language = Literal["en", "zh"]
Categories = dict[str, tuple[str, ...]]
ENGLISH: Categories = {
    "single-document QA": ("narrativeqa", "qasper", "multifieldqa_en"),
    "multi-document QA": ("hotpotqa", "2wikimqa", "musique"),
    "summarization": ("gov_report", "qmsum", "multi_news"),
    "few-shot learning": ("trec", "triviaqa", "samsum"),
    "synthetic": ("passage_count", "passage_retrieval_en"),
}
CHINESE: Categories = {
    "single-document QA": ("multifieldqa_zh",),
    "multi-document QA": ("dureader",),
    "summarization": ("vcsum",),
    "few-shot learning": ("lsht",),
    "synthetic": ("passage_retrieval_zh",),
}
CODE: Categories = {"code": ("lcc", "repobench-p")}
SIX: dict[Language, Categories] = {"en": ENGLISH | CODE, "zh": CHINESE | CODE}
FLAT_16 = tuple(name for names in SIX["en"].values() for name in names)
FLAT_21 = (*FLAT_16, *(name for names in CHINESE.values() for name in names))
BUCKETS = ("0-4k", "4-8k", "8k+")
Scores = Mapping[str, float | None]


def category_scores(scores: Scores, language: Language = "en") -> dict[str, float | None]:
    """Return category -> the plain mean of its data sets' scores; None if one of them is missing."""
    return {name: _mean(scores, members) for name, members in SIX[language].items()}


def six_categories(scores: Scores, language: Language = "en") -> float | None:
    """Return the paper's and leaderboard's average of a language: the plain mean of six category means.

    The category `code` counts in both languages.
    """
    categories = category_scores(scores, language)
    return _mean(categories, tuple(categories))


def flat_16(scores: Scores) -> float | None:
    """Return the plain mean over the 14 English data sets and the two of code."""
    return _mean(scores, FLAT_16)


def flat_21(scores: Scores) -> float | None:
    """Return the plain mean over all data sets, as lm-eval's group `longbench` computes it."""
    return _mean(scores, FLAT_21)


def bucket_scores(values: Iterable[tuple[str, float | None]]) -> dict[str, float | None]:
    """Return bucket of LongBench-E -> the score of one data set's (bucket, 0..1) in it; None for an empty bucket."""
    rows = list(values)
    return {name: task_score(value for of, value in rows if of == name) for name in BUCKETS}


def _mean(scores: Scores, names: tuple[str, ...]) -> float | None:
    """Return the plain mean over `names`, or None if one of them has no score."""
    values = [score for name in names if (score := scores.get(name)) is not None]
    return fmean(values) if len(values) == len(names) else None
