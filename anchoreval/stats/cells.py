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

ENOUGH = 0.9  # share of a length; tables have a note on cells below it


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The counts of samples asked and scored, and the mean of the scores with its interval, None if nothing was scored.

    `logprob` is the mean over samples of the reference's log-probability per token, in nats. `outcomes` counts samples
    by outcome, and `sources` is the number of sources of the scores.
    """

    asked: int
    scored: int
    mean: float | None
    low: float | None
    high: float | None
    method: Method | None = None
    logprob: float | None = None
    outcomes: Mapping[Outcome, int] = field(default_factory=dict, hash=False)
    sampled: Sampled | None = None
    sources: int = 0

    @property
    def lost(self) -> int:
        """The number of samples without a score."""
        return self.asked - self.scored

    @property
    def as_wrong(self) -> float:
        """The mean if every sample without a score counts as wrong."""
        return (self.mean or 0.0) * self.scored / self.asked


def average_ends(parts: Sequence[tuple[float, Asked]]) -> tuple[float, float]:
    """Return the 95% interval of the weighted mean of the scored cells; a single cell keeps its own interval."""
    scored = [(weight, cell.mean, cell.sampled or of_right_or_wrong(cell.mean, cell.scored))
              for weight, cell in parts if cell.mean is not None]  # fmt: skip
    only = parts[0][1]
    if len(parts) == 1 and only.low is not None and only.high is not None:
        return only.low, only.high
    return average_interval(scored)


@dataclass(frozen=True, slots=True)
class Cell(Asked):
    """The scores of one (task, length, arm)."""

    task: str
    length: int
    arm: str


def cells(records: Iterable[Record]) -> list[Cell]:
    """Return one cell per (task, length, arm), in the order of the first record of each.

    Raise RunError if an arm has two records of one sample.
    """
    return [Cell(*key, **figures([scores])) for key, scores in scores_of(records).items()]


def figures(parts: Sequence[Scores]) -> dict[str, Any]:
    """Return the fields of a `Cell` that follow from the samples of all parts together."""
    scored = [
        (value, source)
        for part in parts
        for value, source in zip(part.score, part.cluster, strict=True)
        if value == value
    ]
    scores, sources = [value for value, _ in scored], [source for _, source in scored]
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
    """Return outcome -> number of records, in the order of the enum."""
    counts = Counter(record.outcome for record in records)
    return {outcome: counts[outcome] for outcome in OUTCOMES if counts[outcome]}


def fill(records: Iterable[Record]) -> dict[tuple[str, int], float]:
    """Return (task, length) -> the mean share of the length that its samples take, 0..1.

    Tasks whose samples do not fill a length are left out.
    """
    shares: dict[tuple[str, int], list[float]] = {}
    for record in records:
        tokens = record.facts.get("tokens")
        if record.length and isinstance(tokens, int):
            shares.setdefault((record.task, record.length), []).append(tokens / record.length)
    return {place: fmean(values) for place, values in shares.items()}


def underfilled(records: Iterable[Record]) -> dict[tuple[str, int], float]:
    """Return the entries of `fill` that are below ENOUGH."""
    return {place: share for place, share in fill(records).items() if share < ENOUGH}
