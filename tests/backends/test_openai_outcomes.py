"""What the openai backend makes of the answers of servers that say no answer, half of one, or anything at all."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standin import NAME, TINY, TOKENIZER, Rules, Said, standing_in

from anchoreval import evaluate
from anchoreval.arms.arm import parse_arm
from anchoreval.errors import ModelError
from anchoreval.records.lines import from_line, to_line
from anchoreval.records.run import Run
from anchoreval.runs.verify.records import findings
from anchoreval.schema import NO_LOGPROB, SCORED, Continuation, Outcome, Output, Request

pytest.importorskip("httpx2", reason="HTTPX2 ABSENT: no server was asked (pip install 'anchoreval[openai]')")

from anchoreval.backends.openai.backend import OpenAiBackend

BUDGET = 16
WORDS = " seven old men and a dog went over the hill to the sea and sang of a home far away from all"


def request(text: str = "Say what the number is:", new: int = BUDGET, **more: Any) -> Request:
    ids = (0, *TOKENIZER.encode(text))
    return Request(text[:20], ids, (-1, *[0] * (len(ids) - 1)), ("query",), new, **more)


def outputs(rules: Rules, *requests: Request, **options: Any) -> list[Output]:
    with standing_in(rules) as url:
        asked = {"base_url": url, "tokenizer": str(TINY), "patience_s": 1.0, "logprobs": False} | options
        backend = OpenAiBackend.open(NAME, **asked)
        try:
            with backend.under(parse_arm("native")):
                found = {output.sample_id: output for output in backend.answer(requests)}
        finally:
            backend.close()
    return [found[each.sample_id] for each in requests]


def changed(
    finish: Any = "stop", usage: Any = None, choice: Said | None = None, **message: Any
) -> Callable[[Said, Said], None]:
    """Another message of chat, another end and other counts."""

    def change(body: Said, said: Said) -> None:
        said["choices"][0] |= {"finish_reason": finish, "message": {"role": "assistant", **message}} | (choice or {})
        if usage is not None:
            said["usage"] = said["usage"] | usage if isinstance(usage, dict) else None

    return change


FULL = {"completion_tokens": BUDGET}
PART_OF_THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "First"}]}
CHAT: dict[str, tuple[Callable[[Said, Said], None], Outcome, str]] = {
    "an answer": (changed(content=" 42"), "answered", " 42"),
    "reasoning alone, cut": (changed("length", FULL, content=None, reasoning_content="First, the"), "unclosed", ""),
    "reasoning by its other name": (changed("length", FULL, content="", reasoning="First, the"), "unclosed", ""),
    "reasoning of white space beside it": (changed("length", FULL, content="\n", thinking="First"), "unclosed", ""),
    "reasoning in details": (
        changed("length", FULL, content="", reasoning_details=[{"text": "First"}]), "unclosed", "",
    ),
    "reasoning in parts": (changed("length", FULL, content=[PART_OF_THOUGHT]), "unclosed", ""),
    "reasoning that is only counted": (
        changed("length", FULL | {"completion_tokens_details": {"reasoning_tokens": BUDGET}}, content=""),
        "unclosed", "",
    ),
    "a budget of which nothing is shown": (changed("length", FULL, content=None), "unclosed", ""),
    "reasoning that ended, and no answer": (changed("stop", content=None, reasoning_content="So."), "empty", ""),
    "reasoning and an answer": (changed("stop", content=" 42", reasoning_content="So."), "answered", " 42"),
    "reasoning and an answer that was cut": (
        changed("length", FULL, content=" 42 4", reasoning_content="So."), "cut", " 42 4",
    ),
    "parts of text": (
        changed(content=[PART_OF_THOUGHT, {"type": "text", "text": " 4"}, {"type": "text", "text": "2"}]),
        "answered", " 42",
    ),
    "a block never closed": (
        changed("length", FULL, content="<think>\nFirst, 42"), "unclosed", "<think>\nFirst, 42",
    ),
    "a block closed and opened again": (
        changed("length", FULL, content="<think></think>\n<think>First"), "unclosed", "<think></think>\n<think>First",
    ),
    "a block that is closed": (
        changed(content="<think>First</think> 42"), "answered", "<think>First</think> 42",
    ),
    "a block that is spoken of": (changed(content="A <think> tag"), "answered", "A <think> tag"),
    "an empty answer": (changed(content=""), "empty", ""),
    "null, ended by the model": (changed(content=None), "empty", ""),
    "a tool called": (changed("tool_calls", content=None, tool_calls=[{"id": "1"}]), "failed", ""),
    "a tool called, said to stop": (changed("stop", content=None, tool_calls=[{"id": "1"}]), "failed", ""),
    "text beside a tool": (changed("tool_calls", content=" 42", tool_calls=[{"id": "1"}]), "answered", " 42"),
    "a filter": (changed("content_filter", content="I ca"), "refused", ""),
    "a refusal": (changed("stop", content=None, refusal="I can't help\nwith that"), "refused", ""),
    "eos": (changed("eos_token", content=" 42"), "answered", " 42"),
    "an abort": (changed("abort", content=" 4"), "failed", ""),
    "an end that is no word": (changed({"type": "stop"}, content=" 42"), "failed", ""),
    "no word of an end": (changed(None, {"completion_tokens": 3}, content=" 42"), "answered", " 42"),
    "no word of an end, budget full": (changed(None, FULL, content=" 42"), "cut", " 42"),
    "no word of an end, nothing said": (changed(None, content=None), "failed", ""),
    "no counts": (changed("length", "none", content=" 42"), "cut", " 42"),
    "counts of nothing": (changed("length", {"completion_tokens": None}, content=" 42"), "cut", " 42"),
    "counts that are no numbers": (
        changed("length", {"completion_tokens": "16", "prompt_tokens": [1]}, content=" 42"), "cut", " 42",
    ),
    "a count too low for its text": (
        changed("length", {"completion_tokens": 2}, content=WORDS), "cut", WORDS,
    ),
    "stopped before its budget": (changed("length", {"completion_tokens": 3}, content=" 42"), "does_not_fit", ""),
    "half a character at the end": (changed("length", FULL, content=" 42 \ud835"), "cut", " 42 \ufffd"),
    "a character already replaced": (changed("length", FULL, content=" 42 \ufffd"), "cut", " 42 \ufffd"),
    "a character in two halves": (changed(content=" \ud835\udd38"), "answered", " \U0001d538"),
    "no message": (changed(choice={"message": None}), "failed", ""),
    "a message of another kind": (changed(choice={"message": ["a"]}), "failed", ""),
    "a text of another kind": (changed(content={"text": "a"}), "failed", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAT)
def test_an_answer_of_chat_says_what_became_of_it(name: str) -> None:
    change, outcome, text = CHAT[name]
    (output,) = outputs(Rules(change), request(), api="chat")
    assert (output.outcome, output.text) == (outcome, text)
    assert (output.finish == "error") == (outcome not in SCORED) == bool(output.why)
    assert "\n" not in (output.why or "")
    (text_alone,) = (from_line(to_line(_record(output))).output,)
    assert text_alone == text


def _record(output: Output) -> Any:
    from anchoreval.records.lines import to_record
    from anchoreval.schema import Sample, Score

    sample = Sample("t", 1, 0, (), (), 1)
    return to_record("k", sample, request(), parse_arm("native"), output, Score(None))


@pytest.mark.parametrize(
    ("choice", "outcome"),
    [
        ({"text": " 42"}, "answered"),
        ({"text": ""}, "empty"),
        ({"text": "", "finish_reason": "length"}, "empty"),  # tokens without text, as on other backends
        ({"text": None}, "failed"),
        ({"text": None, "reasoning": "First", "finish_reason": "length"}, "unclosed"),
        ({"text": "<think> First", "finish_reason": "length"}, "unclosed"),
        ({"text": " 42", "token_ids": [-1, 2**40]}, "answered"),
        ({"text": " 42", "token_ids": "none"}, "answered"),
        ({"text": "a" * 200_000}, "failed"),
    ],
)
def test_an_answer_of_completions_says_what_became_of_it(choice: Said, outcome: Outcome) -> None:
    def change(body: Said, said: Said) -> None:
        said["choices"][0] |= choice
        said["usage"]["completion_tokens"] = BUDGET

    (output,) = outputs(Rules(change), request())
    assert output.outcome == outcome


def test_a_block_that_the_prompt_opens_is_closed_by_the_answer_or_not_at_all() -> None:
    def change(body: Said, said: Said) -> None:
        first = TOKENIZER.decode(body["prompt"]).startswith("One")
        said["choices"][0]["text"] = " First, 42" if first else " First</think> 42"

    one, two = outputs(Rules(change), request("One?\n<think>\n"), request("Two?\n<think>\n"))
    assert (one.outcome, two.outcome) == ("unclosed", "answered")


REFUSALS: list[tuple[int, Any, Outcome]] = [
    (400, {"error": {"message": "the safety service is not ready"}}, "refused"),
    (400, {"error": {"message": "This model's maximum context length is 512 tokens."}}, "does_not_fit"),
    (400, {"error": {"message": "the request exceeds the available context size", "type": "x"}}, "does_not_fit"),
    (400, {"error": {"message": "no", "code": "context_length_exceeded"}}, "does_not_fit"),
    (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 4096", "error_type": "validation"}, "does_not_fit"),
    (413, {"error": {"message": "body too large"}}, "refused"),
    (413, b"Request too large", "does_not_fit"),
    (422, {"detail": [{"msg": "field required"}]}, "refused"),
    (403, {"error": {"message": "flagged by moderation"}}, "refused"),
    (404, {"detail": "Not Found"}, "refused"),
    (200, {"error": {"message": "bad request", "code": 400}}, "refused"),
    (200, {"error": {"message": "flagged", "code": "403"}}, "refused"),
    (200, {"error": {"message": "maximum context length is 512", "code": 400}}, "does_not_fit"),
    (200, {"error": {"message": "provider returned an error"}}, "failed"),
    (200, {"error": "overloaded"}, "failed"),
    (200, {"choices": []}, "failed"),
    (200, {"choices": None}, "failed"),
    (200, {"choices": [None]}, "failed"),
    (200, [], "failed"),
    (200, b"", "failed"),
    (200, b"{\x00\xff", "failed"),
    (200, b"[" * 100_000 + b"]" * 100_000, "failed"),
]


@pytest.mark.parametrize(("status", "said", "outcome"), REFUSALS)
def test_what_a_server_does_not_answer_is_lost_alone(
    status: int, said: Any, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anchoreval.backends.openai.http._FIRST_PAUSE_S", 0.001)

    def change(body: Said, answer: Said) -> tuple[int, Any] | None:
        return (status, said) if "BAD" in TOKENIZER.decode(body["prompt"]) else None

    bad, good = outputs(Rules(change), request("BAD: say it:"), request())
    assert (bad.outcome, bad.finish, bad.text) == (outcome, "error", "")
    assert bad.why and "\n" not in bad.why and (good.outcome, good.text) == ("answered", " 42.")


def test_a_server_that_fails_on_one_prompt_while_it_answers_others_loses_that_one() -> None:
    def change(body: Said, answer: Said) -> tuple[int, Any] | None:
        return (500, {"error": "out of range"}) if "BAD" in TOKENIZER.decode(body["prompt"]) else None

    asked = [request("BAD: say it:"), request(), request("Zzz: say it:")]
    bad, *good = outputs(Rules(change), *asked, concurrency=1, patience_s=0.1)
    assert bad.outcome == "failed" and "HTTP 500" in str(bad.why) and {each.outcome for each in good} == {"answered"}


def test_a_server_that_fails_on_many_in_a_row_ends_the_run() -> None:
    asked = [request(f"{i}: say it:") for i in range(4)]
    rules = Rules(lambda body, said: (500, {"error": "down"}))
    with pytest.raises(ModelError, match="no answer within"):
        outputs(rules, *asked, concurrency=1, patience_s=0.05)
    assert {output.outcome for output in outputs(rules, *asked[:3], concurrency=1, patience_s=0.05)} == {"failed"}


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_not_taken_ends_the_run_when_it_opens(status: int) -> None:
    with pytest.raises(ModelError, match=f"HTTP {status}: no"):
        outputs(Rules(lambda body, said: (status, {"error": {"message": "no"}}), at_opening=True), request())


def scoring(value: Any) -> Callable[[Said, Said], tuple[int, Any] | None]:
    """A server that echoes prompts with log-probabilities; those of the last token are `value` on request of a test."""

    def change(body: Said, said: Said) -> tuple[int, Any] | None:
        if not body.get("echo"):
            return None
        tokens = len(body["prompt"])
        probe = "purple" in TOKENIZER.decode(body["prompt"])
        logprobs: Said = {"token_logprobs": [None, *[-1.5] * (tokens - 1)], "top_logprobs": [{"a": -1.0}] * tokens}
        if not probe:
            if isinstance(value, int):
                return value, {"error": {"message": "no"}}
            logprobs = value if isinstance(value, dict) else logprobs
            if not isinstance(value, dict):
                logprobs["token_logprobs"][-1] = value
        said["choices"][0] |= {"logprobs": logprobs, "text": ""}
        return None

    return change


BROKEN = [None, float("nan"), float("-inf"), -9999.0, "low", {}, {"token_logprobs": None}, 400]


@pytest.mark.parametrize("value", BROKEN, ids=repr)
def test_a_reference_that_cannot_be_scored_costs_no_answer(value: Any) -> None:
    asked = request(reference_ids=(300, 16))
    (output,) = outputs(Rules(scoring(value), at_opening=True), asked, logprobs=True)
    assert (output.outcome, output.text, output.reference_logprob) == ("answered", " 42.", None)
    assert output.facts[NO_LOGPROB]


def test_a_reference_that_can_be_scored_has_its_log_probability() -> None:
    (output,) = outputs(Rules(scoring(-0.5), at_opening=True), request(reference_ids=(300, 16)), logprobs=True)
    assert output.reference_logprob == -2.0 and output.facts == {} and output.token_logprobs == (-1.5, -0.5)


@pytest.mark.parametrize("value", BROKEN, ids=repr)
def test_a_text_that_cannot_be_scored_is_lost_and_one_that_can_is_asked_for_alone(value: Any) -> None:
    asked, rules = request(new=0, reference_ids=(300, 16)), Rules(scoring(-0.5), at_opening=True)
    (output,) = outputs(rules, asked, logprobs=True)
    assert (output.outcome, output.finish, output.token_logprobs) == ("answered", "scored", (-1.5, -0.5))
    assert all(body.get("echo") for body in rules.bodies)
    (output,) = outputs(Rules(scoring(value), at_opening=True), asked, logprobs=True)
    assert output.outcome not in SCORED and output.token_logprobs is None and output.why


@pytest.mark.parametrize(
    ("value", "outcome"),
    [(None, "not_finite"), (float("nan"), "not_finite"), (-9999.0, "not_finite"), ("low", "failed"), (400, "refused")],
)
def test_a_choice_that_cannot_be_scored_is_no_answer(value: Any, outcome: Outcome) -> None:
    choices = (Continuation((300,), 1), Continuation((301, 16), 2))
    asked = request(new=0, choices=choices, gold=0)
    (output,) = outputs(Rules(scoring(value), at_opening=True), asked, logprobs=True)
    assert output.outcome == outcome and output.choices == () and output.why


def test_a_reference_for_which_there_is_no_room_costs_no_answer() -> None:
    asked = request(new=4, reference_ids=(300, 16, 300, 16))
    longer = replace(asked, sample_id="longer", reference_ids=(300,) * 9)
    room = len(asked.token_ids) + 4
    rules = Rules(scoring(-0.5), at_opening=True)
    output, without = outputs(rules, asked, longer, logprobs=True, max_model_len=room)
    assert output.reference_logprob == -5.0 and without.reference_logprob is None
    assert f"needs {room + 5} positions" in without.facts[NO_LOGPROB] and without.outcome == "answered"


def test_a_prompt_that_fills_the_window_is_asked_and_a_longer_one_does_not_fit() -> None:
    full = request(new=8)
    over = replace(full, sample_id="over", max_new_tokens=9)
    room = len(full.token_ids) + 8
    rules = Rules()
    fits, lost = outputs(rules, full, over, max_model_len=room)
    assert fits.outcome == "answered" and lost.outcome == "does_not_fit" and len(rules.bodies) == 1
    assert f"needs {room + 1} positions, the server has {room}" in str(lost.why)


PIECES = [
    None, True, False, 0, -1, 1, 2**63, -(2**70), 1e308, float("nan"), float("inf"), "", "x", "stop", "length",
    "\ud835", "\ufffd\x00", "a" * 5000, [], {}, [[]], [None], [{}], {"text": 3}, [{"type": "text"}], [[[[[[[[]]]]]]]],
]  # fmt: skip
KEYS = [
    "choices", "usage", "message", "text", "content", "finish_reason", "token_ids", "prompt_token_ids", "logprobs",
    "reasoning", "reasoning_content", "tool_calls", "refusal", "prompt_tokens", "completion_tokens", "error", "index",
    "prompt_tokens_details", "cached_tokens", "completion_tokens_details", "token_logprobs", "top_logprobs", "0",
    "prompt_logprobs", "system_fingerprint",
]  # fmt: skip


def mutated(said: Any, draw: random.Random) -> Any:
    """The answer with one place, at any depth, replaced, left out, or filled with what does not belong there."""
    if isinstance(said, list) and said and draw.random() < 0.8:
        at = draw.randrange(len(said))
        return [mutated(each, draw) if i == at else each for i, each in enumerate(said)]
    if isinstance(said, dict) and draw.random() < 0.9:
        key = draw.choice([*said, draw.choice(KEYS)])
        if key in said and draw.random() < 0.7:
            return said | {key: mutated(said[key], draw)}
        return {name: value for name, value in said.items() if name != key} if draw.random() < 0.3 else said | {
            key: draw.choice(PIECES)
        }  # fmt: skip
    return draw.choice(PIECES)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_nothing_in_an_answer_ends_a_run(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchoreval.backends.openai.http._FIRST_PAUSE_S", 0.0005)
    draw = random.Random(7)

    def change(body: Said, said: Said) -> tuple[int, Any] | None:
        if not body.get("echo"):
            said["choices"][0] |= {"token_ids": [300, 16]} if draw.random() < 0.3 else {}
        else:
            scoring(-0.5)(body, said)
        if draw.random() < 0.05:
            return None
        other: Any = said
        for _ in range(draw.randrange(1, 4)):
            other = mutated(other, draw)
        return 200, json.dumps(other).encode()

    opening = scoring(-0.5)
    calls = {"n": 0}

    def late(body: Said, said: Said) -> tuple[int, Any] | None:
        calls["n"] += 1
        probing = "purple" in str(body.get("messages") or TOKENIZER.decode(body.get("prompt", [])))
        return opening(body, said) if probing else change(body, said)

    asked = [request(f"{i}: say it:", reference_ids=(300, 16) if i % 2 else ()) for i in range(150)]
    found = outputs(Rules(late, at_opening=True), *asked, api=api, logprobs=True, patience_s=30.0)
    assert len(found) == 150 and {"answered", "failed"} <= {output.outcome for output in found}
    for output in found:
        json.dumps(output.text).encode("ascii")
        output.text.encode("utf-8")
        to_line(_record(output))
        assert (output.outcome in SCORED) == (output.finish != "error") == (output.why is None)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    def go(rules: Rules, **changes: Any) -> Run:
        with standing_in(rules) as url:
            options = {"base_url": url, "patience_s": 1.0, "logprobs": False, "api": "chat"} | changes.pop(
                "options", {}
            )
            settings: dict[str, Any] = {"lengths": [512], "limit": 2, "haystack": "generated", "output": tmp_path}
            return evaluate(
                NAME, "ruler/niah_single_1", backend="openai", tokenizer="anchor-tiny", backend_args=options,
                **settings | changes,
            )  # fmt: skip

    yield go


def test_records_say_what_became_of_each_and_verify(run: Callable[..., Run]) -> None:
    result = run(Rules(changed("length", {"completion_tokens": 128}, content=None, reasoning_content="First")))
    assert {(r.outcome, r.score, r.finish) for r in result.records} == {("unclosed", None, "error")}
    assert all("reasoning that never ended" in str(r.why) for r in result.records)
    assert [str(each) for each in findings(result.path, None, TINY) if each.differs] == []


def test_a_refusal_is_on_the_record_and_has_no_score_but_the_reason(run: Callable[..., Run]) -> None:
    result = run(Rules(lambda body, said: (400, {"error": {"message": "not ready"}})))
    assert {(r.outcome, r.score) for r in result.records} == {("refused", None)}
    assert all("not ready" in (r.why or "") for r in result.records)
