"""A prompt as blocks: what position schemes and attention patterns act on. Pure, no torch.

Token 0 is the anchor if its segment id is -1. Every other run of tokens of one `preamble`, `document` or `line` segment
is a document block: the preamble (instructions before the documents, the opening of a chat template) is thus a document
of its own, and no document sees it. Neighbouring `query` and `answer_prefix` segments make one query block. Generated
and teacher-forced tokens continue the last block as part of the query.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["anchor", "document", "query"]
ANCHOR_SEGMENT = -1
_DOCUMENTS = frozenset({"preamble", "document", "line"})


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens `start` to `stop` of a prompt."""

    kind: Kind
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def blocks_of(segment_ids: Sequence[int], roles: Sequence[str]) -> tuple[Block, ...]:
    """Return the blocks of a prompt in order, every token in exactly one. Only the first token can be an anchor.

    `segment_ids[i]` is the index into `roles` of the segment of token i, -1 for the anchor.
    """
    blocks: list[Block] = []
    start = 0
    for segment, run in itertools.groupby(segment_ids):
        stop = start + sum(1 for _ in run)
        kind: Kind = "document"
        if segment == ANCHOR_SEGMENT:
            if start or stop > 1:
                raise ValueError(f"segment id -1 is the anchor's, token 0; it stands on tokens {start} to {stop - 1}")
            kind = "anchor"
        elif roles[segment] not in _DOCUMENTS:
            kind = "query"
        if kind == "query" and blocks and blocks[-1].kind == "query":
            start = blocks.pop().start
        blocks.append(Block(kind, start, stop))
        start = stop
    return tuple(blocks)
