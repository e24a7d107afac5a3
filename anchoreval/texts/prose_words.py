"""The vocabulary of the generated haystack, from prose_words.txt: places with their things, people, actions."""

from __future__ import annotations

from pathlib import Path

from anchoreval.texts.lists import read_lists

_LISTS = read_lists(Path(__file__).with_suffix(".txt"))
TOPICS = {name.removeprefix("topic "): things for name, things in _LISTS.items() if name.startswith("topic ")}
PEOPLE, PLURAL_PEOPLE = _LISTS["people"], frozenset(_LISTS["plural people"])
ADJECTIVES = _LISTS["adjectives"]
TRANSITIVE = tuple(zip(_LISTS["transitive past"], _LISTS["transitive plain"], strict=True))
INTRANSITIVE = _LISTS["intransitive"]
TIMES, REASONS, OPINIONS, LINKS = (_LISTS[name] for name in ("times", "reasons", "opinions", "links"))
SYLLABLES = tuple(_LISTS[f"syllables {place}"] for place in (1, 2, 3))  # of names of towns
FIRST_NAMES, OCCUPATIONS, INSTRUMENTS = (_LISTS[name] for name in ("first names", "occupations", "instruments"))
