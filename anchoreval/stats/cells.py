"""Records -> cells: the scores of one (task, length, arm)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from anchoreval.schema import OUTCOMES, Outcome, Record
from anchoreval.stats.averages import Sampled, average_interval, of_right_or_wrong, sampled
from anchoreval.stats.intervals import Method, mean_interval
from anchoreval.stats.scores import Scores, scores_of


class Asked:
    """Samples that were asked, so many of them scored, and the mean of those; None when nothing was scored."""

    __slots__ = ()
    asked: int
    scored: int
    mean: float | None
    low: float | None
    high: float | None
    logprob: float | None
    outcomes: Mapping[Outcome, int]
    sampled: Sampled | None

    @property
    def lost(self) -> int:
        """Samples without a score."""
        return self.asked - self.scored

    @property
    def as_wrong(self) -> float:
        """The mean where every sample without a score counts as wrong."""
        return (self.mean or 0.0) * self.scored / self.asked


def average_ends(parts: Sequence[tuple[float, Asked]]) -> tuple[float, float]:
    """95% interval of the weighted mean of what was scored; that of a single cell is its own."""
    scored = [(weight, one.mean, one.sampled or of_right_or_wrong(one.mean, one.scored))
              for weight, one in parts if one.mean is not None]  # fmt: skip
    only = parts[0][1]
    if len(parts) == 1 and only.low is not None and only.high is not None:
        return only.low, only.high
    return average_interval(scored)


@dataclass(frozen=True, slots=True)
class Cell(Asked):
    """The scores of one (task, length, arm). `mean` is None when nothing was scored.

    `logprob` is the mean over samples of the reference's log-probability per token, in nats; `outcomes` counts what
    became of the samples; `sources` those that the scores come from.
    """

    task: str
    length: int
    arm: str
    asked: int
    scored: int
    mean: float | None
    low: float | None
    high: float | None
    method: Method | None
    logprob: float | None
    outcomes: Mapping[Outcome, int] = field(default_factory=dict, hash=False)
    sampled: Sampled | None = None
    sources: int = 0


def cells(records: Iterable[Record]) -> list[Cell]:
    """One cell per (task, length, arm), in the order in which the records first name them.

    Raises RunError when an arm holds two records of one sample.
    """
    return [Cell(*key, **figures([scores])) for key, scores in scores_of(records).items()]


def figures(parts: Sequence[Scores]) -> dict[str, Any]:
    """The fields of a `Cell` that follow from the samples of all parts together."""
    scored = [
        (value, of) for part in parts for value, of in zip(part.score, part.cluster, strict=True) if value == value
    ]
    scores, sources = [value for value, _ in scored], [of for _, of in scored]
    logprobs = [value for part in parts for value in part.logprob if value == value]
    outcomes = Counter(OUTCOMES[number] for part in parts for number in part.outcome)
    low, high, method = mean_interval(scores, sources) if scores else (None, None, None)
    return {
        "asked": sum(len(part.index) for part in parts),
        "scored": len(scores),
        "mean": fmean(scores) if scores else None,
        "low": low,
        "high": high,
        "method": method,
        "logprob": fmean(logprobs) if logprobs else None,
        "outcomes": {outcome: outcomes[outcome] for outcome in OUTCOMES if outcomes[outcome]},
        "sampled": sampled(scores, sources) if scores else None,
        "sources": len(set(sources)),
    }


def counted(records: Iterable[Record]) -> dict[Outcome, int]:
    """Outcome -> how many of the records have it, in the order of the enum."""
    found = Counter(record.outcome for record in records)
    return {outcome: found[outcome] for outcome in OUTCOMES if found[outcome]}
