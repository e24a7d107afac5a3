"""Losses of tokens as rows: means of buckets, and intervals against simulated texts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from anchoreval.errors import AnchorEvalError
from anchoreval.reports.nll.rows import Losses, interval, rows_of, spans, table_of


def test_buckets_cover_every_position_once() -> None:
    assert spans(8192) == [
        (1, 64),
        (64, 128),
        (128, 256),
        (256, 512),
        (512, 1024),
        (1024, 2048),
        (2048, 4096),
        (4096, 8192),
    ]
    for length in (2, 3, 64, 65, 100, 1000):
        for buckets in (spans(length), spans(length, 1), spans(length, min(7, length - 1))):
            assert [p for first, end in buckets for p in range(first, end)] == list(range(1, length))
    with pytest.raises(AnchorEvalError, match="--buckets 9"):
        spans(9, 9)


def test_rows_hold_the_means_of_their_positions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(3, 1, (4, 199)), rng.normal(2, 1, (4, 199))
    b[:, 10] = a[:, 10]
    rows = {(r.first, r.last, r.arm, r.baseline): r for r in rows_of(Losses(200, {"a": a, "b": b}, (0, 0, 1, 2)))}
    assert rows[64, 127, "a", None].value == pytest.approx(a[:, 63:127].mean())
    assert rows[1, 63, "b", "a"].value == pytest.approx((b - a)[:, :63].mean())
    assert rows[1, 63, "b", "a"].differing == pytest.approx(62 / 63)
    assert rows[1, 199, "b", "a"].tokens == 4 * 199 and len(rows) == 4 * 3
    per_text = [(b - a)[0:2].mean(), (b - a)[2].mean(), (b - a)[3].mean()]
    row = rows[1, 199, "b", "a"]
    assert row.low < min(per_text) and max(per_text) < row.high  # three units: wider than their range


def test_equal_units_give_the_ordinary_t_interval() -> None:
    values = [1.0, 2.0, 4.0, 3.5, 0.5]
    low, high = interval([10 * value for value in values], [10] * 5)
    half = 2.7764451051977987 * np.std(values, ddof=1) / math.sqrt(5)  # t(0.975, 4), tables
    assert low == pytest.approx(np.mean(values) - half) and high == pytest.approx(np.mean(values) + half)


def test_one_text_counts_windows_and_one_window_counts_blocks() -> None:
    rng = np.random.default_rng(1)
    many, one = rng.normal(size=(5, 1023)), rng.normal(size=(1, 1023))
    assert [(r.unit, r.units) for r in rows_of(Losses(1024, {"a": many}, (0,) * 5), 1)] == [("window", 5)]
    blocks = {r.first: r for r in rows_of(Losses(1024, {"a": one}, (0,)))}
    assert (blocks[512].unit, blocks[512].units) == ("block", 4) and blocks[512].low is not None
    assert blocks[64].units == 1 and blocks[64].low is None


def test_the_same_bits_give_no_interval_and_say_so() -> None:
    a = np.random.default_rng(2).normal(size=(3, 99))
    rows = rows_of(Losses(100, {"a": a, "b": a.copy()}, (0, 1, 2)), 1)
    assert (rows[-1].value, rows[-1].low, rows[-1].differing) == (0.0, None, 0.0)
    assert "same bits" in table_of(rows)


def simulated(rng: np.random.Generator, windows: list[int], between: float) -> tuple[list[float], list[int]]:
    """Sums and counts of texts of so many windows of 20 tokens; `between` is the deviation between texts."""
    sums = []
    for count in windows:
        of_windows = between * rng.normal() + 0.3 * rng.normal(size=count)
        tokens = of_windows[:, None] + rng.standard_exponential((count, 20)) - 1
        sums.append(float(tokens.sum()))
    return sums, [20 * count for count in windows]


@pytest.mark.parametrize(
    ("windows", "least", "most"),
    [([3] * 6, 0.93, 0.97), ([2] * 30, 0.93, 0.97), ([1, 2, 3, 4, 6, 8, 1, 2], 0.93, 0.985)],
)
def test_intervals_over_texts_cover_the_truth_as_often_as_they_say(
    windows: list[int], least: float, most: float
) -> None:
    rng, hits, by_window = np.random.default_rng(3), 0, 0
    for _ in range(2000):
        low, high = interval(*simulated(rng, windows, 0.5))
        hits += low <= 0 <= high
    assert least <= hits / 2000 <= most
    for _ in range(500):  # windows taken for independent: far too narrow, so the units matter
        shared = np.repeat(0.5 * rng.normal(size=len(windows)), windows) + 0.3 * rng.normal(size=sum(windows))
        low, high = interval(shared.tolist(), [1] * len(shared))
        by_window += low <= 0 <= high
    assert by_window / 500 < least - 0.03
