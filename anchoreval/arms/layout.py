"""A request under an arm: the position of every token, and the rows that its documents are computed in.

Pure, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from anchoreval.arms.blocks import ANCHOR_SEGMENT, Block, blocks_of
from anchoreval.arms.patterns import Row, rows
from anchoreval.arms.positions import CONTIGUOUS, PositionScheme
from anchoreval.errors import UnsupportedArm
from anchoreval.schema import Request

#: How isolated documents are computed: causal rows of their own (hf/documents.py), or one pass of FlexAttention.
Realisation = Literal["rows", "flex"]
#: Explicit arrays: the position ids of a request, one per prompt token.
Place = Callable[[Request], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Layout:
    """`positions` has one entry per prompt token; `rows` is empty where attention is plain causal."""

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
        """Whether every prompt gets the positions and the attention that the model itself gives it."""
        return self._consecutive and self.scheme.shift == 0

    @property
    def _consecutive(self) -> bool:
        return self.place is None and self.pattern == "full" and self.scheme.consecutive

    def check(self, request: Request) -> None:
        """Raises UnsupportedArm, naming the field, for a request that cannot have a layout."""
        if self._consecutive:
            return
        tokens, segments = len(request.token_ids), len(request.segment_ids)
        if segments != tokens:
            text = f"positions and attention need a segment id per token, not {segments} for {tokens}"
            raise UnsupportedArm(f"{request.sample_id}: {text}")
        if self.pattern == "anchor" and request.segment_ids[0] != ANCHOR_SEGMENT:
            text = "attention 'anchor' needs a prompt whose first token is the anchor"
            raise UnsupportedArm(f"{request.sample_id}: {text}")
        if self.place is not None:
            self._given(request)

    def of(self, request: Request) -> Layout:
        """The layout of a request that `check` lets pass; of a text that is scored, that of all its tokens."""
        request = request.as_text() if request.scores_text else request
        if self._consecutive:
            whole = (Block("document", 0, len(request.token_ids)),)
            return Layout(self.scheme.of(whole), (), whole)
        blocks = blocks_of(request.segment_ids, request.roles)
        positions = self.scheme.of(blocks) if self.place is None else self._given(request)
        return Layout(positions, rows(blocks, self.pattern), blocks)

    def _given(self, request: Request) -> tuple[int, ...]:
        """The explicit positions of a request; UnsupportedArm where they are too few, too many or negative."""
        assert self.place is not None
        given = tuple(int(position) for position in self.place(request))
        if len(given) != len(request.token_ids) or min(given) < 0:
            text = f"positions 'explicit' are one per token and not negative, not {len(given)} for"
            raise UnsupportedArm(f"{request.sample_id}: {text} {len(request.token_ids)} tokens")
        return given
