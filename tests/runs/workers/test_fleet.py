"""Runs over many workers: the records of one process, whoever dies on the way. A real Ray cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from killing import timeless, when_records, workers
from longbench_v2_files import write_folder
from other_models import TINY, other_words

from anchoreval import evaluate
from anchoreval.errors import AnchorEvalError, ModelError, RunError
from anchoreval.records.lines import RECORDS, read_records
from anchoreval.records.run import Run
from anchoreval.runs.verify.records import findings

ray = pytest.importorskip("ray", reason="RAY ABSENT: no run was spread over workers (pip install -e '.[dev]')")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def run(output: Path, **changes: Any) -> Run:
    asked: dict[str, Any] = {"lengths": [512], "limit": 100, "rope": "bf16,fp32", "backend": "fake"}
    return evaluate("anchor-tiny", changes.pop("tasks", "ruler/vt"), output=output, **asked | changes)


@pytest.mark.numeric
def test_workers_on_two_nodes_write_what_one_process_writes(cluster: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"backend": "hf", "limit": 4, "tasks": "ruler/vt,ruler/niah_single_1"}
    many = run(tmp_path / "many", ray=cluster.address, workers=2, **asked)
    one = run(tmp_path / "one", **asked)
    assert timeless(many) == timeless(one) and len(many.records) == 16
    assert many.header["identity"] == one.header["identity"] and many.header["workers"] == 2
    assert not [str(each) for each in findings(many.path) if each.differs]


def test_several_models_over_workers_have_the_runs_that_each_has_alone(cluster: Any, tmp_path: Path) -> None:
    other = shutil.copytree(TINY, tmp_path / "other")
    other_words(other)
    asked: dict[str, Any] = {"lengths": [512], "limit": 4, "rope": "bf16,fp32", "backend": "fake"}
    models = ["anchor-tiny", str(other)]
    both = evaluate(models, "ruler/vt", output=tmp_path / "both", ray=cluster.address, workers=2, **asked)
    for model, many in zip(models, both, strict=True):
        one = evaluate(model, "ruler/vt", output=tmp_path / "alone", **asked)
        assert timeless(many) == timeless(one) and many.header["identity"] == one.header["identity"]
        assert len(many.records) == 8 and "workers" in many.header


def test_answers_in_two_steps_are_those_of_one_process(cluster: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    asked: dict[str, Any] = {"tasks": "longbench_v2/questions", "lengths": [200], "limit": 6, "data_dir": folder}
    asked["settings"] = {"prompting": "cot"}
    many = run(tmp_path / "many", ray=cluster.address, workers=2, **asked)
    assert timeless(many) == timeless(run(tmp_path / "one", **asked))
    assert all("reasoning" in record.facts for record in many.records)


def test_a_killed_worker_is_replaced_and_no_record_is_lost_or_doubled(cluster: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill() -> None:
        killed.append(workers()[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = when_records(tmp_path / "many", 20, kill)
    many = run(tmp_path / "many", ray=cluster.address, workers=2, options={"delay_s": 0.03})
    thread.join()
    assert killed and timeless(many) == timeless(run(tmp_path / "one"))


def test_a_node_that_goes_away_costs_nothing_but_time(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    gone: list[bool] = []
    thread = when_records(
        tmp_path / "many", 20, lambda: gone.append(cluster.remove_node(node, allow_graceful=False) or True)
    )
    many = run(tmp_path / "many", ray=cluster.address, workers=3, options={"delay_s": 0.05})
    thread.join()
    assert gone and timeless(many) == timeless(run(tmp_path / "one"))


DRIVER = """
import sys
from anchoreval import evaluate
evaluate("anchor-tiny", "ruler/vt", lengths=[512], limit=100, rope="bf16,fp32", backend="fake", output=sys.argv[1],
         ray="local", workers=2, options={"delay_s": float(sys.argv[2])})
"""


def test_a_killed_driver_goes_on_where_it_was(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path / "many"), "0.05"], start_new_session=True)
    when_records(tmp_path / "many", 10, driver.kill).join()
    assert driver.wait() == -signal.SIGKILL
    path = next((tmp_path / "many").glob(f"**/{RECORDS}"))
    before = path.read_bytes().count(b"\n")
    assert 10 <= before < 200
    subprocess.run([sys.executable, "-c", DRIVER, str(tmp_path / "many"), "0"], check=True)
    one = run(tmp_path / "one")
    assert timeless(path) == timeless(one) and len(read_records(path)) == 200


def test_workers_that_die_whenever_they_open_end_the_run(cluster: Any, tmp_path: Path) -> None:
    stop = threading.Event()

    def kill_all() -> None:
        while not stop.wait(0.2):
            for pid in workers():
                if (tmp_path / "many").exists():
                    os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_all)
    thread.start()
    try:
        with pytest.raises(RunError, match=r"worker"):
            run(tmp_path / "many", ray=cluster.address, workers=1, options={"delay_s": 5.0})
    finally:
        stop.set()
        thread.join()


def test_a_sample_that_kills_its_worker_fails_alone_and_is_asked_again_last(cluster: Any, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"ray": cluster.address, "workers": 1, "limit": 3, "lengths": [512]}
    poison = tmp_path / "poison"
    poison.write_text("ruler/vt@512#1")
    result = run(tmp_path / "run", options={"dies_on": str(poison)}, **asked)
    lost = [(record.sample_id, record.outcome, record.why) for record in result.records if record.score is None]
    assert set(lost) == {("ruler/vt@512#1", "failed", "3 workers died on it")} and len(lost) == 2
    assert all(record.score == 1.0 for record in result.records if record.sample_id != "ruler/vt@512#1")
    poison.write_text("")
    whole = run(tmp_path / "run", options={"dies_on": str(poison)}, **asked)
    assert whole.path == result.path and all(record.score == 1.0 for record in whole.records)


def test_an_error_of_a_worker_is_the_one_line_that_it_is_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        source = Path(__file__).parents[3] / "models" / "anchor-tiny" / name
        (tmp_path / "model" / name).write_bytes(source.read_bytes())
    asked: dict[str, Any] = {"lengths": [512], "limit": 1, "haystack": "generated", "output": tmp_path / "out"}
    with pytest.raises(ModelError, match=r"config\.json"):
        evaluate(str(tmp_path / "model"), "ruler/vt", ray="local", workers=1, **asked)
    ray.shutdown()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ray": "127.0.0.1:1"}, "ray start --head"),
        ({"workers": 2}, "--workers needs --ray"),
        ({"ray": "local", "until": "1pt@95%"}, "--until"),
    ],
)
def test_what_cannot_work_is_one_line(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(AnchorEvalError, match=says) as caught:
        run(tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
