"""What becomes of an answer on its way that ends in no answer, on every engine: without torch and without vLLM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from standin import TOKENIZER

from anchoreval.arms.layout import Arrangement
from anchoreval.backends.answering import Growing, TextStream, is_unclosed
from anchoreval.backends.vllm.answer import Answering
from anchoreval.backends.vllm.asks import Ask, Context, Reply, Row
from anchoreval.backends.vllm.batches import Batching, Cache
from anchoreval.schema import NO_LOGPROB, ChoiceScore, Continuation, Output, Request


def request(prompt: str = "Say:", new: int = 40, **more: Any) -> Request:
    ids = (0, *TOKENIZER.encode(prompt))
    return Request("s", ids, (-1, *[0] * (len(ids) - 1)), ("query",), new, **more)


def grown(text: str, prompt: str = "Say:", finite: bool = True) -> Output:
    asked = request(prompt)
    row = Growing(asked, TextStream(TOKENIZER, asked.token_ids))
    for token in TOKENIZER.encode(text):
        row.add(token, finite, frozenset())
    return row.said(0.0, None, ())


def test_logits_that_are_not_finite_are_told_from_other_failures() -> None:
    output = grown(" seven", finite=False)
    assert (output.outcome, output.finish, output.why) == ("not_finite", "error", "the logits are not finite")


def test_reasoning_that_never_ends_is_no_answer_and_its_text_is_kept() -> None:
    output = grown("<think> First, seven")
    assert (output.outcome, output.finish, output.text) == ("unclosed", "error", "<think> First, seven")
    assert "reasoning that never ended" in str(output.why) and output.token_ids
    assert grown(" First, seven", prompt="Say:<think>\n").outcome == "unclosed"
    assert grown(" First</think> seven", prompt="Say:<think>\n").outcome == "cut"
    assert grown("<think> First</think> seven").outcome == "cut"


UNCLOSED = [
    ("", "", False),
    ("42", "", False),
    ("<think>42", "", True),
    ("\n <think>42", "", True),
    ("<think>a</think>42", "", False),
    ("<think></think>\n\n<think>42", "", True),
    ("<think>a</think><think>b</think>", "", False),
    ("[THINK]42", "", True),
    ("[THINK]a[/THINK]42", "", False),
    ("<thinking>42</think>", "", True),
    ("The tag <think> opens", "", False),
    ("42", "a <think> tag", False),
    ("42", "Assistant: <think>\n", True),
    ("42</think> 42", "Assistant: <think>\n", False),
    ("42</think> <think> 42", "Assistant: <think>\n", True),
    ("42", "Assistant: <think></think>", False),
]


@pytest.mark.parametrize(("text", "prompt_end", "unclosed"), UNCLOSED)
def test_a_block_of_reasoning_is_closed_or_not(text: str, prompt_end: str, unclosed: bool) -> None:
    assert is_unclosed(text, prompt_end) is unclosed


def row_of(asked: Request) -> Row:
    return Row(asked, TextStream(TOKENIZER, asked.token_ids), Context("salt"))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_reference_that_is_not_finite_costs_no_answer(value: float) -> None:
    row = row_of(request(reference_ids=(300,)))
    row.score([Reply(0, 5, {300: value})], {})
    assert row.finish is None and row.generated(frozenset()) is not None
    row.add(301, True, frozenset({301}))
    output = row.output(0.0)
    assert (output.outcome, output.reference_logprob) == ("empty", None) and output.facts[NO_LOGPROB]


def test_a_choice_that_is_not_finite_is_no_answer() -> None:
    choices = (Continuation((300,), 1), Continuation((301,), 1))
    row = row_of(request(new=0, choices=choices))
    row.score([Reply(0, 5, {300: -1.0, 301: math.nan})], {})
    assert row.generated(frozenset()) is None
    assert (row.output(0.0).outcome, row.output(0.0).choices) == ("not_finite", ())


class _Short:
    """An engine that ends every answer after one token."""

    batching, cache = Batching(64, 8), Cache(100, 16)

    def forget(self) -> None:
        """Nothing is kept."""

    def tokens(self, asks: Sequence[Ask]) -> Iterator[tuple[int, int, float]]:
        return ((place, 300, -1.0) for place, _ in enumerate(asks))

    def stop(self, place: int) -> None:
        """All have ended."""


def test_an_answer_that_the_engine_ends_before_its_budget_failed() -> None:
    engine: Any = _Short()
    answering = Answering(engine, TOKENIZER, frozenset(), Arrangement(), "native")
    long, short = answering.outputs([request(new=3), request(new=1)])
    assert (long.outcome, long.why) == ("failed", "vLLM ended the answer after 1 of 3 tokens")
    assert short.outcome == "cut"


def test_the_scores_of_a_finite_row_are_as_before() -> None:
    row = row_of(request(new=1, reference_ids=(300,), choices=(Continuation((301,), 1),)))
    row.score([Reply(0, 301, {300: -2.0, 301: -1.0})], {})
    row.add(301, True, frozenset())
    output = row.output(0.0)
    assert (output.reference_logprob, output.choices, output.facts) == (-2.0, (ChoiceScore(-1.0, True),), {})
