"""The loop over workers without a cluster: what is sent again, and which worker a record names."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from longbench_v2_files import write_folder

from anchoreval import evaluate
from anchoreval.backends.fake import FakeBackend
from anchoreval.errors import RunError
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run, load_run
from anchoreval.runs.identity import environment_of
from anchoreval.runs.units import AHEAD, Unit, ahead
from anchoreval.runs.verify.records import findings
from anchoreval.runs.workers.actors import Fleet
from anchoreval.schema import Output


class Here(Fleet):
    """A fleet whose workers are this process in turn; samples whose id is in `lost` get no answer.

    The process is stopped once `cut_after` answers came.
    """

    def __init__(self, lost: frozenset[str] = frozenset(), cut_after: int = 1_000_000) -> None:
        self.workers, self.came, self.lost, self.sent, self.cut_after = 2, 2, lost, list[str](), cut_after
        self._backend = FakeBackend.open("models/anchor-tiny")
        self._fingerprint, self._about = self._backend.fingerprint, self._backend.describe()
        self.under = self._backend.under  # type: ignore[method-assign]
        self.close = lambda: None  # type: ignore[method-assign]

    def work(self, units: Iterable[Unit]) -> None:
        for number, each in enumerate(units):
            environment = environment_of(self._about) | ({"processor": "another"} if number % 2 else {})
            steps = [each]
            for unit in steps:
                for output in self._outputs(unit):
                    unit.take(output, environment)
                steps += unit.done()

    def _outputs(self, unit: Unit) -> Iterator[Output]:
        for output in self._backend.answer(unit.requests):
            if self.cut_after == 0:
                raise KeyboardInterrupt
            self.cut_after -= 1
            self.sent.append(output.sample_id)
            lost = output.sample_id in self.lost
            yield replace(output, text="", finish="error", why="away", lost="failed") if lost else output


def run(output: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, limit: int = 3, **more: Any) -> Run:
    monkeypatch.setattr(Fleet, "open", lambda *_: fleet)
    asked: dict[str, Any] = {"lengths": [512], "rope": "bf16,fp32", "backend": "fake", "ray": "local", "limit": limit}
    return evaluate("anchor-tiny", more.pop("tasks", "ruler/vt"), output=output, **asked | more)


def test_records_name_the_environment_of_their_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path, Here(), monkeypatch)
    environments = result.header["environments"]
    assert len(environments) == 2 and environments[1]["processor"] == "another"
    assert {(record.arm, record.environment) for record in result.records} == {("bf16", 0), ("fp32", 1)}
    assert not [str(each) for each in findings(result.path) if each.differs]


def test_workers_elsewhere_are_refused_where_the_environment_has_to_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"--same-environment: .*processor was None, here it is another"):
        run(tmp_path, Here(), monkeypatch, same_environment=True)


def test_workers_are_asked_again_what_has_no_answer_and_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = run(tmp_path, Here(frozenset({"ruler/vt@512#1"})), monkeypatch)
    assert [record.outcome for record in lost.records].count("failed") == 2
    fleet = Here()
    whole = run(tmp_path, fleet, monkeypatch, limit=5)
    assert fleet.sent == [*["ruler/vt@512#3", "ruler/vt@512#4"] * 2, *["ruler/vt@512#1"] * 2]  # what failed comes last
    assert whole.path == lost.path and all(record.score == 1.0 for record in whole.records)
    assert (whole.path / RECORDS).read_bytes().count(b"\n") == len(load_run(whole.path).records) == 10
    assert not [str(each) for each in findings(whole.path) if each.differs]


def test_workers_that_are_cut_between_two_steps_go_on_behind_the_first_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_folder(tmp_path / "data")
    asked: dict[str, Any] = {"tasks": "longbench_v2/questions", "lengths": [200], "limit": 5, "data_dir": data}
    asked["settings"] = {"prompting": "cot"}
    sent = []
    for _ in range(20):
        fleet = Here(cut_after=3)
        with contextlib.suppress(KeyboardInterrupt):
            many = run(tmp_path / "many", fleet, monkeypatch, **asked)
        sent += fleet.sent
        if fleet.cut_after > 0:
            break
    assert len(sent) == 5 * 2 * 2, "samples, arms, steps"
    one = run(tmp_path / "one", Here(), monkeypatch, **asked)
    assert [replace(each, seconds=0.0, environment=0) for each in many.records] == [
        replace(each, seconds=0.0, environment=0) for each in one.records
    ]
    assert not [str(each) for each in findings(many.path, data) if each.differs]


def test_prompts_made_ahead_come_in_order_and_an_error_in_its_turn() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            yield number
        raise RunError("the fourth cannot be made")

    taken = []
    with pytest.raises(RunError, match="the fourth"):
        for number in ahead(items()):
            taken.append(number)
            assert len(made) <= number + 2  # never more than one ahead
    assert taken == [0, 1, 2]
    assert list(ahead(iter([1, 2]))) == [1, 2]


def test_the_thread_that_makes_prompts_ends_with_whoever_takes_them() -> None:
    first = ahead(itertools.count())
    assert next(first) == 0
    first.close()  # type: ignore[attr-defined]
    for thread in [thread for thread in threading.enumerate() if thread.name == AHEAD]:
        thread.join(timeout=30)
        assert not thread.is_alive()
