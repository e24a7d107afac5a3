"""Sentences put between the lines of a haystack."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from anchoreval.texts.tally import Piece

Block = Callable[[int, int], list[Piece]]  # lines start..end, each with its newline; none for an empty range


def interleaved(sentences: Iterable[str], places: Iterable[int], block: Block) -> tuple[list[Piece], list[int], int]:
    """The pieces up to the last sentence, how many stand before each sentence, and the line that comes next.

    Sentence i stands on a line of its own before line `places[i]`; the places ascend.
    """
    pieces: list[Piece] = []
    marks, start = [], 0
    for place, sentence in zip(places, sentences, strict=True):
        pieces += block(start, place)
        marks.append(len(pieces))
        pieces.append(Piece(sentence + "\n"))
        start = place
    return pieces, marks, start
