"""Plan which requests are computed together: pure, no torch.

Rows of one bucket end at the same column, so a row of n tokens starts at column `base - n`. `base` is a function of the
row's own length, never of its neighbours, and so is the number of rows that a batch is planned for: a request is
therefore computed on the same columns whatever shares its batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from anchoreval.schema import Request

LEAST_ROWS = 4  # from 4 rows on, fp32 products on CPU give a row the same bits in any batch (measured, MKL)
_BUCKET_TOKENS = 128
_LEAST_SHARE = 8  # a beginning is shared at any token if it is at least an eighth of a prompt


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is computed at once.

    With `pass_tokens` a plain prompt takes as few passes of at most so many tokens as it can, and shares what it begins
    with at any token. Without it, its chunks of `chunk_tokens` lie on an absolute grid and are shared whole, so that
    its bits do not depend on what it shares. Documents under a mask and texts come in chunks in either case.
    """

    chunk_tokens: int = 512
    batch_tokens: int = 32_768
    rows: int = 32
    pass_tokens: int | None = None

    def placebo(self) -> Limits:
        """Return three eighths of everything, in chunks: few bounds are shared with this, and batches are others."""
        return Limits(*(max(1, 3 * size // 8) for size in (self.chunk_tokens, self.batch_tokens, self.rows)))

    def halved(self) -> Limits | None:
        """Return the limits with passes of half the length, or None if these are as short as chunks."""
        half = (self.pass_tokens or 0) // 2
        return replace(self, pass_tokens=half) if half >= self.chunk_tokens else None

    def shared(self, first: Sequence[int], second: Sequence[int]) -> int:
        """Return how many tokens of `second` are taken from a prompt `first` before it; one at least is left."""
        step = self.chunk_tokens if self.pass_tokens is None else 1
        alike, end = 0, min(len(first), len(second) - 1) // step
        while alike < end:
            middle = (alike + end + 1) // 2
            between = slice(alike * step, middle * step)
            alike, end = (middle, end) if first[between] == second[between] else (alike, middle - 1)
        return alike * step if self.pass_tokens is None or alike * _LEAST_SHARE >= len(second) else 0


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests whose rows end at one column, in a store of their own.

    A `solo` row starts at column 0 and needs no mask; otherwise column 0 is never used, which keeps every row masked
    and so on one kernel. `columns` is what a row needs for its prompt and the longest of answer, reference and choices.
    `rows` is how many the store has: some are filling if a pass over it alone must be LEAST_ROWS wide.
    """

    requests: tuple[Request, ...]
    base: int
    columns: int
    solo: bool
    rows: int

    def start(self, request: Request) -> int:
        """Return the column of the request's first token."""
        return 0 if self.solo else self.base - len(request.token_ids)

    def fits(self, rows: int, columns: int) -> bool:
        """Return whether a store of that size can be this bucket's."""
        return rows >= self.rows and (columns == self.columns or (self.solo and columns > self.columns))


@dataclass(frozen=True, slots=True)
class Batch:
    """Buckets whose rows decode together: one, or, if `joint` (decode.py), as many as fit the limits together."""

    buckets: tuple[Bucket, ...]
    joint: bool = False
    requests: tuple[Request, ...] = field(init=False)  # all of them, in the order in which they are prefilled
    cells: int = field(init=False)  # rows x columns of all stores

    def __post_init__(self) -> None:
        requests = tuple(request for bucket in self.buckets for request in bucket.requests)
        object.__setattr__(self, "requests", requests)
        object.__setattr__(self, "cells", sum(bucket.rows * bucket.columns for bucket in self.buckets))

    @classmethod
    def of(cls, rows: Sequence[Bucket], joint: bool) -> Batch:
        """Return the batch of some buckets of one request each, which lie by bucket."""
        buckets = []
        for _, group in itertools.groupby(rows, lambda row: (row.base, row.columns, row.solo)):
            first, *others = group
            requests = (*first.requests, *(other.requests[0] for other in others))
            filled = len(requests) if joint else width(len(requests), first.solo)
            buckets.append(replace(first, requests=requests, rows=filled))
        return cls(tuple(buckets), joint)

    def halves(self) -> tuple[Batch, Batch]:
        """Return the same rows, on the same columns, in two batches."""
        rows = [replace(bucket, requests=(request,)) for bucket in self.buckets for request in bucket.requests]
        middle = (len(rows) + 1) // 2
        return Batch.of(rows[:middle], self.joint), Batch.of(rows[middle:], self.joint)


def plan(requests: Sequence[Request], limits: Limits, alone: bool = False, joint: bool = False) -> Iterator[Batch]:
    """Yield batches that hold every request once; neighbours share the longest prefixes. Short first, then single rows.

    `alone` plans one row per batch: for models whose rotation depends on the longest row. Requests that decode nothing
    are single rows as well. Single rows come in the order of their tokens whatever their length, so that a prefix is
    prefilled once for all requests that begin with it. With `joint` rows of any length decode together.
    """
    groups: dict[tuple[int, int], list[Request]] = {}
    for request in requests:
        base = _bucket(len(request.token_ids), finest=limits.pass_tokens is None)
        groups.setdefault((base, request.max_new_tokens), []).append(request)
    solo: list[Batch] = []
    waiting: list[tuple[Bucket, int]] = []
    for bucket, most in sorted(groups):
        group = sorted(groups[bucket, most], key=lambda request: request.token_ids)
        scored = [ids for r in group for ids in (r.reference_ids, *(choice.token_ids for choice in r.choices))]
        extra = _bucket(max(most, *map(len, scored)))  # columns that a request needs after its prompt
        rows = min(limits.rows, limits.batch_tokens // (bucket + extra))
        if alone or most == 0 or rows < LEAST_ROWS:
            solo += [Batch((Bucket((request,), bucket, bucket + extra, True, 1),), joint) for request in group]
            continue
        waiting += [(Bucket((request,), bucket + 1, bucket + 1 + extra, False, 1), rows) for request in group]
        if not joint:
            yield from _even(waiting, joint)
            waiting = []
    yield from _even(waiting, joint)
    yield from sorted(solo, key=lambda batch: batch.requests[0].token_ids)


def width(rows: int, solo: bool) -> int:
    """Return how many rows to compute for `rows` requests; the rest are fillers."""
    return 1 if solo else max(LEAST_ROWS, rows)


def _even(rows: Sequence[tuple[Bucket, int]], joint: bool) -> Iterator[Batch]:
    """Yield batches of single rows that are filled alike: a short last batch would idle.

    With each row comes how many of its kind fit the limits: one takes that part of a batch.
    """
    parts = list(itertools.accumulate(Fraction(1, most) for _, most in rows))
    batches = math.ceil(parts[-1]) if parts else 0
    at = [math.ceil(part * batches / parts[-1]) for part in parts]
    for _, group in itertools.groupby(zip(at, rows, strict=True), lambda pair: pair[0]):
        yield Batch.of([row for _, (row, _) in group], joint)


def _bucket(tokens: int, finest: bool = True) -> int:
    """Return a length that others share: at most an eighth over `tokens`, or 128 more; never over 128 if `finest`."""
    step = _BUCKET_TOKENS if finest else max(_BUCKET_TOKENS, 1 << tokens.bit_length() >> 4)
    return -(-max(tokens, 1) // step) * step
