"""Put sentences between the lines of a haystack."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from anchoreval.texts.tally import Piece

Block = Callable[[int, int], list[Piece]]  # lines start..end, each with its newline; none for an empty range


def interleaved(sentences: Iterable[str], places: Iterable[int], block: Block) -> tuple[list[Piece], list[int], int]:
    """Put sentence i on a line of its own before line `places[i]`; the places ascend.

    Return the pieces up to the last sentence, the number of pieces before each sentence, and the next line's index.
    """
    pieces: list[Piece] = []
    marks, start = [], 0
    for place, sentence in zip(places, sentences, strict=True):
        pieces += block(start, place)
        marks.append(len(pieces))
        pieces.append(Piece(sentence + "\n"))
        start = place
    return pieces, marks, start
