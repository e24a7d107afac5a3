"""What holds for every backend, held by vLLM's: the tests of test_protocol.py on a model that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="VLLM ABSENT: nothing was computed by vLLM (make test-vllm)")

from test_protocol import (  # noqa: F401 - collected here
    Open,
    test_a_closed_backend_answers_nothing,
    test_answers_keep_to_their_budget,
    test_every_request_is_answered_exactly_once,
    test_no_request_gives_no_output,
    test_only_requests_with_a_reference_get_a_logprob_and_it_is_negative,
    test_outputs_come_before_the_last_request_is_computed,
    test_the_description_and_the_arm_as_applied_are_json,
)
from vllm_models import save_llama

from anchoreval.backends import Backend, open_backend

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The folder of the model and the backend that lives, with its options: one at a time."""
    now: dict[str, Any] = {"folder": save_llama(tmp_path_factory.mktemp("vllm")), "backend": None, "options": None}
    yield now
    if now["backend"] is not None:
        now["backend"].close()


@pytest.fixture
def opened(kept: dict[str, Any]) -> Open:
    """Opens the backend where it is not open already; `rows` is vLLM's max_num_seqs."""

    def opens(rows: int = 8) -> Backend:
        folder: Path = kept["folder"]
        if kept["backend"] is None or kept["backend"].closed or kept["options"] != rows:
            if kept["backend"] is not None:
                kept["backend"].close()
            kept["options"] = rows
            kept["backend"] = open_backend("vllm", str(folder), max_model_len=256, max_num_seqs=rows)
        backend: Backend = kept["backend"]
        return backend

    return opens
