"""What a server says of prompts and of its window: facts on the record, warnings, and an error where it opens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from standin import NAME, TEMPLATE_TOKENS, TINY, TOKENIZER, Rules, Said, prompt_of, standing_in

from anchoreval import evaluate
from anchoreval.arms.arm import parse_arm
from anchoreval.errors import LengthError, ModelError
from anchoreval.records.run import Run, load_run
from anchoreval.runs.verify.records import findings
from anchoreval.schema import PROMPT_READ, Output, Request

pytest.importorskip("httpx2", reason="HTTPX2 ABSENT: no server was asked (pip install 'anchoreval[openai]')")

from anchoreval.backends.openai.backend import OpenAiBackend


@contextmanager
def opened(rules: Rules, **options: Any) -> Iterator[OpenAiBackend]:
    with standing_in(rules) as url:
        asked = {"base_url": url, "tokenizer": str(TINY), "patience_s": 1.0, "logprobs": False} | options
        backend = OpenAiBackend.open(NAME, **asked)
        try:
            yield backend
        finally:
            backend.close()


def request(text: str) -> Request:
    ids = (0, *TOKENIZER.encode(text))
    return Request(text, ids, (-1, *[0] * (len(ids) - 1)), ("query",), 8)


def answers(rules: Rules, *texts: str, **options: Any) -> list[Output]:
    with opened(rules, **options) as backend, backend.under(parse_arm("native")):
        found = {output.sample_id: output for output in backend.answer([request(text) for text in texts])}
    return [found[text] for text in texts]


def counting(prompt: Callable[[int], Any], **more: Any) -> Callable[[Said, Said], None]:
    """Another count of the prompt than the good one, and more counts."""

    def change(body: Said, said: Said) -> None:
        said["usage"] |= {"prompt_tokens": prompt(said["usage"]["prompt_tokens"])} | more

    return change


LONG = "It was a long day, and then the night came over the hill and the old town."


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_prompt_that_a_server_cuts_is_scored_with_a_warning_and_the_number(
    api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = answers(Rules(counting(lambda tokens: 5)), LONG, LONG + LONG, api=api)
    assert (one.outcome, one.facts, two.facts) == ("answered", {PROMPT_READ: 5}, {PROMPT_READ: 5})
    said = [line for line in capsys.readouterr().err.splitlines() if "cut" in line or "fewer" in line]
    assert len(said) == 2 and "the server counts 5 tokens" in said[0] and "cut" in said[0]
    assert said[1] == "the server counts fewer tokens in a prompt than were sent: 2 requests"


def test_the_tokens_of_a_servers_template_are_on_the_record_and_in_the_header(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with opened(Rules(), api="chat") as backend, backend.under(parse_arm("native")):
        (output,) = backend.answer([request(LONG)])
        assert backend.describe()["template_tokens"] == TEMPLATE_TOKENS
    assert output.facts == {PROMPT_READ: TOKENIZER.count(LONG) + TEMPLATE_TOKENS}
    assert f"chat template adds {TEMPLATE_TOKENS} tokens" in capsys.readouterr().err


def test_a_count_that_is_the_prompts_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert answers(Rules(), LONG)[0].facts == {} and capsys.readouterr().err == ""


@pytest.mark.parametrize("count", [None, 0, -51, "12", 3.0, True, [], 2**70])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_count_that_is_none_says_nothing(count: Any, api: str) -> None:
    (output,) = answers(Rules(counting(lambda tokens: count), at_opening=True), LONG, api=api)
    assert (output.outcome, output.facts) == ("answered", {})


CACHED: list[Said] = [
    {"prompt_tokens_details": {"cached_tokens": 6}},
    {"prompt_cache_hit_tokens": 6},
    {"cache_read_input_tokens": 6, "prompt_tokens_details": None},
]


@pytest.mark.parametrize("cached", CACHED)
@pytest.mark.parametrize("left_out", [True, False])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_tokens_that_a_server_had_cached_are_part_of_its_count_or_not(
    cached: Said, left_out: bool, api: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = Rules(counting(lambda tokens: tokens - 6 * left_out, **cached))
    (output,) = answers(rules, LONG, api=api)
    counted = TOKENIZER.count(LONG) + TEMPLATE_TOKENS - 6 * left_out
    assert output.facts == ({PROMPT_READ: counted} if api == "chat" else {})
    assert "fewer" not in capsys.readouterr().err


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("token_prompts", [True, False])
def test_a_server_that_leaves_what_it_had_cached_out_of_its_counts_is_asked_again_and_again(
    api: str, token_prompts: bool
) -> None:
    seen: set[str] = set()

    def change(body: Said, said: Said) -> None:
        key = prompt_of(body)[:12]
        said["usage"]["prompt_tokens"] -= 6 * (key in seen)
        seen.add(key)

    rules = Rules(change, at_opening=True, token_prompts=token_prompts)
    for _ in range(3):  # the second and third find the prompt in the cache, and what is asked at opening nowhere
        assert answers(rules, LONG, api=api)[0].outcome == "answered"


def test_more_tokens_than_were_sent_are_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    (output,) = answers(Rules(counting(lambda tokens: tokens + 1)), LONG)
    meant = len(request(LONG).token_ids)
    assert output.facts == {PROMPT_READ: meant + 1} and output.outcome == "answered"
    assert f"counts {meant + 1} tokens in a prompt of {meant}: it adds tokens" in capsys.readouterr().err


@pytest.mark.parametrize(("api", "count"), [("chat", 3), ("completions", 3), ("completions", 900)])
def test_another_tokenizer_is_an_error_before_anything_is_asked(api: str, count: int) -> None:
    rules = Rules(counting(lambda tokens: count), at_opening=True)
    with pytest.raises(ModelError, match=f"the server counts {count} tokens in .*another tokenizer than --tokenizer"):
        answers(rules, LONG, api=api)
    assert rules.bodies == []


def test_a_server_that_misreads_token_ids_is_given_text() -> None:
    def change(body: Said, said: Said) -> None:
        said["usage"]["prompt_tokens"] += isinstance(body["prompt"], list)

    rules = Rules(change, at_opening=True)
    assert answers(rules, LONG)[0].outcome == "answered"
    assert [body["prompt"] for body in rules.bodies] == [LONG]


ELSEWHERE = {"data": [{"id": "other", "context_length": 99}, {"id": NAME, "loaded_context_length": 4096}]}
WINDOWS: list[tuple[Said, dict[str, Any], int | None]] = [
    ({"max_model_len": 4096}, {}, 4096),
    ({"context_length": 4096}, {}, 4096),
    ({"context_window": 4096}, {}, 4096),
    ({"max_context_length": 4096}, {}, 4096),
    ({"meta": {"n_ctx_train": 131072, "n_ctx": 4096}}, {}, 4096),
    ({"meta": {"n_ctx_train": 131072}}, {}, None),
    ({"context_length": 131072, "top_provider": {"context_length": 4096}}, {}, 4096),
    ({"max_context_length": 131072, "loaded_context_length": 4096}, {}, 4096),
    ({"context_length": "4096"}, {}, None),
    ({"max_model_len": -1, "context_length": True, "context_window": 2**80}, {}, None),
    ({}, {"/props": {"default_generation_settings": {"n_ctx": 4096}}}, 4096),
    ({}, {"/info": {"max_total_tokens": 4096, "max_input_tokens": 4000}}, 4096),
    ({}, {"/get_server_info": {"context_length": 4096}}, 4096),
    ({}, {"/get_server_info": {"context_length": None}, "/get_model_info": {"context_length": 4096}}, 4096),
    ({}, {"/api/v0/models": ELSEWHERE}, 4096),
    ({}, {"/api/ps": {"models": [{"name": NAME, "context_length": 4096}]}}, 4096),
    ({}, {"/api/ps": {"models": []}, "/api/show": {"parameters": 'stop "x"\nnum_ctx    4096'}}, 4096),
    ({}, {"/api/ps": {"models": []}, "/api/show": {"parameters": "num_ctx many"}}, None),
    ({}, {"/props": [1], "/info": None, "/api/v0/models": {"data": 1}, "/api/ps": {"models": {}}}, None),
    ({}, {"/props": b"{", "/info": b"[" * 100_000}, None),
    ({}, {}, None),
]


@pytest.mark.parametrize(("row", "pages", "window"), WINDOWS)
def test_a_window_is_read_wherever_the_server_says_it(row: Said, pages: dict[str, Any], window: int | None) -> None:
    rules = Rules(row=row, pages=pages)
    with opened(rules) as backend:
        assert backend.window == backend.describe()["max_length"] == window
    with opened(rules, max_model_len=1000) as backend:
        assert backend.window == 1000
    assert "/api/show" not in rules.asked or "/api/ps" in pages  # what only Ollama knows is posted to Ollama alone


def test_a_window_that_the_list_of_models_does_not_state_is_no_part_of_the_identity() -> None:
    fingerprints = set()
    with standing_in(rules := Rules()) as url:
        for tokens in (4096, 8192):
            rules.pages = {"/props": {"default_generation_settings": {"n_ctx": tokens}}}
            backend = OpenAiBackend.open(NAME, base_url=url, tokenizer=str(TINY), logprobs=False)
            assert backend.window == tokens
            fingerprints.add(backend.fingerprint)
            backend.close()
    assert len(fingerprints) == 1


def run(rules: Rules, output: Path, **changes: Any) -> tuple[Run, list[str]]:
    told: list[str] = []
    with standing_in(rules) as url:
        options = {"base_url": url, "patience_s": 1.0, "logprobs": False} | changes.pop("options", {})
        settings: dict[str, Any] = {"lengths": [512], "limit": 2, "haystack": "generated", "output": output}
        tasks = changes.pop("tasks", "ruler/niah_single_1")
        result = evaluate(NAME, tasks, backend="openai", tokenizer="anchor-tiny", backend_args=options,
                          tell=told.append, **settings | changes)  # fmt: skip
    return result, told


def test_a_servers_window_is_held_against_the_prompts_and_not_the_model(tmp_path: Path) -> None:
    result, told = run(Rules(row={"max_model_len": 600}), tmp_path, max_length=2048)
    assert {record.outcome for record in result.records} == {"answered"} and not [
        line for line in told if "600" in line
    ]
    with pytest.raises(LengthError, match="length 1024 is over the model's limit of 600 positions: --lengths up to"):
        run(Rules(row={"max_model_len": 600}), tmp_path, max_length=2048, lengths=[1024, 2048])


def test_a_length_over_a_servers_window_loses_its_samples_and_no_others(tmp_path: Path) -> None:
    result, told = run(Rules(row={"max_model_len": 600}), tmp_path, max_length=2048, lengths=[512, 1024])
    assert [(r.length, r.outcome) for r in result.records] == 2 * [(512, "answered")] + 2 * [(1024, "does_not_fit")]
    assert "length 1024 is over the model's limit of 600 positions: its samples get no answer (does_not_fit)" in told
    assert [str(each) for each in findings(result.path, None, TINY) if each.differs] == []


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_what_a_server_read_is_a_fact_of_the_record_that_verifies(api: str, tmp_path: Path) -> None:
    result, _ = run(Rules(counting(lambda tokens: tokens - 200)), tmp_path, options={"api": api})
    assert all(0 < record.facts[PROMPT_READ] < record.prompt_tokens for record in result.records)
    assert [str(each) for each in findings(result.path, None, TINY) if each.differs] == []
    assert json.loads((result.path / "records.jsonl").read_text().splitlines()[0])["facts"][PROMPT_READ]
    assert load_run(result.path).records == result.records
