"""Word lists: the package's own text files, and RULER's from `wonderwords`, without its list of 6.2 million pairs."""

from __future__ import annotations

import importlib.util
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Literal, overload

from anchoreval.errors import SourceError

WordLists = Literal["3.0.1", "2.2.0"]
DROPPED_IN_3 = ("abortion", "brocolli", "idiot", "pray")  # nouns of 2.2.0 that 3.0.1 no longer has
FINGERPRINT = {"nounlist.txt": 6782, "adjectivelist.txt": 912, "verblist.txt": 1042}  # lines of 3.0.1


def read_lists(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the entries of each section of a text file in their order.

    A line `[section]` begins a section, and each other line is an entry; empty lines and those that begin with `#` are
    left out.
    """
    lists: dict[str, list[str]] = {}
    entries: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            entries = lists.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            entries.append(line)
    return {name: tuple(entries) for name, entries in lists.items()}


def word_list(name: str) -> list[str]:
    """Return the lines of one of wonderwords' files as RULER reads them; raise SourceError for another version."""
    spec = importlib.util.find_spec("wonderwords")
    if spec is None or spec.origin is None:
        raise SourceError("the word lists need the package wonderwords==3.0.1, which is not installed")
    lines = (Path(spec.origin).parent / "assets" / name).read_text(encoding="utf-8").splitlines()
    if len(lines) != FINGERPRINT[name]:
        raise SourceError(
            f"wonderwords' {name} has {len(lines)} lines, not {FINGERPRINT[name]}: install wonderwords==3.0.1"
        )
    return [line.rstrip() for line in lines]


@lru_cache
def nouns(version: WordLists) -> tuple[str, ...]:
    """Return the nouns; version 2.2.0 is that of RULER's published results."""
    return (*word_list("nounlist.txt"), *(DROPPED_IN_3 if version == "2.2.0" else ()))


@lru_cache
def distinct_words(version: WordLists) -> tuple[str, ...]:
    """Return nouns, adjectives and verbs, sorted, each once: the words of the common-words task."""
    return tuple(sorted({*nouns(version), *word_list("adjectivelist.txt"), *word_list("verblist.txt")}))


@lru_cache
def pairs(version: WordLists) -> AdjectiveNouns:
    """Return every "adjective-noun" in sorted order, by index."""
    return AdjectiveNouns(word_list("adjectivelist.txt"), nouns(version))


class AdjectiveNouns(Sequence[str]):
    """`sorted({f"{a}-{n}"})` as a sequence that makes each entry on access.

    In sorted order the entries of one adjective stand together in the order of the nouns, unless one adjective begins
    with another and a hyphen ("high", "high-pitched"): the entries of such a group are stored. `random.choice` needs
    only `len` and indexing by an integer.
    """

    def __init__(self, adjectives: Sequence[str], nouns: Sequence[str]) -> None:
        self._nouns = sorted(set(nouns))
        self._blocks: list[str | list[str]] = []  # an adjective with its hyphen, or a spelt-out group
        prefixes = sorted(f"{adjective}-" for adjective in set(adjectives))
        at = 0
        while at < len(prefixes):
            end = at + 1
            while end < len(prefixes) and prefixes[end].startswith(prefixes[at]):
                end += 1
            group = prefixes[at:end]
            spelt = sorted({f"{prefix}{noun}" for prefix in group for noun in self._nouns}) if len(group) > 1 else None
            self._blocks.append(spelt or group[0])
            at = end
        sizes = (len(block) if isinstance(block, list) else len(self._nouns) for block in self._blocks)
        self._starts = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = bisect_right(self._starts, index) - 1
        block, offset = self._blocks[at], index - self._starts[at]
        return block[offset] if isinstance(block, list) else block + self._nouns[offset]
