"""A prompt as blocks, and attention patterns: which tokens see which, beyond causality. Pure, no torch.

| pattern | the anchor sees | a document (or the preamble) sees | query, answer prefix, generated see |
|---|---|---|---|
| `full` | itself | everything before | everything before |
| `intra-doc` | itself | itself: no anchor, no preamble, no other document | everything before |
| `anchor` | itself | itself and the anchor: no preamble, no other document | everything before |
| `sink-window:S:W` | every token sees the first S tokens and the last W, its own included | | |
| `star:B` | blocks of B tokens up to the query: a block sees itself and the first block | | everything before |

A prompt comes as blocks. Token 0 is the anchor if its segment id is -1. Every other run of tokens of one `preamble`,
`document` or `line` segment is a document block: the preamble (instructions before the documents, the opening of a chat
template) is thus a document of its own, and no document sees it. Neighbouring `query` and `answer_prefix` segments make
one query block. Generated and teacher-forced tokens continue the last block as part of the query.

AnchorAttention (arXiv 2411.13476) is a rule for training; as a rule for inference, with a query that sees
everything, it is this project's extension.

The last two are others' rules for inference, to compare with. Keys stay at their positions in the prompt under both:

* StreamingLLM (arXiv 2309.17453, mit-han-lab/streaming-llm@2e50426) holds S + R keys in a cache, so its next token sees
  those and itself: R is W - 1. It numbers positions anew inside the cache, by where a key stands there; here distances
  are those in the prompt. A key's own values were computed under the same rule, as in its cache.
* Star Attention (arXiv 2411.17116, NVIDIA/Star-Attention@c61059f) computes each block behind a copy of the first one,
  which has its own positions 0 to B - 1, and the block those of the prompt; the copy's keys are then dropped. The same
  here. Its blocks are cut from token 0 on, whatever documents are; its last block is filled up, here it is short.

Sliding windows: a window of w tokens counts the tokens of the row that a token is computed in. For a document that row
is [anchor; document] (`anchor`) or the document alone (`intra-doc`), so the anchor counts as the token just before the
document and leaves the window of a document longer than w; for the query the row is the whole prompt. One document is
then what the stock model computes. The alternatives (an anchor exempt from the window, distances in the whole prompt)
are not offered. Under `star` the row is [first block; block], under `sink-window` the prompt.

`sees` is the definition, pair by pair: the reference of the tests. What runs is `rows`: each document is an ordinary
causal row of its own, and their keys and values are then joined. That is the same function, because under the rule
nothing in a document depends on what is outside its row. Only `sink-window` is a mask, that of arms/patch_hf.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from anchoreval.errors import AnchorEvalError, UnknownName

Kind = Literal["anchor", "document", "query"]
ANCHOR_SEGMENT = -1
_DOCUMENTS = frozenset({"preamble", "document", "line"})
#: Name to rule in one sentence, for a run's header. These act on documents.
PATTERNS: dict[str, str] = {
    "full": "every token sees all tokens before it",
    "intra-doc": "a document sees itself only; anchor and preamble are documents of their own; query, answer prefix "
    "and generated tokens see everything before them",
    "anchor": "a document sees itself and the anchor token; the preamble is a document of its own; query, answer "
    "prefix and generated tokens see everything before them",
}
SINK_WINDOW, STAR = "sink-window", "star"
#: Those with numbers, which act on tokens wherever documents are; capitals are whole numbers.
NUMBERED: dict[str, str] = {
    f"{SINK_WINDOW}:S:W": "every token sees the first S tokens and the last W, its own included; keys stay at their "
    "positions in the prompt (StreamingLLM numbers them anew in its cache)",
    f"{STAR}:B": "what stands before the query is cut into blocks of B tokens; a block sees itself and the first one; "
    "query, answer prefix and generated tokens see everything before them; all tokens keep their positions",
}
WINDOW_RULE = (
    "a sliding window counts the tokens of the row: anchor and document in a document, the prompt in the query"
)


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens `start` to `stop` of a prompt."""

    kind: Kind
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Row:
    """One document as it is computed: its block, behind the first `head` tokens of the prompt."""

    block: Block
    head: int


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


def parse_pattern(text: str) -> str:
    """Return the pattern that `text` spells, in any case; raise UnknownName or AnchorEvalError for any other text."""
    name, *numbers = text.lower().split(":")
    known = {spelled.partition(":")[0]: spelled for spelled in (*PATTERNS, *NUMBERED)}
    if name not in known:
        raise UnknownName("attention pattern", text, known.values())
    letters = known[name].split(":")[1:]
    whole = len(numbers) == len(letters) and all(number.isascii() and number.isdigit() for number in numbers)
    if not whole or any(int(number) < (letter != "S") for number, letter in zip(numbers, letters, strict=True)):
        example = known[name].replace("S", "4").replace("W", "256").replace("B", "512")
        how = f"whole numbers above 0 (S may be 0), such as {example}" if letters else "no number"
        raise AnchorEvalError(f"attention {text!r}: {known[name]} takes {how}")
    return ":".join([name, *(str(int(number)) for number in numbers)])


def is_pattern(text: str) -> bool:
    """Return whether `text` spells a pattern as `parse_pattern` returns it."""
    try:
        return parse_pattern(text) == text
    except AnchorEvalError:
        return False


def numbers_of(pattern: str, name: str) -> tuple[int, ...]:
    """Return the numbers of a pattern with this name, none for a pattern of another name."""
    first, *numbers = pattern.split(":")
    return tuple(map(int, numbers)) if first == name else ()


def rule_of(pattern: str) -> str:
    """Return the rule of a pattern in one sentence, for a run's header."""
    name = pattern.partition(":")[0]
    spelled = next((spelled for spelled in NUMBERED if spelled.partition(":")[0] == name), None)
    return PATTERNS[pattern] if spelled is None else f"{spelled}: {NUMBERED[spelled]}"


def isolates(pattern: str) -> bool:
    """Return whether some tokens before the query cannot depend on others before them, and so run as `rows`."""
    return pattern != "full" and not numbers_of(pattern, SINK_WINDOW)


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
    if not isolates(pattern):
        return ()
    if size := numbers_of(pattern, STAR):
        (length,), context = size, context_of(blocks)
        if context <= 2 * length:  # the second block sees all that comes before it
            return ()
        starts = range(0, context, length)
        return tuple(Row(Block("document", at, min(at + length, context)), length if at else 0) for at in starts)
    isolated = [block for block in blocks if block.kind != "query"]
    behind = 1 if pattern == "anchor" else 0
    if all(block.start <= (behind if block.kind == "document" else 0) for block in isolated):
        return ()
    return tuple(Row(block, int(pattern == "anchor" and block.kind == "document")) for block in isolated)


def context_of(blocks: Sequence[Block]) -> int:
    """Return how many tokens stand before the first query block."""
    return next((block.start for block in blocks if block.kind == "query"), blocks[-1].stop)


def sees(blocks: Sequence[Block], pattern: str, query: int, key: int, window: int | None = None) -> bool:
    """Return whether token `query` sees token `key`; `window` is that of a sliding-window layer, else None.

    Tokens after the last block are generated: part of the query.
    """
    if key > query:
        return False
    near = window is None or query - key < window
    if numbers := numbers_of(pattern, SINK_WINDOW):
        sinks, last = numbers
        return near and (key < sinks or query - key < last)
    query_block = next((block for block in blocks if block.start <= query < block.stop), None)
    if pattern == "full" or query_block is None or query_block.kind == "query":
        return near
    if numbers := numbers_of(pattern, STAR):
        size = numbers[0]
        start = query // size * size
        if key >= start:
            return near
        return key < size and (window is None or query - start + size - key < window)
    if key >= query_block.start:
        return near
    if pattern == "anchor" and key == 0:
        return window is None or query - query_block.start + 1 < window
    return False


def mask(blocks: Sequence[Block], pattern: str, tokens: int, window: int | None = None) -> list[list[bool]]:
    """Return `sees` as rows of booleans [tokens, tokens]: for tiny prompts and tests, quadratic in every way."""
    return [[sees(blocks, pattern, q, k, window) for k in range(tokens)] for q in range(tokens)]
