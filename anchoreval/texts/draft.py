"""Prompts in pieces before they are known to fit: exact token counts of pieces, RULER's task texts, their filling.

Source of the texts: NVIDIA/RULER c3f5e3b, scripts/data/synthetic/constants.py (Apache-2.0). The parts are joined as
upstream joins them: `template = opening + task text + closing + answer prefix`. If one needle is asked for, upstream
replaces words ("Some" by "A", "are" by "is") in the whole template, which would turn "people who care" in a
checkpoint's system turn into "people who cis". Here only the task's own text is edited. If a chat template has none of
these words, as in upstream's `base` and `meta-chat`, the bytes are upstream's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from anchoreval.schema import Json, Role, Segment, Tokenizer, Wrap

NIAH = (
    "Some special magic {values} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {values} afterwards.\n{context}\n"
    "What are all the special magic {values} for {query} mentioned in the provided text?"
)
NIAH_PREFIX = " The special magic {values} for {query} mentioned in the provided text are"
VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above."
)
VT_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, "
    "{count} variables are assigned the value {query}, they are: "
)
CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?"
)
CWE_PREFIX = " Answer: The top 10 words that appear most often in the list are:"
FWE = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?"
)
FWE_PREFIX = " Answer: According to the coded text above, the three most frequently appeared words are:"
_QA_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
)
QA = f"{_QA_INSTRUCTION}The following are given documents.\n\n{{context}}\n\n{_QA_INSTRUCTION}Question: {{query}}"
QA_PREFIX = " Answer:"

LEAD = "a"  # text in front of a text that is counted as a continuation
SEAMS_KEPT = 50_000
_FIELD = re.compile(r"\x00(\w+)\x00")


@dataclass(slots=True, eq=False)
class Piece:
    """A stretch of prompt. `parts` is (head, tokens of the body, tail) once it is counted.

    A piece without a safe cut is all head, and its tail is None. A piece belongs to one tally: do not count it with two
    tokenizers.
    """

    text: str
    parts: tuple[str, int, str | None] | None = None


class Tally:
    """Counts exactly the tokens of texts that are joined from pieces; only the seams are tokenised again.

    A piece is cut at its first and its last safe cut (see tokenizer/cuts.py) into head, body and tail. The body's count
    is the same wherever the piece stands, so it is counted once. Each tail is counted together with the next head, once
    per pair. With a tokenizer that has no safe cuts, every count tokenises the whole text.

    `cut` finds the next safe cut of a text, and `last_cut` matches up to the last one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._after: frozenset[str] = getattr(tokenizer, "cut_after", frozenset())
        self.adds_up = LEAD in self._after
        cut = f"(?<=[{re.escape(''.join(sorted(self._after)))}])(?= [!-~])" if self.adds_up else "(?!)"
        self.cut, self.last_cut = re.compile(cut), re.compile(f"(?s:.*){cut}")
        self._lead = tokenizer.count(LEAD) if self.adds_up else 0
        self._seam = lru_cache(SEAMS_KEPT)(self.following)
        self._behind: Callable[[list[str]], int] | None = getattr(tokenizer, "count_behind", None)
        self._opening = lru_cache(1024)(tokenizer.count)

    def following(self, text: str) -> int:
        """Return the tokens of `text` behind a safe cut (it must be empty or begin at one)."""
        return self._tokenizer.count(LEAD + text) - self._lead if text else 0

    def cuts_after(self, characters: str) -> bool:
        """Return True if a space is a safe cut after every one of these characters."""
        return self.adds_up and self._after.issuperset(characters)

    def parts(self, piece: Piece) -> tuple[str, int, str | None]:
        """Return head, tokens of the body and tail of a piece, and keep them on the piece."""
        if piece.parts is None:
            text = piece.text
            first, last = self.cut.search(text), self.last_cut.match(text)
            if first is None or last is None:
                piece.parts = text, 0, None
            else:
                at, end = first.start(), last.end()
                piece.parts = text[:at], self.following(text[at:end]), text[end:]
        return piece.parts

    def count(self, pieces: Iterable[Piece]) -> int:
        """Return the tokens of the joined pieces: exactly those of the joined text."""
        if not self.adds_up:
            return self._tokenizer.count("".join(piece.text for piece in pieces))
        total, pending, seams = 0, "", list[str]()
        for piece in pieces:
            head, body, tail = piece.parts or self.parts(piece)
            pending += head
            if tail is not None:
                total += body
                seams.append(pending)
                pending = tail
        opening, *seams = [*seams, pending]
        total += self._opening(opening) if opening else 0
        return total + (self._behind(seams) if self._behind else sum(map(self._seam, seams)))

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


@dataclass(frozen=True, slots=True)
class Template:
    """The fixed text around the context: before it, after it, and the answer prefix, with fields to fill."""

    before: str
    after: str
    prefix: str
    singular: bool = False

    @classmethod
    def of(cls, wrap: Wrap, text: str, prefix: str, singular: bool = False) -> Template:
        """Return a template whose fields are marked, so that braces in a chat template stay as they are."""
        marked = re.sub(r"{(\w+)}", "\x00\\1\x00", f"{text}\x01{prefix}")
        if singular:
            for old, new in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
                marked = marked.replace(old, new)
        body, tail = marked.split("\x01")
        before, after = body.split("\x00context\x00")
        return cls(wrap.opening + before, after + wrap.closing, tail, singular)

    def fill(self, **fields: str) -> tuple[str, str, str]:
        """Return the filled text before the context, after it, and the answer prefix."""
        filled = []
        for text in (self.before, self.after, self.prefix):
            parts = _FIELD.split(text)  # fixed texts, and between them the names of fields
            parts[1::2] = [fields[name] for name in parts[1::2]]
            filled.append("".join(parts))
        return filled[0], filled[1], filled[2]


@dataclass(slots=True)
class Draft:
    """A prompt in pieces, before it is known to fit.

    `documents` are the document segments, each a list of pieces; with `lines`, each of their lines is a segment, its
    newline included. `opening` and the worked `example`, which is a document of its own, stand before the preamble.
    `marks` are the positions to report: (index of the document, number of its pieces before the position).
    """

    preamble: list[Piece]
    documents: list[list[Piece]]
    query: list[Piece]
    prefix: Piece
    references: tuple[str, ...]
    marks: list[tuple[int, int]] = field(default_factory=list)
    facts: dict[str, Json] = field(default_factory=dict)
    opening: list[Piece] = field(default_factory=list)
    example: list[Piece] = field(default_factory=list)
    lines: bool = False

    def pieces(self) -> list[Piece]:
        """Return every piece in order."""
        inside = [piece for document in self.documents for piece in document]
        return [*self.opening, *self.example, *self.preamble, *inside, *self.query, self.prefix]

    def segments(self) -> tuple[Segment, ...]:
        """Return the prompt's segments without empty ones."""
        parts: list[tuple[Role, list[Piece]]] = [("preamble", self.opening), ("document", self.example)]
        parts += [("preamble", self.preamble), *(("document", document) for document in self.documents)]
        parts += [("query", self.query), ("answer_prefix", [self.prefix])]
        segments: list[Segment] = []
        for role, pieces in parts:
            text = "".join(piece.text for piece in pieces)
            if role == "document" and self.lines and pieces is not self.example:
                *ended, last = text.split("\n")
                equal = {line: Segment("line", f"{line}\n") for line in set(ended)}  # equal lines are one object
                segments += [*(equal[line] for line in ended), Segment("line", last)]
            else:
                segments.append(Segment(role, text))
        return tuple(segment for segment in segments if segment.text)

    def positions(self, tally: Tally) -> dict[str, Json]:
        """Return `depths` (share of the document characters before each mark) and `token_positions` (tokens before)."""
        sizes = [[len(piece.text) for piece in document] for document in self.documents]
        total = sum(map(sum, sizes)) or 1
        depths: list[float] = []
        tokens: list[int] = []
        front = [*self.opening, *self.example, *self.preamble]
        for document, count in self.marks:
            before = sum(map(sum, sizes[:document])) + sum(sizes[document][:count])
            depths.append(round(before / total, 4))
            earlier = [piece for each in self.documents[:document] for piece in each]
            tokens.append(tally.count([*front, *earlier, *self.documents[document][:count]]))
        return {"depths": depths, "token_positions": tokens}
