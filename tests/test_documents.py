"""Documents of a fixed size: where they end, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anchoreval.documents import cut_documents, document_tokens
from anchoreval.schema import Request

ASKED = Request(
    "x", tuple(range(13)), (-1, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3, 3), ("preamble", "document", "document", "query"), 4
)


def test_long_documents_are_cut_and_everything_else_stays() -> None:
    cut = cut_documents(ASKED, 2)
    assert cut.segment_ids == (-1, 0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 5)
    assert cut.roles == ("preamble", "document", "document", "document", "document", "query")
    assert replace(cut, segment_ids=ASKED.segment_ids, roles=ASKED.roles) == ASKED
    assert (document_tokens(ASKED), document_tokens(cut)) == ([5, 2], [2, 2, 1, 2])


def test_documents_that_are_short_enough_and_no_size_leave_the_request_alone() -> None:
    assert cut_documents(ASKED, 5) == ASKED
    assert cut_documents(ASKED, None) is ASKED


def test_a_segment_without_tokens_is_left_out() -> None:
    gap = replace(ASKED, segment_ids=(-1, *[1] * 8, *[3] * 4))
    assert cut_documents(gap, 5).roles == ("document", "document", "query")


def test_a_document_of_no_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        cut_documents(ASKED, 0)
