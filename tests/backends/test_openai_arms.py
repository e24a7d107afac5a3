"""The openai backend before a vLLM server with our plugin: the arms that the server says it computes, and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from servers import KEY, NAME, REPOSITORY, WINDOW, Server, serving

from anchoreval.arms.arm import parse_arm, parse_arms
from anchoreval.arms.rope import parse_level
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.openai.backend import OpenAiBackend
from anchoreval.cards import select_tasks
from anchoreval.errors import UnsupportedArm
from anchoreval.model import Model
from anchoreval.runs.prompts import Prompts, Spec
from anchoreval.schema import Output, Request
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import load_tokenizer

if find_spec("vllm") is None:
    pytest.skip("VLLM ABSENT: no server was asked (make test-vllm)", allow_module_level=True)
from anchoreval.vllm_plugin.settings import engine_settings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MODEL = REPOSITORY / "models" / "anchor-tiny"
TOLERANCE = 2e-3  # nats per token in float32, as derived in test_openai.py
ARMS = ("fp32", "fp32+anchor-reset", "fp32+anchor-shift:700", "fp32+reset", "anchor/fp32", "anchor/fp32+anchor-reset")


def flags(settings: dict[str, object]) -> list[str]:
    """Keyword arguments of an engine as flags of `vllm serve`."""
    found = ["--middleware", "anchoreval.vllm_plugin.http.SaysArm"]
    for name, value in settings.items():
        found += [f"--{name.replace('_', '-')}"]
        found += [str(one) for one in value] if isinstance(value, list) else []
        found += [json.dumps(value) if isinstance(value, dict) else str(value)] if not isinstance(value, list) else []
    return found


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = engine_settings(MODEL, parse_level("fp32"), plans=True, documents="anchor")
    arguments = ["--dtype", "float32", "--max-model-len", str(WINDOW), *flags(settings)]
    with serving(MODEL, NAME, arguments, tmp_path_factory.mktemp("planned") / "log") as made:
        yield made


@pytest.fixture
def backend(planned: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAiBackend]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    made = OpenAiBackend.open(NAME, base_url=planned.url, tokenizer=str(MODEL))
    yield made
    made.close()


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    chosen, single = select_tasks("ruler/niah_multikey_1,ruler/qa_1")
    spec = Spec(chosen, (512,), parse_arms("fp32"), 2, 42, "base", Sources(None, "generated", "3.0.1"), single)
    tokenizer = load_tokenizer(MODEL)
    prompts = Prompts(spec, Model.of_tokenizer(tokenizer, WINDOW))
    return [prompts.request(cell.task, sample) for cell in prompts.cells() for sample in cell.samples]


def answers(backend: OpenAiBackend | HfBackend, arm: str, requests: list[Request]) -> dict[str, Output]:
    with backend.under(parse_arm(arm)):
        return {output.sample_id: replace(output, seconds=0.0) for output in backend.answer(requests)}


def test_arms_that_the_server_says_are_those_of_hf_in_any_order(
    backend: OpenAiBackend, requests: list[Request], tmp_path: Path
) -> None:
    hf = HfBackend.open(str(MODEL), dtype="float32")
    logprobs: dict[str, list[float]] = {}
    for arm in (*ARMS, "fp32"):  # the first once more: no keys and values of other positions were taken from a cache
        got, want = answers(backend, arm, requests), answers(hf, arm, requests)
        for request in requests:
            mine, theirs = got[request.sample_id], want[request.sample_id]
            assert (mine.text, mine.token_ids, mine.finish) == (theirs.text, theirs.token_ids, theirs.finish)
            bound = TOLERANCE * len(request.reference_ids)
            assert mine.reference_logprob == pytest.approx(theirs.reference_logprob, abs=bound, rel=0)
        logprobs[arm] = [got[request.sample_id].reference_logprob or 0.0 for request in requests]
    hf.close()
    for arm in ARMS[1:]:  # each arm is another computation than the plain one
        assert max(abs(one - other) for one, other in zip(logprobs[arm], logprobs["fp32"], strict=True)) > 0.1


def test_the_header_says_that_the_server_said_so(backend: OpenAiBackend) -> None:
    with backend.under(parse_arm("anchor/fp32+anchor-reset")) as applied:
        assert applied["rope"] == {"level": "fp32", "said_by": "the server's plugin"}
        assert (applied["positions"], applied["attention"]) == ("anchor-reset", "anchor")
    assert json.loads(backend.describe()["server"]["says"])["plans"] is True


@pytest.mark.parametrize(
    ("arm", "named"),
    [
        ("native", "rope 'native': the server computes 'fp32'"),
        ("bf16", "rope 'bf16': the server computes 'fp32'"),
        ("intra-doc/fp32", "attention 'intra-doc': the server's mask is 'anchor'"),
        ("star:16/fp32", "attention 'star:16': the server's mask is 'anchor'"),
        ("sink-window:4:16/fp32", "attention 'sink-window:4:16': the server's mask is 'anchor'"),
    ],
)
def test_arms_that_the_server_does_not_compute_are_refused(backend: OpenAiBackend, arm: str, named: str) -> None:
    with pytest.raises(UnsupportedArm, match=named), backend.under(parse_arm(arm)):
        pass
