"""Plan which requests are computed together: pure, no torch.

Rows of one batch end at the same column, so a row of n tokens starts at column `base - n`. `base` is a function of the
row's own length, never of its neighbours, and so is the number of rows that a batch is planned for: a request is
therefore computed on the same columns whatever shares its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
        base = _bucket(len(request.token_ids), finest=limits.pass_tokens is None)
        groups.setdefault((base, request.max_new_tokens), []).append(request)
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


def _even(group: Sequence[Request], most: int) -> Iterator[tuple[Request, ...]]:
    """Yield parts of at most `most` requests whose sizes differ by at most one: a short last batch would idle."""
    parts = -(-len(group) // most)
    for part in range(parts):
        yield tuple(group[len(group) * part // parts : len(group) * (part + 1) // parts])


def _behind(request: Request) -> int:
    """Return the columns that a request needs after its prompt."""
    longest = max((len(choice.token_ids) for choice in request.choices), default=0)
    return max(request.max_new_tokens, len(request.reference_ids), longest)


def _bucket(tokens: int, finest: bool = True) -> int:
    """Return a length that others share: at most an eighth over `tokens`, or 128 more; never over 128 if `finest`."""
    step = _BUCKET_TOKENS if finest else max(_BUCKET_TOKENS, 1 << tokens.bit_length() >> 4)
    return -(-max(tokens, 1) // step) * step


def _rows(columns: int, limits: Limits) -> int:
    rows = min(limits.rows, limits.batch_tokens // columns)
    return rows if rows >= LEAST_ROWS else 1
