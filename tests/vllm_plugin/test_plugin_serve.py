"""The plugin in a real OpenAI-compatible server: the header that says the level, and plans over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="VLLM ABSENT: nothing was computed by vLLM (make test-vllm)")

from engines import Reference
from layouts import laid_out, plan_of, positions_of

from anchoreval.arms.rope import parse_level
from anchoreval.vllm_plugin.settings import engine_settings

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS, BLOCKS = laid_out()


@pytest.fixture(scope="module")
def server(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with plans at the level bf16, in fp32."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = engine_settings(llama, parse_level("bf16"), True, None)
    flags = {"--middleware": "anchoreval.vllm_plugin.http.SaysArm"}
    for key, value in settings.items():
        given = value[0] if key == "logits_processors" else value
        flags["--" + key.replace("_", "-")] = given if isinstance(given, str) else json.dumps(given)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(llama)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "2048"]
    command += ["--enforce-eager"]
    command += [part for flag in flags.items() for part in flag]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        while not up(address):
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait()


def up(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def completed(address: str, model: Path, tokens: Any, plan: list[int]) -> Any:
    asked = {
        "model": str(model),
        "prompt": list(tokens),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
        "cache_salt": json.dumps(plan),
        "vllm_xargs": {"anchoreval_plan": plan},
    }
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/completions", json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]


def test_the_list_of_models_says_what_the_server_computes(server: str) -> None:
    with urllib.request.urlopen(f"{server}/v1/models") as answer:
        assert json.loads(answer.headers["x-anchoreval"]) == {"rope": "bf16", "plans": True}
        assert json.load(answer)["data"]
    with urllib.request.urlopen(f"{server}/version") as answer:
        assert "x-anchoreval" not in answer.headers


def test_a_plan_over_http_is_transformers_with_position_ids(server: str, llama: Path) -> None:
    choice = completed(server, llama, TOKENS, plan_of(BLOCKS, "anchor-reset"))
    scored = torch.tensor([next(iter(entry.values()))["logprob"] for entry in choice["prompt_logprobs"][1:]])
    expected = Reference(llama).prompt(TOKENS, "bf16", positions_of(BLOCKS, "anchor-reset"))
    assert float((scored - expected).abs().mean()) < 2e-4  # fp32 sums in another order, as in the engine's tests


@pytest.mark.parametrize(
    ("tokens", "plan", "named"),
    [
        (TOKENS, [0, 1], "in threes"),
        (TOKENS[:5], [0, 6, -1], "between 0 and the prompt length"),
        (TOKENS, [4096, 1, -1], "the rotary table ends at 4095"),
    ],
)
def test_a_plan_that_does_not_fit_is_http_400_and_the_server_goes_on(
    server: str, llama: Path, tokens: Any, plan: list[int], named: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        completed(server, llama, tokens, plan)
    assert error.value.code == 400
    assert named in error.value.read().decode()
    assert completed(server, llama, TOKENS[:5], [0, 5, -1])["text"] is not None
