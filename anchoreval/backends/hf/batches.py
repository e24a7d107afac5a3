"""Plan which requests are computed together: pure, no torch.

Rows of one batch end at the same column, so a row of n tokens starts at column `base - n`. `base` is a function of the
row's own length, never of its neighbours, and so is the number of rows that a batch is planned for: a request is
therefore computed on the same columns whatever shares its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anchoreval.schema import Request

LEAST_ROWS = 4  # from 4 rows on, fp32 products on CPU give a row the same bits in any batch (measured, MKL)
_BUCKET_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is computed at once: speed and memory only, except `chunk_tokens`, which changes bf16 bits."""

    chunk_tokens: int = 512
    batch_tokens: int = 32_768
    rows: int = 32

    def placebo(self) -> Limits:
        """Return three eighths of everything: a grid of chunks that shares few bounds with this one, other batches."""
        return Limits(*(max(1, 3 * size // 8) for size in (self.chunk_tokens, self.batch_tokens, self.rows)))


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests that decode together.

    `solo` rows start at column 0 and need no mask; otherwise column 0 is never used, which keeps every row masked and
    so on one kernel. `columns` is what a row needs for its prompt and the longest of answer, reference and choices.
    """

    requests: tuple[Request, ...]
    base: int
    columns: int
    solo: bool

    def start(self, request: Request) -> int:
        """Return the column of the request's first token."""
        return 0 if self.solo else self.base - len(request.token_ids)

    def halves(self) -> tuple[Batch, Batch]:
        """Return the same rows, on the same columns, in two batches."""
        middle = (len(self.requests) + 1) // 2
        first, second = self.requests[:middle], self.requests[middle:]
        return (
            Batch(first, self.base, self.columns, self.solo),
            Batch(second, self.base, self.columns, self.solo),
        )


def plan(requests: Sequence[Request], limits: Limits, alone: bool = False) -> Iterator[Batch]:
    """Yield batches that hold every request once; neighbours share the longest prefixes. Short first, then single rows.

    `alone` plans one row per batch: for models whose rotation depends on the longest row. Requests that decode nothing
    are single rows as well. Single rows come in the order of their tokens whatever their length, so that a prefix is
    prefilled once for all requests that begin with it.
    """
    groups: dict[tuple[int, int], list[Request]] = {}
    for request in requests:
        groups.setdefault((_bucket(len(request.token_ids)), request.max_new_tokens), []).append(request)
    solo: list[Batch] = []
    for bucket, most in sorted(groups):
        group = sorted(groups[bucket, most], key=lambda request: request.token_ids)
        extra = _bucket(max(_behind(request) for request in group))
        rows = 1 if alone or most == 0 else _rows(bucket + extra, limits)
        if rows == 1:
            solo.extend(Batch((request,), bucket, bucket + extra, True) for request in group)
        else:
            yield from (Batch(part, bucket + 1, bucket + 1 + extra, False) for part in _even(group, rows))
    yield from sorted(solo, key=lambda batch: batch.requests[0].token_ids)


def width(rows: int, solo: bool) -> int:
    """Return how many rows to compute for `rows` requests; the rest are fillers."""
    return 1 if solo else max(LEAST_ROWS, rows)


def shared(first: Sequence[int], second: Sequence[int], chunk: int) -> int:
    """Return how many tokens both begin with, in whole chunks, with at least one token of `second` left to compute.

    Only whole chunks count: the rest is then computed in the same chunks as without sharing, so the bits agree.
    """
    most = min(len(first), len(second) - 1) // chunk * chunk
    for end in range(most, 0, -chunk):
        if first[:end] == second[:end]:
            return end
    return 0


def _even(group: Sequence[Request], most: int) -> Iterator[tuple[Request, ...]]:
    """Yield parts of at most `most` requests whose sizes differ by at most one: a short last batch would idle."""
    parts = -(-len(group) // most)
    for part in range(parts):
        yield tuple(group[len(group) * part // parts : len(group) * (part + 1) // parts])


def _behind(request: Request) -> int:
    """Return the columns that a request needs after its prompt."""
    longest = max((len(choice.token_ids) for choice in request.choices), default=0)
    return max(request.max_new_tokens, len(request.reference_ids), longest)


def _bucket(tokens: int) -> int:
    return -(-max(tokens, 1) // _BUCKET_TOKENS) * _BUCKET_TOKENS


def _rows(columns: int, limits: Limits) -> int:
    rows = min(limits.rows, limits.batch_tokens // columns)
    return rows if rows >= LEAST_ROWS else 1
