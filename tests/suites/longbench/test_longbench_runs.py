"""LongBench through the whole program: runs of both editions, resumed, without context, on a board, as a command."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from longbench_files import record, write_folder

from anchoreval import evaluate, load_run
from anchoreval.cards import load_tasks
from anchoreval.cli.parser import main
from anchoreval.errors import AnchorEvalError, LengthError, MissingExtra, SourceError
from anchoreval.records.rescore import rescored
from anchoreval.records.run import Run, find_runs
from anchoreval.reports.averages.longbench import deviating, report
from anchoreval.reports.board import board_html, run_table
from anchoreval.runs.prompts import lengths_of, room_of
from anchoreval.runs.verify.records import findings
from anchoreval.suites.longbench import scoring as longbench
from anchoreval.suites.longbench.scoring import DEVIATIONS, FLAT_21, LIMIT

FAKE: dict[str, Any] = {"backend": "fake", "limit": 2}
TASK = load_tasks()[0]["longbench/qasper"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("longbench"))


@pytest.fixture
def jieba() -> None:
    pytest.importorskip("jieba", reason="JIEBA ABSENT: pip install 'anchoreval[zh]'; no Chinese task was run")


def run(output: Path, folder: Path, tasks: str = "longbench/qasper", **changes: Any) -> Run:
    return evaluate("anchor-tiny", tasks, output=output, data_dir=folder, **{**FAKE, **changes})


def test_both_editions_run_whole_at_one_length_and_score_their_references(
    tmp_path: Path, folder: Path, jieba: None
) -> None:
    result = run(tmp_path, folder, "longbench,longbench_e", limit=2)
    assert len(result.records) == 34 * 2 and not result.header["unmakeable"]
    assert {record.length for record in result.records} == {7500}, "upstream's cut for the 8,192 positions it has"
    assert all(record.score == pytest.approx(1.0, abs=1e-7) for record in result.records)
    assert not list(rescored(result))
    assert result.header["scorer_packages"]["jieba"]
    assert {record.facts.get("bucket") for record in result.records} == {None, "0-4k", "4-8k"}
    html, table = board_html([result]), run_table(result)
    assert "longbench/hotpotqa" in html and "longbench_e/qasper" in table and "7500" in table


def test_empty_answers_score_zero(tmp_path: Path, folder: Path, jieba: None) -> None:
    result = run(tmp_path, folder, "longbench,longbench_e", options={"mode": "empty"})
    assert {record.score for record in result.records} == {0.0}


def test_the_command_line_runs_it_with_a_model(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = "longbench/samsum,longbench/hotpotqa,longbench_e/trec"
    arguments = ["run", "--model", "anchor-tiny", "--tasks", tasks, "--data-dir", str(folder), "--limit", "2"]
    assert main([*arguments, "--lengths", "256", "--rope", "bf16,fp32", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "longbench/samsum" in out and "256" in out
    (path,) = find_runs([tmp_path])
    records = load_run(path).records
    assert len(records) == 3 * 2 * 2 and all(record.finish != "error" for record in records)
    samsum = [record for record in records if record.task == "longbench/samsum"]
    assert all(record.output_tokens >= 1 for record in samsum)
    assert "longbench/hotpotqa" in (path / "board.html").read_text("utf-8")


def test_leaving_out_the_context_is_another_run_and_said_everywhere(tmp_path: Path, folder: Path) -> None:
    whole, bare = run(tmp_path, folder), run(tmp_path, folder, context=False)
    assert whole.path != bare.path and {record.key for record in whole.records}.isdisjoint(
        record.key for record in bare.records
    )
    assert bare.header["sources"]["context"] == "left out (--no-context)" and bare.header["comparable"] is False
    assert {record.facts["context"] for record in bare.records} == {"left out"}
    assert max(record.prompt_tokens for record in bare.records) < min(record.prompt_tokens for record in whole.records)
    for text in (run_table(bare), board_html([bare])):
        assert "context left out (--no-context)" in text
    assert "left out (--no-context)" not in run_table(whole)


def test_a_task_that_cannot_do_without_its_context_says_so(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(AnchorEvalError, match=r"ruler/vt has no prompt without its context"):
        run(tmp_path, folder, "ruler/vt", context=False, lengths=[512])


def test_the_header_records_what_was_read(tmp_path: Path, folder: Path) -> None:
    header = run(tmp_path, folder).header
    assert len(header["source_files"]["longbench/qasper.jsonl"]["sha256"]) == 64
    assert header["identity"]["sources"]["longbench"].startswith("unpinned files, 1: ")


def test_a_run_at_the_length_that_the_model_holds_verifies(tmp_path: Path, folder: Path) -> None:
    result = run(tmp_path, folder, "longbench/qasper,longbench_e/trec")
    assert not [finding for finding in findings(result.path, folder) if finding.differs]


@pytest.mark.parametrize(
    ("window", "length", "room"),
    [
        (4096, 3500, 4096),
        (8192, 7500, 8192),
        (32768, 31500, 32768),
        (131072, 31500, 131072),
        (None, 31500, None),
        (31500, 31500, None),
        (7500, 7500, None),
    ],
)
def test_the_cut_is_upstreams_for_the_window_and_a_window_of_its_size_is_its_max_length(
    window: int | None, length: int, room: int | None
) -> None:
    assert lengths_of(TASK, None, window) == (length,)
    assert room_of(TASK, window) == room
    assert lengths_of(TASK, (1000, 2000), window) == (1000, 2000)


def test_a_window_of_upstreams_max_length_leaves_room_for_the_answer(tmp_path: Path, folder: Path) -> None:
    result = run(tmp_path, folder, max_length=3500)
    assert {record.length for record in result.records} == {3500}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lengths": [300], "max_length": 400}, "cuts prompts at 300 tokens and adds 128 .*: --lengths up to 272"),
        ({"max_length": 200}, "longbench/qasper cuts prompts at 3500 tokens and adds 128 of the answer"),
    ],
)
def test_a_cut_beyond_the_model_is_refused_where_no_prompt_is_shorter(
    tmp_path: Path, folder: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(LengthError, match=says):
        run(tmp_path, folder, **changes)
    assert not list(tmp_path.iterdir())


def test_fewer_records_than_asked_for_are_an_error_before_anything_is_computed(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(SourceError, match=r"has 2 records of qasper, 200 were asked for"):
        run(tmp_path, folder, limit=None)
    assert not list(tmp_path.iterdir())


def test_chinese_tasks_of_a_suite_are_set_aside_without_jieba_and_one_by_name_is_an_error(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise MissingExtra("Chinese answers are scored with jieba: pip install 'anchoreval[zh]'")

    monkeypatch.setattr(longbench, "_jieba", missing)
    told: list[str] = []
    result = run(tmp_path, folder, "longbench", tell=told.append)
    aside = {row["task"] for row in result.header["unmakeable"]}
    assert aside == {"longbench/multifieldqa_zh", "longbench/dureader", "longbench/vcsum"}
    assert len(result.records) == 18 * 2 and any("anchoreval[zh]" in line for line in told)
    with pytest.raises(MissingExtra):
        run(tmp_path, folder, "longbench/vcsum")


def test_the_report_has_three_averages_three_buckets_and_what_upstream_would_lower(
    tmp_path: Path, folder: Path, jieba: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "all", folder, "longbench,longbench_e", lengths=[100], limit=3 - 1)
    assert main(["longbench", str(tmp_path / "all")]) == 0
    text = capsys.readouterr().out
    for line in (
        "six categories, English         100.00",
        "flat over 16, English and code  100.00",
        "21 of 21 data sets",
    ):
        assert line in text
    assert re.search("0-4k +4-8k +8k\\+\n", text) and re.search("qasper +100.00 +100.00 +–\n", text)
    assert "prompts lost their middle; upstream's recursion limit lowers 0 scores there" in text
    bare = run(tmp_path / "bare", folder, context=False)
    assert main(["longbench", str(bare.path)]) == 0
    text = capsys.readouterr().out
    assert "left out of every prompt" in text and re.search("flat over 21 +–", text)


def test_scores_that_upstreams_recursion_zeroes_and_prompts_that_were_cut_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = record("gov_report", 0) | {"answers": [" ".join(f"{number}" for number in range(1100))]}
    own = tmp_path / "data"
    own.mkdir()
    (own / "gov_report.jsonl").write_text(json.dumps(long) + "\n" + json.dumps(record("gov_report", 1)) + "\n")
    result = run(tmp_path / "runs", own, "longbench/gov_report", lengths=[300])
    first, second = result.records
    assert first.score and first.why == f"{LIMIT} 0.0000" and second.why is None
    assert main(["longbench", str(result.path)]) == 0
    said = "2 of 2 prompts lost their middle; upstream's recursion limit lowers 1 scores there"
    assert said in capsys.readouterr().out


SAID = {  # task and place -> answer, reference
    ("longbench/trec", 0): ("ABC", "ABC"),
    ("longbench/gov_report", 0): (" ".join(map(str, range(1500))),) * 2,
    ("longbench/lcc", 0): ("  \nx = 1", "x = 1"),
    ("longbench/lcc", 1): ("for i in range(n):", "while not done(i, n):"),
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("recursion-zeros", {("longbench/gov_report", 0): 0.0}),
        ("whole-classes", {("longbench/trec", 0): 1.0}),
        ("text-lines", {("longbench/lcc", 0): 1.0, ("longbench/lcc", 1): 0.41}),
        ("levenshtein", {("longbench/lcc", 0): 0.57, ("longbench/lcc", 1): 0.51}),
    ],
)
def test_a_deviation_scores_again_what_it_is_about_and_nothing_else(
    tmp_path: Path, folder: Path, name: str, expected: dict[tuple[str, int], float]
) -> None:
    made = run(tmp_path, folder, "longbench/lcc,longbench/trec,longbench/gov_report")
    records = [one for one in made.records if (one.task, one.index) in SAID]
    for at, one in enumerate(records):
        answer, reference = SAID[one.task, one.index]
        facts = {**one.facts, "all_classes": ["A", "AB", "ABC"]}
        records[at] = replace(one, output=answer, references=(reference,), facts=facts, score=0.25)
    told, changed = deviating(replace(made, records=tuple(records)), name)
    found = {(one.task, one.index): one.score for one in told.records}
    assert found == pytest.approx(dict.fromkeys(SAID, 0.25) | expected) and changed == len(expected)


def test_a_deviation_is_off_until_it_is_named_and_then_said(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(tmp_path, folder, "longbench/lcc")
    assert main(["longbench", str(made.path)]) == 0 and "deviation" not in capsys.readouterr().out
    assert main(["longbench", str(made.path), "--deviation", "levenshtein"]) == 0
    said = "scored again with the deviation levenshtein, which changed 0 scores: not those of the cards"
    assert said in capsys.readouterr().out
    assert main(["longbench", str(made.path), "--deviation", "other"]) == 2
    told = capsys.readouterr().err
    assert all(name in told for name in DEVIATIONS)
    used = {task.scorer for task in load_tasks()[0].values()}
    for instead in DEVIATIONS.values():
        assert instead.keys() <= used and used.isdisjoint(instead.values())


def test_a_run_without_longbench_says_that_it_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = evaluate(
        "anchor-tiny", "passkey", lengths=[512], limit=1, backend="fake", haystack="generated", output=tmp_path
    )
    assert main(["longbench", str(run.path)]) == 0
    assert capsys.readouterr().out.endswith("no task of the suites longbench, longbench_e and longbench_v2\n")


def test_a_lost_answer_stars_the_averages_that_contain_its_data_set_and_no_other(tmp_path: Path, folder: Path) -> None:
    made = run(tmp_path, folder, limit=1)
    records = [replace(made.records[0], task=f"longbench/{name}", score=0.5) for name in FLAT_21]
    lost = replace(made.records[0], task="longbench/dureader", index=1, score=None, outcome="failed", why="cut off")
    lines = report(replace(made, records=(*records, lost))).splitlines()
    shown = {line[:32].strip(): line[32:].split() for line in lines if line.startswith("  ")}
    assert shown["six categories, English"] == shown["flat over 16, English and code"] == ["50.00"]
    assert shown["six categories, Chinese"] == shown["flat over 21"] == ["50.00*"]
    assert shown["multi-document QA"] == ["50.00", "50.00*"] and shown["summarization"] == ["50.00", "50.00"]
