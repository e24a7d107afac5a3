"""How RULER is judged: its two match rules per sample, and the averages of its task scores.

The rules are those of NVIDIA/RULER c3f5e3b, scripts/eval/synthetic/constants.py, per sample and not rounded. A
reference is found if it is a substring of the cleaned answer, ignoring case: no word borders, no other normalisation
("art" is found in "party").

Upstream's code computes only the task score. The other averages are those of the table in its README: the mean per
length, the two weighted means over lengths (the weights are explained in NVIDIA/RULER#82) and the effective length. All
of them are 0..100.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from anchoreval.schema import Json, Score
from anchoreval.suites import NO_FACTS, NO_REFERENCES, Average

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
#: The tasks of RULER's paper, by name: another task in the card changes no average.
THIRTEEN = (
    "ruler/niah_single_1", "ruler/niah_single_2", "ruler/niah_single_3", "ruler/niah_multikey_1",
    "ruler/niah_multikey_2", "ruler/niah_multikey_3", "ruler/niah_multivalue", "ruler/niah_multiquery", "ruler/vt",
    "ruler/cwe", "ruler/fwe", "ruler/qa_1", "ruler/qa_2",
)  # fmt: skip
ELEVEN = tuple(task for task in THIRTEEN if task not in ("ruler/cwe", "ruler/niah_multikey_3"))
TASKS = len(THIRTEEN)
THRESHOLD = 85.6  # score of Llama2-7B-chat at 4K
_EQUAL = dict.fromkeys(THIRTEEN, 1)
_INCREASING = dict(zip(LENGTHS, range(1, 7), strict=True))
_DECREASING = dict(zip(LENGTHS, range(6, 0, -1), strict=True))
AVERAGES = {
    "ruler_13": Average("RULER 13", "RULER, 13 tasks", _EQUAL),
    "ruler_11_wang": Average("RULER 11", "RULER, the 11 tasks of arXiv 2411.13476", dict.fromkeys(ELEVEN, 1)),
    "ruler_wavg_increasing": Average("wAvg (inc)", "RULER wAvg (inc)", _EQUAL, _INCREASING),
    "ruler_wavg_decreasing": Average("wAvg (dec)", "RULER wAvg (dec)", _EQUAL, _DECREASING),
}
_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(answer: str) -> str:
    """Return the answer as RULER judges it: stripped, every control character made a newline, stripped again."""
    return _CONTROL.sub("\n", answer.strip()).strip()


def match_all(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return the share of the references found in the answer (upstream's string_match_all)."""
    if not references:
        return NO_REFERENCES
    text = cleaned(answer).lower()
    return Score(sum(reference.lower() in text for reference in references) / len(references))


def match_any(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return 1 if any reference is found in the answer, else 0 (upstream's string_match_part)."""
    if not references:
        return NO_REFERENCES
    text = cleaned(answer).lower()
    return Score(float(any(reference.lower() in text for reference in references)))


def task_score(values: Iterable[float | None]) -> float | None:
    """Return the score of one task at one length, rounded to two digits as upstream does before it averages.

    `values` are 0..1 per sample; None, a sample without a score, is left out. Return None if no sample has a score.
    """
    scored = [value for value in values if value is not None]
    return round(math.fsum(scored) / len(scored) * 100, 2) if scored else None


def weighted_increasing(by_length: Mapping[int, float]) -> float | None:
    """Return WAvg. (inc), with weights 1..6 from 4K to 128K, or None if a length is missing."""
    return _weighted(by_length, _INCREASING)


def weighted_decreasing(by_length: Mapping[int, float]) -> float | None:
    """Return WAvg. (dec), with weights 6..1 from 4K to 128K, or None if a length is missing."""
    return _weighted(by_length, _DECREASING)


def effective_length(by_length: Mapping[int, float], threshold: float = THRESHOLD) -> str | None:
    """Return the longest length up to which every score reaches the threshold: "<4K", "4K", ... ">128K".

    Only the six lengths count. Return None if the answer depends on a missing length.
    """
    reached = 0
    for length in LENGTHS:
        if length not in by_length:
            return None
        if by_length[length] < threshold:
            return f"{reached // 1024}K" if reached else f"<{LENGTHS[0] // 1024}K"
        reached = length
    return f">{reached // 1024}K"


def _weighted(by_length: Mapping[int, float], weights: Mapping[int, int]) -> float | None:
    if not weights.keys() <= by_length.keys():
        return None
    return math.fsum(by_length[length] * weight for length, weight in weights.items()) / math.fsum(weights.values())
