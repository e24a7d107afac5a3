"""RULER's two match rules (NVIDIA/RULER c3f5e3b, scripts/eval/synthetic/constants.py), per sample and not rounded.

A reference is found if it is a substring of the cleaned answer, ignoring case: no word borders, no other normalisation
("art" is found in "party").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from anchoreval.schema import Json, Score
from anchoreval.suites.suite import NO_FACTS, NO_REFERENCES

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(answer: str) -> str:
    """Return the answer as RULER judges it: stripped, every control character made a newline, stripped again."""
    return _CONTROL.sub("\n", answer.strip()).strip()


def match_all(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return the share of the references found in the answer (upstream's string_match_all)."""
    return Score(sum(found) / len(found)) if (found := _found(answer, references)) else NO_REFERENCES


def match_any(answer: str, references: Sequence[str], _: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return 1 if any reference is found in the answer, else 0 (upstream's string_match_part)."""
    return Score(max(found)) if (found := _found(answer, references)) else NO_REFERENCES


def _found(answer: str, references: Sequence[str]) -> list[float]:
    text = cleaned(answer).lower()
    return [1.0 if reference.lower() in text else 0.0 for reference in references]
