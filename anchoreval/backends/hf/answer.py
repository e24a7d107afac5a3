"""Batches of requests to outputs: prefill row by row, reference and choices scored on forks, decode.py for all rows.

Shapes: B rows of a batch, C cache columns filled, V vocabulary, k logits. Prefill runs one row at a time,
so a prompt gets the same bits whatever shares its batch: in one pass if memory allows, which is the stock forward with
the reference behind the prompt; or in chunks on an absolute grid, so that its bits do not depend on a reused prefix
either (batches.py). The model always gets a mask and position ids, so transformers never guesses at packed sequences
(`masking_utils.py:876`), and no mask of C x C is built. If an attention pattern isolates documents, their keys
and values come from documents.py and only the rest of the prompt is prefilled here, on top of them; or the whole prompt
goes through FlexAttention in one pass. growth.py covers rotations that depend on the length of a pass.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anchoreval.arms.layout import Arrangement, Layout
from anchoreval.backends.answering import Decodes, TextStream
from anchoreval.backends.hf.batches import Batch, Bucket, Limits, plan
from anchoreval.backends.hf.cache import KvStore
from anchoreval.backends.hf.decode import LATE, Choosing, Part, Row, decode
from anchoreval.backends.hf.documents import KeptDocuments, RowPrefill
from anchoreval.backends.hf.network import Network, extend, on_device
from anchoreval.backends.hf.score import REFERENCE_TOKENS, Behind, Scoring
from anchoreval.schema import Output, Request, lost_output

#: Messages of out-of-memory errors that have no class of their own: CPU, CUDA libraries, MPS.
_OUT_OF_MEMORY = re.compile("allocate memory|out of memory|ALLOC_FAILED", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Prefilled:
    """Where the keys and values of the most recently prefilled prompt are."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    store: KvStore
    row: int
    start: int


class Answering:
    """One pass over a list of requests; holds the buffers that its batches share.

    `interrupted` is called when a pass through the model broke off for lack of memory. `arrangement` gives every prompt
    its positions and rows, `kept` holds the documents of earlier prompts. `prefilled_tokens` counts the prompt tokens
    computed, `reused_tokens` those taken from an earlier prompt; neither counts documents. `joint` rows of any length
    decode together if the network can. The host reads tokens `late` tokens after they were chosen.
    """

    def __init__(
        self,
        network: Network,
        decoder: Decodes,
        eos: frozenset[int],
        limits: Limits,
        interrupted: Callable[[], None],
        arrangement: Arrangement | None = None,
        kept: KeptDocuments | None = None,
        joint: bool = True,
    ) -> None:
        self._network, self._decoder, self._eos, self._limits = network, decoder, eos, limits
        self._interrupted, growth = interrupted, network.growth
        #: Makes a block that restores the model's rotations at its end.
        self._unchanged: Callable[[], contextlib.AbstractContextManager[None]]
        self._unchanged = contextlib.nullcontext if growth is None else growth.kept
        self._joint = joint and network.joint and limits.pass_tokens is not None
        self.late = LATE if network.device.type == "cuda" and growth is None else 0
        self._arrangement = arrangement or Arrangement()
        self._kept = kept or KeptDocuments(limits.batch_tokens)
        self._documents = RowPrefill(network, self._kept, limits.chunk_tokens)
        self._scoring = Scoring(network, limits)
        self._stores: list[KvStore] = []
        self._previous: _Prefilled | None = None
        self._cells_refused: int | None = None  # rows x columns that did not fit into memory
        self.prefilled_tokens = 0
        self.reused_tokens = 0

    @property
    def forked_columns(self) -> int:
        """Rows x columns that forks for choices hold besides the batch."""
        return self._scoring.columns

    def outputs(self, requests: Sequence[Request]) -> Iterator[Output]:
        """Yield one output per request, batch by batch; a batch is halved as often as memory requires."""
        if self._network.growth is not None:
            with torch.inference_mode():
                self._network.restart()
        waiting = [*plan(requests, self._limits, self._network.alone, self._joint)][::-1]
        while waiting:
            batch = waiting.pop()
            cells = batch.cells
            splits = len(batch.requests) > 1
            too_large = splits and self._cells_refused is not None and cells >= self._cells_refused
            if not too_large and (outputs := self._run(batch)) is not None:
                yield from outputs
            elif splits:
                self._cells_refused = min(cells, self._cells_refused or cells)
                waiting.extend([*batch.halves()][::-1])
            elif batch.requests[0].choices and self._scoring.one_by_one():
                waiting.append(batch)
            elif shorter := self._limits.halved():
                self._limits = shorter
                waiting.append(batch)
            else:
                yield lost_output(batch.requests[0].sample_id, "failed", "out of memory with one row")

    @torch.inference_mode()
    def _run(self, batch: Batch) -> list[Output] | None:
        """Return the outputs, or None if memory ran out; the buffers are released then."""
        began, rows, parts = time.perf_counter(), list[Row](), list[Part]()
        self._choosing = Choosing(self._eos, self.late)
        store: KvStore | None = None
        try:
            # a store for each bucket: of the last batch's those that fit, and new ones
            before, self._stores = self._stores, list[KvStore]()
            for bucket in batch.buckets:
                store = next((store for store in before if bucket.fits(store.rows, store.columns)), None)
                if store is not None:
                    before.remove(store)
                self._stores.append(store or KvStore(self._network.layers, bucket.rows, bucket.columns))
            # of those that do not fit, one is kept for a prefix that it shares with the first prompt
            if self._previous is not None and self._previous.store in before and not self._prefix(batch.requests[0]):
                self._previous = None
            before.clear()
            with self._unchanged():
                for bucket, store in zip(batch.buckets, self._stores, strict=True):
                    for i, request in enumerate(bucket.requests):
                        rows.append(self._prefill(store, i, bucket, request))
                    parts.append(Part.of(store, bucket, rows[-len(bucket.requests) :], self._network.device))
                self._choosing.read()
                decode(self._network, parts, batch.joint, self._advance)
                self._choosing.read()
            seconds = (time.perf_counter() - began) / len(rows)
            return [row.said(seconds, row.logprob, row.choices, row.token_logprobs) for row in rows]
        except (torch.OutOfMemoryError, MemoryError):
            pass
        except RuntimeError as error:
            if not _OUT_OF_MEMORY.search(str(error)):
                raise
        store = self._previous = None
        self._stores, parts = [], []
        self._kept.clear()
        self._scoring.release()
        self._interrupted()
        if self._network.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _prefix(self, request: Request, layout: Layout | None = None) -> int:
        """Return how many tokens of the request the previous prompt has already prefilled at the same positions."""
        if self._previous is None:
            return 0
        layout = layout or self._arrangement.of(request)
        if layout.rows or self._network.whole_prompts:
            return 0
        tokens = self._limits.shared(self._previous.ids, request.token_ids)
        return min(tokens, self._limits.shared(self._previous.positions, layout.positions))

    def _prefill(self, store: KvStore, row: int, bucket: Bucket, request: Request) -> Row:
        """Return the row: its prompt in the store, reference and choices scored, its first token chosen."""
        layout, start = self._arrangement.of(request), bucket.start(request)
        if request.scores_text:
            return self._score_text(store, (row, start), request, layout)
        given = request.reference_ids or (request.choices[0].token_ids if len(request.choices) == 1 else ())
        if layout.rows and self._arrangement.realisation == "flex":
            logits_kV = self._prefill_flex(store, (row, start), request, layout)
        elif layout.rows:
            logits_kV = self._prefill_rows(store, (row, start), request, layout)
        else:
            logits_kV = self._prefill_plain(store, (row, start), request, layout, given)
        state = Row(request, TextStream(self._decoder, request.token_ids, request.stop), start, layout.after)
        behind = Behind(store, (row, start), request.token_ids, layout.after, logits_kV, given[: len(logits_kV) - 1])
        with self._unchanged():
            if request.reference_ids:
                state.refer(*self._scoring.reference(behind, request.reference_ids))
        with self._unchanged():
            if request.choices:
                state.choose(self._scoring.choices(behind, request.choices))
        if state.finish is not None:
            return state
        if request.max_new_tokens > 0:
            self._advance([state], behind.logits[:1])
        else:
            state.finish = request.unsaid
        return state

    def _score_text(self, store: KvStore, place: tuple[int, int], request: Request, layout: Layout) -> Row:
        """Return the row of a text, with each of its tokens scored and none added."""
        self._previous = None  # its columns are written over
        state = Row(request, TextStream(self._decoder, request.token_ids, ()), place[1], layout.after)
        ids, first = (*request.token_ids, *request.reference_ids), len(request.token_ids)
        few = len(ids) - first <= REFERENCE_TOKENS  # the logits of a longer text are bounded by its chunks
        chunk = (few and self._limits.pass_tokens) or self._limits.chunk_tokens
        chunk = len(ids) if self._network.whole_prompts else chunk
        each = self._scoring.text(store.row(*place, 0), ids, layout.positions, first, chunk)
        state.finish = request.unsaid
        state.refer(math.fsum(each), each)
        self.prefilled_tokens += len(ids) - 1
        return state

    def _prefill_plain(
        self, store: KvStore, place: tuple[int, int], request: Request, layout: Layout, given: Sequence[int]
    ) -> Tensor:
        """Return the logits `kV` after a prompt under plain causal attention; copy what the previous prompt shares.

        In passes of `pass_tokens`, the last one holds the first k - 1 of the tokens `given` behind the prompt too.
        """
        ids, most = request.token_ids, self._limits.pass_tokens
        done, source = self._prefix(request, layout), self._previous
        if source is not None and done:
            store.take(place, source.store, (source.row, source.start), done)
        store.clear_left(*place)
        cache = store.row(*place, done)
        chunk = len(ids) if self._network.whole_prompts else most or self._limits.chunk_tokens
        ahead = given[:-1][: REFERENCE_TOKENS - 1] if most else ()
        for at in range(done, len(ids), chunk):
            new, positions = ids[at : at + chunk], layout.positions[at : at + chunk]
            if ahead and at + chunk >= len(ids):
                new, positions = (*new, *ahead), (*positions, *range(layout.after, layout.after + len(ahead)))
            logits_kV = extend(self._network, cache, new, positions, at, keep=1 + len(new) - len(ids[at : at + chunk]))
        self._previous = _Prefilled(ids, layout.positions, store, *place)
        self.prefilled_tokens += len(ids) - done
        self.reused_tokens += done
        return logits_kV

    def _prefill_rows(self, store: KvStore, place: tuple[int, int], request: Request, layout: Layout) -> Tensor:
        """Return the logits `1V` after a prompt of isolated documents: rows first, then each query on top of them."""
        self._previous = None  # its columns may be overwritten
        last_1V = self._documents.fill(request, layout, store, place)
        store.clear_left(*place)
        for block in (block for block in layout.blocks if block.kind == "query"):
            cache = store.row(*place, block.start)
            for at in range(block.start, block.stop, self._limits.chunk_tokens):
                part = slice(at, min(at + self._limits.chunk_tokens, block.stop))
                given_1V = extend(self._network, cache, request.token_ids[part], layout.positions[part], at)
            self.prefilled_tokens += len(block)
            if block is layout.blocks[-1]:
                last_1V = given_1V
        assert last_1V is not None
        return last_1V

    def _prefill_flex(self, store: KvStore, place: tuple[int, int], request: Request, layout: Layout) -> Tensor:
        """Return the logits `1V` after a prompt of isolated documents, computed in one pass."""
        self._previous = None  # its columns may be overwritten
        store.clear_left(*place)
        device, tokens = self._network.device, len(request.token_ids)
        ids_1N, position_1N = on_device([request.token_ids], device), on_device([layout.positions], device)
        mask_1N = torch.ones(1, tokens, dtype=torch.bool, device=device)
        seen = layout.blocks, self._arrangement.pattern
        self.prefilled_tokens += tokens
        return self._network.masked_logits(ids_1N, store.row(*place, 0), (position_1N, mask_1N), seen)[0]

    def _advance(self, rows: Sequence[Row | None], logits_BV: Tensor) -> Tensor:
        """Return the most likely token of every row `B`, which the rows that still go on get."""
        return self._choosing.choose(rows, logits_BV)
