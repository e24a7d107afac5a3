"""LongBench's metrics, re-implemented with their bugs, and its averages.

Source: THUDM/LongBench 2e00731, LongBench/metrics.py and eval.py (MIT, Copyright (c) 2023 THU-KEG & Zhipu AI). A metric
takes prediction, answer and classes and returns 0..1; the score of a sample is the best over its answers. Chinese texts
are cut into words by jieba, a package of the extra `zh`.

Upstream's eval.py gives only the scores of the data sets. LongBench is published under three averages, all 0..100: the
first (six categories) is that of its paper and leaderboard, the second (flat over 16) is common in papers on RoPE and
on caches, the third (flat over 21) is lm-eval's.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from statistics import fmean
from typing import Literal

from anchoreval.errors import MissingExtra, RunError
from anchoreval.schema import Json, Score
from anchoreval.suites import NO_FACTS, NO_REFERENCES, Average, Rule, Scorer
from anchoreval.suites.ruler.scoring import task_score

Metric = Callable[[str, str, Sequence[str]], float]
LIMIT = "upstream's recursion limit makes this"  # start of the note on a score for which upstream has another value
PARAGRAPH, PARAGRAPH_ZH = r"Paragraph (\d+)", r"段落(\d+)"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CHINESE = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》"
    "「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_CHINESE_PUNCTUATION = str.maketrans("", "", string.punctuation + _CHINESE)
#: Recursive calls that fit under CPython's limit of 1,000 frames when LongBench's eval.py calls rouge (measured).
UPSTREAM_CALLS = 991
_TINY = 1e-8
_MOST_CELLS = 10**8  # of the tables for one answer: 32,000 words against a reference of 3,000


@dataclass(frozen=True, slots=True)
class RougeL:
    """`f` in 0..1; `calls` is the longest chain of calls that upstream needs for it."""

    f: float
    calls: int

    def zeroed(self, frames: int = 0) -> bool:
        """Return True if upstream hits the recursion limit here, when called from `frames` further functions."""
        return self.calls > UPSTREAM_CALLS - frames


def rouge_l(prediction: str, reference: str) -> RougeL:
    """Return ROUGE-L of the package rouge 1.0.1 (pltrdy) by default: the F measure of the words shared in order.

    That is not the ROUGE-L of rouge_score. Sentences end at every ".", words are split at single blanks, repeated words
    count once, and letter case counts; the measure is 0 if either text has no sentence. This is re-implemented from
    rouge/rouge_score.py of that release, without its recursion: upstream walks back through a table by recursive calls,
    and LongBench turns the RecursionError of a long text into a score of 0.

    Raise RunError if both are so long that the comparison would take minutes.
    """
    predicted, expected = _sentences(prediction), _sentences(reference)
    _require_few(sum(map(len, predicted)), sum(map(len, expected)))
    if not predicted or not expected:
        return RougeL(0.0, 0)
    shared: set[str] = set()
    calls = 0
    for reference_words in expected:
        for words in predicted:
            common, steps = common_words(reference_words, words)
            shared |= common
            calls = max(calls, steps)
    recall = len(shared) / len({word for words in expected for word in words})
    precision = len(shared) / len({word for words in predicted for word in words})
    return RougeL(2.0 * ((precision * recall) / (precision + recall + _TINY)), calls)


def _require_few(said: int, meant: int) -> None:
    if said * meant > _MOST_CELLS:
        raise RunError(f"an answer of {said:,} and a reference of {meant:,} items are too long to be compared")


def _sentences(text: str) -> list[list[str]]:
    """Return the words of every stretch between full stops; a stretch of blanks is one empty word."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def common_words(one: Sequence[str], other: Sequence[str]) -> tuple[set[str], int]:
    """Return the words of the longest common subsequence that upstream chooses, and upstream's recursive calls."""
    table = lengths(one, other)
    i, j, steps = len(one), len(other), 1
    common: set[str] = set()
    while i and j:
        if one[i - 1] == other[j - 1]:
            common.add(one[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
        steps += 1
    return common, steps


def lengths(one: Sequence[str], other: Sequence[str]) -> list[list[int]]:
    """Return a table whose `[i][j]` is the length of the longest common subsequence of the first i and j items.

    Raise RunError if the table would be too large.
    """
    _require_few(len(other), len(one))
    table = [[0] * (len(other) + 1)]
    for item in one:
        above, row = table[-1], [0]
        for j, candidate in enumerate(other):
            row.append(above[j] + 1 if item == candidate else max(above[j + 1], row[j]))
        table.append(row)
    return table


def first_line(answer: str) -> str:
    """Return the first non-empty line, which is all that eval.py judges for trec, triviaqa, samsum and lsht."""
    return answer.lstrip("\n").split("\n")[0]


def qa_f1(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """Return the F1 over the words of both; an answer of articles and punctuation alone is never matched."""
    return _f1(_words(prediction), _words(answer))


def qa_f1_zh(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """Return the F1 over jieba's words of the raw texts; each word is cleaned after the cut."""
    return _f1(_words_zh(prediction), _words_zh(answer))


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Return 1 / the number of class names in the prediction if the right one is among them, else 0.

    Upstream removes names that are part of the right name from the list while it iterates over the list, so that it
    skips the next name.
    """
    names = [name for name in classes if name in prediction]
    for name in names:
        if name in answer and name != answer:
            names.remove(name)
    return 1.0 / len(names) if answer in names else 0.0


def classification_whole(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Return the value of `classification` when no name is skipped."""
    names = [name for name in classes if name in prediction and not (name in answer and name != answer)]
    return 1.0 / len(names) if answer in names else 0.0


def count(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """Return the share of the numbers in the prediction that are the answer."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str, _: Sequence[str] = (), mark: str = PARAGRAPH) -> float:
    """Return the share of the numbers in the prediction that are the number of the answer's paragraph."""
    return count(prediction, re.findall(mark, answer)[0])


def code_sim(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """Return the difflib similarity of the answer and the first line without a backtick, "#" or "//".

    That line may be blank. The similarity is that of fuzzywuzzy 0.18.0 without python-Levenshtein: whole per cents, 1
    for equal texts, 0 if one is empty.
    """
    return difflib_ratio(_code_line(prediction, blank=True), answer)


def code_sim_text(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """Return the value of `code_sim` for the first line that is not blank either."""
    return difflib_ratio(_code_line(prediction, blank=False), answer)


def code_sim_levenshtein(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """Return the value of `code_sim` as fuzzywuzzy computes it if python-Levenshtein is installed."""
    line = _code_line(prediction, blank=True)
    if not line or not answer:
        return float(line == answer)
    size = len(line) + len(answer)
    return round(100 * (1.0 - (size - 2 * lengths(line, answer)[-1][-1]) / size)) / 100


def difflib_ratio(one: str, other: str) -> float:
    """Return fuzzywuzzy's `ratio` as its difflib fallback computes it: a fraction in whole per cents."""
    if one == other:
        return 1.0
    if not one or not other:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, one, other).ratio()) / 100


def _code_line(prediction: str, blank: bool) -> str:
    lines = (line for line in prediction.lstrip("\n").split("\n") if blank or line.strip())
    return next((line for line in lines if "`" not in line and "#" not in line and "//" not in line), "")


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def _words_zh(text: str) -> list[str]:
    cleaned = ("".join(word.lower().translate(_NO_CHINESE_PUNCTUATION).split()) for word in cut_zh(text))
    return [word for word in cleaned if word]


def _f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    same = sum((Counter(prediction) & Counter(answer)).values())
    if same == 0:
        return 0.0
    precision, recall = 1.0 * same / len(prediction), 1.0 * same / len(answer)
    return (2 * precision * recall) / (precision + recall)


def cut_zh(text: str) -> list[str]:
    """Return the words of a Chinese text."""
    return list(_jieba().cut(text))


@lru_cache(1)
def _jieba() -> Json:
    """Return a word cutter separate from jieba's global one; raise MissingExtra if jieba is not installed.

    Importing jieba emits warnings, and jieba logs to stderr; both are silenced.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jieba
    except ModuleNotFoundError as error:
        raise MissingExtra("Chinese answers are scored with jieba: pip install 'anchoreval[zh]'") from error
    logging.getLogger("jieba").setLevel(logging.WARNING)
    return jieba.Tokenizer()


def _scorer(metric: Metric, cut: bool = False, classes: bool = False, mark: str = "") -> Rule:
    """Return the rule that takes the best value of a metric over the references; `cut` judges the first line alone.

    A record has no score without `classes`, where they are looked for, or if a reference lacks the `mark`.
    """

    def score(answer: str, references: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
        names = facts.get("all_classes") or ()
        if classes and not names:
            return Score(None, "the record has no all_classes to look for")
        if not references:
            return NO_REFERENCES
        if mark and not all(re.search(mark, reference) for reference in references):
            return Score(None, f"a reference does not say {mark.split(' ')[0]} and its number")
        judged = first_line(answer) if cut else answer
        return Score(max(metric(judged, reference, names) for reference in references))

    return score


def _rouge(zh: bool = False, cut: bool = False, zeroed: bool = False) -> Rule:
    """Return a scorer of ROUGE-L that notes if upstream's value is lower; with `zeroed`, of upstream's value itself."""

    def score(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
        if not references:
            return NO_REFERENCES
        judged = first_line(answer) if cut else answer
        texts = [judged, *references]
        if zh:
            texts = [" ".join(cut_zh(text)) for text in texts]
        scores = [rouge_l(texts[0], reference) for reference in texts[1:]]
        upstream = max(0.0 if each.zeroed(frames=int(zh)) else each.f for each in scores)
        best = max(each.f for each in scores)
        if zeroed:
            return Score(upstream)
        return Score(best, f"{LIMIT} {upstream:.4f}" if upstream < best else None)

    return score


_RULES: dict[str, Rule] = {
    "longbench_f1": _scorer(qa_f1),
    "longbench_f1_line": _scorer(qa_f1, cut=True),
    "longbench_f1_zh": _scorer(qa_f1_zh),
    "longbench_rouge": _rouge(),
    "longbench_rouge_line": _rouge(cut=True),
    "longbench_rouge_zh": _rouge(zh=True),
    "longbench_classes": _scorer(classification, cut=True, classes=True),
    "longbench_count": _scorer(count),
    "longbench_retrieval": _scorer(retrieval, mark=PARAGRAPH),
    "longbench_retrieval_zh": _scorer(partial(retrieval, mark=PARAGRAPH_ZH), mark=PARAGRAPH_ZH),
    "longbench_code": _scorer(code_sim),
    # the rows below deviate from upstream or from the rows above, and no card of this package names them
    "longbench_rouge_zeroed": _rouge(zeroed=True),  # 0 if upstream hits the recursion limit
    "longbench_rouge_line_zeroed": _rouge(cut=True, zeroed=True),
    "longbench_rouge_zh_zeroed": _rouge(zh=True, zeroed=True),
    "longbench_classes_whole": _scorer(classification_whole, cut=True, classes=True),  # no class name is skipped
    "longbench_code_text": _scorer(code_sim_text),  # blank lines are skipped
    "longbench_code_levenshtein": _scorer(code_sim_levenshtein),  # fuzzywuzzy with python-Levenshtein
}
#: Deviations that a user can ask for by name: the card's scorer -> the scorer that replaces it.
DEVIATIONS: dict[str, dict[str, str]] = {
    "recursion-zeros": {
        "longbench_rouge": "longbench_rouge_zeroed",
        "longbench_rouge_line": "longbench_rouge_line_zeroed",
        "longbench_rouge_zh": "longbench_rouge_zh_zeroed",
    },
    "whole-classes": {"longbench_classes": "longbench_classes_whole"},
    "text-lines": {"longbench_code": "longbench_code_text"},
    "levenshtein": {"longbench_code": "longbench_code_levenshtein"},
}
_CHINESE_RULES = frozenset({"longbench_f1_zh", "longbench_rouge_zh", "longbench_rouge_zh_zeroed"})


def _jieba_version() -> dict[str, str]:
    """Return the version of jieba; raise MissingExtra if it is not installed."""
    from importlib import metadata

    _jieba()
    return {"jieba": metadata.version("jieba")}


SCORERS = {
    name: Scorer(rule, packages=_jieba_version) if name in _CHINESE_RULES else Scorer(rule)
    for name, rule in _RULES.items()
}

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


def _average(title: str, about: str, weights: Mapping[str, float]) -> Average:
    return Average(title, f"LongBench, {about}", {f"longbench/{name}": weight for name, weight in weights.items()})


def _six(language: Language) -> dict[str, float]:
    """Return weights, whole numbers, that give each of a language's six categories the same weight."""
    sizes = math.lcm(*map(len, SIX[language].values()))
    return {name: sizes / len(names) for names in SIX[language].values() for name in names}


AVERAGES = {
    "longbench_six_en": _average("LongBench EN", "six categories, English", _six("en")),
    "longbench_six_zh": _average("LongBench ZH", "six categories, Chinese", _six("zh")),
    "longbench_flat_16": _average("LongBench 16", "flat over 16, English and code", dict.fromkeys(FLAT_16, 1)),
    "longbench_flat_21": _average("LongBench 21", "flat over 21", dict.fromkeys(FLAT_21, 1)),
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
