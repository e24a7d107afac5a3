"""ROUGE-L as the package rouge 1.0.1 (pltrdy) has it by default, which is not the ROUGE-L of rouge_score: sentences end
at every ".", words are split at single blanks, repeated words count once, letter case counts.

Re-implemented from rouge/rouge_score.py of that release without its recursion: upstream walks back through a table by
recursive calls, and LongBench turns the RecursionError of a long text into a score of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anchoreval.errors import RunError

#: Calls of its walk that fit under CPython's limit of 1,000 frames when LongBench's eval.py calls it (measured).
UPSTREAM_CALLS = 991
_TINY = 1e-8
_MOST_CELLS = 10**8  # of the tables for one answer: 32,000 words against a reference of 3,000


@dataclass(frozen=True, slots=True)
class RougeL:
    """`f` in 0..1; `calls` is the longest chain of calls that upstream needs for it."""

    f: float
    calls: int

    def zeroed(self, frames: int = 0) -> bool:
        """Whether upstream dies of it, called from `frames` further functions."""
        return self.calls > UPSTREAM_CALLS - frames


def rouge_l(prediction: str, reference: str) -> RougeL:
    """The F measure of the words that prediction and reference share in order; 0 where either holds no sentence.

    RunError where both are so long that it would take minutes.
    """
    said, meant = _sentences(prediction), _sentences(reference)
    _require_few(sum(map(len, said)), sum(map(len, meant)))
    if not said or not meant:
        return RougeL(0.0, 0)
    shared: set[str] = set()
    calls = 0
    for reference_words in meant:
        for words in said:
            found, steps = common_words(reference_words, words)
            shared |= found
            calls = max(calls, steps)
    recall = len(shared) / len({word for words in meant for word in words})
    precision = len(shared) / len({word for words in said for word in words})
    return RougeL(2.0 * ((precision * recall) / (precision + recall + _TINY)), calls)


def _require_few(said: int, meant: int) -> None:
    if said * meant > _MOST_CELLS:
        raise RunError(f"an answer of {said:,} and a reference of {meant:,} items are too long to be compared")


def _sentences(text: str) -> list[list[str]]:
    """Words of every stretch between full stops; a stretch of blanks is one empty word."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def common_words(one: Sequence[str], other: Sequence[str]) -> tuple[set[str], int]:
    """The words of a longest common subsequence, upstream's choice among several, and the calls that its walk takes."""
    table = lengths(one, other)
    i, j, steps = len(one), len(other), 1
    found: set[str] = set()
    while i and j:
        if one[i - 1] == other[j - 1]:
            found.add(one[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
        steps += 1
    return found, steps


def lengths(one: Sequence[str], other: Sequence[str]) -> list[list[int]]:
    """`[i][j]`: how long a common subsequence of the first i and the first j items can be; RunError for too many."""
    _require_few(len(other), len(one))
    table = [[0] * (len(other) + 1)]
    for item in one:
        above, row = table[-1], [0]
        for j, candidate in enumerate(other):
            row.append(above[j] + 1 if item == candidate else max(above[j + 1], row[j]))
        table.append(row)
    return table
