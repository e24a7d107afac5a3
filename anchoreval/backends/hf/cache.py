"""Keys and values in buffers that are allocated once, seen by stock models as a growing cache.

Shapes: B rows, H key/value heads, C columns, D head size; buffers are `BHCD`. A `transformers` DynamicLayer joins the
whole cache with each new token (`cache_utils.py:119`); here a token is written in place and a view is handed back. A
fork is two views of one row with different lengths: nothing is copied, the longer view simply writes further on.

Documents under a mask are computed without one: independent causal rows whose keys and values are kept and joined.
A row is [anchor; document], the document alone, or [first block; block], at its own position ids. Under the pattern
nothing in it depends on the rest of the prompt, so the same plain causal kernels compute it as any prompt: in chunks,
several documents of one length at a time. Its keys and values can be kept for other prompts in which the same tokens
stand at the same positions. Rows are filled up on the right, where no token sees the filling; how far depends on the
document alone, and so do the shapes that its bits follow from.
"""

from __future__ import annotations

import itertools
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from anchoreval.arms.layout import Layout
from anchoreval.arms.patterns import Row
from anchoreval.backends.hf.network import Network, on_device
from anchoreval.schema import Request


class KvStore:
    """Keys and values of `rows` rows with `columns` columns in every layer, allocated by the first write."""

    def __init__(self, layers: int, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.keys_BHCD: list[Tensor | None] = [None] * layers
        self.values_BHCD: list[Tensor | None] = [None] * layers

    def row(self, row: int, start: int, length: int, rows: int = 1) -> Cache:
        """Return a cache of `rows` rows from `row` on, whose first `length` columns from `start` on are filled."""
        place = slice(row, row + rows)
        return Cache(layers=[_Window(self, i, place, start, length) for i in range(len(self.keys_BHCD))])

    def clear_left(self, row: int, start: int) -> None:
        """Write zeros before `start`: a masked column is still multiplied, and 0 times a stale NaN is NaN."""
        for buffer in self._buffers():
            buffer[row, :, :start] = 0

    def move(self, row: int, to: int) -> None:
        """Copy a row over another."""
        for buffer in self._buffers() if row != to else ():
            buffer[to].copy_(buffer[row])

    def held(self, layer: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the first rows and columns of a layer that was written."""
        keys, values = self.keys_BHCD[layer], self.values_BHCD[layer]
        assert keys is not None and values is not None
        return keys[:rows, :, :columns], values[:rows, :, :columns]

    def take(self, to: tuple[int, int], source: KvStore, at: tuple[int, int], length: int) -> None:
        """Copy `length` columns of `source` from (row, start) `at`; nothing is copied if source and target coincide."""
        if source is self and to == at:
            return
        for mine, theirs in ((self.keys_BHCD, source.keys_BHCD), (self.values_BHCD, source.values_BHCD)):
            for layer, buffer in enumerate(theirs):
                if buffer is None:
                    continue
                part_HCD = buffer[at[0], :, at[1] : at[1] + length]
                target = self._own(mine, layer, buffer)
                overlap = source is self and to[0] == at[0]
                target[to[0], :, to[1] : to[1] + length] = part_HCD.clone() if overlap else part_HCD

    def write(self, layer: int, place: tuple[slice, slice], keys: Tensor, values: Tensor) -> None:
        """Store new columns; `place` is (rows, columns)."""
        rows, columns = place
        self._own(self.keys_BHCD, layer, keys)[rows, :, columns] = keys
        self._own(self.values_BHCD, layer, values)[rows, :, columns] = values

    def _own(self, buffers: list[Tensor | None], layer: int, like: Tensor) -> Tensor:
        buffer = buffers[layer]
        if buffer is None:
            shape = (self.rows, like.shape[1], self.columns, like.shape[3])
            buffer = buffers[layer] = like.new_zeros(shape)
        return buffer

    def _buffers(self) -> list[Tensor]:
        return [buffer for buffer in (*self.keys_BHCD, *self.values_BHCD) if buffer is not None]


class _Window(DynamicLayer):  # type: ignore[misc]  # transformers is not analysed
    """One layer of some rows from one column on. Sliding windows are left to the model's mask: nothing is trimmed."""

    def __init__(self, store: KvStore, layer: int, rows: slice, start: int, length: int) -> None:
        super().__init__()
        self._store, self._layer, self._rows = store, layer, rows
        self._start, self._length = start, length
        if length:
            self._show()

    def _show(self) -> None:
        """Expose the filled columns where stock layers do, for code from outside that reads them."""
        filled = slice(self._start, self._start + self._length)
        keys, values = self._store.keys_BHCD[self._layer], self._store.values_BHCD[self._layer]
        if keys is not None and values is not None:
            self.keys, self.values = keys[self._rows, :, filled], values[self._rows, :, filled]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the new keys and values; return all of them up to now."""
        end = self._length + key_states.shape[-2]
        if self._start + end > self._store.columns:
            raise RuntimeError(f"{self._start + end} columns written into a store of {self._store.columns}")
        columns = slice(self._start + self._length, self._start + end)
        self._store.write(self._layer, (self._rows, columns), key_states, value_states)
        self._length = end
        self._show()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return the number of columns filled so far."""
        return self._length


_FILL_TOKENS = 16  # documents are computed in whole multiples of this
_CHUNKS_AT_ONCE = 8  # chunks of tokens in one pass through the model: bounds activations

Key = tuple[bytes, bytes]
_Kept = OrderedDict[tuple[str, Key], "KeysValues"]


@dataclass(frozen=True, slots=True)
class KeysValues:
    """Keys and values `HND` of one document in every layer; None for layers without keys and values of their own."""

    keys: tuple[Tensor | None, ...]
    values: tuple[Tensor | None, ...]
    tokens: int


@dataclass(eq=False)
class KeptDocuments:
    """Keys and values of the most recently used documents, at most `most_tokens` tokens in all, arm by arm.

    `prefilled_tokens` counts the document tokens computed, `reused_tokens` those taken from here.
    """

    most_tokens: int
    arm: str = ""
    kept: _Kept = field(default_factory=OrderedDict, repr=False)
    prefilled_tokens: int = field(default=0, init=False)
    reused_tokens: int = field(default=0, init=False)

    def of(self, arm: str) -> KeptDocuments:
        """Return the documents of one arm, in the same memory; counts start at 0.

        `arm` says all that bits depend on besides weights, tokens and positions: arms never share a document.
        """
        return KeptDocuments(self.most_tokens, arm, self.kept)

    @property
    def tokens(self) -> int:
        """Tokens kept now, of all arms."""
        return sum(document.tokens for document in self.kept.values())

    def clear(self) -> None:
        """Free the memory of all arms."""
        self.kept.clear()

    def find(self, key: Key) -> KeysValues | None:
        """Return a document and mark it as used most recently; None if it is not kept."""
        document = self.kept.get((self.arm, key))
        if document is not None:
            self.kept.move_to_end((self.arm, key))
        return document

    def keep(self, key: Key, made: KeysValues) -> None:
        """Add a document; the least recently used ones make room. A document over the limit is not kept."""
        self.kept.pop((self.arm, key), None)
        if made.tokens > self.most_tokens:
            return
        self.kept[self.arm, key] = made
        while self.tokens > self.most_tokens:
            self.kept.popitem(last=False)


@dataclass(frozen=True, slots=True)
class RowPrefill:
    """Brings the documents of one request into a row of a store."""

    network: Network
    kept: KeptDocuments
    chunk_tokens: int

    def fill(self, request: Request, layout: Layout, store: KvStore, place: tuple[int, int]) -> Tensor | None:
        """Put every document of the request in `store`, token 0 at `place` (row, column).

        Return the logits `1V` after the last token if the prompt ends with a document, else None. A document that ends
        a prompt is computed afresh, for its logits.
        """
        ending = [row for row in layout.rows if row.block.stop == len(request.token_ids)]
        new: list[tuple[Key, Row]] = []
        for row in layout.rows:
            key = _key(request, layout, row)
            document = None if row in ending else self.kept.find(key)
            if document is None:
                new.append((key, row))
            else:
                _write(store, place, row, document)
                self.kept.reused_tokens += document.tokens
        last_1V = None
        for group in self._groups([pair for pair in new if pair[1] not in ending]):
            self._compute(request, layout, group, store, place)
        if ending:
            group = [pair for pair in new if pair[1] in ending]
            logits_1kV = self._compute(request, layout, group, store, place, keep=_FILL_TOKENS)
            tokens = len(ending[0].block)
            last_1V = logits_1kV[:, tokens - 1 - self._filled(tokens)]
        return last_1V

    def _groups(self, new: Sequence[tuple[Key, Row]]) -> Iterator[list[tuple[Key, Row]]]:
        """Yield groups of one filled length and kind, each for one pass; a repeated document is computed twice."""
        alike: dict[tuple[int, int], list[tuple[Key, Row]]] = {}
        for pair in new:
            alike.setdefault((self._filled(len(pair[1].block)), pair[1].head), []).append(pair)
        for both, group in alike.items():
            step = max(1, _CHUNKS_AT_ONCE * self.chunk_tokens // max(both))
            yield from (group[at : at + step] for at in range(0, len(group), step))

    def _filled(self, tokens: int) -> int:
        """Return the length that a document is filled up to, within its last chunk."""
        return min(_up(tokens, _FILL_TOKENS), _up(tokens, self.chunk_tokens))

    def _compute(
        self,
        request: Request,
        layout: Layout,
        group: Sequence[tuple[Key, Row]],
        store: KvStore,
        place: tuple[int, int],
        keep: int = 1,
    ) -> Tensor:
        """Compute, store and keep the documents of a group; return logits `BkV` of the last columns, with filling."""
        head = group[0][1].head
        filled = self._filled(len(group[0][1].block))
        device = self.network.device
        ids, positions = (
            on_device(_padded(of, [row for _, row in group], filled), device)
            for of in (request.token_ids, layout.positions)
        )
        buffers = KvStore(self.network.layers, len(group), head + filled)
        cache = buffers.row(0, 0, 0, rows=len(group))
        bounds = [0, *range(head + self.chunk_tokens, head + filled, self.chunk_tokens), head + filled]
        for start, stop in itertools.pairwise(bounds):  # the head is in the first chunk
            mask_BC = torch.ones(len(group), stop, dtype=torch.bool, device=device)
            at = positions[:, start:stop], mask_BC
            logits_BkV = self.network.logits(ids[:, start:stop], cache, at, keep)
        for i, (key, row) in enumerate(group):
            document = _cut(buffers, i, head, len(row.block))
            _write(store, place, row, document)
            self.kept.keep(key, document)
            self.kept.prefilled_tokens += document.tokens
        return logits_BkV


def _padded(of: Sequence[int], group: Sequence[Row], filled: int) -> list[list[int]]:
    """Return token ids or positions of rows; the last one is repeated up to `filled`."""
    lines = []
    for row in group:
        tokens = of[row.block.start : row.block.stop]
        lines.append([*of[: row.head], *tokens, *[tokens[-1]] * (filled - len(tokens))])
    return lines


def _key(request: Request, layout: Layout, row: Row) -> Key:
    """Return everything that a document's keys and values depend on besides the model: its row's ids and positions."""

    def pack(of: Sequence[int]) -> bytes:
        head = of[: row.head] or (-1,)
        return array("q", (*head, *of[row.block.start : row.block.stop])).tobytes()

    return pack(request.token_ids), pack(layout.positions)


def _cut(own: KvStore, i: int, head: int, tokens: int) -> KeysValues:
    """Return the document's columns of row i, copied out of the pass's buffers."""

    def columns(buffers: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        return tuple(None if buffer is None else buffer[i, :, head : head + tokens].clone() for buffer in buffers)

    return KeysValues(columns(own.keys_BHCD), columns(own.values_BHCD), tokens)


def _write(store: KvStore, place: tuple[int, int], row: Row, made: KeysValues) -> None:
    """Write the document's keys and values to its columns of the store."""
    columns = slice(place[1] + row.block.start, place[1] + row.block.stop)
    for layer, (keys, values) in enumerate(zip(made.keys, made.values, strict=True)):
        if keys is not None and values is not None:
            store.write(layer, (slice(place[0], place[0] + 1), columns), keys[None], values[None])


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
