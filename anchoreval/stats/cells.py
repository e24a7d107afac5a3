"""Records -> cells: the scores of one (task, length, arm)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from anchoreval.errors import RunError
from anchoreval.schema import OUTCOMES, Outcome, Record
from anchoreval.stats.intervals import Method, mean_interval


@dataclass(frozen=True, slots=True)
class Cell:
    """The scores of one (task, length, arm). `mean` is None when nothing was scored.

    `logprob` is the mean over samples of the reference's log-probability per token, in nats; `outcomes` counts what
    became of the samples.
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

    @property
    def lost(self) -> int:
        """Samples without a score."""
        return self.asked - self.scored

    @property
    def as_wrong(self) -> float:
        """The mean where every sample without a score counts as wrong."""
        return (self.mean or 0.0) * self.scored / self.asked


def cells(records: Iterable[Record]) -> list[Cell]:
    """One cell per (task, length, arm), in the order in which the records first name them.

    Raises RunError when an arm holds two records of one sample.
    """
    groups: dict[tuple[str, int, str], dict[str, Record]] = {}
    for record in records:
        put(groups.setdefault((record.task, record.length, record.arm), {}), record)
    return [_cell(key, list(group.values())) for key, group in groups.items()]


def put(into: dict[str, Record], record: Record) -> None:
    """Files a record under its sample; RunError when one lies there already."""
    if record.sample_id in into:
        raise RunError(f"two records of sample {record.sample_id} under arm {record.arm}")
    into[record.sample_id] = record


def _cell(key: tuple[str, int, str], records: Sequence[Record]) -> Cell:
    scores = [record.score for record in records if record.score is not None]
    logprobs = [value for record in records if (value := per_token(record)) is not None]
    low, high, method = mean_interval(scores) if scores else (None, None, None)
    mean = fmean(scores) if scores else None
    logprob = fmean(logprobs) if logprobs else None
    return Cell(*key, len(records), len(scores), mean, low, high, method, logprob, counted(records))


def counted(records: Iterable[Record]) -> dict[Outcome, int]:
    """Outcome -> how many of the records have it, in the order of the enum."""
    found = Counter(record.outcome for record in records)
    return {outcome: found[outcome] for outcome in OUTCOMES if found[outcome]}


def per_token(record: Record) -> float | None:
    """The reference's log-probability per token, in nats; None when there is none."""
    return per_token_of(record.reference_logprob, record.reference_tokens)


def per_token_of(logprob: float | None, tokens: int) -> float | None:
    """The same from a summed log-probability, in nats, and the number of tokens."""
    return None if logprob is None or tokens <= 0 else logprob / tokens
