from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anchoreval.backends.hf.cache import KvStore


def columns(rows: int, count: int, first: float) -> Tensor:
    """[rows, 2 heads, count, 3] with the column's number in every entry."""
    return (first + torch.arange(count, dtype=torch.float32))[None, None, :, None].expand(rows, 2, count, 3)


def test_written_columns_come_back_in_order_and_nothing_is_moved() -> None:
    store = KvStore(layers=1, rows=2, columns=10)
    cache = store.row(1, start=3, length=0)
    cache.update(columns(1, 2, 0), columns(1, 2, 50), 0)
    place = store.keys_BHCD[0].data_ptr()
    keys, values = cache.update(columns(1, 3, 2), columns(1, 3, 52), 0)
    assert keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 4]
    assert values[0, 1, :, 2].tolist() == [50, 51, 52, 53, 54]
    assert cache.get_seq_length() == 5
    assert store.keys_BHCD[0].data_ptr() == place
    assert store.keys_BHCD[0][0].abs().sum() == 0  # the other row is untouched


def test_a_fork_shares_the_prefix_and_grows_by_itself() -> None:
    store = KvStore(layers=1, rows=1, columns=10)
    store.row(0, 0, 0).update(columns(1, 4, 0), columns(1, 4, 0), 0)
    for first in (70, 80):
        keys, _ = store.row(0, 0, length=4).update(columns(1, 2, first), columns(1, 2, first), 0)
        assert keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, first, first + 1]


def test_what_a_row_holds_can_be_read_from_its_layer_before_and_behind_a_write() -> None:
    store = KvStore(layers=1, rows=1, columns=10)
    store.row(0, 2, 0).update(columns(1, 4, 0), columns(1, 4, 50), 0)
    cache = store.row(0, 2, length=4)
    assert cache.layers[0].keys[0, 0, :, 0].tolist() == [0, 1, 2, 3]
    cache.update(columns(1, 1, 4), columns(1, 1, 54), 0)
    assert cache.layers[0].values[0, 0, :, 0].tolist() == [50, 51, 52, 53, 54]


def test_a_write_past_the_last_column_is_an_error() -> None:
    cache = KvStore(layers=1, rows=1, columns=3).row(0, 1, 0)
    with pytest.raises(RuntimeError, match="4 columns"):
        cache.update(columns(1, 3, 0), columns(1, 3, 0), 0)


def test_a_prefix_is_copied_between_rows_also_where_they_overlap() -> None:
    store = KvStore(layers=1, rows=2, columns=8)
    store.row(0, 0, 0).update(columns(1, 5, 1), columns(1, 5, 1), 0)
    store.take((1, 2), store, (0, 0), 5)
    store.take((0, 1), store, (0, 0), 5)
    assert store.keys_BHCD[0][1, 0, 2:7, 0].tolist() == [1, 2, 3, 4, 5]
    assert store.values_BHCD[0][0, 0, 1:6, 0].tolist() == [1, 2, 3, 4, 5]


def test_a_row_moves_over_another_and_the_first_rows_are_held() -> None:
    store = KvStore(layers=1, rows=5, columns=2)
    keys = torch.arange(5.0)[:, None, None, None].expand(5, 2, 2, 3)
    store.row(0, 0, 0, rows=5).update(keys, -keys, 0)
    store.move(4, 1)
    store.move(0, 0)
    held = store.held(layer=0, rows=3, columns=1)
    assert [each[:, 0, 0, 0].tolist() for each in held] == [[0, 4, 2], [0, -4, -2]]
    assert held[0].shape == (3, 2, 1, 3)


def test_what_lies_left_of_a_row_is_cleared() -> None:
    store = KvStore(layers=1, rows=2, columns=4)
    nan = torch.full((2, 2, 4, 3), torch.nan)
    store.row(0, 0, 0, rows=2).update(nan, nan, 0)
    store.clear_left(1, 3)
    assert store.values_BHCD[0][1, :, :3].abs().sum() == 0
    assert store.values_BHCD[0][0].isnan().all()


def test_keys_and_values_may_differ_in_dtype_and_width() -> None:
    store = KvStore(layers=1, rows=1, columns=4)
    keys, values = store.row(0, 0, 0).update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 4, dtype=torch.bfloat16), 0)
    assert (keys.dtype, keys.shape[-1]) == (torch.float32, 8)
    assert (values.dtype, values.shape[-1]) == (torch.bfloat16, 4)
