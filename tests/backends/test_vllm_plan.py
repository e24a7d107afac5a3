"""What goes to vLLM together, where its tokens stand, and what is made of its replies: without vLLM."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from checkpoints import prompts, request

from anchoreval.arms.layout import Arrangement, parse_positions
from anchoreval.backends.answering import TextStream
from anchoreval.backends.fake import Numbers
from anchoreval.backends.vllm.asks import Context, Reply, Row, judged
from anchoreval.backends.vllm.batches import Batching, Cache, batches, context_of, lots
from anchoreval.schema import ChoiceScore, Continuation, Request

CACHE = Cache(blocks=40, tokens=16)
CONTEXT = Context("salt")
ROLES = ("preamble", "document", "document", "query")


def laid_out(name: str, documents: tuple[int, int] = (5, 7), query: int = 4) -> Request:
    """The anchor, a preamble of three tokens, two documents and a query."""
    segments = (-1, *(0,) * 3, *(1,) * documents[0], *(2,) * documents[1], *(3,) * query)
    ids = tuple(range(10, 10 + len(segments)))
    return Request(name, ids, segments, ROLES, 4)


def row_of(asked: Request) -> Row:
    return Row(asked, TextStream(Numbers(), asked.token_ids), CONTEXT)


def blocks_kept(lot: list[Request]) -> int:
    """Distinct blocks that the asks of a batch write, counted one by one as vLLM's cache does."""
    kept: set[tuple[object, ...]] = set()
    own = itertools.count()
    for asked in lot:
        whole = len(asked.token_ids) // CACHE.tokens
        kept |= {asked.token_ids[: (i + 1) * CACHE.tokens] for i in range(whole)}
        tails = [1, asked.max_new_tokens, len(asked.reference_ids), *(len(c.token_ids) for c in asked.choices)]
        for tail in filter(None, tails):
            ends = CACHE.blocks_of(len(asked.token_ids) + tail) - whole
            kept |= {("own", next(own)) for _ in range(ends)}
    return len(kept)


def test_every_request_is_in_exactly_one_batch_and_neighbours_share_their_beginning() -> None:
    shared = prompts(3, 60, 60)
    asked = [request(f"{i}", shared[i % 3] + (20 + i,)) for i in range(30)]
    found = list(batches(asked, CACHE, 8))
    assert sorted(r.sample_id for lot in found for r in lot) == sorted(r.sample_id for r in asked)
    order = [r.token_ids[:60] for lot in found for r in lot]
    assert len(list(itertools.groupby(order))) == 3
    assert max(len(lot) for lot in found) <= 8


def test_what_a_batch_keeps_fits_into_the_cache() -> None:
    shared = prompts(2, 90, 90)
    asked = [
        replace(
            request(f"{i}", shared[i % 2] + prompts(1, 1, 60, seed=i)[0], 30, reference=(5,) * (i % 40)),
            choices=tuple(Continuation((7,) * (i % 20 + n), 1) for n in range(i % 4)),
        )
        for i in range(60)
    ]
    found = list(batches(asked, CACHE, 64))
    assert all(blocks_kept(lot) <= CACHE.blocks for lot in found if len(lot) > 1)


def test_a_shared_beginning_is_counted_once() -> None:
    context = prompts(1, 20 * CACHE.tokens, 20 * CACHE.tokens)[0]
    asked = [request(f"{i}", (*context, 5, i), max_new_tokens=1) for i in range(15)]
    # 20 blocks of context, and for each request one for its prompt's end and one for its answer
    assert [len(lot) for lot in batches(asked, CACHE, 64)] == [10, 5]


def test_a_request_too_big_for_the_cache_goes_alone_and_its_asks_in_several_lots() -> None:
    ids = prompts(1, 300, 300)[0]
    big = replace(request("big", ids), choices=tuple(Continuation((i, *range(100)), 101) for i in range(9)))
    assert [len(lot) for lot in batches([big, request("small", ids[:10])], CACHE, 64)] == [1, 1]
    asks = list(row_of(big).forced().values())
    found = list(lots(asks, CACHE))
    assert [ask for lot in found for ask in lot] == asks
    assert len(found) > 1


def test_contiguous_positions_need_no_plan_and_every_arm_has_a_salt_of_its_own() -> None:
    asked = laid_out("a")
    first, second = (context_of(asked, Arrangement(), arm) for arm in ("native", "fp32"))
    assert first.plan is second.plan is None
    assert first.salt != second.salt


@pytest.mark.parametrize(
    ("positions", "pattern", "plan"),
    [
        ("shift:9", "full", [9, 20, -1]),
        ("anchor-shift:9", "full", [0, 1, -1, 10, 3, -1, 13, 5, -1, 18, 7, -1, 25, 4, -1]),
        ("anchor-reset", "full", [0, 1, -1, 1, 3, -1, 1, 5, -1, 1, 7, -1, 8, 4, -1]),
        ("contiguous", "anchor", [0, 1, -2, 1, 3, 0, 4, 5, 1, 9, 7, 2, 16, 4, -1]),
        ("reset", "intra-doc", [0, 1, -2, 0, 3, 0, 0, 5, 1, 0, 7, 2, 7, 4, -1]),
    ],
)
def test_a_plan_says_position_length_and_document_of_every_run(positions: str, pattern: str, plan: list[int]) -> None:
    found = context_of(laid_out("a"), Arrangement(parse_positions(positions), pattern), "arm")
    assert found.plan == tuple(plan)


def test_positions_that_jump_within_a_block_are_two_runs() -> None:
    """Where the anchor is no segment of its own."""
    asked = replace(laid_out("a"), segment_ids=(0,) * 20)
    assert context_of(asked, Arrangement(parse_positions("anchor-shift:9")), "arm").plan == (0, 1, -1, 10, 19, -1)


def test_prompts_that_differ_in_their_query_alone_share_a_salt_and_others_do_not() -> None:
    arrangement = Arrangement(parse_positions("reset"))

    def salt(**changed: object) -> str:
        return context_of(laid_out("a", **changed), arrangement, "reset").salt  # type: ignore[arg-type]

    assert salt(query=4) == salt(query=9)
    assert salt() != salt(documents=(7, 5))
    assert salt() != context_of(laid_out("a"), arrangement, "fp32+reset").salt


def test_a_placebo_is_three_eighths_of_the_batches() -> None:
    assert Batching(2048, 64).placebo() == Batching(768, 24)
    assert Batching(3, 3).placebo() == Batching(1, 1)


def test_a_score_is_made_of_the_first_token_the_rows_between_and_the_last() -> None:
    choice = Continuation((5, 6, 7), 3)
    row = row_of(replace(request("a", (1, 2)), reference_ids=(8,), choices=(choice, Continuation((5, 6), 1))))
    assert [ask.next_ids for ask in row.behind()] == [(5, 8)]
    forced = row.forced()
    assert [(ask.token_ids, ask.next_ids, ask.rows_from) for ask in forced.values()] == [
        ((1, 2, 5, 6), (7,), 3),
        ((1, 2, 5), (6,), None),
    ]
    replies = [Reply(2, 7, {7: -3.0}, (ChoiceScore(-2.0, True),)), Reply(2, 6, {6: -0.5})]
    row.score([Reply(0, 5, {5: -1.0, 8: -9.0})], dict(zip(forced, replies, strict=True)))
    output = row.output(0.0)
    assert output.reference_logprob == -9.0 and output.token_logprobs == (-9.0,)
    assert output.choices == (ChoiceScore(-6.0, True), ChoiceScore(-0.5, True))


def test_a_text_is_one_ask_for_all_of_its_tokens() -> None:
    row = row_of(replace(request("a", (1,)), max_new_tokens=0, reference_ids=(5, 6, 7)))
    assert row.behind() == []
    ((text, ask),) = row.forced().items()
    assert (ask.token_ids, ask.next_ids, ask.rows_from) == ((1, 5, 6), (7,), 1)
    row.score([], {text: Reply(0, 9, {7: -3.0}, (ChoiceScore(-2.0, True), ChoiceScore(-0.5, False)))})
    assert row.generated(frozenset()) is None
    output = row.output(0.0)
    assert (output.token_logprobs, output.reference_logprob) == ((-2.0, -0.5, -3.0), -5.5)
    assert (output.finish, output.outcome) == ("scored", "answered")
    short = row_of(replace(request("a", (1,)), max_new_tokens=0, reference_ids=(5,)))
    assert [(ask.token_ids, ask.rows_from) for ask in short.forced().values()] == [((1,), None)]


def test_a_text_whose_log_probability_is_not_finite_is_lost() -> None:
    row = row_of(replace(request("a", (1,)), max_new_tokens=0, reference_ids=(5,)))
    row.score([], {Continuation((5,), 1): Reply(0, 5, {5: math.nan})})
    assert row.generated(frozenset()) is None and row.output(0.0).outcome == "not_finite"


def test_tokens_that_are_not_counted_have_no_rows() -> None:
    row = row_of(replace(request("a", (1, 2)), choices=(Continuation((5, 6, 7, 8), 2),)))
    assert [(ask.next_ids, ask.rows_from) for ask in (*row.behind(), *row.forced().values())] == [((), None), ((8,), 4)]


def test_rows_of_cached_tokens_are_not_used() -> None:
    ask = next(iter(row_of(replace(request("a", (1, 2)), reference_ids=(5, 6, 7))).forced().values()))
    assert ask.rows_from == 3
    assert Reply(2, 0, {}).usable(ask)
    assert not Reply(3, 0, {}).usable(ask)


def test_a_continuation_is_asked_for_once_and_one_without_counted_tokens_never() -> None:
    same = Continuation((5, 6), 2)
    row = row_of(replace(request("a", (1, 2)), reference_ids=(5, 6), choices=(same, same, Continuation((9,), 0))))
    assert list(row.forced()) == [same]
    row.score([Reply(0, 0, {5: -1.0})], {same: Reply(2, 0, {6: -1.0})})
    assert row.output(0.0).choices == (ChoiceScore(-2.0, False),) * 2 + (ChoiceScore(0.0, True),)


def test_a_choice_whose_log_probability_is_not_finite_ends_the_request_with_the_reason() -> None:
    row = row_of(replace(request("a", (1, 2)), choices=(Continuation((5,), 1),)))
    row.score([Reply(0, 5, {5: math.nan})], {})
    assert row.generated(frozenset()) is None
    assert (row.output(0.0).finish, row.output(0.0).outcome) == ("error", "not_finite")
    assert row.output(0.0).why


def test_of_equally_likely_tokens_the_lowest_id_is_the_greedy_one() -> None:
    equal = {4: -1.0, 9: -1.0, 2: -3.0}
    assert judged(4, -1.0, equal).greedy
    assert not judged(9, -1.0, equal).greedy
    assert not judged(2, -3.0, equal).greedy
