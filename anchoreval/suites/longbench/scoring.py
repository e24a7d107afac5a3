"""LongBench's metrics with their bugs (THUDM/LongBench 2e00731, LongBench/metrics.py and eval.py; MIT, Copyright (c)
2023 THU-KEG & Zhipu AI), re-implemented.

A metric takes prediction, answer and classes and gives 0..1; a sample's score is the best over its answers. Chinese
texts are cut into words by jieba, in the extra `zh`.
"""

from __future__ import annotations

import difflib
import logging
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

from anchoreval.errors import MissingExtra
from anchoreval.schema import Json, Score
from anchoreval.suites.longbench.rouge import RougeL, lengths, rouge_l
from anchoreval.suites.ruler.scoring import NO_FACTS, NO_REFERENCES, Scorer

Metric = Callable[[str, str, Sequence[str]], float]
LIMIT = "upstream's recursion limit makes this"  # begins the note on a score that upstream gives another value
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CHINESE = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》"
    "「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_CHINESE_PUNCTUATION = str.maketrans("", "", string.punctuation + _CHINESE)


def first_line(answer: str) -> str:
    """What eval.py judges of an answer to trec, triviaqa, samsum and lsht: the first line that is not empty."""
    return answer.lstrip("\n").split("\n")[0]


def qa_f1(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """F1 over the words of both; an answer of articles and punctuation alone is never matched."""
    return _f1(_words(prediction), _words(answer))


def qa_f1_zh(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """F1 over jieba's words of the raw texts, each cleaned after the cut."""
    return _f1(_words_zh(prediction), _words_zh(answer))


def rouge(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """ROUGE-L of rouge 1.0.1, which calls a perfect answer 0.999999995."""
    return rouge_l(prediction, answer).f


def rouge_zh(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """ROUGE-L over jieba's words."""
    return _rouge_zh(prediction, answer).f


def classification(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """1 / the number of class names found when the right one is among them, else 0.

    Names inside the right name are dropped from the list while upstream walks it, so that the next name is skipped.
    """
    found = [name for name in classes if name in prediction]
    for name in found:
        if name in answer and name != answer:
            found.remove(name)
    return 1.0 / len(found) if answer in found else 0.0


def classification_whole(prediction: str, answer: str, classes: Sequence[str]) -> float:
    """Like `classification`, but no name is skipped."""
    found = [name for name in classes if name in prediction and not (name in answer and name != answer)]
    return 1.0 / len(found) if answer in found else 0.0


def count(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """The share of the numbers in the prediction that are the answer."""
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, answer: str, _: Sequence[str] = (), mark: str = r"Paragraph (\d+)") -> float:
    """The share of the numbers in the prediction that are the number of the answer's paragraph."""
    return count(prediction, re.findall(mark, answer)[0])


def code_sim(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """Similarity by difflib of the answer and the first line without a backtick, "#" or "//", a blank one included.

    fuzzywuzzy 0.18.0 without python-Levenshtein: whole per cents, 1 for equal texts, 0 where one is empty.
    """
    return difflib_ratio(_code_line(prediction, blank=True), answer)


def code_sim_text(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """Like `code_sim`, but blank lines are passed over."""
    return difflib_ratio(_code_line(prediction, blank=False), answer)


def code_sim_levenshtein(prediction: str, answer: str, _: Sequence[str] = ()) -> float:
    """Like `code_sim` as fuzzywuzzy computes it where python-Levenshtein is installed."""
    line = _code_line(prediction, blank=True)
    if not line or not answer:
        return float(line == answer)
    size = len(line) + len(answer)
    return round(100 * (1.0 - (size - 2 * lengths(line, answer)[-1][-1]) / size)) / 100


def difflib_ratio(one: str, other: str) -> float:
    """Fuzzywuzzy's `ratio` over its fallback, as a fraction of whole per cents."""
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


def _rouge_zh(prediction: str, answer: str) -> RougeL:
    return rouge_l(" ".join(cut_zh(prediction)), " ".join(cut_zh(answer)))


def cut_zh(text: str) -> list[str]:
    """The words of a Chinese text."""
    return list(_jieba().cut(text))


@lru_cache(1)
def _jieba() -> Json:
    """A word cutter of its own; MissingExtra without jieba, whose import warns and which logs to stderr."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jieba
    except ModuleNotFoundError as error:
        raise MissingExtra("Chinese answers are scored with jieba: pip install 'anchoreval[zh]'") from error
    logging.getLogger("jieba").setLevel(logging.WARNING)
    return jieba.Tokenizer()


def _best(metric: Metric, cut: bool, answer: str, references: Sequence[str], facts: Mapping[str, Json]) -> Score:
    """The best value over the references, upstream's choice of what is judged cut out of the answer first."""
    if not references:
        return NO_REFERENCES
    said = first_line(answer) if cut else answer
    return Score(max(metric(said, reference, facts.get("all_classes") or ()) for reference in references))


def _scorer(metric: Metric, cut: bool = False) -> Scorer:
    def score(answer: str, references: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
        return _best(metric, cut, answer, references, facts)

    return score


def _classes(metric: Metric) -> Scorer:
    def score(answer: str, references: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
        if not facts.get("all_classes"):
            return Score(None, "the record has no all_classes to look for")
        return _best(metric, True, answer, references, facts)

    return score


def _numbered(mark: str) -> Scorer:
    def score(answer: str, references: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
        if not all(re.search(mark, reference) for reference in references):
            return Score(None, f"a reference does not say {mark.split(' ')[0]} and its number")
        return _best(partial(retrieval, mark=mark), False, answer, references, facts)

    return score


def _rouge(zh: bool = False, cut: bool = False, zeroed: bool = False) -> Scorer:
    """ROUGE-L with a note on answers for which upstream's is lower; with `zeroed`, upstream's value itself."""

    def score(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
        if not references:
            return NO_REFERENCES
        said = first_line(answer) if cut else answer
        found = [(_rouge_zh if zh else rouge_l)(said, reference) for reference in references]
        upstream = max(0.0 if each.zeroed(frames=int(zh)) else each.f for each in found)
        best = max(each.f for each in found)
        if zeroed:
            return Score(upstream)
        return Score(best, f"{LIMIT} {upstream:.4f}" if upstream < best else None)

    return score


LONGBENCH: dict[str, Scorer] = {
    "longbench_f1": _scorer(qa_f1),
    "longbench_f1_line": _scorer(qa_f1, cut=True),
    "longbench_f1_zh": _scorer(qa_f1_zh),
    "longbench_rouge": _rouge(),
    "longbench_rouge_line": _rouge(cut=True),
    "longbench_rouge_zh": _rouge(zh=True),
    "longbench_classes": _classes(classification),
    "longbench_count": _scorer(count),
    "longbench_retrieval": _numbered(r"Paragraph (\d+)"),
    "longbench_retrieval_zh": _numbered(r"段落(\d+)"),
    "longbench_code": _scorer(code_sim),
    # what follows deviates from upstream or from the rows above, and stands in no card of this package
    "longbench_rouge_zeroed": _rouge(zeroed=True),  # 0 where upstream's recursion dies
    "longbench_rouge_line_zeroed": _rouge(cut=True, zeroed=True),
    "longbench_rouge_zh_zeroed": _rouge(zh=True, zeroed=True),
    "longbench_classes_whole": _classes(classification_whole),  # no class name is skipped
    "longbench_code_text": _scorer(code_sim_text),  # blank lines are passed over
    "longbench_code_levenshtein": _scorer(code_sim_levenshtein),  # fuzzywuzzy with python-Levenshtein
}
#: What may be asked for by name, and is off otherwise: the scorer that takes the place of a card's.
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
_NEEDS_JIEBA = frozenset({"longbench_f1_zh", "longbench_rouge_zh", "longbench_rouge_zh_zeroed"})


def require_jieba(scorer: str) -> dict[str, str]:
    """Jieba and its version where a scorer cuts Chinese with it, else nothing; MissingExtra where it is missing."""
    if scorer not in _NEEDS_JIEBA:
        return {}
    from importlib import metadata

    _jieba()
    return {"jieba": metadata.version("jieba")}
