"""Token ids of long texts from those of their words. A word stands between two safe cuts (cuts.py), so its ids are the
same wherever it stands, and it is tokenised once.

The prompts of a benchmark repeat their words: of 113,000 words in 128k tokens of generated prose 948 differ.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate, chain
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from tokenizers import Encoding

LEAD = "a"  # text in front of words that are tokenised as they stand behind a cut
MOST_CHARACTERS = 1 << 20  # of words whose ids are kept
Ids = tuple[int, ...]


class Words:
    """Encodes texts as `encode` does at once; `after` are the characters behind which a space is a safe cut.

    The first word of a text begins at no cut and is tokenised each time. Threads may share an object.
    """

    def __init__(self, encode: Callable[[str], Encoding], after: frozenset[str]) -> None:
        self._encode = encode
        self._cut = re.compile(f"(?<=[{re.escape(''.join(sorted(after)))}]) (?=[!-~])")
        self._ids: dict[str, Ids] = {}
        self._starts: dict[str, Ids] = {}  # the characters of a word at which its tokens begin
        self._held = 0
        self._lead = len(encode(LEAD).ids)

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        first, *words = self._cut.split(text)
        return len(self._encode(first).ids) + sum(map(len, self._encoded(words)))

    def count_behind(self, texts: Sequence[str]) -> int:
        """Return the number of tokens of texts that begin with the space of a cut and hold no other."""
        return sum(map(len, self._encoded([text[1:] for text in texts])))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        first, *words = self._cut.split(text)
        return list(chain(self._encode(first).ids, chain.from_iterable(self._encoded(words))))

    def encode_parts(self, parts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the token ids of the joined parts, and the number of tokens that begin in each part."""
        words, ends = self._across(parts)
        opening = self._encode(words[0])
        encoded = [tuple(opening.ids), *self._encoded(words[1:], {words[number] for number, _ in ends})]
        ids = list(chain.from_iterable(encoded))
        sizes, before, passed, total = list[int](), 0, 0, 0
        for number, characters in ends[:-1]:
            total += sum(map(len, encoded[passed:number]))
            passed = number
            starts = self._starts_of(words[number]) if number else [start for start, _ in opening.offsets]
            upto = total + bisect_left(starts, characters)
            sizes.append(upto - before)
            before = upto
        return ids, [*sizes, len(ids) - before]

    def starts(self, text: str, tokens: Sequence[int]) -> list[int]:
        """Return the characters of a text at which its tokens of these numbers begin; others have none."""
        words = self._cut.split(text)
        opening = self._encode(words[0])
        before = list(accumulate(map(len, [opening.ids, *self._encoded(words[1:])]), initial=0))
        places = list(accumulate((len(word) + 1 for word in words), initial=0))
        begins = []
        for token in (token for token in tokens if 0 <= token < before[-1]):
            number = bisect_right(before, token) - 1
            starts = self._starts_of(words[number]) if number else [start for start, _ in opening.offsets]
            begins.append(places[number] + starts[token - before[number]])
        return begins

    def _across(self, parts: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
        """Return the words of the joined parts, and for the end of each part the word and its character there."""
        words: list[str] = []
        ends: list[tuple[int, int]] = []
        last = ""
        for part in parts:
            head, *rest = self._cut.split(part)
            last += head
            if rest:
                words.append(last)
                last = rest.pop()
                words += rest
            ends.append((len(words), len(last)))
        return [*words, last], ends

    def _starts_of(self, word: str) -> Ids:
        """Return the characters of a word behind a cut at which its tokens begin."""
        known = self._starts.get(word)
        return known if known is not None else self._learn([word], [word])[1][word]

    def _encoded(self, words: Sequence[str], seamed: Collection[str] = ()) -> Sequence[Ids]:
        """Return the ids of words that stand behind cuts; of new words among `seamed` the starts are learned too."""
        encoded = [*map(self._ids.get, words)]
        if all(encoded):  # the usual case, at the speed of C
            return cast(list[Ids], encoded)
        missing = [*dict.fromkeys(word for word, ids in zip(words, encoded, strict=True) if ids is None)]
        fresh = self._learn(missing, seamed)[0] if missing else {}
        return [fresh[word] if ids is None else ids for word, ids in zip(words, encoded, strict=True)]

    def _learn(self, words: Sequence[str], seamed: Collection[str]) -> tuple[dict[str, Ids], dict[str, Ids]]:
        """Tokenise words, all in one text; return the ids of each, and the starts of those that may be at a seam."""
        whole = self._encode(" ".join([LEAD, *words]))
        ids, begins = whole.ids, [start for start, _ in whole.offsets]
        fresh, starts, place, first = dict[str, Ids](), dict[str, Ids](), len(LEAD) + 1, self._lead
        for word in words:
            end = place + len(word)
            last = bisect_left(begins, end, first)
            fresh[word] = tuple(ids[first:last])
            if "\n" in word or word in seamed:  # segments of a prompt mostly end with a line
                starts[word] = tuple(start - place for start in begins[first:last])
            place, first = end + 1, last
        self._held += place
        if self._held > MOST_CHARACTERS:
            self._ids, self._starts, self._held = {}, {}, place
        self._ids.update(fresh)
        self._starts.update(starts)
        return fresh, starts
