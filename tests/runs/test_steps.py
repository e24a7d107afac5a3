"""Samples asked in two steps, through whole runs: what is on disk, killed between the steps, verified, changed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from longbench_v2_files import record as row
from longbench_v2_files import write_folder

from anchoreval import evaluate, load_run
from anchoreval.backends.fake import FakeBackend
from anchoreval.cli.parser import main
from anchoreval.errors import LengthError
from anchoreval.records.lines import RECORDS, to_line
from anchoreval.records.rescore import rescored
from anchoreval.records.run import Run, find_runs
from anchoreval.runs.verify.records import findings
from anchoreval.schema import PROMPT_READ, SECOND_PROMPT_READ, Outcome, Output, Record, Request
from anchoreval.suites.longbench_v2 import generate as longbench_v2
from anchoreval.suites.longbench_v2.generate import prompts
from anchoreval.tokenizer import load_tokenizer

TINY = load_tokenizer(Path(__file__).parents[2] / "models" / "anchor-tiny")
TASK = "longbench_v2/questions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("longbench_v2"))


@pytest.fixture
def thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake that says something in the first step, which has no reference: some tokens of its prompt."""
    own = FakeBackend._meant

    def meant(self: FakeBackend, request: Request) -> tuple[int, ...]:
        return own(self, request) if request.reference_ids else request.token_ids[3 : 9 + request.token_ids[-30] % 5]

    monkeypatch.setattr(FakeBackend, "_meant", meant)


def run(output: Path, folder: Path, **changes: Any) -> Run:
    settings: dict[str, Any] = {"lengths": [200], "limit": 6, "backend": "fake", "rope": "bf16,fp32"}
    return evaluate(
        "anchor-tiny", TASK, output=output, data_dir=folder, settings={"prompting": "cot"}, **settings | changes
    )


def differences(path: Path, folder: Path) -> list[str]:
    return [str(each) for each in findings(path, folder) if each.differs]


def content(run: Run) -> list[Record]:
    return [dataclasses.replace(record, seconds=0.0) for record in run.records]


def second_prompt(i: int, reasoning: str) -> str:
    item, text = row(i), prompts()["cot_answer"]
    for marker, key in (("$Q$", "question"), *((f"$C_{letter}$", f"choice_{letter}") for letter in "ABCD")):
        text = text.replace(marker, item[key].strip())
    return text.replace("$COT$", reasoning.strip())


@pytest.mark.usefixtures("thinking")
def test_a_record_holds_both_answers_and_its_score_is_the_seconds(tmp_path: Path, folder: Path) -> None:
    result = run(tmp_path, folder)
    assert len(result.records) == 12 and not list(rescored(result))
    for record in result.records:
        facts = record.facts
        assert facts["reasoning"] and facts["reasoning_tokens"] in range(6, 11) and facts["reasoning_finish"] == "stop"
        assert record.output == f" {record.references[0]}" and record.score == 1.0 and record.prompt_tokens <= 201
        text = second_prompt(record.index, facts["reasoning"])
        ids = TINY.encode(text, special_tokens=True)
        if len(ids) <= 200:
            assert facts["second_prompt_sha256"] == hashlib.sha256(text.encode()).hexdigest()
            assert facts["second_prompt_tokens"] == len(ids)
        assert record.reference_tokens == len(TINY.encode(record.output)) and record.reference_logprob is not None
    assert sum(len(TINY.encode(second_prompt(r.index, r.facts["reasoning"]))) < 200 for r in result.records) >= 6


def test_empty_answers_score_zero_and_are_unparsable(tmp_path: Path, folder: Path) -> None:
    result = run(tmp_path, folder, options={"mode": "empty"})
    assert {record.score for record in result.records} == {0.0}
    assert all((record.why or "").startswith("unparsable") for record in result.records)
    assert {record.facts["reasoning"] for record in result.records} == {""}


def test_the_keys_are_those_of_the_first_prompt_and_other_promptings_have_others(tmp_path: Path, folder: Path) -> None:
    runs = [run(tmp_path, folder)]
    for prompting in ("zero_shot", "no_context"):
        settings = {"prompting": prompting}
        runs.append(
            evaluate("anchor-tiny", TASK, lengths=[200], limit=6, backend="fake", output=tmp_path, data_dir=folder,
                     arms="bf16,fp32", settings=settings)
        )  # fmt: skip
        assert "reasoning" not in runs[-1].records[0].facts and runs[-1].records[0].score == 1.0
    assert len({record.key for each in runs for record in each.records}) == 36
    assert len({each.path for each in runs}) == 3


@pytest.mark.usefixtures("thinking")
@pytest.mark.parametrize("answered", [0, 3, 6, 8, 12, 15])
def test_a_run_killed_in_either_step_goes_on_to_the_same_records(
    answered: int, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", folder)
    own, left = FakeBackend.answer, [answered]

    def dying(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        for output in own(self, requests):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            yield output

    monkeypatch.setattr(FakeBackend, "answer", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", folder)
    (path,) = find_runs([tmp_path / "cut"])
    there = (path / RECORDS).read_bytes().count(b"\n")
    # a group is both steps of six samples under one arm: 12 answers
    assert there == max(0, answered - 6) if answered <= 12 else there == 6
    assert not differences(path, folder)
    monkeypatch.setattr(FakeBackend, "answer", own)
    again = run(tmp_path / "cut", folder)
    assert content(again) == content(whole) and again.header["resumed"] == 1
    assert not differences(path, folder)


def test_an_error_of_either_step_is_no_score_and_says_why(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = FakeBackend.answer

    def failing(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        for at, output in enumerate(own(self, requests)):
            broken = at == (1 if requests[0].reference_ids else 0)
            yield dataclasses.replace(output, finish="error", why="it broke") if broken else output

    monkeypatch.setattr(FakeBackend, "answer", failing)
    result = run(tmp_path, folder, rope="bf16")
    records = sorted(result.records, key=lambda record: record.index)
    assert [record.score for record in records] == [None, 1.0, None, 1.0, 1.0, 1.0]
    assert records[0].why == records[2].why == "it broke"
    assert "reasoning" not in records[0].facts and "reasoning" in records[2].facts
    assert not differences(result.path, folder)


@pytest.mark.usefixtures("thinking")
def test_a_step_keeps_its_outcome_and_both_say_what_was_read_of_their_prompts(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = FakeBackend.answer

    def telling(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        second = bool(requests[0].reference_ids)
        for at, output in enumerate(own(self, requests)):
            told = dataclasses.replace(output, facts={PROMPT_READ: 70 + second})
            lost: Outcome | None = ("does_not_fit" if second else "unclosed") if at == second else None
            yield dataclasses.replace(told, finish="error", why="why", lost=lost) if lost else told

    monkeypatch.setattr(FakeBackend, "answer", telling)
    result = run(tmp_path, folder, rope="bf16")
    records = sorted(result.records, key=lambda record: record.index)
    assert [record.outcome for record in records[:4]] == ["unclosed", "answered", "does_not_fit", "answered"]
    assert records[0].score is records[2].score is None and records[0].why == "why"
    assert [record.facts[PROMPT_READ] for record in records] == [70] * 6
    assert [record.facts.get(SECOND_PROMPT_READ) for record in records] == [None, *[71] * 5]
    assert "reasoning" not in records[0].facts and not differences(result.path, folder)


@pytest.mark.usefixtures("thinking")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"reasoning": "another thought"}, "fact 'second_prompt_sha256' is not that of the sample made again"),
        ({"second_prompt_sha256": "0" * 64}, "fact 'second_prompt_sha256' is not that"),
        ({"second_prompt_tokens": 7}, "fact 'second_prompt_tokens' is not that"),
        ({"reasoning": None}, "fact 'reasoning', the first of two answers, is not there"),
        ({"reasoning": 3}, "fact 'reasoning', the first of two answers, is not there"),
        ({"reasoning": "half \ud800"}, "fact 'reasoning', the first of two answers, is not there"),
        ({"other": 1}, "fact 'other' is not that of the sample made again"),
    ],
)
def test_verify_makes_the_second_prompt_again_from_the_first_answer_on_the_record(
    change: dict[str, Any], says: str, tmp_path: Path, folder: Path
) -> None:
    result = run(tmp_path, folder)
    assert not differences(result.path, folder)
    records = list(result.records)
    facts = {name: value for name, value in (records[4].facts | change).items() if value is not None}
    records[4] = dataclasses.replace(records[4], facts=facts)
    (result.path / RECORDS).write_bytes(b"".join(map(to_line, records)))
    found = differences(result.path, folder)
    assert any(says in line and ":5:" in line for line in found), found
    assert not any(f":{line}:" in each for line in (1, 4, 6, 12) for each in found)


def test_the_room_is_that_of_the_longest_answer_before_anything_is_computed(tmp_path: Path, folder: Path) -> None:
    says = r"adds 1024 of the answer, the model has 1400 positions, and no prompt is shorter: --lengths up to 376"
    with pytest.raises(LengthError, match=says):
        run(tmp_path, folder, lengths=[500], max_length=1400)
    assert not list(tmp_path.iterdir())
    assert run(tmp_path, folder, lengths=[376], limit=1, max_length=1400).records


def test_a_cut_beyond_the_model_is_no_error_where_prompts_are_shorter(tmp_path: Path, folder: Path) -> None:
    told: list[str] = []
    assert all(record.score is not None for record in run(tmp_path, folder, lengths=None, tell=told.append).records)
    assert any("cuts prompts at 120000 tokens" in line and "that are longer get no answer" in line for line in told)


@pytest.mark.usefixtures("thinking")
def test_a_stopping_rule_takes_rounds_of_both_steps(tmp_path: Path, folder: Path) -> None:
    result = run(tmp_path, folder, until="30pt@80%", limit=8)
    assert result.header["until"]["cells"][0]["arms"]["fp32"]["pairs"] == 8
    assert all("reasoning" in record.facts for record in result.records)
    assert not differences(result.path, folder)


@pytest.mark.numeric
def test_a_model_answers_both_steps_under_arms_that_act_on_documents(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(longbench_v2, "REASONING_TOKENS", 6)
    result = run(tmp_path, folder, backend="hf", rope="native,anchor/fp32", limit=1, lengths=[160], document_tokens=50)
    assert len(result.records) == 2 and all(record.finish != "error" for record in result.records)
    for record in result.records:
        assert record.facts["reasoning_tokens"] <= 6 and record.output_tokens <= 128
        assert record.reference_logprob is not None and record.reference_logprob < 0
    assert not differences(result.path, folder)


@pytest.mark.usefixtures("thinking")
def test_the_command_line_runs_verifies_and_reports(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", "anchor-tiny", "--backend", "fake", "--lengths", "200", "--limit", "4", "--data-dir"]
    flags = ["--tasks", "longbench_v2", "--prompting", "cot", "--output", str(tmp_path / "runs")]
    assert main(["run", *arguments, str(folder), *flags]) == 0
    (path,) = find_runs([tmp_path / "runs"])
    assert main(["verify", str(path), "--data-dir", str(folder)]) == 0
    assert main(["longbench", str(path)]) == 0
    out = capsys.readouterr().out
    assert "as its header says" in out and f"({TASK}, cot, prompts cut at 200 tokens), 4 of 503 questions" in out
    record = json.loads((path / RECORDS).read_text().splitlines()[0])
    assert record["facts"]["prompting"] == "cot" and load_run(path).header["identity"]["tasks"][0]["args"] == {
        "prompting": "cot"
    }
    assert main(["run", *arguments, str(folder), *flags, "--no-context"]) == 2
    assert "--prompting cot needs the context: leave out --no-context" in capsys.readouterr().err
    shutil.rmtree(path)


@pytest.mark.usefixtures("thinking")
@pytest.mark.parametrize("every", [1, 4])
def test_a_run_of_two_steps_that_is_cut_every_few_answers_ends_and_asks_nothing_twice(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    asked: list[int] = []
    stock = FakeBackend.answer

    def cut(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        for request in requests:
            if len(asked) - before >= every:
                raise KeyboardInterrupt
            asked.append(hash(request))
            yield from stock(self, [request])

    monkeypatch.setattr(FakeBackend, "answer", cut)
    for _ in range(24 // every + 1):
        before = len(asked)
        with contextlib.suppress(KeyboardInterrupt):
            result = run(tmp_path / "cut", folder)
    assert len(asked) == 24, "6 samples, 2 arms, 2 steps"
    assert not list(result.path.glob("first_answers*"))
    monkeypatch.undo()
    assert not differences(result.path, folder)


@pytest.mark.usefixtures("thinking")
def test_first_answers_that_were_damaged_are_asked_again(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = FakeBackend.answer

    def cut(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        yield from stock(self, requests)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FakeBackend, "answer", cut)
        run(tmp_path / "cut", folder)
    (path,) = (tmp_path / "cut").glob("*/*/first_answers.jsonl")
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    lines[0]["content"]["finish"], lines[1]["content"], lines[2]["content"]["token_ids"] = "error", 3, ["a"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"name": "x", "cont')
    asked: list[str] = []

    def counted(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        asked.extend(request.sample_id for request in requests if not request.reference_ids)
        return stock(self, requests)

    monkeypatch.setattr(FakeBackend, "answer", counted)
    result = run(tmp_path / "cut", folder)
    assert asked[:3] == [f"{TASK}@200#{i}" for i in range(3)] and len(asked) == 3 + 6
    assert content(result) == content(run(tmp_path / "whole", folder))
    assert not differences(result.path, folder)
