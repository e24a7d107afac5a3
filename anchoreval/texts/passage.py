"""A long text in sentences, as a haystack: prefixes of any size, and ranges of sentences with known token counts."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Protocol

from anchoreval.texts.draft import Piece, Tally

Split = Callable[[str], Sequence[tuple[int, int]]]  # a text -> the character spans of its sentences
CHECKPOINT = 256  # characters between remembered token counts
# Number of sentences before a truncation that are split again: only they can differ from the untruncated split.
RESPLIT = 4


class Strip:
    """A text whose ranges become pieces without tokenising them again."""

    def __init__(self, text: str, tally: Tally) -> None:
        self.text = text
        self._tally = tally
        self._places: list[int] = []  # checkpoints: safe cuts, about CHECKPOINT characters apart
        self._totals: list[int] = []  # tokens from the first checkpoint to each
        self._known: dict[int, int] = {}

    def piece(self, start: int, end: int) -> Piece:
        """Return the characters start..end as a piece."""
        piece = Piece(self.text[start:end])
        if not self._tally.adds_up or end - start < CHECKPOINT:
            return piece
        cuts = self._tally.cut.search(self.text, start + 1, end), self._tally.last_cut.match(self.text, start + 1, end)
        if cuts[0] and cuts[1]:
            first, last = cuts[0].start(), cuts[1].end()
            piece.parts = (self.text[start:first], self._before(last) - self._before(first), self.text[last:end])
        return piece

    def _before(self, cut: int) -> int:
        """Return the tokens from the text's first checkpoint to a safe cut (negative if the cut comes first)."""
        if cut in self._known:
            return self._known[cut]

        # checkpoints up to the cut at least
        if not self._places:
            first = self._tally.cut.search(self.text)
            self._places, self._totals = [first.start() if first else cut], [0]
        while self._places[-1] + CHECKPOINT < cut:
            place = self._tally.cut.search(self.text, self._places[-1] + CHECKPOINT, cut)
            if place is None:
                break
            tokens = self._tally.following(self.text[self._places[-1] : place.start()])
            self._totals.append(self._totals[-1] + tokens)
            self._places.append(place.start())

        at = bisect_right(self._places, cut) - 1
        if at < 0:
            self._known[cut] = -self._tally.following(self.text[cut : self._places[0]])
        else:
            self._known[cut] = self._totals[at] + self._tally.following(self.text[self._places[at] : cut])
        return self._known[cut]


class Sentences:
    """The sentences of one prefix: the first `settled` of a shared strip, then the prefix's own `tail`."""

    def __init__(self, strip: Strip, spans: Sequence[tuple[int, int]], settled: int, tail: Sequence[str]) -> None:
        self._strip, self._spans, self._settled, self._tail = strip, spans, settled, tail

    def __len__(self) -> int:
        return self._settled + len(self._tail)

    def chunk(self, start: int, end: int) -> list[Piece]:
        """Return sentences start..end, joined by single spaces, as pieces; an empty range has no pieces."""
        pieces = []
        if start < min(end, self._settled):
            last = min(end, self._settled) - 1
            pieces.append(self._strip.piece(self._spans[start][0], self._spans[last][1]))
        if end > self._settled:
            late = self._tail[max(0, start - self._settled) : end - self._settled]
            if late:
                pieces.append(Piece((" " if pieces else "") + " ".join(late)))
        return pieces

    def boundary(self, share: float, inserted: int = 0, more: int = 0) -> int:
        """Return the index of the sentence that begins nearest to `share` of the characters.

        `inserted` characters of other texts stand before it, and `more` such characters in the whole text.
        """
        before = self._spans[self._settled - 1][1] + 1 if self._settled else 0  # characters before the tail
        late = list(accumulate((len(text) + 1 for text in self._tail), initial=before))
        total = late.pop() + more or 1
        aim, settled = share * total - inserted, self._settled
        first = bisect_right(self._spans, aim, 0, settled, key=lambda span: span[0]) - 1
        around = [place for place in (first, first + 1) if 0 <= place < settled]
        starts = [(self._spans[place][0], place) for place in around]
        starts += [(start, settled + at) for at, start in enumerate(late)]
        return nearest([(inserted + start, place) for start, place in starts], aim + inserted, total)


def nearest(starts: Iterable[tuple[int, int]], aim: float, total: int) -> int:
    """Return the place whose start is nearest to `aim`; starts in the same tenth of `total` as `aim` come first.

    `starts` are pairs (start, place).
    """
    tenth = int(10 * aim / total)
    return min(starts, key=lambda each: (int(10 * each[0] / total) != tenth, abs(each[0] - aim)))[1]


class Passage(Protocol):
    """A haystack of sentences, in units (words or sentences)."""

    def upto(self, units: int) -> Sentences: ...


def _joined(texts: Sequence[str], tally: Tally) -> tuple[Strip, list[tuple[int, int]]]:
    """Join the texts by single spaces; return the strip and the character span of each text."""
    ends = list(accumulate(len(text) + 1 for text in texts))
    return Strip(" ".join(texts), tally), [
        (end - 1 - len(text), end - 1) for text, end in zip(texts, ends, strict=True)
    ]


class Essay:
    """A published text, cut into prefixes by words (RULER's unit); each is split into sentences as nltk would.

    The text is repeated if a prefix needs more words. A prefix has the sentences of the longer text except for its last
    few, which are split again in the prefix.
    """

    def __init__(self, text: str, split: Split, tally: Tally) -> None:
        self._words = re.sub(r"\s+", " ", text).split(" ")
        self._split, self._tally = split, tally
        self._text = ""
        self._ends: list[int] = []  # character end of every word
        self._found: Sequence[tuple[int, int]] = ()  # spans in _text
        self._strip, self._spans = _joined([], tally)
        self._prefixes: dict[int, Sentences] = {}

    def upto(self, units: int) -> Sentences:
        """Return the sentences of the first `units` words."""
        if units > len(self._ends):
            repeats = -(-units // len(self._words))
            words = (self._words * repeats)[:units]
            self._text = " ".join(words)
            self._ends = [end - 1 for end in accumulate(len(word) + 1 for word in words)]
            self._found = self._spans_of(0, len(self._text))
            self._strip, self._spans = _joined([self._text[a:b] for a, b in self._found], self._tally)
            self._prefixes.clear()
        if units not in self._prefixes:
            end = self._ends[units - 1]
            whole = bisect_right(self._found, end, key=lambda span: span[1])
            settled = max(0, whole - RESPLIT)
            start = self._found[settled][0] if settled else 0
            tail = [self._text[a:b] for a, b in self._spans_of(start, end)]
            self._prefixes[units] = Sentences(self._strip, self._spans, settled, tail)
        return self._prefixes[units]

    def _spans_of(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the sentence spans of a stretch of the text, without white space at its ends."""
        stretch = self._text[start:end]
        start += len(stretch) - len(stretch.lstrip())
        return [(start + a, start + b) for a, b in self._split(stretch.strip())]


class Prose:
    """A generated text without end; the unit is the sentence."""

    def __init__(self, source: Iterator[str], tally: Tally) -> None:
        self._source, self._tally = source, tally
        self._texts: list[str] = []
        self._strip, self._spans = _joined([], tally)

    def upto(self, units: int) -> Sentences:
        """Return the first `units` sentences."""
        if units > len(self._texts):
            self._texts += islice(self._source, max(units, 2 * len(self._texts)) - len(self._texts))
            self._strip, self._spans = _joined(self._texts, self._tally)
        return Sentences(self._strip, self._spans, units, ())

    def words_of(self, sentence: int) -> int:
        """Return the number of words of a sentence."""
        self.upto(sentence + 1)
        return self._texts[sentence].count(" ") + 1

    def cut(self, units: int, words: int) -> Sentences:
        """Return the first `units` sentences and the first `words` words of the next."""
        if words == 0:
            return self.upto(units)
        self.upto(units + 1)
        return Sentences(self._strip, self._spans, units, [" ".join(self._texts[units].split(" ")[:words])])
