"""ROUGE-L as the package rouge 1.0.1 (pltrdy) computes it by default, which is not the ROUGE-L of rouge_score.

Sentences end at every ".", words are split at single blanks, repeated words count once, and letter case counts. This is
re-implemented from rouge/rouge_score.py of that release, without its recursion: upstream walks back through a table by
recursive calls, and LongBench turns the RecursionError of a long text into a score of 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anchoreval.errors import RunError

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
    """Return the F measure of the words that prediction and reference share in order; 0 if either has no sentence.

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
