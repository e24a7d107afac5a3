"""How in-context recall is judged: two of HELMET's metrics and InfiniteBench's rule for a passkey.

Source of HELMET's metrics: princeton-nlp/HELMET at 4526dfb, utils.py.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

from anchoreval.schema import Json, Score
from anchoreval.suites import NO_FACTS, NO_REFERENCES

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LABEL = re.compile("label:", re.IGNORECASE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Return the text in lower case without punctuation, articles and surplus white space (SQuAD's rule)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def helmet_substring(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return 1 if a reference is a substring of the answer, both normalized (HELMET's substring_exact_match), else 0.

    HELMET also judges the answer's first line and takes the better score. That never changes the score, because the
    line is part of the answer.
    """
    if not references:
        return NO_REFERENCES
    return Score(float(any(normalized(reference) in normalized(answer) for reference in references)))


def helmet_label(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return 1 if the label in the answer's first line is a reference, both normalized, else 0.

    The label is the text behind "label:", or else the whole line. This is HELMET's exact_match for an answer of one
    line, which its configurations intend (`stop_new_line`, a name that its program does not read). If an answer goes on
    into another example, HELMET reads that example's label instead; here the first line counts.
    """
    if not references:
        return NO_REFERENCES
    label = normalized(_LABEL.sub("", _LABEL.split(answer.split("\n")[0], maxsplit=1)[-1].strip()))
    return Score(float(any(label == normalized(reference) for reference in references)))


def first_integer(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return 1 if the first integer of the answer is a reference, else 0 (OpenBMB/InfiniteBench, score_passkey)."""
    if not references:
        return NO_REFERENCES
    integer = re.search("[0-9]+", answer)
    return Score(float(integer is not None and integer[0] in references))
