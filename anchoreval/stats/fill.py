"""How much of its length a task's samples take, from their records."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from anchoreval.schema import Record

ENOUGH = 0.9  # of a length: what takes less is said on the table


def fill(records: Iterable[Record]) -> dict[tuple[str, int], float]:
    """Return the mean share of its length that each (task, length) takes, 0..1, where samples fill their lengths."""
    shares: dict[tuple[str, int], list[float]] = {}
    for record in records:
        tokens = record.facts.get("tokens")
        if record.length and isinstance(tokens, int):
            shares.setdefault((record.task, record.length), []).append(tokens / record.length)
    return {place: fmean(found) for place, found in shares.items()}


def underfilled(records: Iterable[Record]) -> dict[tuple[str, int], float]:
    """Return those of `fill` that are below ENOUGH."""
    return {place: share for place, share in fill(records).items() if share < ENOUGH}
