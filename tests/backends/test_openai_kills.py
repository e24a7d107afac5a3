"""Runs on a real server that lose the server, or the process that asks, on the way: the records of unbroken ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from servers import KEY, NAME, REPOSITORY, WINDOW, Server

from anchoreval.records.lines import RECORDS
from anchoreval.records.run import load_run
from anchoreval.schema import Record

if find_spec("vllm") is None:
    pytest.skip("VLLM ABSENT: no server was asked (make test-vllm)", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SCRIPT = f"""
import sys
from anchoreval import evaluate
evaluate({NAME!r}, "ruler/niah_single_1,ruler/vt", lengths=[512], limit=16, output=sys.argv[1], max_length={WINDOW},
         backend="openai", tokenizer="anchor-tiny", options={{"base_url": sys.argv[2], "concurrency": 2}})
"""
ASKED = 2 * 16


def started(output: Path, server: Server) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OPENAI_API_KEY": KEY, "PYTHONPATH": str(REPOSITORY)}
    with (output.parent / f"{output.name}.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(output), server.url], env=environment, stderr=log)


def count(output: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in output.glob(f"*/*/{RECORDS}"))


def wait_for(records: int, output: Path, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and count(output) < records:
        time.sleep(0.02)
    assert process.poll() is None and count(output) < ASKED, "the run ended before anything was killed"


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    output = tmp_path_factory.mktemp("whole") / "runs"
    assert started(output, server).wait() == 0
    return records_of(output)


def records_of(output: Path) -> list[Record]:
    """The records of the one run, each once."""
    (folder,) = output.glob("*/*")
    assert count(output) == ASKED
    found = {record.key: record for record in load_run(folder).records}
    assert len(found) == ASKED
    return sorted(found.values(), key=lambda record: record.sample_id)


def assert_same(broken: list[Record], whole: list[Record]) -> None:
    """All of a record but its seconds, and of a log-probability what other batches change in float32."""
    for one, other in zip(broken, whole, strict=True):
        assert one.reference_logprob == pytest.approx(other.reference_logprob, abs=2e-3 * one.reference_tokens, rel=0)
        assert replace(one, seconds=0.0, reference_logprob=other.reference_logprob) == replace(other, seconds=0.0)


def test_a_driver_killed_twice_ends_with_the_records_of_an_unbroken_run(
    server: Server, whole: list[Record], tmp_path: Path
) -> None:
    for records in (3, 21):
        process = started(tmp_path / "runs", server)
        wait_for(records, tmp_path / "runs", process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert started(tmp_path / "runs", server).wait() == 0
    assert_same(records_of(tmp_path / "runs"), whole)


def test_a_server_killed_and_started_again_loses_no_record_and_doubles_none(
    server: Server, whole: list[Record], tmp_path: Path
) -> None:
    process = started(tmp_path / "runs", server)
    wait_for(5, tmp_path / "runs", process)
    server.kill()
    server.start()
    assert process.wait() == 0
    told = (tmp_path / "runs.log").read_text()
    assert f"waiting up to 600 s for {server.url}" in told or f"trying again: {server.url}" in told
    assert_same(records_of(tmp_path / "runs"), whole)
