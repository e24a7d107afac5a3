"""What was lost is counted, marked and explained on every surface; a header's facts stand beside the scores."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import re
from pathlib import Path
from typing import Any

import pytest
from test_board import make_run
from test_compare_runs import made
from test_leaderboard import declared, saved, table

from anchoreval import compare
from anchoreval.records.header import Header
from anchoreval.records.run import Run
from anchoreval.reports.board import board_csv, board_html, run_table
from anchoreval.reports.board.declared import write_leaderboard
from anchoreval.reports.compare.table import table_of
from anchoreval.schema import OUTCOMES, SCORED, Outcome, Record

LOST: tuple[Outcome, ...] = tuple(outcome for outcome in OUTCOMES if outcome not in SCORED)
DO = {
    "cut": "filled their budget of new tokens", "empty": "nothing but white space", "unclosed": "turn reasoning off",
    "refused": "start the server with a larger window", "failed": "the same command asks them again",
    "not_finite": "--dtype", "does_not_fit": "shorter --lengths",
}  # fmt: skip


def lost(run: Run, outcome: Outcome, task: str = "ruler/qa_1", arm: str = "fp32", count: int = 12) -> Run:
    """The run, in which so many samples of a task at 512 under an arm became this."""

    def became(record: Record) -> Record:
        if (record.task, record.length, record.arm) != (task, 512, arm) or record.index >= count:
            return record
        score = record.score if outcome in SCORED else None
        return dataclasses.replace(record, outcome=outcome, score=score, why=None if outcome in SCORED else "said why")

    return dataclasses.replace(run, records=tuple(map(became, run.records)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which nothing was lost."""
    run = make_run(tmp_path_factory.mktemp("runs") / "run")
    kept = tuple(dataclasses.replace(one, score=one.score or 0.0, finish="stop", outcome=None) for one in run.records)
    header = {key: value for key, value in run.header.items() if key != "unmakeable"}
    return dataclasses.replace(run, records=kept, header=header)


@pytest.mark.parametrize("outcome", [outcome for outcome in OUTCOMES if outcome != "answered"])
def test_every_outcome_is_counted_with_what_to_do(whole: Run, outcome: Outcome) -> None:
    run, name = lost(whole, outcome, count=5), outcome.replace("_", " ")
    texts = [" ".join(run_table(run).split()), html.unescape(board_html([run]))]
    for text in texts:
        assert f"5 {name} (fp32 5): " in text and DO[outcome] in text
        assert ("the first: said why" in text) is (outcome not in SCORED)
    rows = csv.DictReader(io.StringIO(board_csv([run])))
    (row,) = [row for row in rows if (row["task"], row["length"], row["arm"]) == ("ruler/qa_1", "512", "fp32")]
    assert row[outcome] == "5"


@pytest.mark.parametrize("outcome", LOST)
def test_compare_says_how_many_pairs_were_left_out_and_why(whole: Run, outcome: Outcome) -> None:
    run = lost(lost(whole, outcome, count=3), "failed", task="ruler/vt", count=1)
    against = compare(Run(run.path, run.header, run.records))[0]
    one = f"3 {outcome.replace('_', ' ')}, 1 failed" if outcome != "failed" else "4 failed"
    one = f"1 failed, 3 {outcome.replace('_', ' ')}" if OUTCOMES.index(outcome) > OUTCOMES.index("failed") else one
    assert f"4 left out: {one}" in table_of(against)
    assert against.pooled.difference.left_out == 4 and "4 left out" in run_table(run)


def test_a_mean_from_which_a_task_or_a_sample_is_lost_is_marked_on_every_row(whole: Run, tmp_path: Path) -> None:
    for count in (1, 12):
        run = lost(whole, "refused", count=count)
        text = run_table(run)
        (line,) = [line for line in text.split("\n\n")[0].splitlines() if line.startswith("all")]
        assert [part.endswith("*") for part in line.split()[1:]] == [
            False,
            False,
            True,
            False,
            False,
            False,
            True,
            False,
        ]
        joined = " ".join(text.split())
        assert ("lost whole" in joined) is (count == 12) and "with the lost as wrong" in joined
        page = html.unescape(board_html([run]))
        assert re.search(r'aria-label="mean at 512: [^"]*, \d of 5 tasks; \d+ samples without a score left out', page)
        folder = saved(dataclasses.replace(run, path=tmp_path / str(count) / "run"))
        csv_, html_ = write_leaderboard([folder], declared(tmp_path), tmp_path / str(count))
        (row,) = [r for r in table(csv_) if (r["kind"], r["column"], r["arm"]) == ("row", "512", "fp32")]
        fine = next(r for r in table(csv_) if (r["kind"], r["column"], r["arm"]) == ("row", "512", "native"))
        assert "samples without a score left out" in row["note"] or f"{count} sample" in row["note"]
        assert float(row["as_wrong"]) < float(row["value"].rstrip("*")) and not fine["as_wrong"]
        assert row["value"] in html_.read_text("utf-8") and "as wrong</span>" in html_.read_text("utf-8")


def test_the_mean_over_tasks_says_in_board_csv_what_was_lost_behind_it(whole: Run) -> None:
    run = lost(lost(whole, "refused", count=3), "failed", task="ruler/vt", count=1)
    means = [row for row in csv.DictReader(io.StringIO(board_csv([run]))) if row["kind"] == "mean"]
    (row,) = [row for row in means if (row["length"], row["arm"]) == ("512", "fp32")]
    records = [r for r in run.records if (r.length, r.arm) == (512, "fp32")]
    assert row["lost"] == "3 refused, 1 failed"
    assert (row["asked"], row["scored"]) == (str(len(records)), str(len(records) - 4))
    assert {row["lost"] for row in means if row["arm"] != "fp32"} == {""}


def test_the_lost_count_as_wrong_in_the_lower_bound(whole: Run) -> None:
    run = lost(whole, "refused", count=6)
    rows = csv.DictReader(io.StringIO(board_csv([run])))
    (row,) = [row for row in rows if (row["task"], row["length"], row["arm"]) == ("ruler/qa_1", "512", "fp32")]
    scores = [r.score for r in run.records if (r.task, r.length, r.arm) == ("ruler/qa_1", 512, "fp32")]
    right = sum(score for score in scores if score is not None)
    assert float(row["mean_x100"]) == pytest.approx(100 * right / 6, abs=1e-3)
    assert float(row["as_wrong_x100"]) == pytest.approx(100 * right / 12, abs=1e-3)


def test_a_base_model_that_fills_its_budget_is_told_quietly(whole: Run) -> None:
    run = lost(whole, "cut")
    chat = dataclasses.replace(run, header=run.header | {"form": "chat"})
    assert "normal here" in run_table(run) and "normal here" not in run_table(chat)
    assert "<strong>Note</strong> 12 cut" in board_html([chat]) and "<strong>Note</strong> 12 cut" not in board_html(
        [run]
    )


SERVER = {"backend": {"server": {"api": "chat"}}}


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ({"template": "base"}, "base"),
        ({"template": "chat"}, "chat"),
        ({"template": "base"} | SERVER, "server"),
        ({"template": "base", "form": "chat"} | SERVER, "chat"),
        ({"template": "base", "backend": {"server": {"api": "completions"}}}, "base"),
        ({}, ""),
    ],
)
def test_the_form_of_prompts_is_the_headers_or_follows_from_it(header: dict[str, Any], form: str) -> None:
    assert Header(header).form == form


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (SERVER, "base text against the server's own chat template"),
        ({"template": "chat"}, "base text against the model's chat template"),
        (
            {"identity": {"template_args": {"enable_thinking": False}}},
            "template arguments none against enable_thinking=False",
        ),
        ({"tokenizer": {"sha256": "t", "anchor_token": "<s>"}}, "anchor token none against <s>"),
    ],
)
def test_runs_whose_prompts_took_another_form_are_not_paired_without_a_word(other: dict[str, Any], says: str) -> None:
    first, second = made({"a": 0.0}), made({"a": 0.3}, name="two", **other)
    (found,) = compare([first, second])
    assert found.prompts == (says,) and table_of(found).splitlines()[1] == f"NOT THE SAME PROMPTS: {says}"
    assert compare([first, made({"a": 0.3}, name="two")])[0].prompts == ()


def test_another_rule_of_judging_is_said() -> None:
    first, second = (
        made({"a": 0.0}, name=name, scorers={"ruler/vt": rule}) for name, rule in (("one", "x"), ("two", "y"))
    )
    assert any("not judged by the same rule: ruler/vt" in note for note in compare([first, second])[0].notes)


def test_several_environments_are_marked(whole: Run, tmp_path: Path) -> None:
    both = [{"threads": 1, "versions": {"torch": "2"}}, {"threads": 2, "versions": {"torch": "2"}}]
    header = whole.header | {"environments": both}
    apart = {"native": 0, "fp32": 1, "bf16-angle": 0}
    records = tuple(dataclasses.replace(one, environment=apart[one.arm]) for one in whole.records)
    run = Run(tmp_path / "run", header, records)
    assert (
        Header(header).environment_words == "2 environments (threads differ)" and whole.header.environment_words == ""
    )
    for text in (run_table(run), board_html([run])):
        assert "2 environments" in text and "pairs have their two answers from different environments" in text
    csv_, html_ = write_leaderboard([saved(run)], declared(tmp_path), tmp_path / "out")
    assert {row["environments"] for row in table(csv_)} == {"2"} and ">2 environments</span>" in html_.read_text(
        "utf-8"
    )


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("tokenizer", "&lt;s&gt;, put by the tokenizer"),
        ("anchoreval", "&lt;s&gt;, put by anchoreval: the tokenizer puts none"),
        ("none", "none"),
    ],
)
def test_a_board_says_who_puts_the_anchor(whole: Run, tmp_path: Path, source: str, says: str) -> None:
    tokenizer = {"anchor_token": "<s>", "anchor_from": source}
    run = Run(tmp_path / "run", whole.header | {"tokenizer": tokenizer}, whole.records)
    assert f"<dt>Anchor token</dt><dd><bdi>{says}</bdi></dd>" in board_html([run])
    _, page = write_leaderboard([saved(run)], declared(tmp_path), tmp_path / "out")
    assert f"anchor: {says}" in page.read_text("utf-8")


def test_only_tasks_that_use_generated_text_are_not_comparable(tmp_path: Path) -> None:
    from anchoreval import evaluate

    tasks = "ruler/vt,ruler/niah_single_1,ruler/niah_single_2"
    run = evaluate("anchor-tiny", tasks, lengths=[512], limit=1, backend="fake", haystack="generated", output=tmp_path)
    assert run.header["incomparable"] == {"ruler/niah_single_2": "haystack generated"} and not run.header["comparable"]
    assert "published scores: haystack generated (niah_single_2)." in run_table(run)
    comparable = {row["task"]: row["comparable"] for row in csv.DictReader(io.StringIO(board_csv([run])))}
    assert comparable["ruler/vt"] == "yes" and comparable["ruler/niah_single_2"] == "no"
    clean = evaluate(
        "anchor-tiny", "ruler/vt", lengths=[512], limit=1, backend="fake", haystack="generated", output=tmp_path
    )
    assert clean.header["comparable"] and "published scores" not in run_table(clean)
    seeded = evaluate("anchor-tiny", "ruler/vt", lengths=[512], limit=1, backend="fake", seed=7, output=tmp_path)
    assert seeded.header.incomparable_words() == "seed 7"


def test_an_older_header_is_not_comparable_as_a_whole() -> None:
    header = {"comparable": False, "tasks": ["ruler/vt", "ruler/cwe"], "sources": {"haystack": "generated"}}
    assert (
        Header(header).incomparable_words() == "haystack generated"
        and Header({"comparable": True}).incomparable_words() == ""
    )
