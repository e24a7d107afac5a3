"""The passes that the hf backend would make through a model, counted: its own code runs, on a model without layers.

Shapes: B rows, Q new tokens, C cache columns, k positions whose logits are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from anchoreval.arms.blocks import Block
from anchoreval.arms.layout import Arrangement
from anchoreval.backends.hf.answer import Answering
from anchoreval.backends.hf.batches import Batch, Limits, plan, shared, width
from anchoreval.backends.hf.documents import KeptDocuments
from anchoreval.backends.hf.growth import Growth
from anchoreval.schema import Continuation, Request


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: `rows` of `queries` new tokens, which see `columns` columns; logits of the last `keep` of each."""

    rows: int
    queries: int
    columns: int
    keep: int


@dataclass(slots=True)
class DryNetwork:
    """A model without layers whose only token ends every answer; remembers the passes."""

    layers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    whole_prompts: bool = False
    alone: bool = False
    growth: Growth | None = None
    passes: Counter[Pass] = field(default_factory=Counter)

    def logits(self, ids_BQ: Tensor, cache: Cache, at: tuple[Tensor, Tensor], keep: int) -> Tensor:
        """Zeros `Bk1`."""
        rows, queries = ids_BQ.shape
        self.passes[Pass(rows, queries, at[1].shape[1], keep)] += 1
        return torch.zeros(rows, keep, 1)

    def masked_logits(
        self, ids_1N: Tensor, cache: Cache, at: tuple[Tensor, Tensor], seen: tuple[Sequence[Block], str]
    ) -> Tensor:
        """Zeros `111`."""
        return self.logits(ids_1N, cache, at, 1)

    def restart(self) -> None:
        """Nothing is remembered."""


class NoText:
    """Token ids as no text at all."""

    def decode(self, ids: list[int]) -> str:
        """Nothing."""
        return ""


@dataclass(slots=True)
class Counted:
    """What one arm computes, answers taking their whole budget: how often each pass is made; the largest rows x
    columns of the cache at once, and the most tokens of kept documents beside it.
    """

    prefilled_tokens: int = 0
    reused_tokens: int = 0
    passes: Counter[Pass] = field(default_factory=Counter)
    columns: int = 0
    kept_tokens: int = 0


class DryArm:
    """Counts groups of requests under one arm, documents kept from group to group as the backend does."""

    def __init__(self, limits: Limits, arrangement: Arrangement, whole_prompts: bool) -> None:
        self._limits, self._arrangement, self._alone = limits, arrangement, whole_prompts
        self._kept = KeptDocuments(limits.batch_tokens)
        self.counted = Counted()

    def count(self, requests: Sequence[Request]) -> None:
        """Adds to `counted` what answering `requests` takes."""
        into = self.counted
        network = DryNetwork(whole_prompts=self._alone, alone=self._alone)
        kept = self._kept.of("")
        answering = Answering(network, NoText(), frozenset({0}), self._limits, lambda: None, self._arrangement, kept)
        list(answering.outputs([_plain(request) for request in requests]))
        into.passes.update(network.passes)
        into.prefilled_tokens += answering.prefilled_tokens + kept.prefilled_tokens
        into.reused_tokens += answering.reused_tokens + kept.reused_tokens
        batches = list(plan(requests, self._limits, self._alone))
        for batch in batches:
            into.passes.update(_decoding(batch))
        columns = max(_columns(batches, self._limits.chunk_tokens)) + answering.forked_columns
        into.columns = max(into.columns, columns)
        into.kept_tokens = max(into.kept_tokens, kept.tokens)


def _plain(request: Request) -> Request:
    """The request with the same prompt and as many tokens everywhere, those behind the prompt all token 0."""
    return replace(
        request,
        reference_ids=(0,) * len(request.reference_ids),
        choices=tuple(Continuation((0,) * len(each.token_ids), each.counted) for each in request.choices),
        end_ids=(),
        min_new_tokens=0,
        stop=(),
    )


def _decoding(batch: Batch) -> Iterator[Pass]:
    """The steps of a batch whose answers all take their whole budget, the first token of which prefill gave."""
    rows, budget = width(len(batch.requests), batch.solo), batch.requests[0].max_new_tokens
    longest = max(len(request.token_ids) for request in batch.requests) if batch.solo else batch.base
    return (Pass(rows, 1, longest + step, 1) for step in range(1, budget))


def _columns(batches: Sequence[Batch], chunk: int) -> list[int]:
    """Rows x columns held at each batch; buffers of another size stay beside new ones only for a shared prefix."""
    found, rows, columns = [0], 0, 0
    last: Request | None = None
    for batch in batches:
        wanted = width(len(batch.requests), batch.solo)
        old = rows * columns
        fits = columns >= batch.columns if batch.solo else columns == batch.columns
        if not fits or rows < wanted:
            kept = last is not None and shared(last.token_ids, batch.requests[0].token_ids, chunk) > 0
            rows, columns = wanted, batch.columns
            found.append(rows * columns + (old if kept else 0))
        last = batch.requests[-1]
    return found
