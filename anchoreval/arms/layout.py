"""Lay a request out under an arm: the position of every token, and the rows that its documents are computed in.

Pure, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from anchoreval.arms.blocks import ANCHOR_SEGMENT, Block, blocks_of
from anchoreval.arms.patterns import STAR, Row, context_of, isolates, numbers_of, rows
from anchoreval.arms.positions import CONTIGUOUS, PositionScheme
from anchoreval.errors import UnsupportedArm
from anchoreval.schema import Request

#: How isolated documents are computed: as causal rows of their own (hf/documents.py), or in one pass of FlexAttention.
Realisation = Literal["rows", "flex"]
#: Returns the explicit position ids of a request, one per prompt token.
Place = Callable[[Request], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions, one per prompt token; rows, empty if attention is plain causal; and blocks."""

    positions: tuple[int, ...]
    rows: tuple[Row, ...]
    blocks: tuple[Block, ...]

    @property
    def after(self) -> int:
        """The position of the first token after the prompt."""
        return self.positions[-1] + 1


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A position scheme (or explicit arrays), an attention pattern, and how documents are isolated under it."""

    scheme: PositionScheme = CONTIGUOUS
    pattern: str = "full"
    place: Place | None = None
    realisation: Realisation = "rows"

    @property
    def stock(self) -> bool:
        """Whether every prompt gets the positions and the attention that the model itself would give it."""
        return self._consecutive and self.scheme.shift == 0 and self.pattern == "full"

    @property
    def _consecutive(self) -> bool:
        return self.place is None and not isolates(self.pattern) and self.scheme.consecutive

    def check(self, request: Request) -> None:
        """Raise UnsupportedArm, with the field, for a request that cannot have a layout."""
        if self._consecutive:
            return
        tokens, segments = len(request.token_ids), len(request.segment_ids)
        if segments != tokens:
            text = f"positions and attention need a segment id per token, not {segments} for {tokens}"
            raise UnsupportedArm(f"{request.sample_id}: {text}")
        if self.pattern == "anchor" and request.segment_ids[0] != ANCHOR_SEGMENT:
            text = "attention 'anchor' needs a prompt whose first token is the anchor"
            raise UnsupportedArm(f"{request.sample_id}: {text}")
        if numbers_of(self.pattern, STAR):
            blocks = blocks_of(request.segment_ids, request.roles)
            if any(block.kind == "document" and block.start >= context_of(blocks) for block in blocks):
                text = f"attention {self.pattern!r} needs the query behind all documents"
                raise UnsupportedArm(f"{request.sample_id}: {text}")
        if self.place is not None:
            self._given(request)

    def of(self, request: Request) -> Layout:
        """Return the layout of a request that passes `check`; for a text that is scored, that of all its tokens."""
        request = request.as_text() if request.scores_text else request
        if self._consecutive:
            whole = (Block("document", 0, len(request.token_ids)),)
            return Layout(self.scheme.of(whole), (), whole)
        blocks = blocks_of(request.segment_ids, request.roles)
        positions = self.scheme.of(blocks) if self.place is None else self._given(request)
        return Layout(positions, rows(blocks, self.pattern), blocks)

    def _given(self, request: Request) -> tuple[int, ...]:
        """Return the explicit positions of a request; raise UnsupportedArm unless there is one >= 0 per token."""
        assert self.place is not None
        positions = tuple(int(position) for position in self.place(request))
        if len(positions) != len(request.token_ids) or min(positions) < 0:
            text = f"positions 'explicit' are one per token and not negative, not {len(positions)} for"
            raise UnsupportedArm(f"{request.sample_id}: {text} {len(request.token_ids)} tokens")
        return positions
