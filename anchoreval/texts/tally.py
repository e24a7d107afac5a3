"""Exact token counts of texts that are joined from pieces; only the seams are tokenised again.

A piece is cut at its first and its last safe cut (see tokenizer/cuts.py) into head, body and tail. The body's count
is the same wherever the piece stands, so it is counted once. Each tail is counted together with the next head, once per
pair. With a tokenizer that has no safe cuts, every count tokenises the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from anchoreval.schema import Tokenizer

LEAD = "a"  # text in front of a text that is counted as a continuation
SEAMS_KEPT = 50_000


@dataclass(slots=True, eq=False)
class Piece:
    """A stretch of prompt. `parts` is (head, tokens of the body, tail) once it is counted.

    A piece without a safe cut is all head, and its tail is None. A piece belongs to one tally: do not count it with two
    tokenizers.
    """

    text: str
    parts: tuple[str, int, str | None] | None = None


def joined_text(pieces: Iterable[Piece]) -> str:
    """Return the text of joined pieces."""
    return "".join(piece.text for piece in pieces)


class Tally:
    """Counts the tokens of texts, whole or by their pieces, with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        after: frozenset[str] = getattr(tokenizer, "cut_after", frozenset())
        self.adds_up = LEAD in after
        self._after = after
        self._cut = re.compile(f"(?<=[{re.escape(''.join(sorted(after)))}]) (?=[!-~])") if self.adds_up else None
        self._lead = tokenizer.count(LEAD) if self.adds_up else 0
        self._seam = lru_cache(SEAMS_KEPT)(self.following)
        self._opening = lru_cache(1024)(tokenizer.count)

    def whole(self, text: str) -> int:
        """Return the tokens of `text`, tokenised at once."""
        return self._tokenizer.count(text)

    def following(self, text: str) -> int:
        """Return the tokens of `text` behind a safe cut (it must be empty or begin at one)."""
        return self._tokenizer.count(LEAD + text) - self._lead if text else 0

    def cuts_after(self, characters: str) -> bool:
        """Return True if a space is a safe cut after every one of these characters."""
        return self.adds_up and self._after.issuperset(characters)

    def first_cut(self, text: str, start: int, end: int) -> int | None:
        """Return the first safe cut of `text` in start..end, or None."""
        cut = self._cut.search(text, start, end) if self._cut else None
        return cut.start() if cut else None

    def last_cut(self, text: str, start: int, end: int) -> int:
        """Return the last safe cut of text[:end]; `start` is an earlier safe cut."""
        assert self._cut is not None
        at = text.rfind(" ", start, end)
        while at > start:
            if self._cut.match(text, at, end):
                return at
            at = text.rfind(" ", start, at)
        return start

    def parts(self, piece: Piece) -> tuple[str, int, str | None]:
        """Return head, tokens of the body and tail of a piece, and keep them on the piece."""
        if piece.parts is None:
            text, start = piece.text, self.first_cut(piece.text, 0, len(piece.text))
            if start is None:
                piece.parts = text, 0, None
            else:
                last = self.last_cut(text, start, len(text))
                piece.parts = text[:start], self.following(text[start:last]), text[last:]
        return piece.parts

    def count(self, pieces: Iterable[Piece]) -> int:
        """Return the tokens of the joined pieces: exactly those of the joined text."""
        if not self.adds_up:
            return self._tokenizer.count(joined_text(pieces))
        total, pending, seam = 0, "", self._opening
        for piece in pieces:
            head, body, tail = piece.parts or self.parts(piece)
            pending += head
            if tail is not None:
                total += (seam(pending) if pending else 0) + body
                pending, seam = tail, self._seam
        return total + (seam(pending) if pending else 0)

    def repeat(self, piece: Piece, times: int) -> Piece:
        """Return the piece `times` times in a row as one piece, counted without tokenising it again."""
        whole = Piece(piece.text * times)
        head, body, tail = self.parts(piece)
        if tail is not None and times > 0:
            whole.parts = (head, times * body + (times - 1) * self._seam(tail + head), tail)
        return whole


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
