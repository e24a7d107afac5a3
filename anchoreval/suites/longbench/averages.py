"""The three averages under which LongBench scores are published, and the buckets of LongBench-E. All are 0..100.

Upstream's eval.py gives only the scores of the data sets. The first average (six categories) is that of LongBench's
paper and leaderboard, the second (flat over 16) is common in papers on RoPE and on caches, the third (flat over 21) is
lm-eval's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Literal

from anchoreval.suites import Average
from anchoreval.suites.ruler.scoring import task_score

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


def _flat(names: Iterable[str]) -> dict[str, float]:
    return dict.fromkeys((f"longbench/{name}" for name in names), 1)


def _six(language: Language) -> dict[str, float]:
    """Return weights, whole numbers, that give each of a language's six categories the same weight."""
    sizes = math.lcm(*map(len, SIX[language].values()))
    return {f"longbench/{name}": sizes / len(names) for names in SIX[language].values() for name in names}


AVERAGES = {
    "longbench_six_en": Average("LongBench EN", "LongBench, six categories, English", _six("en")),
    "longbench_six_zh": Average("LongBench ZH", "LongBench, six categories, Chinese", _six("zh")),
    "longbench_flat_16": Average(
        "LongBench 16", f"LongBench, flat over {len(FLAT_16)}, English and code", _flat(FLAT_16)
    ),
    "longbench_flat_21": Average("LongBench 21", f"LongBench, flat over {len(FLAT_21)}", _flat(FLAT_21)),
}
BUCKETS = ("0-4k", "4-8k", "8k+")
Scores = Mapping[str, float | None]


def category_scores(scores: Scores, language: Language = "en") -> dict[str, float | None]:
    """Return category -> the plain mean of its data sets' scores; None if one of them is missing."""
    values = {name: [scores.get(member) for member in members] for name, members in SIX[language].items()}
    present = {name: [score for score in members if score is not None] for name, members in values.items()}
    return {name: fmean(present[name]) if len(present[name]) == len(values[name]) else None for name in values}


def bucket_scores(values: Iterable[tuple[str, float | None]]) -> dict[str, float | None]:
    """Return bucket of LongBench-E -> the score of one data set's (bucket, 0..1) in it; None for an empty bucket."""
    rows = list(values)
    return {name: task_score(value for of, value in rows if of == name) for name in BUCKETS}
