"""HELMET's two metrics against the outputs of its own functions, and the first integer of an answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anchoreval.suites.recall.scoring import first_integer, helmet_label, helmet_substring, normalized

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "helmet.json").read_text("utf-8"))


def test_texts_are_normalized_as_by_helmet() -> None:
    assert [normalized(text) for text, _ in GOLDEN["normalized"]] == [expected for _, expected in GOLDEN["normalized"]]


def test_a_value_is_found_as_by_helmet_in_the_answer_or_in_its_parsed_line() -> None:
    found = [helmet_substring(answer, (GOLDEN["value"],)).value for answer, _ in GOLDEN["substring"]]
    assert found == [expected for _, expected in GOLDEN["substring"]] and {*found} == {0.0, 1.0}


def test_a_label_is_judged_as_by_helmet_on_answers_of_one_line() -> None:
    for answer, _, expected in GOLDEN["label"]:
        assert helmet_label(answer, ("57",)).value == expected, answer


def test_an_answer_that_goes_on_into_another_example_is_judged_by_its_first_line() -> None:
    assert helmet_label(" 57\n\nWhere is it?\nlabel: 3", ("57",)).value == 1.0
    assert helmet_label(" 3\n\nWhere is it?\nlabel: 57", ("57",)).value == 0.0


@pytest.mark.parametrize(
    ("answer", "value"), [(" 123.", 1), ("is 123, 45", 1), ("45 123", 0), ("1234", 0), ("", 0), ("none", 0)]
)
def test_a_passkey_is_the_first_integer_of_the_answer(answer: str, value: float) -> None:
    assert first_integer(answer, ("123",)).value == value


@pytest.mark.parametrize("scorer", [helmet_substring, helmet_label, first_integer])
def test_without_a_reference_there_is_no_score(scorer: type) -> None:
    assert scorer("1", ()).value is None
