"""LongBench v2's rule (THUDM/LongBench 2e00731, pred.py and result.py; MIT, Copyright (c) 2023 THU-KEG & Zhipu AI)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from anchoreval.schema import Json, Score
from anchoreval.suites import NO_FACTS, NO_REFERENCES

UNPARSABLE = 'unparsable: nowhere "The correct answer is (A)"'
_FORMS = (re.compile(r"The correct answer is \(([A-D])\)"), re.compile(r"The correct answer is ([A-D])"))


def letter(answer: str) -> str | None:
    """Return the letter that upstream's extract_answer finds, or None.

    Every "*" is removed. Then the first match of the form with brackets counts, else of the form without. Other words
    and small letters are no answer.
    """
    plain = answer.replace("*", "")
    return next((found[1] for form in _FORMS if (found := form.search(plain))), None)


def same_letter(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return 1 if the letter is the reference's, else 0; an answer without a letter is wrong and gets a note."""
    if not references:
        return NO_REFERENCES
    chosen = letter(answer)
    return Score(0.0, UNPARSABLE) if chosen is None else Score(float(chosen == letter(references[0])))
