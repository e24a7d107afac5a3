"""Position schemes: which position id every token of a prompt has. Pure, no torch.

| scheme | anchor | preamble, documents | query, answer prefix, generated |
|---|---|---|---|
| `contiguous` | 0 | 0, 1, 2, ... over the whole prompt | go on |
| `shift:M` | M | M, M + 1, ... over the whole prompt | go on |
| `anchor-shift:M` | 0 | M + 1, M + 2, ...: every token but the first is M further on | go on |
| `reset` | 0 | each restarts at 0 | from one past the highest position before them |
| `anchor-reset` | 0 | each restarts at 1, so 0 is the anchor's alone | from one past the highest position before them |

Under the two resets the preamble restarts like a document (see blocks.py), the query starts right after the
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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anchoreval.arms.blocks import Block
from anchoreval.errors import UnknownName, UnsupportedArm

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


@dataclass(frozen=True, slots=True)
class PositionScheme:
    """A scheme and its shift (0 if it has none)."""

    name: str
    shift: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.shift}" if self.name.endswith("shift") else self.name

    @property
    def rule(self) -> str:
        """The scheme in words, for a run's header."""
        spelling = f"{self.name}:M" if self.name.endswith("shift") else self.name
        return f"{SCHEMES[spelling].replace('M', str(self.shift)) if self.shift else SCHEMES[spelling]}; {GENERATED}"

    @property
    def consecutive(self) -> bool:
        """Whether each position is one more than the one before it, in every prompt."""
        return self.name in {"contiguous", "shift"}

    @property
    def restarts(self) -> bool:
        """Whether each document begins anew."""
        return self.name.endswith("reset")

    @property
    def needs_anchor(self) -> bool:
        """Whether the first token is placed apart from the others."""
        return self.name.startswith("anchor-")

    def needed(self, tokens: int) -> int:
        """Return how many positions a model needs for a prompt of so many tokens, at the most."""
        return tokens + self.shift

    def of(self, blocks: Sequence[Block]) -> tuple[int, ...]:
        """Return the position ids of a prompt, one per token."""
        if self.restarts:
            return tuple(_restarted(blocks, 1 if self.name == "anchor-reset" else 0))
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


def _restarted(blocks: Sequence[Block], first: int) -> Iterator[int]:
    """Yield positions: the anchor at 0, each document from `first` on, a query after everything before it."""
    highest = -1
    for block in blocks:
        start = {"anchor": 0, "document": first, "query": highest + 1}[block.kind]
        highest = max(highest, start + len(block) - 1)
        yield from range(start, start + len(block))
