"""Workers with engines of vLLM on a real Ray cluster: the records of one process, also when a worker is killed."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from killing import timeless, when_records, workers

pytest.importorskip("vllm", reason="VLLM ABSENT: no engine was spread over workers (make test-vllm)")
pytest.importorskip("ray", reason="RAY ABSENT: no run was spread over workers")

from anchoreval import evaluate
from anchoreval.records.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
ENGINE = {"max_num_seqs": 4}


def run(output: Path, **changes: Any) -> Run:
    asked: dict[str, Any] = {"lengths": [512], "limit": 70, "backend": "vllm", "options": ENGINE}
    return evaluate("anchor-tiny", "ruler/niah_single_1", output=output, **asked | changes)


def test_a_killed_worker_costs_no_record_and_the_rest_is_that_of_one_process(cluster: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        killed.append(workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = when_records(tmp_path / "many", 4, kill)
    many = run(tmp_path / "many", ray=cluster.address, workers=2)
    thread.join()
    assert killed and len(many.records) == 70
    before = timeless(run(tmp_path / "one"))
    for key, record in timeless(many).items():
        other = before[key]
        # What the killed worker had left is computed beside fewer others, which rounds otherwise.
        tolerance = 2e-3 * record.reference_tokens
        assert record.reference_logprob == pytest.approx(other.reference_logprob, abs=tolerance, rel=0)
        assert dataclasses.replace(record, reference_logprob=other.reference_logprob) == other
