"""Attention patterns: which tokens see which, beyond causality. Pure, no torch.

| pattern | the anchor sees | a document (or the preamble) sees | query, answer prefix, generated see |
|---|---|---|---|
| `full` | itself | everything before | everything before |
| `intra-doc` | itself | itself: no anchor, no preamble, no other document | everything before |
| `anchor` | itself | itself and the anchor: no preamble, no other document | everything before |

AnchorAttention (arXiv 2411.13476) is a rule for training; as a rule for inference, with a query that sees
everything, it is this project's extension.

Sliding windows: a window of w tokens counts the tokens of the row that a token is computed in. For a document that row
is [anchor; document] (`anchor`) or the document alone (`intra-doc`), so the anchor counts as the token just before the
document and leaves the window of a document longer than w; for the query the row is the whole prompt. One document is
then what the stock model computes. The alternatives (an anchor exempt from the window, distances in the whole prompt)
are not offered.

`sees` is the definition, pair by pair: the reference of the tests. What runs is `rows`: each document is an ordinary
causal row of its own, and their keys and values are then joined. That is the same function, because under the rule
nothing in a document depends on what is outside its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anchoreval.arms.blocks import Block
from anchoreval.errors import UnknownName

#: Name to rule in one sentence, for a run's header.
PATTERNS: dict[str, str] = {
    "full": "every token sees all tokens before it",
    "intra-doc": "a document sees itself only; anchor and preamble are documents of their own; query, answer prefix "
    "and generated tokens see everything before them",
    "anchor": "a document sees itself and the anchor token; the preamble is a document of its own; query, answer "
    "prefix and generated tokens see everything before them",
}
WINDOW_RULE = (
    "a sliding window counts the tokens of the row: anchor and document in a document, the prompt in the query"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One document as it is computed: its block, after the first token of the prompt if `anchored`."""

    block: Block
    anchored: bool


def parse_pattern(text: str) -> str:
    """Return the key of PATTERNS that `text` is, in any case; raise UnknownName for any other text."""
    text = text.lower()
    if text not in PATTERNS:
        raise UnknownName("attention pattern", text, PATTERNS)
    return text


def masks_documents(arm: str) -> bool:
    """Return whether an arm of this name, as records have it, keeps documents apart."""
    pattern, slash, _ = arm.partition("/")
    return bool(slash) and pattern in PATTERNS and pattern != "full"


def rows(blocks: Sequence[Block], pattern: str) -> tuple[Row, ...]:
    """Return the rows that documents and anchor are computed in, in order; none if the pattern is plain causality.

    It is plain causality for every prompt under `full`, and if each block sees all that comes before it: under
    `anchor`, a prompt with one document right after the anchor. Such a prompt runs as under `full`, so it gets the
    same bits.
    """
    if pattern == "full":
        return ()
    isolated = [block for block in blocks if block.kind != "query"]
    behind = 1 if pattern == "anchor" else 0
    if all(block.start <= (behind if block.kind == "document" else 0) for block in isolated):
        return ()
    return tuple(Row(block, pattern == "anchor" and block.kind == "document") for block in isolated)


def sees(blocks: Sequence[Block], pattern: str, query: int, key: int, window: int | None = None) -> bool:
    """Return whether token `query` sees token `key`; `window` is that of a sliding-window layer, else None.

    Tokens after the last block are generated: part of the query.
    """
    if key > query:
        return False
    query_block = next((block for block in blocks if block.start <= query < block.stop), None)
    if pattern == "full" or query_block is None or query_block.kind == "query":
        return window is None or query - key < window
    if key >= query_block.start:
        return window is None or query - key < window
    if pattern == "anchor" and key == 0:
        return window is None or query - query_block.start + 1 < window
    return False


def mask(blocks: Sequence[Block], pattern: str, tokens: int, window: int | None = None) -> list[list[bool]]:
    """Return `sees` as rows of booleans [tokens, tokens]: for tiny prompts and tests, quadratic in every way."""
    return [[sees(blocks, pattern, q, k, window) for k in range(tokens)] for q in range(tokens)]
