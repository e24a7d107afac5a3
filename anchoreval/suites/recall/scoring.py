"""How in-context recall is judged: two of HELMET's metrics (princeton-nlp/HELMET at 4526dfb, utils.py) and
InfiniteBench's rule for a passkey.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

from anchoreval.schema import Json, Score
from anchoreval.suites.ruler.scoring import NO_FACTS, NO_REFERENCES

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LABEL = re.compile("label:", re.IGNORECASE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case without punctuation, articles and surplus white space (SQuAD's rule)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def helmet_substring(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
    """1 when a reference is a substring of the answer, both normalized (HELMET's substring_exact_match).

    HELMET also judges the answer's first line and takes the better score: never another one, for a line is part of it.
    """
    if not references:
        return NO_REFERENCES
    return Score(float(any(normalized(reference) in normalized(answer) for reference in references)))


def helmet_label(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
    """1 when the label that the answer's first line gives is a reference, both normalized: what follows "label:", or
    the whole line.

    That is HELMET's exact_match for an answer of one line, which its configurations mean to have (`stop_new_line`, a
    name that its program does not read). Of an answer that goes on into another example HELMET reads that example's
    label instead; here the first line counts.
    """
    if not references:
        return NO_REFERENCES
    said = normalized(_LABEL.sub("", _LABEL.split(answer.split("\n")[0], maxsplit=1)[-1].strip()))
    return Score(float(any(said == normalized(reference) for reference in references)))


def first_integer(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
    """1 when the first integer of the answer is a reference (OpenBMB/InfiniteBench, score_passkey)."""
    if not references:
        return NO_REFERENCES
    found = re.search("[0-9]+", answer)
    return Score(float(found is not None and found[0] in references))
