"""Attention patterns: the masks written out, and rows that are the same function."""

from __future__ import annotations

import itertools

import pytest

from anchoreval.arms.patterns import NUMBERED, PATTERNS, Block, blocks_of, mask, parse_pattern, rows, rule_of, sees
from anchoreval.errors import AnchorEvalError, UnknownName

# anchor, preamble of 1, documents of 2 and 2, query of 1, then one generated token
SEGMENTS, ROLES = (-1, 0, 1, 1, 2, 2, 3), ("preamble", "document", "document", "query")
WRITTEN = {
    "full": ["x......", "xx.....", "xxx....", "xxxx...", "xxxxx..", "xxxxxx.", "xxxxxxx"],
    "intra-doc": ["x......", ".x.....", "..x....", "..xx...", "....x..", "....xx.", "xxxxxxx"],
    "anchor": ["x......", "xx.....", "x.x....", "x.xx...", "x...x..", "x...xx.", "xxxxxxx"],
    "star:2": ["x......", "xx.....", "xxx....", "xxxx...", "xx..x..", "xx..xx.", "xxxxxxx"],
}
SINKS = {
    "sink-window:2:3": ["x.......", "xx......", "xxx.....", "xxxx....", "xxxxx...", "xx.xxx..", "xx..xxx.", "xx...xxx"],
    "sink-window:0:1": [f"{'.' * at}x{'.' * (7 - at)}" for at in range(8)],
}


@pytest.mark.parametrize("pattern", sorted(WRITTEN))
def test_the_mask_is_the_one_written_out(pattern: str) -> None:
    want = [f"{line}." for line in WRITTEN[pattern]] + ["xxxxxxxx"]
    made = mask(blocks_of(SEGMENTS, ROLES), pattern, 8)
    assert ["".join(".x"[seen] for seen in line) for line in made] == want
    assert set(WRITTEN) == {*PATTERNS, "star:2"}


@pytest.mark.parametrize("pattern", sorted(SINKS))
def test_sinks_and_window_are_counted_from_both_ends_in_generated_tokens_too(pattern: str) -> None:
    made = mask(blocks_of(SEGMENTS, ROLES), pattern, 8)
    assert ["".join(".x"[seen] for seen in line) for line in made] == SINKS[pattern]
    assert rows(blocks_of(SEGMENTS, ROLES), pattern) == ()


@pytest.mark.parametrize(("start", "recent"), [(4, 5), (0, 3), (2, 1)])
def test_sinks_and_window_are_the_keys_in_the_cache_of_streaming_llm(start: int, recent: int) -> None:
    """mit-han-lab/streaming-llm@2e50426: a token at a time, kv_cache.py:StartRecentKVCache after each."""
    cache: list[int] = []
    for token in range(20):
        cache.append(token)
        pattern = f"sink-window:{start}:{recent + 1}"
        assert [key for key in range(20) if sees((), pattern, token, key)] == cache
        if len(cache) > start + recent:
            cache = cache[:start] + cache[len(cache) - recent :]


@pytest.mark.parametrize("context", [5, 8, 9, 12, 14])
@pytest.mark.parametrize("window", [None, 2, 6])
def test_blocks_are_those_of_star_attention(context: int, window: int | None) -> None:
    """NVIDIA/Star-Attention@c61059f, model.py: each block behind the first one, query on all; positions are those
    of the prompt, so a row of the model's own causality is all there is to it."""
    size, tokens = 4, context + 3
    blocks = (Block("anchor", 0, 1), Block("document", 1, context), Block("query", context, context + 2))
    made = mask(blocks, f"star:{size}", tokens, window)
    for start in range(0, context, size):
        row = [*(range(size) if start else ()), *range(start, min(start + size, context))]
        for place, query in enumerate(row):
            if query >= start:
                near = row[: place + 1] if window is None else row[max(0, place + 1 - window) : place + 1]
                assert [key for key in range(tokens) if made[query][key]] == near
    assert made[context:] == mask(blocks, "full", tokens, window)[context:]
    assert [row.block.start for row in rows(blocks, "star:4")] == ([0, 4, 8, 12] if context > 8 else [])[
        : -(-context // 4)
    ]


def test_a_window_counts_the_tokens_of_the_row() -> None:
    blocks = blocks_of((-1, 0, 0, 1, 1, 1, 2), ("document", "document", "query"))
    made = mask(blocks, "anchor", 8, window=2)
    want = ["x.......", "xx......", ".xx.....", "x..x....", "...xx...", "....xx..", ".....xx.", "......xx"]
    assert ["".join(".x"[seen] for seen in line) for line in made] == want


@pytest.mark.parametrize("pattern", ["anchor", "intra-doc", "star:2"])
@pytest.mark.parametrize("window", [None, 2, 3])
def test_rows_see_what_the_mask_says(pattern: str, window: int | None) -> None:
    blocks = blocks_of(SEGMENTS, ROLES)
    made = mask(blocks, pattern, len(SEGMENTS), window)
    for row in rows(blocks, pattern):
        tokens = [*range(row.head), *range(row.block.start, row.block.stop)]
        for (i, q), (j, k) in itertools.product(enumerate(tokens), repeat=2):
            if q >= row.block.start:
                assert made[q][k] == (j <= i and (window is None or i - j < window))
        outside = set(range(len(SEGMENTS))) - set(tokens)
        assert not any(made[q][k] for q in tokens if q >= row.block.start for k in outside)


def test_one_document_behind_the_anchor_needs_no_rows() -> None:
    blocks = blocks_of((-1, 0, 0, 0, 1), ("document", "query"))
    assert rows(blocks, "anchor") == rows(blocks, "full") == ()
    assert [row.head for row in rows(blocks, "intra-doc")] == [0, 0]
    assert rows(blocks_of((0, 0, 1), ("document", "query")), "intra-doc") == ()
    assert len(rows(blocks_of((-1, 0, 0, 1, 2), ("preamble", "document", "query")), "anchor")) == 3


def test_an_unknown_pattern_is_refused() -> None:
    assert parse_pattern("anchor") == "anchor"
    with pytest.raises(UnknownName, match="intra-doc"):
        parse_pattern("intradoc")


def test_numbers_are_whole_and_a_rule_has_all_of_them() -> None:
    assert parse_pattern("Sink-Window:04:256") == "sink-window:4:256"
    assert parse_pattern("sink-window:0:1") == "sink-window:0:1"
    for text in ("star", "star:0", "star:-1", "star:1.5", "star:4:4", "sink-window:4", "sink-window:4:0", "anchor:3"):
        with pytest.raises(AnchorEvalError, match=f"attention '{text}'"):
            parse_pattern(text)
    assert [rule_of(spelled.replace("S:W", "4:8").replace("B", "2")).partition(":")[0] for spelled in NUMBERED] == [
        "sink-window",
        "star",
    ]


def test_a_line_of_a_haystack_is_a_document() -> None:
    assert blocks_of(SEGMENTS, ("preamble", "line", "line", "query")) == blocks_of(SEGMENTS, ROLES)
