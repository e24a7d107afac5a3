from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ruler_tasks import TASKS, recipe

from anchoreval.errors import CardError
from anchoreval.suites import generators
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer


@pytest.mark.parametrize(
    "task, change, complaint",
    [
        ("niah_single_1", {"needles": 3}, "unknown argument 'needles'"),
        ("niah_single_1", {"haystack": "essays"}, "'essays' is not one of noise, essay, needle"),
        ("niah_single_1", {"keys": "4"}, "'4' is not a whole number"),
        ("niah_single_1", {"keys": True}, "True is not a whole number"),
        ("niah_single_1", {"keys": 0}, "0 is not positive"),
        ("niah_multikey_1", {"keys": 41}, "41 needles"),
        ("vt", {"chains": 2}, "2 is not one of 1"),
        ("cwe", {"words": 2}, "unknown argument"),
        ("fwe", {"alpha": "2"}, "is not a number"),
        ("qa_1", {"questions": "trivia"}, "not one of squad, hotpot"),
    ],
)
def test_an_argument_that_a_generator_does_not_take_names_task_and_argument(
    task: str, change: dict[str, Any], complaint: str, tokenizer: TextTokenizer, generated: Sources
) -> None:
    asked = recipe(task, 1024, 1, tokenizer, generated)
    asked = replace(asked, args={**asked.args, **change})
    with pytest.raises(CardError, match=rf"ruler/{task}.*{complaint}"):
        next(generators()[TASKS[task][0]](asked))


def test_a_missing_argument_is_named(tokenizer: TextTokenizer, generated: Sources) -> None:
    asked = recipe("qa_1", 1024, 1, tokenizer, generated)
    asked = replace(asked, args={})
    with pytest.raises(CardError, match="missing questions"):
        next(generators()["ruler_qa"](asked))
