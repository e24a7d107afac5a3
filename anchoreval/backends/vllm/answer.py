"""Answer batches of requests through one vLLM engine. Imports no vLLM itself."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from anchoreval.arms.layout import Arrangement
from anchoreval.backends.answering import Decodes, TextStream
from anchoreval.backends.vllm.asks import Ask, Reply, Row
from anchoreval.backends.vllm.batches import batches, context_of, lots
from anchoreval.backends.vllm.engine import Engine
from anchoreval.schema import Output, Request


class Answering:
    """One pass over a list of requests under one arm.

    The phases of a batch (see asks.py) each run to their end before the next begins, so that what is computed together
    follows from the requests, not from the answers; only generation itself continues with the rows that are left.
    """

    def __init__(
        self, engine: Engine, decoder: Decodes, eos: frozenset[int], arrangement: Arrangement, arm: str
    ) -> None:
        self._engine, self._decoder, self._eos = engine, decoder, eos
        self._arrangement, self._arm = arrangement, arm

    def outputs(self, requests: Sequence[Request]) -> Iterator[Output]:
        """Yield one output per request, batch by batch; the bits do not depend on what was answered before."""
        self._engine.forget()
        for batch in batches(requests, self._engine.cache, self._engine.batching.max_num_seqs):
            began = time.perf_counter()
            rows = [self._row(request) for request in batch]
            self._score([row for row in rows if row.continuations()])
            self._generate(rows)
            seconds = (time.perf_counter() - began) / len(rows)
            yield from (row.output(seconds) for row in rows)

    def _row(self, request: Request) -> Row:
        context = context_of(request, self._arrangement, self._arm)
        return Row(request, TextStream(self._decoder, request.token_ids, request.stop), context)

    def _score(self, rows: Sequence[Row]) -> None:
        """Score reference and choices of every row."""
        behind = [row.behind() for row in rows]
        first = iter(self._replies([ask for asks in behind for ask in asks]))
        said = [[next(first) for _ in asks] for asks in behind]
        forced = [row.forced() for row in rows]
        second = iter(self._replies([ask for asks in forced for ask in asks.values()]))
        for row, replies, asks in zip(rows, said, forced, strict=True):
            row.score(replies, {each: next(second) for each in asks})

    def _replies(self, asks: Sequence[Ask]) -> list[Reply]:
        """Return a reply to each ask, in order; an ask whose rows were cached is repeated and computed afresh."""
        made = [reply for lot in lots(asks, self._engine.cache) for reply in self._engine.replies(lot)]
        torn = [i for i, (ask, reply) in enumerate(zip(asks, made, strict=True)) if not reply.usable(ask)]
        again = [replace(asks[i], afresh=True) for i in torn]
        for lot in lots(again, self._engine.cache):
            for reply in self._engine.replies(lot):
                made[torn.pop(0)] = reply
        return made

    def _generate(self, rows: Sequence[Row]) -> None:
        """Add greedy tokens to the rows until all have ended."""
        asked = [(row, ask) for row in rows if (ask := row.generated(self._eos)) is not None]
        for lot in lots([ask for _, ask in asked], self._engine.cache):
            going = [asked.pop(0)[0] for _ in lot]
            said = self._engine.tokens(lot)
            for i, token, logprob in said:
                row = going[i]
                if row.finish is None:
                    row.add(token, math.isfinite(logprob), self._eos)
                if row.finish is not None:
                    self._engine.stop(i)
            for row in going:
                if row.finish is None:
                    row.fail(f"vLLM ended the answer after {len(row.tokens)} of {row.request.max_new_tokens} tokens")
