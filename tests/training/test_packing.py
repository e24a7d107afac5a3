"""Windows: nothing lost, nothing doubled, the same on every machine; steps of balanced windows; kept documents."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anchoreval.errors import LengthError
from anchoreval.training.packing import mixed, order_of, permutation, upsampled, windows_needed, windows_of


@st.composite
def packings(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Lengths of documents, what stands in front of each, and a window that holds three tokens of any."""
    size = draw(st.integers(5, 200))
    lengths = draw(st.lists(st.integers(0, 9) | st.integers(2, 3 * size), min_size=1, max_size=40))
    assume(max(lengths) >= 2)
    fronts = draw(st.lists(st.integers(0, min(3, size - 4)), min_size=len(lengths), max_size=len(lengths)))
    return np.array(lengths), np.array(fronts), size


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(packings(), st.integers(0, 2**31))
def test_every_token_of_every_document_is_in_one_window_and_in_order(
    packing: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    lengths, fronts, size = packing
    windows = windows_of(lengths, fronts, size, seed=seed)
    pieces = [piece for window in range(len(windows)) for piece in windows.pieces(window)]
    for document, length in enumerate(lengths):
        own = [(first, stop) for number, first, stop in pieces if number == document]
        if length < 2:
            assert not own
            continue
        assert own[0][0] == 0 and own[-1][1] == length
        assert all(stop == first for (_, stop), (first, _) in pairwise(own))
        assert all(stop - first >= 2 for first, stop in own)  # a piece of one token has no target
    for window in range(len(windows)):
        used = sum(fronts[number] + stop - first for number, first, stop in windows.pieces(window))
        assert used <= size
        last = window == len(windows) - 1
        assert last or used >= size - int(fronts.max()) - 3  # a few tokens short at the most


def test_windows_begin_the_same_however_many_are_asked_for() -> None:
    lengths = np.array([random.Random(1).randint(2, 300) for _ in range(500)])
    whole = windows_of(lengths, 1, 128, seed=3, epochs=None, count=900)
    few = windows_of(lengths, 1, 128, seed=3, epochs=None, count=40)
    assert (len(whole), len(few)) == (900, 40)
    assert all(whole.pieces(at) == few.pieces(at) for at in range(40))
    one_pass = windows_of(lengths, 1, 128, seed=3)
    assert all(whole.pieces(at) == one_pass.pieces(at) for at in range(len(one_pass) - 1))


def test_windows_are_the_same_bytes_on_every_machine() -> None:
    lengths = np.arange(2, 700) % 173 + 2
    windows = windows_of(lengths, 1, 256, seed=5)
    order = order_of(windows.costs(1), 4, 5)
    content = b"".join(column.astype("<i8").tobytes() for column in (windows.document, windows.stop, order))
    assert hashlib.sha256(content).hexdigest()[:16] == "60127a9bcd5f37d1"


def test_another_seed_and_another_pass_are_other_orders() -> None:
    orders = [permutation(50, *seed).tolist() for seed in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders) and len({tuple(order) for order in orders}) == 3
    assert len(set(mixed(np.arange(100_000), 7).tolist())) == 100_000


def test_every_window_of_whole_buffers_is_taken_once_and_steps_are_balanced() -> None:
    rng = random.Random(2)
    costs = np.array([rng.lognormvariate(0, 1.5) * 1e6 for _ in range(windows_needed(20, 8))]).astype(np.int64)
    order = order_of(costs, 8, seed=1)
    assert sorted(order.tolist()) == list(range(192))
    sorted_, unsorted = (
        float((each.reshape(-1, 8).max(1) / each.reshape(-1, 8).mean(1)).mean()) for each in (costs[order], costs)
    )
    assert sorted_ < 1.6 < 2.0 < unsorted
    assert (order_of(costs[:64], 8, seed=1) == order[:64]).all()


def test_a_window_too_short_for_any_document_is_refused_with_the_shortest() -> None:
    with pytest.raises(LengthError, match="--length 4 is too short") as error:
        windows_of(np.array([10, 20]), 1, 4, seed=0)
    assert error.value.smallest == 5 and len(windows_of(np.array([10, 20]), 1, 5, seed=0))
    with pytest.raises(LengthError, match="no document of two or more tokens"):
        windows_of(np.array([1, 0]), 1, 64, seed=0)


def test_upsampling_thins_short_documents_and_keeps_the_shares_of_sources() -> None:
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(100, 1000, 20_000), rng.integers(5000, 9000, 4_000)])
    sources = np.concatenate([rng.integers(0, 2, 20_000), np.ones(4_000, np.int64)])  # source 0 has short ones alone
    hashes = mixed(np.arange(len(lengths)), 9)
    kept = upsampled(lengths, sources, hashes, 4096, 0.1)
    shares = [np.bincount(sources[rows], lengths[rows]) / lengths[rows].sum() for rows in (slice(None), kept)]
    assert np.abs(shares[0] - shares[1]).max() < 0.02
    assert (kept & (sources == 0)).sum() == pytest.approx(0.1 * (sources == 0).sum(), rel=0.1)
    long, short = ((kept & chosen & (sources == 1)).sum() for chosen in (lengths >= 4096, lengths < 4096))
    assert long / (lengths >= 4096).sum() > 5 * short / ((lengths < 4096) & (sources == 1)).sum()
    assert (upsampled(lengths, sources, hashes, 4096, 0.1) == kept).all()
