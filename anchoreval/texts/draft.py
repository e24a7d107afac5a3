"""RULER's task texts and how they are filled.

Source: NVIDIA/RULER c3f5e3b, scripts/data/synthetic/constants.py (Apache-2.0). The parts are joined as upstream joins
them: `template = opening + task text + closing + answer prefix`. If one needle is asked for, upstream replaces words
("Some" by "A", "are" by "is") in the whole template, which would turn "people who care" in a checkpoint's system turn
into "people who cis". Here only the task's own text is edited. If a chat template has none of these words, as in
upstream's `base` and `meta-chat`, the bytes are upstream's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from anchoreval.schema import Json, Segment, Wrap
from anchoreval.texts.tally import Piece, Tally, joined_text

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

_FIELD = re.compile(r"\x00(\w+)\x00")


@dataclass(frozen=True, slots=True)
class Template:
    """The fixed text around the context: before it, after it, and the answer prefix, with fields to fill."""

    before: str
    after: str
    prefix: str

    @classmethod
    def of(cls, wrap: Wrap, text: str, prefix: str, singular: bool = False) -> Template:
        """Return a template whose fields are marked, so that braces in a chat template stay as they are."""
        marked = re.sub(r"{(\w+)}", "\x00\\1\x00", f"{text}\x01{prefix}")
        if singular:
            for old, new in (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer")):
                marked = marked.replace(old, new)
        body, tail = marked.split("\x01")
        before, after = body.split("\x00context\x00")
        return cls(wrap.opening + before, after + wrap.closing, tail)

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
        parts = [
            Segment("preamble", joined_text(self.opening)),
            Segment("document", joined_text(self.example)),
            Segment("preamble", joined_text(self.preamble)),
        ]
        for document in self.documents:
            text = joined_text(document)
            if self.lines:
                *ended, last = text.split("\n")
                equal = {line: Segment("line", f"{line}\n") for line in set(ended)}  # equal lines are one object
                parts += [*(equal[line] for line in ended), Segment("line", last)]
            else:
                parts.append(Segment("document", text))
        parts += [Segment("query", joined_text(self.query)), Segment("answer_prefix", self.prefix.text)]
        return tuple(part for part in parts if part.text)

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
