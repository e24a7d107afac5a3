"""Lay a request out under an arm: the position of every token, and the rows that its documents are computed in.

A position scheme says which position id every token has. Pure, no torch.

| scheme | anchor | preamble, documents | query, answer prefix, generated |
|---|---|---|---|
| `contiguous` | 0 | 0, 1, 2, ... over the whole prompt | go on |
| `shift:M` | M | M, M + 1, ... over the whole prompt | go on |
| `anchor-shift:M` | 0 | M + 1, M + 2, ...: every token but the first is M further on | go on |
| `reset` | 0 | each restarts at 0 | from one past the highest position before them |
| `anchor-reset` | 0 | each restarts at 1, so 0 is the anchor's alone | from one past the highest position before them |

Under the two resets the preamble restarts like a document (see patterns.py), the query starts right after the
longest document, and its answer prefix follows without a gap. In every scheme, and with explicit arrays,
generated and teacher-forced tokens follow one after the other from the last prompt token's position.

A new scheme is a row of SCHEMES and of the table above, a branch of `PositionScheme.of`, and the row `positions` of
docs/arms.md; the properties `consecutive`, `restarts` and `needs_anchor` must be right for it. One with a number that
does not end in "shift" changes `__str__` and `rule` too. Two places outside assume that a prompt needs at most its
tokens plus `shift` positions, and change with a scheme that needs more: `_positions` in backends/vllm/backend.py, which
sizes the table of RoPE, and `beyond` in runs/nll.py. Backends lay prompts out by `of`; one that cannot compute a scheme
raises UnsupportedArm in its `under`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from anchoreval.arms.patterns import ANCHOR_SEGMENT, STAR, Block, Row, blocks_of, context_of, isolates, numbers_of, rows
from anchoreval.errors import UnknownName, UnsupportedArm
from anchoreval.schema import Request

#: Spelling to meaning, in one sentence. A number is spelled M in both, and `rule` puts it for every M of the sentence.
SCHEMES: dict[str, str] = {
    "contiguous": "0, 1, 2, ... over the whole prompt",
    "shift:M": "M, M + 1, ... over the whole prompt, the first token included",
    "anchor-shift:M": "the first token at 0, every other token M further on than contiguous",
    "reset": "anchor at 0; preamble and documents each restart at 0; the query starts one past the highest position "
    "before it",
    "anchor-reset": "anchor at 0; preamble and documents each restart at 1; the query starts one past the highest "
    "position before it",
}
GENERATED = "generated and teacher-forced tokens go on from the last prompt position"
_LARGEST_SHIFT = 1 << 24  # fp32 counts whole numbers up to here: a larger position is no longer exact
#: How isolated documents are computed: as causal rows of their own (hf/cache.py), or in one pass of FlexAttention.
Realisation = Literal["rows", "flex"]
#: Returns the explicit position ids of a request, one per prompt token.
Place = Callable[[Request], Sequence[int]]


@dataclass(frozen=True, slots=True)
class PositionScheme:
    """A scheme and its shift (0 if it has none)."""

    name: str
    shift: int = 0
    #: Whether each position is one more than the one before it, in every prompt.
    consecutive: bool = field(init=False, compare=False, repr=False)
    #: Whether each document begins anew.
    restarts: bool = field(init=False, compare=False, repr=False)
    #: Whether the first token is placed apart from the others.
    needs_anchor: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "consecutive", self.name in {"contiguous", "shift"})
        object.__setattr__(self, "restarts", self.name.endswith("reset"))
        object.__setattr__(self, "needs_anchor", self.name.startswith("anchor-"))

    def __str__(self) -> str:
        return f"{self.name}:{self.shift}" if self.name.endswith("shift") else self.name

    @property
    def rule(self) -> str:
        """The scheme in words, for a run's header."""
        spelling = f"{self.name}:M" if self.name.endswith("shift") else self.name
        return f"{SCHEMES[spelling].replace('M', str(self.shift)) if self.shift else SCHEMES[spelling]}; {GENERATED}"

    def needed(self, tokens: int) -> int:
        """Return how many positions a model needs for a prompt of so many tokens, at the most."""
        return tokens + self.shift

    def of(self, blocks: Sequence[Block]) -> tuple[int, ...]:
        """Return the position ids of a prompt, one per token."""
        if self.restarts:
            places, highest, first = list[int](), -1, 1 if self.name == "anchor-reset" else 0
            for block in blocks:  # the anchor at 0, each document from `first` on, a query after everything before it
                start = {"anchor": 0, "document": first, "query": highest + 1}[block.kind]
                highest = max(highest, start + len(block) - 1)
                places += range(start, start + len(block))
            return tuple(places)
        tokens = blocks[-1].stop if blocks else 0
        shifted = range(self.shift, self.shift + tokens)
        return (0, *shifted[1:]) if self.name == "anchor-shift" else tuple(shifted)


CONTIGUOUS = PositionScheme("contiguous")


def parse_positions(text: str) -> PositionScheme:
    """Return the scheme that `text` spells: a key of SCHEMES with a whole number for M.

    Raise UnknownName for another name, and UnsupportedArm if the shift is not a whole number from 1 to 2^24.
    """
    name, colon, number = text.partition(":")
    shifts = f"{name}:M" in SCHEMES
    if not shifts and (colon or name not in SCHEMES):
        raise UnknownName("position scheme", text, SCHEMES)
    if not shifts:
        return PositionScheme(name)
    if not (number.isascii() and number.isdigit() and 0 < int(number) <= _LARGEST_SHIFT):
        raise UnsupportedArm(f"positions {text!r}: {name} takes a whole number from 1 to {_LARGEST_SHIFT}, {name}:4096")
    return PositionScheme(name, int(number))


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions, one per prompt token; rows, empty if attention is plain causal; and blocks.

    `after` is the position of the first token after the prompt.
    """

    positions: tuple[int, ...]
    rows: tuple[Row, ...]
    blocks: tuple[Block, ...]
    after: int


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
            positions = self.scheme.of(whole)
            return Layout(positions, (), whole, positions[-1] + 1)
        blocks = blocks_of(request.segment_ids, request.roles)
        positions = self.scheme.of(blocks) if self.place is None else self._given(request)
        return Layout(positions, rows(blocks, self.pattern), blocks, positions[-1] + 1)

    def _given(self, request: Request) -> tuple[int, ...]:
        """Return the explicit positions of a request; raise UnsupportedArm unless there is one >= 0 per token."""
        assert self.place is not None
        positions = tuple(int(position) for position in self.place(request))
        if len(positions) != len(request.token_ids) or min(positions) < 0:
            text = f"positions 'explicit' are one per token and not negative, not {len(positions)} for"
            raise UnsupportedArm(f"{request.sample_id}: {text} {len(request.token_ids)} tokens")
        return positions
