"""Count the passes that the hf backend would make through a model: run its own code on a model without layers.

Shapes: B rows, Q new tokens, C cache columns, k positions whose logits are asked for.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from anchoreval.arms.layout import Arrangement
from anchoreval.arms.patterns import Block
from anchoreval.backends.hf.answer import Answering
from anchoreval.backends.hf.batches import Batch, Limits, plan, width
from anchoreval.backends.hf.cache import KeptDocuments
from anchoreval.backends.hf.growth import Growth
from anchoreval.backends.hf.probe import NoText
from anchoreval.schema import Continuation, Request


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass: `rows` rows of `queries` new tokens that see `columns` cache columns; logits of the last `keep`."""

    rows: int
    queries: int
    columns: int
    keep: int


@dataclass(slots=True)
class DryNetwork:
    """A model without layers that records its passes. Its vocabulary is one token, which ends every answer."""

    layers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    whole_prompts: bool = False
    alone: bool = False
    growth: Growth | None = None
    joint: bool = False
    passes: Counter[Pass] = field(default_factory=Counter)

    def logits(self, ids_BQ: Tensor, cache: Cache, at: tuple[Tensor, Tensor], keep: int) -> Tensor:
        """Return zeros `Bk1` and count the pass."""
        rows, queries = ids_BQ.shape
        self.passes[Pass(rows, queries, at[1].shape[1], keep)] += 1
        return torch.zeros(rows, keep, 1)

    def masked_logits(
        self, ids_1N: Tensor, cache: Cache, at: tuple[Tensor, Tensor], seen: tuple[Sequence[Block], str]
    ) -> Tensor:
        """Return zeros `111` and count the pass."""
        return self.logits(ids_1N, cache, at, 1)

    def restart(self) -> None:
        """Do nothing: this network has no state between requests."""


@dataclass(slots=True)
class Counted:
    """What one arm computes if every answer takes its whole budget.

    `passes` tells how often each pass is made, `columns` is the largest rows x columns of the cache at one time, and
    `kept_tokens` the largest number of tokens of documents kept beside it.
    """

    prefilled_tokens: float = 0
    reused_tokens: float = 0
    passes: dict[Pass, float] = field(default_factory=dict)
    columns: int = 0
    kept_tokens: int = 0

    def made(self, passes: Mapping[Pass, float], times: float) -> None:
        """Add passes, each made so many times more often."""
        for pass_, count in passes.items():
            self.passes[pass_] = self.passes.get(pass_, 0) + count * times

    def add(self, other: Counted) -> None:
        """Add what comes after this."""
        self.prefilled_tokens += other.prefilled_tokens
        self.reused_tokens += other.reused_tokens
        self.made(other.passes, 1)
        self.columns = max(self.columns, other.columns)
        self.kept_tokens = max(self.kept_tokens, other.kept_tokens)


class DryArm:
    """Counts what groups of requests take under one arm; keeps documents from group to group as the backend does."""

    def __init__(self, limits: Limits, arrangement: Arrangement, whole_prompts: bool) -> None:
        self._limits, self._arrangement, self._alone = limits, arrangement, whole_prompts
        self._kept = KeptDocuments(limits.batch_tokens)

    def count(self, requests: Sequence[Request], group: Sequence[Request], groups: float) -> Counted:
        """Return what a number of groups takes; `requests` are the first of a group, `group` decodes together.

        Prefill shares what `requests` share, and is scaled to all.
        """
        network = DryNetwork(whole_prompts=self._alone, alone=self._alone)
        kept = self._kept.of("")
        answering = Answering(network, NoText(), frozenset({0}), self._limits, lambda: None, self._arrangement, kept)
        list(answering.outputs([_plain(request) for request in requests]))
        times = groups * len(group) / max(1, len(requests))
        counted = Counted(
            times * (answering.prefilled_tokens + kept.prefilled_tokens),
            times * (answering.reused_tokens + kept.reused_tokens),
            kept_tokens=kept.tokens,
        )
        counted.made(network.passes, times)
        batches = list(plan(group, self._limits, self._alone, joint=self._limits.pass_tokens is not None))
        counted.made(Counter(itertools.chain.from_iterable(map(_decoding, batches))), groups)
        counted.columns = max(_columns(batches, self._limits)) + answering.forked_columns
        return counted


def _plain(request: Request) -> Request:
    """Return the request with the same prompt and token counts, but with token 0 everywhere after the prompt."""
    return replace(
        request,
        reference_ids=(0,) * len(request.reference_ids),
        choices=tuple(Continuation((0,) * len(each.token_ids), each.counted) for each in request.choices),
        end_ids=(),
        min_new_tokens=0,
        stop=(),
    )


def _decoding(batch: Batch) -> Iterator[Pass]:
    """Yield the decoding passes of a batch whose answers take their whole budget; prefill gives the first token.

    Rows leave when their budget is spent; columns are the mean over rows.
    """
    solo = batch.buckets[0].solo
    ends = [
        (request.max_new_tokens, len(request.token_ids) if solo else bucket.base)
        for bucket in batch.buckets
        for request in bucket.requests
    ]
    for step in range(1, max(budget for budget, _ in ends)):
        going = [end for budget, end in ends if budget > step]
        yield Pass(width(len(going), solo), 1, -(-sum(going) // len(going)) + step, 1)


def _columns(batches: Sequence[Batch], limits: Limits) -> list[int]:
    """Return rows x columns of the cache at each batch.

    The last store of a batch stays beside those of the next, where it does not fit, only if the two share a prefix.
    """
    sizes, held = [0], list[tuple[int, int]]()
    last: Request | None = None
    for batch in batches:
        before, held = held, []
        newest = before[-1:]
        for bucket in batch.buckets:
            size = next((size for size in before if bucket.fits(*size)), None)
            if size is not None:
                before.remove(size)
            held.append(size or (bucket.rows, bucket.columns))
        shared = last is not None and limits.shared(last.token_ids, batch.requests[0].token_ids) > 0
        kept = newest if shared and before[-1:] == newest else []
        sizes.append(sum(rows * columns for rows, columns in (*held, *kept)))
        last = batch.requests[-1]
    return sizes
