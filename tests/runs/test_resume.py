"""A run goes on: with more samples, with what has no answer, elsewhere; what is finished stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from longbench_v2_files import write_folder

from anchoreval import cards, evaluate
from anchoreval.backends.fake import FakeBackend
from anchoreval.cards import load_tasks
from anchoreval.cli.parser import main
from anchoreval.errors import RunError
from anchoreval.records.header import HEADER
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run, load_run
from anchoreval.runs import rebuild as remake
from anchoreval.runs.resume import nothing_scored
from anchoreval.runs.verify.records import findings
from anchoreval.schema import Json, Outcome, Output, Request

TASKS = "ruler/niah_single_1,ruler/vt"
ANSWER, DESCRIBE = FakeBackend.answer, FakeBackend.describe


@pytest.fixture(scope="module", autouse=True)
def _cards_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        read_once = cache(load_tasks)
        for module in (cards, remake):
            patch.setattr(module, "load_tasks", read_once)
        yield


def run(output: Path, limit: int | None = 2, tasks: str = TASKS, **changes: Any) -> Run:
    asked: dict[str, Any] = {"lengths": [512], "backend": "fake", "rope": "bf16,fp32"} | changes
    return evaluate("anchor-tiny", tasks, limit=limit, output=output, **asked)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def differences(path: Path) -> list[str]:
    return [str(finding) for finding in findings(path) if finding.differs]


def counting(monkeypatch: pytest.MonkeyPatch, ids: list[str]) -> None:
    """Has the backend note in `ids` what is sent to it."""

    def counted(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        ids.extend(request.sample_id for request in requests)
        return ANSWER(self, requests)

    monkeypatch.setattr(FakeBackend, "answer", counted)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the samples that were sent to the backend, in order."""
    ids: list[str] = []
    counting(monkeypatch, ids)
    return ids


def losing(monkeypatch: pytest.MonkeyPatch, lost: Callable[[str], Outcome | None], why: str = "away") -> None:
    """Has the backend lose samples by their id."""

    def answer(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        for output in ANSWER(self, requests):
            outcome = lost(output.sample_id)
            yield replace(output, text="", finish="error", why=why, lost=outcome) if outcome else output

    monkeypatch.setattr(FakeBackend, "answer", answer)


def elsewhere(monkeypatch: pytest.MonkeyPatch, **environment: Json) -> None:
    """Has the backend say that it runs in another environment."""

    def describe(self: FakeBackend) -> dict[str, Json]:
        return DESCRIBE(self) | {"environment": {"versions": {}, **environment}}

    monkeypatch.setattr(FakeBackend, "describe", describe)


def test_a_greater_limit_goes_on_in_the_same_run(tmp_path: Path, sent: list[str]) -> None:
    few = run(tmp_path, 2)
    many = run(tmp_path, 5)
    assert many.path == few.path and many.header["limit"] == 5 and many.header["grown"] == [2]
    assert [row["samples"] for row in many.header["asked"]] == [5, 5]
    assert len(many.records) == len({record.key for record in many.records}) == 2 * 5 * 2
    assert all(record in many.records for record in few.records)
    assert len(sent) == 2 * 5 * 2, "what was answered is not computed again"
    assert not differences(many.path)


def test_what_a_run_holds_after_it_grew_is_what_one_run_would_hold(tmp_path: Path) -> None:
    for limit in (3, 70, None):
        grown = run(tmp_path / "grown", limit, "niah/number", rope="fp32", settings={"depths": 11, "repeats": 7})
    whole = run(tmp_path / "whole", None, "niah/number", rope="fp32", settings={"depths": 11, "repeats": 7})
    assert [replace(each, seconds=0) for each in grown.records] == [replace(each, seconds=0) for each in whole.records]
    assert grown.header["identity"] == whole.header["identity"] and len(whole.records) == 77
    assert not differences(grown.path)


def test_what_a_call_returns_is_what_lies_on_disk(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    steps: dict[str, Any] = {"data_dir": data, "settings": {"prompting": "cot"}, "tasks": "longbench_v2/questions"}
    for changes in ({}, {"limit": 3}, {"limit": 3, "placebo": True}, steps | {"lengths": [200]}):
        for _ in range(2):  # as it is written, and as it lies there finished
            result = run(tmp_path, **changes)
            lies = load_run(result.path)
            assert (result.header, result.records, result.changed) == (lies.header, lies.records, lies.changed)
            assert repr(result.records) == repr(lies.records), "lists are lists, and tuples tuples"


def test_a_run_that_is_stopped_while_it_grows_computes_the_rest_of_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []

    def dying(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        groups.append(len(requests))
        for at, output in enumerate(ANSWER(self, requests)):
            if len(groups) == 2 and at == 4:
                raise KeyboardInterrupt
            yield output

    monkeypatch.setattr(FakeBackend, "answer", dying)
    run(tmp_path, 3, "ruler/vt", rope="fp32")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 66, "ruler/vt", rope="fp32")
    (path,) = tmp_path.glob("*/*")
    assert load_run(path).header["grown"] == [3] and "seal" not in load_run(path).header
    result = run(tmp_path, 66, "ruler/vt", rope="fp32")
    assert groups == [3, 61, 57, 2] and len(result.records) == 66 and not differences(path)


def test_a_smaller_limit_takes_nothing_away_and_says_so(tmp_path: Path, sent: list[str]) -> None:
    told: list[str] = []
    many = run(tmp_path, 4)
    before, asked = content(many.path), len(sent)
    few = run(tmp_path, 2, tell=told.append)
    assert content(few.path) == before and len(sent) == asked and len(few.records) == 16
    assert any("already has 4 samples" in line and "--limit 2 drops none" in line for line in told)


def test_a_smaller_limit_ends_a_run_that_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        for output in ANSWER(self, requests):
            if output.sample_id == "ruler/niah_single_1@512#3":
                raise KeyboardInterrupt
            yield output

    monkeypatch.setattr(FakeBackend, "answer", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 9)
    monkeypatch.undo()
    result = run(tmp_path, 2)
    assert [row["samples"] for row in result.header["asked"]] == [3, 3] and not differences(result.path)


def test_a_run_whose_first_samples_would_be_others_begins_anew_and_says_so(tmp_path: Path) -> None:
    told: list[str] = []
    few = run(tmp_path, 2, "ruler/qa_1", rope="fp32", tell=told.append)
    more = run(tmp_path, 3, "ruler/qa_1", rope="fp32", tell=told.append)
    most = run(tmp_path, 40, "ruler/qa_1", rope="fp32", tell=told.append)
    first, *others = [{one.sample_id: one.prompt_sha256 for one in each.records} for each in (few, more, most)]
    same = [all(other[name] == prompt for name, prompt in first.items()) for other in others]
    assert same == [more.path == few.path, most.path == few.path] == [True, False]
    assert any("ruler/qa_1@512 are others where so many are asked for" in line for line in told)


def test_the_same_command_leaves_a_finished_run_as_it_is_byte_for_byte(tmp_path: Path, sent: list[str]) -> None:
    first = run(tmp_path)
    before, asked = content(first.path), len(sent)
    assert run(tmp_path).path == first.path
    assert content(first.path) == before and len(sent) == asked


def test_what_has_no_answer_is_asked_again_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, lambda name: "refused" if name.endswith(("vt@512#1", "_1@512#0")) else None)
    lost = run(tmp_path, 3)
    assert sum(record.score is None for record in lost.records) == 4
    assert {record.outcome for record in lost.records if record.score is None} == {"refused"}
    assert not differences(lost.path)
    monkeypatch.undo()
    asked: list[str] = []
    counting(monkeypatch, asked)
    whole = run(tmp_path, 3)
    assert asked == ["ruler/niah_single_1@512#0"] * 2 + ["ruler/vt@512#1"] * 2
    assert whole.path == lost.path and all(record.score == 1.0 for record in whole.records)
    lines = (whole.path / RECORDS).read_bytes().splitlines()
    assert len(lines) == len(whole.records) == 12, "replaced lines are dropped when the run finishes"
    assert [record.sample_id for record in whole.records] == [record.sample_id for record in lost.records]
    assert not differences(whole.path) and whole.header["resumed"] == 1


def test_a_run_that_ends_while_it_asks_again_is_read_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, lambda name: "failed")
    path = run(tmp_path, 2).path

    def dying(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        yield next(ANSWER(self, requests))
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeBackend, "answer", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 2)
    records, lines = load_run(path).records, (path / RECORDS).read_bytes().splitlines()
    assert len(lines) == 9 and len(records) == len({record.key for record in records}) == 8
    assert [record.score for record in records].count(1.0) == 1
    assert not differences(path) and any("stand there again" in str(finding) for finding in findings(path))
    monkeypatch.undo()
    assert all(record.score == 1.0 for record in run(tmp_path, 2).records) and not differences(path)


def test_what_fails_again_in_the_same_way_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losing(monkeypatch, lambda name: "does_not_fit" if name.endswith("#1") else None)
    path = run(tmp_path).path
    before = content(path)
    run(tmp_path)
    assert content(path) == before
    losing(monkeypatch, lambda name: "refused" if name.endswith("#1") else None, "for another reason")
    assert {record.why for record in run(tmp_path).records} == {None, "for another reason"}
    assert not differences(path)


def test_a_run_goes_on_in_another_environment_and_its_records_name_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, threads=1)
    few = run(tmp_path, 1)
    elsewhere(monkeypatch, threads=2)
    many = run(tmp_path, 2)
    assert many.path == few.path
    assert [each["threads"] for each in many.header["environments"]] == [1, 2]
    assert {(record.index, record.environment) for record in many.records} == {(0, 0), (1, 1)}
    assert not differences(many.path)
    elsewhere(monkeypatch, threads=1)
    assert {record.environment for record in run(tmp_path, 3).records if record.index == 2} == {0}


def test_same_environment_refuses_to_go_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(monkeypatch, threads=1)
    path = run(tmp_path, 1).path
    before = content(path)
    elsewhere(monkeypatch, threads=2)
    with pytest.raises(RunError, match=r"--same-environment: where it was begun, threads was 1, here it is 2"):
        run(tmp_path, 2, same_environment=True)
    assert content(path) == before
    elsewhere(monkeypatch, threads=1)
    assert len(run(tmp_path, 2, same_environment=True).records) == 8


def test_same_environment_is_the_one_where_a_run_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (1, 2):
        elsewhere(monkeypatch, threads=threads)
        run(tmp_path, threads)
    with pytest.raises(RunError, match="threads was 1, here it is 2"):
        run(tmp_path, 3, same_environment=True)
    elsewhere(monkeypatch, threads=1)
    assert len(run(tmp_path, 3, same_environment=True).records) == 12


def test_records_of_a_run_that_was_stopped_while_it_grew_end_in_the_order_of_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "grown", 2)

    def dying(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        yield next(ANSWER(self, requests))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FakeBackend, "answer", dying)
        run(tmp_path / "grown", 4)
    grown, whole = run(tmp_path / "grown", 4), run(tmp_path / "whole", 4)
    assert [record.key for record in grown.records] == [record.key for record in whole.records]
    assert not differences(grown.path)


def test_versions_processor_and_threads_are_no_part_of_what_a_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run(tmp_path, 1).header
    elsewhere(monkeypatch, threads=7, processor="another")
    assert run(tmp_path / "other", 1).header["identity"] == one["identity"]
    assert "environment" not in one["backend"] and one["environments"][0]["versions"]["anchoreval"] == one["version"]


def test_a_finished_run_that_was_changed_since_is_not_gone_on_with(tmp_path: Path) -> None:
    path = run(tmp_path, 2).path
    lines = (path / RECORDS).read_bytes().splitlines(keepends=True)
    (path / RECORDS).write_bytes(b"".join(lines[:-1]))
    before = content(path)
    with pytest.raises(RunError, match=r"changed since it finished \(seal\): `anchoreval verify .*another --output"):
        run(tmp_path, 4)
    assert content(path) == before


def test_a_record_of_another_prompt_under_the_same_settings_stops_the_run(tmp_path: Path) -> None:
    path = run(tmp_path, 2).path
    header = json.loads((path / HEADER).read_text())
    del header["seal"]
    (path / HEADER).write_text(json.dumps(header))
    lines = [json.loads(line) for line in (path / RECORDS).read_text().splitlines()]
    (path / RECORDS).write_text("".join(json.dumps(line | {"key": line["key"][::-1]}) + "\n" for line in lines))
    before = content(path)
    with pytest.raises(RunError, match=r"niah_single_1@512#0 under bf16 stands there with another prompt"):
        run(tmp_path, 2)
    assert content(path) == before


def test_the_first_lines_of_other_runs_are_no_reason_to_fail(tmp_path: Path) -> None:
    shutil.copytree(run(tmp_path / "one", 1).path, tmp_path / "two" / "anchor-tiny" / "x")
    (tmp_path / "two" / "anchor-tiny" / "x" / HEADER).write_text('{"identity": 3}')
    assert len(run(tmp_path / "two", 1).records) == 4


def until(output: Path) -> Run:
    return run(output, 64, "ruler/vt", until="40pt@90%")


def test_a_run_that_stops_by_a_rule_asks_again_what_has_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losing(monkeypatch, lambda name: "refused")
    lost = until(tmp_path)
    assert lost.header["until"]["cells"][0]["used"] == 64 and nothing_scored(lost)
    monkeypatch.undo()
    whole = until(tmp_path)
    used = whole.header["until"]["cells"][0]["used"]
    assert whole.path == lost.path and used < 64 and len(whole.records) == 2 * used
    assert all(record.score == 1.0 for record in whole.records) and not differences(whole.path)


def test_a_verdict_that_comes_earlier_leaves_the_answers_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = until(tmp_path / "first").header["until"]["cells"][0]["used"]
    losing(monkeypatch, lambda name: "refused" if int(name.partition("#")[2]) < first else None)
    lost = until(tmp_path)
    monkeypatch.undo()
    whole = until(tmp_path)
    assert whole.header["until"]["cells"][0]["used"] <= first < lost.header["until"]["cells"][0]["used"]
    assert all(record.score == 1.0 for record in whole.records) and not differences(whole.path)
    assert any("behind their cell's verdict" in str(finding) for finding in findings(whole.path))


@pytest.mark.parametrize(
    ("outcome", "advice"), [("refused", "what the server refuses"), ("does_not_fit", "--lengths"), ("failed", "again")]
)
def test_a_run_in_which_nothing_was_scored_exits_with_1_and_says_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: Outcome,
    advice: str,
) -> None:
    losing(monkeypatch, lambda name: outcome, "the cat sat on it.")
    command = ["run", "--model", "anchor-tiny", "--backend", "fake", "--tasks", "ruler/vt", "--lengths", "512"]
    command += ["--limit", "2", "--output", str(tmp_path)]
    assert main(command) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"nothing was scored: 2 of 2 records {outcome}: the cat sat on it: " in last and advice in last
    losing(monkeypatch, lambda name: outcome if name.endswith("#1") else None)
    assert main(command) == (1 if outcome == "failed" else 0)


def test_half_files_of_processes_that_are_gone_are_deleted_and_no_others(tmp_path: Path) -> None:
    path = run(tmp_path, 2, "ruler/vt").path
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f"header.json.{gone.pid}.part", f"header.json.{os.getpid()}.part", "mine.part", "header.json.notes.part"]
    for name in names:
        (path / name).write_text("half")
    run(tmp_path, 2, "ruler/vt")
    assert [name for name in names if (path / name).exists()] == names[1:]
