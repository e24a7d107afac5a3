"""Compute from records how much of its length a task's samples take."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean

from anchoreval.schema import Record

ENOUGH = 0.9  # share of a length; tables have a note on cells below it


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
