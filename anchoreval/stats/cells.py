"""Records -> cells: the scores of one (task, length, arm)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from anchoreval.errors import RunError
from anchoreval.schema import OUTCOMES, Outcome, Record
from anchoreval.stats.averages import Sampled, average_interval, of_right_or_wrong, sampled
from anchoreval.stats.intervals import Method, mean_interval
from anchoreval.stats.sources import cluster_of


class Asked:
    """Samples that were asked, so many of them scored, and the mean of those; None when nothing was scored."""

    __slots__ = ()
    asked: int
    scored: int
    mean: float | None
    low: float | None
    high: float | None
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
    sources = [cluster_of(record) for record in records if record.score is not None]
    logprobs = [value for record in records if (value := per_token(record)) is not None]
    low, high, method = mean_interval(scores, sources) if scores else (None, None, None)
    mean, varying = (fmean(scores), sampled(scores, sources)) if scores else (None, None)
    logprob = fmean(logprobs) if logprobs else None
    counts = counted(records)
    return Cell(
        *key, len(records), len(scores), mean, low, high, method, logprob, counts, varying, len(set(sources))
    )  # fmt: skip


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
