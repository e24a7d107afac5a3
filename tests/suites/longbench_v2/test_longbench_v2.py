"""The letter of an answer, against a transcription of upstream's extract_answer and a table of cases."""

from __future__ import annotations

import itertools
import re

import pytest

from anchoreval.suites import scorers
from anchoreval.suites.longbench_v2.scoring import UNPARSABLE, letter

CASES = {
    "The correct answer is (B)": "B",
    "The correct answer is B": "B",
    "The correct answer is **(B)**.": "B",
    "**The correct answer is (D)**": "D",
    "The *correct* answer is (*A*)": "A",
    "So. The correct answer is (C) because (A) is not.": "C",
    "The correct answer is A. No: The correct answer is (B).": "B",  # brackets go before order
    "The correct answer is (A). The correct answer is (B).": "A",  # the first of two
    "The correct answer is D. The correct answer is C.": "D",
    "The correct answer is Bert": "B",  # upstream takes the first letter
    "The correct answer is (B": None,
    "The correct answer is B)": "B",
    "The correct answer is (E)": None,
    "The correct answer is E": None,
    "the correct answer is (B)": None,
    "The correct answer is (b)": None,
    "The correct answer is: (B)": None,
    "The correct answer is  (B)": None,
    "The correct answer is\n(B)": None,
    "Answer: B": None,
    "(B)": None,
    "": None,
}


def extract_answer(response: str) -> str | None:
    """THUDM/LongBench 2e00731 pred.py."""
    response = response.replace("*", "")
    match = re.search(r"The correct answer is \(([A-D])\)", response)
    if match:
        return match.group(1)
    else:
        match = re.search(r"The correct answer is ([A-D])", response)
        if match:
            return match.group(1)
        else:
            return None


@pytest.mark.parametrize(("answer", "expected"), CASES.items())
def test_the_letter_is_the_one_that_upstream_finds(answer: str, expected: str | None) -> None:
    assert letter(answer) == extract_answer(answer.strip()) == expected
    assert letter(f"\n {answer} \n") == expected


def test_answers_put_together_are_judged_as_upstream_does() -> None:
    for parts in itertools.product(CASES, repeat=2):
        assert letter(" ".join(parts)) == extract_answer(" ".join(parts))


def test_the_score_is_one_for_the_references_letter_and_unparsable_is_zero_and_said() -> None:
    score = scorers()["same_letter"]
    for gold, said in itertools.product("ABCD", repeat=2):
        found = score(f"The correct answer is **({said})**", (f"The correct answer is ({gold})",))
        assert (found.value, found.why) == (float(gold == said), None)
    for text in ("", "Answer: A"):
        assert score(text, ("The correct answer is (A)",)) == type(found)(0.0, UNPARSABLE)
    assert score("The correct answer is (A)", ()).value is None
