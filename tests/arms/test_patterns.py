"""Attention patterns: the masks written out, and rows that are the same function."""

from __future__ import annotations

import itertools

import pytest

from anchoreval.arms.blocks import blocks_of
from anchoreval.arms.patterns import PATTERNS, mask, parse_pattern, rows
from anchoreval.errors import UnknownName

# anchor, preamble of 1, documents of 2 and 2, query of 1, then one generated token
SEGMENTS, ROLES = (-1, 0, 1, 1, 2, 2, 3), ("preamble", "document", "document", "query")
WRITTEN = {
    "full": ["x......", "xx.....", "xxx....", "xxxx...", "xxxxx..", "xxxxxx.", "xxxxxxx"],
    "intra-doc": ["x......", ".x.....", "..x....", "..xx...", "....x..", "....xx.", "xxxxxxx"],
    "anchor": ["x......", "xx.....", "x.x....", "x.xx...", "x...x..", "x...xx.", "xxxxxxx"],
}


@pytest.mark.parametrize("pattern", sorted(WRITTEN))
def test_the_mask_is_the_one_written_out(pattern: str) -> None:
    want = [f"{line}." for line in WRITTEN[pattern]] + ["xxxxxxxx"]
    made = mask(blocks_of(SEGMENTS, ROLES), pattern, 8)
    assert ["".join(".x"[seen] for seen in line) for line in made] == want
    assert set(WRITTEN) == set(PATTERNS)


def test_a_window_counts_the_tokens_of_the_row() -> None:
    blocks = blocks_of((-1, 0, 0, 1, 1, 1, 2), ("document", "document", "query"))
    made = mask(blocks, "anchor", 8, window=2)
    want = ["x.......", "xx......", ".xx.....", "x..x....", "...xx...", "....xx..", ".....xx.", "......xx"]
    assert ["".join(".x"[seen] for seen in line) for line in made] == want


@pytest.mark.parametrize("pattern", ["anchor", "intra-doc"])
@pytest.mark.parametrize("window", [None, 2, 3])
def test_rows_see_what_the_mask_says(pattern: str, window: int | None) -> None:
    blocks = blocks_of(SEGMENTS, ROLES)
    made = mask(blocks, pattern, len(SEGMENTS), window)
    for row in rows(blocks, pattern):
        tokens = [*([0] if row.anchored else []), *range(row.block.start, row.block.stop)]
        for (i, q), (j, k) in itertools.product(enumerate(tokens), repeat=2):
            if q >= row.block.start:
                assert made[q][k] == (j <= i and (window is None or i - j < window))
        outside = set(range(len(SEGMENTS))) - set(tokens)
        assert not any(made[q][k] for q in tokens if q >= row.block.start for k in outside)


def test_one_document_behind_the_anchor_needs_no_rows() -> None:
    blocks = blocks_of((-1, 0, 0, 0, 1), ("document", "query"))
    assert rows(blocks, "anchor") == rows(blocks, "full") == ()
    assert [row.anchored for row in rows(blocks, "intra-doc")] == [False, False]
    assert rows(blocks_of((0, 0, 1), ("document", "query")), "intra-doc") == ()
    assert len(rows(blocks_of((-1, 0, 0, 1, 2), ("preamble", "document", "query")), "anchor")) == 3


def test_an_unknown_pattern_is_refused() -> None:
    assert parse_pattern("anchor") == "anchor"
    with pytest.raises(UnknownName, match="intra-doc"):
        parse_pattern("intradoc")


def test_a_line_of_a_haystack_is_a_document() -> None:
    assert blocks_of(SEGMENTS, ("preamble", "line", "line", "query")) == blocks_of(SEGMENTS, ROLES)
