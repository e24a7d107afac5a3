"""Plan which requests are with the engine at once, and where their tokens stand: pure, no torch and no vLLM.

A batch is a function of its requests and of the engine's size alone, never of an answer: two arms get the same batches.
All that a batch keeps in vLLM's cache fits into it, so none of it is evicted and no prompt is computed twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from anchoreval.arms.layout import Arrangement, Layout
from anchoreval.backends.vllm.asks import Ask, Context
from anchoreval.schema import Request

ANCHOR, QUERY = -2, -1  # what a plan holds instead of the number of a document
_KINDS = {"anchor": ANCHOR, "query": QUERY}
Run = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Batching:
    """vLLM's limits of one pass; both change which rows are computed together, and so the bits."""

    max_num_batched_tokens: int
    max_num_seqs: int

    def placebo(self) -> Batching:
        """Return three eighths of both: other chunks, other batches."""
        sequences = max(1, 3 * self.max_num_seqs // 8)
        return Batching(max(sequences, 3 * self.max_num_batched_tokens // 8), sequences)


@dataclass(frozen=True, slots=True)
class Cache:
    """The size of the engine's cache: `blocks` of `tokens` tokens each."""

    blocks: int
    tokens: int

    def blocks_of(self, tokens: int) -> int:
        """Return how many blocks so many tokens take; the last block may be partly filled."""
        return -(-tokens // self.tokens)


Item = TypeVar("Item", Request, Ask)


def batches(requests: Sequence[Request], cache: Cache, most: int) -> Iterator[list[Request]]:
    """Yield every request once, similar prompts together, at most `most` at once and no more than the cache holds."""

    def behind(request: Request) -> int:
        prompt, whole = len(request.token_ids), len(request.token_ids) // cache.tokens
        forced = [len(request.reference_ids), *(len(choice.token_ids) for choice in request.choices)]
        more = [1, request.max_new_tokens, *(tokens for tokens in forced if tokens > 1)]
        ends = [prompt + tokens for tokens in more if tokens]
        return sum(cache.blocks_of(end) - whole for end in ends)

    ordered = sorted(requests, key=lambda request: request.token_ids)
    return _packed(ordered, cache, most, lambda request: len(request.token_ids) // cache.tokens + behind(request))


def lots(asks: Sequence[Ask], cache: Cache) -> Iterator[list[Ask]]:
    """Yield the asks in order, as many at once as the cache holds: a whole batch, unless one request is too big."""
    return _packed(asks, cache, len(asks), lambda ask: cache.blocks_of(len(ask.token_ids) + ask.new_tokens))


def _packed(items: Sequence[Item], cache: Cache, most: int, blocks_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield runs of items whose blocks fit, counting blocks shared with the item before once; at least one item."""
    lot: list[Item] = []
    used = 0
    for item in items:
        needed = blocks_of(item)
        extra = needed - (_shared(lot[-1].token_ids, item.token_ids, cache.tokens) if lot else 0)
        if lot and (len(lot) == most or used + extra > cache.blocks):
            yield lot
            lot, used, extra = [], 0, needed
        lot.append(item)
        used += extra
    if lot:
        yield lot


def _shared(first: Sequence[int], second: Sequence[int], tokens: int) -> int:
    """Return the number of whole blocks that both begin with."""
    most = min(len(first), len(second)) // tokens
    for block in range(most):
        part = slice(block * tokens, (block + 1) * tokens)
        if first[part] != second[part]:
            return block
    return most


def context_of(request: Request, arrangement: Arrangement, arm: str) -> Context:
    """Return salt and plan of a request; contiguous positions under plain causality need no plan.

    The salt holds the arm and every run except the length of the last: keys and values of a token depend on those, and
    vLLM's cache goes by token ids alone. Prompts that differ only after their documents still share these.
    """
    if arrangement.stock:
        return Context(_digest(arm))
    runs = runs_of(arrangement.of(request), arrangement.pattern != "full")
    position, _, document = runs[-1]
    return Context(_digest(arm, runs[:-1], position, document), tuple(value for run in runs for value in run))


def runs_of(layout: Layout, isolated: bool) -> list[Run]:
    """Return (first position, tokens, document) of every stretch of consecutive positions in one block.

    If documents are not isolated, everything is the query.
    """
    runs: list[Run] = []
    documents = 0
    for block in layout.blocks:
        document = _KINDS.get(block.kind, documents) if isolated else QUERY
        documents += block.kind == "document"
        at = block.start
        for i in range(block.start, block.stop):
            if i + 1 == block.stop or layout.positions[i + 1] != layout.positions[i] + 1:
                runs.append((layout.positions[at], i + 1 - at, document))
                at = i + 1
    return runs


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
