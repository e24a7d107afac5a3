"""RULER's averages: task scores, their mean per length, the two weighted means over lengths, the effective length.

Upstream's code computes only the task score. The others are those of the table in its README (the weights are explained
in NVIDIA/RULER#82). All scores here are 0..100.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
TASKS = 13
THRESHOLD = 85.6  # score of Llama2-7B-chat at 4K


def task_score(values: Iterable[float | None]) -> float | None:
    """Return the score of one task at one length, rounded to two digits as upstream does before it averages.

    `values` are 0..1 per sample; None, a sample without a score, is left out. Return None if no sample has a score.
    """
    scored = [value for value in values if value is not None]
    return round(sum(scored) / len(scored) * 100, 2) if scored else None


def length_score(tasks: Mapping[str, float | None], expected: int = TASKS) -> float | None:
    """Return the plain mean over the tasks of one length, or None unless all `expected` tasks have a score."""
    scores = [score for score in tasks.values() if score is not None]
    return sum(scores) / expected if len(scores) == expected == len(tasks) else None


def mean_score(by_length: Mapping[int, float]) -> float | None:
    """Return the plain mean over the six lengths, or None if one is missing."""
    return _weighted(by_length, (1,) * len(LENGTHS))


def weighted_increasing(by_length: Mapping[int, float]) -> float | None:
    """Return WAvg. (inc), with weights 1..6 from 4K to 128K, or None if a length is missing."""
    return _weighted(by_length, range(1, len(LENGTHS) + 1))


def weighted_decreasing(by_length: Mapping[int, float]) -> float | None:
    """Return WAvg. (dec), with weights 6..1 from 4K to 128K, or None if a length is missing."""
    return _weighted(by_length, range(len(LENGTHS), 0, -1))


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


def _weighted(by_length: Mapping[int, float], weights: Iterable[int]) -> float | None:
    if any(length not in by_length for length in LENGTHS):
        return None
    pairs = [(by_length[length], weight) for length, weight in zip(LENGTHS, weights, strict=True)]
    return sum(score * weight for score, weight in pairs) / sum(weight for _, weight in pairs)
