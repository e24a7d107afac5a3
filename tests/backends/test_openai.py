"""The openai backend against a real vLLM server: the answers of hf, through every fault, and nothing given away."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from servers import FAULTS, KEY, NAME, REPOSITORY, WINDOW, Proxy, Server, proxied

from anchoreval import evaluate
from anchoreval.arms.arm import parse_arm, parse_arms
from anchoreval.backends import open_backend
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.openai.backend import OpenAiBackend
from anchoreval.cards import select_tasks
from anchoreval.errors import ModelError, UnknownName, UnsupportedArm
from anchoreval.model import Model
from anchoreval.runs.prompts import Prompts, Spec
from anchoreval.schema import Continuation, Output, Request
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

if find_spec("vllm") is None:
    pytest.skip("VLLM ABSENT: no server was asked (make test-vllm)", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MODEL = REPOSITORY / "models" / "anchor-tiny"
OPENED: list[OpenAiBackend] = []  # closed after each test
#: Nats by which a token's log-probability may differ between engines in float32: ten sums in a row of up to 1,024
#: terms, whose order changes each by 1,024 x 2^-24 = 6e-5 at worst and a 30th of it as a rule; logits are of size 10.
TOLERANCE = 10 * 10 * 6e-5 / 30


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("ANCHOREVAL_API_KEY", raising=False)
    yield
    while OPENED:
        OPENED.pop().close()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with proxied(server) as made:
        yield made


@pytest.fixture(scope="module")
def hf() -> Iterator[HfBackend]:
    backend = HfBackend.open(str(MODEL), dtype="float32")
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return load_tokenizer(MODEL)


def ruler(length: int, limit: int, tasks: str = "ruler") -> list[Request]:
    chosen, single = select_tasks(tasks)
    sources = Sources(None, "generated", "3.0.1")
    spec = Spec(chosen, (length,), parse_arms("native"), limit, 42, "base", sources, single)
    tokenizer = load_tokenizer(MODEL)
    prompts = Prompts(spec, Model.of_tokenizer(tokenizer, WINDOW))
    return [prompts.request(cell.task, sample) for cell in prompts.cells() for sample in cell.samples]


def prompt(tokenizer: TextTokenizer, text: str, new: int = 8, **more: Any) -> Request:
    ids = (0, *tokenizer.encode(text))
    return Request(text[:20], ids, (-1, *[0] * (len(ids) - 1)), ("query",), new, **more)


def opened(url: str, **options: Any) -> OpenAiBackend:
    asked = {"base_url": url, "tokenizer": str(MODEL), "patience_s": 60.0} | options
    OPENED.append(OpenAiBackend.open(NAME, **asked))
    return OPENED[-1]


def answers(backend: Any, requests: Sequence[Request], arm: str = "native") -> dict[str, Output]:
    with backend.under(parse_arm(arm)):
        found = list(backend.answer(requests))
    assert len(found) == len({output.sample_id for output in found}) == len(requests)
    return {output.sample_id: replace(output, seconds=0.0) for output in found}


def assert_same(
    got: dict[str, Output], want: dict[str, Output], requests: Sequence[Request], logprobs: bool = True
) -> None:
    for request in requests:
        mine, theirs = got[request.sample_id], want[request.sample_id]
        assert (mine.text, mine.finish, mine.why) == (theirs.text, theirs.finish, theirs.why)
        assert mine.token_ids == theirs.token_ids
        if not logprobs or theirs.reference_logprob is None:
            assert mine.reference_logprob is None
        else:
            bound = TOLERANCE * len(request.reference_ids)
            assert mine.reference_logprob == pytest.approx(theirs.reference_logprob, abs=bound, rel=0)
        for one, other, choice in zip(mine.choices, theirs.choices, request.choices, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=TOLERANCE * max(choice.counted, 1), rel=0)
            assert one.greedy == other.greedy


def test_a_server_gives_the_outputs_and_log_probabilities_of_hf(server: Server, hf: HfBackend) -> None:
    requests = ruler(1024, 1)
    backend = opened(server.url)
    got, want = answers(backend, requests), answers(hf, requests)
    assert {output.finish for output in want.values()} == {"stop", "length"}
    assert_same(got, want, requests)
    assert backend.describe()["max_length"] == backend.window == WINDOW


def test_a_server_gives_the_outputs_of_the_same_engine_offline(server: Server) -> None:
    requests = ruler(1024, 1, "ruler/niah_single_2,ruler/vt,ruler/cwe,ruler/qa_1")
    got = answers(opened(server.url), requests)
    offline = open_backend("vllm", str(MODEL), dtype="float32", max_model_len=WINDOW)
    want = answers(offline, requests)
    offline.close()
    assert_same(got, want, requests)


def test_stops_ends_and_least_lengths_are_those_of_hf(proxy: Proxy, hf: HfBackend, tokenizer: TextTokenizer) -> None:
    plain = ruler(512, 2, "ruler/niah_single_1")[0]
    (long,) = answers(hf, [plain]).values()
    assert len(long.token_ids) > 4
    middle = tokenizer.decode(list(long.token_ids[1:4]))
    first = long.token_ids[0]
    requests = [
        replace(plain, sample_id="stop", stop=("never there", middle[1:])),
        replace(plain, sample_id="end", end_ids=(long.token_ids[2],)),
        replace(plain, sample_id="least", end_ids=(first,), min_new_tokens=1),
        replace(plain, sample_id="one", max_new_tokens=1),
        replace(plain, sample_id="none", max_new_tokens=0),
        replace(plain, sample_id="six stops", stop=("a!", "b!", "c!", "d!", "e!", middle)),
    ]
    got, want = answers(opened(proxy.url), requests), answers(hf, requests)
    assert_same(got, want, requests)
    sent = [body["stop"] for body in proxy.bodies if "stop" in body]
    assert sorted(sent) == [["a!", "b!", "c!", "d!"], ["never there", middle[1:]]]  # so that servers stop too
    assert len(want["stop"].token_ids) < len(long.token_ids) and want["least"].token_ids[0] != first


def test_choices_of_one_token_and_of_many_score_as_on_hf(
    server: Server, hf: HfBackend, tokenizer: TextTokenizer
) -> None:
    base = ruler(512, 1, "ruler/vt")[0]
    (said,) = answers(hf, [base]).values()
    texts = [tokenizer.encode(text) for text in (" A", " the house on the hill", " 12345", "")]
    choices = [Continuation(tuple(ids), len(ids)) for ids in texts]
    choices += [Continuation(said.token_ids[:5], 5), Continuation(tuple(texts[1]), 2), Continuation(tuple(texts[1]), 0)]
    ids = (*base.token_ids, 500)  # an unlikely token, behind which the likeliest one is still that
    (behind,) = answers(hf, [replace(base, token_ids=ids, max_new_tokens=1, segment_ids=(), roles=())]).values()
    choices += [Continuation((500, *behind.token_ids), counted) for counted in (2, 1)]
    request = replace(base, choices=tuple(choices), gold=0, max_new_tokens=0, reference_ids=())
    got, want = answers(opened(server.url), [request]), answers(hf, [request])
    assert_same(got, want, [request])
    greedy = [choice.greedy for choice in want[base.sample_id].choices]
    assert greedy == [False, False, False, True, True, False, True, False, True]


def test_prompts_up_to_the_last_position_are_answered_and_no_further(server: Server, tokenizer: TextTokenizer) -> None:
    line = prompt(tokenizer, "It was a long day, and then the night came. " * 300, 8)
    given = tuple(tokenizer.encode(" said the old man to"))[:4]
    full = [replace(line, sample_id=str(more), token_ids=line.token_ids[: WINDOW - 4 + more]) for more in (0, 1)]
    requests = [replace(one, max_new_tokens=4, reference_ids=given, segment_ids=(), roles=()) for one in full]
    found = answers(opened(server.url), requests)
    assert len(found["0"].token_ids) == 4 and -100 < (found["0"].reference_logprob or 0) < 0
    assert found["1"].finish == "error" and f"{WINDOW + 1} positions" in str(found["1"].why)


def test_a_refused_request_alone_becomes_an_error(server: Server, tokenizer: TextTokenizer) -> None:
    good, bad = prompt(tokenizer, "One two three four"), prompt(tokenizer, "Five six seven eight")
    found = answers(opened(server.url), [replace(bad, token_ids=(*bad.token_ids, 999_999)), good])
    assert found[good.sample_id].finish != "error"
    refused = found[bad.sample_id]
    assert refused.finish == "error" and "HTTP 400" in str(refused.why) and "\n" not in str(refused.why)


def test_chat_answers_what_hf_answers_to_the_template_written_out(
    server: Server, hf: HfBackend, tokenizer: TextTokenizer
) -> None:
    requests = [replace(one, reference_ids=()) for one in ruler(512, 3, "ruler/niah_single_1,ruler/vt")]
    turns = [tokenizer.decode(list(request.token_ids[1:])) for request in requests]
    written = [(0, *tokenizer.encode(f"Note: {turn}\nAnswer:")) for turn in turns]
    whole = [replace(request, token_ids=ids) for request, ids in zip(requests, written, strict=True)]
    backend = opened(server.url, api="chat")
    assert_same(answers(backend, requests), answers(hf, whole), requests)
    assert backend.describe()["reference_logprobs"] is None


def other_vendor(proxy: Proxy, echo: bool) -> None:
    """Has the proxy take text alone and none of vLLM's own fields, as other servers do; `echo` as some of them do."""
    known = {"model", "prompt", "max_tokens", "temperature", "seed", "stop", "logprobs", "echo"}

    def on_request(path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        if not set(body) <= known:
            return 400, {"error": {"message": f"unknown: {sorted(set(body) - known)}"}}
        if not isinstance(body["prompt"], str):
            return 400, {"error": {"message": "prompt: a string is expected"}}
        if body.get("echo") and not echo:
            return 400, {"error": {"message": "echo is not supported"}}
        return None

    def on_answer(path: str, said: Any) -> Any:
        if path.endswith("/version"):
            return {}
        if path.endswith("/models"):
            return {"data": [{"id": NAME, "object": "model", "owned_by": "acme"}]}
        choices = [{name: choice[name] for name in ("text", "finish_reason", "logprobs")} for choice in said["choices"]]
        return {"choices": choices, "usage": said["usage"]}

    proxy.on_request, proxy.on_answer = on_request, on_answer


@pytest.mark.parametrize("echo", [False, True])
def test_a_server_of_text_alone_gives_the_same_texts_and_log_probabilities_where_it_echoes(
    proxy: Proxy, hf: HfBackend, echo: bool
) -> None:
    other_vendor(proxy, echo)
    requests = ruler(512, 2, "ruler/niah_single_1,ruler/vt")
    backend = opened(proxy.url)
    got, want = answers(backend, requests), answers(hf, requests)
    for request in requests:
        mine, theirs = got[request.sample_id], want[request.sample_id]
        assert (mine.text, mine.finish) == (theirs.text, theirs.finish)
        bound = TOLERANCE * len(request.reference_ids)
        expected = pytest.approx(theirs.reference_logprob, abs=bound, rel=0) if echo else None
        assert mine.reference_logprob == expected
    assert backend.describe()["reference_logprobs"] == (
        "echo of the prompt with its log-probabilities" if echo else None
    )
    assert backend.window is None and backend.describe()["versions"] == {}
    choosing = replace(requests[0], choices=(Continuation((5,), 1), Continuation((6, 7), 2)), gold=0)
    if echo:
        got, want = answers(backend, [choosing]), answers(hf, [choosing])
        for one, other in zip(got[choosing.sample_id].choices, want[choosing.sample_id].choices, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=2 * TOLERANCE, rel=0)
    else:
        with pytest.raises(ModelError, match="does not offer"):
            answers(backend, [choosing])


def test_a_text_that_gives_other_tokens_is_not_sent(proxy: Proxy, tokenizer: TextTokenizer) -> None:
    other_vendor(proxy, False)
    good = prompt(tokenizer, "One two three four")
    split = replace(good, sample_id="split", token_ids=(0, *(tokenizer.encode(c)[0] for c in "One two")))
    found = answers(opened(proxy.url), [good, split])
    assert found[good.sample_id].finish != "error"
    assert found["split"].finish == "error" and "no text has the tokens" in str(found["split"].why)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_no_answer(
    proxy: Proxy, tokenizer: TextTokenizer, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = [prompt(tokenizer, f"{word} and then", 6, reference_ids=(300, 16)) for word in ("Sun", "Rain", "Snow")]
    backend = opened(proxy.url, concurrency=2, timeout_s=4.0)
    want = answers(backend, requests)
    proxy.faults.extend([FAULTS[fault]] * 2)
    before = time.monotonic()
    got = answers(backend, requests)
    assert proxy.made == [fault] * 2
    assert_same(got, want, requests)
    assert ("waiting up to 60 s" if fault in ("429", "503") else "trying again") in capsys.readouterr().err
    if fault == "429":
        assert time.monotonic() - before >= 1.0  # what Retry-After asks for


def test_a_server_that_starts_is_waited_for(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    proxy.faults.extend([FAULTS["503"], FAULTS["reset"]])
    proxy.at_opening.extend([FAULTS["503"], FAULTS["reset"]])
    backend = opened(proxy.url)
    assert proxy.made == ["503", "reset"] * 2 and "waiting up to 60 s" in capsys.readouterr().err
    assert backend.describe()["server"]["root"] == str(MODEL)


def test_no_more_requests_are_under_way_than_asked_for(proxy: Proxy, tokenizer: TextTokenizer) -> None:
    requests = [prompt(tokenizer, f"{i} {i} {i}", 32) for i in range(9)]  # long enough to meet on a busy machine
    answers(opened(proxy.url, concurrency=3), requests)
    assert 1 < proxy.most <= 3


def test_a_placebo_asks_one_at_a_time_and_backwards(proxy: Proxy, tokenizer: TextTokenizer) -> None:
    requests = [prompt(tokenizer, f"{i} and", 2) for i in range(5)]
    backend = opened(proxy.url, logprobs=False)
    plain = answers(backend, requests)
    proxy.most, opening = 0, len(proxy.bodies)
    assert_same(answers(backend, requests, "native~placebo"), plain, requests)
    sent = [body["prompt"] for body in proxy.bodies[opening:]]
    assert proxy.most == 1 and sent == sorted(sent, reverse=True)
    with backend.under(parse_arm("native~placebo")) as applied:
        assert applied["computed_in"] == {"concurrency": 1, "order": "reversed"}


@pytest.mark.parametrize(
    ("arm", "settings", "named"),
    [
        ("fp32", {}, "rope 'fp32': a server computes its own"),
        ("native+shift:16", {}, "positions 'shift:16'"),
        ("anchor/native", {}, "attention 'anchor'"),
        ("native", {"dtype": "float32"}, "dtype 'float32'"),
        ("native", {"kernel": "fused"}, "kernel 'fused'"),
    ],
)
def test_arms_of_which_a_server_gives_no_proof_are_refused(
    server: Server, arm: str, settings: dict[str, str], named: str
) -> None:
    backend = opened(server.url)
    with pytest.raises(UnsupportedArm, match=named), backend.under(parse_arm(arm, **settings)):
        pass


@pytest.mark.parametrize("change", [{"root": "/other/weights"}, {"id": "other"}])
def test_another_model_behind_the_same_address_ends_the_run(
    proxy: Proxy, tokenizer: TextTokenizer, change: dict[str, str]
) -> None:
    requests = [prompt(tokenizer, f"{word} and then", 4) for word in ("Sun", "Rain", "Snow")]
    backend = opened(proxy.url, concurrency=1)
    answers(backend, requests)

    def on_answer(path: str, said: Any) -> Any:
        return {"data": [said["data"][0] | change]} if path.endswith("/models") else said

    proxy.on_answer = on_answer
    proxy.faults.append(FAULTS["reset"])
    with pytest.raises(ModelError, match="another server is behind") as caught:
        answers(backend, requests)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_served_is_answered_with_those_that_are(server: Server) -> None:
    with pytest.raises(UnknownName, match="did you mean tiny"):
        open_backend("openai", "tinny", base_url=server.url, tokenizer=str(MODEL))


def test_a_key_that_is_missing_or_wrong_is_said_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-0000000000")
    with pytest.raises(ModelError, match="the key in OPENAI_API_KEY is not taken"):
        opened(server.url)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ModelError, match="put the key in the environment variable OPENAI_API_KEY"):
        opened(server.url)
    monkeypatch.setenv("ANCHOREVAL_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-0000000000")
    opened(server.url).close()


def test_the_key_stands_in_nothing_that_is_written(
    proxy: Proxy, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    echoed = {"error": {"message": f"no: you sent Bearer {KEY}"}}
    asked = {"n": 0}

    def on_request(path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        asked["n"] += 1
        return (400, echoed) if asked["n"] in (8, 11) else (503, echoed) if asked["n"] == 9 else None

    proxy.on_request = on_request
    run = evaluate(NAME, "ruler/niah_single_1", lengths=[512], limit=4, output=tmp_path, max_length=WINDOW,
                   backend="openai", tokenizer="anchor-tiny", backend_args={"base_url": proxy.url})  # fmt: skip
    assert any(record.finish == "error" and "Bearer ***" in str(record.why) for record in run.records)
    backend = opened(proxy.url)
    proxy.on_request = lambda path, body: (401, echoed)
    with pytest.raises(ModelError, match=r"401: no: you sent Bearer \*\*\*") as caught:
        answers(backend, ruler(512, 1, "ruler/vt"))
    said = [str(caught.value), repr(vars(backend)), json.dumps(backend.describe()), backend.fingerprint, caplog.text]
    said += [*capfd.readouterr(), *(path.read_text() for path in tmp_path.rglob("*") if path.is_file())]
    assert "waiting up to" in "".join(said) and len(list(tmp_path.rglob("*.jsonl"))) > 0
    assert not [text for text in said if KEY in text]


def test_the_fingerprint_is_of_the_server_and_not_of_speed(server: Server, proxy: Proxy) -> None:
    one = opened(server.url).fingerprint
    assert one == opened(server.url, concurrency=2, timeout_s=50.0, patience_s=9.0).fingerprint
    assert len({one, opened(proxy.url).fingerprint, opened(server.url, logprobs=False).fingerprint}) == 3


def test_the_description_has_the_keys_of_hf(server: Server, hf: HfBackend) -> None:
    said = opened(server.url).describe()
    assert set(hf.describe()) <= set(said) and json.loads(json.dumps(said)) == said
    assert said["server"]["root"] == str(MODEL) and said["versions"]["vllm"]


def test_outputs_come_as_they_are_ready(server: Server, tokenizer: TextTokenizer) -> None:
    backend = opened(server.url, concurrency=1)
    found = backend.answer([prompt(tokenizer, f"{i} and", 4) for i in range(3)])
    first = next(found)
    assert first.finish == "length" and 0 < first.seconds < math.inf
    found.close()
    backend.close()
    with pytest.raises(ModelError, match="closed"):
        next(backend.answer([prompt(tokenizer, "more", 1)]))
