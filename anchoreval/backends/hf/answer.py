"""Batches of requests to outputs: prefill row by row, reference and choices scored on forks, decode.py for all rows.

Shapes: B rows of a batch, C cache columns filled, V vocabulary, k logits. Prefill runs one row at a time,
so a prompt gets the same bits whatever shares its batch: in one pass if memory allows, which is the stock forward with
the reference behind the prompt; or in chunks on an absolute grid, so that its bits do not depend on a reused prefix
either (batches.py). The model always gets a mask and position ids, so transformers never guesses at packed sequences
(`masking_utils.py:876`), and no mask of C x C is built. If an attention pattern isolates documents, their keys
and values come from cache.py and only the rest of the prompt is prefilled here, on top of them; or the whole prompt
goes through FlexAttention in one pass. growth.py covers rotations that depend on the length of a pass.

R rows of forks, Q new tokens: a single choice continues the prompt's own row, which costs no
copy; several choices are rows that begin with copies of the prompt's keys and values, filled up on the right, where no
token sees the filling. A choice of one token costs no pass at all: its logits are those after the prompt. Logits are
requested only from the first counted token on, and reduced by a float32 log-softmax, a few rows at a time.

The log-probability of a reference is the one that a stock forward pass over prompt and reference gives; a choice's is
that of a pass over prompt and choice without its last token, as lm-eval computes it. Both continue from the prompt's
keys and values. If rotations depend on the length of the pass (growth.py) and change between the two lengths, that one
pass is made. A text that is scored is prefilled like a prompt.
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
from transformers.cache_utils import Cache

from anchoreval.arms.layout import Arrangement, Layout
from anchoreval.backends.answering import Decodes, TextStream
from anchoreval.backends.hf.batches import Batch, Bucket, Limits, plan
from anchoreval.backends.hf.cache import KeptDocuments, KvStore, RowPrefill
from anchoreval.backends.hf.decode import LATE, Choosing, Part, Row, decode
from anchoreval.backends.hf.network import Network, extend, extend_rows, on_device
from anchoreval.schema import ChoiceScore, Continuation, Output, Request, lost_output

#: Rows of reference scored at once: bounds logits to 64 x V, and is part of the identity.
REFERENCE_TOKENS = 64
_PASS_TOKENS = 256  # tokens of choices in one pass, all rows together: bounds logits to 256 x V
_MOST_FORKS = 8


@dataclass(frozen=True, slots=True)
class Behind:
    """The end of a prompt in a store.

    `place` is (row, column) of its first token, `after` the position of the next token and `logits` (`kV`) those of
    that token, and of the ones after the k - 1 tokens `ahead`, with which the reference or the only choice begins.
    """

    store: KvStore
    place: tuple[int, int]
    ids: tuple[int, ...]
    after: int
    logits: Tensor
    ahead: Sequence[int] = ()

    def positions(self, first: int, tokens: int) -> range:
        """Return the position ids of `tokens` tokens; the first of them is number `first` after the prompt."""
        return range(self.after + first, self.after + first + tokens)


class Scoring:
    """Scores tokens that follow prompts; holds the buffers of forks, which its prompts share."""

    def __init__(self, network: Network, limits: Limits) -> None:
        self._network, self._limits = network, limits
        self._forks: KvStore | None = None
        self._alone = network.alone

    @property
    def columns(self) -> int:
        """Rows x columns of the forks."""
        return self._forks.rows * self._forks.columns if self._forks else 0

    def release(self) -> None:
        """Free the memory of the forks."""
        self._forks = None

    def one_by_one(self) -> bool:
        """Score choices on the prompt's own row from now on, which needs least memory; return whether that is new."""
        new, self._alone = not self._alone, True
        return new

    def reference(self, behind: Behind, ids: Sequence[int]) -> tuple[float, tuple[float, ...]]:
        """Return the summed natural log-probability of `ids`, and that of each."""
        growth, each = self._network.growth, list[float]()
        if growth is not None and not growth.alike(len(behind.ids), len(behind.ids) + len(ids)):
            total = _judged(growth.logits((*behind.ids, *ids), len(ids) + 1)[:-1], ids, each)[0]
            return total, tuple(each)
        ready = len(behind.logits)
        fork = behind.store.row(*behind.place, len(behind.ids) + ready - 1)
        total = _judged(behind.logits, ids[:ready], each)[0]
        for at in range(ready - 1, len(ids) - 1, REFERENCE_TOKENS):
            given = ids[at : min(at + REFERENCE_TOKENS, len(ids) - 1)]
            positions = behind.positions(at, len(given))
            logits_QV = extend(self._network, fork, given, positions, len(behind.ids) + at, keep=len(given))
            total += _judged(logits_QV, ids[at + 1 : at + 1 + len(given)], each)[0]
        return total, tuple(each)

    def text(self, cache: Cache, ids: Sequence[int], positions: Sequence[int], first: int, chunk: int) -> list[float]:
        """Return the natural log-probability of each of `ids` from `first` on, given all before it, in one prefill.

        Chunks lie on an absolute grid, and logits are never of more rows than one has: what grows with the text is the
        cache, the mask of one chunk, and for growing rotations the hidden states.
        """
        given, each = ids[:-1], list[float]()
        if self._network.growth is not None:
            for logits_RV in self._network.growth.each_logits(given, first - 1, self._limits.chunk_tokens):
                _judged(logits_RV, ids[first + len(each) :][: len(logits_RV)], each)
            return each
        for at in range(0, len(given), chunk):
            part = given[at : at + chunk]
            keep = min(len(part), max(1, at + len(part) - (first - 1)))
            logits_RV = extend(self._network, cache, part, positions[at : at + len(part)], at, keep)
            if at + len(part) >= first:
                _judged(logits_RV, ids[first + len(each) :][:keep], each)
        return each

    def choices(self, behind: Behind, choices: Sequence[Continuation]) -> tuple[ChoiceScore, ...]:
        """Return a score per choice, in order; choices of like length are computed together."""
        order = sorted(range(len(choices)), key=lambda i: len(choices[i].token_ids))
        short = [i for i in order if len(choices[i].token_ids) < 2 or choices[i].counted == 0]
        scored = {i: _first(behind.logits[:1], choices[i]) for i in short}
        for i in (i for i in order if i not in scored and tuple(choices[i].token_ids[:-1]) == tuple(behind.ahead)):
            scored[i] = _judged(behind.logits[-choices[i].counted :], choices[i].token_ids[-choices[i].counted :])
        if (growth := self._network.growth) is not None:
            for i in [i for i in order if i not in scored]:
                ids, prompt = choices[i].token_ids[:-1], len(behind.ids)
                if not growth.alike(prompt, prompt + len(ids)):  # a pass over both rotates differently: it is made
                    with growth.kept():
                        logits_kV = growth.logits((*behind.ids, *ids), choices[i].counted)
                    scored[i] = _judged(logits_kV, choices[i].token_ids[-choices[i].counted :])
        rest = [i for i in order if i not in scored]
        while rest:
            columns = len(behind.ids) + len(choices[rest[-1]].token_ids)
            most = min(len(rest), _MOST_FORKS, self._limits.rows, self._limits.batch_tokens // columns)
            group = rest[-1:] if self._alone else rest[-max(1, most) :]
            del rest[-len(group) :]
            scored |= zip(group, self._scores(behind, [choices[i] for i in group]), strict=True)
        return tuple(scored[i] for i in range(len(choices)))

    def _scores(self, behind: Behind, group: Sequence[Continuation]) -> list[ChoiceScore]:
        """Return the scores of choices of two or more tokens; all rows share the passes after the first token."""
        longest = max(len(choice.token_ids) for choice in group) - 1  # no logits behind the last token are used
        # all ids but the last, with that one repeated
        padded = [[*c.token_ids[:-1], *c.token_ids[-1:] * (longest + 1 - len(c.token_ids))] for c in group]
        ids_RQ = on_device(padded, self._network.device)
        cache = self._forked(behind, len(group), longest)
        first = min(len(choice.token_ids) - choice.counted for choice in group)
        made = [_first(behind.logits[:1], choice) for choice in group]
        step = max(1, _PASS_TOKENS // len(group))
        for at in range(0, longest, step):
            stop = min(at + step, longest)
            keep = max(1, stop - max(at, first - 1))
            positions = behind.positions(at, stop - at)
            ids_Rq = ids_RQ[:, at:stop]
            logits_RkV = extend_rows(self._network, cache, ids_Rq, positions, len(behind.ids) + at, keep)
            for i, choice in enumerate(group):
                part = _part(logits_RkV[i], choice, stop - keep)
                made[i] = ChoiceScore(made[i].logprob + part.logprob, made[i].greedy and part.greedy)
        return made

    def _forked(self, behind: Behind, rows: int, more: int) -> Cache:
        """Return a cache of `rows` rows that each hold the prompt, with room for `more` tokens."""
        if rows == 1:
            return behind.store.row(*behind.place, len(behind.ids))
        forks, columns = self._forks, len(behind.ids) + more
        if forks is None or forks.rows < rows or forks.columns < columns:
            self._forks = forks = None  # before the new ones are allocated
            forks = self._forks = KvStore(self._network.layers, rows, columns)
        for row in range(rows):
            forks.take((row, 0), behind.store, behind.place, len(behind.ids))
        return forks.row(0, 0, len(behind.ids), rows=rows)


def _first(last_1V: Tensor, choice: Continuation) -> ChoiceScore:
    """Return what the first token alone scores, if it is counted."""
    ids = choice.token_ids
    return _judged(last_1V, ids[:1]) if ids and choice.counted == len(ids) else ChoiceScore(0.0, True)


def _part(logits_kV: Tensor, choice: Continuation, column: int) -> ChoiceScore:
    """Return the score of those counted tokens that the logits of columns from `column` on are for."""
    begin = max(column, len(choice.token_ids) - choice.counted - 1)
    end = min(column + len(logits_kV), len(choice.token_ids) - 1)
    if begin >= end:
        return ChoiceScore(0.0, True)
    return _judged(logits_kV[begin - column : end - column], choice.token_ids[begin + 1 : end + 1])


def _judged(logits_QV: Tensor, ids: Sequence[int], each: list[float] | None = None) -> ChoiceScore:
    """Return the ids' summed log-probability, one id per row, and whether each is the likeliest.

    The log-softmax is fp32, the sum fp64. The log-probability of each id is added to `each`.
    """
    total, greedy = 0.0, True
    for at in range(0, len(ids), REFERENCE_TOKENS):
        wide_QV = logits_QV[at : at + REFERENCE_TOKENS].float()
        index_Q1 = on_device(ids[at : at + REFERENCE_TOKENS], wide_QV.device)[:, None]
        each_Q = (wide_QV.gather(1, index_Q1)[:, 0] - wide_QV.logsumexp(-1)).double()
        likeliest = (wide_QV.argmax(-1) == index_Q1[:, 0]).all()
        summed, alike, *values = torch.cat([each_Q.sum()[None], likeliest[None], each_Q]).tolist()  # one wait for all
        total += summed
        if each is not None:
            each += values
        greedy = greedy and bool(alike)
    return ChoiceScore(total, greedy)


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
