"""BABILong's metric against upstream's own verdicts, its defect included, and the metric that mends it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anchoreval.suites import scorers
from anchoreval.suites.babilong.generate import labels as labels_of
from anchoreval.suites.babilong.scoring import babilong, babilong_corrected
from anchoreval.suites.babilong.stories import NAMES

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "babilong.json").read_text("utf-8"))
QA7 = {"labels": list(labels_of("qa7")), "question": "How many objects is Mary carrying? "}


def facts(data: str, question: str) -> dict[str, object]:
    return {"labels": list(labels_of(data)), "question": question}


def test_every_verdict_is_upstreams() -> None:
    assert len(GOLDEN["metric"]) == 143 and {row[-1] for row in GOLDEN["metric"]} == {0, 1}
    for data, question, target, answer, right in GOLDEN["metric"]:
        assert babilong(answer, (target,), facts(data, question)).value == right, (data, target, answer)


def test_the_published_metric_never_credits_the_answer_none_and_says_that_the_corrected_one_does() -> None:
    score = babilong("none", ("none",), QA7)
    assert score.value == 0.0 and score.why == "the corrected metric gives 1"
    assert babilong_corrected("none", ("none",), QA7).value == 1.0
    assert babilong("two", ("two",), QA7).why is None


@pytest.mark.parametrize(
    ("data", "question", "target", "answer", "official", "corrected"),
    [
        ("qa6", "Is Mary in the attic? ", "no", "I do not know", 1, 0),
        ("qa19", "How do you go there? ", "n,e", "n, e", 0, 1),
        ("qa19", "How do you go there? ", "n,e", "go n,e now", 1, 1),
        ("qa8", "What is Mary carrying? ", "apple,milk", "apple, milk", 1, 1),
        ("qa8", "What is Mary carrying? ", "apple,milk", "apple", 0, 0),
        ("qa1", "Where is Mary? ", "garden", "garden Question: Where is the kitchen", 0, 1),
        ("qa1", "Where is Mary? ", "garden", "The most recent location of Mary is garden.", 1, 1),
        ("qa1", "Where is Mary? ", "garden", "gardens", 1, 0),
        ("qa7", "How many? ", "one", "someone", 1, 0),
    ],
)
def test_the_corrected_metric_finds_labels_as_whole_words(
    data: str, question: str, target: str, answer: str, official: int, corrected: int
) -> None:
    assert babilong(answer, (target,), facts(data, question)).value == official
    assert babilong_corrected(answer, (target,), facts(data, question)).value == corrected


@pytest.mark.parametrize("scorer", ["babilong", "babilong_corrected"])
def test_every_label_scores_one_on_itself_but_for_none_and_nothing_else_does(scorer: str) -> None:
    for data in NAMES:
        labels = labels_of(data)
        for label in labels:
            own = facts(data, "Which? ")
            excepted = scorer == "babilong" and label == "none"
            assert scorers()[scorer](label, (label,), own).value == (0.0 if excepted else 1.0), (data, label)
            assert scorers()[scorer]("", (label,), own).value == 0.0
    assert scorers()[scorer]("x", (), facts("qa1", "?")).value is None
