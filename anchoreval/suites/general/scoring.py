"""Answers judged by lm-evaluation-harness: its filters and `process_results`, given the row that was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anchoreval.schema import Json, Score
from anchoreval.suites import NO_FACTS
from anchoreval.suites.general import harness as lm_eval_tasks


def results(text: str, facts: Mapping[str, Json]) -> lm_eval_tasks.Results:
    """Return what an answer adds to every (metric, filter) of its task.

    `facts` are those of a sample of the generator `lm_eval`, with `choices` if the sample has any.
    """
    stated = facts["lm_eval"]
    judge = lm_eval_tasks.judge_of(stated["task"], stated["folder"], facts["doc"])
    answers: list[Any] = [tuple(each) for each in facts.get("choices", ())] or [text]
    return judge.results(facts["doc"], answers)


def lm_eval(text: str, _: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return the metric that the task card names, 0..1, or None with the reason if lm-eval gives no such number."""
    stated = facts.get("lm_eval")
    if not isinstance(stated, Mapping):
        return Score(None, "the record does not hold the document that lm-eval judges")
    value: Any = results(text, facts).get((stated["metric"], stated["filter"]))
    if not isinstance(value, int | float) and not hasattr(value, "item"):
        return Score(None, f"lm-eval gives no number for {stated['metric']}")
    number = float(value)
    if not 0 <= number <= 1:
        return Score(None, f"lm-eval gives {number} for {stated['metric']}, no score between 0 and 1")
    return Score(number)


def refuse(task: str, facts: Mapping[str, Json]) -> None:
    """Raise RunError if the facts of a record name another definition of lm-eval than the task's card."""
    if "lm_eval" in facts:
        lm_eval_tasks.require_definition(task, facts)
