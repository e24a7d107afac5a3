"""The attention variants that a model is trained under: two facts over one layout. Pure numpy, no torch.

The facts are whether attention is cut at documents, and which position ids. Documents lie one behind the other, each
behind its own copy of the anchor token:

    ids          A a b c d   A e f g   A h i j k l
    lengths      5           4         6
    full         0 1 2 3 4   5 6 7 8   9 10 11 12 13 14      attention is not cut
    intra-doc    0 1 2 3 4   5 6 7 8   9 10 11 12 13 14
    ...-reset    0 1 2 3 4   0 1 2 3   0 1 2 3 4 5
    anchor       0 1 2 3 4   0 5 6 7   0 8 9 10 11 12        copies take up no ids
    label        - - b c d   - - f g   - - i j k l           never an anchor, never a document's first token

A copy of the anchor sees itself alone, at position 0, so its keys and values are one function of the parameters in
each layer. `anchor` is therefore the mask of arXiv 2411.13476 with one shared anchor, gradients included, as long as no
loss is taken on the anchor's row. (The paper's own code lets copies take up ids, which is another function.) RoPE is
relative, so `intra-doc` and `intra-doc-reset` are one function in exact arithmetic.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anchoreval.errors import AnchorEvalError, UnknownName

#: A label that takes no part in the loss, as torch and transformers have it.
NO_TARGET = -100

Ids = NDArray[np.int64]
Start = Literal["anchor", "none"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to train: `cut` keeps attention inside documents, `positions` say where each document starts.

    `window`: where it lies in the window; `document`: at 0; `anchor`: copies of the anchor at 0, other tokens on over
    the window.
    """

    name: str
    cut: bool
    positions: Literal["window", "document", "anchor"]
    tagged: bool = False
    interleaved: bool = False


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("full", False, "window"),
        Variant("intra-doc", True, "window"),
        Variant("intra-doc-reset", True, "document"),
        Variant("anchor", True, "anchor"),
        Variant("anchor-tag", True, "anchor", tagged=True),
        Variant("intra-doc-interleaved", True, "window", interleaved=True),
        Variant("anchor-interleaved", True, "anchor", interleaved=True),
    )
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A document, or the part of it that lies in a window: token ids without an anchor.

    `tag` are the tokens of its source's name, which only `anchor-tag` lays out; `wanted` says of each token whether a
    loss is wanted on it, None for all.
    """

    ids: Ids
    tag: Ids | None = None
    wanted: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One window as it is fed: ids, positions and labels [L], and the lengths of what attention is cut into."""

    ids: Ids
    positions: Ids
    labels: Ids
    lengths: tuple[int, ...]


def variant_of(name: str) -> Variant:
    """Return the variant of a name; UnknownName gives the nearest."""
    if name not in VARIANTS:
        raise UnknownName("variant", name, VARIANTS)
    return VARIANTS[name]


def starts_of(variant: Variant, start: Start) -> int:
    """Return how many tokens stand before each document, tag aside; AnchorEvalError where the variant needs one."""
    if start == "none" and variant.positions == "anchor":
        raise AnchorEvalError(f"--document-start none: {variant.name} needs the anchor in front of each document")
    return 0 if start == "none" else 1


def lay(
    pieces: Sequence[Piece], variant: Variant, anchor: int, start: Start = "anchor", seed: Sequence[int] = (0,)
) -> Row:
    """Return the window of these documents; `seed` draws the chunks of the interleaved variants."""
    fronts = starts_of(variant, start)
    ids: list[Ids] = []
    labels: list[Ids] = []
    for piece in pieces:
        front = np.full(fronts, anchor, np.int64)
        tag = piece.tag if variant.tagged and piece.tag is not None else np.empty(0, np.int64)
        body = np.asarray(piece.ids, np.int64)
        label = body.copy()
        label[:1] = NO_TARGET
        if piece.wanted is not None:
            label[~piece.wanted] = NO_TARGET
        ids.append(np.concatenate([front, tag, body]))
        labels.append(np.concatenate([np.full(fronts + tag.size, NO_TARGET, np.int64), label]))
    lengths = tuple(each.size for each in ids)
    chunks = [(document, 0, length) for document, length in enumerate(lengths)]
    if variant.interleaved:
        chunks = _interleaved(lengths, random.Random(":".join(map(str, seed))), fronts)
        for document, first, _ in chunks:
            if first:
                labels[document][first] = NO_TARGET
    positions = _positions(chunks, lengths, variant, fronts)
    row_ids, row_labels = (np.concatenate(parts) if parts else np.empty(0, np.int64) for parts in (ids, labels))
    return Row(row_ids, positions, row_labels, lengths if variant.cut else (int(row_ids.size),))


#: (document, first token, behind the last token): parts of documents in the order of their position ids.
Chunk = tuple[int, int, int]
#: Of documents that are cut into 2 or 3 chunks (AnchorContext, train.py:split_shuffle_join), in tokens.
_SHORTEST, _LONGEST = 64, 2048
_EDGE = 0.2  # no cut lies nearer to either end, as a share of the document


def _interleaved(lengths: Sequence[int], rng: random.Random, fronts: int) -> list[Chunk]:
    """Chunks sorted by r0 + order * exp(r1), both drawn uniformly per document: order inside a document stays.

    As the paper's code draws them, but with every token of every document present once (theirs loses tokens).
    """
    keyed: list[tuple[float, Chunk]] = []
    for document, length in enumerate(lengths):
        cuts = [0, length]
        if _SHORTEST <= length - fronts <= _LONGEST:
            inner = [rng.uniform(_EDGE, 1 - _EDGE) for _ in range(rng.choice((1, 2)))]
            cuts = sorted({0, length, *(int(length * share) for share in inner)})
        first, spread = rng.random(), math.exp(rng.random())
        parts = itertools.pairwise(cuts)
        keyed += [(first + order * spread, (document, *part)) for order, part in enumerate(parts)]
    return [chunk for _, chunk in sorted(keyed, key=lambda entry: entry[0])]


def _positions(chunks: Sequence[Chunk], lengths: Sequence[int], variant: Variant, fronts: int) -> Ids:
    """Position ids [L] in the order of memory, drawn on over the chunks in theirs."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    positions = np.zeros(int(offsets[-1]), np.int64)
    following = 1 if variant.positions == "anchor" else 0
    for document, first, stop in chunks:
        at = int(offsets[document])
        if variant.positions == "anchor" and first == 0:
            first = fronts
        if variant.positions == "document":
            following = first
        positions[at + first : at + stop] = np.arange(following, following + stop - first)
        following += stop - first
    return positions


def documents_of(row: Any) -> list[Piece]:
    """Return the documents of one row of a user's data set.

    A row is a list of documents (each a list of token ids), or a mapping with `documents`, or with `input_ids` and,
    where it holds several documents, their lengths as `seq_lengths` (the packing of TRL).
    """
    if isinstance(row, Mapping):
        if "documents" in row:
            row = row["documents"]
        elif "input_ids" in row:
            ids = np.asarray(row["input_ids"], np.int64)
            lengths = [int(length) for length in row.get("seq_lengths", (ids.size,))]
            if sum(lengths) != ids.size:
                raise AnchorEvalError(f"seq_lengths add up to {sum(lengths)}, input_ids has {ids.size}")
            row = np.split(ids, np.cumsum(lengths)[:-1])
        else:
            names = ", ".join(map(str, row)) or "nothing"
            raise AnchorEvalError(f"a row of training data has documents, or input_ids; this one has {names}")
    return [each if isinstance(each, Piece) else Piece(np.asarray(each, np.int64)) for each in row]


def without_front(piece: Piece, anchor: int) -> Piece:
    """Return the piece without an anchor at its front, which some tokenizers put there.

    Raise AnchorEvalError for one anywhere else: it would be seen as one more start of a document.
    """
    ids = piece.ids
    if ids.size and ids[0] == anchor:
        piece = Piece(ids[1:], piece.tag, None if piece.wanted is None else piece.wanted[1:])
    if count := int((piece.ids == anchor).sum()):
        raise AnchorEvalError(f"the anchor token {anchor} stands {count} times inside a document")
    return piece
