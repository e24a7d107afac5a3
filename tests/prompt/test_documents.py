"""Where documents begin and end: lines joined, documents cut, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anchoreval.prompt import cut_documents, document_tokens
from anchoreval.schema import Request

ASKED = Request(
    "x", tuple(range(13)), (-1, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3, 3), ("preamble", "document", "document", "query"), 4
)
LISTED = Request(
    "y",
    tuple(range(14)),
    (-1, 0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6, 7),
    ("document", "line", "line", "line", "document", "line", "line", "query"),
    4,
)


def test_long_documents_are_cut_and_everything_else_stays() -> None:
    cut = cut_documents(ASKED, 2)
    assert cut.segment_ids == (-1, 0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5)
    assert cut.roles == ("preamble", "document", "document", "document", "document", "query")
    assert replace(cut, segment_ids=ASKED.segment_ids, roles=ASKED.roles) == ASKED


def test_neighbouring_lines_are_joined_before_they_are_cut_and_documents_are_not() -> None:
    cut = cut_documents(LISTED, 4)
    assert cut.segment_ids == (-1, 0, 1, 1, 1, 1, 2, 2, 2, 3, 4, 4, 4, 5)
    assert cut.roles == (*["document"] * 5, "query")
    assert replace(cut, segment_ids=LISTED.segment_ids, roles=LISTED.roles) == LISTED


def test_documents_that_are_short_enough_leave_the_request_alone() -> None:
    assert cut_documents(ASKED, 5) == ASKED


def test_a_segment_without_tokens_is_left_out() -> None:
    gap = replace(ASKED, segment_ids=(-1, *[1] * 8, *[3] * 4))
    assert cut_documents(gap, 5).roles == ("document", "document", "query")


def test_a_document_of_no_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        cut_documents(ASKED, 0)


def test_documents_are_counted_with_their_smallest_median_and_largest() -> None:
    assert document_tokens(ASKED) == {"count": 2, "min": 2, "median": 2, "max": 5}
    assert document_tokens(LISTED) == {"count": 7, "min": 1, "median": 2, "max": 3}
    assert document_tokens(cut_documents(ASKED, 2)) == {"count": 4, "min": 1, "median": 2, "max": 2}
    assert document_tokens(replace(ASKED, roles=("preamble", "query", "query", "query"))) == {"count": 0}
