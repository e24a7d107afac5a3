from __future__ import annotations

import itertools
import random

import pytest
from checkpoints import prompts, request

from anchoreval.backends.hf.batches import LEAST_ROWS, Bucket, Limits, plan, width

LIMITS = Limits(chunk_tokens=64, batch_tokens=4_096, rows=16)


def some(count: int) -> list:
    return [request(str(i), p, max_new_tokens=8 + 8 * (i % 2)) for i, p in enumerate(prompts(count, 2, 900))]


def test_every_request_is_planned_once_and_within_the_limits() -> None:
    requests = some(200)
    batches = list(plan(requests, LIMITS))
    assert sorted(r.sample_id for b in batches for r in b.requests) == sorted(r.sample_id for r in requests)
    for batch in batches:
        (bucket,) = batch.buckets
        assert len(batch.requests) <= LIMITS.rows
        assert bucket.solo or len(batch.requests) * bucket.columns <= LIMITS.batch_tokens + bucket.columns


def buckets(requests: list, limits: Limits = LIMITS, joint: bool = False) -> list[Bucket]:
    return [bucket for batch in plan(requests, limits, joint=joint) for bucket in batch.buckets]


@pytest.mark.parametrize("joint", [False, True])
def test_where_a_row_lies_does_not_depend_on_the_other_requests(joint: bool) -> None:
    requests = some(60)

    def places(chosen: list) -> dict[str, tuple[int, int, bool]]:
        return {r.sample_id: (b.start(r), b.base, b.solo) for b in buckets(chosen, joint=joint) for r in b.requests}

    everyone = places(requests)
    for seed in range(5):
        few = random.Random(seed).sample(requests, 7)
        assert places(few) == {r.sample_id: everyone[r.sample_id] for r in few}


def test_rows_that_share_a_batch_never_use_column_zero() -> None:
    batches = [b for b in buckets(some(100)) if not b.solo]
    assert batches
    assert all(b.start(r) > 0 for b in batches for r in b.requests)


def test_every_row_has_room_for_its_answer_and_its_reference() -> None:
    requests = [request(str(i), p, 5, reference=(7,) * (3 * i)) for i, p in enumerate(prompts(50, 2, 300))]
    for bucket in [*buckets(requests), *buckets(requests, joint=True)]:
        for r in bucket.requests:
            room = bucket.columns - bucket.start(r) - len(r.token_ids)
            assert room >= max(r.max_new_tokens, len(r.reference_ids))


def test_a_prompt_over_the_budget_runs_alone() -> None:
    long = [request(str(i), p) for i, p in enumerate(prompts(3, 2_000, 2_000))]
    assert [len(b.requests) for b in plan(long, LIMITS)] == [1, 1, 1]
    assert all(b.solo for b in buckets(long))


def test_batches_of_one_size_are_filled_evenly() -> None:
    same = [request(str(i), p) for i, p in enumerate(prompts(18, 100, 100))]
    assert [len(b.requests) for b in plan(same, LIMITS)] == [9, 9]


def test_prompts_with_a_common_beginning_are_neighbours() -> None:
    heads = prompts(3, 200, 200)
    asked = [request(f"{h}-{i}", heads[h] + (9 + i,) * 5) for i in range(4) for h in range(3)]
    order = [r.sample_id.split("-")[0] for b in plan(asked, LIMITS) for r in b.requests]
    assert sum(a != b for a, b in itertools.pairwise(order)) == 2


def test_only_whole_chunks_are_shared_and_one_token_is_left() -> None:
    first = tuple(range(10))
    assert Limits(4).shared(first, first) == 8
    assert Limits(4).shared(first[:8], first[:8]) == 4
    assert Limits(4).shared(first, (*first[:6], 99, 99)) == 4
    assert Limits(4).shared(first, (99, *first)) == 0
    assert Limits(10).shared(first, first) == 0


def test_batches_are_never_narrower_than_the_least_width() -> None:
    assert [width(n, solo=False) for n in (1, 3, 4, 9)] == [LEAST_ROWS, LEAST_ROWS, 4, 9]
    assert width(1, solo=True) == 1


def test_lengths_within_an_eighth_decode_together_where_chunks_do_not_matter() -> None:
    long = [request(str(i), p, 8) for i, p in enumerate(prompts(6, 7_700, 8_190))]
    few = Limits(pass_tokens=8_192, batch_tokens=65_536)
    assert [len(batch.requests) for batch in plan(long, few)] == [6]
    assert max(len(batch.requests) for batch in plan(long, Limits(batch_tokens=65_536))) < 6
    for tokens in (1, 127, 128, 129, 1_000, 4_097, 100_000):
        (bucket,) = buckets([request("one", (5,) * tokens, 8)], few)
        assert bucket.base - tokens < max(129, tokens / 8 + 1)


def test_rows_of_any_length_decode_together_where_their_stores_fit_the_limits() -> None:
    requests = some(200)
    batches = list(plan(requests, LIMITS, joint=True))
    assert sorted(r.sample_id for b in batches for r in b.requests) == sorted(r.sample_id for r in requests)
    several = [batch for batch in batches if not batch.buckets[0].solo]
    assert max(len(batch.buckets) for batch in several) > 1
    assert len(several) < len([batch for batch in plan(requests, LIMITS) if not batch.buckets[0].solo])
    for batch in several:
        assert len(batch.requests) <= LIMITS.rows
        assert batch.cells <= LIMITS.batch_tokens + max(bucket.columns for bucket in batch.buckets)
        assert batch.cells == sum(len(bucket.requests) * bucket.columns for bucket in batch.buckets)


def test_halves_of_a_batch_are_its_rows_on_the_same_columns() -> None:
    for joint in (False, True):
        batch = max(plan(some(40), LIMITS, joint=joint), key=lambda batch: len(batch.requests))
        halves = batch.halves()
        assert [r for half in halves for r in half.requests] == list(batch.requests)
        assert abs(len(halves[0].requests) - len(halves[1].requests)) <= 1
        starts = {r.sample_id: b.start(r) for b in batch.buckets for r in b.requests}
        assert starts == {r.sample_id: b.start(r) for half in halves for b in half.buckets for r in b.requests}
