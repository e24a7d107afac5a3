"""Chosen answers: the likeliest choice wins, the first of equals; no choice, no score."""

from __future__ import annotations

import numpy as np
import pytest

from anchoreval.schema import ChoiceScore
from anchoreval.suites import likeliest, scorers


@pytest.mark.parametrize("logprobs", [(-1.0, -2.0), (-2.0, -1.0), (-1.5, -1.0, -1.0), (-1.0, -1.0, -3.0), (-5.0,)])
def test_the_score_is_that_of_numpys_argmax(logprobs: tuple[float, ...]) -> None:
    choices = tuple(ChoiceScore(value, False) for value in logprobs)
    best = int(np.argmax(logprobs))
    assert likeliest(choices) == best
    for gold in range(len(logprobs)):
        score = scorers()["likeliest"]("", (), {"choices": choices, "gold": gold})
        assert score.value == float(gold == best)


def test_without_choices_there_is_no_score_and_a_reason() -> None:
    score = scorers()["likeliest"]("boat", ("boat",), {"gold": 0})
    assert score.value is None and score.why
