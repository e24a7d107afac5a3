"""Greedy decoding: a token of all rows in one pass, whatever their lengths, and nothing waits for the host.

Shapes: B rows of a pass, C columns of a store, H query heads, D head size, V vocabulary.

Rows of several buckets (batches.py) share the products of a pass. Each bucket attends in its own store, on the columns
and under the mask that it has alone, so no row is filled up to the longest. A row that ended leaves: the last row of
its store takes its place. On a GPU the host reads a token while the device computes the next one; a row that ended is
then computed LATE tokens too far, which are dropped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache, DynamicLayer

from anchoreval.backends.answering import NOT_FINITE, Growing
from anchoreval.backends.hf.batches import LEAST_ROWS, Bucket
from anchoreval.backends.hf.cache import KvStore
from anchoreval.backends.hf.network import InSdpa, Network, extend, on_device
from anchoreval.errors import UnsupportedArm
from anchoreval.schema import ChoiceScore

LATE = 1  # tokens that a GPU is ahead of the host
_FOLDS = ("cuda",)  # devices whose kernels take no mask for heads that share a key


@dataclass(slots=True)
class Row(Growing):
    """A request in progress; `start` is the column of its first token, `after` the position right after its prompt.

    `chosen` counts its tokens, those included that the host has not read yet.
    """

    start: int
    after: int
    logprob: float | None = None
    token_logprobs: tuple[float, ...] | None = None
    choices: tuple[ChoiceScore, ...] = ()
    chosen: int = field(default=0, init=False)

    @property
    def going(self) -> bool:
        """Whether more tokens are needed, as far as the host knows."""
        return self.finish is None and self.chosen < self.request.max_new_tokens

    def refer(self, logprob: float, each: Sequence[float]) -> None:
        self.logprob, self.token_logprobs = logprob, tuple(each)
        if self.request.scores_text and not math.isfinite(logprob):
            place = len(self.request.token_ids) + next(i for i, value in enumerate(each) if not math.isfinite(value))
            self.fail(f"the log-probability of the token at position {place} is not finite", "not_finite")

    def choose(self, choices: tuple[ChoiceScore, ...]) -> None:
        if all(math.isfinite(choice.logprob) for choice in choices):
            self.choices = choices
        else:
            self.fail(NOT_FINITE, "not_finite")

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and answer so far."""
        return (*self.request.token_ids, *self.tokens)


def _going(row: Row | None) -> bool:
    return row is not None and row.going


@dataclass(slots=True)
class Choosing:
    """Chooses tokens on the device; the host reads those of a choice when `late` more were made."""

    eos: frozenset[int]
    late: int
    _unread: deque[tuple[list[Row | None], Tensor, torch.cuda.Event | None]] = field(default_factory=deque, init=False)

    def choose(self, rows: Sequence[Row | None], logits_BV: Tensor) -> Tensor:
        """Return the likeliest token of every row `B`, which the rows that are going on get once it is read."""
        going = [row if _going(row) else None for row in rows]
        # tokens that would end an answer before its minimum length are not allowed
        short = [(i, row) for i, row in enumerate(going) if row and row.chosen < row.request.min_new_tokens]
        if short:
            logits_BV = logits_BV.clone()
        for i, row in short:
            logits_BV[i, sorted({*self.eos, *row.request.end_ids})] = -torch.inf
        token_B = logits_BV.argmax(-1)
        finite_B = logits_BV.gather(1, token_B[:, None])[:, 0].isfinite()
        for row in filter(None, going):
            row.chosen += 1

        host_B, copied = token_B.where(finite_B, -1), None
        if token_B.device.type == "cuda":  # they come by pinned memory, and nothing waits
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            host_B = host_B.to("cpu", non_blocking=True)
            copied.record()
        self._unread.append((going, host_B, copied))
        self.read(self.late)
        return token_B

    def read(self, left: int = 0) -> None:
        """Give rows their tokens, but for those of the last `left` choices."""
        while len(self._unread) > left:
            rows, token_B, copied = self._unread.popleft()
            if copied is not None:
                copied.synchronize()
            for row, token in zip(rows, token_B.tolist(), strict=True):
                if row is not None and row.finish is None:
                    row.add(token, token >= 0, self.eos)


@dataclass(slots=True)
class Part:
    """The rows of a store: row i of it holds `rows[i]` (None: filling) in `filled` columns, the same for all.

    `seen` `BC` says which columns a row sees, `floats` the same as what torch's SDPA adds to scores; a `solo` row sees
    all of them.
    """

    store: KvStore
    rows: list[Row | None]
    filled: int
    seen: Tensor
    solo: bool
    floats: Tensor | None = None

    @classmethod
    def of(cls, store: KvStore, bucket: Bucket, rows: Sequence[Row], device: torch.device) -> Part:
        """Return the prefilled rows of a bucket, and filling like the first of them."""
        starts = [row.start for row in rows] + [rows[0].start] * (bucket.rows - len(rows))
        seen_BC = torch.arange(bucket.columns, device=device)[None] >= on_device(starts, device)[:, None]
        filled = len(rows[0].request.token_ids) if bucket.solo else bucket.base
        return cls(store, [*rows, *[None] * (bucket.rows - len(rows))], filled, seen_BC, bucket.solo)

    def leave(self, most: int) -> list[int]:
        """Let rows that ended go, at most so many; the last rows take their places. Return which stay, in order."""
        stay = list(range(len(self.rows)))
        for at in reversed(range(len(self.rows))):
            row = self.rows[at]
            if most > 0 and not _going(row):
                self.store.move(len(stay) - 1, at)
                stay[at], self.rows[at] = stay[-1], self.rows[-1]
                del stay[-1], self.rows[-1]
                most -= 1
        if len(stay) < len(self.seen):
            self.seen, self.floats = self.seen[on_device(stay, self.seen.device)], None
        return stay

    def attend(self, query_BH1D: Tensor, layer: int, **rest: Any) -> Tensor:
        """Return the attention output `BH1D` of one more token on what the store holds.

        No key is copied for the query heads that share it, as transformers does under a mask. On a CPU that leaves the
        bits; a GPU's kernels take them as queries of one head.
        """
        keys, values = self.store.held(layer, len(self.rows), self.filled)
        rows, heads, _, size = query_BH1D.shape
        if self.solo:
            return functional.scaled_dot_product_attention(query_BH1D, keys, values, enable_gqa=True, **rest)
        if self.floats is None:
            self.floats = torch.zeros_like(self.seen, dtype=keys.dtype).masked_fill_(~self.seen, -torch.inf)
        given = keys, values, self.floats[:, None, None, : self.filled]
        if query_BH1D.device.type not in _FOLDS:
            return functional.scaled_dot_product_attention(query_BH1D, *given, enable_gqa=True, **rest)
        folded = query_BH1D.reshape(rows, keys.shape[1], heads // keys.shape[1], size)
        return functional.scaled_dot_product_attention(folded, *given, **rest).reshape(rows, heads, 1, -1)


class _Several(InSdpa):
    """The mask of one more token of rows in several stores; rows of a pass behind those of the stores are filling."""

    parts: list[Part]
    layer: int

    def booleans(self) -> Tensor:
        """Raise UnsupportedArm: only SDPA can read it. probe.py finds models of which other code does."""
        raise UnsupportedArm("kernel: rows in several stores have no mask but in sdpa")

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        """Return the attention output `BH1D` of every row on what its own store holds."""
        out_BH1D, at = query.new_zeros(*query.shape[:3], value.shape[3]), 0
        for part in self.parts:
            own = slice(at, at + len(part.rows))
            out_BH1D[own] = part.attend(query[own], self.layer, **rest)
            at = own.stop
        return out_BH1D


class _Layer(DynamicLayer):  # type: ignore[misc]  # transformers is not analysed
    """One layer of the stores of a mask: new keys and values go to theirs, and stay there."""

    def __init__(self, mask: _Several, layer: int) -> None:
        super().__init__()
        self._mask, self._layer = mask, layer

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the new keys and values, and return them alone."""
        at, self._mask.layer = 0, self._layer
        for part in self._mask.parts:
            rows = len(part.rows)
            place = slice(rows), slice(part.filled - 1, part.filled)
            part.store.write(self._layer, place, key_states[at : at + rows], value_states[at : at + rows])
            at += rows
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Return the columns filled before this token in the longest rows."""
        return max(part.filled for part in self._mask.parts) - 1


def decode(
    network: Network,
    parts: Sequence[Part],
    joint: bool,
    advance: Callable[[Sequence[Row | None], Tensor], Tensor],
) -> None:
    """Add greedy tokens until all rows of the parts have ended. Only `joint` parts can be several.

    `advance` takes rows and logits `BV`, and returns tokens `B`. A part that is not joint keeps LEAST_ROWS rows,
    whether these have ended or not; a pass over joint ones is filled up with rows that are in no store, but for a solo
    row.
    """
    parts, growth, device = list(parts), network.growth, network.device
    rows: list[Row | None] = []
    beginning = [row or part.rows[0] for part in parts for row in part.rows]
    token_B1 = on_device([row.tokens[-1:] or [0] for row in beginning if row], device)
    position_B1 = on_device([[row.after] for row in beginning if row], device)
    cache: Cache | None = None
    several: Tensor | None = None
    while any(_going(row) for part in parts for row in part.rows):
        held = [row for part in parts for row in part.rows]
        spare = len(held) - (0 if joint else LEAST_ROWS)
        if cache is None or (spare > 0 and not all(map(_going, held))):  # rows that ended go
            stay, at = list[int](), 0
            for part in parts:
                before = len(part.rows)
                stay += [at + row for row in part.leave(spare)]
                at += before
            parts = [part for part in parts if part.rows]
            filling = max(0, LEAST_ROWS - len(stay)) if joint and not parts[0].solo else 0
            rows = [*(row for part in parts for row in part.rows), *[None] * filling]
            index_B = on_device([*stay, *[stay[0]] * filling], device)
            token_B1, position_B1 = token_B1[index_B], position_B1[index_B]
            if joint:
                several = mask = _Several.shaped(len(rows), 1, 1, 1, device=device)
                mask.parts = parts
                cache = Cache(layers=[_Layer(mask, layer) for layer in range(network.layers)])
            else:
                (part,) = parts
                cache = part.store.row(0, 0, part.filled, rows=len(part.rows))

        part, row = parts[0], parts[0].rows[0]
        assert row is not None
        for each in parts:
            each.filled += 1
        if growth is not None and growth.drops_cache(row.ids, cache):
            cache = part.store.row(0, 0, 0)
            logits_BV = extend(network, cache, row.ids, range(len(row.ids)), 0)
        else:
            seen = part.seen[:, : part.filled] if several is None else several
            logits_BV = network.logits(token_B1, cache, (position_B1, seen), keep=1)[:, -1]
        token_B1 = advance(rows, logits_BV)[:, None]
        position_B1 = position_B1 + 1
