"""BABILong's metric as it is published (booydar/babilong at 7a6efee, babilong/metrics.py), and a corrected one.

Both look for the labels of the task in the first sentence of the answer and leave out those that the question names.
They score 1 if the reference is the only label left (for a list: if exactly its members are left). The sample's facts
hold `labels` and `question`.

The published metric finds labels as substrings. So it finds "one" in "none", and no answer to a question of qa7 whose
reference is "none" is right; it finds "no" in "I do not know"; and "n, e" is not the path "n,e". The corrected metric
finds whole words, ignores a space after a comma, and also ends the answer before the word "question", as upstream means
to do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from anchoreval.errors import RunError
from anchoreval.schema import Json, Score
from anchoreval.suites import NO_FACTS, NO_REFERENCES

_ENDS = (".", "<context>", "<example>")
_LIST = 3  # characters: a longer reference with a comma is a list; a path such as "n,e" is one label


def babilong(answer: str, references: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return 1 or 0 as published; a note says if the corrected metric disagrees."""
    if not references:
        return NO_REFERENCES
    value, other = _official(answer, references[0], facts), _corrected(answer, references[0], facts)
    return Score(float(value), None if value == other else f"the corrected metric gives {int(other)}")


def babilong_corrected(answer: str, references: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return 1 or 0, with labels found as whole words."""
    return Score(float(_corrected(answer, references[0], facts))) if references else NO_REFERENCES


def _official(answer: str, reference: str, facts: Mapping[str, Json]) -> bool:
    text, question, target = _first(answer.lower(), _ENDS), str(facts["question"]).lower(), reference.lower()
    labels = {str(label).lower() for label in _labels(facts)}
    left = {label for label in labels if label in text and label not in question}
    return _only(target, left)


def _corrected(answer: str, reference: str, facts: Mapping[str, Json]) -> bool:
    text, question = (re.sub(r",\s+", ",", part.lower()) for part in (answer, str(facts["question"])))
    text = _first(text, (*_ENDS, "question"))
    labels = {str(label).lower() for label in _labels(facts)}
    left = {label for label in labels if _has(text, label) and not _has(question, label)}
    return _only(re.sub(r",\s+", ",", reference.lower()), left)


def _labels(facts: Mapping[str, Json]) -> list[Json]:
    """Return the labels of the task; raise RunError if the facts are those of another task's record."""
    labels = facts["labels"]
    if not isinstance(labels, list | tuple):
        raise RunError("facts > labels is no list, which the rule of babilong reads")
    return list(labels)


def _first(text: str, ends: Sequence[str]) -> str:
    """Return the text before the first occurrence of any of `ends`."""
    for end in ends:
        text = text.split(end)[0]
    return text


def _has(text: str, label: str) -> bool:
    """Return True if the text holds the label as whole words; a path of two letters may not be part of a longer one."""
    border = r"[\w,]" if "," in label else r"\w"
    return re.search(rf"(?<!{border}){re.escape(label)}(?!{border})", text) is not None


def _only(target: str, left: set[str]) -> bool:
    """Return True if exactly the target is left, or exactly the members of a target that is a list."""
    if "," in target and len(target) > _LIST:
        members = target.split(",")
        return all(member in left for member in members) and len(left) == len(members)
    return left == {target}
