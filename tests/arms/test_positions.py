"""Position schemes: where anchor, preamble, documents, query and what follows it stand."""

from __future__ import annotations

import pytest

from anchoreval.arms.layout import SCHEMES, parse_positions
from anchoreval.arms.patterns import blocks_of
from anchoreval.errors import AnchorEvalError, UnknownName, UnsupportedArm

# anchor, preamble of 2, documents of 3 and 2, query of 2, answer prefix of 1
ROLES = ("preamble", "document", "document", "query", "answer_prefix")
SEGMENTS = (-1, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4)


@pytest.mark.parametrize(
    ("scheme", "want"),
    [
        ("contiguous", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("shift:100", [100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110]),
        ("anchor-shift:100", [0, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110]),
        ("reset", [0, 0, 1, 0, 1, 2, 0, 1, 3, 4, 5]),
        ("anchor-reset", [0, 1, 2, 1, 2, 3, 1, 2, 4, 5, 6]),
    ],
)
def test_every_token_stands_where_the_scheme_says(scheme: str, want: list[int]) -> None:
    assert list(parse_positions(scheme).of(blocks_of(SEGMENTS, ROLES))) == want


def test_blocks_join_query_and_answer_prefix_and_keep_the_rest_apart() -> None:
    kinds = [(block.kind, block.start, block.stop) for block in blocks_of(SEGMENTS, ROLES)]
    assert kinds == [("anchor", 0, 1), ("document", 1, 3), ("document", 3, 6), ("document", 6, 8), ("query", 8, 11)]


def test_a_document_behind_a_query_restarts_and_the_next_query_goes_past_the_highest() -> None:
    blocks = blocks_of((-1, 0, 0, 0, 1, 2, 2, 3), ("document", "query", "document", "query"))
    assert list(parse_positions("anchor-reset").of(blocks)) == [0, 1, 2, 3, 4, 1, 2, 5]


def test_an_anchor_anywhere_but_in_front_is_an_error() -> None:
    with pytest.raises(ValueError, match="token 0"):
        blocks_of((0, -1, 0), ("document",))


@pytest.mark.parametrize("scheme", ["contiguous", "shift:7", "anchor-shift:4096", "reset", "anchor-reset"])
def test_a_scheme_prints_the_spelling_that_made_it(scheme: str) -> None:
    assert str(parse_positions(scheme)) == scheme
    assert parse_positions(scheme).rule
    assert {name.removesuffix(":M") for name in SCHEMES} >= {parse_positions(scheme).name}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("shift", UnsupportedArm),
        ("shift:", UnsupportedArm),
        ("shift:0", UnsupportedArm),
        ("shift:-4", UnsupportedArm),
        ("shift:16777217", UnsupportedArm),
        ("reset:4", UnknownName),
        ("backwards", UnknownName),
    ],
)
def test_what_is_no_scheme_is_one_line_that_says_so(text: str, error: type[AnchorEvalError]) -> None:
    with pytest.raises(error) as caught:
        parse_positions(text)
    assert text in str(caught.value) and "\n" not in str(caught.value)
