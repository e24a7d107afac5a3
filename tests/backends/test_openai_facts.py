"""Servers as they are: what a list of models or a probe answers is a fact that is said, and the run goes on."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from standin import NAME, TINY, Rules, Said, prompt_of, standing_in

from anchoreval import evaluate
from anchoreval.backends import BACKENDS, opener_of
from anchoreval.backends.options import OPTIONS
from anchoreval.errors import AnchorEvalError, ModelError, UnknownName
from anchoreval.records.run import Run
from anchoreval.runs.verify.records import findings

pytest.importorskip("httpx2", reason="HTTPX2 ABSENT: no server was asked (pip install 'anchoreval[openai]')")

from anchoreval.backends.openai.backend import OpenAiBackend

BOTH = ("/v1/completions", "/v1/chat/completions")


def opened(rules: Rules, path: str = "/v1", **options: Any) -> dict[str, Any]:
    """What a backend says of the server that it opened at another path of the stand-in."""
    with standing_in(rules) as url:
        asked: dict[str, Any] = {"tokenizer": str(TINY), "patience_s": 5.0, "logprobs": False} | options
        backend = OpenAiBackend.open(NAME, base_url=url.removesuffix("/v1") + path, **asked)
        try:
            said = backend.describe()
            return said | {"path": said["server"]["address"].partition("//")[2].partition("/")[2]}
        finally:
            backend.close()


def run(rules: Rules, output: Path, **changes: Any) -> tuple[Run, list[str]]:
    told: list[str] = []
    with standing_in(rules) as url:
        options = {"base_url": url, "patience_s": 5.0} | changes.pop("options", {})
        asked = {"lengths": [512], "limit": 1, "haystack": "generated", "output": output} | changes
        result = evaluate(NAME, "ruler/niah_single_1", backend="openai", tokenizer="anchor-tiny", backend_args=options,
                          tell=told.append, **asked)  # fmt: skip
    return result, told


LISTS: dict[str, tuple[Any, str]] = {
    "rows": ({"data": [{"id": NAME}]}, ""),
    "rows under another key": ({"models": [{"name": NAME}]}, ""),
    "a bare list": ([{"id": NAME}], ""),
    "names": ({"data": [NAME]}, ""),
    "by name": ({"data": {NAME: {"owned_by": "a"}}}, ""),
    "empty": ({"data": []}, "the model list here is empty: asked as m"),
    "other models": ({"data": [{"id": "x"}, {"id": "y"}]}, "the model list here holds 'x', 'y' alone: asked as m"),
    "rows of nothing": ({"data": [None, {}, {"id": 3}]}, "the model list here is empty: asked as m"),
    "no list": ({"data": 3}, "no model list here, asked as m (it is {'data': 3})"),
    "null": (None, "no model list here, asked as m (it is None)"),
    "a page": ((200, b"<html>"), "no model list here, asked as m ("),
    "404": ((404, {}), "no model list here, asked as m (HTTP 404)"),
    "500": ((500, b"oh"), "no model list here, asked as m (HTTP 500)"),
    "503": ((503, b"oh"), "no model list here, asked as m (HTTP 503)"),
    "401": ((401, {"error": "key"}), "no model list here, asked as m (HTTP 401)"),
    "403": ((403, {}), "no model list here, asked as m (HTTP 403)"),
    "nested": ((200, b"[" * 5000 + b"]" * 5000), "no model list here, asked as m ("),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_models_is_no_condition(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page, notice = LISTS[name]
    assert opened(Rules(pages={"/v1/models": page}))["server"]["model"] == NAME
    said = capsys.readouterr().err
    assert notice in said and ("asked as" in said) == bool(notice)


def test_a_model_that_the_server_refuses_is_answered_with_those_that_it_lists() -> None:
    def change(body: Said, said: Said) -> tuple[int, Any]:
        return 404, {"error": {"message": "The model `m` does not exist."}}

    rules = Rules(change, pages={"/v1/models": {"data": [{"id": "m-7b"}]}}, at_opening=True)
    with pytest.raises(UnknownName, match=r"unknown model at .*: did you mean m-7b"):
        opened(rules)


PROBES: dict[str, tuple[Any, str]] = {
    "500": ((500, b"Internal Server Error"), "no log-probabilities here (HTTP 500 to echo)"),
    "503": ((503, b""), "no log-probabilities here (HTTP 503 to echo)"),
    "400": ((400, {"error": "echo"}), "no log-probabilities here (HTTP 400 to echo)"),
    "a list": ([{"token": "a"}], "no log-probabilities here (echo is answered without those of the prompt)"),
    "of chat": ({"content": []}, "no log-probabilities here (echo is answered without those of the prompt)"),
    "one": ({"token_logprobs": [-1.0]}, "no log-probabilities here (echo is answered without those of the prompt)"),
    "above 0": ({"token_logprobs": [0, 1, 2]}, "no log-probabilities here ("),
    "a text": ("none", "no log-probabilities here ("),
}


@pytest.mark.parametrize("name", PROBES)
def test_log_probabilities_are_no_condition(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, notice = PROBES[name]

    def change(body: Said, said: Said) -> tuple[int, Any] | None:
        if body.get("echo") and isinstance(other, tuple):
            return other
        said["choices"][0]["logprobs"] = other if body.get("echo") else None
        return None

    result, _ = run(Rules(change, at_opening=True), tmp_path)
    assert [(record.outcome, record.reference_logprob) for record in result.records] == [("answered", None)]
    assert notice in capsys.readouterr().err


@pytest.mark.parametrize("status", [400, 422, 500])
def test_prompts_go_as_text_where_token_ids_are_not_taken(status: int) -> None:
    def change(body: Said, said: Said) -> tuple[int, Any] | None:
        return (status, {"detail": "text"}) if isinstance(body.get("prompt"), list) else None

    assert not opened(Rules(change, at_opening=True))["server"]["offers"]["token_prompts"]


PATHS = [
    "", "/", "/v1", "/v1/", "/v1//", "/v1/chat/completions", "/v1/completions", "/v1/chat", "/v1/models", "/v1/v1",
    "/v1?api-version=1", "/?a=b", "/v1/completions/",
]  # fmt: skip


@pytest.mark.parametrize("api", [None, "completions", "chat"])
@pytest.mark.parametrize("path", PATHS)
def test_the_interface_is_found_by_trying_and_said(
    path: str, api: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    said = opened(Rules(), path, api=api)
    assert said["path"] == "v1" and said["server"]["api"] == (api or "completions")
    line = "the server answers at http://127.0.0.1"
    assert (line in capsys.readouterr().err) == (path.rstrip("/") != "/v1")


def test_an_address_without_a_version_stays_as_it_is() -> None:
    rules = Rules(interfaces=("/api/completions",), pages={"/completions": {"content": "llama's own"}})
    assert opened(rules, "/api")["path"] == "api"
    native = Rules(pages={"/completions": {"content": "llama's own"}, "/chat/completions": {"choices": [{}]}})
    assert opened(native, "")["path"] == "v1"


def test_a_server_of_chat_alone_is_asked_so_and_its_lengths_count_its_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = Rules(interfaces=BOTH[1:])
    result, _ = run(rules, tmp_path / "found")
    assert "no /completions here (HTTP 404): asked by /chat/completions (api=chat)" in capsys.readouterr().err
    named, _ = run(Rules(), tmp_path / "named", options={"api": "chat"})
    assert result.header["identity"]["form"] == named.header["identity"]["form"] == "server"
    assert [r.prompt_sha256 for r in result.records] == [r.prompt_sha256 for r in named.records]
    assert [str(each) for each in findings(result.path, None, TINY) if each.differs] == []


@pytest.mark.parametrize(("api", "there"), [("completions", BOTH[1:]), ("chat", BOTH[:1])])
def test_an_interface_that_was_named_and_is_not_there_is_one_line(api: str, there: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=r"no server with OpenAI's interface here \(HTTP 404\).*api=") as caught:
        opened(Rules(interfaces=there), api=api)
    assert "\n" not in str(caught.value)


def test_nothing_of_this_kind_behind_an_address_is_one_line_that_says_what_was_tried() -> None:
    with pytest.raises(ModelError, match=r"interface here \(HTTP 404\): asked at .*/v1/completions, .*/chat") as caught:
        opened(Rules(interfaces=()))
    assert "\n" not in str(caught.value)


def test_arguments_of_a_chat_template_are_sent_and_part_of_the_run(tmp_path: Path) -> None:
    rules, asked = Rules(), {"options": {"api": "chat"}}
    result, _ = run(rules, tmp_path, template_args={"thinking": False}, **asked)
    assert [body["chat_template_kwargs"] for body in rules.bodies] == [{"thinking": False}]
    plain, _ = run(Rules(), tmp_path, **asked)
    assert result.header["identity"]["template_args"] == {"thinking": False} and plain.path != result.path
    assert [str(each) for each in findings(result.path, None, TINY) if each.differs] == []
    with pytest.raises(AnchorEvalError, match="--template-args are arguments of a chat template: add api=chat"):
        run(Rules(), tmp_path, template_args={"thinking": False})


def test_a_server_that_takes_no_arguments_of_a_template_is_named(tmp_path: Path) -> None:
    def change(body: Said, said: Said) -> tuple[int, Any] | None:
        return (400, {"error": "unknown field"}) if "chat_template_kwargs" in body else None

    with pytest.raises(ModelError, match=r"--template-args thinking: the server takes no chat_template_kwargs"):
        opened(Rules(change, at_opening=True), api="chat", template_args={"thinking": False})


def test_what_a_server_says_of_the_key_stands_in_nothing_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "sk-anchoreval-0123456789"
    monkeypatch.setenv("ANCHOREVAL_API_KEY", key)

    def change(body: Said, said: Said) -> None:
        said["system_fingerprint"] = key
        said["choices"][0] |= {"text": f" 42 {key[:8]}\n{key[8:]}", "token_ids": None}
        assert key not in prompt_of(body)

    rules = Rules(
        change, row={"owned_by": key, "root": f"/{key}"}, pages={"/version": {"version": key}}, at_opening=True
    )
    result, told = run(rules, tmp_path)
    assert {record.outcome for record in result.records} == {"answered"}
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    output = capsys.readouterr()
    for text in (*files, *told, output.out, output.err):
        assert key not in text and key[8:] not in text


#: Parameters of `open` that have flags of their own, or that the run itself gives.
ELSEWHERE = frozenset({
    "model", "dtype", "kernel", "device", "trust_remote_code", "chunk_tokens", "batch_tokens", "realisation", "product",
    "base_url", "tokenizer", "template_args", "use_kernels",
})  # fmt: skip


def test_the_help_names_every_option_of_a_backend_that_no_flag_gives() -> None:
    absent = {"fake"} | (set() if find_spec("vllm") else {"vllm"})
    for name in set(BACKENDS) - absent:
        assert name in OPTIONS, f"backends/options.py: OPTIONS has no row {name!r} (empty if flags give all options)"
        assert set(OPTIONS[name]) == inspect.signature(opener_of(name)).parameters.keys() - ELSEWHERE
