"""Keys and values in buffers that are allocated once, seen by stock models as a growing cache.

Shapes: B rows, H key/value heads, C columns, D head size; buffers are `BHCD`. A `transformers` DynamicLayer joins the
whole cache with each new token (`cache_utils.py:119`); here a token is written in place and a view is handed back. A
fork is two views of one row with different lengths: nothing is copied, the longer view simply writes further on.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


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
