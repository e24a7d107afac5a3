"""Documents under a mask, computed without a mask: independent causal rows whose keys and values are kept and joined.

Shapes: B rows, H key/value heads, N tokens of a document, C columns, D head size, V vocabulary.

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

import torch
from torch import Tensor

from anchoreval.arms.layout import Layout
from anchoreval.arms.patterns import Row
from anchoreval.backends.hf.cache import KvStore
from anchoreval.backends.hf.network import Network, on_device
from anchoreval.schema import Request

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
